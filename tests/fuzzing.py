"""Damaged and hostile files for every reader: made from sound ones by seeded changes, and counted.

Each case is a function of the target's name and a number, so that what escaped can be made again:

    python tests/fuzzing.py --targets image --first 17 --count 1 --keep folder

Prints one JSON object per target: how many cases were read, how many were refused by the allowed
errors, and what else happened (`escaped`): another exception, more than `SECONDS` of processor
time, or more than `MEBIBYTES` of memory beyond what the process had. A process that dies leaves the
case under way in the file of `--journal`.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_targets import DIRECTORY, Target, run_directory, targets

SECONDS, MEBIBYTES = 10, 1024


class _TooLong(BaseException):
    """A case that took longer than it may."""


def _case(target: Target, seeds: list[bytes], number: int) -> bytes:
    rng = np.random.default_rng([zlib.crc32(target.name.encode()), number])
    return target.change(rng, seeds[number % len(seeds)], seeds)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz(target: Target, first: int, count: int, folder: Path, journal: Path) -> dict[str, Any]:
    """Runs cases and counts what became of them."""
    seeds = target.seeds()
    path = folder / f"case{target.suffix}"
    if not target.name == "cache":  # whose cases are random bytes
        path.write_bytes(seeds[0])
        target.read(path)  # a target whose sound file is refused would test nothing
    found: dict[str, Any] = {"cases": 0, "read": 0, "refused": 0, "escaped": [], "slowest": 0.0}

    def stop(signum: int, frame: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGVTALRM, stop)
    for number in range(first, first + count):
        data = _case(target, seeds, number)
        path.write_bytes(data)
        journal.write_text(f"{target.name} {number}")
        before, start = _memory(), time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.read(path)
            found["read"] += 1
        except target.allowed as error:
            # An error in words: a path, a reason, and nothing that acts on a terminal.
            if not str(error):
                found["escaped"].append([number, f"{type(error).__name__} without words"])
            found["refused"] += 1
        except _TooLong:
            found["escaped"].append([number, f"took more than {SECONDS} s"])
        except BaseException as error:
            found["escaped"].append([number, f"{type(error).__name__}: {str(error)[:300]}"])
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        found["cases"] += 1
        found["slowest"] = round(max(found["slowest"], time.process_time() - start), 2)
        if _memory() - before > MEBIBYTES:
            found["escaped"].append([number, f"took {_memory() - before} MiB"])
    return found


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--journal", type=Path, default=Path(os.devnull))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    chosen = [t for t in targets() if not options.targets or t.name in options.targets]
    if any("run" in t.name or t.name in ("record", "json", "provenance") for t in chosen):
        run_directory()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * 2**30, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        for target in chosen:
            place = options.keep or Path(folder) / target.name.replace(" ", "-")
            place.mkdir(parents=True, exist_ok=True)
            count = max(1, round(options.count * target.share))
            start = time.process_time()
            found = fuzz(target, options.first, count, place, options.journal)
            found |= {"target": target.name, "seconds": round(time.process_time() - start, 2)}
            print(json.dumps(found), flush=True)
    for directory in DIRECTORY:
        shutil.rmtree(directory.parent)


if __name__ == "__main__":
    main()
