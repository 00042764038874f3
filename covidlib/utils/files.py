"""Files that appear whole or not at all, their checksums, and zip archives."""

import errno
import functools
import hashlib
import io
import lzma
import os
import shutil
import socket
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath


def write_atomically(path, content):
    """Write text, or what a function of a binary file writes: complete at `path`, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            content(file) if callable(content) else file.write(content.encode())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def require_writable(folder):
    """Make `folder`. Raises PermissionError, in a sentence, where it cannot be made or nothing can be written to it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(f"nothing can be written to this folder ({error.strerror}): give yourself the right to, "
                              f"or take another one. Received: folder={folder}") from error


def require_room(folder, size):
    """Raise OSError where the disk of `folder` has no room for `size` bytes; HDF5 would take the process down."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB are needed in {folder}, and {free / 1e6:.0f} MB are free: "
                                    "make room, and the same call goes on")


def owned(prefix) -> str:
    """How the name of a temporary file of this process begins, for `orphans`."""
    import psutil

    return f"{prefix}{socket.gethostname()}-{os.getpid()}-{int(psutil.Process().create_time())}-"


def orphans(folder, prefix) -> list[Path]:
    """Files in `folder` with names of `owned(prefix)`, of processes of this machine that have ended."""
    return [path for path in Path(folder).glob(f"{prefix}*-*-*-*")
            if _has_ended(*path.name.removeprefix(prefix).rsplit("-", 3)[:3])]


def _has_ended(host, pid, born):
    if host != socket.gethostname() or not (pid.isdigit() and born.isdigit()):
        return False
    import psutil

    try:  # another process may have its number by now
        return abs(psutil.Process(int(pid)).create_time() - int(born)) > 5
    except psutil.NoSuchProcess:
        return True


def read_text(path) -> str:
    """A text as editors write it: UTF-8 or, with its mark, UTF-16. ValueError naming it for another encoding."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text ({error.reason} at byte {error.start}). Save it in "
                         "UTF-8.") from error


def sha256(path) -> str:
    """Hexadecimal SHA-256 of the file at `path`. Raises FileNotFoundError where there is none."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path) -> str:
    """`sha256`, computed once in a process while the file's modification time stays."""
    return _sha256(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _sha256(path, modified):
    return sha256(path)


def unzip(archive, folder, max_bytes, max_files) -> int:
    """Unpack a zip archive into `folder`, regular files below it alone; returns their bytes.

    ValueError, before anything is written, for more than `max_files` files, more than `max_bytes` or than the disk has
    room for, a link, a path that leads elsewhere or occurs twice; and for an archive that is damaged or encrypted.
    """
    folder = Path(folder)
    try:
        with _Bounded(archive, max_files) as file, zipfile.ZipFile(file) as source:
            members = [member for member in source.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)  # zipfile reads no more of a member than this
            if len(members) > max_files:
                raise ValueError(f"the archive holds {len(members)} files; at most {max_files} are unpacked.")
            if size > max_bytes:
                raise ValueError(f"the archive holds more than {max_bytes / 1e6:.0f} MB when unpacked.")
            targets = [folder / _path_of(member) for member in members]
            if len(set(targets)) < len(targets):
                raise ValueError("the archive holds two files of one path. Nothing of it is used.")
            folder.mkdir(parents=True, exist_ok=True)
            require_room(folder, size)
            for member, target in zip(members, targets, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(member) as packed, open(target, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
            OSError) as error:
        hint = "Make room." if getattr(error, "errno", None) == errno.ENOSPC else "Pack it again, without a password."
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"the archive cannot be unpacked ({why}). {hint}") from error
    return size


class _Bounded(io.FileIO):
    """An archive whose list of members, which zipfile reads at once, is refused where it is far too long."""

    def __init__(self, path, max_files):
        super().__init__(path)
        self.max_files = max_files

    def read(self, size=-1):
        if size > 1000 * self.max_files:
            raise ValueError(f"the archive lists more files than the at most {self.max_files} that are unpacked.")
        return super().read(size)


def _path_of(member):
    path = PurePosixPath(member.filename.replace("\\", "/"))
    outside = path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0]
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"the archive holds a path that leads elsewhere: {member.filename!r}. Nothing of it is used.")
    return path
