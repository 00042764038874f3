"""COVIDx CT through label files of the true shape."""

import pandas as pd
import pytest

from covidlib.datasets import covidx_ct

LINES = {
    "train": ["NCP_1013_2577_0000.png 2 0 173 512 404", "NCP_1013_2578_0003.png 2 0 1 2 3",
              "CP_0_3133_0040.png 1 9 9 9 9", "137covid_patient1_SR_2_IM00010.png 2 0 0 9 9",
              "COVIDCTMD-cap001-IM0091.png 1 0 0 9 9", "volume-covid19-A-0400_12.png 2 0 0 9 9"],
    "val": ["Normal_1900_123_0100.png 0 1 1 1 1", "odd 100% name_7.png 0 1 1 1 1"],
    "test": ["COVIDCTMD-normal073-IM0135.png 0 6 22 500 451", "HUST-Patient457-0011.png 2 1 1 1 1"],
}
METADATA = """patient id,source,country,finding,slice selection
NCP_1013,CNCB,China,COVID-19,Expert
CP_0,CNCB,China,Pneumonia,Automatic
patient1,COVID-CTSet,Iran,COVID-19,Expert
cap001,COVID-CT-MD,Iran,Pneumonia,Expert
normal073,COVID-CT-MD,Iran,Normal,N/A
volume-covid19-A-0400,COVID-19-20 Challenge,,COVID-19,Expert
"""


def write(root, lines, version="3A", images="3A_images"):
    (root / images).mkdir()
    for split, rows in lines.items():
        (root / f"{split}_COVIDx_CT-{version}.txt").write_text("\n".join(rows) + "\n")
        for row in rows:
            (root / images / row.rsplit(maxsplit=5)[0]).write_bytes(b"x")


def test_patients_sources_and_split(tmp_path):
    write(tmp_path, LINES)
    (tmp_path / "metadata.csv").write_text(METADATA)
    manifest, classes, notes, problems = covidx_ct.load(tmp_path)
    assert classes == ("covid", "cap", "normal") and problems == []
    assert manifest.label.tolist() == ["covid", "covid", "cap", "covid", "cap", "covid", "normal", "normal", "normal",
                                       "covid"]
    assert manifest.patient.tolist() == ["NCP_1013", "NCP_1013", "CP_0", "patient1", "cap001", "volume-covid19-A-0400",
                                         "Normal_1900", "odd 100% name", "normal073", "HUST-Patient457"]
    assert manifest.source[0] == "CNCB" and manifest.source[7] == "covidx-ct"
    assert manifest.series[0] == "NCP_1013_2577" and manifest.slice_index[3] == 10
    assert any("3 slices have no patient in metadata.csv" in note for note in notes)
    assert any("1 of the train slices were chosen by an earlier COVID-Net CT" in note for note in notes)
    (tmp_path / "metadata.csv").unlink()
    assert covidx_ct.load(tmp_path)[0].patient.equals(manifest.patient)


def test_version_b_shares_val_and_test(tmp_path):
    write(tmp_path, {"val": LINES["val"], "test": LINES["test"]}, "2A", "2A_images")
    (tmp_path / "train_COVIDx_CT-2B.txt").write_text("\n".join(LINES["train"]))
    for row in LINES["train"]:
        (tmp_path / "2A_images" / row.rsplit(maxsplit=5)[0]).write_bytes(b"x")
    assert len(covidx_ct.load(tmp_path)[0]) == 10
    (tmp_path / "train_COVIDx_CT-2A.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"only one. Received: versions=\['2A', '2B'\]"):
        covidx_ct.load(tmp_path)


def test_every_fault_is_named(tmp_path):
    lines = {**LINES, "test": [*LINES["test"], LINES["train"][0], "NCP_1013_9_0001.png 2 0 0 9 9"]}
    write(tmp_path, lines)
    with open(tmp_path / "val_COVIDx_CT-3A.txt", "a") as file:
        file.write("CP_0_3133_0040.png 0 1 1 1 1\nbroken.png 7 1 1 1 1\nNormal_1_2_0003.png 0\n")
    (tmp_path / "3A_images/Normal_1900_123_0100.png").unlink()
    (tmp_path / "3A_images/extra.png").write_bytes(b"x")
    manifest, _, notes, problems = covidx_ct.load(tmp_path)
    text = "\n".join(map(str, problems))
    assert len(problems) == 5 and "line 4" in text and "line 3" not in text and "line 5" in text
    assert "NCP_1013_2577_0000.png: is listed in the label files as covid test and covid train" in text
    assert "CP_0_3133_0040.png: is listed in the label files as cap train and normal val" in text
    assert "Normal_1900_123_0100.png: is listed in the label files and does not exist" in text
    assert len(manifest) == 8 and any("1 images are in no label file" in note for note in notes)
    assert any("1 patients lie in more than one part of the official split: NCP_1013 in test and train" in note
               for note in notes)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a covidx-ct folder"):
        covidx_ct.load(tmp_path)
    (tmp_path / "train_COVIDx_CT-3A.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="no val and no test label file"):
        covidx_ct.load(tmp_path)
    for split in ("val", "test"):
        (tmp_path / f"{split}_COVIDx_CT-3A.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="3A_images or images"):
        covidx_ct.load(tmp_path)


@pytest.mark.slow
def test_two_hundred_thousand_rows(tmp_path):
    """Each file is met once, in a walk through its folder; a patient's are one file here, linked 50 times."""
    images = tmp_path / "2A_images"
    images.mkdir()
    rows = {"train": [], "val": [], "test": []}
    known = []
    for patient in range(4000):
        split, label = list(rows)[patient % 3], patient % 3
        known.append(f"NCP_{patient},CNCB")
        (tmp_path / f"{patient}").write_bytes(b"x")
        for slice_ in range(50):
            name = f"NCP_{patient}_{patient + 7}_{slice_:04d}.png"
            (images / name).hardlink_to(tmp_path / f"{patient}")  # takes no room
            rows[split].append(f"{name} {label} 0 0 512 512")
    for split, lines in rows.items():
        (tmp_path / f"{split}_COVIDx_CT-2A.txt").write_text("\n".join(lines))
    (tmp_path / "metadata.csv").write_text("\n".join(["patient id,source", *known]))
    manifest, _, _, problems = covidx_ct.load(tmp_path)
    assert len(manifest) == 200_000 and manifest.patient.nunique() == 4000 and problems == []
    assert pd.api.types.is_integer_dtype(manifest.slice_index)
