"""The peers of experiments/benchmarks compute what they are timed for; bytes are counted right."""

import warnings

import pytest
import torch

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.harness.live_memory import LiveBytes, peak_bytes
from experiments.benchmarks import measure, optimisations, peers, run

CPU = torch.device("cpu")


@pytest.fixture
def problem():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 6, dtype=torch.float64) / 3

    def denoiser(x, t, z):
        return torch.tanh(x @ first + z + t.to(x)) @ second + x / 2

    latents = torch.randn(3, 2, 6, dtype=torch.float64)
    return peers.TimedProblem(denoiser, TimeGrid.uniform_lmbda(VPLinear(), 8), *latents)


def agree(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(a.abs().max()))


def test_exact_peers_compute_the_exact_gradient(problem) -> None:
    expected = peers.plain_backpropagation(problem)
    agree(expected, peers.checkpointed(problem))
    for method in (DiscreteAdjoint(), DiscreteAdjoint(keep_activations=8), Backprop()):
        agree(expected, peers.through(method)(problem))


def test_adjoint_peers_compute_adjointdeis_1(problem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = peers.through(AdjointDEIS())(problem)
    agree(expected, peers.published_pattern(problem))
    agree(expected, peers.torchdiffeq_adjoint(problem))


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("floor: N F + N (F + VJP)", 16),
        ("exact gradient", 16),
        ("exact gradient, activations kept", 8),
        ("AdjointDEIS-1", 16),
        ("Backprop", 8),
        ("plain backpropagation", 8),
        ("torch.utils.checkpoint", 16),
        ("published cost pattern", 24),
        ("torchdiffeq odeint_adjoint", 16),
        ("torchsde sdeint_adjoint", 17),  # one more, to check the shapes of what it was given
    ],
)
def test_every_method_evaluates_what_its_cost_model_says(problem, name, evaluations) -> None:
    calls = []

    def counted(x, t, z):
        calls.append(1)
        return problem.denoiser(x, t, z)

    changed = peers.TimedProblem(counted, problem.grid, problem.x_T, problem.z, problem.cotangent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peers.methods(8)[name](changed)
    assert len(calls) == evaluations
    assert all(part.isfinite().all() and part.abs().max() > 0 for part in found)


def test_live_bytes_are_those_of_a_graph() -> None:
    x = torch.randn(1000, dtype=torch.float64, requires_grad=True)

    def chain(length: int):
        def run() -> None:
            y = x
            for _ in range(length):
                y = y.exp()  # saves its result, 8000 bytes
            torch.autograd.grad(y.sum(), x)

        return run

    short, long = (peak_bytes(chain(length), CPU) for length in (10, 30))
    assert long - short == 20 * 8000


def test_live_bytes_count_a_storage_once_and_forget_the_dead() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(100)
        views = [kept.view(10, 10), kept[5:], kept.t()]
        assert live.now == 400
        del kept, views
        assert live.now == 0
        torch.zeros(50)
    assert live.peak == 400


def test_rounds_are_paired_and_bounded() -> None:
    calls = []
    work = {name: (lambda n=name: calls.append(n)) for name in "ab"}
    times = measure.interleaved(work, rounds=5, seconds=100.0, device=CPU)
    assert [len(values) for values in times.values()] == [5, 5]
    assert all(set(calls[k : k + 2]) == {"a", "b"} for k in range(0, 12, 2))
    found = measure.ratio({"a": [2.0, 6.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    assert found == {"median": 3.0, "low": 2.5, "high": 3.0}
    once = measure.interleaved(work, rounds=5, seconds=0.0, device=CPU)
    assert [len(values) for values in once.values()] == [1, 1]


def test_every_option_of_the_benchmark_leaves_the_gradient_as_it_is() -> None:
    small = run.mini(2, 2, CPU)
    for option in optimisations.options(small, compile=False):
        said = optimisations.agreement(option)
        if option.images == 1.0:
            assert float(said.removeprefix("cosine ")) > 0.999, option.name
    parts = optimisations.measure_parts(small, CPU, rounds=1)
    assert all(seconds > 0 for seconds in parts.values())
