"""How long the command's help, a threshold from ten million scores and the subject bootstrap take.

python -m experiments.uncertainty.benchmark
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adjointdeis.evaluation import group, threshold_at_fmr
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.simulate import DyadicModel, simulate
from adjointdeis.evaluation.storage import write_json
from adjointdeis.evaluation.uncertainty import (
    bootstrap_rates,
    bootstrap_thresholds,
    draw_subjects,
    percentile_interval,
)


def best_of(repeats: int, work: Callable[[], object]) -> dict[str, float]:
    """The fastest of several runs in seconds, by the wall and by the processor.

    The machine's noise only ever adds; on a busy one the processor's time is the one to read.
    """
    wall, processor = [], []
    for _ in range(repeats):
        started, before = time.perf_counter(), os.times()
        work()
        wall.append(time.perf_counter() - started)
        # Own and children's, user and system.
        processor.append(sum(os.times()[:4]) - sum(before[:4]))
    return {"wall": round(min(wall), 3), "processor": round(min(processor), 3)}


def main() -> None:
    """Prints a table and writes benchmark.json beside this file."""
    scores = np.random.default_rng(0).normal(size=10**7)
    study = simulate(DyadicModel())
    morph = np.repeat(np.arange(len(study.morph_pairs)), 2)
    groups = group(study.morph_scores.ravel(), morph, study.morph_pairs.ravel())
    i, j = study.impostor_pairs.T

    def bootstrap() -> tuple[float, float]:
        draws = draw_subjects(np.arange(102), replicates=2000, seed=0)
        taus = bootstrap_thresholds(draws, study.impostor_scores, i, j, 0.001)
        return percentile_interval(bootstrap_rates(draws, groups, "MMPMR", taus))

    command = [sys.executable, "-m", "adjointdeis.evaluation.cli", "--help"]
    seconds = {
        "adjointdeis-eval --help, a process of its own": best_of(
            5, lambda: subprocess.run(command, check=True, capture_output=True)
        ),
        "threshold record of 10^7 impostor scores, with their hash": best_of(
            3, lambda: threshold_at_fmr(scores, 0.001)
        ),
        "2,000 subject-bootstrap replicates, tau re-estimated (489 morphs, 10,302 impostors)": (
            best_of(3, bootstrap)
        ),
    }
    header = ["work", "seconds by the wall", "seconds of the processor"]
    lines = [[name, f"{t['wall']:.3f}", f"{t['processor']:.3f}"] for name, t in seconds.items()]
    print(table(header, lines))
    print(f"load average over a minute at the end: {os.getloadavg()[0]:.1f}")
    write_json(seconds, Path(__file__).parent / "benchmark.json")


if __name__ == "__main__":
    main()
