"""The bench: closed forms hold, seeds repeat, rows are checked, tables come from the result."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from tiny_profile import ROOT

from adjointdeis.evaluation.rates import wilson
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.harness.embedded import psnr, subjects
from adjointdeis.harness.validation import ConfigError
from experiments.guidance import mixture, publish, run as study
from experiments.guidance.faces import LinearProbe, Restoration
from experiments.guidance.mixture import DiagonalMixture, HiddenCondition, MixturePosterior
from experiments.guidance.tables import tables
from experiments.table2.algorithms import ALGORITHMS


def settings(*overrides: str) -> dict:
    return study.settings(list(overrides))


def prior() -> DiagonalMixture:
    means = torch.tensor([[[-1.0, 0.5], [1.0, -0.5], [0.3, 2.0]]]).double()
    variances = torch.tensor([[[0.2, 0.4], [0.5, 0.1], [0.3, 0.3]]]).double()
    return DiagonalMixture(torch.tensor([[0.2, 0.5, 0.3]]).double().log(), means, variances)


def lattice(side: int = 300, reach: float = 6.0) -> tuple[torch.Tensor, float]:
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def test_the_posterior_is_bayes_by_integration() -> None:
    y, noise = torch.tensor([[0.4]]).double(), 0.3
    points, cell = lattice()
    data = prior()
    likelihood = (-0.5 * ((points[:, 0] - y[0, 0]) / noise).square()).exp()
    joint = data.log_density(points.unsqueeze(1)[:, 0]).exp() * likelihood
    wanted = joint / (joint.sum() * cell)
    found = mixture.observed(data, y, noise).log_density(points).exp()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert float(found.sum() * cell) == pytest.approx(1.0, abs=1e-6)


def test_the_mode_is_the_highest_point_of_a_lattice() -> None:
    posterior = mixture.observed(prior(), torch.tensor([[0.4]]).double(), 0.3)
    points, _ = lattice(801, 3.0)
    best = points[posterior.log_density(points).argmax()]
    torch.testing.assert_close(posterior.mode()[0], best, rtol=0, atol=0.009)


def test_perfect_samples_have_a_regret_of_half_a_nat() -> None:
    """With one component the posterior is Gaussian: E[regret] = 1/2 per coordinate."""
    problem = MixturePosterior(dimension=4, modes=1, samples=4000)
    instance = problem.instance(0)
    quality = instance.quality(mixture.PosteriorSamples().solve(instance.problem))
    assert float(quality["regret"].mean()) == pytest.approx(0.5, abs=0.02)
    assert (quality["regret"] >= -1e-9).all()


def test_a_seed_means_one_instance_and_the_next_another() -> None:
    first, again, other = (MixturePosterior(samples=3).instance(k).problem for k in (0, 0, 1))
    assert torch.equal(first.x_T, again.x_T) and not torch.equal(first.x_T, other.x_T)
    x = torch.zeros(3, 2).double()
    assert torch.equal(first.loss(x, first.rows), again.loss(x, again.rows))
    assert not set(subjects(0, 4).tolist()) & set(subjects(1, 4).tolist())


@pytest.mark.parametrize("changing", [False, True])
def test_the_hidden_condition_can_be_found(changing: bool) -> None:
    """Descent over a scheduled z nears the target; a constant z cannot when the truth changes."""
    instance = HiddenCondition(changing=changing, samples=4, steps=8).instance(0)
    adam = partial(torch.optim.Adam, lr=0.2)
    descent = LatentOptimisation(30, adam, DiscreteAdjoint(), keep="best")
    errors = [
        float(instance.quality(one.solve(instance.problem))["error"].mean())
        for one in (descent, replace(descent, scheduled=True))
    ]
    assert errors[1] < 0.25
    assert (errors[0] > 2 * errors[1]) if changing else (errors[0] < 0.25)


ROWS = [name for name in settings()["rows"]["mixture_2d"] if name != "reference"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_latent_method_beats_no_guidance(row: str) -> None:
    chosen = settings(f"only=mixture_2d/{row}", "problems.mixture_2d.samples=8")
    ((_, problem_node, node),) = study.chosen_rows(chosen)
    for key, most in (("steps", 12), ("evaluations", 15), ("sampling_steps", 30)):
        if key in node:
            node[key] = min(node[key], most)
    instance = instantiate(problem_node, _convert_="all").instance(0)
    outcome = instantiate(node, _convert_="all").solve(instance.problem)
    quality = instance.quality(outcome)
    plain = instance.quality(LatentOptimisation(0).solve(instance.problem))
    assert outcome.cost.nfe > 0 and all(v.shape == (8,) for v in quality.values())
    # Time travel re-draws the mode, so it need not end nearer to one observation.
    if row not in ("plain", "freedom_travel"):
        # The median: now and then a sample ends in a mode that does not fit.
        assert quality["misfit"].median() < 0.5 * plain["misfit"].median()


def test_rows_are_checked_before_any_runs() -> None:
    with pytest.raises(study.RowError, match=r"no row 'mixture_2d/exct'; did you mean 'mixture"):
        study.chosen_rows(settings("only=mixture_2d/exct"))
    with pytest.raises(ConfigError, match=r"rows.mixture_2d.exact.stepss.*did you mean 'steps'"):
        study.chosen_rows(settings("rows.mixture_2d.exact.stepss=1"))
    with pytest.raises(ConfigError, match=r"problems.mixture_2d.mode: .*did you mean 'modes'"):
        study.chosen_rows(settings("problems.mixture_2d.mode=1"))
    with pytest.raises(study.RowError, match=r"no method 'freedm'"):
        study.chosen_rows(settings("rows.mixture_2d.freedm={}"))
    with pytest.raises(study.RowError, match=r"no key 'onyl'; did you mean 'only'"):
        settings("onyl=mixture_2d/exact")
    # A row's object with a class of its own replaces that of its method, keys and all.
    (_, _, node), *_ = study.chosen_rows(
        settings("only=mixture_2d/flowgrad", "rows.mixture_2d.flowgrad.gradient=${gradients.exact}")
    )
    assert node["gradient"] == {"_target_": "adjointdeis.gradients.DiscreteAdjoint"}
    assert node["optimizer"]["lr"] == 0.1 and node["steps"] == 60


def test_a_row_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    wrong = ["only=mixture_2d/no_attack", "rows.mixture_2d.no_attack={method: attacked, steps: 0}"]
    with pytest.raises(study.RowError, match="ProjectedAscent solves a DefenceProblem, not a Post"):
        study.run(settings(*wrong, f"out={tmp_path}"))
    wrong = ["only=hidden_constant/reference", "rows.hidden_constant.reference={}"]
    with pytest.raises(study.RowError, match="PosteriorSamples solves a PosteriorProblem"):
        study.run(settings(*wrong, f"out={tmp_path}"))


def test_intervals() -> None:
    share = study.interval(np.array([1.0, 0.0, 1.0, 1.0]), share=True)
    assert share["share"] and (share["lo"], share["hi"]) == wilson(3, 4)
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    mean = study.interval(values)
    half = 1.96 * values.std() / 20
    assert mean["mean"] == pytest.approx(values.mean())
    assert mean["lo"] == pytest.approx(values.mean() - half, abs=0.02)
    assert mean["hi"] == pytest.approx(values.mean() + half, abs=0.02)
    assert study.interval(np.array([1.0, np.nan]))["mean"] is None


def run(tmp_path: Path, *overrides: str) -> dict:
    return study.run(settings(f"out={tmp_path}", *overrides))


def test_a_run_is_continued_and_its_table_printed(tmp_path: Path) -> None:
    small = [
        "only=[hidden_constant/plain,hidden_constant/exact]",
        "problems.hidden_constant.samples=2",
        "problems.hidden_constant.steps=3",
        "rows.hidden_constant.exact.steps=2",
    ]
    first = run(tmp_path, *small)
    assert [row["row"] for row in first["rows"]] == [
        "hidden_constant/plain",
        "hidden_constant/exact",
    ]
    exact = first["rows"][1]
    assert (exact["nfe"], exact["vjps"]) == (2 * 6 + 2 * 3, 2 * 3)
    assert exact["quality"]["error"]["n"] == 4
    record = tmp_path / "rows" / "hidden_constant" / "exact" / "0.json"
    stamp = record.stat().st_mtime_ns
    run(tmp_path, *small)
    assert record.stat().st_mtime_ns == stamp
    run(tmp_path, *small, "rows.hidden_constant.exact.optimizer.lr=0.2")
    assert record.stat().st_mtime_ns != stamp
    assert json.loads((tmp_path / "result.json").read_text())["rows"]
    text = (tmp_path / "report.md").read_text()
    assert "`hidden_constant/exact`" in text and "latents, exact gradient" in text


def test_the_published_table_is_that_of_the_published_result() -> None:
    folder = ROOT / "experiments" / "guidance"
    if not (folder / "result.json").is_file():
        pytest.skip("not published yet")
    result = json.loads((folder / "result.json").read_text())
    assert tables(result) in (folder / "README.md").read_text()
    published = {row["row"] for row in result["rows"]}
    configured = {name for name, *_ in study.chosen_rows(settings())}
    assert published == configured


def test_restoration_keeps_what_is_known() -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    hole = Restoration("inpainting", hole=24)
    known = hole.degrade(images)
    assert torch.equal(known[..., :20, :], images[..., :20, :])
    assert not known[..., 20:44, 20:44].any() and int((known[:, :1] == 0).sum()) == 2 * 24 * 24
    coarse = Restoration("super_resolution").degrade(images)
    assert coarse.shape == (2, 3, 16, 16)
    torch.testing.assert_close(coarse[0, 0, 0, 0], images[0, 0, :4, :4].mean())
    assert Restoration("super_resolution").naive(coarse, images).shape == images.shape


def test_psnr_by_hand() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    off = torch.stack([truth[0] + 0.2, truth[1] + 0.02])
    torch.testing.assert_close(psnr(off, truth), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)


def test_the_probe_separates_what_it_can() -> None:
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(50, generator=generator)
    direction = direction / direction.norm()

    def draw(label: int) -> torch.Tensor:
        return torch.randn(40, 50, generator=generator) + 3 * label * direction

    probe = LinearProbe.fit(draw(-1), draw(1))
    assert (probe(draw(1)) > 0).float().mean() > 0.9
    assert (probe(draw(-1)) < 0).float().mean() > 0.9


def test_every_method_of_table_2_has_a_test_and_a_row() -> None:
    rows = {name for name, *_ in study.chosen_rows(settings())}
    for one in ALGORITHMS:
        assert (ROOT / "tests" / one.test).is_file(), one.paper
        assert one.row in rows, one.paper


def test_publishing_twice_changes_nothing() -> None:
    folder = ROOT / "experiments" / "guidance"
    if not (folder / "result.json").is_file():
        pytest.skip("not published yet")
    page = (folder / "README.md").read_text()
    assert publish.written(page, json.loads((folder / "result.json").read_text())) == page


def test_a_run_of_some_rows_replaces_those_and_says_where_they_come_from() -> None:
    def result(git: str, value: int, *rows: str, seeds: tuple = (0,)) -> dict:
        tasks = dict.fromkeys(row.partition("/")[0] for row in rows)
        labels = dict.fromkeys(rows, git)
        found = [{"row": row, "value": value} for row in rows]
        return {
            "schema": 1,
            "seeds": seeds,
            "git": git,
            "tasks": tasks,
            "labels": labels,
            "rows": found,
        }

    old = result("a", 1, "x/one", "x/two", "y/one")
    both = publish.merged(old, result("b", 2, "x/two", "x/three"))
    assert both["git"] == "a" and list(both["labels"]) == ["x/one", "x/two", "y/one", "x/three"]
    assert both["rows"] == [
        {"row": "x/one", "value": 1},
        {"row": "x/two", "value": 2, "git": "b"},
        {"row": "x/three", "value": 2, "git": "b"},
        {"row": "y/one", "value": 1},
    ]
    whole = result("b", 2, "x/one", "x/two", "y/one")
    assert publish.merged(old, whole) is whole
    with pytest.raises(SystemExit, match="other seeds"):
        publish.merged(old, result("b", 2, "x/two", seeds=(3,)))
