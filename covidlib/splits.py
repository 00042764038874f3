"""Split a manifest into train, val and test by patient, keeping the classes' proportions."""

import numpy as np

from covidlib.datasets import SPLITS, patient_or_file


def assign(manifest, seed, fractions=(0.7, 0.1, 0.2)):
    """(manifest with its split column filled, notes as sentences for a report).

    A split that the set brings along is kept whole. Otherwise each class is dealt out patient by patient so
    that every part comes near its fraction of the slices. Slices of unknown patients are dealt out alone,
    those of one file together. ValueError for one patient in a class, a half-filled split or a patient leak.
    """
    _check_fractions(fractions)
    given = manifest.split != ""
    if given.any():
        if not given.all():
            raise ValueError(f"Give every slice a split or none. Received: {(~given).sum()} without")
        check_disjoint(manifest)
        return manifest.copy(), _notes_on_given(manifest)
    groups = _groups(manifest)
    counts = groups.groupby("label").size()
    if counts.min() < 2:
        raise ValueError(f"Class {counts.idxmin()!r} has one patient, who cannot be in both training and test. Add "
                         "patients, leave the class out, or give a split of your own. Received: patients=1")
    notes = _notes_on_patients(manifest)
    fractions = np.array(fractions, float)
    if counts.min() < 3:
        notes.append(f"Class {counts.idxmin()} has fewer than three patients ({counts.min()}): there are a training "
                     "and a test part only, the validation part is left out.")
        fractions[1] = 0
    rng = np.random.default_rng([seed])
    split = {}
    for _, members in groups.groupby("label"):
        split.update(_deal(members.slices, fractions / fractions.sum(), rng))
    result = manifest.assign(split=patient_or_file(manifest).map(split))
    check_disjoint(result)
    for label, rows in result.groupby("label"):  # one whose patients have more slices of another class
        if not {"train", "test"} <= set(rows.split):
            raise ValueError(f"Class {label!r} shares its patients with other classes and cannot be split.")
    return result, notes


def check_disjoint(manifest):
    """ValueError naming patients, or files of unknown patients, that lie in more than one part."""
    parts = manifest.groupby(patient_or_file(manifest)).split.unique()
    leaks = parts[parts.map(len) > 1]
    if len(leaks):
        shown = "; ".join(f"{key} in {' and '.join(sorted(found))}" for key, found in leaks.head(5).items())
        raise ValueError(f"{len(leaks)} patients lie in more than one part of the split: {shown}"
                         f"{'; ...' if len(leaks) > 5 else ''}. Put all slices of a patient into one part.")


def _groups(manifest):
    """One row per group with its number of slices and its most frequent label."""
    table = manifest.assign(group=patient_or_file(manifest))
    counted = table.groupby(["group", "label"], sort=False).size().rename("n").reset_index()
    largest = counted.sort_values("n", kind="stable").groupby("group", sort=False).label.last()
    return table.groupby("group", sort=False).size().rename("slices").to_frame().join(largest)


def _deal(slices, fractions, rng):
    """group -> part for one class: of several seeded deals, the one nearest to the fractions."""
    used, sizes = np.flatnonzero(fractions), slices.to_numpy()
    target = fractions * sizes.sum()
    best, least = None, np.inf
    for _ in range(25):
        parts = np.empty(len(slices), int)
        filled, members = np.zeros(3), np.zeros(3, int)
        order = rng.permutation(len(slices))
        for position, group in enumerate(order):
            empty = used[members[used] == 0]
            open_parts = empty if len(order) - position <= len(empty) else used
            part = open_parts[np.argmax(target[open_parts] - filled[open_parts])]
            parts[group] = part
            filled[part] += sizes[group]
            members[part] += 1
        distance = np.abs(filled - target).sum()
        if distance < least:
            best, least = parts, distance
    return {group: SPLITS[part] for group, part in zip(slices.index, best, strict=True)}


def _check_fractions(fractions):
    valid = len(fractions) == 3 and min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6
    if not valid or fractions[0] == 0 or fractions[2] == 0:
        raise ValueError("fractions must be three shares (train, val, test) that sum to 1, train and test above 0. "
                         f"Received: fractions={fractions}")


def _notes_on_given(manifest):
    missing = [part for part in SPLITS if part not in set(manifest.split)]
    absent = [f"It has no {' and no '.join(missing)} part."] if missing else []
    return ["The split that the data set brings along is kept.", *absent, *_notes_on_patients(manifest)]


def _notes_on_patients(manifest):
    unknown = int((manifest.patient == "").sum())
    if not unknown:
        return []
    return [f"{unknown} of {len(manifest)} slices name no patient: one may be in two parts unnoticed."]
