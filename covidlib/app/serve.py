"""The app as pages of its own, without JupyterLab: `make app`.

    python -m covidlib.app.serve --port 8866

Voila (https://voila.readthedocs.io) runs notebooks/app.ipynb on 127.0.0.1, in a kernel of its own for every page that
is opened; one kernel waits, warm, for the next page.
"""

import argparse
import os
import sys
from pathlib import Path

from covidlib import provenance

HERE = Path(__file__).parent
IDLE = 1800  # seconds without a page after which a kernel ends


def settings(root, port):
    """Voila's arguments for the app of the checkout in `root`."""
    return [
        str(Path(root, "notebooks", "app.ipynb")), f"--port={port}", "--no-browser", "--Voila.ip=127.0.0.1",
        "--template=covidlib", "--KernelManager.transport=ipc",
        "--VoilaConfiguration.file_allowlist", "(?!)", "--preheat_kernel=True", "--pool_size=1",
        f"--MappingKernelManager.cull_idle_timeout={IDLE}", "--MappingKernelManager.cull_interval=60",
        "--VoilaExecutor.iopub_timeout=30", "--Voila.log_level=WARN", "--show_tracebacks=False",
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m covidlib.app.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--root", default=str(provenance.ROOT), help="folder that holds notebooks, runs and data")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = [str(HERE / "share"), os.environ.get("JUPYTER_PATH", "")]  # where Voila looks for templates
    os.environ["JUPYTER_PATH"] = os.pathsep.join(path for path in paths if path)
    root = Path(options.root).absolute()
    os.chdir(root / "notebooks")
    print(f"The app: http://127.0.0.1:{options.port}   (Ctrl-C ends it)", flush=True)
    from voila.app import Voila

    Voila.launch_instance(argv=settings(root, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
