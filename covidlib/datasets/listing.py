"""Files in a folder of images: which are passed over, and what is wrong with the others, before anything is decoded.

For data sets, scans and predictions alike, hidden files and what operating systems, servers and archives leave behind
are passed over silently. Files that are no images (NoImage) are reported by the callers.
"""

import fnmatch
import os
import posixpath
import re
import unicodedata

from covidlib.datasets import inside
from covidlib.readers import ReadError

_LEFT_BEHIND = (".*", "__macosx", "lost+found", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
                "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
                "icon\r", "dicomdir", "~$*", "__pycache__")
_IS_LEFT_BEHIND = re.compile("|".join(map(fnmatch.translate, _LEFT_BEHIND))).match


def is_left_behind(name):
    """Whether a file or folder of this name is nobody's data, but left by a system."""
    return bool(_IS_LEFT_BEHIND(name.lower()))


def find(root, *folders):
    """(paths, problems): usable files in folders of `root` and below, as paths relative to `root`, sorted.

    What is_left_behind is passed over. An empty file, a link that leads out of `root` or nowhere and a linked folder is
    a ReadError each. ValueError where one of `folders` leads out of `root`.
    """
    folders = [(inside(root, folder), "" if str(folder) == "." else f"{folder}/") for folder in folders]
    paths, problems = [], []
    while folders:
        place, prefix = folders.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if is_left_behind(entry.name):
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

    `found` is what `find` gave. Paths may be written as in Windows, with ./ or in another Unicode form. A listed file
    that is absent, or that has two labels or two parts of the split, is a ReadError and none of its rows is
    kept; a row that only repeats another is dropped.
    """
    paths, problems = found
    known = {os.path.relpath(problem.path, root).replace(os.sep, "/") for problem in problems if problem.path}
    table = table.assign(path=as_found(table.path, paths)).drop_duplicates(["path", "label", "split"])
    absent = ~table.path.isin(paths)
    twice = table.path.duplicated(keep=False) & ~absent
    missing = [path for path in table.path[absent].unique() if path not in known]
    problems = [*problems, *(_missing(root, path, where) for path in missing)]
    for path, rows in table[twice].groupby("path", sort=False):
        both = " and ".join(sorted({" ".join(filter(None, pair)) for pair in zip(rows.label, rows.split, strict=True)}))
        problems.append(ReadError(root / path, f"is listed in {where} as {both}", "Keep the line that is right"))
    return table[~absent & ~twice].reset_index(drop=True), problems


def as_found(listed, paths):
    """Series of the paths that a list names, as they are spelled in `paths`, where one of them is meant."""
    known = set(paths)
    if listed.isin(known).all():
        return listed
    spelled = {_spelling(path): path for path in reversed(paths)}
    return listed.map(lambda path: path if path in known else spelled.get(_spelling(path), path))


def _spelling(path):
    path = unicodedata.normalize("NFC", path.replace("\\", "/")).strip()
    return posixpath.normpath(path) if path else path


def unlisted(table, found):
    """Number of usable files that no row of `table` names."""
    return len(set(found[0]) - set(table.path))


def require_images(root, table, classes, dataset):
    """FileNotFoundError naming the classes of which no file was found."""
    absent = sorted(set(classes) - set(table.label))
    if absent:
        raise FileNotFoundError(f"{root} is not a {dataset} folder: it holds no images of {', '.join(absent)}.")


def _wrong(root, entry):
    if entry.is_symlink():
        try:
            inside(root, os.path.relpath(entry.path, root))
        except ValueError:
            return "is a link that leads out of the folder", "Put the file itself there"
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
    path = _spelling(path)
    try:
        inside(root, path)
    except ValueError:
        return ReadError(root / path, f"is listed in {where} and lies outside data_root", f"Correct {where}")
    if not path:
        return ReadError(root, f"is listed in a row of {where} without a path", f"Correct {where}")
    if (root / path).is_dir():
        return ReadError(root / path, f"is listed in {where} and is a folder", "List the files in it")
    if (root / path).exists():
        return ReadError(root / path, f"is listed in {where} and is hidden or a system's", "Move or rename it")
    return ReadError(root / path, f"is listed in {where} and does not exist", "Unpack the set completely")
