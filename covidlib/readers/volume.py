"""Volumes: DICOM series in the order of the body, NIfTI and multi-frame files, and the part of them that shows lung.

Slices are ordered along their common normal by ImagePositionPatient
(https://dicom.nema.org/medical/dicom/current/output/html/part03.html#sect_C.7.6.2), never by name.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from covidlib import readers
from covidlib.readers import dicom
from covidlib.readers.dicom import SAME_PLACE
from covidlib.readers.errors import NotASlice, ReadError, reading
from covidlib.readers.values import square_pixels

GAP = 1.5  # times the usual distance
TURNED = 10  # slices of a series that was not stored axial, from which on axial ones are cut from it
_TILTED = 1.0  # degrees
_TAGS = ["SeriesInstanceUID", "SeriesDescription", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType",
         "SamplesPerPixel", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
         "SliceLocation", "InstanceNumber", "PixelSpacing", "PixelRepresentation",
         "RescaleIntercept", "GantryDetectorTilt", "PatientID", "DirectoryRecordSequence",
         "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]


@dataclass(frozen=True)
class Series:
    """One DICOM series, slice by slice from the feet up (as given where nothing says their place).

    files, headers (without pixels) and frames: of each slice; positions: float (D,), millimetres along the normal, or
    None; axes: direction cosines (6,) of rows and columns, or None; problems: ReadErrors of slices that are left out,
    since they are double, of another size or in another plane; notes: sentences on gaps and on a tilted gantry.
    """

    uid: str
    files: list[Path]
    headers: list
    frames: list[int]
    positions: np.ndarray | None = None
    axes: np.ndarray | None = None
    problems: list[ReadError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def axial(self):
        """Whether its slices are axial, as they are taken to be where nothing says so."""
        return self.axes is None or dicom.is_axial(self.axes)

    @property
    def slices(self):
        """[(file, frame), ...]"""
        return list(zip(self.files, self.frames, strict=True))

    @property
    def spacing(self):
        """Millimetres between slices, rows and columns, each None where it is unknown."""
        steps = [] if self.positions is None else np.diff(self.positions)
        rows, columns = dicom.pixel_spacing(self.headers[0]) or (None, None)
        return float(np.median(steps)) if len(steps) else None, rows, columns

    def name(self, n):
        """Of slice `n`, for a message."""
        many = int(self.headers[n].get("NumberOfFrames") or 1) > 1
        return self.files[n].name + (f" (frame {self.frames[n] + 1})" if many else "")

    def require_axial(self, or_slices=None):
        """ReadError unless its slices are axial, or so many of them that axial ones can be cut."""
        if self.axial or (or_slices is not None and len(self.slices) >= or_slices):
            return
        count = len(self.slices)
        what = f"is the first of {count} slices that are not axial" if count > 1 else "is a slice that is not axial"
        raise ReadError(self.files[0], what,
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
    if len(set(series.files)) > 1 and series.positions is None and "InstanceNumber" not in series.headers[0]:
        raise ReadError(series.files[0], "says nothing of its place in the series", "Order the slices in a manifest")
    if series.axial:
        return _stack(series.slices)
    turn, spacing = _turn(series.axes), series.spacing
    volume = _stack(series.slices, square=False)
    volume = nibabel.orientations.apply_orientation(volume.transpose(2, 1, 0), turn).T
    place = {int(axis): spacing[k] for k, axis in zip((2, 1, 0), turn[:, 0], strict=True)}
    if None in (place[0], place[1]):
        return np.ascontiguousarray(volume)
    return np.stack([square_pixels(one, (place[1], place[0])) for one in volume])


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
        more = f" (and {len(problems) - 1} more files are unfit)" if len(problems) > 1 else ""
        raise ReadError(problems[0].path, problems[0].reason + more, problems[0].hint)
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


def _order(uid, members):
    """Series of (file, header) pairs."""
    slices = [(file, header, frame) for file, header in members for frame in dicom.order(header, file)]
    slices, problems = _same(slices, lambda header, _: (header.get("Rows"), header.get("Columns")), _odd_size)
    axes = heights = None
    places = {(id(header), frame): dicom.place(header, frame) for _, header, frame in slices}
    if None not in places.values():
        def plane(header, frame):
            return tuple(np.round(places[id(header), frame][1], 2) + 0.0)
        slices, odd = _same(slices, plane, lambda *_: "lies in another plane than the rest of its series")
        problems += odd
        axes = places[id(slices[0][1]), slices[0][2]][1]
        normal = dicom.normal(axes)
        heights = np.array([places[id(header), frame][0] @ normal for _, header, frame in slices])
    slices, positions = _sorted(slices, heights)
    series = Series(uid, *map(list, zip(*slices, strict=True)), positions, axes, problems)
    return _note_tilt(_note_gaps(_drop_doubles(series)))


def _same(slices, key, what):
    """(slices with the commonest key, ReadErrors of the others)"""
    keys = [key(header, frame) for _, header, frame in slices]
    usual = Counter(keys).most_common(1)[0][0]
    odd = {file: ReadError(file, what(found, usual), "Move it to a folder of its own")
           for (file, *_), found in zip(slices, keys, strict=True) if found != usual}
    return [one for one, found in zip(slices, keys, strict=True) if found == usual], list(odd.values())


def _odd_size(found, usual):
    return f"has {found[1]}x{found[0]} pixels, the rest of its series {usual[1]}x{usual[0]}"


def _sorted(slices, heights):
    """(slices from the feet up, millimetres or None): by place, SliceLocation or InstanceNumber, else as given."""
    if heights is not None:
        if len(slices) > 1 and len({file for file, *_ in slices}) == 1 and np.ptp(heights) < SAME_PLACE:
            return slices, None  # frames that were all given the place of the first
        return _by(heights, slices)
    for keyword in ("SliceLocation", "InstanceNumber"):
        numbers = [header.get(keyword) for _, header, _ in slices]
        if None not in numbers:
            slices, positions = _by(np.array(numbers, float), slices)
            return slices, positions if keyword == "SliceLocation" else None
    return slices, None


def _by(numbers, slices):
    order = np.argsort(numbers, kind="stable")
    return [slices[i] for i in order], np.asarray(numbers)[order]


def _drop_doubles(series):
    """Without the second of two slices at one place, or with one SOPInstanceUID where nothing says their places.

    One SOPInstanceUID at several places is the work of an anonymiser: noted, and nothing is dropped.
    """
    seen, kept, shared, problems = {}, [], 0, list(series.problems)
    positions = [None] * len(series.files) if series.positions is None else series.positions
    for n, (file, header, position) in enumerate(zip(series.files, series.headers, positions, strict=True)):
        uid = header.get("SOPInstanceUID") or file, series.frames[n]
        before = kept[-1] if kept else None
        here = position is not None and before is not None and position - positions[before] < SAME_PLACE
        if here or (position is None and uid in seen):
            twin = series.name(before if here else seen[uid])
            where = f"lies at the place of {twin} in its series ({position:.2f} mm)" if here else f"is {twin} again"
            same = ", with the same SOPInstanceUID" if uid in seen else ""
            problems.append(ReadError(file, where + same, "Keep one of the two, or part the series"))
            continue
        shared += uid in seen
        seen[uid] = n
        kept.append(n)
    notes = [f"{shared} slices of the series in {series.files[0].parent.name} repeat the SOPInstanceUID of another at "
             "another place; they are kept."] if shared else []
    files, headers, frames = ([of[n] for n in kept] for of in (series.files, series.headers, series.frames))
    return replace(series, files=files, headers=headers, frames=frames,
                   positions=None if series.positions is None else series.positions[kept], problems=problems,
                   notes=series.notes + notes)


def _note_gaps(series):
    if series.positions is None or len(series.files) < 3:
        return series
    steps = np.diff(series.positions)
    usual = np.median(steps)
    gaps = np.flatnonzero(steps > GAP * usual)
    if not len(gaps):
        return series
    shown = "; ".join(f"{steps[n]:.1f} mm between {series.name(n)} and {series.name(n + 1)}" for n in gaps[:3])
    shown += "; ..." if len(gaps) > 3 else ""
    note = (f"Slices are missing from the series in {series.files[0].parent.name}, where {usual:.1f} mm is usual: "
            f"{shown}.")
    return replace(series, notes=[*series.notes, note])


def _note_tilt(series):
    """With a note where slices are not stacked along their normal, or the header says that the gantry was tilted."""
    degrees = dicom.tilt(series.headers[0])
    if series.axes is not None:
        first, last = (dicom.place(series.headers[n], series.frames[n])[0] for n in (0, -1))
        length = np.linalg.norm(last - first)
        if length > SAME_PLACE:
            cosine = abs((last - first) @ dicom.normal(series.axes)) / length
            degrees = max(degrees, float(np.degrees(np.arccos(min(1.0, cosine)))))
    if degrees < _TILTED:
        return series
    note = (f"The gantry was tilted by {degrees:.0f} degrees for the series in {series.files[0].parent.name}: its "
            "slices are sheared against one another, and not axial by as much.")
    return replace(series, notes=[*series.notes, note])


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


def _turn(axes):
    """nibabel's orientation of columns, rows and slices: what makes them left, back and head."""
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[:3], axes[3:], dicom.normal(axes)], axis=1)
    return nibabel.orientations.io_orientation(affine)
