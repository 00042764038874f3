"""Where a result came from: code, parameters, packages, machine, data and weights.

`collect` fills the `provenance` entry of every `run.json`; `show` prints the same facts as the
visible cell of every executed notebook. Nothing here names a folder of the machine, so that
committed or published outputs reveal nothing of their author's disk.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from covidlib.utils.files import sha256

PACKAGES = ("covidlib", "keras", "tensorflow", "jax", "torch", "numpy", "pandas", "scipy", "scikit-learn",
            "scikit-image", "pillow", "pydicom", "nibabel", "papermill", "snakemake")
PLACES = ("data_root", "weights", "input_path", "model_path", "output_dir", "runs_dir")
ROOT = Path(__file__).resolve().parents[2]


def packages() -> dict[str, str]:
    """Versions of the packages that decide a result; those not installed are left out."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git() -> dict:
    """Commit of the checkout covidlib runs from and whether tracked files differ; nulls outside a checkout."""
    commit, changes = (_ask("git", *arguments) for arguments in (
        ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")))
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _ask(*command) -> str | None:
    """What a command prints in the checkout; None where it is missing or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@functools.cache
def _cpu() -> str:
    with suppress(OSError):
        table = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"^model name\s*: (.+)", table, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _gpu() -> str | None:
    """Name of the first NVIDIA GPU as its driver reports it, or None."""
    return (_ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").partition("\n")[0] or None


def system() -> str:
    """Name of the operating system and the first two numbers of its version: the rest may name a host."""
    return " ".join([platform.system(), *re.findall(r"^\d+(?:\.\d+)?", platform.release())])


def threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine() -> dict:
    """The rows of the paper's Table 1 (§3.1) for the machine this runs on; memory in GiB."""
    import psutil  # here, so that networks are built where it is not installed

    versions = packages()
    return {
        "cpu": _cpu(),
        "cores": threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "os": system(),
        "python": platform.python_version(),
        "backend": backend(),
        **{name: versions[name] for name in ("keras", "tensorflow", "jax", "torch") if name in versions},
    }


def backend() -> str:
    """Name of the Keras backend in use, or the one that importing Keras would choose."""
    if "keras" in sys.modules:
        return sys.modules["keras"].backend.backend()
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def collect(parameters: dict, *, manifest_sha256=None, weights_sha256=None, precision=None,
            wall_seconds=None) -> dict:
    """Everything needed to say how a result was made; plain data, ready for JSON.

    `parameters` are the notebook's or function's own, by name; the seed is among them. Of a place on disk
    (`PLACES`) only the last name is kept.
    """
    lock = ROOT / "requirements.lock"
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
    return {
        "git": git(),
        "parameters": plain | {key: Path(plain[key]).name for key in PLACES if plain.get(key)},
        "machine": machine(),
        "packages": packages(),
        "lock_sha256": sha256(lock) if lock.exists() else None,
        "manifest_sha256": manifest_sha256,
        "weights_sha256": weights_sha256,
        "precision": precision,
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 1),
    }


def show(parameters: dict, **facts) -> None:
    """Print `collect(parameters, **facts)` as the aligned lines of a notebook's provenance cell."""
    found = collect(parameters, **facts)
    git_state = found["git"]
    rows = {
        "commit": f"{git_state['commit']}{' with local changes' if git_state['dirty'] else ''}",
        "parameters": ", ".join(f"{key}={value!r}" for key, value in found["parameters"].items()),
        **found["machine"],
        **{key: value for key, value in found.items() if value is not None and not isinstance(value, dict)},
    }
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):>16}: {value}")
