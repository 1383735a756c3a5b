"""NaN in one pair: it stops with step, values and the command that repeats it; others finish."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_profile import PAIRS, composed, overrides

from adjointdeis.faces.datasets.pairs import read_pairs
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import morph
from adjointdeis.morphing.adjoint_dim import GuidedDiM

SICK = PAIRS[1]


@pytest.fixture
def sick_pair(monkeypatch) -> None:
    """The initial noise of one pair is not a number."""
    healthy = GuidedDiM.latents

    def latents(self, sources, bench):
        found = healthy(self, sources, bench)
        x_T = found.x_T.clone()
        for k, pair in enumerate(sources.pairs):
            if pair.morph_id == SICK:
                x_T[k, 0, 0, 0] = torch.nan
        return replace(found, x_T=x_T)

    monkeypatch.setattr(GuidedDiM, "latents", latents)


def lines(tiny: Path, run: Path, *more: str) -> list[str]:
    return overrides(tiny, run, *more, rows=("dim_a", "exact"))


def test_one_sick_pair(tiny, tmp_path, quiet_report, sick_pair, capsys, monkeypatch) -> None:
    run, given = tmp_path / "run", lines(tiny, tmp_path / "run")
    monkeypatch.setattr(morph, "this_command", lambda: given)
    launch(composed(given))
    folder = run / "morphs" / "exact"
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(set(PAIRS) - {SICK})
    record = json.loads((folder / f"{SICK}.json").read_text())
    assert record["failed"] == "step 0: loss nan, gradient norm nan"
    told = capsys.readouterr().err
    assert f"pair {SICK} stopped at step 0: loss nan, gradient norm nan" in told
    assert record["reproduce"] in told

    # The command is the run's own, for this pair alone.
    words = shlex.split(record["reproduce"])
    assert words[:2] == ["python", "run.py"]
    assert {"+experiment=table1_first", "~rows.adjoint_deis_ode"} <= set(words)
    (listed,) = (word.partition("=")[2] for word in words if word.startswith("data.pairs="))
    assert [pair.morph_id for pair in read_pairs(listed)] == [SICK]
    launch(composed(words[2:]))
    (again,) = (word.partition("=")[2] for word in words if word.startswith("paths.run="))
    repeated = json.loads((Path(again) / "morphs" / "exact" / f"{SICK}.json").read_text())
    assert repeated["failed"] == record["failed"]

    result = json.loads((run / "result.json").read_text())
    (failure,) = result["attacks"]["exact"]["failed"]
    assert failure == {"pair_id": SICK, "reason": record["failed"]}
    assert {row["n"] for row in result["rows"] if row["attack"] == "exact"} == {len(PAIRS) - 1}
    assert (run / "done.json").is_file(), "the run itself is finished"
