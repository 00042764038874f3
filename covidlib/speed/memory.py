"""Peak memory of a process that builds one network, or loads an exported one, and classifies one slice with it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from covidlib.utils import provenance


def peaks(requests) -> list[dict]:
    """Peak resident memory in MiB of a fresh process for each request, some at a time.

    A request is ("keras", variant, image_size, precision) or ("exported", folder, precision). `framework_mib` is the
    peak before the network is built or loaded, `peak_mib` that at the end. On a GPU this is the host's memory, not the
    card's. RuntimeError with the process's error output if it fails.
    """
    with ThreadPoolExecutor(max(1, provenance.threads())) as pool:
        return list(pool.map(_ask, requests))


def _ask(request):
    command = [sys.executable, "-m", "covidlib.speed.memory", *map(str, request)]
    environment = {**os.environ, "KERAS_BACKEND": provenance.backend()}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise RuntimeError(f"the memory of {' '.join(map(str, request))} was not measured:\n{answer.stderr[-2000:]}")
    framework, peak = map(float, answer.stdout.split()[-2:])
    return {"framework_mib": framework, "peak_mib": peak}


def resident_peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # not ru_maxrss, which on Linux a new process inherits from the one that started it
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def _keras(variant, image_size, precision):
    from covidlib.models import build_classifier
    from covidlib.speed import harness

    before = resident_peak()
    call = harness.compiled(build_classifier(variant, ("a", "b", "c"), int(image_size), precision=precision))
    call(np.zeros((1, int(image_size), int(image_size), 1), "float32"))
    return before


def _exported(folder, precision):
    from covidlib.speed import export

    before, call = resident_peak(), export.load(folder, precision)
    call(np.zeros(call.input_shape, "uint8"))
    return before


if __name__ == "__main__":
    began = {"keras": _keras, "exported": _exported}[sys.argv[1]](*sys.argv[2:])
    print(f"{began:.1f} {resident_peak():.1f}")
