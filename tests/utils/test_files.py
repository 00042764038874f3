"""Temporary files of ended processes, archives, and words for messages."""

import os
import subprocess
import sys
import zipfile

import pytest

from covidlib.utils import files, text


def test_of_this_process_nothing_is_left_behind_and_of_an_ended_one_all(tmp_path):
    (tmp_path / f"{files.owned('.part.')}one.npy").touch()
    code = "from covidlib.utils import files; print(files.owned('.part.'))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f"{ended}two.npy").touch()
    assert files.orphans(tmp_path, ".part.") == [tmp_path / f"{ended}two.npy"]
    assert files.orphans(tmp_path, ".other.") == []


@pytest.mark.parametrize("change, orphan", [
    (lambda host, pid, born: (host, pid, str(int(born) - 3600)), True),  # its number was given out anew
    (lambda host, pid, born: ("another-machine", pid, str(int(born) - 3600)), False),
    (lambda host, pid, born: (host, "x", born), False),
])
def test_a_number_that_another_process_has_and_another_machine(tmp_path, change, orphan):
    host, pid, born = files.owned("").removesuffix("-").rsplit("-", 2)
    assert pid == str(os.getpid())
    path = tmp_path / "-".join([*change(host, pid, born), "one"])
    path.touch()
    assert files.orphans(tmp_path, "") == [path] * orphan


def test_an_archive_with_two_files_of_one_path_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/b.png", "a\\b.png"):
            archive.writestr(name, "x")
    with pytest.raises(ValueError, match="two files of one path"):
        files.unzip(tmp_path / "a.zip", tmp_path / "out", 100, 10)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, near", [("epoch", "epochs"), ("xyz", ""), (3, "")])
def test_the_nearest_name(name, near):
    assert text.nearest(name, ["epochs", "seed"]) == near


def test_the_first_few():
    assert text.first_few(iter("abc"), 2) == "a; b; ..." and text.first_few("ab", 2) == "a; b"
