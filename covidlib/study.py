"""The study's tables, from predictions alone: reports/published/PROTOCOL.md says what is asked, and why.

    python -m covidlib.study reports/published      # every table anew from the committed predictions

Runs lie in `<folder>/runs/<dataset>/<profile>/<variant>/seed-<k>[-fold-<i>]/`. Those of one variant under one protocol
are an Arm: the split's test part, the test parts of all folds pooled (each slice once a seed), or all slices of another
set (`across-<set>.csv` beside the predictions).
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import calibration, evaluation, runs, shortcuts, statistics
from covidlib.files import write_atomically

BASELINE, POSITIVE = "resnet50", "covid"
SPLIT, FOLDS, ACROSS = "split", "folds", "across"
PREVALENCE = 0.10  # at which a positive answer's worth is told, beside that of the test part
DIGITS = 4  # published
KEY = ["path", "slice_index"]
MEASURES = ("hit", "chance", "gain", "outside", "likeness")  # see explain.measure
TARGETS = (  # set before the runs
    ("resnet50 from random weights or phantoms, accuracy", BASELINE, "accuracy", 0.70),
    ("improved without outside weights, accuracy", "improved", "accuracy", 0.80),
)


@dataclass(frozen=True)
class Arm:
    """Predictions of one network under one protocol, a table for each seed, rows in the order of KEY.

    A table has `label`, `patient`, p_<class> and q_<class>: the same after temperature scaling on the run's validation
    slices, NaN where it has none.
    """

    dataset: str
    profile: str
    protocol: str
    tested_on: str
    variant: str
    classes: tuple[str, ...]
    seeds: dict[int, pd.DataFrame]

    @property
    def group(self):
        return self.dataset, self.profile, self.protocol, self.tested_on

    @cached_property
    def index(self):
        tables = [pd.MultiIndex.from_frame(table[KEY]) for table in self.seeds.values()]
        return tables[0] if all(table.equals(tables[0]) for table in tables) else tables[0].intersection(tables[1:])

    def on(self, index=None):
        """The seeds' tables on the slices of `index`, in its order; on all of them where it is None."""
        if index is None:
            return list(self.seeds.values())
        return [table.set_index(KEY).loc[index].reset_index() for table in self.seeds.values()]


def find(folder):
    """Every run below `<folder>/runs`, those of folds included, in the order of their folders."""
    paths = sorted(Path(folder, "runs").glob("*/*/*/seed-*/predictions.csv"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no runs/<dataset>/<profile>/<variant>/seed-<k>/predictions.csv: "
                                "train first (make reproduce PROFILE=study), then make publish")
    return [runs.read_run(path.parent) for path in paths]


def arms(found):
    """The Arms that a list of runs makes, those of one group together and the baseline first."""
    tables = {}
    for run in found:
        dataset, profile = run.path.parts[-4:-2]
        protocol = SPLIT if run.fold < 0 else FOLDS
        scaled = _scaled(run)
        parts = [((protocol, dataset), scaled[scaled["split"] == "test"])]
        parts += [((ACROSS, path.stem.removeprefix("across-")), _with_scaled(runs.read_predictions(path), run))
                  for path in sorted(run.path.glob("across-*.csv"))]
        for (kind, tested_on), table in parts:
            key = (dataset, profile, kind, tested_on, run.variant, run.classes)
            tables.setdefault(key, {}).setdefault(run.seed, []).append(table)
    made = [Arm(*key, {seed: _pool(parts) for seed, parts in sorted(seeds.items())}) for key, seeds in tables.items()]
    return sorted(made, key=lambda arm: (*arm.group, arm.variant != BASELINE, arm.variant))


def _pool(parts):
    table = pd.concat(parts, ignore_index=True).sort_values(KEY, kind="stable", ignore_index=True)
    if table.duplicated(KEY).any():
        raise ValueError(f"a slice is tested twice, such as {table[table.duplicated(KEY)].path.iloc[0]}: "
                         "folds of different splits lie in one folder")
    return table


def temperature(run):
    """Fitted on the run's validation slices; NaN where it has none."""
    rows = run.predictions[run.predictions["split"] == "val"]
    truth, _, scores = evaluation.decide(rows, run.classes)
    return calibration.fit_temperature(truth, scores) if len(rows) else np.nan


def _scaled(run):
    return _with_scaled(run.predictions, run)


def _with_scaled(table, run):
    columns = [f"p_{name}" for name in run.classes]
    scaled = calibration.scale(table[columns].to_numpy(float), temperature(run))
    return table.assign(**{f"q_{name}": scaled[:, k] for k, name in enumerate(run.classes)})


def every_run(found):
    """One row for every run that was made, also those that disappoint."""
    rows = []
    for run in found:
        dataset, profile = run.path.parts[-4:-2]
        test = run.predictions[run.predictions["split"] == "test"]
        seen = evaluation.metrics(test, run.classes)
        machine = run.content.get("provenance", {}).get("machine", {})
        rows.append({
            "dataset": dataset, "profile": profile, "variant": run.variant, "seed": run.seed,
            "fold": run.fold if run.fold >= 0 else None, "weights": run.parameters.get("weights") or "none",
            "image_size": run.parameters["image_size"], "epochs": len(run.history), "slices": len(test),
            **{name: seen[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "brier", "ece")},
            "temperature": temperature(run), "train_accuracy": run.history["accuracy"].iloc[-1],
            "val_accuracy": run.history["val_accuracy"].iloc[-1], "seconds": run.content.get("wall_seconds"),
            "processor": machine.get("gpu") or machine.get("cpu"), "backend": machine.get("backend"),
        })
    return pd.DataFrame(rows).astype({"fold": "Int64"})


def summary(made, conflicts=None):
    """One row per Arm: mean and sd over seeds, 95 % intervals over patients.

    conflicts: data set -> paths of pictures that it shows under two labels; the last column leaves them out.
    """
    conflicts = conflicts or {}
    return pd.DataFrame([_head(arm) | _summary(arm, conflicts.get(arm.tested_on, set())) for arm in made])


def find_conflicts(folder):
    """What `summary` leaves out in its last column, from the audits' `conflicts.csv`."""
    found = {}
    for path in Path(folder, "runs").glob("*/*/audit/conflicts.csv"):
        table = pd.read_csv(path, dtype=str)
        found.setdefault(path.parts[-4], set()).update(table["path_a"], table["path_b"])
    return found


def _head(arm):
    names = ("dataset", "profile", "protocol", "tested_on")
    return dict(zip(names, arm.group, strict=True)) | {"variant": arm.variant, "seeds": len(arm.seeds)}


def _summary(arm, conflicts):
    tables = arm.on()
    seen = [evaluation.metrics(table, arm.classes) for table in tables]
    first = tables[0]
    patients = evaluation.patient_names(first)
    row = {"slices": len(first), "patients": len(set(patients) - {""}) or None}
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        values = np.array([one[name] for one in seen])
        row |= {name: values.mean(), f"{name}_sd": values.std(ddof=1) if len(values) > 1 else np.nan}
    row["low"], row["high"] = statistics.proportion_interval(_rate(arm), patients)
    truth = (first["label"] == POSITIVE).to_numpy()
    row["auc"], row["auc_low"], row["auc_high"] = statistics.auc_interval(truth, _scores(arm), patients)
    row["brier"] = np.mean([one["brier"] for one in seen])
    row["ece"] = np.mean([one["ece"] for one in seen])
    row["ece_scaled"] = np.mean([_ece(table, arm.classes) for table in tables])
    whole = [evaluation.metrics(evaluation.by_patient(table, arm.classes), arm.classes) for table in tables]
    row["accuracy_by_patient"] = np.mean([one["accuracy"] for one in whole])
    row["accuracy_without_conflicts"] = _rate(arm)[~first["path"].isin(conflicts).to_numpy()].mean()
    return row


def _rate(arm, index=None):
    """Share of the seeds that are right about each slice."""
    return np.mean([evaluation.correct(table, arm.classes) for table in arm.on(index)], axis=0)


def _scores(arm, index=None):
    return np.column_stack([table[f"p_{POSITIVE}"] for table in arm.on(index)])


def _ece(table, classes):
    scaled = table[[f"q_{name}" for name in classes]].set_axis([f"p_{name}" for name in classes], axis=1)
    if scaled.isna().any(axis=None):
        return np.nan
    truth, _, scores = evaluation.decide(scaled.assign(label=table["label"]), classes)
    return calibration.expected_error(truth, scores)


def per_class(made):
    """One row per Arm and class: sensitivity, specificity and what a positive answer is worth, means over seeds."""
    rows = []
    for arm in made:
        tables = arm.on()
        first = tables[0]
        patients = evaluation.patient_names(first)
        called = [evaluation.decide(table, arm.classes)[1] for table in tables]
        for k, name in enumerate(arm.classes):
            own = (first["label"] == name).to_numpy()
            rate = np.mean([answers == k for answers in called], axis=0)
            row = _head(arm) | {"class": name, "slices": int(own.sum())}
            for measure, values, part in (("sensitivity", rate, own), ("specificity", 1 - rate, ~own)):
                row[measure] = values[part].mean() if part.any() else np.nan
                interval = statistics.proportion_interval(values[part], patients[part])
                row |= dict(zip((f"{measure}_low", f"{measure}_high"), interval, strict=True))
            for suffix, share in (("test", own.mean()), ("at_10_percent", PREVALENCE)):
                row[f"ppv_{suffix}"] = evaluation.ppv_at(row["sensitivity"], row["specificity"], share)
            rows.append(row)
    return pd.DataFrame(rows)


def differences(made, baseline=BASELINE):
    """One row per Arm beside the baseline of its group: paired, on the slices that both were tested on.

    Seeds that both have are used. `p_holm` adjusts the bootstrap's p over the variants of a group.
    """
    rows = []
    for group in dict.fromkeys(arm.group for arm in made):
        rivals = {arm.variant: arm for arm in made if arm.group == group}
        reference = rivals.pop(baseline, None)
        own = [_difference(arm, reference) for arm in rivals.values() if reference]
        own = [row for row in own if row]
        for row, p in zip(own, statistics.holm([row["p_bootstrap"] for row in own]), strict=True):
            rows.append(row | {"p_holm": p, "comparisons": len(own)})
    return pd.DataFrame(rows)


def _difference(arm, reference):
    shared = sorted(arm.seeds.keys() & reference.seeds.keys())
    if not shared:
        return None
    arm, reference = (Arm(*one.group, one.variant, one.classes, {seed: one.seeds[seed] for seed in shared})
                      for one in (arm, reference))
    index = arm.index.intersection(reference.index).sort_values()
    first = arm.on(index)[0]
    patients = evaluation.patient_names(first)
    paired = statistics.paired_difference(_rate(arm, index), _rate(reference, index), patients)
    truth = (first["label"] == POSITIVE).to_numpy()
    areas = statistics.auc_difference(truth, _scores(arm, index), _scores(reference, index), patients)
    return (_head(arm) | {"against": reference.variant, "slices": len(index)} | paired
            | {"auc_difference": areas["difference"], "auc_low": areas["low"], "auc_high": areas["high"],
               "p_delong": areas["p"]})


def reliability(made):
    """The reliability diagram of every Arm, seeds pooled, before and after scaling: long, one row per bin."""
    parts = []
    for arm in made:
        for kind, letter in (("as trained", "p"), ("scaled", "q")):
            table = pd.concat(arm.on())
            names = [f"{letter}_{name}" for name in arm.classes]
            if table[names].isna().any(axis=None):
                continue
            truth = table["label"].map({name: k for k, name in enumerate(arm.classes)}).to_numpy()
            bins = calibration.reliability(truth, table[names].to_numpy(float))
            parts.append(pd.DataFrame([_head(arm) | {"probabilities": kind}] * len(bins)).join(bins))
    return pd.concat(parts, ignore_index=True)


def baselines(folder):
    """The audit's baselines of every set (`runs/<dataset>/<profile>/audit/shortcuts.csv`)."""
    parts = [pd.read_csv(path).assign(dataset=path.parts[-4], profile=path.parts[-3])
             for path in sorted(Path(folder, "runs").glob("*/*/audit/shortcuts.csv"))]
    if not parts:
        return pd.DataFrame(columns=["dataset", "profile", *shortcuts.COLUMNS])
    return pd.concat(parts, ignore_index=True)[["dataset", "profile", *shortcuts.COLUMNS]]


def targets(table, measured):
    """What was wanted beforehand on UCSD's official test part, and whether it was met above the baselines.

    table: `summary`; measured: `baselines`. The bar is the larger of "file facts" and "lungs blacked out" on
    harmonised slices; an accuracy counts only if its whole interval lies above.
    """
    rows = []
    ucsd = table[(table.dataset == "ucsd-covid-ct") & (table.protocol == SPLIT) & (table.profile == "study")]
    seen = measured[(measured.dataset == "ucsd-covid-ct") & (measured.protocol == shortcuts.OFFICIAL)]
    bar = seen.accuracy[(seen.baseline == "file facts")
                        | (seen.baseline.eq("lungs blacked out") & seen.seen.eq(shortcuts.HARMONISED))].max()
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
        table = summarise_explanations(pd.read_csv(path, dtype={"patient": str}))
        parts.append(table.assign(dataset=path.parts[-4], profile=path.parts[-3]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summarise_explanations(table):
    """As `explanations`, of one file's rows (notebook 04)."""
    rows = []
    for keys, part in table.groupby(["slices", "variant", "map", "weights"], sort=False):
        names = dict(zip(("slices", "variant", "map", "weights"), keys, strict=True))
        rows.append(names | _means(part, part["patient"]))
    whole = table[(table["map"] == "all levels") & (table["weights"] == "trained")]
    for slices, part in whole.groupby("slices", sort=False):
        own = {name: one.set_index(KEY) for name, one in part.groupby("variant")}
        improved = own.pop("improved", None)
        for name, other in own.items() if improved is not None else ():
            gap = improved[list(MEASURES)] - other[list(MEASURES)]
            rows.append({"slices": slices, "variant": f"improved - {name}", "map": "all levels", "weights": "trained"}
                        | _means(gap, improved["patient"]))
    return pd.DataFrame(rows)


def _means(rows, patients):
    found = {"n": len(rows)}
    for name in MEASURES:
        known = rows[name].notna().to_numpy()
        values, own = rows[name].to_numpy()[known], patients.fillna("").to_numpy()[known]
        low, high = statistics.cluster_bootstrap(values, statistics.fill_unknown(own)) if len(values) else (np.nan,) * 2
        found |= {name: values.mean() if len(values) else np.nan, f"{name}_low": low, f"{name}_high": high}
    return found


def tables(folder):
    """All tables of the study, name -> DataFrame, from what lies in `folder`."""
    found = find(folder)
    made = arms(found)
    whole, measured = summary(made, find_conflicts(folder)), baselines(folder)
    return {"runs": every_run(found), "summary": whole, "differences": differences(made),
            "per_class": per_class(made), "reliability": reliability(made), "baselines": measured,
            "targets": targets(whole, measured), "explanations": explanations(folder)}


def write(folder):
    """Write `tables/<name>.csv` into `folder`, rounded to DIGITS decimals; returns the tables as written."""
    made = {name: table.round(DIGITS) for name, table in tables(folder).items()}
    for name, table in made.items():
        write_atomically(Path(folder, "tables", f"{name}.csv"), table.to_csv(index=False, lineterminator="\n"))
    return made


if __name__ == "__main__":
    for title, written in write(sys.argv[1] if len(sys.argv) > 1 else "reports/published").items():
        print(f"{title}: {len(written)} rows")
