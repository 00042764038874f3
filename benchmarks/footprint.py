"""What one waits for before anything is computed: imports, notebooks' first cells, phantoms; and the phantoms' memory.

    python -m benchmarks.footprint        # six minutes on 2 cores; writes footprint_<device>.csv and the targets

Every sample is a process of its own. `first cell` is what the first cell of a notebook imports, from the start of the
interpreter. Phantoms are drawn by `covidlib.phantom.generate` in 2 processes; their memory is the highest sum of the
resident memory of all processes, sampled every 50 ms.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks import tables
from covidlib.speed import timing

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PHANTOMS = [(135, 30, 135), (450, 100, 450), (1350, 300, 1350)]  # the last: the paper's 3000 slices
COLUMNS = ["what", "slices", "seconds", "q1", "q3", "rounds", "peak_mib", "date"]
IMPORT = """
import sys, time
start = time.perf_counter()
import covidlib
seconds = time.perf_counter() - start
assert not {"tensorflow", "jax", "torch", "keras"} & set(sys.modules), "covidlib imports a framework"
print(seconds)
"""
GENERATE = "import sys; from covidlib import phantom; phantom.generate(sys.argv[1], map(int, sys.argv[2:]))"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    code = {f"first cell of {path.stem}": imports(path) for path in NOTEBOOKS}
    cells = timing.interleave({name: lambda text=text: python(text) for name, text in code.items()}, rounds)
    cells["import covidlib"] = np.array([float(python(IMPORT)) for _ in range(rounds)])
    rows = []
    for name, seconds in cells.items():
        median, q1, q3 = timing.quartiles(seconds)
        rows.append({"what": name, "seconds": median, "q1": q1, "q3": q3, "rounds": rounds})
    slowest = max(code, key=lambda name: np.median(cells[name]))
    drawn = [phantoms(counts) for counts in PHANTOMS]
    rows += drawn
    tables.save(f"footprint_{tables.device()}.csv", rows, COLUMNS)
    slices, peaks = ([row[column] for row in drawn] for column in ("slices", "peak_mib"))
    tables.write_targets([
        ("import covidlib, no framework imported, s", "<= 0.3", timing.quartiles(cells["import covidlib"])),
        (f"slowest {slowest.replace('first cell', 'first cell, that')}, s", "<= 6", timing.quartiles(cells[slowest])),
        (f"phantoms, {slices[-1]} slices of 256 px, s", "<= 60", drawn[-1]["seconds"]),
        ("phantoms: exponent of memory in slices", "<= 0.05", np.polyfit(np.log(slices), np.log(peaks), 1)[0]),
    ], "footprint")


def imports(path):
    """The import statements of the first code cell after the parameters."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
             and "parameters" not in cell["metadata"].get("tags", [])]
    body = ast.parse("".join(cells[0]["source"])).body
    return "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=NOTEBOOKS[0].parent)
    if done.returncode:
        raise RuntimeError(f"{code}\n{done.stderr[-2000:]}")
    return done.stdout


def phantoms(counts):
    """One drawing: its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        start, peak = time.perf_counter(), 0
        process = psutil.Popen([sys.executable, "-c", GENERATE, folder, *map(str, counts)], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"phantoms were not drawn: exit status {process.returncode}")
        return {"what": "phantoms", "slices": sum(counts), "seconds": time.perf_counter() - start, "rounds": 1,
                "peak_mib": peak / 2**20}


def resident(process):
    """Bytes resident of a process and its descendants."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


if __name__ == "__main__":
    main()
