"""Coverage of the intervals for MMPMR on simulated studies; writes result.json and result.md here.

python -m experiments.uncertainty.run [--studies 400] [--replicates 400] [--out FOLDER]
"""

import sys
import time
from typing import Any

from adjointdeis.evaluation import wilson
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.simulate import DyadicModel
from adjointdeis.evaluation.tables import percent
from experiments.common.options import parser, publish
from experiments.uncertainty.coverage import coverage_study, model_of_rate, to_dict

# Rates near the edge and few subjects, with as many morphs as such studies make.
RATES = (0.5, 0.9, 0.97, 0.99, 0.995)
SIZES = {10: 45, 30: 100, 86: 100}
GRID: dict[str, dict[str, Any]] = {
    f"MMPMR {100 * rate:g}%, {n_subjects} subjects, FMR {100 * fmr:g}%": {
        "model": model_of_rate(rate, fmr),
        "fmr": fmr,
        "n_subjects": n_subjects,
        "n_morphs": n_morphs,
    }
    for fmr in (0.001, 0.01)
    for n_subjects, n_morphs in SIZES.items()
    for rate in RATES
}

# Subject effects as a share of the noise: none, modest, strong; morph strength keeps MMPMR inside.
SCENARIOS: dict[str, dict[str, Any]] = {
    "no subject effect": {"model": DyadicModel(subject_sd=0.0, morph=0.24, noise_sd=0.07)},
    "modest subject effect": {"model": DyadicModel(subject_sd=0.02, morph=0.27, noise_sd=0.07)},
    "strong subject effect": {"model": DyadicModel(subject_sd=0.04, morph=0.30, noise_sd=0.06)},
    "modest, FMR 1%": {
        "model": DyadicModel(subject_sd=0.02, morph=0.24, noise_sd=0.07),
        "fmr": 0.01,
    },
    "modest, other people as impostors": {
        "model": DyadicModel(subject_sd=0.02, morph=0.27, noise_sd=0.07),
        "separate_impostors": True,
    },
}


def main() -> None:
    """Runs every scenario at the paper's size, then every cell of the grid of rates and sizes."""
    command = parser(__doc__, __file__)
    command.add_argument("--studies", type=int, default=400)
    command.add_argument("--replicates", type=int, default=400)
    options = command.parse_args()
    results, lines = [], []
    for name, arguments in {**SCENARIOS, **GRID}.items():
        started = time.perf_counter()
        fmr = arguments.get("fmr", 0.001)
        found = coverage_study(
            **arguments,
            studies=options.studies,
            replicates=options.replicates,
            progress=lambda n, name=name: print(f"\r{name}: {n}", end="", file=sys.stderr),
        )
        seconds = time.perf_counter() - started
        print(f"\r{name}: {options.studies} studies in {seconds:.0f} s", file=sys.stderr)
        results.append(
            {"scenario": name, "seconds": seconds, **to_dict(arguments["model"], fmr, found)}
        )
        for c in found:
            lo, hi = wilson(c.covered, c.studies)
            lines.append(
                [name, percent(arguments["model"].mmpmr(fmr), 1), c.method,
                 f"{percent(c.share, 1)} ({c.covered}/{c.studies})",
                 f"[{percent(lo, 1)}, {percent(hi, 1)}]", percent(c.mean_width, 1)]
            )  # fmt: skip
    header = ["scenario", "true MMPMR %", "95% interval", "covers %", "95% of that", "mean width"]
    text = table(header, lines)
    publish(options.out, text, {"replicates": options.replicates, "scenarios": results})


if __name__ == "__main__":
    main()
