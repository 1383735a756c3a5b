"""How long a threshold from ten million scores and the subject bootstrap at FRLL size take.

python experiments/uncertainty/benchmark.py
"""

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


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """The fastest of several runs, in seconds: the machine's noise only ever adds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


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

    seconds = {
        "threshold record of 10^7 impostor scores, with their hash": best_of(
            3, lambda: threshold_at_fmr(scores, 0.001)
        ),
        "2,000 subject-bootstrap replicates, tau re-estimated (489 morphs, 10,302 impostors)": (
            best_of(3, bootstrap)
        ),
    }
    print(table(["work", "seconds (best of 3)"], [[k, f"{v:.3f}"] for k, v in seconds.items()]))
    write_json(seconds, Path(__file__).parent / "benchmark.json")


if __name__ == "__main__":
    main()
