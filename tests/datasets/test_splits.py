"""Splits: by patient, near the fractions in every class, seeded, and honest about what cannot be split."""

import numpy as np
import pandas as pd
import pytest

from covidlib import datasets, readers
from covidlib.datasets import near_duplicates, splits
from covidlib.utils.files import sha256


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
def test_fractions(fractions):
    with pytest.raises(ValueError, match="fractions must be three shares.*Received: fractions="):
        splits.assign(make({"covid": 5, "normal": 5}), 0, fractions)
    without_validation, _ = splits.assign(make({"covid": 10, "normal": 10}), 0, (0.8, 0, 0.2))
    assert without_validation.split.value_counts().to_dict() == {"train": 64, "test": 16}


def test_real_sets(shared_data):
    source = datasets.load("covid-ct-md", shared_data / "covid-ct-md-sample")
    result, notes = splits.assign(source.manifest, 0)
    assert "validation part is left out" in notes[0]
    assert (result.groupby(["label", "split"]).patient.nunique() == 1).all()
    source = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct")
    result, _ = splits.assign(source.manifest.assign(split=""), 0)
    for _, rows in result.groupby("label"):
        assert abs((rows.split == "train").mean() - 0.7) < 0.02


def test_folds_hold_every_patient_once():
    manifest = make({"covid": 23, "viral": 11, "normal": 40}, (1, 6), unknown=7)
    fold = splits.k_fold(manifest, 5, seed=2)
    assert fold.equals(splits.k_fold(manifest, 5, seed=2)) and sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert fold.groupby(datasets.patient_or_file(manifest)).nunique().max() == 1
    share = pd.crosstab(manifest.label, fold, normalize="index").to_numpy()
    assert np.abs(share - 0.2).max() < 0.03
    for number in range(5):
        result = splits.assign_fold(manifest, number, 5, seed=2)
        assert (result.split == "test").equals(fold == number)
        rest = result[result.split != "test"]
        assert abs((rest.split == "val").mean() - 0.1) < 0.03 and rest.groupby("label").split.nunique().min() == 2


def test_folds_that_cannot_be():
    few = make({"covid": 2, "normal": 3})
    assert set(splits.assign_fold(few, 0, 2, 0).split) == {"train", "test"}
    with pytest.raises(ValueError, match="Class 'covid'.*has too few"):
        [splits.assign_fold(few, fold, 3, 0) for fold in range(3)]
    for folds in (1, 6):
        with pytest.raises(ValueError, match=f"number of patients, 5. Received: folds={folds}"):
            splits.k_fold(few, folds, 0)
    with pytest.raises(ValueError, match="Received: fold=2"):
        splits.assign_fold(few, 2, 2, 0)


def test_many_groups_are_dealt_out_near_the_fractions():
    manifest = make({"covid": 0, "normal": 0}, unknown=30_000)
    share = splits.assign(manifest, 0)[0].split.value_counts(normalize=True)
    assert abs(share["train"] - 0.7) < 1e-3 and abs(share["test"] - 0.2) < 1e-3


SHIPPED = {"ucsd-covid-ct": "ucsd-covid-ct", "sarscov2-ct-256": "sarscov2-ct", "covid-ct-md-sample": "covid-ct-md"}
COLUMNS = ["split", *(f"fold_{number}" for number in range(5))]


def test_shipped_folds_test_every_slice_once():
    for name in SHIPPED:
        table = splits.shipped(name)
        columns = [column for column in table if column.startswith("fold_")]
        assert columns == COLUMNS[1 : 1 + len(columns)] and len(columns) >= 2 and table.name.is_unique
        assert ((table[columns] == "test").sum(axis=1) == 1).all()
        assert (table.groupby("sha256")[["split", *columns]].nunique() == 1).all(axis=None)
    with pytest.raises(ValueError, match="Splits are shipped for covid-ct-md-sample, .*Received: dataset='none'"):
        splits.shipped("none")


def test_shipped_splits_know_bytes_names_and_strangers():
    table = splits.shipped("sarscov2-ct-256")
    manifest = pd.DataFrame({"path": table.name + ".png", "sha256": table.sha256 + "0" * 48, "split": ""})
    result, notes = splits.apply_shipped(manifest, "sarscov2-ct-256", "fold_3")
    assert result.split.tolist() == table.fold_3.tolist() and len(notes) == 1
    manifest["path"] = "elsewhere/" + manifest.path
    assert splits.apply_shipped(manifest, "sarscov2-ct-256")[0].split.tolist() == table.split.tolist()
    manifest.loc[:6, "sha256"] = "0" * 64
    with pytest.raises(ValueError, match="7 of 2481 slices are not among the 2481.*such as elsewhere/COVID/Covid"):
        splits.apply_shipped(manifest, "sarscov2-ct-256")
    manifest = manifest.assign(path=table.name + ".png")
    assert "7 of them were known by their names only" in splits.apply_shipped(manifest, "sarscov2-ct-256")[1][1]
    with pytest.raises(ValueError, match="column must be one of split, fold_0.*Received: column='name'"):
        splits.apply_shipped(manifest, "sarscov2-ct-256", "name")


@pytest.fixture(scope="module", params=SHIPPED)
def real(request, shared_data):
    """(name, manifest with checksums, near-duplicate pairs) of a set that splits are shipped for."""
    source = datasets.load(SHIPPED[request.param], shared_data / request.param)
    images = [readers.read_slice(source.root / row.path, row.slice_index) for row in source.manifest.itertuples()]
    pairs = near_duplicates.near_duplicates(*near_duplicates.describe(images))
    return request.param, source.manifest.assign(sha256=[sha256(source.root / p) for p in source.manifest.path]), pairs


@pytest.mark.slow
def test_shipped_splits_are_disjoint_and_in_proportion(real):
    name, manifest, pairs = real
    for column in splits.shipped(name).columns[2:]:
        result, notes = splits.apply_shipped(manifest, name, column)
        splits.check_disjoint(result)
        assert len(notes) == 1
        crossing = result.split.to_numpy()[pairs.a] != result.split.to_numpy()[pairs.b]
        # the authors' own split shows two figures on both sides
        assert crossing.sum() == (2 if (name, column) == ("ucsd-covid-ct", "split") else 0)
        test = pd.crosstab(result.label, result.split, normalize="index").test
        assert name == "covid-ct-md-sample" or ((0.17 < test) & (test < 0.31)).all()
    if name == "ucsd-covid-ct":
        assert splits.apply_shipped(manifest, name)[0].split.equals(manifest.split)


def test_a_choice_of_the_notebooks_is_one_split(tmp_path):
    manifest = make({"a": 10, "b": 12})
    source = datasets.Source(manifest, ("a", "b"), tmp_path, "made-up", ["a note"])
    own, _ = splits.choose(source, seed=3)
    assert own.manifest.split.equals(splits.assign(manifest, 3)[0].split) and own.notes[0] == "a note"
    folds = [splits.choose(source, "own", fold, seed)[0].manifest.split for fold in range(5) for seed in (0, 9)]
    assert folds[0].equals(folds[1])  # whatever the seed
    assert (sum((split == "test").astype(int) for split in folds[::2]) == 1).all()
    with pytest.raises(ValueError, match="fold=5"):
        splits.choose(source, fold=5)
