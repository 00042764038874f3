"""The study's tables, from predictions alone: reports/published/PROTOCOL.md says what is asked, and why.

    python -m study.results reports/published      # every table anew from the committed predictions

Runs lie in `<folder>/runs/<dataset>/<profile>/<variant>/seed-<k>[-fold-<i>]/`. Those of one variant under one protocol
are a ResultGroup: the split's test part, the test parts of all folds pooled (each slice once a seed), or all slices of
another set (`across-<set>.csv` beside the predictions).
"""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_curve

from covidlib.audit import shortcuts
from covidlib.datasets import splits
from covidlib.evaluation import calibration, explain, metrics, statistics
from covidlib.evaluation.comparison import BASELINE
from covidlib.evaluation.metrics import TOO_FEW
from covidlib.training import runs
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

PROFILE, POSITIVE = "study", "covid"
RECIPE = ("image_size", "epochs", "batch_size", "learning_rate", "augmentation", "weights_sha256")
GROUP = "group-"  # of near-duplicates, which sarscov2-ct has for want of patients
SPLIT, FOLDS, ACROSS = "split", "folds", "across"
PREVALENCE = 0.10  # at which a positive answer's worth is told, beside that of the test part
DIGITS = 4  # published
KEY = ["path", "slice_index"]
TARGETS = (  # set before the runs
    ("resnet50 from random weights or phantoms, accuracy", BASELINE, "accuracy", 0.70),
    ("improved without outside weights, accuracy", "improved", "accuracy", 0.80),
)


@dataclass(frozen=True)
class ResultGroup:
    """Predictions of one network under one protocol, a table for each seed, rows in the order of KEY.

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
    def group(self):
        return self.dataset, self.profile, self.protocol, self.tested_on

    @cached_property
    def index(self):
        """The slices that every seed was tested on, in order."""
        first, *others = (pd.MultiIndex.from_frame(table[KEY]) for table in self.seeds.values())
        for other in others:
            first = first.intersection(other)
        return first.sort_values()

    def on(self, index=None):
        """The seeds' tables on the slices of `index`, in its order; on `self.index` where it is None."""
        index = self.index if index is None else index
        return [table.set_index(KEY).loc[index].reset_index() for table in self.seeds.values()]

    def by_patient(self):
        """The ResultGroup of whole patients, or None where the set names none."""
        names = metrics.patient_names(self.on()[0])
        if all(name == "" or name.startswith(GROUP) for name in names):
            return None
        return replace(self, unit="patient", seeds={seed: _by_patient(table) for seed, table in self.seeds.items()})


def _by_patient(table):
    """Mean probabilities over the slices of a patient in a fold; one of several labels counts once under each."""
    named = table.assign(patient=statistics.fill_unknown(metrics.patient_names(table)))
    means = named.groupby(["patient", "label", "fold"], sort=True)[[c for c in table if c[:2] in ("p_", "q_")]].mean()
    means = means.reset_index()
    return means.assign(path=means["patient"] + "/" + means["label"], slice_index=0).sort_values(KEY, ignore_index=True)


def find(folder):
    """Every run below `<folder>/runs`, those of folds included, in the order of their folders."""
    paths = sorted(path for path in Path(folder, "runs").glob("*/*/*/seed-*/predictions.csv")
                   if runs.is_run(path.parent))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no runs/<dataset>/<profile>/<variant>/seed-<k>/predictions.csv: "
                                "train first (make reproduce PROFILE=study), then make publish")
    return [runs.read_run(path.parent) for path in paths]


def group_runs(found):
    """The Arms that a list of runs makes, those of one group together and the baseline first.

    ValueError if runs of one group differ in their recipe or in the weights that they start from.
    """
    tables, recipes = {}, {}
    for run in found:
        dataset, profile = run.dataset, run.profile
        protocol = SPLIT if run.fold < 0 else FOLDS
        _check_recipe(run, recipes.setdefault((dataset, profile), {}))
        parts = [((protocol, dataset), run.predictions[run.predictions["split"] == "test"])]
        parts += [((ACROSS, path.stem.removeprefix("across-")), runs.read_predictions(path))
                  for path in sorted(run.path.glob("across-*.csv"))]
        for (kind, tested_on), table in parts:
            key = (dataset, profile, kind, tested_on, run.variant, run.classes)
            tables.setdefault(key, {}).setdefault(run.seed, []).append(_scaled(table, run).assign(fold=run.fold))
    groups = [ResultGroup(*key, {seed: _pool(parts) for seed, parts in sorted(seeds.items())})
              for key, seeds in tables.items()]
    return sorted(groups, key=lambda group: (*group.group, group.variant != BASELINE, group.variant))


def _check_recipe(run, seen):
    for name in RECIPE:
        value = run.parameters.get(name)
        if name == "weights_sha256" and value is None:
            continue  # a network that the weights do not fit
        if seen.setdefault(name, value) != value:
            raise ValueError(f"{run.path} differs from the runs beside it and cannot be compared with them. "
                             f"Received: {name}={value!r}, others {seen[name]!r}")


def _pool(parts):
    table = pd.concat(parts, ignore_index=True).sort_values(KEY, kind="stable", ignore_index=True)
    if table.duplicated(KEY).any():
        raise ValueError(f"a slice is tested twice, such as {table[table.duplicated(KEY)].path.iloc[0]}: "
                         "folds of different splits lie in one folder")
    return table


def _scaled(table, run):
    columns = [f"p_{name}" for name in run.classes]
    scaled = calibration.scale(table[columns].to_numpy(float), run.temperature)
    return table.assign(**{f"q_{name}": scaled[:, k] for k, name in enumerate(run.classes)})


def evidence_level(group):
    """`metrics.evidence_level` of a ResultGroup."""
    return metrics.evidence_level(group.tested_on, group.on()[0])


def every_run(found):
    """One row for every run that was made, also those that disappoint."""
    rows = []
    for run in found:
        test = run.predictions[run.predictions["split"] == "test"]
        seen = _figures(_scaled(test, run), run.classes) if metrics.evidence_level(run.dataset, test) != TOO_FEW else {}
        machine = run.content.get("provenance", {}).get("machine", {})
        rows.append({
            "dataset": run.dataset, "profile": run.profile, "variant": run.variant, "seed": run.seed,
            "fold": run.fold if run.fold >= 0 else None, "weights": run.parameters.get("weights") or "none",
            "image_size": run.parameters["image_size"], "epochs": len(run.history), "n": len(test), **seen,
            "temperature": run.temperature, "train_accuracy": run.history["accuracy"].iloc[-1],
            "val_accuracy": run.history["val_accuracy"].iloc[-1], "seconds": run.content.get("wall_seconds"),
            "processor": machine.get("gpu") or machine.get("cpu"), "backend": machine.get("backend"),
        })
    return pd.DataFrame(rows).astype({"fold": "Int64"})


def summary(groups, conflicts=None):
    """One row per ResultGroup and unit (slices, whole patients): mean and sd over seeds, 95 % intervals over patients.

    conflicts: data set -> paths of pictures that it shows under two labels; the last column leaves them out. Nothing
    but counts is told of a ResultGroup with too few patients.
    """
    conflicts, rows = conflicts or {}, []
    for group in _both_units(groups):
        figures = _summary(group, conflicts.get(group.tested_on, set())) if has_enough_patients(group) else {}
        rows.append(_head(group) | figures)
    return pd.DataFrame(rows)


def _both_units(groups):
    return [one for group in groups for one in (group, group.by_patient()) if one is not None]


def has_enough_patients(group):
    return evidence_level(group) != TOO_FEW


def tested(row):
    """Where a row of `summary` or `differences` was tested, in words."""
    if row.protocol == ACROSS:
        return f"all of {row.tested_on}"
    return "its test part" if row.protocol == SPLIT else f"{row.folds} of {splits.FOLDS} folds"


def find_conflicts(folder):
    """What `summary` leaves out in its last column, from the audits' `conflicts.csv`."""
    found = {}
    for path in Path(folder, "runs").glob("*/*/audit/conflicts.csv"):
        table = pd.read_csv(path, dtype=str)
        found.setdefault(path.parts[-4], set()).update(table["path_a"], table["path_b"])
    return found


def _head(group):
    names = ("dataset", "profile", "protocol", "tested_on")
    first = group.on()[0]
    return dict(zip(names, group.group, strict=True)) | {
        "variant": group.variant, "evidence_level": evidence_level(group), "unit": group.unit,
        "seeds": len(group.seeds),
        "folds": int(first["fold"].max() >= 0) and first["fold"].nunique(), "n": len(first),
        "patients": len(set(metrics.patient_names(first)) - {""})}


def _summary(group, conflicts):
    tables = group.on()
    first, patients = tables[0], metrics.patient_names(tables[0])
    seen = pd.DataFrame([_figures(table, group.classes) for table in tables])
    row = {}
    for name in seen:
        row |= {name: seen[name].mean(), f"{name}_sd": seen[name].std(ddof=1)}
    row["low"], row["high"] = statistics.proportion_interval(_rate(group), patients)
    truth = (first["label"] == POSITIVE).to_numpy()
    row["auc"], row["auc_low"], row["auc_high"] = (
        statistics.auc_interval(truth, _scores(group), patients, first["fold"]) if _both_everywhere(first)
        else (np.nan,) * 3)
    row["average_precision"] = np.mean([_precision(part) for table in tables for _, part in table.groupby("fold")])
    row["accuracy_without_conflicts"] = _rate(group)[~first["path"].isin(conflicts).to_numpy()].mean()
    return row


def _precision(table):
    """Average precision for POSITIVE; NaN where every slice is, or none."""
    truth = table["label"] == POSITIVE
    return average_precision_score(truth, table[f"p_{POSITIVE}"]) if truth.nunique() == 2 else np.nan


def curves(groups):
    """ROC, and precision over recall, for POSITIVE of every group: long, a row per point, mean over seeds and folds.

    Scores of different trainings are not comparable, so curves are averaged, not slices pooled: sensitivity and
    precision at a hundred and one false positive rates and recalls.
    """
    places, parts = np.linspace(0, 1, 101), []
    for group in filter(has_enough_patients, groups):
        if POSITIVE not in group.classes or not _both_everywhere(group.on()[0]):
            continue
        sensitivity, precision = [], []
        for part in (part for table in group.on() for _, part in table.groupby("fold")):
            truth, scores = part["label"] == POSITIVE, part[f"p_{POSITIVE}"]
            fpr, tpr, _ = roc_curve(truth, scores)
            own, recall, _ = precision_recall_curve(truth, scores)
            sensitivity.append(np.interp(places, fpr, tpr))
            precision.append(np.interp(places, recall[::-1], np.maximum.accumulate(own)[::-1]))
        parts.append(pd.DataFrame(_head(group) | {"place": places, "sensitivity": np.mean(sensitivity, axis=0),
                                                "precision": np.mean(precision, axis=0)}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _both_everywhere(table):
    """Whether every fold tests slices with and without POSITIVE."""
    return bool(table["label"].eq(POSITIVE).groupby(table["fold"]).nunique().eq(2).all())


def _figures(table, classes):
    truth, predicted, scores = metrics.decide(table, classes)
    own = [np.mean(predicted[truth == k] == k) for k in range(len(classes)) if (truth == k).any()]
    return {"accuracy": np.mean(truth == predicted), "balanced_accuracy": np.mean(own),
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
            "brier": calibration.brier(truth, scores), "ece": calibration.expected_error(truth, scores),
            "ece_scaled": _ece_scaled(table, classes, truth)}


def _ece_scaled(table, classes, truth):
    scaled = table[[f"q_{name}" for name in classes]].to_numpy(float)
    return calibration.expected_error(truth, scaled) if np.isfinite(scaled).all() else np.nan


def _rate(group, index=None):
    """Share of the seeds that are right about each slice."""
    return np.mean([metrics.correct(table, group.classes) for table in group.on(index)], axis=0)


def _scores(group, index=None):
    return np.column_stack([table[f"p_{POSITIVE}"] for table in group.on(index)])


def per_class(groups):
    """A row per group, unit and class: sensitivity, specificity, what a positive answer is worth; means over seeds."""
    rows = []
    for group in filter(has_enough_patients, _both_units(groups)):
        tables = group.on()
        first, patients = tables[0], metrics.patient_names(tables[0])
        called = [metrics.decide(table, group.classes)[1] for table in tables]
        for k, name in enumerate(group.classes):
            own = (first["label"] == name).to_numpy()
            rate = np.mean([answers == k for answers in called], axis=0)
            row = _head(group) | {"class": name, "of_class": int(own.sum())}
            for measure, values, part in (("sensitivity", rate, own), ("specificity", 1 - rate, ~own)):
                row[measure] = values[part].mean() if part.any() else np.nan
                interval = statistics.proportion_interval(values[part], patients[part])
                row |= dict(zip((f"{measure}_low", f"{measure}_high"), interval, strict=True))
            for suffix, share in (("test", own.mean()), ("at_10_percent", PREVALENCE)):
                row[f"ppv_{suffix}"] = metrics.ppv_at(row["sensitivity"], row["specificity"], share)
            rows.append(row)
    return pd.DataFrame(rows)


def differences(groups):
    """One row per ResultGroup beside BASELINE's of its group: paired, on the slices that both were tested on.

    Seeds that both have are used. `p_holm` adjusts the bootstrap's p over the variants of a group.
    """
    rows = []
    for same in dict.fromkeys(group.group for group in groups):
        rivals = {one.variant: one for one in groups if one.group == same and has_enough_patients(one)}
        reference = rivals.pop(BASELINE, None)
        own = [_difference(group, reference) for group in rivals.values() if reference]
        own = [row for row in own if row]
        for row, p in zip(own, statistics.holm([row["p_bootstrap"] for row in own]), strict=True):
            rows.append(row | {"p_holm": p, "comparisons": len(own)})
    return pd.DataFrame(rows)


def _difference(group, reference):
    shared = sorted(group.seeds.keys() & reference.seeds.keys())
    group, reference = (replace(one, seeds={seed: one.seeds[seed] for seed in shared}) for one in (group, reference))
    index = group.index.intersection(reference.index).sort_values() if shared else ()
    if not len(index):
        return None
    first = group.on(index)[0]
    patients = metrics.patient_names(first)
    paired = statistics.paired_difference(_rate(group, index), _rate(reference, index), patients)
    row = _head(group) | {"against": reference.variant, "n": len(index), "folds": _head(group)["folds"]
                        and first["fold"].nunique()} | paired
    if _both_everywhere(first):
        truth = (first["label"] == POSITIVE).to_numpy()
        areas = statistics.auc_difference(truth, _scores(group, index), _scores(reference, index), patients,
                                          first["fold"])
        row |= {"auc_difference": areas["difference"], "auc_low": areas["low"], "auc_high": areas["high"],
                "p_delong": areas["p"]}
    return row


def reliability(groups):
    """The reliability diagram of every ResultGroup, seeds pooled, before and after scaling: long, one row per bin."""
    parts = []
    for group in filter(has_enough_patients, groups):
        for kind, letter in (("as trained", "p"), ("scaled", "q")):
            table = pd.concat(group.on())
            names = [f"{letter}_{name}" for name in group.classes]
            if table[names].isna().any(axis=None):
                continue
            truth = metrics.decide(table, group.classes)[0]
            bins = calibration.reliability(truth, table[names].to_numpy(float))
            heads = pd.DataFrame([_head(group) | {"probabilities": kind}] * len(bins))
            parts.append(heads.drop(columns="n").join(bins))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def baselines(folder):
    """The audit's baselines of every set (`runs/<dataset>/<profile>/audit/shortcuts.csv`)."""
    parts = [pd.read_csv(path).assign(dataset=path.parts[-4], profile=path.parts[-3])
             for path in sorted(Path(folder, "runs").glob("*/*/audit/shortcuts.csv"))]
    if not parts:
        return pd.DataFrame(columns=["dataset", "profile", *shortcuts.COLUMNS])
    return pd.concat(parts, ignore_index=True)[["dataset", "profile", *shortcuts.COLUMNS]]


def targets(table, measured):
    """What was wanted beforehand on UCSD's official test part, and whether it was met above the baselines.

    table: `summary`; measured: `baselines`. The bar is the larger of "file facts" and "outside the lungs" on
    harmonised slices; an accuracy counts only if its whole interval lies above.
    """
    rows = []
    ucsd = table[(table.dataset == "ucsd-covid-ct") & (table.protocol == SPLIT) & (table.profile == PROFILE)
                 & (table.unit == "slice")]
    seen = measured[(measured.dataset == "ucsd-covid-ct") & (measured.profile == PROFILE)]
    _, bar = shortcuts.best_shortcut(seen, shortcuts.OFFICIAL) or (None, np.nan)
    for name, variant, measure, wanted in TARGETS:
        for row in ucsd[ucsd.variant == variant].to_dict("records"):
            rows.append({"target": name, "wanted": f">= {wanted}", "measured": row[measure], "low": row["low"],
                         "high": row["high"], "above": bar, "reached": bool(row[measure] >= wanted),
                         "met": bool(row[measure] >= wanted and row["low"] > bar)})
    for row in ucsd[ucsd.variant.isin([BASELINE, "improved"])].to_dict("records"):
        met = bool(row["ece_scaled"] <= 0.05)
        rows.append({"target": f"{row['variant']}, ECE after scaling", "wanted": "<= 0.05",
                     "measured": row["ece_scaled"], "reached": met, "met": met})
    return pd.DataFrame(rows)


def explanations(folder):
    """How maps meet lesions and lungs: a row per set, network, map and weights, and `improved` less the others.

    From `runs/<dataset>/<profile>/evaluation/explanations.csv`; means with 95 % intervals over patients.
    """
    parts = []
    for path in sorted(Path(folder, "runs").glob("*/*/evaluation/explanations.csv")):
        table = explain.summarise(pd.read_csv(path, dtype={"patient": str}))
        parts.append(table.assign(dataset=path.parts[-4], profile=path.parts[-3]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def missing(found):
    """How many runs the protocol plans (workflow/profiles/study.yaml), and how many there are, by set and network."""
    plan = yaml.safe_load((provenance.ROOT / "workflow" / "profiles" / f"{PROFILE}.yaml").read_text(encoding="utf-8"))
    have = [(run.dataset, run.profile, run.variant, SPLIT if run.fold < 0 else FOLDS) for run in found]
    rows = []
    for dataset, own in plan["datasets"].items():
        wanted = plan | own
        planned = [(variant, SPLIT, len(wanted["seeds"])) for variant in wanted["variants"]]
        planned += [(variant, FOLDS, len(wanted["folds"])) for variant in wanted["fold_variants"]]
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
    made = tables(folder)
    for name, table in made.items():
        write_atomically(Path(folder, "tables", f"{name}.csv"), as_published(table))
    return made


if __name__ == "__main__":
    for title, written in write(sys.argv[1] if len(sys.argv) > 1 else "reports/published").items():
        print(f"{title}: {len(written)} rows")
