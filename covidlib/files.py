"""Files that appear whole or not at all, and their checksums."""

import hashlib
import os
import tempfile
from pathlib import Path


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


def sha256(path) -> str:
    """Hexadecimal SHA-256 of the file at `path`. Raises FileNotFoundError where there is none."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
