"""From a slice as it was read to what a network sees."""

import functools
import hashlib
from pathlib import Path

_HERE = Path(__file__).parent
CODE = (*sorted((_HERE.parent / "readers").glob("*.py")), _HERE / "lungs.py", _HERE / "crop.py")


@functools.cache
def code_sha256():
    """Of the code that makes an image of a file: caches and exports of other code are recognised by it."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in CODE)).hexdigest()
