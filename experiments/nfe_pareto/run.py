"""MMPMR against network evaluations for guided attacks; tables, JSON, plots.

python -m experiments.nfe_pareto.run                 every setting of settings.py; continues
python -m experiments.nfe_pareto.run --only 0 3      some of them
python -m experiments.nfe_pareto.run --report        tables and plots of what is on disk
"""

import argparse
from pathlib import Path

import torch

from adjointdeis.files import write_atomically
from experiments.nfe_pareto.plot import draw_attacks, draw_optimisers
from experiments.nfe_pareto.rates import curves
from experiments.nfe_pareto.report import compact, summary, tables
from experiments.nfe_pareto.settings import BATCH, ON_FEW, SETTINGS, TUNING_PAIRS
from experiments.nfe_pareto.study import Study, run

HERE = Path(__file__).parent


def main() -> None:
    """Runs what is missing, then prints the tables and writes result.json and the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings to run")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("outputs/nfe_pareto"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = range(len(SETTINGS)) if options.only is None else options.only
    study, runs = Study(options.cache / "encodings"), []
    for number in chosen:
        setting = SETTINGS[number]
        pairs = study.pairs(TUNING_PAIRS if setting in ON_FEW else None)
        rows = run(study, setting, pairs, options.cache, BATCH, only_finished=options.report)
        if rows is not None:
            runs.append((setting, rows, pairs))
            print(f"{number}: {setting.name}, seed {setting.seed}", flush=True)
    if options.only is None:
        result = summary(study, curves(study, runs))
        write_atomically(HERE / "result.json", lambda file: file.write(compact(result)))
        print(tables(result))
        draw_attacks(result, HERE / "pareto.png")
        draw_optimisers(result, HERE / "optimisers.png")


if __name__ == "__main__":
    main()
