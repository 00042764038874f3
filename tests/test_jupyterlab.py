"""Run All of every notebook, in order, in a real JupyterLab in Chromium: `pytest -m lab`, ten minutes on two cores."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_notebooks import NAMES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(one => one.textContent);
    return prompts.length > 0 && prompts.every(text => /\\[\\d+\\]/.test(text));
}"""


@pytest.fixture(scope="module")
def lab(repository, tmp_path_factory, chromium):
    """(address, folder) of a JupyterLab over a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(repository / "notebooks", folder / "notebooks",
                    ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "pyproject.toml").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_RUNTIME_DIR": str(folder / "run")}
    log = open(folder / "lab.log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--allow-root",
         "--IdentityProvider.token=", "--LabApp.news_url=None", "--LabApp.check_for_updates_class="
         "jupyterlab.NeverCheckForUpdate", f"--ServerApp.root_dir={folder}"],
        stdout=log, stderr=log, env=os.environ | own, cwd=folder, start_new_session=True)
    for _ in range(120):
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", folder
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(20)


@pytest.mark.parametrize("name", [*NAMES, "app"])
def test_run_all(lab, chromium, name):
    address, _ = lab
    page = chromium.new_page(viewport={"width": 1400, "height": 20_000})  # so tall that every cell is drawn
    page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3000)  # the kernel is chosen
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(FINISHED, timeout=800_000)
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], "
                          ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg")
    assert errors.count() == 0, errors.first.inner_text()
    if name == "app":
        page.locator(".covidlib-notice").wait_for()
        page.get_by_label("Phantom").select_option(index=1)
        answers = page.locator(".covidlib-pictures h3")
        answers.first.wait_for(timeout=120_000)
        assert answers.all_inner_texts() == ["improved"], "the network that notebook 03 trained answers"
    page.close()
