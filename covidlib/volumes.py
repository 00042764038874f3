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

from covidlib import ct
from covidlib.formats import NotASlice, ReadError, dicom, reading

SAME_PLACE = 0.01  # mm
GAP = 1.5  # times the usual distance
_TAGS = ["SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "Rows",
         "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
         "InstanceNumber", "PixelSpacing", "PixelRepresentation", "RescaleIntercept", "PatientID",
         "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]


@dataclass(frozen=True)
class Series:
    """One DICOM series, its `files` from the feet up (as given where nothing says their place).

    positions: float (D,), millimetres along the normal, or None; axes: direction cosines (6,) of rows and columns,
    or None; headers: of each file, without pixels; problems: ReadErrors of files that are not in `files`, since they
    are double, of another size or in another plane; notes: sentences on gaps.
    """

    uid: str
    files: list[Path]
    headers: list
    positions: np.ndarray | None = None
    axes: np.ndarray | None = None
    problems: list[ReadError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def axial(self):
        """Whether its slices are axial, as they are taken to be where nothing says so."""
        return self.axes is None or dicom.is_axial(self.axes)

    @property
    def spacing(self):
        """Millimetres between slices, rows and columns, each None where it is unknown."""
        steps = [] if self.positions is None else np.diff(self.positions)
        rows, columns = dicom.pixel_spacing(self.headers[0]) or (None, None)
        return float(np.median(steps)) if len(steps) else None, rows, columns


def group_series(files, together=True):
    """(list of Series, list of ReadErrors) of DICOM files; in the second what is in no series: damaged headers, other
    modalities, localisers. Files without SeriesInstanceUID are one series, or unless `together` each its own."""
    groups, strays = {}, []
    for file in map(Path, files):
        try:
            if ct.sniff(file) != "dicom":
                raise ReadError(file, f"is a {ct.sniff(file)} file in a DICOM series", "Leave it out")
            with reading(file):
                header = dicom.header(file, _TAGS)
                dicom.check_slice(header, file)
                list(header), _order("", [(file, header)]).spacing  # what is damaged shows itself here, with its file
            uid = str(header.get("SeriesInstanceUID") or "")
            groups.setdefault((uid, None if uid or together else file), []).append((file, header))
        except ReadError as error:
            strays.append(error)
    return [_order(uid, members) for (uid, _), members in groups.items()], strays


def read_volume(path):
    """float32 (D, H, W) in HU of a NIfTI file, a multi-frame DICOM file, or one DICOM series (a folder or a list).

    Axial slices from the feet up, anterior on top, the patient's right on the left, also where it was stored coronal
    or sagittal. ReadError where the slices are not one series, one is double, damaged, of another size or plane, or
    nothing says its place. Localisers and files that are not DICOM are passed over.
    """
    if isinstance(path, (str, Path)) and not Path(path).is_dir():
        return _read_file(Path(path))
    series = one_series(path)
    if series.positions is None and "InstanceNumber" not in series.headers[0]:
        raise ReadError(series.files[0], "says nothing of its place in the series", "Order the slices in a manifest")
    return _stack([(file, 0) for file in series.files], series.axes)


def one_series(path):
    """The only Series of a folder or of a list of files; ReadError as in read_volume."""
    folder = Path(path) if isinstance(path, (str, Path)) else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of DICOM slices. Check the path.")
    files = [file for file in sorted(folder.iterdir()) if _is_dicom(file)] if folder else list(path)
    series, strays = group_series(files)
    where = folder or (Path(files[0]).parent if files else Path())
    problems = [error for error in strays if not isinstance(error, NotASlice)]
    if not series and not problems:
        raise ReadError(where, "holds no DICOM slice of a CT", "Give the folder that holds the slices themselves")
    if len(series) > 1:
        raise ReadError(where, f"holds {len(series)} series", "Keep one series in a folder")
    problems += series[0].problems if series else []
    if problems:
        more = f" (and {len(problems) - 1} more files are unfit)" if len(problems) > 1 else ""
        raise ReadError(problems[0].path, problems[0].what + more, problems[0].mend)
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
        return ct.sniff(file) == "dicom"
    except ReadError:
        return file.suffix.lower() in (".dcm", ".ima")  # named as one: to be called damaged, not passed over


def _order(uid, members):
    """Series of (file, header) pairs."""
    members, problems = _same([*members], lambda header: (header.get("Rows"), header.get("Columns")), _odd_size)
    places = [dicom.place(header) for _, header in members]
    axes = None
    if all(found is not None for found in places):
        def plane(header):
            return tuple(np.round(dicom.place(header)[1], 2) + 0.0)
        members, odd = _same(members, plane, lambda *_: "lies in another plane than the rest of its series")
        problems += odd
        axes = dicom.place(members[0][1])[1]
    members, positions = _sorted(members, axes)
    series = Series(uid, *map(list, zip(*members, strict=True)), positions, axes, problems)
    return _note_gaps(_drop_doubles(series))


def _same(members, key, what):
    """(members with the commonest key, ReadErrors of the others)"""
    keys = [key(header) for _, header in members]
    usual = Counter(keys).most_common(1)[0][0]
    odd = [ReadError(file, what(found, usual), "Move it to a folder of its own")
           for (file, _), found in zip(members, keys, strict=True) if found != usual]
    return [member for member, found in zip(members, keys, strict=True) if found == usual], odd


def _odd_size(found, usual):
    return f"has {found[1]}x{found[0]} pixels, the rest of its series {usual[1]}x{usual[0]}"


def _sorted(members, axes):
    """(members from the feet up, millimetres or None): by place, SliceLocation or InstanceNumber, else as given."""
    if axes is not None:
        numbers = [dicom.place(header)[0] @ _normal(axes) for _, header in members]
        return _by(numbers, members)
    for keyword in ("SliceLocation", "InstanceNumber"):
        numbers = [header.get(keyword) for _, header in members]
        if None not in numbers:
            members, positions = _by(np.array(numbers, float), members)
            return members, positions if keyword == "SliceLocation" else None
    return members, None


def _by(numbers, members):
    order = np.argsort(numbers, kind="stable")
    return [members[i] for i in order], np.asarray(numbers)[order]


def _drop_doubles(series):
    """Without the second of two files at one place, or with one SOPInstanceUID where nothing says their places.

    One SOPInstanceUID at several places is the work of an anonymiser: noted, and nothing is dropped.
    """
    seen, kept, shared, problems = {}, [], 0, list(series.problems)
    positions = [None] * len(series.files) if series.positions is None else series.positions
    for n, (file, header, position) in enumerate(zip(series.files, series.headers, positions, strict=True)):
        uid = header.get("SOPInstanceUID") or file
        before = kept[-1] if kept else None
        here = position is not None and before is not None and position - positions[before] < SAME_PLACE
        if here or (position is None and uid in seen):
            twin = series.files[before if here else seen[uid]].name
            where = f"lies at the place of {twin} in its series ({position:.2f} mm)" if here else f"is {twin} again"
            same = ", with the same SOPInstanceUID" if uid in seen else ""
            problems.append(ReadError(file, where + same, "Keep one of the two, or part the series"))
            continue
        shared += uid in seen
        seen[uid] = n
        kept.append(n)
    notes = [f"{shared} slices of the series in {series.files[0].parent.name} repeat the SOPInstanceUID of another at "
             "another place; they are kept."] if shared else []
    return replace(series, files=[series.files[n] for n in kept], headers=[series.headers[n] for n in kept],
                   positions=None if series.positions is None else series.positions[kept], problems=problems,
                   notes=series.notes + notes)


def _note_gaps(series):
    if series.positions is None or len(series.files) < 3:
        return series
    steps = np.diff(series.positions)
    usual, names = np.median(steps), [file.name for file in series.files]
    gaps = [f"{steps[n]:.1f} mm between {names[n]} and {names[n + 1]}" for n in np.flatnonzero(steps > GAP * usual)]
    if not gaps:
        return series
    shown = "; ".join(gaps[:3]) + ("; ..." if len(gaps) > 3 else "")
    note = (f"Slices are missing from the series in {series.files[0].parent.name}, where {usual:.1f} mm is usual: "
            f"{shown}.")
    return replace(series, notes=[*series.notes, note])


def _read_file(path):
    if ct.sniff(path) == "dicom":
        with reading(path):
            header = dicom.header(path)
            places = [dicom.place(header, index) for index in range(dicom.count(path))]
            axes = None if any(found is None for found in places) else places[0][1]
            order = range(len(places))
            if axes is not None and len({tuple(np.round(found[1], 2)) for found in places}) == 1:
                order = np.argsort([origin @ _normal(axes) for origin, _ in places], kind="stable")
        return _stack([(path, int(index)) for index in order], axes)
    return _stack([(path, index) for index in range(ct.count_slices(path))], None)


def _stack(slices, axes):
    """float32 (D, H, W) of (file, slice index) in the order of the body; turned to axial where it is not."""
    volume = None
    for n, (file, index) in enumerate(slices):
        values = ct.read_hu(file, index)
        if volume is None:
            volume = np.empty((len(slices), *values.shape), np.float32)
        if values.shape != volume.shape[1:]:
            raise ReadError(file, f"has {values.shape} pixels, the rest of its series {volume.shape[1:]}")
        volume[n] = values
    if axes is None or dicom.is_axial(axes):
        return volume
    across, down = axes[:3], axes[3:]
    affine = np.eye(4)  # columns, rows and slices to the patient's left, back and head
    affine[:3, :3] = np.stack([across, down, _normal(axes)], axis=1)
    turn = nibabel.orientations.io_orientation(affine)
    return np.ascontiguousarray(nibabel.orientations.apply_orientation(volume.transpose(2, 1, 0), turn).T)


def _normal(axes):
    """The slices' normal, along which positions grow: towards the head, or where they are not axial left or back."""
    normal = np.cross(axes[:3], axes[3:])
    return normal * np.sign(normal[np.argmax(np.abs(normal))])
