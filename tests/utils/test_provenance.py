import hashlib
import json

import keras
import psutil

from covidlib.utils import provenance


def test_collect_is_plain_data_with_everything_a_result_needs(repository):
    found = provenance.collect({"seed": 3, "slices": (1, 2), "data_root": "/somewhere/private/scans"},
                               manifest_sha256="ab", precision="float32", wall_seconds=1.26)
    assert json.loads(json.dumps(found)) == found
    assert found["parameters"] == {"seed": 3, "slices": [1, 2], "data_root": "scans"}, "a folder without its place"
    assert found["packages"]["keras"] == keras.__version__
    assert found["manifest_sha256"] == "ab" and found["weights_sha256"] is None
    assert found["precision"] == "float32" and found["wall_seconds"] == 1.3
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["lock_sha256"] == hashlib.sha256((repository / "requirements.lock").read_bytes()).hexdigest()


def test_machine_describes_this_one():
    machine = provenance.machine()
    assert machine["cores"] >= 1 and machine["cpu"]
    assert abs(machine["memory_gib"] - psutil.virtual_memory().total / 2**30) < 0.1
    assert machine["backend"] == keras.backend.backend()


def test_show_prints_a_line_per_fact(capsys):
    provenance.show({"seed": 3}, wall_seconds=2.0)
    lines = capsys.readouterr().out
    assert "parameters: seed=3" in lines and "wall seconds: 2.0" in lines and "lock sha256" in lines


def test_git_outside_a_checkout_is_null(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.git() == {"commit": None, "dirty": None}
    assert provenance.collect({})["lock_sha256"] is None
