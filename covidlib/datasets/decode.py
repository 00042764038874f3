"""Every slice decoded once, by all processors: the network's image of it, and what the audit needs.

Slices stream through: images and the audit's thumbnails (4 KiB a slice) go to disk, and memory grows with the rows of
the manifest and of the facts alone.
"""

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from covidlib import datasets, preprocessing, readers
from covidlib.datasets import cache, near_duplicates, splits
from covidlib.preprocessing import crop, lungs
from covidlib.readers import ReadError
from covidlib.utils.files import require_writable, sha256, sha256_once
from covidlib.utils.text import first_few

FACTS = ["sha256", "hash", "extension", "container", "mode", "bytes", "height", "width", "lung", "remark"]
SAMPLED = 4000  # slices whose pixels the shortcut baselines learn from
_ALONE = 48  # slices that are read before other processes would have started


@dataclass(frozen=True)
class DecodedDataset:
    """What decoding found, one row or image per slice of the source that `decode_dataset` returns.

    facts: DataFrame with columns FACTS (`hash` is near_duplicates.perceptual_hash, `lung` the lungs' share of the
    picture, `remark` that of readers.Slice); thumbnails: uint8 (N, 64, 64), memory-mapped; sampled: int (M,), rows that
    the shortcut baselines use; features: their evidence in these, name -> (M, k), see shortcuts.features.
    """

    facts: pd.DataFrame
    thumbnails: np.ndarray
    sampled: np.ndarray
    features: dict[str, np.ndarray]


def decode_dataset(source, image_size, preparation, cache_dir, features=None, on_error="raise"):
    """(source with the sha256 of every file, DecodedDataset) of a datasets.Source, all of whose slices are decoded.

    The network's images, as crop.prepare makes them, are left in `cache_dir` for `load_images`. `features`: for the
    audit, a function of a sampled slice and its masks, as shortcuts.features. All files that cannot be read, also those
    that `source.problems` names already, raise one datasets.DataError; with on_error="skip" they are left out.
    """
    datasets.check_on_error(on_error)
    _check_size(image_size)
    count = len(source.manifest)
    sampled = np.isin(np.arange(count), _sample(source.manifest))
    calls = [(image_size, preparation, features if one else None) for one in sampled]
    facts, described, bad, problems = [], [], [], []
    # a file without a name: it goes with the last that maps it, also where the process is killed
    with (cache.ImageWriter(cache_dir, image_size, count) as images,
          tempfile.TemporaryFile(dir=cache_dir) as thumbnails):
        for row, result in enumerate(_each(_examine, source, calls)):
            if isinstance(result, ReadError):
                bad.append(row)
                problems.append(result)
                continue
            image, found, thumbnail, evidence = result
            images.write(image)
            thumbnails.write(thumbnail.tobytes())
            if evidence is not None:
                described.append((len(facts), evidence))
            facts.append(found)
        problems = _one_per_file(problems)
        if (source.problems or problems) and on_error == "raise":
            raise datasets.DataError([*source.problems, *problems])
        source = datasets.without(source, problems, bad)
        table = pd.DataFrame(facts, columns=FACTS)
        source = replace(source, manifest=source.manifest.assign(sha256=table.sha256))
        images.keep(_cached(cache_dir, source, image_size, preparation))
        thumbnails.flush()
        small = np.memmap(thumbnails, np.uint8, "r", shape=(len(table), *(near_duplicates.THUMBNAIL,) * 2))
    rows, evidence = zip(*described, strict=True) if described else ((), ())
    columns = {name: np.stack([one[name] for one in evidence]) for name in (evidence[0] if evidence else ())}
    notes = [*source.notes, *_note_left_out(source.problems), *_note_doubtful(source.manifest, table)]
    return replace(source, notes=notes), DecodedDataset(table, small, np.array(rows, int), columns)


def load_images(source, image_size, preparation, cache_dir=None):
    """The network's images of `source`, in manifest order: uint8 (N, image_size, image_size), see crop.prepare.

    With `cache_dir` the array is stored there, memory-mapped and read-only, under a name made of the files' content,
    size, preparation and the code that reads them; of two processes that want the same one decodes, the other waits.
    Raises datasets.DataError naming all files that are no CT slices or, where they are decoded, not those whose sha256
    the manifest has; PermissionError where `cache_dir` is read-only.
    """
    _check_size(image_size)
    if cache_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            return np.array(load_images(source, image_size, preparation, folder))
    path = _cached(cache_dir, source, image_size, preparation)
    require_writable(path.parent)
    with FileLock(f"{path}.lock"):
        if not cache.is_whole(path, (len(source.manifest), image_size, image_size)):
            _decode_images(source, image_size, preparation, path)
    return np.load(path, mmap_mode="r")


def _decode_images(source, image_size, preparation, path):
    problems = []
    listed = source.manifest.get("sha256", [""] * len(source.manifest))
    with cache.ImageWriter(path.parent, image_size, len(source.manifest)) as images:
        for result in _each(_checked, source, [(image_size, preparation, checksum) for checksum in listed]):
            if isinstance(result, ReadError):
                problems.append(result)
            else:
                images.write(result)
        if problems:
            raise datasets.DataError(_one_per_file(problems))
        images.keep(path)


def _each(function, source, arguments):
    """Results of function(path, index, mask path, *arguments), or ReadErrors, for every row, in order, as they come."""
    rows = zip(_paths(source), slice_indices(source.manifest), masks(source), arguments, strict=True)
    calls = (joblib.delayed(_attempt)(function, path, index, mask, *more) for path, index, mask, more in rows)
    total = len(source.manifest)
    workers = 1 if total <= _ALONE else joblib.cpu_count()
    results = joblib.Parallel(workers, return_as="generator", batch_size=8, pre_dispatch="4*n_jobs")(calls)
    return tqdm(results, "reading", total, disable=quiet(), leave=False)


def _attempt(function, path, *arguments):
    try:
        return function(path, *arguments)
    except ReadError as error:
        return error
    except FileNotFoundError:
        return ReadError(path, "does not exist", "Check data_root")


def _paths(source):
    return [Path(source.root) / path for path in source.manifest["path"]]


def masks(source):
    """Path of the user's own lung mask of every row, None where there is none."""
    if "mask" not in source.manifest:
        return [None] * len(source.manifest)
    return [Path(source.root) / mask if mask else None for mask in source.manifest["mask"].fillna("")]


def read(path, index, mask=None):
    """(slice, body, lungs) of one slice: uint8 and bool (H, W); `mask`: path of the user's lung mask.

    Raises readers.ReadError, also for a mask of another size.
    """
    return _read(path, index, mask)[1:]


def _read(path, index, mask):
    """(remark of readers.Slice, *`read`)"""
    found = readers.read(path, index)
    picture = found.picture()
    body, lung = lungs.segment(picture)
    if mask is None:
        return found.remark, picture, body, lung
    known = readers.read_mask(mask, index)
    if known.shape == found.stored != picture.shape:  # drawn before pixels were made square
        known = np.asarray(Image.fromarray(known).resize(picture.shape[::-1], Image.Resampling.NEAREST))
    if known.shape != picture.shape:
        raise ReadError(mask, f"is a mask of {known.shape} pixels for a slice of {picture.shape}",
                        f"Give the mask of {path}")
    return found.remark, picture, body | known, known


def preprocess_slice(path, slice_index, image_size, preparation, mask=None):
    """The network's image of one slice: uint8 (image_size, image_size). `mask`: path of the user's lung mask."""
    picture, _, lung = read(path, slice_index, mask)
    return crop.prepare(picture, image_size, preparation, lung)[0]


def lesion_map(root, path, image_size, preparation):
    """bool (S, S): the lesions of a phantom in the network's image of it."""
    with Image.open(Path(root, "masks", path).with_suffix(".png")) as truth:
        return crop.prepare_mask(np.asarray(truth) == 2, image_size, preparation, read(Path(root, path), 0)[2])


def file_facts(path):
    """[extension, container, mode, bytes] of a file, without its pixels."""
    container, mode = readers.sniff(path), ""
    if container in ("png", "jpeg", "tiff"):
        with Image.open(path) as image:
            mode = image.mode
    return [path.suffix.lower(), container, mode, path.stat().st_size]


def _checked(path, index, mask, image_size, preparation, checksum):
    """The network's image of one slice; `checksum`: what the manifest has, "" where it has none."""
    image = preprocess_slice(path, index, image_size, preparation, mask)
    if checksum and sha256_once(path) != checksum:
        raise ReadError(path, "is not the file that the manifest lists, its sha256 is another",
                        "Put that one back, or run notebook 00_data again")
    return image


def _examine(path, index, mask, image_size, preparation, features):
    """(network's image, facts, thumbnail, features or None) of one slice."""
    remark, picture, body, lung = _read(path, index, mask)
    image, _ = crop.prepare(picture, image_size, preparation, lung)
    facts = [sha256_once(path), near_duplicates.perceptual_hash(picture),
             *file_facts(path), *picture.shape, float(lung.mean()), remark]
    evidence = features(picture, body, lung, image_size) if features else None
    return image, facts, near_duplicates.thumbnail(picture), evidence


def _one_per_file(problems):
    """A damaged volume is one problem, not one for each of its slices."""
    return list({(str(problem.path), problem.reason): problem for problem in problems}.values())


def _note_doubtful(manifest, facts):
    kinds = facts.remark.str.replace(r"-?[\d.]+", "#", regex=True)  # the same doubt with other numbers
    doubtful = {"show no lung that is found": facts.lung == 0}
    doubtful |= {f"have doubtful values ({facts.remark[kinds == kind].iloc[0]})": kinds == kind
                 for kind in sorted(set(kinds) - {""})}
    return [f"{found.sum()} slices {reason}, such as {manifest.path[found.to_numpy()].iloc[0]}: look at them."
            for reason, found in doubtful.items() if found.any()]


def _note_left_out(problems):
    shown = first_few((f"{Path(problem.path).name} {problem.reason}" for problem in problems), 5)
    return [f"{len(problems)} files cannot be used and were left out: {shown}."] if problems else []


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


def _cached(cache_dir, source, image_size, preparation):
    return Path(cache_dir) / f"{source.name}-{preparation}-{image_size}-{_key(source)}.npy"


def _key(source):
    """Names the content: sha256 of the files where the manifest has it, else their size and time."""
    digest = hashlib.sha256(preprocessing.code_sha256().encode())
    manifest = source.manifest
    if "sha256" in manifest:
        content = manifest["sha256"].astype(str)
    else:
        content = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in map(os.stat, _paths(source))]
    drawn = ["" if mask is None else sha256(mask) for mask in masks(source)]
    rows = zip(manifest["path"], slice_indices(manifest), content, drawn, strict=True)
    digest.update("\n".join(" ".join(map(str, row)) for row in rows).encode())
    return digest.hexdigest()[:16]


def quiet():
    """Whether a progress bar has nobody to show itself to: neither a terminal nor a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return not sys.stderr.isatty() and not hasattr(shell, "kernel")
