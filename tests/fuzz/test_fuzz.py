"""The readers against a few hundred damaged files; the full run is `python tests/fuzz/fuzz_readers.py`."""

import os
import sys
import time

import fuzz_readers
import numpy as np
import pytest
import seeds

from covidlib import readers


def test_seeds_are_sound(tmp_path):
    for path in seeds.make(tmp_path):
        assert readers.read_slice(path, readers.count_slices(path) - 1).shape == (seeds.SIDE, seeds.SIDE)
    assert (readers.read_hu(tmp_path / "lossless.dcm") == readers.read_hu(tmp_path / "explicit.dcm")).all()


def test_damage_comes_again_from_the_same_seed():
    data = bytes(range(256)) * 9
    first, again, other = (fuzz_readers.mutate(data, np.random.default_rng([seed, 5]), [data]) for seed in (0, 0, 1))
    assert first == again != other


def _die_or_sleep(channel):
    channel.send("ready")
    if channel.recv() == "die":
        os.abort()
    time.sleep(60)


def test_a_crash_and_a_hang_are_findings(monkeypatch):
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0)
    worker = fuzz_readers.Worker(_die_or_sleep)
    assert worker.read("die")["fault"] == "crash: exit code -6"
    assert worker.read("sleep")["fault"].startswith("hang")


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory through /proc")
def test_three_hundred_damaged_files(tmp_path):
    result = fuzz_readers.run(300, seed=0, keep=tmp_path)
    assert result["findings"] == []
    assert result["read"] > 20 and result["refused"] > 100
