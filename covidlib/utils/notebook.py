"""Strict papermill: notebooks run with known parameters of the right type, or not at all.

papermill only warns of a parameter that a notebook does not have, and leaves a half-executed notebook
at the output path when a cell fails. `execute` refuses the first and hides the second; `strict`
is the same check inside the notebook, for those who call papermill itself or edit the cell by hand.

    python -m covidlib.utils.notebook notebooks/03_training.ipynb out.ipynb -p epochs 2 -p variant improved

A value is read by its parameter's annotation: a text is what was typed, `010` is ten.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import yaml

from covidlib.utils.files import read_text, require_writable
from covidlib.utils.text import nearest

TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def check(given: dict, declared: dict[str, str], notebook: str = "this notebook") -> None:
    """Compare parameters with a notebook's declaration (name to the annotation's name).

    Raises ValueError naming every unknown parameter, with the nearest known one, and TypeError for
    a value that is not of the annotated type.
    """
    unknown = [name for name in given if name not in declared]
    if unknown:
        hints = []
        for name in unknown:
            near = nearest(name, declared)
            hints.append(f"{name}={given[name]!r}" + (f" (did you mean {near}?)" if near else ""))
        raise ValueError(f"{notebook} has no parameter {', '.join(hints)}. Its parameters: {', '.join(declared)}.")
    for name, value in given.items():
        wanted = TYPES.get(declared[name], object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted not in (bool, object)):
            raise TypeError(f"{name} must be of type {declared[name]}. Received: {name}={value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number. Received: {name}={value!r}")


def parse(text: str, kind: str):
    """The value of type `kind` (an annotation's name) that `text` spells; `text` itself where it spells none.

    A list is JSON or YAML: [27, 6, 27], ["a, b", "c"], [resnet50, no]; bare words in it are texts.
    """
    readers = {"int": int, "float": float, "bool": lambda word: _WORDS[word.strip().lower()], "list": _read_list,
               "entry": json.loads}
    try:
        return readers.get(kind, str)(text)
    except (KeyError, ValueError):
        return text


def _read_list(text):
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        node = yaml.compose(text)
    except yaml.YAMLError as error:
        raise ValueError(text) from error
    return _from_node(node, "list") if isinstance(node, yaml.SequenceNode) else text


def _from_node(node, kind):
    """The value of a YAML node: quoted scalars are texts, plain ones are read as `kind`, in a list as JSON."""
    if isinstance(node, yaml.SequenceNode):
        return [_from_node(entry, "entry") for entry in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key.value: _from_node(value, "str") for key, value in node.value}
    if node.style is None and node.value.lower() in ("null", "~"):
        return None
    return parse(node.value, kind) if node.style is None or kind in ("int", "float", "bool") else node.value


def read_file(path, declared: dict[str, str]) -> dict:
    """Parameters of a YAML or JSON file: none of an empty one; plain values are read as in `parse`.

    ValueError for a file that is no mapping of names to values, or names one twice.
    """
    text = read_text(path)
    try:  # YAML's parser takes most of JSON, not its pairs of surrogates
        pairs = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError:
        pairs = None
    if isinstance(pairs, tuple):
        return _unique(path, [(name, parse(value, declared.get(name, "")) if isinstance(value, str) else value)
                              for name, value in pairs])
    node = yaml.compose(text) or yaml.MappingNode("", [])
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise ValueError(f"{path} must hold a line `name: value` for each parameter. Received: {text.splitlines()[0]}")
    return _unique(path, [(key.value, _from_node(value, declared.get(key.value, "str"))) for key, value in node.value])


def _unique(where, pairs) -> dict:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where} names a parameter twice. Received: {', '.join(twice)}")
    return dict(pairs)


def strict(scope: dict) -> dict:
    """Check a notebook's own parameters; call it as `parameters = strict(globals())`.

    The annotated names of the parameters cell are the declaration. Names that papermill injected
    without being declared, and values of another type, raise as in `check`. Returns the parameters.
    """
    declared = {name: getattr(kind, "__name__", str(kind)) for name, kind in scope["__annotations__"].items()}
    injected = [source for source in scope.get("In", []) if source.startswith("# Parameters\n")][-1:]
    names = [target.id for source in injected for node in ast.parse(source).body if isinstance(node, ast.Assign)
             for target in node.targets]
    check({name: scope[name] for name in dict.fromkeys([*names, *declared])}, declared)
    return {name: scope[name] for name in declared}


def declaration(notebook) -> dict[str, str]:
    """Names of a notebook's parameters and of their annotations. Raises FileNotFoundError."""
    import papermill

    if not Path(notebook).is_file():
        raise FileNotFoundError(f"no notebook at {notebook}. Run from the repository's root.")
    return {name: entry["inferred_type_name"].split(".")[-1]
            for name, entry in papermill.inspect_notebook(str(notebook)).items()}


def execute(notebook, output, parameters: dict) -> Path:
    """Run `notebook` with `parameters`, its own folder as working directory, and write it to `output`.

    `output` appears only when every cell has run; a failed notebook is kept as `<output stem>.failed.ipynb`.
    Raises FileNotFoundError, PermissionError, ValueError and TypeError before a kernel is started,
    papermill.PapermillExecutionError when a cell fails.
    """
    import papermill

    notebook, output = Path(notebook), Path(output)
    check(parameters, declaration(notebook), notebook.name)
    if output.is_dir():
        raise ValueError(f"a notebook is written to a file, and this is a folder. Received: output={output}")
    require_writable(output.parent)
    partial, failed = output.with_name(f".{output.stem}.partial.ipynb"), output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="covidlib-") as sockets:
            papermill.execute_notebook(
                str(notebook), str(partial), parameters=parameters, cwd=str(notebook.parent), kernel_name="python3",
                kernel_manager_class=_kernel_manager(sockets), progress_bar={"desc": output.stem},
                request_save_on_cell_execute=False)
        os.replace(partial, output)
    except papermill.PapermillExecutionError:
        os.replace(partial, failed)
        raise
    finally:
        partial.unlink(missing_ok=True)
    return output


def _kernel_manager(sockets):
    """A manager whose kernels talk over files in `sockets`, where there are such, not over ports they race for."""
    from jupyter_client.manager import AsyncKernelManager

    if os.name == "nt":
        return AsyncKernelManager
    return type("KernelManager", (AsyncKernelManager,), {"transport": "ipc", "ip": str(Path(sockets, "kernel"))})


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m covidlib.utils.notebook", description=__doc__.split("\n")[0])
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter; as often as wanted")
    parser.add_argument("-f", metavar="FILE", help="parameters as YAML or JSON; -p goes before it")
    given, others = [], list(sys.argv[1:] if arguments is None else arguments)
    while "-p" in others[:-2]:  # argparse would take the value -1E-4 for an option
        at = others.index("-p")
        given.append(others[at + 1:at + 3])
        del others[at:at + 3]
    options = parser.parse_args(others)
    try:
        declared = declaration(options.notebook)
        parameters = read_file(options.f, declared) if options.f else {}
        parameters |= {name: parse(text, declared.get(name, ""))
                       for name, text in _unique("the command line", given).items()}
        print(execute(options.notebook, options.output, parameters))
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, TypeError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        name, kind = Path(options.notebook).name, type(error).__name__
        if kind == "DeadKernelError":
            message = (f"{name}: its kernel died, as where memory runs out. Free some (JOBS=1, a smaller batch_size); "
                       "finished steps and epochs are kept, and the same command goes on.")
        elif kind == "PapermillExecutionError":
            hint = ("Give yourself the right to write there, or take another folder.\n"
                    if re.match(r"\[Errno (1|13|30)\]", error.evalue) else "")
            message = (f"{name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n{hint}"
                       f"The notebook as far as it got: {Path(options.output).with_suffix('.failed.ipynb')}")
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
