"""Timings that can be compared on a noisy machine. Needs NumPy only.

What is compared takes turns within one run, in a new random order every round: a machine that slows down slows all
sides of a ratio. Results are medians and quartiles; a ratio is taken within each round first.
"""

import time

import numpy as np


def interleave(tasks, repeats, warmup=1, seed=0, clock=time.perf_counter, progress=None):
    """Seconds each task took in each round: dict of float arrays (repeats,), by the keys of `tasks`.

    tasks: key -> a function without arguments. `warmup` calls of each do not count. progress: wraps the rounds, for
    example `tqdm.tqdm`. ValueError if repeats is below 1 or warmup below 0.
    """
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}. Received: {name}={value}")
    keys, seconds = list(tasks), {key: np.zeros(repeats) for key in tasks}
    for key in keys:
        for _ in range(warmup):
            tasks[key]()
    for turn in (progress or iter)(range(repeats)):
        for key in (keys[n] for n in np.random.default_rng([seed, turn]).permutation(len(keys))):
            start = clock()
            tasks[key]()
            seconds[key][turn] = clock() - start
    return seconds


def quartiles(values):
    """(median, q1, q3) of a sample, as floats."""
    q1, median, q3 = np.percentile(np.asarray(values, float), [25, 50, 75])
    return float(median), float(q1), float(q3)


def speedup(seconds, baseline):
    """How many times faster than `baseline`, round by round: (median, q1, q3)."""
    return quartiles(np.asarray(baseline) / np.asarray(seconds))
