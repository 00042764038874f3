"""Damage sound files and read them: no crash, no hang, no other exception than ReadError, no gigabyte.

    python tests/fuzz/fuzz_readers.py --files 20000 --seed 0

The same files come again from the same seed. Files that make a finding are kept in --keep. The exit status is 1
where there are findings.
"""

import argparse
import gzip
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import seeds

SECONDS = 5  # for one file
GROWTH = 2**30  # bytes of resident memory for one file
_ADDRESS_SPACE = 2**32  # so that a bomb does not take the machine along
_TELLING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def mutate(data, rng, others):
    """Bytes with one to four kinds of damage; what is deflated is also damaged inside."""
    if rng.random() < 0.5:
        if data.startswith(b"\x1f\x8b"):
            return gzip.compress(_damage(gzip.decompress(data), rng, others), 1, mtime=0)
        if data[128:132] == b"DICM" and b"1.2.840.10008.1.2.1.99" in data[:400]:
            start = 144 + int.from_bytes(data[140:144], "little")
            packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
            inside = _damage(zlib.decompress(data[start:], -zlib.MAX_WBITS), rng, others)
            return data[:start] + packer.compress(inside) + packer.flush()
    return _damage(data, rng, others)


def _damage(data, rng, others):
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        start, end = 0, len(data)
        if rng.random() < 0.7:  # headers matter most, also that of an image compressed within a file
            start = max(0, data.find((b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51")[rng.integers(3)]))
            end = min(len(data), start + (300 if start else 1024))
        at, length = int(rng.integers(start, end)), int(2 ** rng.uniform(0, 9))
        match rng.integers(7):
            case 0:
                data[at] ^= 1 << rng.integers(8)
            case 1:
                data[at:at + length] = rng.bytes(len(data[at:at + length]))
            case 2:
                del data[at:None if rng.random() < 0.3 else at + length]
            case 3:
                data[at:at] = data[at:at + length]
            case 4:
                other = others[rng.integers(len(others))]
                place = int(rng.integers(len(other)))
                data[at:at + length] = other[place:place + length]
            case _:
                width, order = int(2 ** rng.integers(0, 4)), ("little", "big")[rng.integers(2)]
                value = int(rng.choice(_TELLING)) if rng.random() < 0.7 else int(rng.integers(2**32))
                data[at:at + width] = (value % 256**width).to_bytes(width, order)
    return bytes(data)


def work(channel):
    """Read the files whose paths come through `channel` and answer with what happened."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native decoders complain there
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from covidlib import readers
    from covidlib.readers import volume

    channel.send("ready")
    for path in iter(channel.recv, None):
        before, began = _resident("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
        fault, read = _read_all(readers, volume, path)
        channel.send({"seconds": time.perf_counter() - began, "growth": _resident("VmHWM") - before,
                      "fault": fault, "read": read})


def _read_all(readers, volume, path):
    """(traceback of what no reader may raise, or None; whether a slice could be read)"""
    read = False
    for call in (lambda: readers.sniff(path), lambda: readers.read_slice(path),
                 lambda: readers.read_slice(path, max(0, readers.count_slices(path) - 1)),
                 lambda: readers.read_slice(path, window=None), lambda: readers.read_hu(path),
                 lambda: readers.read_mask(path),
                 lambda: [(one.axial, one.spacing) for one in volume.group_series([path])[0]]):
        try:
            read |= isinstance(call(), np.ndarray)
        except (readers.ReadError, FileNotFoundError):
            pass
        except BaseException:
            return traceback.format_exc(), read
    return None, read


def _resident(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024


class Worker:
    """A process that reads, started anew when it died or hung."""

    def __init__(self, work=work):
        self.work, self.process = work, None

    def read(self, path):
        """What `work` answers, or {"fault": "hang" or "crash"}."""
        if self.process is None:
            self._start()
        self.channel.send(path)
        try:
            if self.channel.poll(SECONDS + 1):
                return self.channel.recv()
            fault, seconds = f"hang: more than {SECONDS} s", SECONDS + 1.0
        except EOFError:
            self.process.join()
            fault, seconds = f"crash: exit code {self.process.exitcode}", 0.0
        self.stop()
        return {"fault": fault, "read": False, "seconds": seconds, "growth": 0}

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.channel, there = context.Pipe()
        self.process = context.Process(target=self.work, args=(there,), daemon=True)
        self.process.start()
        there.close()
        self.channel.recv()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def run(files, seed, keep, real=None, report=print):
    """Counts, the slowest file, the largest growth and findings of `files` damaged files, as a dict."""
    keep = Path(keep)
    worker, counts, findings, results = Worker(), Counter(), [], []
    with tempfile.TemporaryDirectory() as folder:
        sound = {path: path.read_bytes() for path in seeds.make(Path(folder), real)}
        paths, others = list(sound), list(sound.values())
        for n in range(files):
            rng = np.random.default_rng([seed, n])
            origin = paths[rng.integers(len(paths))]
            data = mutate(sound[origin], rng, others)
            damaged = Path(folder) / f"damaged{origin.suffix}"
            damaged.write_bytes(data)
            result = worker.read(str(damaged))
            if result["seconds"] > SECONDS:  # a busy machine does not hang twice
                counts["read_again"] += 1
                result = worker.read(str(damaged))
            slow, large = result["seconds"] > SECONDS, result["growth"] > GROWTH
            fault = result["fault"] or (f"hang: {result['seconds']:.1f} s" if slow else
                                        f"memory: {result['growth'] >> 20} MiB" if large else None)
            counts["read" if result["read"] else "refused"] += 1
            results.append((result["seconds"], result["growth"], f"{n} {origin.name}"))
            if fault:
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{seed}-{n}-{origin.name}"
                kept.write_bytes(data)
                findings.append({"file": kept.name, "fault": fault})
                report(f"{kept.name}: {fault}", flush=True)
            if (n + 1) % 1000 == 0:
                report(f"{n + 1} files, {len(findings)} findings", flush=True)
    worker.stop()
    slowest, largest = max(results), max(results, key=lambda result: result[1])
    return {"files": files, "seed": seed, **counts, "slowest_s": round(slowest[0], 2), "slowest": slowest[2],
            "largest_growth_mib": largest[1] >> 20, "largest": largest[2], "findings": findings}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="fuzz-findings", help="folder for files that make a finding")
    here = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    parser.add_argument("--real", default=here if here.is_dir() else None, help="folder of real CT images, for seeds")
    options = parser.parse_args()
    result = run(options.files, options.seed, options.keep, options.real)
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["findings"]))


if __name__ == "__main__":
    main()
