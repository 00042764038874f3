"""Fetch a public set where that needs no login: `python -m covidlib.datasets.download ucsd-covid-ct /where/to`.

Nothing appears in the folder before everything is downloaded, checked and unpacked. An interrupted download is kept
next to it, and the next call resumes it.
"""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path, PurePosixPath

import pooch
import requests
from tqdm import tqdm

from covidlib.datasets import splits
from covidlib.datasets.remote import BY_HAND, SETS
from covidlib.utils.files import sha256, unzip

TIMEOUT = 60  # seconds without a byte
MAX_FILES = 200_000
_CHUNK = 1 << 16
pooch.get_logger().setLevel("WARNING")


class FetchError(RuntimeError):
    """A set that could not be fetched: what was wrong, and what to do."""


def fetch(dataset, data_root):
    """Fetch `dataset` into the new or empty folder `data_root`; a list of sentences on what was and was not checked.

    FetchError where a login or a licence is needed (with instructions), where the server fails, and where a file is not
    the expected one. `data_root` is then unchanged.
    """
    root = Path(data_root).absolute()
    if dataset in BY_HAND:
        raise FetchError(f"{dataset} is not fetched by this program. {BY_HAND[dataset].format(root=root)}")
    if dataset not in SETS:
        raise FetchError(f"dataset must be one of {', '.join([*SETS, *BY_HAND])}. Received: dataset={dataset!r}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FetchError(f"{root} holds something already. Give a new or an empty folder.")
    known, work = SETS[dataset], root.parent / f".{root.name}.download"
    work.mkdir(parents=True, exist_ok=True)
    files = {remote: Path(_retrieve(remote, work, known.source)) for remote in known.files}
    try:
        top, notes = _assemble(dataset, known, files, work / "unpacked")
    except FetchError:
        for remote, file in files.items():
            if remote.known_hash is None:  # it may be the culprit: the next call gets it anew
                file.unlink(missing_ok=True)
        raise
    if root.exists():
        root.rmdir()
    os.replace(top, root)
    shutil.rmtree(work)
    return [known.licence, *notes]


def _assemble(dataset, known, files, staging):
    """(folder that holds the set, notes)."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for remote, file in files.items():
        if remote.packed:
            try:
                unzip(file, staging / remote.into, known.gigabytes * 1e9, MAX_FILES)
            except ValueError as error:
                raise FetchError(f"{remote.url}: {error} Run this again to get it anew; if it is refused again, the "
                                 f"set was changed: see {known.source}.") from error
    top = _lift(staging)
    for remote, file in files.items():
        if not remote.packed:
            (top / remote.into).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, top / remote.into)
    if known.hashed:
        return top, _check_images(dataset, top)
    return top, [f"{remote.url} was not checked: no checksum of it is known." for remote in files
                 if remote.known_hash is None]


class Resume:
    """A downloader for pooch that keeps what it has in `part` and asks the server for the rest only."""

    def __init__(self, part):
        self.part = Path(part)

    def __call__(self, url, output_file, _):
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code == 416:  # nothing is left to send, or the file has become another
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total != str(have):
                    self.part.unlink()
                    return self(url, output_file, _)
            else:
                response.raise_for_status()
                self._append(response, have if response.status_code == 206 else 0)
        os.replace(self.part, output_file)

    def _append(self, response, have):
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=self.part.stem, disable=None)
        with bar, open(self.part, "ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and self.part.stat().st_size != total:
            raise requests.ConnectionError(f"{self.part.stat().st_size} of {total} bytes came")


def _retrieve(remote, work, source):
    name = f"{hashlib.sha256(remote.url.encode()).hexdigest()[:8]}-{PurePosixPath(remote.url).name}"
    try:
        return pooch.retrieve(remote.url, remote.known_hash, name, work, downloader=Resume(work / f"{name}.part"))
    except requests.RequestException as error:
        raise FetchError(f"{remote.url} could not be fetched ({error}). Check the connection and run this again: it "
                         f"goes on where it broke off. If the address is gone, see {source}.") from error
    except ValueError as error:
        raise FetchError(f"{remote.url} is not the file that is expected (its checksum differs). Run this again; if it "
                         f"differs again, the set was changed: see {source}.") from error


def _lift(folder):
    """The first folder, from `folder` down, that does not merely wrap another."""
    inner = list(folder.iterdir())
    return _lift(inner[0]) if len(inner) == 1 and inner[0].is_dir() else folder


def _check_images(dataset, top):
    """FetchError unless the unpacked images are, byte for byte, those of the shipped list."""
    expected = set(splits.shipped(dataset).sha256)
    files = [path for path in sorted(top.rglob("*")) if path.is_file() and path.suffix != ".txt"]
    got = {sha256(path)[: splits.DIGITS]: path for path in files}
    missing, strange = expected - set(got), sorted(set(got) - expected)
    if missing:
        raise FetchError(f"{len(missing)} of the {len(expected)} images of {dataset} did not come, or not as they were"
                         f"{f' ({got[strange[0]].name} is another)' if strange else ''}: the set was changed.")
    for digest in strange:
        got[digest].unlink()
    return [f"All {len(expected)} images are, byte for byte, those that this project was measured on.",
            *([f"{len(strange)} other files in the archives were left out."] if strange else [])]


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m covidlib.datasets.download", description="Fetch a public data set.")
    parser.add_argument("dataset", help=", ".join(SETS))
    parser.add_argument("data_root", help="a new or empty folder")
    options = parser.parse_args(arguments)
    try:
        notes = fetch(options.dataset, options.data_root)
    except FetchError as error:
        sys.exit(str(error))
    print("\n".join([f"{options.dataset} is in {options.data_root}.", *notes]))


if __name__ == "__main__":
    main()
