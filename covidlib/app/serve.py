"""The app as pages of its own, without JupyterLab: `make app`.

    python -m covidlib.app.serve --port 8866

Voila (https://voila.readthedocs.io) runs notebooks/app.ipynb in a kernel of its own for every page that is opened; one
kernel waits, warm, for the next page. It can be reached from this machine alone, unless `--ip` opens it wider; then who
does not have the token in the printed address is sent away.
"""

import argparse
import ipaddress
import os
import secrets
import socket
import sys
from pathlib import Path

from covidlib.utils import provenance

HERE = Path(__file__).parent
IDLE = 1800  # seconds without a page after which a kernel ends


def settings(root, port, ip, token):
    """Voila's arguments for the app of the checkout in `root`; without a token where that is None."""
    return [
        *([] if token is None else [f"--Voila.token={token}"]),
        str(Path(root, "notebooks", "app.ipynb")), f"--port={port}", "--no-browser", f"--Voila.ip={ip}",
        "--template=covidlib", "--KernelManager.transport=ipc",
        "--VoilaConfiguration.file_allowlist", "(?!)", "--preheat_kernel=True", "--pool_size=1",
        f"--MappingKernelManager.cull_idle_timeout={IDLE}", "--MappingKernelManager.cull_interval=60",
        "--VoilaExecutor.iopub_timeout=30", "--Voila.log_level=WARN", "--show_tracebacks=False",
    ]


def address(ip, port, token):
    """What to type into a browser; `ip` as of `ipaddress`."""
    host = f"[{ip}]" if ip.version == 6 else ip
    if ip.is_unspecified:
        host = socket.gethostname()
    return f"http://{host}:{port}" + (f"/?token={token}" if token else "")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m covidlib.app.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--ip", type=ipaddress.ip_address, default=ipaddress.ip_address("127.0.0.1"),
                        help="address to listen on; 0.0.0.0 is the whole network's, unencrypted")
    parser.add_argument("--root", default=str(provenance.ROOT), help="folder that holds notebooks, runs and data")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = [str(HERE / "share"), os.environ.get("JUPYTER_PATH", "")]  # where Voila looks for templates
    os.environ["JUPYTER_PATH"] = os.pathsep.join(path for path in paths if path)
    root = Path(options.root).absolute()
    os.chdir(root / "notebooks")
    token = None if options.ip.is_loopback else secrets.token_urlsafe(24)
    print(f"The app: {address(options.ip, options.port, token)}   (Ctrl-C ends it)", flush=True)
    from voila.app import Voila

    Voila.launch_instance(argv=settings(root, options.port, options.ip, token))
    return 0


if __name__ == "__main__":
    sys.exit(main())
