"""The leaderboard: what an error is, who cheats, what is kept, and the page."""

import math
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_profile import composed

from adjointdeis import plugins
from adjointdeis.gradients import Backprop, DiscreteAdjoint
from adjointdeis.gradients.catalogue import CATALOGUE, Entry
from adjointdeis.harness import leaderboard
from adjointdeis.harness.audit import TooManyEvaluations, audited
from adjointdeis.harness.leaderboard import Measurement, contestants, errors
from adjointdeis.harness.network_problems import network_problem
from adjointdeis.harness.problem_sets import COMMITTED, Case, cases
from adjointdeis.harness.tasks import leaderboard as task
from adjointdeis.problems import FAMILIES, LOSSES, drawn
from adjointdeis.solvers import DDIM, DPMSolverPP

CASE = Case("gaussian", ("distance",), COMMITTED, "ode")


class Behind(DiscreteAdjoint):
    """Calls ``forward`` by name, at 3 times the batch in one evaluation."""

    def sampled_thrice(self, chain: Any, x: torch.Tensor) -> None:
        network, z = chain.denoiser.denoiser, torch.zeros(3 * len(x), 3, dtype=x.dtype)
        network.forward(torch.cat([x, x, x]), chain.grid[0].t, z)

    def forward_pass(self, chain: Any, by: Any) -> Any:
        found = super().forward_pass(chain, by)
        self.sampled_thrice(chain, found[0].detach())
        return found


class Wavering(DiscreteAdjoint):
    """Gives another gradient at every call, whatever the seed."""

    calls: ClassVar[Any] = count(1)

    def backward_pass(self, *given: Any) -> Any:
        return super().backward_pass(*given) * (1 + 1e-6 * next(self.calls))


class Noisy(DiscreteAdjoint):
    """A method that draws, by torch's generator: stochastic, and reproducible."""

    def backward_pass(self, *given: Any) -> Any:
        found = super().backward_pass(*given)
        return found + torch.randn_like(found)


class Elsewhere(Backprop):
    """Returns a sample that is not the sampler's."""

    def rollout(self, *given: Any) -> torch.Tensor:
        return super().rollout(*given) * 1.01


class Meddling(Backprop):
    """Changes the weights."""

    def rollout(self, chain: Any, *given: Any) -> torch.Tensor:
        x_0 = super().rollout(chain, *given)
        chain.denoiser.denoiser.mean.data.mul_(1.01)
        return x_0


class Endless(DiscreteAdjoint):
    """Never has enough."""

    def forward_pass(self, chain: Any, by: Any) -> Any:
        x_0, record = super().forward_pass(chain, by)
        while True:
            chain.denoiser(x_0.detach(), chain.grid[0].t, None)
        return x_0, record


def only(*entries: Entry, case: Case = CASE, steps: int = 5) -> list[dict[str, Any] | None]:
    return list(Measurement(case, 2, 40, False).rows(steps, entries))


def of(method: Callable[[], Any]) -> dict[str, Any]:
    (row,) = only(Entry(method.__name__, method, target="own"))
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Behind, "makes 13 evaluations and counts 10"),
        (Wavering, "another gradient of x_T under the same seed"),
        (Elsewhere, "x_0 is not that of DDIM"),
        (Meddling, "changes the weights"),
    ],
)
def test_who_cheats_is_found_out(method: Any, reason: str) -> None:
    assert reason in of(method)["disqualified"]


def test_weights_that_were_changed_are_put_back() -> None:
    measurement = Measurement(CASE, 2, 40, False)
    before = [w.detach().clone() for w in measurement.problem.denoiser.parameters()]
    list(measurement.rows(5, [Entry("Meddling", Meddling)]))
    after = measurement.problem.denoiser.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_limit_ends_a_method_that_would_not_end() -> None:
    entry = Entry("Endless", Endless, target="own")
    (row,) = Measurement(CASE, 2, 40, False, limit=50).rows(5, [entry])
    assert row is not None and row["failed"].startswith("TooManyEvaluations: more than 50")


def test_the_catalogue_counts_what_it_does() -> None:
    """Every entry of ours at the network itself: nobody is disqualified, and nothing fails."""
    for calculus in ("ode", "sde"):
        rows = only(*CATALOGUE, case=Case("mixture-2", ("reward",), COMMITTED, calculus))
        bad = [r for r in rows if r and (r.keys() & {"disqualified", "failed"})]
        assert not bad
        refused = [r for r in rows if r and "refused" in r]
        assert refused and all("gradient=" in r["refused"] for r in refused)


def test_a_budget_that_the_problems_do_not_fit_into_is_refused_and_no_wrong_gradient() -> None:
    (row,) = only(Entry("small", lambda: DiscreteAdjoint(budget=1000), target="own"))
    assert row is not None and row["refused"].startswith("a budget of 1000 bytes is too small")


def test_an_audit_counts_modules_inside_and_products_and_leaves_no_trace() -> None:
    inner = torch.nn.Linear(2, 2)
    network = torch.nn.Sequential(inner, torch.nn.Tanh())
    network.forward = lambda x, t, z, run=network.forward: run(x)
    x, t = torch.randn(4, 2, requires_grad=True), torch.tensor(0.5)
    before = [vars(m).get("forward") for m in network.modules()]
    with audited(network, x, t, None) as audit:
        y = network(x, t, None)
        for _ in range(2):
            torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert (audit.evaluations, audit.products) == (1, 2)
        inner(x)
        assert audit.evaluations == 2
        network(x[:1], t, None)
        assert audit.evaluations == 3
    assert [vars(m).get("forward") for m in network.modules()] == before
    network(x, t, None)
    assert audit.evaluations == 3
    with pytest.raises(TooManyEvaluations), audited(network, x, t, None, limit=1):
        network(x, t, None), network(x, t, None)


def test_error_is_bias_and_spread() -> None:
    truth = [torch.tensor([3.0, 4.0])] * 2
    found = [torch.tensor([3.0, 5.0]), torch.tensor([3.0, 7.0])]
    numbers = {"error": math.sqrt(5) / 5, "bias": 2 / 5, "spread": 1 / 5,
               "ratio": math.sqrt(46) / 5, "cosine": 33 * 2 / math.sqrt(92 * 50)}  # fmt: skip
    ours = errors(found, truth)
    assert ours == {name: pytest.approx([value]) for name, value in numbers.items()}
    exact = errors(truth, truth)
    assert exact == {
        "error": [0], "bias": [0], "spread": [0], "cosine": pytest.approx([1]), "ratio": [1]
    }  # fmt: skip
    assert errors([torch.tensor([math.nan, 1.0])] * 2, truth)["error"] == [math.inf]
    assert errors(found, [torch.zeros(2)] * 2)["error"] == [math.inf]
    # Problems beside each other: each by itself.
    beside = [torch.cat([a, b, a]) for a, b in zip(found, truth, strict=True)]
    three = errors(beside, [t.repeat(3) for t in truth], members=3)
    for name, value in numbers.items():
        assert three[name] == pytest.approx([value, exact[name][0], value])


def test_a_method_that_draws_has_a_spread_of_the_size_of_its_noise() -> None:
    row, exact = of(Noisy), of(DiscreteAdjoint)
    assert row["chain"]["z"]["spread"] == exact["chain"]["z"]["spread"] == [0]
    size = float(CASE.problem().x_T.numel()) ** 0.5
    problem = CASE.problem()
    found = problem.differentiate(DiscreteAdjoint(), DDIM(), problem.grid("log-SNR", 5))
    length = float(found.gradients["x_T"].norm())
    assert row["chain"]["x_T"]["spread"] == pytest.approx([size / length / 2**0.5], rel=0.5)


def test_the_truth_of_a_gaussian_is_the_closed_form() -> None:
    measurement = Measurement(CASE, 2, 400, False)
    problem = measurement.problem
    x, z = (t.clone().requires_grad_() for t in (problem.x_T, problem.z))
    problem.denoiser.requires_grad_()
    ends = problem.denoiser.flow(x, problem.schedule.t_max, problem.t_min, z)
    weights = list(problem.denoiser.parameters())
    found = torch.autograd.grad(problem.loss(ends), [x, z, *weights])
    closed = {
        "x_T": found[0].flatten(), "z": found[1].flatten(),
        "theta": torch.cat([g.flatten() for g in found[2:]]),
    }  # fmt: skip
    for part, value in measurement.truth.gradients[0].items():
        assert errors([value], [closed[part]])["error"][0] < 1e-8
        assert measurement.truth.moves[part][0] < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_a_problem_and_another_gives_another(family: str, loss: str) -> None:
    one, again, other = drawn(family, loss, 5), drawn(family, loss, 5), drawn(family, loss, 6)
    x = torch.randn_like(one.x_T)
    assert torch.equal(one.x_T, again.x_T) and not torch.equal(one.x_T, other.x_T)
    assert one.loss(x) == again.loss(x) and one.loss(x) != other.loss(x)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(one.denoiser(x, t, one.z), again.denoiser(x, t, one.z))
    # Summed over the batch: samples do not depend on each other.
    rows = sum(one.loss(x[k : k + 1].roll(0)) for k in range(len(x)))
    if loss != "classifier":
        assert one.loss(x) == pytest.approx(float(rows))


def test_the_reward_saturates() -> None:
    loss = drawn("gaussian", "reward", 0).loss
    x = torch.randn(1, 4, dtype=torch.float64)
    assert abs(float(loss(1e3 * x))) == pytest.approx(1)


@pytest.fixture
def installed(monkeypatch) -> None:
    """Two methods of another package, one of which names its samplers."""

    class WithSampler(DiscreteAdjoint):
        """Exact."""

        entries = (Entry("theirs, 2M", DiscreteAdjoint, ode=DPMSolverPP, sde=None),)

    def found(group: str) -> dict[str, Any]:
        return {"behind": Behind, "theirs": WithSampler} if group == "gradients" else {}

    monkeypatch.setattr(leaderboard, "plugins", found)


@pytest.mark.usefixtures("installed")
def test_methods_of_other_packages_take_part() -> None:
    names = contestants()
    assert names["behind"][0].ode is DDIM and names["theirs, 2M"][0].ode is DPMSolverPP
    # The name of the entry point stands for what its class enters.
    assert [e.name for e in task.chosen(["theirs", "theirs, 2M"])] == ["theirs, 2M"]
    assert len(task.chosen(None)) == len(CATALOGUE) + 2
    assert {entry.name for entry in CATALOGUE} < names.keys()
    assert plugins.GROUPS[0] == "gradients"


TINY = [
    "task=leaderboard", "task.problems=[gaussian]", "task.steps=[4,5]", "task.drawn_steps=[5]",
    "task.truth={ode: 40, sde: 40, network: 4}", "task.losses=[distance]", "task.each=1",
    "task.methods=[Backprop,DiscreteAdjoint,behind,SymplecticAdjoint]",
]  # fmt: skip


def run(directory: Path, *more: str) -> dict[str, Any]:
    return task.run(
        composed([*TINY, f"paths.run={directory}", f"task.cells={directory}/cells", *more])
    )


@pytest.mark.usefixtures("installed")
def test_the_page_is_made_and_what_was_measured_is_not_measured_again(
    tmp_path, monkeypatch
) -> None:
    files = [Path(name) for name in run(tmp_path)["files"]]
    assert [path.name for path in files] == ["leaderboard.html", "leaderboard.md", "result.json"]
    page = files[1].read_text()
    assert "| behind " in page and "makes 13 evaluations and counts 10" in page
    # Two exact gradients of one sampler: the same error, the cheaper one first.
    (line,) = [line for line in page.splitlines() if line.startswith("| ODE") and "x_T   " in line][
        :1
    ]
    assert line.index("Backprop") < line.index("DiscreteAdjoint")
    # The paths ran under the SDE, too, and the symplectic method said no.
    assert "SymplecticAdjoint does not differentiate sde solvers" in page
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(cells) == 2 * 2 + 2
    monkeypatch.setattr(Measurement, "rows", None)
    run(tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()} == cells
    # A damaged file, and a method that came later, are measured: here they cannot be.
    with pytest.raises(TypeError):
        run(tmp_path, "task.methods=[Backprop,FlowGrad]")
    (tmp_path / "cells" / sorted(cells)[0]).write_text("{")
    with pytest.raises(TypeError):
        run(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.methods=[Backprob]", "'Backprob' is unknown; there are Backprop"),
        (f"seed={COMMITTED}", "is the committed set; choose another"),
        ("task.steps=[] task.draws=0", "no problem is left"),
    ],
)
def test_wrong_settings_are_named(tmp_path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "task.methods=null", *override.split())
    assert not list(tmp_path.iterdir())


def test_a_network_alone_is_measured() -> None:
    """What leaves out the closed forms left out the networks, too, and the page was empty."""
    wanted = ["task.problems=[mini]", "task.steps=[]", "task.network_steps=[2]", "task.draws=0"]
    _, _, todo = task.check(composed([*TINY, "task.cells=cells", "task.methods=null", *wanted]))
    assert {case.family for case in todo} == {"mini"}


def test_a_network_that_is_not_installed_is_told_before_anything_is_measured(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "terrain_diffusion", None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps adaptive-terrain"):
        task.check(composed([*TINY, "task.cells=cells", "task.problems=[gaussian,terrain]"]))


def test_networks_are_not_drawn() -> None:
    found = cases(["mini", "gaussian"], ["reward"], ["ode"], 1, 2, 6, 4, ["distance", "reward"])
    assert [(c.family, c.losses, c.seed, c.members, c.number) for c in found] == [
        ("mini", ("distance",), COMMITTED, 1, 0), ("mini", ("reward",), COMMITTED, 1, 1),
        ("gaussian", ("reward",), COMMITTED, 6, 0), ("gaussian", ("reward",), 1, 4, 0),
        ("gaussian", ("reward",), 2, 4, 0),
    ]  # fmt: skip
    assert len({case.key for case in found}) == len(found)


def test_problems_of_a_network_are_different_pairs() -> None:
    one, two = (network_problem("mini", "reward", number) for number in (0, 2))
    assert one.x_T.shape == two.x_T.shape and not torch.equal(one.z, two.z)
    assert one.loss(one.x_T) != two.loss(one.x_T)
    with pytest.raises(ValueError, match="mini has the problems 0 to 2, and no 3"):
        network_problem("mini", "distance", 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_measured_at_once_are_measured_as_each_alone(family: str) -> None:
    losses = tuple(LOSSES)
    case = Case(family, losses, 5, "ode", 4)
    problem = case.problem()
    grid = problem.grid("log-SNR", 6)
    found = problem.differentiate(DiscreteAdjoint(), DPMSolverPP(), grid).gradients
    for k, loss in enumerate((*losses, losses[0])):
        alone = drawn(family, loss, 5000 + k)
        own = alone.differentiate(DiscreteAdjoint(), DPMSolverPP(), grid).gradients
        for part, value in own.items():
            assert torch.allclose(found[part].unflatten(0, (4, -1))[k], value, rtol=1e-9)
