"""Every slice decoded once, by all processors: what the network sees of it, and what the audit asks of it.

Slices stream through: pictures and the audit's thumbnails (4 KiB a slice) go to disk, and memory grows with the rows of
the manifest and of the facts alone.
"""

import functools
import hashlib
import math
import os
import sys
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from covidlib import datasets, readers
from covidlib.datasets import near_duplicates, splits
from covidlib.preprocessing import crop, lungs
from covidlib.readers import ReadError
from covidlib.utils.files import orphans, owned, require_room, require_writable, sha256, sha256_once

FACTS = ["sha256", "hash", "extension", "container", "mode", "bytes", "height", "width", "lung", "remark"]
DECODING = ".decoding."  # what a cache is called until it is whole; the process that makes it follows
SAMPLED = 4000  # slices whose pixels the shortcut baselines learn from
_SEALED = 0x2144DF1C  # the CRC-32 of everything that ends with its own
_ALONE = 48  # slices that are read before other processes would have started


@dataclass(frozen=True)
class DecodedDataset:
    """What decoding found, one row or image per slice of the source that `decode_dataset` returns.

    facts: DataFrame with columns FACTS (`hash` is similarity.perceptual_hash, `lung` the lungs' share of the picture,
    `remark` ct.Slice's);
    thumbnails: uint8 (N, 64, 64), memory-mapped; sampled: int (M,), rows that the shortcut baselines use; features:
    what each baseline sees of them, name -> (M, k), see shortcuts.features.
    """

    facts: pd.DataFrame
    thumbnails: np.ndarray
    sampled: np.ndarray
    features: dict[str, np.ndarray]


def decode_dataset(source, image_size, cache_dir, features=None, on_error="raise"):
    """(source with the sha256 of every file, DecodedDataset) of a datasets.Source, all of whose slices are decoded.

    The network's images are left in `cache_dir` for `load_images`. `features`: for the audit, a function of a
    sampled slice and its masks, as shortcuts.features. All files that cannot be read, also those that
    `source.problems` names already, raise one datasets.DataError; with on_error="skip" they are left out.
    """
    datasets.check_on_error(on_error)
    _check_size(image_size)
    chosen = _sample(source.manifest)
    wanted = np.isin(np.arange(len(source.manifest)), chosen)
    facts, described, bad, problems = [], [], [], []

    def images(thumbnails):
        asked = [(image_size, features if one else None) for one in wanted]
        for row, result in enumerate(_each(_examine, source, asked)):
            if isinstance(result, readers.ReadError):
                bad.append(row)
                problems.append(result)
                continue
            image, found, thumbnail, seen = result
            facts.append(found)
            thumbnails.write(thumbnail.tobytes())
            if seen is not None:
                described.append((len(facts) - 1, seen))
            yield image

    # a file without a name: it goes with the last that maps it, also where the process is killed
    with (_Store(cache_dir, source.name, image_size, len(source.manifest)) as store,
          tempfile.TemporaryFile(dir=cache_dir) as thumbnails):
        store.fill(images(thumbnails))
        every = [*source.problems, *_one_per_file(problems)]
        if every and on_error == "raise":
            raise datasets.DataError(every)
        source = datasets.without(source, _one_per_file(problems), bad)
        table = pd.DataFrame(facts, columns=FACTS)
        source = replace(source, manifest=source.manifest.assign(sha256=table.sha256))
        store.keep(_key(source))
        thumbnails.flush()
        small = np.memmap(thumbnails, np.uint8, "r", shape=(len(table), *(near_duplicates.THUMBNAIL,) * 2))
    rows, seen = zip(*described, strict=True) if described else ((), ())
    columns = {name: np.stack([one[name] for one in seen]) for name in (seen[0] if seen else ())}
    return _note_doubtful(_note_left_out(source), table), DecodedDataset(table, small, np.array(rows, int), columns)


def load_images(source, image_size, cache_dir=None):
    """What the network sees of `source`, in manifest order: uint8 (N, image_size, image_size), see harmonise.

    With `cache_dir` the array lies there, memory-mapped and read-only, under a name made of the files' content,
    the size and the code that reads them; of two processes that want the same one decodes and the other waits.
    Raises datasets.DataError naming all files that are no CT slices or, where they are decoded, not those whose sha256
    the manifest has; PermissionError where `cache_dir` is read-only.
    """
    _check_size(image_size)
    if cache_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            return np.array(load_images(source, image_size, folder))
    path = _cached(cache_dir, source.name, image_size, _key(source))
    require_writable(path.parent)
    with FileLock(f"{path}.lock"):
        if not _is_whole(path, (len(source.manifest), image_size, image_size)):
            problems = []
            with _Store(cache_dir, source.name, image_size, len(source.manifest)) as store:
                listed = source.manifest.get("sha256", [""] * len(source.manifest))
                store.fill(_sound(_each(_checked, source, [(image_size, checksum) for checksum in listed]), problems))
                if problems:
                    raise datasets.DataError(_one_per_file(problems))
                store.keep(_key(source))
    return np.load(path, mmap_mode="r")


def _is_whole(path, shape):
    """Whether an .npy file holds uint8 of this shape, as they were sealed; one that was damaged is decoded anew."""
    try:
        found = np.load(path, mmap_mode="r")
        return found.shape == shape and found.dtype == np.uint8 and _is_sealed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, EOFError):
        return False


@functools.lru_cache(maxsize=64)  # once in a process: a large cache takes a second for every gigabyte
def _is_sealed(path, modified):
    return _crc(path) == _SEALED


def _seal(path):
    """Have an .npy file end with its CRC-32, which NumPy does not look at."""
    with open(path, "ab") as file:
        file.write(_crc(path).to_bytes(4, "little"))


def _crc(path):
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return crc


def _sound(results, problems):
    for result in results:
        if isinstance(result, readers.ReadError):
            problems.append(result)
        else:
            yield result


class _Store:
    """An .npy file of images that appears in `cache_dir` complete, when it is kept, or not at all."""

    def __init__(self, cache_dir, name, image_size, length):
        self.folder, self.name, self.size = Path(cache_dir), name, image_size
        self.shape, self.filled = (length, image_size, image_size), 0

    def __enter__(self):
        require_writable(self.folder)
        for left in orphans(self.folder, DECODING):
            left.unlink(missing_ok=True)
        handle, self.part = tempfile.mkstemp(dir=self.folder, prefix=owned(DECODING), suffix=".npy")
        os.close(handle)
        return self

    def fill(self, images):
        """Write the images one after another; there may be fewer than was planned for."""
        # a full disk would take the process down; see keep, and the thumbnails
        require_room(self.folder, 2 * math.prod(self.shape) + self.shape[0] * near_duplicates.THUMBNAIL**2)
        array = np.lib.format.open_memmap(self.part, "w+", np.uint8, self.shape)
        for image in images:
            array[self.filled] = image
            self.filled += 1
        array.flush()

    def keep(self, key):
        if self.filled < self.shape[0]:
            whole = np.load(self.part, mmap_mode="r")
            shorter = f"{self.part}.shorter"
            array = np.lib.format.open_memmap(shorter, "w+", np.uint8, (self.filled, *self.shape[1:]))
            array[:] = whole[: self.filled]
            array.flush()
            os.replace(shorter, self.part)
        _seal(self.part)
        os.chmod(self.part, 0o644)
        os.replace(self.part, _cached(self.folder, self.name, self.size, key))

    def __exit__(self, *_):
        Path(self.part).unlink(missing_ok=True)
        Path(f"{self.part}.shorter").unlink(missing_ok=True)


def _cached(cache_dir, name, image_size, key):
    return Path(cache_dir) / f"{name}-{image_size}-{key}.npy"


def _each(function, source, arguments):
    """Results of function(path, index, mask path, *arguments) for every row, in order, as they come."""
    rows = zip(_paths(source), slice_indices(source.manifest), masks(source), arguments, strict=True)
    calls = ((path, index, mask, *more) for path, index, mask, more in rows)
    total = len(source.manifest)
    if total <= _ALONE:
        results = (function(*call) for call in calls)
    else:
        workers = joblib.Parallel(joblib.cpu_count(), return_as="generator", batch_size=8, pre_dispatch="4*n_jobs")
        results = workers(joblib.delayed(function)(*call) for call in calls)
    return tqdm(results, "reading", total, disable=quiet(), leave=False)


def _paths(source):
    return [Path(source.root) / path for path in source.manifest["path"]]


def masks(source):
    """Path of the user's own lung mask of every row, None where there is none."""
    if "mask" not in source.manifest:
        return [None] * len(source.manifest)
    return [Path(source.root) / mask if mask else None for mask in source.manifest["mask"].fillna("")]


def read(path, index, mask=None):
    """(slice, body, lungs) of one slice: uint8 and bool (H, W); `mask`: path of the user's lung mask.

    Raises ct.ReadError, also for a mask of another size.
    """
    return _read(path, index, mask)[1:]


def _read(path, index, mask):
    """(remark of ct.Slice, *`read`)"""
    found = readers.read(path, index)
    picture = found.picture()
    body, lung = lungs.segment(picture)
    if mask is None:
        return found.remark, picture, body, lung
    known = readers.read_mask(mask, index)
    if known.shape == found.stored != picture.shape:  # drawn before pixels were made square
        known = np.asarray(Image.fromarray(known).resize(picture.shape[::-1], Image.Resampling.NEAREST))
    if known.shape != picture.shape:
        raise readers.ReadError(mask, f"is a mask of {known.shape} pixels for a slice of {picture.shape}",
                           f"Give the mask of {path}")
    return found.remark, picture, body | known, known


def preprocess_slice(path, slice_index, image_size, mask=None):
    """What the network sees of one slice: uint8 (image_size, image_size). `mask`: path of the user's lung mask."""
    picture, _, lung = read(path, slice_index, mask)
    return crop.crop_to_lungs(picture, image_size, lung)[0]


def lesion_map(root, path, image_size):
    """bool (S, S): the lesions of a phantom where the network sees them."""
    with Image.open(Path(root, "masks", path).with_suffix(".png")) as truth:
        return crop.warp_mask(np.asarray(truth) == 2, image_size, read(Path(root, path), 0)[2])


def file_facts(path):
    """[extension, container, mode, bytes] of a file, without its pixels."""
    container, mode = readers.sniff(path), ""
    if container in ("png", "jpeg", "tiff"):
        with Image.open(path) as image:
            mode = image.mode
    return [path.suffix.lower(), container, mode, path.stat().st_size]


def _checked(path, index, mask, image_size, checksum):
    """The network's image of one slice, or the ReadError; `checksum`: what the manifest has, "" where it has none."""
    try:
        image = preprocess_slice(path, index, image_size, mask)
        if checksum and sha256_once(path) != checksum:
            raise readers.ReadError(path, "is not the file that the manifest lists, its sha256 is another",
                               "Put that one back, or run notebook 00_data again")
        return image
    except (readers.ReadError, FileNotFoundError) as error:
        return _as_read_error(path, error)


def _examine(path, index, mask, image_size, features):
    """(network's image, facts, thumbnail, features or None) of one slice, or the ReadError."""
    try:
        remark, picture, body, lung = _read(path, index, mask)
        image, seen_lung = crop.crop_to_lungs(picture, image_size, lung)
        facts = [sha256_once(path), near_duplicates.perceptual_hash(picture),
                 *file_facts(path), *picture.shape, float(lung.mean()), remark]
        seen = features(picture, body, lung, image, seen_lung) if features else None
        return image, facts, near_duplicates.thumbnail(picture), seen
    except (readers.ReadError, FileNotFoundError) as error:
        return _as_read_error(path, error)


def _as_read_error(path, error):
    return error if isinstance(error, ReadError) else ReadError(path, "does not exist", "Check data_root")


def _one_per_file(problems):
    """A damaged volume is one problem, not one for each of its slices."""
    return list({(str(problem.path), problem.reason): problem for problem in problems}.values())


def _note_doubtful(source, facts):
    kinds = facts.remark.str.replace(r"-?[\d.]+", "#", regex=True)  # the same doubt with other numbers
    doubtful = {"show no lung that is found": facts.lung == 0}
    doubtful |= {f"have doubtful values ({facts.remark[kinds == kind].iloc[0]})": kinds == kind
               for kind in sorted(set(kinds) - {""})}
    notes = []
    for what, found in doubtful.items():
        paths = source.manifest.path[found.to_numpy()]
        notes += [f"{len(paths)} slices {what}, such as {paths.iloc[0]}: look at them."] if len(paths) else []
    return replace(source, notes=[*source.notes, *notes])


def _note_left_out(source):
    if not source.problems:
        return source
    first = "; ".join(f"{Path(problem.path).name} {problem.reason}" for problem in source.problems[:5])
    more = "; ..." if len(source.problems) > 5 else ""
    note = f"{len(source.problems)} files cannot be used and were left out: {first}{more}."
    return replace(source, notes=[*source.notes, note])


def _sample(manifest):
    """About SAMPLED positions, whole patients, in order: enough for baselines, whatever the size of the set."""
    parts = min(-(-len(manifest) // SAMPLED), datasets.patient_or_file(manifest).nunique())
    if parts < 2:
        return np.arange(len(manifest))
    return np.flatnonzero(splits.k_fold(manifest, parts, seed=0) == 0)


def slice_indices(manifest):
    """The manifest's slice_index as a list of int, 0 where it is absent or empty."""
    if "slice_index" not in manifest:
        return [0] * len(manifest)
    return pd.to_numeric(manifest["slice_index"], errors="coerce").fillna(0).astype(int).tolist()


def _check_size(image_size):
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1. Received: image_size={image_size}")


@functools.cache
def code_sha256():
    """Of the code that makes an image of a file."""
    home = Path(readers.__file__).parent
    code = [*sorted(home.glob("*.py")), Path(lungs.__file__), Path(crop.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()


def _key(source):
    """Names the content: sha256 of the files where the manifest has it, else their size and time."""
    digest = hashlib.sha256(code_sha256().encode())
    manifest = source.manifest
    content = manifest["sha256"].astype(str) if "sha256" in manifest else _stamps(_paths(source))
    drawn = ["" if mask is None else sha256(mask) for mask in masks(source)]
    rows = zip(manifest["path"], slice_indices(manifest), content, drawn, strict=True)
    digest.update("\n".join(" ".join(map(str, row)) for row in rows).encode())
    return digest.hexdigest()[:16]


def _stamps(paths):
    return [f"{stat.st_size} {stat.st_mtime_ns}" for stat in map(os.stat, paths)]


def quiet():
    """Whether a progress bar has nobody to show itself to: neither a terminal nor a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return not sys.stderr.isatty() and not hasattr(shell, "kernel")
