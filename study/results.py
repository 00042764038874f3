"""The first study's tables, from predictions alone; questions: reports/published/PROTOCOL_FIRST_STUDY.md.

Runs lie in `<folder>/runs/<dataset>/<profile>/<variant>/seed-<k>[-fold-<i>]/`. Those of one variant under one protocol
are a ResultGroup: the split's test part, the test parts of all folds pooled (each slice once a seed), or all slices of
another set (`across-<set>.csv` with the predictions).
"""

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, recall_score, roc_curve

from covidlib.audit import shortcuts
from covidlib.datasets import splits
from covidlib.evaluation import calibration, comparison, explain, metrics, statistics
from covidlib.evaluation.comparison import BASELINE
from covidlib.evaluation.metrics import TOO_FEW
from covidlib.training import runs
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

PROFILE, POSITIVE = "study", "covid"
RECIPE = ("image_size", "epochs", "batch_size", "learning_rate", "augmentation", "weights_sha256")
BARS = ("file facts", "outside the lungs")  # what an accuracy had to be above
GROUP = "group-"  # of near-duplicates, which sarscov2-ct has for want of patients
SPLIT, FOLDS, ACROSS = "split", "folds", "across"
PREVALENCE = 0.10  # of the second positive predictive value; the first is at that of the test part
DIGITS = 4  # published
TARGETS = (  # set before the runs
    ("resnet50 from random weights or phantoms, accuracy", BASELINE, "accuracy", 0.70),
    ("improved without outside weights, accuracy", "improved", "accuracy", 0.80),
)


@dataclass(frozen=True)
class ResultGroup:
    """Predictions of one network under one protocol: `seeds` maps a seed to its table, by path and slice.

    A table has `label`, `patient`, `fold` (-1: none), p_<class> and q_<class>: the same after temperature scaling on
    the run's validation slices, NaN where it has none. `unit`: what a row is, a slice or a patient.
    """

    dataset: str
    profile: str
    protocol: str
    tested_on: str
    variant: str
    classes: tuple[str, ...]
    seeds: dict[int, pd.DataFrame]
    unit: str = "slice"

    @property
    def key(self):
        return self.dataset, self.profile, self.protocol, self.tested_on

    @cached_property
    def tables(self):
        """The seeds' tables on the slices that every seed was tested on, in order."""
        shared = reduce(pd.MultiIndex.intersection, (table.index for table in self.seeds.values())).sort_values()
        return [table.loc[shared] for table in self.seeds.values()]

    @cached_property
    def correct(self):
        return comparison.average_correct(self.tables, self.classes)

    @cached_property
    def evidence_level(self):
        return metrics.evidence_level(self.tested_on, self.tables[0])

    @cached_property
    def positive(self):
        """bool (n,): whether a slice is POSITIVE."""
        return (self.tables[0]["label"] == POSITIVE).to_numpy()

    @property
    def scores(self):
        """(n, seeds): probability of POSITIVE."""
        return np.column_stack([table[f"p_{POSITIVE}"] for table in self.tables])

    @property
    def has_curves(self):
        """Whether every fold tests slices with and without POSITIVE."""
        return bool(pd.Series(self.positive).groupby(self.tables[0]["fold"].to_numpy()).nunique().eq(2).all())

    def of_patients(self):
        """The ResultGroup of whole patients, or None where the set names none."""
        if all(name == "" or name.startswith(GROUP) for name in metrics.patient_names(self.tables[0])):
            return None
        return replace(self, unit="patient", seeds={seed: _by_patient(table) for seed, table in self.seeds.items()})

    def facts(self):
        """The columns that most tables of the study begin with."""
        first = self.tables[0]
        return dict(zip(("dataset", "profile", "protocol", "tested_on"), self.key, strict=True)) | {
            "variant": self.variant, "evidence_level": self.evidence_level, "unit": self.unit,
            "seeds": len(self.seeds), "folds": int(first["fold"].max() >= 0) and first["fold"].nunique(),
            "n": len(first), "patients": len(set(metrics.patient_names(first)) - {""})}


def _by_patient(table):
    """Mean probabilities over the slices of a patient in a fold; one of several labels counts once under each."""
    named = table.assign(patient=statistics.fill_unknown(metrics.patient_names(table)))
    means = named.groupby(["patient", "label", "fold"])[[c for c in table if c[:2] in ("p_", "q_")]].mean()
    means = means.reset_index()
    means = means.assign(path=means["patient"] + "/" + means["label"], slice_index=0)
    return means.set_index(comparison.SLICE).sort_index()


def find(folder):
    """Every run below `<folder>/runs`, those of folds included, in the order of their folders."""
    paths = sorted(path for path in Path(folder, "runs").glob("*/*/*/seed-*/predictions.csv")
                   if runs.is_run(path.parent))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no runs/<dataset>/<profile>/<variant>/seed-<k>/predictions.csv: "
                                "train first (make reproduce PROFILE=study), then make publish")
    return [runs.read_run(path.parent) for path in paths]


def group_runs(found):
    """The ResultGroups of a list of runs, those of one key together and the baseline first.

    ValueError if runs of one profile differ in their recipe or in their initial weights.
    """
    tables, recipes = {}, {}
    for run in found:
        dataset, profile = run.dataset, run.profile
        _check_recipe(run, recipes.setdefault((dataset, profile), {}))
        protocol = SPLIT if run.fold < 0 else FOLDS
        parts = [(protocol, dataset, run.predictions[run.predictions["split"] == "test"])]
        parts += [(ACROSS, path.stem.removeprefix("across-"), runs.read_predictions(path))
                  for path in sorted(run.path.glob("across-*.csv"))]
        for kind, tested_on, table in parts:
            key = (dataset, profile, kind, tested_on, run.variant, run.classes)
            tables.setdefault(key, {}).setdefault(run.seed, []).append(_scaled(table, run).assign(fold=run.fold))
    groups = [ResultGroup(*key, {seed: _pool(parts) for seed, parts in sorted(seeds.items())})
              for key, seeds in tables.items()]
    return sorted(groups, key=lambda group: (*group.key, group.variant != BASELINE, group.variant))


def _check_recipe(run, known):
    for name in RECIPE:
        value = run.parameters.get(name)
        if name == "weights_sha256" and value is None:
            continue  # a network that the weights do not fit
        if known.setdefault(name, value) != value:
            raise ValueError(f"{run.path} differs from the other runs of its profile and cannot be compared with them. "
                             f"Received: {name}={value!r}, others {known[name]!r}")


def _pool(parts):
    table = pd.concat(parts).set_index(comparison.SLICE).sort_index(kind="stable")
    if (twice := table.index.duplicated()).any():
        raise ValueError(f"a slice is tested twice, such as {table.index[twice][0][0]}: "
                         "folds of different splits lie in one folder")
    return table


def _scaled(table, run):
    columns = [f"p_{name}" for name in run.classes]
    scaled = calibration.scale(table[columns].to_numpy(float), run.temperature)
    return table.assign(**{f"q_{name}": scaled[:, k] for k, name in enumerate(run.classes)})


def every_run(found):
    """One row per run: settings, its own figures on its own test part, time and machine."""
    rows = []
    for run in found:
        dataset, profile = run.dataset, run.profile
        test = run.predictions[run.predictions["split"] == "test"]
        enough = metrics.evidence_level(dataset, test) != TOO_FEW
        machine = run.content.get("provenance", {}).get("machine", {})
        rows.append({
            "dataset": dataset, "profile": profile, "variant": run.variant, "seed": run.seed,
            "fold": run.fold if run.fold >= 0 else None, "weights": run.parameters.get("weights") or "none",
            "image_size": run.parameters["image_size"], "epochs": len(run.history), "n": len(test),
            **(_figures(_scaled(test, run), run.classes) if enough else {}),
            "temperature": run.temperature, "train_accuracy": run.history["accuracy"].iloc[-1],
            "val_accuracy": run.history["val_accuracy"].iloc[-1], "seconds": run.content.get("wall_seconds"),
            "processor": machine.get("gpu") or machine.get("cpu"), "backend": machine.get("backend"),
        })
    return pd.DataFrame(rows).astype({"fold": "Int64"})


def summary(groups, conflicts=None):
    """One row per ResultGroup and unit (slices, whole patients): mean and sd over seeds, 95 % intervals over patients.

    conflicts: data set -> paths of pictures that it shows under two labels; the last column leaves them out. A
    ResultGroup with too few patients has counts only.
    """
    conflicts = conflicts or {}
    return pd.DataFrame([group.facts() | (_summary(group, conflicts.get(group.tested_on, set()))
                                          if has_enough_patients(group) else {}) for group in _both_units(groups)])


def _both_units(groups):
    return [one for group in groups for one in (group, group.of_patients()) if one is not None]


def has_enough_patients(group):
    return group.evidence_level != TOO_FEW


def tested(row):
    """The slices that a row of `summary` or `differences` was tested on, in words."""
    if row.protocol == ACROSS:
        return f"all of {row.tested_on}"
    return "its test part" if row.protocol == SPLIT else f"{row.folds} of {splits.FOLDS} folds"


def find_conflicts(folder):
    """Data set -> paths that `summary` leaves out in its last column, from the audits' `conflicts.csv`."""
    found = {}
    for path in Path(folder, "runs").glob("*/*/audit/conflicts.csv"):
        table = pd.read_csv(path, dtype=str)
        found.setdefault(path.parts[-4], set()).update(table["path_a"], table["path_b"])
    return found


def _summary(group, conflicts):
    figures = pd.DataFrame([_figures(table, group.classes) for table in group.tables])
    row = {}
    for name in figures:
        row |= {name: figures[name].mean(), f"{name}_sd": figures[name].std(ddof=1)}
    correct, patients = group.correct["correct"], group.correct["patient"]
    row["low"], row["high"] = statistics.proportion_interval(correct, patients)
    row["auc"], row["auc_low"], row["auc_high"] = (
        statistics.auc_interval(group.positive, group.scores, patients, group.tables[0]["fold"]) if group.has_curves
        else (np.nan,) * 3)
    row["average_precision"] = np.mean([_precision(part) for part in _trainings(group)])
    row["accuracy_without_conflicts"] = correct[~correct.index.isin(list(conflicts), level="path")].mean()
    return row


def _trainings(group):
    """The predictions of every single training, a seed in a fold."""
    return [part for table in group.tables for _, part in table.groupby("fold")]


def _precision(table):
    """Average precision for POSITIVE; NaN where every slice is, or none."""
    truth = table["label"] == POSITIVE
    return average_precision_score(truth, table[f"p_{POSITIVE}"]) if truth.nunique() == 2 else np.nan


def _figures(table, classes):
    truth, predicted, scores = metrics.decide(table, classes)
    scaled = table[[f"q_{name}" for name in classes]].to_numpy(float)
    return {"accuracy": np.mean(truth == predicted),
            "balanced_accuracy": recall_score(truth, predicted, labels=np.unique(truth), average="macro"),
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
            "brier": calibration.brier(truth, scores), "ece": calibration.expected_error(truth, scores),
            "ece_scaled": calibration.expected_error(truth, scaled) if np.isfinite(scaled).all() else np.nan}


def curves(groups):
    """ROC, and precision over recall, for POSITIVE of every group: long, a row per point, mean over seeds and folds.

    Scores of different trainings are not comparable, so curves are averaged, not slices pooled: sensitivity and
    precision at 101 false positive rates and recalls.
    """
    places, parts = np.linspace(0, 1, 101), [pd.DataFrame()]
    for group in filter(has_enough_patients, groups):
        if POSITIVE not in group.classes or not group.has_curves:
            continue
        sensitivity, precision = [], []
        for part in _trainings(group):
            truth, scores = part["label"] == POSITIVE, part[f"p_{POSITIVE}"]
            fpr, tpr, _ = roc_curve(truth, scores)
            own, recall, _ = precision_recall_curve(truth, scores)
            sensitivity.append(np.interp(places, fpr, tpr))
            precision.append(np.interp(places, recall[::-1], np.maximum.accumulate(own)[::-1]))
        parts.append(pd.DataFrame(group.facts() | {"place": places, "sensitivity": np.mean(sensitivity, axis=0),
                                                   "precision": np.mean(precision, axis=0)}))
    return pd.concat(parts, ignore_index=True)


def per_class(groups):
    """A row per group, unit and class: sensitivity, specificity, positive predictive values; means over seeds."""
    rows = []
    for group in filter(has_enough_patients, _both_units(groups)):
        patients = group.correct["patient"].to_numpy()
        called = [metrics.decide(table, group.classes)[1] for table in group.tables]
        for k, name in enumerate(group.classes):
            own = (group.tables[0]["label"] == name).to_numpy()
            rate = np.mean([answers == k for answers in called], axis=0)
            row = group.facts() | {"class": name, "of_class": int(own.sum())}
            for measure, values, part in (("sensitivity", rate, own), ("specificity", 1 - rate, ~own)):
                row[measure] = values[part].mean() if part.any() else np.nan
                interval = statistics.proportion_interval(values[part], patients[part])
                row |= dict(zip((f"{measure}_low", f"{measure}_high"), interval, strict=True))
            for suffix, share in (("test", own.mean()), ("at_10_percent", PREVALENCE)):
                row[f"ppv_{suffix}"] = metrics.ppv_at(row["sensitivity"], row["specificity"], share)
            rows.append(row)
    return pd.DataFrame(rows)


def differences(groups):
    """One row per ResultGroup and that of BASELINE with its key: paired, on the slices that both were tested on.

    Seeds that both have are used. `p_holm` adjusts the bootstrap's p over the variants of a key.
    """
    rows = []
    for key in dict.fromkeys(group.key for group in groups):
        rivals = {one.variant: one for one in groups if one.key == key and has_enough_patients(one)}
        reference = rivals.pop(BASELINE, None)
        own = [row for group in rivals.values() if reference and (row := _difference(group, reference))]
        for row, p in zip(own, statistics.holm([row["p_bootstrap"] for row in own]), strict=True):
            rows.append(row | {"p_holm": p, "comparisons": len(own)})
    return pd.DataFrame(rows)


def _difference(group, reference):
    shared = sorted(group.seeds.keys() & reference.seeds.keys())
    if not shared:
        return None
    pair = [replace(one, seeds={seed: one.seeds[seed] for seed in shared}) for one in (group, reference)]
    rows, paired = comparison.paired_difference(*(one.correct for one in pair))
    if paired is None:
        return None
    own, other = (replace(one, seeds={seed: table.loc[rows.index] for seed, table in one.seeds.items()})
                  for one in pair)
    row = own.facts() | {"against": reference.variant} | paired
    if own.has_curves:
        areas = statistics.auc_difference(own.positive, own.scores, other.scores, rows["patient"],
                                          own.tables[0]["fold"])
        row |= {"auc_difference": areas["difference"], "auc_low": areas["low"], "auc_high": areas["high"],
                "p_delong": areas["p"]}
    return row


def reliability(groups):
    """The reliability diagram of every ResultGroup, seeds pooled, before and after scaling: long, one row per bin."""
    parts = [pd.DataFrame()]
    for group in filter(has_enough_patients, groups):
        table = pd.concat(group.tables)
        truth, _, scores = metrics.decide(table, group.classes)
        scaled = table[[f"q_{name}" for name in group.classes]].to_numpy(float)
        for kind, probabilities in (("as trained", scores), ("scaled", scaled)):
            if np.isfinite(probabilities).all():
                facts = group.facts() | {"probabilities": kind}
                del facts["n"]
                parts.append(pd.DataFrame(facts, range(calibration.BINS)).join(
                    calibration.reliability(truth, probabilities)))
    return pd.concat(parts, ignore_index=True)


def baselines(folder):
    """The audit's baselines of every set (`runs/<dataset>/<profile>/audit/shortcuts.csv`)."""
    parts = [pd.DataFrame(columns=["dataset", "profile", *shortcuts.COLUMNS])]
    parts += _read_all(folder, "audit/shortcuts.csv")
    return pd.concat(parts[1:] or parts, ignore_index=True)[list(parts[0])]


def _read_all(folder, name, change=lambda table: table):
    return [change(pd.read_csv(path, dtype={"patient": str})).assign(dataset=path.parts[-4], profile=path.parts[-3])
            for path in sorted(Path(folder, "runs").glob(f"*/*/{name}"))]


def explanations(folder):
    """Maps against lesions and lungs: a row per set, network, map and weights, and `improved` less the others.

    From `runs/<dataset>/<profile>/evaluation/explanations.csv`; means with 95 % intervals over patients.
    """
    return pd.concat([pd.DataFrame(), *_read_all(folder, "evaluation/explanations.csv", explain.summarise)],
                     ignore_index=True)


def targets(table, measured):
    """The targets on UCSD's official test part, and whether they were met above the baselines.

    table: `summary`; measured: `baselines`. An accuracy counts only if its whole interval lies above the larger of
    "file facts" and "outside the lungs" on cropped slices.
    """
    rows = []
    ucsd = table[(table.dataset == "ucsd-covid-ct") & (table.protocol == SPLIT) & (table.profile == PROFILE)
                 & (table.unit == "slice")]
    own = measured[(measured.dataset == "ucsd-covid-ct") & (measured.profile == PROFILE)]
    own = own[(own.protocol == shortcuts.OFFICIAL) & own.baseline.isin(BARS) & own.seen.ne("as read")]
    best = own.accuracy.max()
    for name, variant, measure, least in TARGETS:
        for row in ucsd[ucsd.variant == variant].to_dict("records"):
            reached = bool(row[measure] >= least)
            rows.append({"target": name, "required": f">= {least}", "measured": row[measure], "low": row["low"],
                         "high": row["high"], "above": best, "reached": reached,
                         "met": bool(reached and row["low"] > best)})
    for row in ucsd[ucsd.variant.isin([BASELINE, "improved"])].to_dict("records"):
        met = bool(row["ece_scaled"] <= 0.05)
        rows.append({"target": f"{row['variant']}, ECE after scaling", "required": "<= 0.05",
                     "measured": row["ece_scaled"], "reached": met, "met": met})
    return pd.DataFrame(rows)


def missing(found):
    """Runs that the protocol plans (workflow/profiles/study.yaml) and runs that are finished, by set and network."""
    plan = yaml.safe_load((provenance.ROOT / "workflow" / "profiles" / f"{PROFILE}.yaml").read_text(encoding="utf-8"))
    have = [(run.dataset, run.profile, run.variant, SPLIT if run.fold < 0 else FOLDS) for run in found]
    rows = []
    for dataset, own in plan["datasets"].items():
        settings = plan | own
        planned = [(variant, SPLIT, len(settings["seeds"])) for variant in settings["variants"]]
        planned += [(variant, FOLDS, len(settings["folds"])) for variant in settings["fold_variants"]]
        rows += [{"dataset": dataset, "variant": variant, "protocol": protocol, "planned": number,
                  "finished": have.count((dataset, PROFILE, variant, protocol))}
                 for variant, protocol, number in planned]
    return pd.DataFrame(rows)


def tables(folder):
    """All tables of the study, name -> DataFrame, from what lies in `folder`."""
    found = find(folder)
    groups = group_runs(found)
    whole, measured = summary(groups, find_conflicts(folder)), baselines(folder)
    return {"runs": every_run(found), "summary": whole, "differences": differences(groups),
            "per_class": per_class(groups), "curves": curves(groups), "reliability": reliability(groups),
            "baselines": measured, "targets": targets(whole, measured), "explanations": explanations(folder),
            "missing": missing(found)}


def as_published(table):
    """CSV text of one of `tables`, rounded to DIGITS decimals, half a digit the same way on every processor."""
    return table.round(12).round(DIGITS).to_csv(index=False, lineterminator="\n")


def write(folder):
    """Write `tables/<name>.csv` into `folder`, as_published; returns the tables without rounding."""
    found = tables(folder)
    for name, table in found.items():
        write_atomically(Path(folder, "tables", f"{name}.csv"), as_published(table))
    return found
