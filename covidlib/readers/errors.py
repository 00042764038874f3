"""What the readers of all formats share: the errors they raise, the limits they keep, the file they hold on to."""

import os
from contextlib import contextmanager

MAX_PIXELS = 2**24  # of one slice: 4096 x 4096
MAX_SLICES = 2**13  # of one file
MAX_BYTES = 2**29  # of what is held in memory of one file, so that reading stays below 1 GiB
AGAIN = "Copy or download it again"
_held = {}


class ReadError(ValueError):
    """A file that cannot be read as a CT slice: `path`, the `reason`, and a `hint` on what to do."""

    def __init__(self, path, reason, hint="Replace the file or leave it out of the data set"):
        super().__init__(f"{path}: {reason}. {hint}.")
        self.path, self.reason, self.hint = path, reason, hint

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.hint)


class NotASlice(ReadError):
    """A sound file of something else: a localiser, another modality, a colour picture."""


class NoImage(NotASlice):
    """A file among images that is none (text, a document): passed over unless somebody listed it."""


class Companion(NoImage):
    """What a scanner exports with its images: presentation states, reports, protocol pages, screenshots."""


@contextmanager
def reading(path):
    """Turn whatever a decoder raises at damaged bytes into a ReadError of `path`."""
    try:
        yield
    except (ReadError, FileNotFoundError):
        raise
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        if isinstance(error, AttributeError) and "issing required element" in reason:
            raise ReadError(path, f"lacks what its pixels are read by ({reason[:200]})", "Export it again") from error
        raise ReadError(path, f"is damaged or truncated ({reason[:200]})", AGAIN) from error


def held(load, path):
    """load(path), kept until another file is asked for: the slices of a volume are read one after another."""
    stat = os.stat(path)
    key = load, str(path), stat.st_mtime_ns, stat.st_size
    found = _held.get(key)
    if found is None:
        _held.clear()  # before loading: two volumes at once may be more than fits
        _held[key] = found = load(path)
    return found


def check_bytes(path):
    """ReadError where a file that is read whole has more than MAX_BYTES."""
    if os.stat(path).st_size > MAX_BYTES:
        raise ReadError(path, f"is too large (at most {MAX_BYTES >> 20} MiB are read)",
                        "Scale it down, or split it into single slices")


def check_size(path, height, width, count=1):
    """ReadError where one slice has more than MAX_PIXELS pixels or the file more than MAX_SLICES slices."""
    if not (0 < height and 0 < width and 0 < count):
        raise ReadError(path, f"has no pixels ({width}x{height}, {count} slices)")
    if height * width > MAX_PIXELS:
        raise ReadError(path, f"is too large ({width}x{height} pixels, at most {MAX_PIXELS} are read)", "Scale it down")
    if count > MAX_SLICES:
        raise ReadError(path, f"is too large ({count} slices, at most {MAX_SLICES} are read)", "Split the volume")


def check_index(path, slice_index, count):
    """`slice_index` as int; 0 for a file of one slice. ReadError where there is no such slice."""
    if count == 1:
        return 0
    if not 0 <= slice_index < count:
        raise ReadError(path, f"has slices 0 to {count - 1}. Received: slice_index={slice_index}",
                        "Correct slice_index in the manifest")
    return int(slice_index)
