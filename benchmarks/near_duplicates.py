"""Time and memory of the search for near-duplicates, from 1,000 to 100,000 images, beside the exhaustive search.

    python benchmarks/near_duplicates.py [--dataset sarscov2-ct --data-root DIR] [--plot growth.png]

Takes about five minutes on two cores. The images are made from the slices of a set (phantoms unless another is named):
each is one slice, drawn at random, bent by a smooth random displacement (standard deviation 2 of 128 pixels on a 5x5
grid), with its grey values bent (gamma, standard deviation 15 %) and with noise (standard deviation up to 6 of 255).
Every run has a process to itself; memory is what its peak lies above what it held before, images included in neither.
The exponent is the slope of log time over log images, from 10,000 images on where several are such. What the search
finds is a part of what the exhaustive search finds, so that equal numbers of pairs mean that none was lost.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from covidlib import datasets, readers
from covidlib.datasets import near_duplicates

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
EXHAUSTIVE_UP_TO = 10_000
RESULTS = Path(__file__).with_name("results") / "near_duplicates_cpu.csv"
_SIDE = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="phantom")
    parser.add_argument("--data-root")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    hashes, thumbnails = make(slices(arguments.dataset, arguments.data_root), arguments.largest)
    rows = []
    for size in [size for size in SIZES if size <= arguments.largest]:
        for method in (search, exhaustive):
            if method is search or size <= EXHAUSTIVE_UP_TO:
                measured = measure(method, hashes[:size], thumbnails[:size])
                rows.append([arguments.dataset, method.__name__, size, *measured])
                print(*rows[-1], flush=True)
    table = pd.DataFrame(rows, columns=["dataset", "method", "images", "seconds", "peak_mib", "pairs"])
    table["exponent"] = table.method.map({name: exponent(part) for name, part in table.groupby("method")})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    table.round({"seconds": 2, "peak_mib": 0, "exponent": 2}).to_csv(arguments.output, index=False, lineterminator="\n")
    if arguments.plot:
        plot(table, arguments.plot)


def slices(dataset, data_root):
    """uint8 (N, 128, 128): every slice of the set."""
    source = datasets.load(dataset, data_root, slices_per_class=200 if dataset == "phantom" else None)
    images = (readers.read_slice(source.root / row.path, row.slice_index) for row in source.manifest.itertuples())
    return np.array([np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE))) for image in images])


def make(images, count):
    """(hashes (count,), thumbnails (count, 64, 64)) of bent copies of random images."""
    with multiprocessing.get_context("spawn").Pool(initializer=_share, initargs=(images,)) as pool:
        described = pool.map(_bent, range(count), chunksize=500)
    return np.array([pair[0] for pair in described]), np.array([pair[1] for pair in described])


def _share(images):
    global _images
    _images = images


def _bent(number):
    rng = np.random.default_rng([number])
    image = _images[rng.integers(len(_images))].astype(np.float32)
    coarse = rng.normal(0, 2, (2, 5, 5))
    shift = [ndimage.zoom(part, _SIDE / 5, order=1, mode="nearest", grid_mode=True) for part in coarse]
    image = ndimage.map_coordinates(image, np.mgrid[:_SIDE, :_SIDE] + shift, order=1, mode="nearest")
    image = 255 * (image / 255) ** np.exp(rng.normal(0, 0.15))
    image = np.uint8(np.clip(image + rng.normal(0, rng.uniform(0, 6), image.shape), 0, 255))
    return near_duplicates.perceptual_hash(image), near_duplicates.thumbnail(image)


def search(hashes, thumbnails):
    return near_duplicates.near_duplicates(hashes, thumbnails)[["a", "b"]].to_numpy()


def exhaustive(hashes, thumbnails):
    """The same rule over all pairs: the hash first, then the thumbnails of what it leaves."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)
    found = []
    for first in range(len(hashes)):
        near = np.bitwise_count(hashes[first + 1 :] ^ hashes[first]) <= near_duplicates.MAX_DISTANCE
        others = first + 1 + np.flatnonzero(near)
        others = others[flat[others] @ flat[first] >= near_duplicates.MIN_CORRELATION]
        found += [(first, other) for other in others]
    return np.array(found).reshape(-1, 2)


def measure(method, hashes, thumbnails):
    """(seconds, MiB, number of pairs) of a call in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_timed, args=(method, hashes, thumbnails, sender))
    worker.start()
    result = receiver.recv()
    worker.join()
    return result


def _timed(method, hashes, thumbnails, sender):
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start counting the peak anew
    before = _peak()
    start = time.perf_counter()
    pairs = method(hashes, thumbnails)
    sender.send((time.perf_counter() - start, _peak() - before, len(pairs)))


def _peak():
    """MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def exponent(part):
    large = part[part.images >= 10_000] if (part.images >= 10_000).sum() > 1 else part
    return np.polyfit(np.log(large.images), np.log(large.seconds), 1)[0]


def plot(table, path):
    figure = Figure((8, 3.6), layout="constrained")
    for axes, column, label in zip(figure.subplots(1, 2), ("seconds", "peak_mib"), ("seconds", "MiB"), strict=True):
        for name, part in table.groupby("method"):
            slope = f" (exponent {part.exponent.iloc[0]:.2f})" if column == "seconds" else ""
            axes.loglog(part.images, part[column], "o-", label={"search": "covidlib"}.get(name, name) + slope)
        axes.set(xlabel="images", ylabel=label)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
