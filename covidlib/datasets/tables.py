"""CSV files that come with data sets, as people write them."""

import csv
import io
import re
from itertools import zip_longest

import pandas as pd

from covidlib.utils.files import read_text

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
         "testing": "test"}  # names of the parts, in small letters
_KNOWN = ("path", "label", "patient", "split", "slice_index", "source", "document", "series", "mask")
_SHORT = 16  # characters of a field of which one copy is held: labels, parts, sources


def read_table(path):
    """A CSV with at least the columns path and label, all texts, labels stripped, see read_csv.

    ValueError naming the file for no rows, or columns that are missing or spelled otherwise.
    """
    table = read_csv(path)
    alike = [name for name in table.columns if name not in _KNOWN and name.lower() in _KNOWN]
    if {"path", "label"} - set(table.columns) or alike or not len(table):
        raise ValueError(f"{path} needs columns path,label (and may have {','.join(_KNOWN[2:])}), in small letters, "
                         f"and at least one row. Received: columns={list(table.columns)}, rows={len(table)}")
    table["label"] = table.label.str.strip()
    if "split" in table:
        table["split"] = table.split.map(lambda name: PARTS.get(name.strip().lower(), name.strip()))
    return table


def read_csv(path):
    """A CSV as people have it, all texts: with or without a BOM, with commas, semicolons or tabs, with empty rows.

    ValueError, with file and line, for another encoding, a row longer than the header, or a column twice.
    """
    text = read_text(path)
    head, _, rest = text.lstrip().partition("\n")
    if re.fullmatch(r'"?sep=.?"?', head.strip(), re.IGNORECASE):  # a hint to Excel
        text = "\n" + rest
    header = next((line for line in text.splitlines() if line.strip(" \t,;")), "")
    delimiter = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(row for row in rows if any(field.strip() for field in row))]
        while names and not names[-1]:
            names.pop()
        named = [name for name in names if name]  # without the number that some programs give each row
        if len(set(named)) < len(named):
            raise ValueError(f"{path} has a column twice. Received: columns={names}")
        columns, known = [[] for _ in names], {}
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            if any(field.strip() for field in row[len(names):]):
                raise ValueError(f"{path}, line {rows.line_num} has {len(row)} fields where the header has "
                                 f"{len(names)}: put names that hold a {delimiter!r} in double quotes. "
                                 f"Received: {delimiter.join(row)[:120]}")
            for column, field in zip_longest(columns, row[:len(names)], fillvalue=""):
                column.append(known.setdefault(field, field) if len(field) < _SHORT else field)
    except StopIteration:
        raise ValueError(f"{path} cannot be read as a CSV (it is empty). It needs a row for each slice.") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a CSV ({error}). Save it as CSV in UTF-8, a row for each "
                         "slice.") from error
    return pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=str)[named]
