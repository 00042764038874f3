"""Run the workflow for one profile and data set, then print the claims table: `make reproduce`.

One reproduction at a time works in a checkout. Because of that, a lock that Snakemake finds here was left
by a killed one, and may be taken away.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from covidlib.datasets import NAMES
from covidlib.preprocessing.crop import PREPARATIONS
from covidlib.utils.files import require_writable

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "workflow/profiles").glob("*.yaml"))
CLUSTERS = sorted(path.parent.name for path in (ROOT / "workflow/cluster").glob("*/config.yaml"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--dataset", choices=NAMES, default="phantom")
    parser.add_argument("--data-root", default="", help="the set's own folder; phantoms are made where it is left out")
    parser.add_argument("--preparation", choices=PREPARATIONS, default="whole", help="what a network sees of a slice: "
                        "all of it, or the lungs alone, for runs in a folder of their own, <profile>-lungs")
    parser.add_argument("--weights", default="", help="none, imagenet, ct, phantom, or a path, for runs in a folder of "
                        "their own, <profile>-<weights>; the profile's where it is left out")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise",
                        help="skip: go on without files that cannot be used")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at the same time; "
                        "on a cluster its profile's jobs")
    parser.add_argument("--cluster", choices=CLUSTERS, help="where the notebooks run; here where it is left out "
                        "(docs/cluster.md)")
    options = parser.parse_args()
    if options.dataset != "phantom" and not options.data_root:
        parser.error(f"dataset {options.dataset} needs its folder: DATA_ROOT=path (see DATA_CARD.md)")
    if options.data_root and not (ROOT / options.data_root).is_dir():
        parser.error(f"no such folder. Received: DATA_ROOT={options.data_root}")
    if options.cluster and not importlib.util.find_spec(f"snakemake_executor_plugin_{options.cluster}"):
        parser.error(f"cluster {options.cluster} needs its executor: python -m pip install -e '.[cluster]'")

    profile = "-".join([options.profile, *["lungs"] * (options.preparation == "lungs"),
                        *([_named(options.weights)] if options.weights else [])])
    given = {"profile": profile, "dataset": options.dataset, "data_root": options.data_root,
             "on_error": options.on_error, "preparation": options.preparation}
    given |= {"start": options.weights} if options.weights else {}
    place = ROOT / ".snakemake"
    try:
        for folder in (place, ROOT / "runs" / options.dataset / profile, ROOT / "reports" / options.dataset / profile):
            require_writable(folder)
    except PermissionError as error:
        sys.exit(f"make reproduce writes to this checkout, and {error}")
    where = (["--workflow-profile", f"workflow/cluster/{options.cluster}"] if options.cluster
             else ["--cores", str(options.jobs)])
    # values in a file: Snakemake would guess what kind of value a name on its command line is
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--configfile",
                 f"workflow/profiles/{options.profile}.yaml", str(place / "given.json"), *where, "--rerun-incomplete",
                 "--quiet", "host", "reason", "rules"]
    try:
        with FileLock(place / "reproduce.lock", timeout=0):
            (place / "given.json").write_text(json.dumps(given))
            subprocess.run([*snakemake, "--unlock"], cwd=ROOT, capture_output=True, check=False)
            status = subprocess.run(snakemake, cwd=ROOT, check=False).returncode
    except Timeout:
        sys.exit("another `make reproduce` is at work in this checkout; wait for it or use a second clone")
    if status:
        sys.exit(f"{profile} on {options.dataset} stopped before its end; what is done is kept, "
                 "and the same command goes on from there")
    report = f"reports/{options.dataset}/{profile}"
    sys.exit(subprocess.run([sys.executable, "-m", "covidlib.report.claims", report], cwd=ROOT, check=False).returncode)


def _named(weights):
    """Folder name of other initial weights, whose runs are kept apart from those of the profile's own."""
    return re.sub(r"[^\w-]", "_", Path(weights).name.split(".")[0])


if __name__ == "__main__":
    main()
