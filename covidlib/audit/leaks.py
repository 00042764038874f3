"""Leaks between the parts of a split, pictures under two labels, shortcuts.

A leak is what two parts of the split share: a patient, a source document (an article that several pictures come
from), a file, or a near-duplicate. A shortcut is anything but anatomy that predicts the label.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib.audit import shortcuts
from covidlib.datasets import near_duplicates, scan_or_file
from covidlib.utils.files import write_atomically
from covidlib.utils.text import first_few

AUC_WARNING = 0.7  # an AUC worth a warning where classes are so uneven that accuracy shows nothing
TABLES = ("leaks", "conflicts", "duplicates", "shortcuts")
_EXAMPLES = 3
_ACCURACY = ["variant", "accuracy_mean", "accuracy_low", "accuracy_high"]


@dataclass(frozen=True)
class Audit:
    """Tables (see `audit`), and `warnings`: sentences ready for a report."""

    leaks: pd.DataFrame
    conflicts: pd.DataFrame
    duplicates: pd.DataFrame
    shortcuts: pd.DataFrame
    warnings: list[str]


def audit(source, decoded):
    """Audit of a datasets.Source with its split and of its decode.DecodedDataset.

    leaks: kind, across, count, slices, examples - how many patients, documents, files and groups of near-duplicates
    lie in several parts of the split or under several labels. duplicates: pairs of near-duplicates that are not
    slices of one volume in one part, those across the split first; row_a and row_b are rows of the manifest.
    conflicts: those of them under two labels. shortcuts: see shortcuts.measure.
    """
    manifest = source.manifest.reset_index(drop=True)
    pairs = near_duplicates.near_duplicates(decoded.facts.hash.to_numpy(), decoded.thumbnails)
    pairs = _of_different_volumes(manifest, pairs)
    leaks = find_leaks(manifest.assign(group=near_duplicates.groups(pairs, len(manifest))))
    duplicates = _describe(manifest, pairs)
    conflicts = duplicates[duplicates.label_a != duplicates.label_b]
    conflicts = conflicts[["path_a", "label_a", "path_b", "label_b", "distance"]].reset_index(drop=True)
    measured = shortcuts.measure(source, decoded)
    warnings = [*_warn_of_leaks(leaks), *_warn_of_conflicts(conflicts), *_warn_of_shortcuts(measured)]
    duplicates = duplicates[["path_a", "split_a", "path_b", "split_b", "distance", "correlation", "row_a", "row_b"]]
    return Audit(leaks, conflicts, duplicates, measured, warnings)


def write(result, folder):
    """Write leaks.csv, conflicts.csv, duplicates.csv and shortcuts.csv, each complete or not at all."""
    for name in TABLES:
        text = getattr(result, name).to_csv(index=False, lineterminator="\n")
        write_atomically(Path(folder, f"{name}.csv"), text)


def find_leaks(manifest):
    """What lies in more than one part of the split, or under more than one label, from the manifest alone.

    Columns patient, series, document, sha256 and group are compared where they exist; empty cells are unknown. Returns
    DataFrame kind, across ("anywhere": repeated files and pictures), count, slices, examples. A patient or document
    under several labels is no fault: where every class has its own, a network may learn these.
    """
    kinds = {"patient": "patient", "series": "scan", "document": "source document", "sha256": "identical file",
             "group": "near-duplicate group"}
    manifest = manifest.fillna({column: "" for column in kinds if column in manifest})
    rows = []
    for column, kind in kinds.items():
        if column not in manifest or manifest[column].eq("").all():
            continue
        known = manifest[manifest[column] != ""]
        known = known.drop_duplicates("path") if column == "sha256" else known  # a volume is one file
        groups = known.groupby(column, sort=False)
        repeated = {"anywhere": groups.size()} if column in ("sha256", "group") else {}
        for across, parts in (repeated | {name: groups[name].nunique() for name in ("split", "label")}).items():
            shared = parts.index[parts > 1]
            slices = known[known[column].isin(shared)]
            names = slices.path.groupby(slices[column], sort=False).first() if column in ("sha256", "group") else shared
            rows.append([kind, across, len(shared), len(slices), "; ".join(map(str, list(names)[:_EXAMPLES]))])
    return pd.DataFrame(rows, columns=["kind", "across", "count", "slices", "examples"])


def shortcut_warnings(metrics, measured):
    """Warnings on accuracies that a shortcut explains as well.

    metrics: DataFrame of comparison.table on the test part; measured: shortcuts.visible of its runs. A network exceeds
    a baseline where its whole interval lies above the baseline's.
    """
    table = measured[measured.protocol == shortcuts.OFFICIAL]
    table = table if len(table) else measured
    warnings = []
    for network, accuracy, low, high in metrics[_ACCURACY].itertuples(index=False):
        rivals = table[~(table.high < low)].sort_values("accuracy", ascending=False)
        if len(rivals):
            named = ", ".join(f"{row.baseline} ({row.seen}) {row.accuracy:.3f}" for row in rivals.head(4).itertuples())
            more = f" and {len(rivals) - 4} more" if len(rivals) > 4 else ""
            warnings.append(f"{network}'s accuracy of {accuracy:.3f} ({low:.3f} to {high:.3f}) is not above what a "
                            f"shortcut reaches: {named}{more}.")
    return warnings


def _of_different_volumes(manifest, pairs):
    """Without pairs inside a volume or series, whose slices are meant to resemble each other, in one part."""
    volume, split = scan_or_file(manifest).to_numpy(), manifest.split.to_numpy()
    apart = (volume[pairs.a] != volume[pairs.b]) | (split[pairs.a] != split[pairs.b])
    return pairs[apart].reset_index(drop=True)


def _describe(manifest, pairs):
    a, b = (manifest.loc[pairs[end]].reset_index(drop=True) for end in "ab")
    table = pd.DataFrame({
        "path_a": a.path, "label_a": a.label, "split_a": a.split, "path_b": b.path, "label_b": b.label,
        "split_b": b.split, "distance": pairs.distance, "correlation": np.round(pairs.correlation, 4),
        "row_a": pairs.a, "row_b": pairs.b,
    })
    table["inside"] = table.split_a == table.split_b
    return table.sort_values(["inside", "distance"], kind="stable").drop(columns="inside").reset_index(drop=True)


def _warn_of_leaks(leaks):
    across = leaks[(leaks.across == "split") & (leaks["count"] > 0)]
    return [f"In more than one part of the split: {count} x {kind} ({slices} slices), such as {examples}."
            for kind, _, count, slices, examples in across.itertuples(index=False)]


def _warn_of_conflicts(conflicts):
    shown = first_few((f"{row.path_a} ({row.label_a}) and {row.path_b} ({row.label_b})"
                       for row in conflicts.itertuples()), _EXAMPLES)
    return [f"{len(conflicts)} pairs show the same picture under two labels: {shown}."] if len(conflicts) else []


def _warn_of_shortcuts(measured):
    if measured.empty:
        return ["Shortcuts were not measured: that needs two patients in every class."]
    warnings = []
    for protocol, table in measured.groupby("protocol", sort=False):
        floor = table.accuracy[table.baseline == "majority class"].max()
        better = table[(table.low > floor) | (table.auc >= AUC_WARNING)].sort_values("auc", ascending=False)
        if len(better):
            named = "; ".join(f"{row.baseline}, {row.seen}: {row.accuracy:.1%} ({row.low:.1%} to {row.high:.1%}, AUC "
                              f"{row.auc:.2f})" for row in better.itertuples())
            warnings.append(f"Shortcuts ({protocol}) better than the most frequent class ({floor:.1%}) or by an "
                            f"AUC of {AUC_WARNING} and more: {named}. Compare every accuracy with these.")
    return warnings
