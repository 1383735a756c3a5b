"""Loss curves in every logger: CSV, none, and wandb's own files, written offline and read back."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_profile import OPTIMISATION, PAIRS, ROWS, composed, overrides

from adjointdeis.harness.launch import launch
from adjointdeis.harness.provenance import config_hash


def arguments(tiny: Path, run: Path, logger: str) -> list[str]:
    numbers = [line for line in overrides(tiny, run) if not line.startswith("rows.")]
    numbers += ["rows.exact.sampling_steps=4", "rows.exact.encoding_steps=10"]
    drop = [f"rows.{row}=null" for row in ROWS if row != "exact"]
    return [*numbers, *drop, f"logger={logger}"]


def records(path: Path) -> Iterator[bytes]:
    """Payloads of a wandb run file: LevelDB's log format after a header of seven bytes."""
    data, at, block, part = path.read_bytes(), 7, 32768, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield part
            part = b""


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


def test_wandb_writes_offline_and_can_be_read_back(tiny, tmp_path, quiet_report) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "run"
    cfg = composed(arguments(tiny, run, "wandb"))
    identifier = config_hash(cfg)
    launch(cfg)
    files = list(run.rglob("*.wandb"))
    assert [path.name for path in files] == [f"run-{identifier}.wandb"]
    assert files[0].parent.name.startswith("offline-run-")
    history: list[dict[str, float]] = []
    for payload in records(files[0]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            entry = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            history.append({key: json.loads(value) for key, value in entry.items()})
    losses = [entry["exact/loss"] for entry in history if "exact/loss" in entry]
    assert len(losses) == 2 * (OPTIMISATION + 1)
    stored = json.loads((run / "morphs" / "exact" / f"{PAIRS[2]}.json").read_text())
    assert losses[-(OPTIMISATION + 1) :] == pytest.approx(stored["loss"], rel=1e-5)
