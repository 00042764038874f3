"""Volumes: DICOM series in the order of the body, NIfTI and multi-frame files, and the part of them that shows lung.

Slices are ordered along their common normal by ImagePositionPatient
(https://dicom.nema.org/medical/dicom/current/output/html/part03.html#sect_C.7.6.2), never by name.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from scipy import ndimage

from covidlib import readers
from covidlib.readers import dicom
from covidlib.readers.dicom import SAME_PLACE
from covidlib.readers.errors import NotASlice, ReadError, reading
from covidlib.readers.nifti import to_axial
from covidlib.readers.values import square_pixels

TURNED = 10  # slices of a series that was not stored axial, from which on axial ones are cut from it
_GAP = 1.5  # times the usual distance
_TILTED = 1.0  # degrees
_TAGS = ["SeriesInstanceUID", "SeriesDescription", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType",
         "SamplesPerPixel", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
         "SliceLocation", "InstanceNumber", "PixelSpacing", "PixelRepresentation",
         "RescaleIntercept", "GantryDetectorTilt", "PatientID", "DirectoryRecordSequence",
         "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]


class Frame(NamedTuple):
    """A slice of a series: its file, the header without pixels, its index within the file, dicom.place, and its
    position in millimetres along the normal; the last two None where they are unknown."""

    file: Path
    header: Dataset
    index: int
    place: tuple | None
    position: float | None = None

    @property
    def is_one_of_many(self):
        return int(self.header.get("NumberOfFrames") or 1) > 1

    @property
    def name(self):
        return self.file.name + (f" (frame {self.index + 1})" if self.is_one_of_many else "")


@dataclass(frozen=True)
class Series:
    """One DICOM series, slice by slice from the feet up (as given where nothing says their place).

    axes: direction cosines (6,) of rows and columns, or None; problems: ReadErrors of slices that are left out, since
    they are double, of another size or in another plane; notes: sentences on gaps and on a tilted gantry.
    """

    uid: str
    frames: list[Frame]
    axes: np.ndarray | None = None
    problems: list[ReadError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def axial(self):
        """Whether its slices are axial, as they are taken to be where nothing says so."""
        return self.axes is None or dicom.is_axial(self.axes)

    @property
    def files(self):
        """Of each slice."""
        return [one.file for one in self.frames]

    @property
    def slices(self):
        """[(file, index within it), ...]"""
        return [(one.file, one.index) for one in self.frames]

    @property
    def spacing(self):
        """Millimetres between slices, rows and columns, each None where it is unknown."""
        steps = _steps(self.frames)
        rows, columns = dicom.pixel_spacing(self.frames[0].header) or (None, None)
        return float(np.median(steps)) if len(steps) else None, rows, columns

    def require_axial(self, or_slices=np.inf):
        """ReadError unless its slices are axial, or so many of them that axial ones can be cut."""
        count = len(self.frames)
        if not self.axial and count < or_slices:
            what = f"is the first of {count} slices that are not axial" if count > 1 else "is a slice that is not axial"
            raise ReadError(self.frames[0].file, what,
                            "Convert the whole series to one NIfTI file, which is read in any orientation")


def group_series(files, together=True):
    """(list of Series, list of ReadErrors) of DICOM files; in the second what is in no series: damaged headers, other
    modalities, localisers. Files without SeriesInstanceUID are one series, or unless `together` each its own."""
    groups, ungrouped = {}, []
    for file in map(Path, files):
        try:
            if readers.sniff(file) != "dicom":
                raise ReadError(file, f"is a {readers.sniff(file)} file in a DICOM series", "Leave it out")
            with reading(file):
                header = dicom.header(file, _TAGS)
                dicom.check_slice(header, file)
                list(header), _order("", [(file, header)])  # what is damaged shows itself here, with its file
            uid = str(header.get("SeriesInstanceUID") or "")
            whose = str(header.get("PatientID") or "")  # some anonymisers give several patients one UID
            groups.setdefault((uid, whose, None if uid or together else file), []).append((file, header))
        except ReadError as error:
            ungrouped.append(error)
    return [_order(uid, members) for (uid, *_), members in groups.items()], ungrouped


def read_volume(path):
    """float32 (D, H, W) in HU of a NIfTI file, a multi-frame DICOM file, or one DICOM series (a folder or a list).

    Axial slices from the feet up, anterior on top, the patient's right on the left, pixels square, also where it was
    stored coronal or sagittal. ReadError where the slices are not one series, one is double, damaged, of another size
    or plane, or nothing says its place. Localisers and files that are not DICOM are passed over.
    """
    if isinstance(path, (str, Path)) and not Path(path).is_dir():
        if readers.sniff(path) != "dicom":
            return _stack([(path, index) for index in readers.slice_order(path)])
        path = [Path(path)]
    series = one_series(path)
    first, spacing = series.frames[0], series.spacing
    if len(set(series.files)) > 1 and first.position is None and "InstanceNumber" not in first.header:
        raise ReadError(first.file, "says nothing of its place in the series", "Order the slices in a manifest")
    if series.axial:
        return _stack(series.slices)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([series.axes[:3], series.axes[3:], dicom.normal(series.axes)], axis=1)
    if None not in spacing:  # else pixels stay as they are
        affine[:3, :3] *= spacing[::-1]
    volume, (_, *in_plane) = to_axial(_stack(series.slices, square=False).T, affine)
    return np.stack([square_pixels(first.file, one, in_plane) for one in volume])


def one_series(path):
    """The only Series of a folder or of a list of files; ReadError as in read_volume."""
    folder = Path(path) if isinstance(path, (str, Path)) else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of DICOM slices. Check the path.")
    files = [file for file in sorted(folder.iterdir()) if _is_dicom(file)] if folder else list(path)
    series, ungrouped = group_series(files)
    where = folder or (Path(files[0]).parent if files else Path())
    problems = [error for error in ungrouped if not isinstance(error, NotASlice)]
    if not series and not problems:
        raise ReadError(where, "holds no DICOM slice of a CT", "Give the folder that holds the slices themselves")
    if len(series) > 1:
        raise ReadError(where, f"holds {len(series)} series", "Keep one series in a folder")
    problems += series[0].problems if series else []
    if problems:
        first, *others = problems
        more = f" (and {len(others)} more files are unfit)" if others else ""
        raise ReadError(first.path, first.reason + more, first.hint)
    return series[0]


def lung_run(fractions, least):
    """bool (D,): the contiguous run of slices with a lung fraction of at least `least` that shows most lung.

    A single slice below it does not break the run. All False where no slice has so much.
    """
    fractions = np.asarray(fractions, float)
    runs, count = ndimage.label(ndimage.binary_closing(np.pad(fractions >= least, 1), np.ones(2))[1:-1])
    if not count:
        return np.zeros(len(fractions), bool)
    return runs == 1 + np.argmax(ndimage.sum(fractions, runs, range(1, count + 1)))


def _is_dicom(file):
    try:
        return readers.sniff(file) == "dicom"
    except ReadError:
        return file.suffix.lower() in (".dcm", ".ima")  # named as one: to be called damaged, not passed over


def _stack(slices, square=True):
    """float32 (D, H, W) of (file, slice index) in the order given; `square`: with square pixels."""
    volume = None
    for n, (file, index) in enumerate(slices):
        values = readers.read_hu(file, index, square)
        if volume is None:
            volume = np.empty((len(slices), *values.shape), np.float32)
        if values.shape != volume.shape[1:]:
            raise ReadError(file, f"has {values.shape} pixels, the rest of its series {volume.shape[1:]}")
        volume[n] = values
    return volume


def _order(uid, members):
    """Series of (file, header) pairs."""
    frames = [Frame(file, header, index, dicom.place(header, index))
              for file, header in members for index in dicom.order(header, file)]
    frames, problems = _same(frames, lambda one: (one.header.get("Columns"), one.header.get("Rows")),
                             "has {0[0]}x{0[1]} pixels, the rest of its series {1[0]}x{1[1]}")
    axes = None
    if all(one.place for one in frames):
        frames, odd = _same(frames, lambda one: dicom.plane(one.place[1]),
                            "lies in another plane than the rest of its series")
        problems += odd
        axes = frames[0].place[1]
    frames, doubles, notes = _drop_doubles(_sorted(frames, axes))
    return Series(uid, frames, axes, problems + doubles, [*notes, *_gap_notes(frames), *_tilt_notes(frames, axes)])


def _same(frames, key, what):
    """(frames with the commonest key, a ReadError for each file with others)"""
    keys = [key(one) for one in frames]
    usual = Counter(keys).most_common(1)[0][0]
    odd = {one.file: ReadError(one.file, what.format(found, usual), "Move it to a folder of its own")
           for one, found in zip(frames, keys, strict=True) if found != usual}
    return [one for one, found in zip(frames, keys, strict=True) if found == usual], list(odd.values())


def _sorted(frames, axes):
    """Frames from the feet up, with their positions: by place, SliceLocation or InstanceNumber, else as given."""
    if axes is not None:
        by, normal = "place", dicom.normal(axes)
        numbers = [one.place[0] @ normal for one in frames]
        if len(frames) > 1 and len({one.file for one in frames}) == 1 and np.ptp(numbers) < SAME_PLACE:
            return frames  # they were all given the place of the first
    else:
        by = next((keyword for keyword in ("SliceLocation", "InstanceNumber")
                   if all(one.header.get(keyword) is not None for one in frames)), None)
        if by is None:
            return frames
        numbers = [float(one.header[by].value) for one in frames]
    order = np.argsort(numbers, kind="stable")
    return [frames[n]._replace(position=None if by == "InstanceNumber" else float(numbers[n])) for n in order]


def _drop_doubles(frames):
    """(frames, ReadErrors, notes): without the second of two at one place, or with one SOPInstanceUID where nothing
    says their places. One SOPInstanceUID at several places is the work of an anonymiser: noted, and all are kept."""
    seen, kept, problems, shared = {}, [], [], 0
    for one in frames:
        uid = one.header.get("SOPInstanceUID") or one.file, one.index
        here = kept and one.position is not None and one.position - kept[-1].position < SAME_PLACE
        if here or (one.position is None and uid in seen):
            twin = (kept[-1] if here else seen[uid]).name
            where = f"lies at the place of {twin} in its series ({one.position:.2f} mm)" if here else f"is {twin} again"
            same = ", with the same SOPInstanceUID" if uid in seen else ""
            problems.append(ReadError(one.file, where + same, "Keep one of the two, or part the series"))
            continue
        shared += uid in seen
        seen[uid] = one
        kept.append(one)
    notes = [f"{shared} slices of the series in {frames[0].file.parent.name} repeat the SOPInstanceUID of another at "
             "another place; they are kept."] if shared else []
    return kept, problems, notes


def _steps(frames):
    """Millimetres between frames that follow one another, [] where their positions are unknown."""
    return np.array([high.position - low.position for low, high in pairwise(frames) if high.position is not None])


def _gap_notes(frames):
    steps = _steps(frames)
    if len(steps) < 2:
        return []
    usual = np.median(steps)
    gaps = np.flatnonzero(steps > _GAP * usual)
    shown = "; ".join(f"{steps[n]:.1f} mm between {frames[n].name} and {frames[n + 1].name}" for n in gaps[:3])
    more = "; ..." if len(gaps) > 3 else ""
    return [f"Slices are missing from the series in {frames[0].file.parent.name}, where {usual:.1f} mm is usual: "
            f"{shown}{more}."] if shown else []


def _tilt_notes(frames, axes):
    """Where slices are not stacked along their normal, or the header says that the gantry was tilted."""
    degrees = abs(dicom.number(frames[0].header.get("GantryDetectorTilt") or 0))
    degrees = degrees if np.isfinite(degrees) else 0.0
    if axes is not None:
        along = frames[-1].place[0] - frames[0].place[0]
        length = np.linalg.norm(along)
        if length > SAME_PLACE:
            cosine = abs(along @ dicom.normal(axes)) / length
            degrees = max(degrees, np.degrees(np.arccos(min(1.0, cosine))))
    if degrees < _TILTED:
        return []
    return [f"The gantry was tilted by {degrees:.0f} degrees for the series in {frames[0].file.parent.name}: its "
            "slices are sheared against one another, and not axial by as much."]
