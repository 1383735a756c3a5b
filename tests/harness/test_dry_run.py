"""The dry run: loads, checks, prints the price, and leaves nothing behind."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_profile import ENCODING, OPTIMISATION, PAIRS, ROWS, STEPS, composed, overrides

from adjointdeis.harness import assets
from adjointdeis.harness.dry_run import DryRunError
from adjointdeis.harness.launch import launch
from adjointdeis.harness.resources import times_of
from adjointdeis.morphing.attack import Workbench


def test_it_prints_the_price_and_runs_nothing(tiny, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    launch(composed(overrides(tiny, run, "dry_run=true", root=tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["attack", "pairs"]
    assert len([line for line in lines if f"  {len(PAIRS)}  " in line]) == len(ROWS)
    guided = next(line for line in lines if line.startswith("Exact gradient"))
    assert f"{ENCODING + OPTIMISATION * 2 * STEPS}" in guided
    counted = ENCODING + (OPTIMISATION + 1) * STEPS
    assert f"{counted} + {OPTIMISATION * STEPS} VJPs" in guided
    assert "nothing was run" in lines[-1]
    assert not run.exists() and not (tmp_path / "data").exists()


def test_what_is_finished_is_not_counted(tiny, tmp_path, quiet_report, capsys) -> None:
    run = tmp_path / "run"
    lines = overrides(tiny, run, "~attack@rows.adjoint_deis_ode", "~attack@rows.exact")
    lines = [x for x in lines if "rows.adjoint_deis_ode" not in x or x[0] == "~"]
    lines = [x for x in lines if "rows.exact" not in x or x[0] == "~"]
    launch(composed(lines))
    (run / "morphs" / "dim_a" / f"{PAIRS[0]}.png").unlink()
    before = json.loads((run / "done.json").read_text())
    capsys.readouterr()
    launch(composed([*lines, "dry_run=true"]))
    text = capsys.readouterr().out.splitlines()
    assert next(line for line in text if line.startswith("DiM-A")).split()[1] == "1"
    assert next(line for line in text if line.startswith("AdjointDEIS")).split()[2] == "0"
    # Asking for the price is not another run.
    assert json.loads((run / "done.json").read_text()) == before


def test_a_missing_file_is_found_before_anything_runs(tiny, tmp_path) -> None:
    arguments = overrides(tiny, tmp_path / "run", "dry_run=true", f"assets.root={tmp_path}")
    with pytest.raises(SystemExit, match=r"manifest.json is missing"):
        launch(composed(arguments))


def test_other_tasks_have_none(tiny, tmp_path) -> None:
    arguments = ["task=report", "dry_run=true", f"paths.root={tmp_path}", f"paths.run={tmp_path}/r"]
    with pytest.raises(SystemExit, match="dry_run=true is for task=morph"):
        launch(composed(arguments))


def test_a_network_that_answers_nonsense_is_found(tiny) -> None:
    profile = assets.profile("mini", str(tiny / "profile"))
    autoencoder = assets.autoencoder("diffae.safetensors", profile)
    identity = assets.recogniser("guide.safetensors", profile)
    bench = Workbench(torch.device("cpu"), {"autoencoder": autoencoder, "identity": identity})
    times = times_of(bench, 2)
    assert times.keys() == {"autoencoder", "identity"}
    assert all(seconds > 0 for seconds in times["identity"].values())
    free = times["autoencoder"].pop("nfe_backward")
    assert free == 0 and all(seconds > 0 for seconds in times["autoencoder"].values())
    broken = assets.recogniser("guide.safetensors", profile)
    with torch.no_grad():
        next(iter(broken.network.parameters())).fill_(float("nan"))
    broken_bench = replace(bench, resources={**bench.resources, "identity": broken})
    with pytest.raises(DryRunError, match="identity network is not finite"):
        times_of(broken_bench, 1)
