"""Words for messages."""

import difflib


def nearest(name, known) -> str:
    """The name among `known` that is spelled most like `name`; "" where none is alike."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1)), "")


def first_few(texts, count) -> str:
    """The first `count` texts, joined by semicolons; "..." stands for the others."""
    texts = list(texts)
    return "; ".join(texts[:count] + ["..."] * (len(texts) > count))
