"""What lies in a data set's folder, and what is wrong with it, before anything is decoded."""

import os

import pandas as pd

from covidlib.ct import ReadError
from covidlib.datasets import inside


def find(root, folder):
    """(paths, problems): usable files in root/folder and below, as paths relative to `root`, sorted.

    Hidden files are passed over, and so are Thumbs.db and desktop.ini. An empty file, a link that leads out of
    `root` or nowhere and a linked folder is a ReadError each. ValueError where `folder` itself leads out of `root`.
    """
    top = inside(root, folder)
    paths, problems, folders = [], [], [(top, "" if str(folder) == "." else f"{folder}/")]
    while folders:
        place, prefix = folders.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in ("Thumbs.db", "desktop.ini"):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                    continue
                wrong = _wrong(root, entry)
                if wrong:
                    problems.append(ReadError(entry.path, *wrong))
                else:
                    paths.append(prefix + entry.name)
    return sorted(paths), sorted(problems, key=str)


def settle(root, table, found, where):
    """(rows that can be used, problems) of `table` (path, label, split and more), as listed in the file `where`.

    `found` is what `find` gave. A listed file that is absent, or that stands under two labels or in two parts of
    the split, is a ReadError and none of its rows is kept; a row that only repeats another is dropped.
    """
    paths, problems = found
    known = {os.path.relpath(problem.path, root).replace(os.sep, "/") for problem in problems if problem.path}
    table = table.drop_duplicates(["path", "label", "split"])
    absent = ~table.path.isin(paths)
    twice = table.path.duplicated(keep=False) & ~absent
    missing = [path for path in table.path[absent].unique() if path not in known]
    problems = [*problems, *(_missing(root, path, where) for path in missing)]
    for path, rows in table[twice].groupby("path", sort=False):
        both = " and ".join(sorted({" ".join(filter(None, pair)) for pair in zip(rows.label, rows.split, strict=True)}))
        problems.append(ReadError(root / path, f"is listed in {where} as {both}", "Keep the line that is right"))
    return table[~absent & ~twice].reset_index(drop=True), problems


def unlisted(table, found):
    """Number of usable files that no row of `table` names."""
    return len(set(found[0]) - set(table.path))


def require_images(root, table, classes, dataset):
    """FileNotFoundError naming the classes of which no file was found."""
    absent = sorted(set(classes) - set(table.label) if isinstance(table, pd.DataFrame) else set(classes))
    if absent:
        raise FileNotFoundError(f"{root} is not a {dataset} folder: it holds no images of {', '.join(absent)}.")


def _wrong(root, entry):
    if entry.is_symlink():
        try:
            inside(root, os.path.relpath(entry.path, root))
        except ValueError:
            return "is a link that leads out of data_root", "Put the file itself there"
        if not os.path.exists(entry.path):
            return "is a link to nothing", "Put the file itself there"
        if entry.is_dir():
            return "is a link to a folder", "Put the folder itself there"
    if not entry.is_file():
        return "is no ordinary file", "Remove it"
    if entry.stat().st_size == 0:
        return "is empty (0 bytes)", "Copy or download it again"
    return None


def _missing(root, path, where):
    try:
        inside(root, path)
    except ValueError:
        return ReadError(root / path, f"is listed in {where} and lies outside data_root", f"Mend {where}")
    return ReadError(root / path, f"is listed in {where} and does not exist", "Unpack the set completely")
