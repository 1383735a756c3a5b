"""Every way of running a network against the plain one: same numbers, within its arithmetic."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from adjointdeis.diffusion.denoiser import FromTimesteps
from adjointdeis.diffusion.execution import CompilationWarning, Execution
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.faces.networks import DiffAE, DiffAEConfig
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM


@pytest.fixture(scope="module")
def network() -> DiffAE:
    torch.manual_seed(0)
    made = DiffAE(
        DiffAEConfig(
            image_size=8,
            model_channels=16,
            channel_mult=(1, 2),
            encoder_channel_mult=(1, 2),
            residual_blocks=1,
            attention_resolutions=(4,),
            embed_channels=32,
            code_channels=16,
            patch_size=1,
            dropout=0.0,
        )
    )
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)  # zero blocks would hide what they compute
    return made.eval().requires_grad_(False)


def latents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_T, weight = torch.randn(2, 2, 3, 8, 8, generator=generator)
    return x_T, torch.randn(2, 16, generator=generator), weight


def gradients(network: nn.Module, method=None, scale: float = 1.0) -> list[torch.Tensor]:
    """x_0, and the gradient of a linear loss on it."""
    schedule = DDPM()
    x_T, z, weight = latents()
    x_T, z = x_T.requires_grad_(), z.requires_grad_()
    rollout = sample(
        FromTimesteps(network, schedule),
        x_T,
        z,
        solver=DDIM(),
        grid=TimeGrid.greedy_dim(schedule, 4),
        gradient=method,
    )
    (scale * weight * rollout.x_0).sum().backward()
    return [rollout.x_0.detach(), x_T.grad / scale, z.grad / scale]  # type: ignore[operator]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def test_the_default_is_the_network_itself(network) -> None:
    assert Execution().of(network) is network


def test_channels_last_changes_rounding_only(network) -> None:
    executed = Execution(channels_last=True).of(network)
    first = executed.network.input_blocks[0][0].weight  # type: ignore[index, union-attr]
    assert first.is_contiguous(memory_format=torch.channels_last)
    plain = gradients(network)
    for one, other in zip(plain, gradients(executed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_keeps_state_and_direction(network, precision: str) -> None:
    executed = Execution(precision).of(network)
    plain, reduced = gradients(network), gradients(executed)
    for one, other in zip(plain, reduced, strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other), "the network did run in another arithmetic"
        assert cosine(one, other) > 0.999


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [2.0**-30, 2.0**30])
def test_tiny_and_huge_cotangents_survive(network, precision: str, scale: float) -> None:
    executed = Execution(precision).of(network)
    usual = gradients(executed)
    for one, other in zip(usual, gradients(executed, scale=scale), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_every_method_recomputes_in_the_same_arithmetic(network, precision: str) -> None:
    executed = Execution(precision, channels_last=True).of(network)
    expected = gradients(executed, Backprop())
    for method in (DiscreteAdjoint(), DiscreteAdjoint(snapshots=2)):
        for one, other in zip(expected, gradients(executed, method), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3 * float(one.abs().max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adjoint = gradients(executed, AdjointDEIS())
    assert all(part.isfinite().all() for part in adjoint)


def test_float16_refuses_to_train_weights(network) -> None:
    executed = Execution("float16").of(network)
    network.requires_grad_(True)
    try:
        with pytest.raises(ValueError, match="differentiates latents only"):
            gradients(executed)
    finally:
        network.requires_grad_(False)


def test_frozen_weights_get_no_gradient(network) -> None:
    seen: list[bool] = []
    handle = network.register_forward_hook(
        lambda module, given, output: seen.append(any(p.requires_grad for p in module.parameters()))
    )
    gradients(network)
    handle.remove()
    assert seen and not any(seen)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match=r"precision='int8' must be float32, bfloat16 or float16"):
        Execution("int8")  # type: ignore[arg-type]


def test_compilation_needs_something_to_try(network) -> None:
    with pytest.raises(ValueError, match="needs example inputs"):
        Execution(compile=True).of(network)


def example() -> tuple[torch.Tensor, ...]:
    x_T, z, _ = latents()
    return x_T, torch.full((2,), 500), z


def test_a_failed_compilation_is_one_line_and_no_failure(network, monkeypatch) -> None:
    def broken(module):
        def run(*inputs):
            raise RuntimeError("no C++ compiler\nand more lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(CompilationWarning) as caught:
        executed = Execution(compile=True).of(network, example())
    assert str(caught[0].message) == (
        "torch.compile failed (RuntimeError: no C++ compiler); running uncompiled"
    )
    for one, other in zip(gradients(network), gradients(executed), strict=True):
        torch.testing.assert_close(one, other)


def test_what_compiles_runs_in_the_place_of_the_network(network, monkeypatch) -> None:
    calls = []

    def traced(module):
        def run(*inputs):
            calls.append(torch.is_grad_enabled())
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", traced)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompilationWarning)
        executed = Execution(compile=True).of(network, example())
    assert calls == [False, True], "tried once in each mode before the run"
    assert len(list(executed.parameters())) == len(list(network.parameters()))
    for one, other in zip(gradients(network), gradients(executed), strict=True):
        torch.testing.assert_close(one, other)
    assert len(calls) > 2


@pytest.mark.parametrize("generated", [True, False])
def test_a_damaged_library_is_compiled_again_once_it_is_gone(
    network, monkeypatch, tmp_path, generated: bool
) -> None:
    library = tmp_path / "x.main.so"
    library.touch()
    if generated:
        library.with_suffix(".cpp").touch()

    def traced(module):
        def run(*inputs):
            if library.exists():
                raise ImportError("file too short", path=str(library))
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", traced)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Execution(compile=True).of(network, example())
    # What torch did not generate is not ours to remove.
    assert library.exists() is not generated
    assert [w.category for w in caught] == ([] if generated else [CompilationWarning])


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler",
)


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    """A folder of its own for what torch generates, and a fresh start of its compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield tmp_path / "inductor"
    torch.compiler.reset()


def assert_compiled_parity(network: nn.Module) -> None:
    with warnings.catch_warnings():
        # Uncompiled it would be the plain network, and the comparison would say nothing.
        warnings.simplefilter("error", CompilationWarning)
        executed = Execution(compile=True).of(network, example())
    for one, other in zip(gradients(network), gradients(executed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.slow
@pytest.mark.timeout(3000)  # minutes of compilation, on a machine that has other work
@needs_compiler
def test_generated_code_gives_the_same_gradient(network, compiler_cache) -> None:
    assert_compiled_parity(network)
    assert list(compiler_cache.rglob("*.so")), "something was generated"


class Film(nn.Module):
    """Two convolutions and a condition: quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.outwards = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.condition = nn.Linear(16, 8)

    def forward(self, x, timesteps, z):
        hidden = self.inwards(x) + self.condition(z)[:, :, None, None] + timesteps[0] / 1000
        return self.outwards(nn.functional.silu(hidden))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_compiler
def test_a_killed_compilation_is_made_up_for(tmp_path, compiler_cache) -> None:
    torch.manual_seed(0)
    saved = tmp_path / "film.pt"
    torch.save(Film().requires_grad_(False).state_dict(), saved)
    script = (
        "import sys, torch, test_execution as tests\n"
        "network = tests.Film().requires_grad_(False)\n"
        "network.load_state_dict(torch.load(sys.argv[1]))\n"
        "tests.assert_compiled_parity(network)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}

    def fresh_process() -> None:
        done = subprocess.run(
            [sys.executable, "-c", script, str(saved)], env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    fresh_process()
    libraries = list(compiler_cache.rglob("*.main.so"))
    assert libraries
    # As the linker leaves them when it is killed while it writes.
    for library in libraries:
        library.write_bytes(b"")
    fresh_process()
    assert all(library.stat().st_size > 0 for library in libraries)
