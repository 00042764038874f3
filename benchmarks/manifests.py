"""Manifests of the size of COVIDx-CT and CC-CCII through split, audit and input: seconds and memory by rows.

    python -m benchmarks.manifests                          # 10,000 to 200,000 rows, about 6 minutes on 2 cores, Linux
    python -m benchmarks.manifests 617000 near-duplicates   # these sizes and parts alone; replaces their rows

Everything is synthetic: 150 slices a patient, facts and checksums made up, thumbnails mixed of 30 smooth patterns so
that neighbouring slices of a patient resemble each other and patients do not, hashes of their signs. No file is decoded
here (that is linear: benchmarks.intake); where decoding would stand, `take in` gets a blank slice of 32 px and a
thumbnail of noise. Each part at each size has a process to itself. `cpu_seconds` are the processor's, all threads
together: other work beside it disturbs them less. Memory is growth.Peak's: resident and not backed by a file, above
imports and what the part is given.
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import tables
from benchmarks.growth import Peak, resident

SIZES = 10_000, 50_000, 200_000
COLUMNS = ["what", "rows", "seconds", "cpu_seconds", "peak_mib", "note", "date"]
CLASSES, PER_PATIENT, PATTERNS = ("covid", "cap", "normal"), 150, 30


def table(count):
    """A manifest of `count` slices with checksums."""
    patient = np.arange(count) // PER_PATIENT
    return pd.DataFrame({"path": [f"CT/{p}/{n:07d}.png" for n, p in enumerate(patient)],
                         "label": np.array(CLASSES)[patient % 3], "patient": patient.astype(str), "source": "bench",
                         "split": "", "slice_index": np.arange(count) % PER_PATIENT,
                         "sha256": [f"{n:064x}" for n in range(count)]})


def described(count, folder):
    """(hashes (count,), thumbnails (count, 64, 64) in a memory map): paths of patients through smooth patterns."""
    rng, side = np.random.default_rng(0), np.linspace(0, np.pi, 64)
    waves = np.stack([np.cos(k * side)[:, None] * np.cos(m * side) for k in range(6) for m in range(6)][1:PATTERNS + 1])
    waves /= np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    scale = np.arange(1, PATTERNS + 1) ** -0.7
    thumbnails = np.memmap(folder / "thumbnails", np.uint8, "w+", shape=(count, 64, 64))
    hashes = np.zeros(count, np.uint64)
    for start in range(0, count, PER_PATIENT):
        stop = min(start + PER_PATIENT, count)
        along = np.linspace(-1, 1, PER_PATIENT)[: stop - start, None]
        mixed = rng.normal(size=PATTERNS) + rng.normal(size=PATTERNS) * along
        mixed = (mixed + rng.normal(0, 0.03, (stop - start, PATTERNS))) * scale
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        thumbnails[start:stop] = np.clip(128 + 2000 * np.tensordot(mixed, waves, 1), 0, 255)
        hashes[start:stop] = np.packbits(np.tile(mixed > 0, 3)[:, :64], axis=1).view(np.uint64)[:, 0]
    return hashes, thumbnails


def manifest(count, folder):
    yield
    rows = table(count)
    yield f"{len(rows.columns)} columns"


def split(count, folder):
    from covidlib.datasets import splits

    rows = table(count)
    yield
    splits.assign(rows, 0)


def split_without_patients(count, folder):
    from covidlib.datasets import splits

    rows = table(count).assign(patient="")
    yield
    splits.assign(rows, 0)


def sample_without_patients(count, folder):
    from covidlib.datasets import decode

    rows = table(count).assign(patient="")
    yield
    decode._sample(rows)


def shipped_split(count, folder):
    from covidlib.datasets import splits

    rows = table(count)
    known = pd.DataFrame({"sha256": rows.sha256.str[:16], "name": rows.path.str[:-4], "split": "train"})
    splits.shipped = lambda dataset: known
    yield
    splits.apply_shipped(rows, "bench")


def leaks(count, folder):
    from covidlib.audit import leaks

    rows = table(count).assign(split="train")
    yield
    leaks.find_leaks(rows.assign(group=np.arange(count)))


def near_duplicates(count, folder):
    from covidlib.datasets import near_duplicates

    hashes, thumbnails = described(count, folder)
    yield
    pairs = near_duplicates.near_duplicates(hashes, thumbnails)
    near_duplicates.groups(pairs, count)
    yield f"{len(pairs)} pairs"


def decode_dataset(count, folder):
    from covidlib import datasets
    from covidlib.audit import shortcuts
    from covidlib.datasets import decode

    source = datasets.Source(table(count), CLASSES, folder, "bench")
    image, rng = np.zeros((32, 32), np.uint8), np.random.default_rng(0)
    noise = rng.integers(0, 256, (1000, 64, 64), np.uint8)

    def decoded(function, source, arguments):
        # texts that are made anew for every row, as those of real files are, and not one that all rows share
        for n, (_, asked) in enumerate(arguments):
            facts = [f"{n:064x}", np.uint64(n), f".{'png'}", f"p{'ng'}", f"{'L'}", n, 512, 512, n / count, ""]
            yield image, facts, noise[n % 1000], {"files": np.zeros(1, np.float32)} if asked else None

    decode._each = decoded
    yield
    decode.decode_dataset(source, 32, folder, shortcuts.features)


PARTS = {"manifest": manifest, "split by patient": split, "split without patients": split_without_patients,
         "sample of the audit without patients": sample_without_patients, "shipped split": shipped_split,
         "leaks of the manifest": leaks, "take in": decode_dataset, "near-duplicates": near_duplicates}


def measure(what, count):
    """One part in this process, from its first yield on; printed as JSON."""
    import covidlib.audit.leaks
    import covidlib.datasets.decode
    import covidlib.datasets.splits  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        part = PARTS[what](count, Path(folder))
        next(part)
        before, start, cpu = resident(), time.perf_counter(), time.process_time()
        with Peak() as peak:
            note = next(part, "")
        print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, peak.highest - before, note]))


def main(sizes, parts):
    path = tables.RESULTS / f"manifests_{tables.device()}.csv"
    known = pd.read_csv(path).to_dict("records") if path.is_file() else []
    for count in sizes:
        for what in parts:
            answer = subprocess.run([sys.executable, "-m", "benchmarks.manifests", "measure", what, str(count)],
                                    capture_output=True, text=True)
            if answer.returncode:
                raise RuntimeError(f"{what} of {count} rows failed:\n{answer.stderr[-2000:]}")
            seconds, cpu, peak, note = json.loads(answer.stdout.splitlines()[-1])
            found = what, count, round(seconds, 3), round(cpu, 3), round(peak, 1), note, date.today()
            row = dict(zip(COLUMNS, found, strict=True))
            known = [old for old in known if (old["what"], old["rows"]) != (what, count)] + [row]
            known.sort(key=lambda row: (list(PARTS).index(row["what"]), row["rows"]))
            print(f"{what:36} {count:7} {seconds:8.2f} s {cpu:8.2f} s {peak:7.0f} MiB  {note}", flush=True)
            pd.DataFrame(known, columns=COLUMNS).to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        chosen = [word for word in sys.argv[1:] if not word.isdigit()]
        main([int(word) for word in sys.argv[1:] if word.isdigit()] or SIZES, chosen or PARTS)
