"""Scans among somebody's files: DICOM series, volumes and pictures, also in a zip archive."""

import contextlib
import functools
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

from covidlib import readers
from covidlib.datasets import listing, natural
from covidlib.preprocessing import quality
from covidlib.readers import Companion, ReadError, dicom, volume
from covidlib.utils.files import unzip

MAX_BYTES = 1_000_000_000  # of all files together, unpacked
MAX_FILES = 5_000
KEPT = 8  # slices that a Scan remembers
SERIES_TAGS = {  # DICOM attributes of the acquisition; none that names the patient
    "SeriesDescription": "series", "StudyDescription": "study", "BodyPartExamined": "body part",
    "Manufacturer": "manufacturer", "ConvolutionKernel": "kernel", "SliceThickness": "slice thickness, mm",
    "KVP": "kV", "ProtocolName": "protocol", "ImageComments": "comments",
}


@dataclass(eq=False)
class Scan:
    """Slices that belong together, read on demand.

    title: path of the first file; slices: (file, index within it); facts: SERIES_TAGS as stored in the file, not
    escaped; notes: sentences on gaps and the like; turned: the files of a series that was not stored axial, whose
    slices are cut from the whole volume.
    """

    title: str
    slices: list[tuple[Path, int]]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    turned: list[Path] = field(default_factory=list)

    def __post_init__(self):
        self._lock = threading.RLock()
        self._cached = functools.lru_cache(KEPT)(self._read)
        self._volume = functools.lru_cache(1)(self._read_volume)
        self._colour_warnings = functools.lru_cache(1)(quality.colour_warnings)

    def __len__(self):
        return len(self.slices)

    @functools.cached_property
    def is_hu(self):
        """Whether its values are Hounsfield units, by the first slice that can be read. Raises ReadError."""
        error = None
        if self.turned:
            return True
        for index in range(len(self)):
            try:
                return self._slice(index).is_hu
            except ReadError as own:
                error = error or own
        raise error

    def values(self, index):
        """Slice `index`: float32 (H, W) in HU, or uint8 grey values. Raises ReadError."""
        return self._slice(index).values

    def picture(self, index, window=readers.LUNG_WINDOW):
        """Slice `index` as uint8 (H, W), through `window` (centre, width) where it holds HU. Raises ReadError."""
        return self._slice(index).picture(window)

    def quality_warnings(self, index):
        """Sentences on the values and the colours of slice `index`, see preprocessing.quality. Raises ReadError."""
        if self.turned:
            return []
        return [*quality.value_warnings(self._slice(index).remark), *self._colour_warnings(self.slices[index][0])]

    def forget(self):
        """Free what was read; it is read again on demand."""
        with self._lock:
            self._cached.cache_clear()
            self._volume.cache_clear()

    def _slice(self, index):
        with self._lock:
            return self._cached(index)

    def _read(self, index):
        if not self.turned:
            return readers.read(*self.slices[index])
        found = self._volume()
        if isinstance(found, ReadError):
            raise found
        return readers.Slice(found[index], True, [], "", found[index].shape)

    def _read_volume(self):
        try:
            return volume.read_volume(self.turned)
        except ReadError as error:  # kept: it is the same for every slice
            return error


def find(root, limit=math.inf):
    """(list of Scan, list of ReadErrors) in a folder: series, volumes, and the pictures of each folder as one scan.

    Titles are paths relative to `root`. Files that listing.find leaves out, and Companions of a scanner's export, are
    not reported. Raises ValueError where there are more than `limit` files.
    """
    root = Path(root)
    paths, problems = listing.find(root, ".")
    if len(paths) > limit:
        raise ValueError(f"at most {limit} files can be opened together. Received: {len(paths)} files")
    kinds, scans, folders = {}, [], {}
    for file in (root / path for path in paths):
        with _collect(problems):
            kinds.setdefault(readers.sniff(file), []).append(file)
    all_series, ungrouped = volume.group_series(kinds.pop("dicom", []), together=False)
    problems += ungrouped
    for series in all_series:
        problems += series.problems
        with _collect(problems):
            scans.append(_of_series(series, root))
    for file in kinds.pop("nifti", []):
        with _collect(problems):
            scans.append(_of_slices(_slices(file), root))
    for file in sorted((file for files in kinds.values() for file in files), key=natural):
        with _collect(problems):
            slices = _slices(file)
            folders.setdefault(file.parent, []).extend(slices)
    scans += [_of_slices(slices, root) for slices in folders.values()]
    return (sorted(scans, key=lambda scan: natural(scan.title)),
            [problem for problem in problems if not isinstance(problem, Companion)])


def of_file(path):
    """The Scan of one file. Raises ReadError."""
    path = Path(path)
    if readers.sniff(path) != "dicom":
        return _of_slices(_slices(path), path.parent)
    series, ungrouped = volume.group_series([path])
    if ungrouped:
        raise ungrouped[0]
    scan = _of_series(series[0], path.parent)
    scan.notes += [f"A part of it was left out: it {problem.reason}." for problem in series[0].problems]
    return scan


@contextlib.contextmanager
def _collect(problems):
    try:
        yield
    except ReadError as error:
        problems.append(error)


def _slices(file):
    return [(file, index) for index in readers.slice_order(file)]


def _of_slices(slices, root, **details):
    more = len({file for file, _ in slices}) - 1
    title = slices[0][0].relative_to(root).as_posix()
    return Scan(title + (f" and {more} more" if more else ""), slices, **details)


def _of_series(series, root):
    series.require_axial(volume.TURNED)
    first = dicom.header(series.files[0], list(SERIES_TAGS))
    facts = {name: str(value) for tag, name in SERIES_TAGS.items() if (value := first.get(tag)) not in (None, "")}
    scan = _of_slices(series.slices, root, facts=facts, notes=list(series.notes))
    if not series.axial:  # what was across or down the stored slices is now along the body
        scan.turned = list(dict.fromkeys(series.files))
        down = abs(series.axes[5]) > abs(series.axes[2])
        header = series.frames[0].header
        count = header.Rows if down else header.Columns
        scan.slices = [(scan.turned[0], index) for index in range(count)]
    return scan


def unpack(archive, folder, limit=MAX_BYTES):
    """Unpack a zip archive into `folder`; returns how many bytes of `limit` are left. ValueError as in `unzip`."""
    return limit - unzip(archive, folder, limit, MAX_FILES)
