"""Strict papermill: notebooks run with known parameters of the right type, or not at all.

papermill only warns of a parameter that a notebook does not have, and leaves a half-executed notebook
at the output path when a cell fails. `execute` refuses the first and hides the second; `strict`
is the same check inside the notebook, for those who call papermill itself or edit the cell by hand.

    python -m covidlib.run notebooks/03_training.ipynb out.ipynb -p epochs 2 -p variant improved
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import sys
import tempfile
from pathlib import Path

from covidlib.files import require_writable

TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list}


def check(given: dict, declared: dict[str, str], notebook: str = "this notebook") -> None:
    """Compare parameters with a notebook's declaration (name to the annotation's name).

    Raises ValueError naming every unknown parameter, with the nearest known one, and TypeError for
    a value that is not of the annotated type.
    """
    unknown = [name for name in given if name not in declared]
    if unknown:
        hints = []
        for name in unknown:
            near = difflib.get_close_matches(name, declared, n=1)
            hints.append(f"{name}={given[name]!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        raise ValueError(f"{notebook} has no parameter {', '.join(hints)}. Its parameters: {', '.join(declared)}.")
    for name, value in given.items():
        wanted = TYPES.get(declared[name], object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted not in (bool, object)):
            raise TypeError(f"{name} must be of type {declared[name]}. Received: {name}={value!r}")


def strict(scope: dict) -> dict:
    """Check a notebook's own parameters; call it as `parameters = strict(globals())`.

    The annotated names of the parameters cell are the declaration. Names that papermill injected
    without being declared, and values of another type, raise as in `check`. Returns the parameters.
    """
    declared = {name: getattr(kind, "__name__", str(kind)) for name, kind in scope["__annotations__"].items()}
    injected = {}
    for source in scope.get("In", []):
        if source.startswith("# Parameters\n"):
            names = [target.id for node in ast.parse(source).body if isinstance(node, ast.Assign)
                     for target in node.targets]
            injected = {name: scope[name] for name in names}
    check(injected, declared)
    parameters = {name: scope[name] for name in declared}
    check(parameters, declared)
    return parameters


def execute(notebook, output, parameters: dict) -> Path:
    """Run `notebook` with `parameters`, its own folder as working directory, and write it to `output`.

    `output` appears only when every cell has run; a failed notebook is kept beside it as
    `<output stem>.failed.ipynb`. Raises FileNotFoundError, PermissionError, ValueError and TypeError before a
    kernel is started, papermill.PapermillExecutionError when a cell fails.
    """
    import papermill

    notebook, output = Path(notebook), Path(output)
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook at {notebook}. Run from the repository's root.")
    declared = {name: entry["inferred_type_name"].split(".")[-1]
                for name, entry in papermill.inspect_notebook(str(notebook)).items()}
    check(parameters, declared, notebook.name)
    if output.is_dir():
        raise ValueError(f"a notebook is written to a file, and this is a folder. Received: output={output}")
    require_writable(output.parent)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="covidlib-") as sockets:
            papermill.execute_notebook(
                str(notebook), str(partial), parameters=parameters, cwd=str(notebook.parent), kernel_name="python3",
                kernel_manager_class=_kernel_manager(sockets), progress_bar={"desc": output.stem},
                request_save_on_cell_execute=False)
    except papermill.PapermillExecutionError:
        os.replace(partial, failed)
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, output)
    return output


def _kernel_manager(sockets):
    """A manager whose kernels talk over files in `sockets`, where there are such, not over ports they race for."""
    from jupyter_client.manager import AsyncKernelManager

    if os.name == "nt":
        return AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        transport = "ipc"
        ip = str(Path(sockets, "kernel"))

    return KernelManager


def main(arguments=None) -> int:
    """Command line: see the module's docstring. Values are read as YAML, so `[27, 6, 27]` is a list."""
    import yaml

    parser = argparse.ArgumentParser(prog="python -m covidlib.run", description=__doc__.split("\n")[0])
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("-f", metavar="YAML", help="file of parameters; -p goes before it")
    options = parser.parse_args(arguments)
    try:
        parameters = yaml.safe_load(Path(options.f).read_text(encoding="utf-8")) if options.f else {}
        parameters |= {name: yaml.safe_load(value) for name, value in options.p}
        print(execute(options.notebook, options.output, parameters))
    except (FileNotFoundError, PermissionError, ValueError, TypeError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ == "DeadKernelError":
            print(f"error: {Path(options.notebook).name}: its kernel died, as where memory runs out. Free some "
                  "(JOBS=1, a smaller batch_size); finished steps and epochs are kept, and the same command goes on.",
                  file=sys.stderr)
            return 1
        if type(error).__name__ != "PapermillExecutionError":
            raise
        mend = ("Give yourself the right to write there, or take another folder.\n"
                if re.match(r"\[Errno (1|13|30)\]", error.evalue) else "")
        print(f"error: {Path(options.notebook).name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n{mend}"
              f"The notebook as far as it got: {Path(options.output).with_suffix('.failed.ipynb')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
