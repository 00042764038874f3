"""Scans among the files that somebody gives: DICOM series, volumes, pictures, also in a zip archive."""

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from covidlib import readers
from covidlib.datasets import listing, natural
from covidlib.preprocessing import quality
from covidlib.readers import Companion, ReadError, dicom, volume
from covidlib.utils.files import unzip

MAX_BYTES = 1_000_000_000  # of all files together, unpacked
MAX_FILES = 5_000
KEPT = 8  # slices that a Scan remembers
SERIES_TAGS = {  # DICOM attributes that say how a series was taken; none that says of whom
    "SeriesDescription": "series", "StudyDescription": "study", "BodyPartExamined": "body part",
    "Manufacturer": "manufacturer", "ConvolutionKernel": "kernel", "SliceThickness": "slice thickness, mm",
    "KVP": "kV", "ProtocolName": "protocol", "ImageComments": "comments",
}


@dataclass
class Scan:
    """Slices that belong together, read when they are asked for.

    title: where they come from, as the user named it; slices: (file, index within it); facts: what the files say of
    how they were taken, as it stands there (escape it before it is shown); notes: sentences on gaps and the like;
    turned: the files of a series that was not stored axial, whose slices are cut from the whole volume.
    """

    title: str
    slices: list[tuple[Path, int]]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    turned: list[Path] = field(default_factory=list)

    def __post_init__(self):
        self._kept, self._volume, self._is_hu, self._lock = OrderedDict(), None, None, threading.RLock()
        self._coloured = functools.lru_cache(maxsize=1)(quality.colour_warnings)

    def __len__(self):
        return len(self.slices)

    @property
    def is_hu(self):
        """Whether its values are Hounsfield units, which can be seen through any window. Raises ReadError."""
        if self._is_hu is None:
            self._is_hu = bool(self.turned) or self._find_hu()
        return self._is_hu

    def _find_hu(self):
        """By the first slice that can be read; the error of the first where none can."""
        first = None
        for index in range(len(self)):
            try:
                return self._slice(index).is_hu
            except ReadError as error:
                first = first or error
        raise first

    def values(self, index):
        """Slice `index`: float32 (H, W) in HU, or uint8 grey where it is none. Raises ReadError."""
        return self._slice(index).values

    def picture(self, index, window=readers.LUNG_WINDOW):
        """Slice `index` as uint8 (H, W), through `window` (centre, width) where it holds HU. Raises ReadError."""
        return self._slice(index).picture(window)

    def quality_warnings(self, index):
        """Sentences on the values and the colours of slice `index`, see preprocessing.quality. Raises ReadError."""
        if self.turned:
            return []
        return [*quality.value_warnings(self._slice(index).remark), *self._coloured(self.slices[index][0])]

    def _slice(self, index):
        with self._lock:
            if index not in self._kept:
                self._kept[index] = self._read(index)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[index]

    def _read(self, index):
        if not self.turned:
            return readers.read(*self.slices[index])
        if self._volume is None:
            try:
                self._volume = volume.read_volume(self.turned)
            except ReadError as error:  # it is the same for every slice
                self._volume = error
        if isinstance(self._volume, ReadError):
            raise self._volume
        return readers.Slice(self._volume[index], True, [], "", self._volume[index].shape)

    def forget(self):
        """Let go of what was read; it is read again when it is asked for."""
        with self._lock:
            self._kept.clear()
            self._volume = None


def find(root, limit=None):
    """(list of Scan, list of ReadErrors) in a folder: series, volumes, and the pictures of a folder as one scan.

    Titles are paths relative to `root`. What listing.find passes over is not looked at, and what goes with the export
    of a scanner (Companion) is not told. Raises ValueError where there are more than `limit` files, by default
    MAX_FILES.
    """
    root = Path(root)
    paths, problems = listing.find(root, ".")
    limit = MAX_FILES if limit is None else limit
    if len(paths) > limit:
        raise ValueError(f"at most {limit} files can be looked at together. Received: {len(paths)} files")
    kinds = {}
    for file in (root / path for path in paths):
        try:
            kinds.setdefault(readers.sniff(file), []).append(file)
        except ReadError as error:
            problems.append(error)
    series, ungrouped = volume.group_series(kinds.pop("dicom", []), together=False)
    problems += ungrouped
    scans = []
    for one in series:
        problems += one.problems
        try:
            scans.append(_of_series(one, root))
        except ReadError as error:
            problems.append(error)
    for file in kinds.pop("nifti", []):
        try:
            scans.append(Scan(_name(file, root), [(file, index) for index in readers.slice_order(file)]))
        except ReadError as error:
            problems.append(error)
    pictures, problems_of_pictures = _pictures([file for group in kinds.values() for file in group], root)
    told = [problem for problem in problems + problems_of_pictures
            if not isinstance(problem, Companion)]
    return sorted(scans + pictures, key=lambda scan: natural(scan.title)), told


def _name(path, root):
    return path.relative_to(root).as_posix()


def _of_series(series, root):
    first = dicom.header(series.files[0], list(SERIES_TAGS))
    facts = {name: str(value) for tag, name in SERIES_TAGS.items() if (value := first.get(tag)) not in (None, "")}
    series.require_axial(volume.TURNED)
    files = list(dict.fromkeys(series.files))
    slices, turned = series.slices, [] if series.axial else files
    if turned:  # what was across or down the stored slices is now along the body
        down = abs(series.axes[5]) > abs(series.axes[2])
        header = series.frames[0].header
        slices = [(turned[0], index) for index in range(header.Rows if down else header.Columns)]
    more = len(files) - 1
    title = _name(series.files[0], root) + (f" and {more} more" if more else "")
    return Scan(title, slices, facts, list(series.notes), turned)


def _pictures(files, root):
    folders, problems = {}, []
    for file in sorted(files, key=natural):
        try:
            slices = [(file, index) for index in readers.slice_order(file)]
            folders.setdefault(file.parent, []).extend(slices)
        except ReadError as error:
            problems.append(error)
    scans = []
    for slices in folders.values():
        first, more = slices[0][0], len({file for file, _ in slices}) - 1
        scans.append(Scan(_name(first, root) + (f" and {more} more" if more else ""), slices))
    return scans, problems


def unpack(archive, folder, limit=MAX_BYTES):
    """Unpack a zip archive into `folder`; returns how many bytes of `limit` are left. ValueError as in `unzip`."""
    return limit - unzip(archive, folder, limit, MAX_FILES)


def of_file(path):
    """The Scan of one file. Raises ReadError."""
    path = Path(path)
    if readers.sniff(path) == "dicom":
        series, ungrouped = volume.group_series([path])
        if ungrouped:
            raise ungrouped[0]
        scan = _of_series(series[0], path.parent)
        scan.notes += [f"A part of it was left out: it {problem.reason}." for problem in series[0].problems]
        return scan
    return Scan(path.name, [(path, index) for index in readers.slice_order(path)])


def summary(probabilities, numbers, names, classes):
    """One row per slice, those first that the network calls least healthy.

    probabilities: (N, classes); numbers and names: N each. DataFrame slice, name, predicted, suspicion, p_<class>;
    suspicion is the probability of all classes but the last, `normal` or `non_covid`.
    """
    import pandas as pd

    probabilities = np.asarray(probabilities, float)
    table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in classes])
    table.insert(0, "suspicion", 1 - probabilities[:, -1])
    table.insert(0, "predicted", [classes[k] for k in probabilities.argmax(axis=1)])
    table.insert(0, "name", names)
    table.insert(0, "slice", numbers)
    return table.sort_values("suspicion", ascending=False, kind="stable", ignore_index=True)
