"""Decoding once: order, cache, two processes, files that cannot be read."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import datasets, phantom, preprocessing, readers
from covidlib.datasets import cache, decode
from covidlib.preprocessing import crop, lungs
from covidlib.utils.files import sha256


@pytest.fixture(scope="module")
def pictures():
    return [readers.apply_window(phantom.render("normal", np.random.default_rng(seed)).hu) for seed in range(4)]


@pytest.fixture
def source(tmp_path, pictures):
    root = tmp_path / "my scans"
    root.mkdir()
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"{n}.png")
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in (2, 0, 3, 1)], "label": ["a", "b", "a", "b"],
                             "patient": list("wxyz"), "source": "", "split": "", "slice_index": 0})
    return datasets.Source(manifest, ("a", "b"), root, "toy")


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.endswith(".lock"))


def test_images_are_what_the_network_sees_in_manifest_order(source):
    images = decode.load_images(source, 32, "lungs")
    assert images.shape == (4, 32, 32) and images.dtype == np.uint8
    for image, path in zip(images, source.manifest["path"], strict=True):
        assert np.array_equal(image, crop.prepare(readers.read_slice(source.root / path), 32, "lungs")[0])
        assert np.array_equal(image, decode.preprocess_slice(source.root / path, 0, 32, "lungs"))


def test_taking_in_leaves_the_images_for_the_notebooks_that_follow(source, tmp_path, monkeypatch):
    cache, output = tmp_path / "cache", tmp_path / "runs"
    taken, found = decode.decode_dataset(source, 32, "lungs", cache)
    assert list(found.facts) == decode.FACTS and len(found.facts) == 4 and found.thumbnails.shape == (4, 64, 64)
    assert found.facts.lung.between(0.05, 0.6).all() and set(found.facts.height) == {256}
    datasets.save(replace(taken, manifest=taken.manifest.assign(split="train")), output)
    opened = datasets.open_saved(output)
    assert opened.manifest.sha256.tolist() == found.facts.sha256.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(readers, "read_slice", lambda *_: pytest.fail("decoded again"))
        images = decode.load_images(opened, 32, "lungs", cache)
    assert isinstance(images, np.memmap) and not images.flags.writeable
    assert np.array_equal(images, decode.load_images(source, 32, "lungs"))


def test_the_cache_follows_content_size_and_reader(source, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = np.array(decode.load_images(source, 32, "lungs", cache))
    assert decode.load_images(source, 8, "lungs", cache).shape == (4, 8, 8)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source.root / "2.png")
    assert not decode.load_images(source, 32, "lungs", cache)[0].any()
    assert len(files(cache)) == 3
    (tmp_path / "crop.py").write_text(Path(crop.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(preprocessing, "CODE", (*preprocessing.CODE[:-1], tmp_path / "crop.py"))
    preprocessing.code_sha256.cache_clear()
    decode.load_images(source, 32, "lungs", cache)
    assert len(files(cache)) == 4 and first.any()
    preprocessing.code_sha256.cache_clear()


def test_of_a_picture_that_is_replaced_the_audited_one_counts(source, tmp_path, pictures):
    """Between two notebooks, under its name: the cache is of what notebook 00 saw, and nothing else is decoded anew."""
    cache, home = tmp_path / "cache", tmp_path / "home"
    taken, _ = decode.decode_dataset(source, 32, "lungs", cache)
    datasets.save(replace(taken, manifest=taken.manifest.assign(split="train")), home)
    Image.fromarray(pictures[0][::-1]).save(source.root / "3.png")
    opened, audited = datasets.open_saved(home), np.array(decode.load_images(taken, 32, "lungs", cache))
    assert not np.array_equal(audited[2], decode.preprocess_slice(source.root / "3.png", 0, 32, "lungs"))
    assert np.array_equal(decode.load_images(opened, 32, "lungs", cache), audited)
    (cache / files(cache)[0]).unlink()
    with pytest.raises(datasets.DataError) as error:
        decode.load_images(opened, 32, "lungs", cache)
    assert "3.png: is not the file that the manifest lists, its sha256 is another" in str(error.value)
    assert "1 files" in str(error.value) and "run notebook 00_data again" in str(error.value) and files(cache) == []


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda _: b"", lambda whole: whole[1:],
                                    lambda whole: whole.replace(b"(4, 32, 32)", b"(3, 32, 32)"),
                                    lambda whole: whole.replace(b"order': False", b"order': True "),
                                    lambda whole: whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]])
def test_a_damaged_cache_is_made_anew(source, tmp_path, damage):
    wanted = np.array(decode.load_images(source, 32, "lungs", tmp_path / "cache"))
    path = tmp_path / "cache" / files(tmp_path / "cache")[0]
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(decode.load_images(source, 32, "lungs", tmp_path / "cache"), wanted)
    assert files(tmp_path / "cache") == [path.name]


def test_of_two_processes_one_decodes(source, tmp_path, repository):
    source.manifest.to_csv(tmp_path / "manifest.csv", index=False)
    code = f"""
import sys
from covidlib import datasets
from covidlib.datasets import decode
source = datasets.Source(datasets.read_manifest({str(tmp_path / 'manifest.csv')!r}), ("a", "b"),
                         __import__("pathlib").Path({str(source.root)!r}), "toy")
print(decode.load_images(source, 32, "lungs", {str(tmp_path / 'cache')!r}).sum())
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=repository) for _ in range(2)]
    sums = {process.communicate()[0] for process in both}
    assert len(sums) == 1 and int(sums.pop()) == decode.load_images(source, 32, "lungs").sum(dtype=int)
    assert len(files(tmp_path / "cache")) == 1


def test_what_a_killed_process_had_decoded_goes_with_the_next_that_decodes(source, tmp_path, repository):
    code = f"""
import os, signal
from covidlib.datasets.cache import ImageWriter
with ImageWriter({str(tmp_path / 'cache')!r}, 32, 4) as images:
    images.write([[7] * 32] * 32)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == -signal.SIGKILL
    left, = (tmp_path / "cache").iterdir()
    others = left.with_name(left.name.replace(cache.DECODING, f"{cache.DECODING}another-"))
    others.touch()
    decode.load_images(source, 32, "lungs", tmp_path / "cache")
    assert not left.exists() and others.exists()


def test_all_unreadable_files_are_named_at_once_and_nothing_is_left(source, tmp_path):
    listed = replace(source, manifest=source.manifest.assign(
        sha256=[sha256(source.root / path) for path in source.manifest.path]))
    (source.root / "3.png").write_bytes(b"no picture")
    (source.root / "1.png").write_bytes((source.root / "1.png").read_bytes()[:-4000])
    (source.root / "2.png").unlink()
    for call in (lambda: decode.decode_dataset(source, 32, "lungs", tmp_path / "cache"),
                 lambda: decode.load_images(listed, 32, "lungs", tmp_path / "cache")):
        with pytest.raises(datasets.DataError) as error:
            call()
        message = str(error.value)
        assert "3 files cannot be used" in message and "on_error='skip'" in message
        assert all(f"{n}.png" in message for n in (1, 2, 3)) and "0.png" not in message
        assert files(tmp_path / "cache") == []


def test_with_skip_the_rest_goes_on(source, tmp_path):
    (source.root / "3.png").write_bytes(b"")
    listed = replace(source, problems=[readers.ReadError(source.root / "9.png", "is missing", "Copy it")])
    with pytest.raises(datasets.DataError, match="2 files cannot be used"):
        decode.decode_dataset(listed, 32, "lungs", tmp_path / "cache")
    taken, found = decode.decode_dataset(listed, 32, "lungs", tmp_path / "cache", on_error="skip")
    assert taken.manifest.path.tolist() == ["2.png", "0.png", "1.png"] and len(found.facts) == 3
    assert [Path(problem.path).name for problem in taken.problems] == ["9.png", "3.png"]
    assert "2 files cannot be used and were left out: 9.png is missing; 3.png is empty" in taken.notes[-1]
    images = decode.load_images(taken, 32, "lungs", tmp_path / "cache")
    assert len(images) == 3 and len(files(tmp_path / "cache")) == 1
    assert np.array_equal(images[1], decode.preprocess_slice(source.root / "0.png", 0, 32, "lungs"))


def test_a_class_without_a_readable_slice_is_an_error(source, tmp_path):
    for n in (0, 1):
        (source.root / f"{n}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="No usable slice of b"):
        decode.decode_dataset(source, 32, "lungs", tmp_path / "cache", on_error="skip")


def test_many_slices_are_read_by_several_processes(source, tmp_path, pictures):
    rows = [source.manifest.assign(slice_index=k) for k in range(decode._ALONE // 4 + 1)]
    many = replace(source, manifest=pd.concat(rows, ignore_index=True))
    (source.root / "3.png").write_bytes(b"no picture")
    taken, found = decode.decode_dataset(many, 16, "lungs", tmp_path / "cache", on_error="skip")
    assert len(taken.manifest) == len(found.facts) == 3 * len(rows) and len(taken.problems) == 1
    images = decode.load_images(taken, 16, "lungs", tmp_path / "cache")
    assert np.array_equal(images[4], decode.preprocess_slice(source.root / "0.png", 0, 16, "lungs"))


def test_masks_of_ones_own(source, tmp_path, pictures):
    mask = np.zeros(pictures[0].shape, np.uint8)
    mask[60:120, 40:100] = 255
    Image.fromarray(mask).save(source.root / "mask.png")
    masked = replace(source, manifest=source.manifest.assign(mask=["mask.png", "", "", ""]))
    _, found = decode.decode_dataset(masked, 32, "lungs", tmp_path / "cache")
    assert found.facts.lung[0] == (mask > 0).mean()
    assert found.facts.lung[1] == pytest.approx(lungs.lung_mask(pictures[0]).mean())
    Image.fromarray(mask[:9]).save(source.root / "mask.png")
    with pytest.raises(datasets.DataError, match="mask.png: is a mask of .* Give the mask of"):
        decode.decode_dataset(masked, 32, "lungs", tmp_path / "cache")


def test_large_sets_are_sampled_by_whole_patients(monkeypatch):
    monkeypatch.setattr(decode, "SAMPLED", 10)
    manifest = pd.DataFrame({"path": [f"{n}" for n in range(60)], "label": "x", "split": "",
                             "patient": [str(n // 6) for n in range(60)]})
    chosen = manifest.iloc[decode._sample(manifest)]
    assert 6 <= len(chosen) <= 12 and (chosen.groupby("patient").size() == 6).all()
    assert len(decode._sample(manifest.assign(patient=["a"] * 40 + ["b"] * 20))) < 60
    assert len(decode._sample(manifest.assign(patient="a"))) == 60


def test_wrong_parameters(source, tmp_path):
    with pytest.raises(ValueError, match="Received: image_size=0"):
        decode.load_images(source, 0, "lungs")
    with pytest.raises(ValueError, match="Received: on_error='ignore'"):
        decode.decode_dataset(source, 32, "lungs", tmp_path, on_error="ignore")


LARGE = """
import sys, tracemalloc
import numpy as np
import pandas as pd
from covidlib import datasets
from covidlib.datasets import decode
count = int(sys.argv[1])
rng, facts = np.random.default_rng(0), ["png", "png", "L", 1, 2, 3, 0.1, ""]
def decoded(*_):
    for n in range(count):
        seen = {"files": np.zeros(1)} if n == 0 else None
        yield np.zeros((8, 8), np.uint8), [f"{n:064x}", n, *facts], rng.integers(0, 256, (64, 64), np.uint8), seen
decode._each = decoded
manifest = pd.DataFrame({"path": np.arange(count).astype(str), "label": "covid", "patient": "one", "source": "",
                         "split": "", "slice_index": 0})
source = datasets.Source(manifest, ("covid",), sys.argv[2], "noise")
tracemalloc.start()  # counts arrays, and not those that are mapped from files
found = decode.decode_dataset(source, 8, "lungs", sys.argv[2])[1]
peak = tracemalloc.get_traced_memory()[1]
assert len(np.unique(found.thumbnails[:, 0, :8], axis=0)) == count
print(peak / 2**20)
"""


def test_pictures_are_not_held_in_memory(tmp_path, repository):
    """30,000 slices more have 117 MiB of thumbnails; 45 may stay, for rows of facts of up to 1.5 KiB."""
    peaks = [float(subprocess.run([sys.executable, "-c", LARGE, str(count), tmp_path], capture_output=True, text=True,
                                  check=True, cwd=repository).stdout) for count in (5000, 35_000)]
    assert peaks[1] - peaks[0] < 45, peaks
    assert all(path.suffix == ".npy" for path in tmp_path.iterdir())  # the thumbnails' file has no name
