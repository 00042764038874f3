"""What is wrong with the files of a set is found without decoding them, and all of it."""

import pandas as pd
import pytest

from covidlib.datasets import listing


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "a/b c").mkdir(parents=True)
    for name in ("a/1%2.png", "a/b c/ü.png", "a/.hidden", "a/Thumbs.db", "a/10.png"):
        (root / name).write_bytes(b"x")
    return root


def test_find(root, tmp_path):
    (root / "a/empty.png").touch()
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "a/out.png").symlink_to(tmp_path / "outside.png")
    (root / "a/nowhere.png").symlink_to(root / "gone.png")
    (root / "a/folder").symlink_to(root / "a/b c")
    (root / "a/inside.png").symlink_to(root / "a/10.png")
    paths, problems = listing.find(root, "a")
    assert paths == ["a/1%2.png", "a/10.png", "a/b c/ü.png", "a/inside.png"]
    messages = "\n".join(map(str, problems))
    for name, what in [("empty.png", "is empty"), ("out.png", "leads out of data_root"), ("nowhere.png", "to nothing"),
                       ("folder", "to a folder")]:
        assert any(name in line and what in line for line in messages.splitlines()), messages
    assert len(problems) == 4


def test_folder_that_leads_out(root, tmp_path):
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="stay inside data_root"):
        listing.find(root, "link")


def test_settle(root):
    (root / "a/empty.png").touch()
    rows = [("a/1%2.png", "x", "train"), ("a/1%2.png", "x", "train"), ("a/10.png", "x", "train"), ("a/10.png", "y", ""),
            ("a/gone.png", "x", "test"), ("../../etc/hostname", "x", "test"), ("a/empty.png", "x", "test"),
            ("a/b c/ü.png", "y", "test")]
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    kept, problems = listing.settle(root, table, listing.find(root, "a"), "the list")
    assert kept.path.tolist() == ["a/1%2.png", "a/b c/ü.png"]
    messages = sorted(str(problem).removeprefix(str(root)) for problem in problems)
    assert len(messages) == 4
    assert "outside data_root" in messages[0] and "as x train and y" in messages[1]
    assert "is empty" in messages[2] and "does not exist" in messages[3]
    assert listing.unlisted(table, listing.find(root, "a")) == 0
