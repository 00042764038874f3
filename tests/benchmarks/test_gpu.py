import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = ["pandas", "sklearn", "skimage", "matplotlib", "seaborn", "PIL", "pydicom", "openvino", "onnx", "nncf",
           "psutil", "cpuinfo", "yaml", "joblib", "tqdm", "papermill", "IPython"]
RUN = """
import runpy, sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in missing else super().find_spec(name, path, target)

missing, sys.argv = sys.argv[1].split(","), ["benchmarks.gpu", *sys.argv[2:]]
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_whole_benchmark_runs_on_a_cpu_with_keras_numpy_and_one_backend(tmp_path, backend):
    pytest.importorskip(backend)
    missing = [*MISSING, *{"tensorflow", "jax", "torch"} - {backend}]
    settings = ["--image-size", "32", "--batch", "2", "--seconds", "0.1", "--budget", "60", "--networks", "resnet50",
                "--precisions", "float32", "--results", tmp_path]
    done = subprocess.run([sys.executable, "-c", RUN, ",".join(missing), *map(str, settings)], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob(f"gpu-training_float32_{backend}_*.csv")
    first = next(csv.DictReader(path.open()))
    assert first["variant"] == "resnet50" and first["batch"] == "2" and float(first["images_per_second"]) > 0
    assert not list(tmp_path.glob("*_targets_*.csv")), "the targets are those of a GPU"
