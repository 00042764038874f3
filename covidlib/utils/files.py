"""Files that appear whole or not at all, and their checksums."""

import errno
import functools
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil


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
    return f"{prefix}{socket.gethostname()}-{os.getpid()}-{int(psutil.Process().create_time())}-"


def orphans(folder, prefix) -> list[Path]:
    """What lies in `folder` under names of `owned(prefix)`, of processes of this machine that have ended."""
    return [path for path in Path(folder).glob(f"{prefix}*-*-*-*")
            if _has_ended(*path.name.removeprefix(prefix).rsplit("-", 3)[:3])]


def _has_ended(host, pid, born):
    if host != socket.gethostname() or not (pid.isdigit() and born.isdigit()):
        return False
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
