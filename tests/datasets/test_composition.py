"""The paper's three classes put together from sets of true shape."""

import pytest
from PIL import Image

from covidlib.datasets import composition


def write(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(composition, "COUNTS", (6, 2, 4))
    multiclass = [f"sarscov2-ct-multiclass/{c}/p{p}/{k}.png"
                  for c in ("Covid", "Healthy", "Others") for p in range(2) for k in range(3)]
    ctset = [f"covid-ctset/{c}1/patient{p}{c[0] == 'n':d}/SR_2/IM0{k}.tif"
             for c in ("covid", "normal") for p in range(1, 3) for k in range(2)]
    lines = ["NCP_1_2_0003.png 2 0 0 9 9", "CP_3_4_0005.png 1 0 0 9 9", "CP_3_4_0006.png 1 0 0 9 9",
             "CP_5_4_0006.png 1 0 0 9 9", "x_patient10_SR_2_IM00.png 2 0 0 9 9", "Normal_7_8_0009.png 0 0 0 9 9"]
    write(tmp_path, [*multiclass, *ctset, *(f"covidx-ct/images/{line.split()[0]}" for line in lines)])
    for split in ("train", "val", "test"):
        (tmp_path / f"covidx-ct/{split}_COVIDx_CT-2A.txt").write_text("\n".join(lines) if split == "train" else "")
    (tmp_path / "covidx-ct/metadata.csv").write_text("patient id,source\npatient10,COVID-CTSet\n")
    return tmp_path


def test_counts_sources_and_notes(root):
    manifest, classes, notes, problems = composition.load(root)
    assert classes == ("covid", "cap", "normal") and problems == []
    assert manifest.label.value_counts().to_dict() == {"covid": 6, "normal": 4, "cap": 2}
    assert set(manifest.source) == {"sarscov2-ct-multiclass", "covid-ctset", "covidx-ct"}
    assert all(path.startswith(f"{source}/") for path, source in zip(manifest.path, manifest.source, strict=True))
    assert all((root / path).is_file() for path in manifest.path)
    assert manifest.patient.str.startswith(tuple(set(manifest.source))).all() and (manifest.split == "").all()
    assert "covidx-ct/CP_3" in set(manifest.patient) and "other_disease" not in set(manifest.label)
    text = "\n".join(notes)
    assert "1 slices of covidx-ct were left out: they were taken from covid-ctset" in text
    assert "No set here names other viral pneumonia" in text and "confounded" in text
    assert "cap: 2 of covidx-ct" in text and "falls short" not in text
    assert composition.load(root)[0].equals(manifest)


def test_each_set_gives_its_turn(root):
    manifest, *_ = composition.load(root)
    covid = manifest[manifest.label == "covid"].source.value_counts()
    assert covid["covidx-ct"] == 1 and abs(covid["covid-ctset"] - covid["sarscov2-ct-multiclass"]) <= 1


def test_short_classes_and_own_viral_slices(root, monkeypatch):
    for grey, name in enumerate(("viral/p1/a.png", "viral/p2/b.png", "covid/p1/c.png")):
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(root / "folder" / name)
    monkeypatch.setattr(composition, "COUNTS", (6, 3, 4))
    manifest, classes, notes, _ = composition.load(root)
    assert classes == ("covid", "viral", "normal") and "cap" not in set(manifest.label)
    assert any("viral falls short: 2 of 3 slices" in note for note in notes)


def test_no_such_folder(tmp_path, root):
    with pytest.raises(FileNotFoundError, match="not a composition folder"):
        composition.load(tmp_path / "covidx-ct")
    (root / "folder").symlink_to(root.parent)
    with pytest.raises(ValueError, match="stay inside data_root"):
        composition.load(root)
