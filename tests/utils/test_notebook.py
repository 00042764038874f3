import json
import shlex
import subprocess
import sys

import nbformat
import pytest

from covidlib.utils import notebook

CHECK = "from covidlib.utils.notebook import strict\nfound = strict(globals())\nprint(found)"


def make(folder, *sources):
    """A notebook whose first cell is tagged `parameters`."""
    content = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    content.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    content.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "example.ipynb"
    nbformat.write(content, path)
    return path


@pytest.fixture
def example(tmp_path):
    return make(tmp_path, "epochs: int = 2  # passes over the training slices\nvariant: str = 'improved'", CHECK,
                "if epochs == 0:\n    raise ValueError('epochs must be at least 1. Received: epochs=0')",
                "open('left.txt', 'w').write(variant)")


def test_executes_in_the_notebooks_folder_and_writes_the_output_once_whole(example, tmp_path):
    output = notebook.execute(example, tmp_path / "out" / "done.ipynb", {"epochs": 1})
    cells = nbformat.read(output, 4).cells
    assert "'epochs': 1" in "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
    assert (tmp_path / "left.txt").read_text() == "improved"
    assert [path.name for path in output.parent.iterdir()] == ["done.ipynb"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "left.txt", "example.ipynb"}, "no sockets left"


@pytest.mark.parametrize("path, output, given, message", [
    ("example.ipynb", "out.ipynb", ["-p", "epoch", "3"], "epoch='3' (did you mean epochs?)"),
    ("example.ipynb", "out.ipynb", ["-p", "epochs", "many"], "epochs must be of type int. Received: epochs='many'"),
    ("no.ipynb", "out.ipynb", [], "no notebook at"),
    ("example.ipynb", "", [], "this is a folder. Received: output=")])
def test_what_is_refused_before_a_kernel_starts(example, tmp_path, capsys, path, output, given, message):
    assert notebook.main([str(tmp_path / path), str(tmp_path / output), *given]) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["example.ipynb"]


def test_a_failed_cell_leaves_no_output_only_a_failed_notebook(example, tmp_path, capsys):
    assert notebook.main([str(example), str(tmp_path / "out.ipynb"), "-p", "epochs", "0"]) == 1
    message = capsys.readouterr().err
    assert "ValueError: epochs must be at least 1. Received: epochs=0" in message and "out.failed.ipynb" in message
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()
    assert notebook.main([str(example), str(tmp_path / "out.ipynb"), "-p", "epochs", "1"]) == 0
    assert not (tmp_path / "out.failed.ipynb").exists()


def test_parameters_from_a_file_give_way_to_those_of_the_command_line(example, tmp_path):
    (tmp_path / "given.yaml").write_text("epochs: 5\nvariant: resnet50\n")
    notebook.main([str(example), str(tmp_path / "out.ipynb"), "-f", str(tmp_path / "given.yaml"), "-p", "epochs", "7"])
    text = (tmp_path / "out.ipynb").read_text()
    assert "'epochs': 7" in text and "'variant': 'resnet50'" in text


def test_plain_papermill_is_held_to_the_declaration_too(example, tmp_path):
    import papermill

    with pytest.raises(papermill.PapermillExecutionError, match="did you mean epochs"):
        papermill.execute_notebook(str(example), str(tmp_path / "out.ipynb"), {"epoch": 3}, progress_bar=False)


@pytest.mark.parametrize("declared, value, accepted", [
    ("float", 1, True), ("int", 1.0, False), ("int", True, False), ("list", [1], True), ("list", "1", False),
    ("bool", False, True), ("str", None, False)])
def test_types(declared, value, accepted):
    if accepted:
        notebook.check({"x": value}, {"x": declared})
    else:
        with pytest.raises(TypeError, match="x must be of type"):
            notebook.check({"x": value}, {"x": declared})


def test_a_kernel_that_dies_is_reported(tmp_path, capsys):
    path = make(tmp_path, "epochs: int = 2", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert notebook.main([str(path), str(tmp_path / "out.ipynb")]) == 1
    assert "example.ipynb: its kernel died, as where memory runs out" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["example.ipynb"]


@pytest.mark.parametrize("output", ["kept/out.ipynb", "kept/deep/out.ipynb"])
def test_an_output_that_cannot_be_written_is_refused_at_once(example, tmp_path, bound, repository, output):
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o555)
    done = subprocess.run([*bound, sys.executable, "-m", "covidlib.utils.notebook", example, tmp_path / output],
                          cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: nothing can be written to this folder (Permission denied): give yourself the right to, or take "
        f"another one. Received: folder={(tmp_path / output).parent}\n")
    assert not list(kept.iterdir()) and not (tmp_path / "left.txt").exists()


@pytest.mark.parametrize("number, hint", [("EACCES", True), ("EROFS", True), ("ENOENT", False)])
def test_a_cell_that_may_not_write_says_what_to_do(tmp_path, capsys, number, hint):
    path = make(tmp_path, "epochs: int = 2",
                f"import errno, os\nraise OSError(errno.{number}, os.strerror(errno.{number}), '../runs')")
    assert notebook.main([str(path), str(tmp_path / "out.ipynb")]) == 1
    message = capsys.readouterr().err
    assert "'../runs'" in message and ("Give yourself the right to write there" in message) == hint


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """A function of command line arguments that returns the parameters which a notebook would get, or the error."""
    import papermill

    path = make(tmp_path, "rate: float = 0.1\nname: str = 'a'\ncount: int = 0\nflag: bool = False\nseveral: list = []")
    got = []

    def taken(source, output, parameters, **_):
        got.append(parameters)
        with open(output, "w") as file:
            file.write("{}")

    monkeypatch.setattr(papermill, "execute_notebook", taken)

    def call(capsys, *arguments):
        got.clear()
        code = notebook.main([str(path), str(tmp_path / "out.ipynb"), *map(str, arguments)])
        return got[0] if code == 0 else capsys.readouterr().err

    return call


TYPED = [("rate", "1e-4", 1e-4), ("rate", "3e-05", 3e-05), ("rate", "1", 1), ("count", "010", 10), ("count", "-3", -3),
         ("name", "no", "no"), ("name", "010", "010"), ("name", "1e-4", "1e-4"), ("name", "", ""), ("name", "~", "~"),
         ("name", "/data/case #3", "/data/case #3"), ("name", "/data/a: b", "/data/a: b"), ("name", " a ", " a "),
         ("name", "C:\\new\\table", "C:\\new\\table"), ("name", "/\U00020bb7/é/'\"", "/\U00020bb7/é/'\""),
         ("name", "[1, 2]", "[1, 2]"), ("name", "{a}", "{a}"), ("name", "null", "null"), ("name", "a\nb", "a\nb"),
         ("flag", "true", True), ("flag", "No", False), ("several", "[27, 6, 27]", [27, 6, 27]), ("several", "[]", []),
         ("several", "[resnet50, no]", ["resnet50", "no"]), ("several", "[a, [b]]", ["a", ["b"]]),
         ("several", "[1e-4, 'a, b']", [1e-4, "a, b"]),
         ("rate", "-1E-4", -1e-4), ("name", "-x", "-x"),
         ("several", '["a, b", "c"]', ["a, b", "c"])]


@pytest.mark.parametrize("name, text, value", TYPED)
def test_values_are_read_by_the_annotation(typed, capsys, name, text, value):
    assert typed(capsys, "-p", name, text) == {name: value}


@pytest.mark.parametrize("name, text", [("count", "1.5"), ("count", "many"), ("rate", "fast"), ("flag", "2"),
                                        ("several", "a, b"), ("count", ""), ("rate", "1,5"), ("rate", "nan"),
                                        ("several", "[1,,2]"), ("several", "[a, \"b]")])
def test_what_the_annotation_does_not_allow_is_named(typed, capsys, name, text):
    assert f"Received: {name}={text if text == 'nan' else repr(text)}" in typed(capsys, "-p", name, text)


def test_a_parameter_that_is_given_twice_is_refused(typed, capsys, tmp_path):
    assert "command line names a parameter twice. Received: count" in typed(capsys, "-p", "count", 1, "-p", "count", 2)
    for text in ('{"count": 1, "count": 2}', "count: 1\ncount: 2\n"):
        (tmp_path / "given").write_text(text)
        assert "given names a parameter twice. Received: count" in typed(capsys, "-f", tmp_path / "given")
    assert "Is a directory" in typed(capsys, "-f", tmp_path)
    (tmp_path / "given").write_bytes("count: 010\nseveral: [a, [b, {c: d}]]\n".encode("utf-16"))
    assert typed(capsys, "-f", tmp_path / "given") == {"count": 10, "several": ["a", ["b", {"c": "d"}]]}


@pytest.mark.parametrize("text, values", [
    ("", {}), ("# nothing\n", {}), ("{}", {}), ("name:\n", {"name": ""}),
    ('{"rate": 3e-05, "name": "no"}', {"rate": 3e-05, "name": "no"}),
    ('{"name": "/\\ud842\\udfb7"}', {"name": "/\U00020bb7"}),
    ("rate: 1e-4\nname: no\ncount: 010\nflag: yes\n", {"rate": 1e-4, "name": "no", "count": 10, "flag": True}),
    ("name: 2020-01-01\nseveral: [no, 1, 'x']\n", {"name": "2020-01-01", "several": ["no", 1, "x"]}),
    ("several:\n  - 27\n  - a b\nname: '/data/case #3'\n", {"several": [27, "a b"], "name": "/data/case #3"}),
    ("\ufeffname: 12:30:00\n", {"name": "12:30:00"})])
def test_files_of_parameters(typed, capsys, tmp_path, text, values):
    (tmp_path / "given").write_text(text, encoding="utf-8")
    assert typed(capsys, "-f", tmp_path / "given") == values


@pytest.mark.parametrize("text, message", [
    ("- a\n", "must hold a line `name: value`"), ("[]", "must hold a line"), ("[a]: b", "must hold a line"),
    ("name: a\nname: b\n", "twice"), ("rate:\n", "rate must be of type float. Received: rate=''"),
    ("name: ~\n", "Received: name=None"), ("rate: [1]\n", "Received: rate=[1]")])
def test_files_that_hold_no_parameters_are_named(typed, capsys, tmp_path, text, message):
    (tmp_path / "given.yaml").write_text(text)
    assert message in typed(capsys, "-f", tmp_path / "given.yaml")


def test_texts_reach_the_kernel_as_they_were_typed(example, tmp_path):
    text = "/data/\U00020bb7 #3: 'a' \"b\" \\n {x} %"
    assert notebook.main([str(example), str(tmp_path / "out.ipynb"), "-p", "variant", text]) == 0
    assert (tmp_path / "left.txt").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name, value", [("rate", 0.00003), ("rate", 1), ("name", "/data/\U00020bb7 é 'x' #1"),
                                         ("name", ""), ("count", 7), ("flag", True), ("several", [1, "a, b"]),
                                         ("several", [])])
def test_the_workflow_hands_values_on_as_they_are(typed, capsys, repository, name, value):
    snakefile = (repository / "workflow" / "Snakefile").read_text(encoding="utf-8")
    scope = {"shlex": shlex, "json": json, "sys": sys, "GIVEN": {"example": {name: value}}}
    exec(snakefile[snakefile.index("def call("):].split("\n\n\n")[0], scope)
    _, _, _, path, output, *given = shlex.split(scope["call"]("example", "out.ipynb"))
    assert (path, output) == ("notebooks/example.ipynb", "out.ipynb") and typed(capsys, *given) == {name: value}
