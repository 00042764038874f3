"""pyproject.toml, requirements.lock and environment.yml name the same things."""

import re
import runpy
import sys
import tomllib
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def lock_module(repository):
    return SimpleNamespace(**runpy.run_path(repository / "workflow" / "lock.py"))


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock(repository):
    return (repository / "requirements.lock").read_text()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_meets_every_requirement_of_the_project(project, lock, lock_module, python):
    pins = lock_module.locked(lock, python)
    for requirement in lock_module.direct(project):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not locked: make lock"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is not {requirement}: make lock"


def test_lock_pins_with_hashes_and_no_address(lock):
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==[^ ]+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in lock and "index-url" not in lock and "find-links" not in lock


@pytest.mark.parametrize("system, platform_system, os_name", [
    ("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt")])
def test_lock_covers_the_three_systems(lock, system, platform_system, os_name):
    environment = {"sys_platform": system, "platform_system": platform_system, "os_name": os_name}
    names = {requirement.name for line in lock.splitlines() if re.match(r"[a-z0-9]", line)
             for requirement in [Requirement(line.rstrip(" \\"))]
             if requirement.marker is None or requirement.marker.evaluate(environment)}
    assert {"tensorflow", "keras", "jupyterlab", "papermill", "snakemake", "nbval"} <= names
    assert ("pywinpty" in names) == (system == "win32")


def test_conda_environment_names_the_locked_versions(repository, project, lock, lock_module):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if str(d).startswith("python=")).split("=")[1]
    named = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    pins = lock_module.locked(lock, python)
    assert named == {name: pins[name] for name in
                     {canonicalize_name(requirement.name) for requirement in lock_module.direct(project)}}


def test_this_interpreter_runs_the_locked_versions(lock, lock_module):
    pins = lock_module.locked(lock, f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in ("keras", "tensorflow", "numpy", "papermill", "nbval", "snakemake"):
        assert version(name) == pins[name], f"{name}: make env"


def test_every_dependency_is_explained(repository, project):
    page = (repository / "docs/dependencies.md").read_text().lower()
    assert "docs/dependencies.md" in (repository / "README.md").read_text()
    for text in project["dependencies"] + sum(project["optional-dependencies"].values(), []):
        assert f"`{Requirement(text).name.lower()}`" in page, f"docs/dependencies.md gives no reason for {text}"
