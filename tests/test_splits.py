"""Splits: by patient, near the fractions in every class, seeded, and honest about what cannot be split."""

import numpy as np
import pandas as pd
import pytest

from covidlib import datasets, splits


def make(patients, slices=(4, 4), unknown=0, seed=0):
    """Manifest with patients[label] patients of slices[0]..slices[1] slices each."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, count in patients.items():
        for number in range(count):
            for k in range(rng.integers(slices[0], slices[1] + 1)):
                name = f"{label}-{number}"
                rows.append({"path": f"{name}-{k}.png", "label": label, "patient": name, "slice_index": k})
        alone = {"label": label, "patient": "", "slice_index": 0}
        rows += [{"path": f"{label}-u{k}.png", **alone} for k in range(unknown)]
    return pd.DataFrame(rows).assign(source="", split="")


def test_disjoint_stratified_and_near_the_fractions():
    manifest = make({"covid": 60, "viral": 20, "normal": 60}, (1, 12))
    result, notes = splits.assign(manifest, seed=1)
    assert notes == [] and (manifest.split == "").all()
    assert result.groupby("patient").split.nunique().max() == 1
    for _, rows in result.groupby("label"):
        shares = rows.split.value_counts(normalize=True)
        assert abs(shares["train"] - 0.7) < 0.03 and abs(shares["val"] - 0.1) < 0.03
    pd.testing.assert_frame_equal(result.drop(columns="split"), manifest.drop(columns="split"))


def test_seed_decides_and_the_order_of_classes_does_not_matter_to_size():
    manifest = make({"covid": 30, "normal": 30}, (1, 6))
    first, again, other = (splits.assign(manifest, seed)[0].split for seed in (3, 3, 4))
    assert first.equals(again) and not first.equals(other)


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_few_patients_fill_every_part(count):
    for seed in range(5):
        result, notes = splits.assign(make({"covid": count, "normal": 3}, (1, 9), seed=seed), seed)
        patients = result.groupby(["label", "split"]).patient.nunique().unstack()
        assert notes == [] and patients.notna().all(axis=None)
        assert patients.loc["normal"].tolist() == [1, 1, 1]


def test_two_patients_leave_validation_out_and_one_cannot_be_split():
    result, notes = splits.assign(make({"covid": 2, "normal": 9}), 0)
    assert set(result.split) == {"train", "test"}
    assert "Class covid has fewer than three patients (2)" in notes[0] and "validation" in notes[0]
    with pytest.raises(ValueError, match="Class 'covid' has one patient.*Add patients"):
        splits.assign(make({"covid": 1, "normal": 9}), 0)


def test_unknown_patients_go_alone_but_files_stay_whole():
    manifest = make({"covid": 0, "normal": 0}, unknown=40)
    result, notes = splits.assign(manifest, 0)
    assert "80 of 80 slices name no patient" in notes[0]
    assert result.split.value_counts().to_dict() == {"train": 56, "test": 16, "val": 8}
    volumes = pd.concat([manifest.assign(slice_index=k) for k in range(5)])
    assert splits.assign(volumes, 0)[0].groupby("path").split.nunique().max() == 1


def test_patients_with_several_labels_stay_whole():
    manifest = make({"covid": 10, "normal": 10})
    manifest["patient"] = manifest.patient.str.replace("normal-0", "covid-0")
    assert splits.assign(manifest, 0)[0].groupby("patient").split.nunique().max() == 1
    manifest["patient"] = "P" + (manifest.groupby("label").cumcount() // 4).astype(str)
    manifest = manifest[(manifest.label == "covid") | (manifest.slice_index == 0)]
    manifest = manifest[(manifest.label == "covid") | (manifest.patient == "P0")]
    with pytest.raises(ValueError, match="'normal' shares its patients"):
        splits.assign(manifest, 0)


def test_official_split_is_kept_whole():
    manifest = make({"covid": 4, "normal": 4})
    manifest["split"] = np.where(manifest.patient.str.endswith("0"), "test", "train")
    result, notes = splits.assign(manifest, 0)
    assert result.split.equals(manifest.split)
    assert "is kept" in notes[0] and notes[1] == "It has no val part."
    manifest.loc[0, "split"] = ""
    with pytest.raises(ValueError, match="Received: 1 without"):
        splits.assign(manifest, 0)


def test_leaks_are_named():
    manifest = make({"covid": 2, "normal": 2}, unknown=1).assign(split="train")
    splits.check_disjoint(manifest)
    manifest.loc[manifest.path == "covid-1-0.png", "split"] = "test"
    with pytest.raises(ValueError, match="1 patients lie in more than one part.*covid-1 in test and train"):
        splits.check_disjoint(manifest)
    with pytest.raises(ValueError, match="covid-1"):
        splits.assign(manifest, 0)


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.5, 0.5, 0.5), (1.2, -0.4, 0.2), (0, 0.5, 0.5)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions must be three shares.*Received: fractions="):
        splits.assign(make({"covid": 5, "normal": 5}), 0, fractions)


def test_without_validation_on_request():
    result, _ = splits.assign(make({"covid": 10, "normal": 10}), 0, (0.8, 0, 0.2))
    assert result.split.value_counts().to_dict() == {"train": 64, "test": 16}


def test_real_sets(shared_data):
    source = datasets.load("covid-ct-md", shared_data / "covid-ct-md-sample")
    result, notes = splits.assign(source.manifest, 0)
    assert "validation part is left out" in notes[0]
    assert (result.groupby(["label", "split"]).patient.nunique() == 1).all()
    source = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct")
    result, _ = splits.assign(source.manifest.assign(split=""), 0)
    for _, rows in result.groupby("label"):
        assert abs((rows.split == "train").mean() - 0.7) < 0.02
