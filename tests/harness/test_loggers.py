"""Loss curves in CSV or nowhere; `test_wandb.py` is about Weights & Biases."""

import csv
import json
from pathlib import Path

import pytest
from tiny_profile import OPTIMISATION, PAIRS, composed, overrides

from adjointdeis.harness.launch import launch


def arguments(tiny: Path, run: Path, logger: str) -> list[str]:
    return overrides(tiny, run, f"logger={logger}", rows=("exact",))


def test_csv_holds_the_loss_of_every_step(tiny, tmp_path, quiet_report) -> None:
    run = tmp_path / "run"
    launch(composed(arguments(tiny, run, "csv")))
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    batches = -(-len(PAIRS) // 2)
    losses = [float(row["exact/loss"]) for row in rows if row["exact/loss"]]
    norms = [float(row["exact/gradient_norm"]) for row in rows if row["exact/gradient_norm"]]
    assert len(losses) == batches * (OPTIMISATION + 1)
    # Lightning repeats the last norm beside the loss of the finished morphs.
    assert len(set(norms)) == batches * OPTIMISATION
    record = json.loads((run / "morphs" / "exact" / f"{PAIRS[2]}.json").read_text())
    # The last pair is alone in its batch: its record and the curve are the same numbers.
    assert losses[-(OPTIMISATION + 1) :] == pytest.approx(record["loss"], rel=1e-5)

    # Continued, the run starts a new file and keeps the curve it had.
    earlier = (run / "logs" / "metrics.csv").read_text()
    (run / "done.json").unlink()
    (run / "morphs" / "exact" / f"{PAIRS[0]}.png").unlink()
    launch(composed(arguments(tiny, run, "csv")))
    assert (run / "logs" / "metrics-1.csv").read_text() == earlier
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["exact/loss"]]) == OPTIMISATION + 1


def test_no_logger_leaves_no_curve_and_the_same_result(tiny, tmp_path, quiet_report) -> None:
    run = tmp_path / "run"
    launch(composed(arguments(tiny, run, "none")))
    assert not (run / "logs").exists()
    assert (run / "result.json").is_file()
