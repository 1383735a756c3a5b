"""Weights under a sampled loss: the all-reduce joins every process's share into one batch."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from fine_tuned_toy import Toy
from safetensors.torch import load_file
from tiny_profile import ROOT, composed

from adjointdeis.faces.weights import load_network
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.harness.embedded import embedded_autoencoder
from adjointdeis.harness.launch import launch
from adjointdeis.harness.training.fine_tuning import share

STEPS, RATE = 4, 0.05


def arguments(run: Path, *more: str) -> list[str]:
    return [
        "task=fine_tuning",
        "~task.problem.steps",
        "~task.problem.raise_by",
        "task.problem._target_=fine_tuned_toy.Toy",
        f"task.steps={STEPS}",
        "task.checkpoint_every=1",
        f"task.optimizer.lr={RATE}",
        "logger=none",
        f"paths.run={run}",
        f"paths.root={run.parent}",
        *more,
    ]


def by_hand(clip: float | None = 1.0) -> dict[str, torch.Tensor]:
    """The same descent by the loop of `guidance`, which knows no processes."""
    problem = Toy().instance(0).problem
    adam = partial(torch.optim.Adam, lr=RATE)
    FineTuning(adam, STEPS, DiscreteAdjoint(), clip).solve(problem)
    return problem.denoiser.state_dict()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


def assert_equal(found: dict, expected: dict, rtol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=0)


@pytest.fixture
def toys(environ) -> dict[str, str]:
    """Environment of processes that import the toy problem."""
    here = str(ROOT / "tests")
    path = os.pathsep.join([here, environ.get("PYTHONPATH", "")])
    return {**environ, "PYTHONPATH": path}


def test_one_process_descends_as_the_loop_without_lightning(tmp_path) -> None:
    run = tmp_path / "run"
    launch(composed(arguments(run)))
    assert_equal(weights(run), by_hand())
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == STEPS
    assert result["before"]["slope"] == [0.3]
    assert result["after"]["slope"] == [pytest.approx(float(by_hand()["slope"]))]
    assert result["cost_per_step"]["vjps"] == 5


@pytest.mark.parametrize(
    "method", ["discrete_adjoint", pytest.param("backprop", marks=pytest.mark.slow)]
)
def test_two_processes_make_the_update_of_one(tmp_path, toys, started, method: str) -> None:
    run = tmp_path / "run"
    done = started(arguments(run, "trainer=ddp_sim", f"gradient={method}"), tmp_path, toys)
    assert done.returncode == 0, done.stderr[-3000:]
    # Each process saw two of the four samples; only the reduced gradient gives these weights.
    assert_equal(weights(run), by_hand())
    assert json.loads((run / "result.json").read_text())["processes"] == 2


def test_a_gradient_that_is_not_finite_stops_every_process(tmp_path, toys, started) -> None:
    """And what two processes began, one of them ends."""
    run = tmp_path / "run"
    done = started(arguments(run, "trainer=ddp_sim"), tmp_path, toys | {"POISONED": "2"})
    assert done.returncode != 0
    assert "step 2" in done.stderr and "nothing was updated" in done.stderr
    # The weights before it are kept, and a repaired run goes on from there, on fewer processes.
    stopped = torch.load(run / "last.ckpt", weights_only=False)
    assert 0 < stopped["global_step"] < STEPS and not (run / "done.json").exists()
    launch(composed(arguments(run)))
    assert json.loads((run / "result.json").read_text())["processes"] == 1
    assert_equal(weights(run), by_hand())


@pytest.mark.parametrize(
    "change", [f"task.optimizer.lr={RATE / 2}", "gradient=adjoint_deis", "seed=1"]
)
def test_a_stopped_run_is_not_continued_with_other_settings(tmp_path, change: str) -> None:
    run = tmp_path / "run"
    launch(composed(arguments(run, "task.steps=2")))
    (run / "done.json").unlink()
    key = change.partition("=")[0]
    with pytest.raises(SystemExit, match=rf"holds a training with {key}=.*force=true starts over"):
        launch(composed(arguments(run, change)))
    # What was there is whole, and goes on by its own settings.
    launch(composed(arguments(run)))
    assert_equal(weights(run), by_hand())


def test_shares_are_equal_and_complete() -> None:
    batch = Toy().instance(0).problem.draw(0)
    parts = [share(batch, rank, 2) for rank in range(2)]
    assert torch.equal(torch.stack([p.x_T for p in parts], 1).flatten(0, 1), batch.x_T)
    assert torch.equal(parts[1].z, batch.z[1::2])


def test_a_batch_that_does_not_divide_is_refused() -> None:
    batch = Toy(samples=3).instance(0).problem.draw(0)
    with pytest.raises(ValueError, match=r"samples=3.*2 processes"):
        share(batch, 0, 2)


def test_a_method_that_does_not_suit_the_sampler_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"Reversible.*DDIM"):
        launch(composed(arguments(tmp_path / "run", "gradient=reversible", "solver=ddim")))


def test_the_embedded_generator_is_made_brighter(tmp_path) -> None:
    run = tmp_path / "run"
    lines = [
        "task=fine_tuning",
        "task.problem.samples=2",
        "task.problem.steps=3",
        "task.steps=3",
        "task.optimizer.lr=2e-4",
        "logger=none",
        f"paths.run={run}",
        f"paths.root={tmp_path}",
    ]
    launch(composed(lines))
    result = json.loads((run / "result.json").read_text())
    assert sum(result["after"]["error"]) < sum(result["before"]["error"])
    # A weight file like those of a profile, and not the weights that it started from.
    tuned, untouched = load_network(run / "weights.safetensors"), embedded_autoencoder().network
    moved = [
        not torch.equal(a, b.half().float())
        for a, b in zip(tuned.parameters(), untouched.parameters(), strict=True)
    ]
    assert any(moved)
