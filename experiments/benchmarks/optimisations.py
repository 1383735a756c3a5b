"""What each optimisation gives: the same gradient with and without it, interleaved."""

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjointdeis.diffusion.execution import Execution
from adjointdeis.faces.image_io import write_image
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from adjointdeis.harness import assets
from adjointdeis.harness.encodings import Encodings
from adjointdeis.morphing.identity_loss import IdentityLoss
from experiments.benchmarks.measure import interleaved, ratio
from experiments.benchmarks.peers import Gradients, TimedProblem, published_pattern, through

EXACT = through(DiscreteAdjoint())


@dataclass(frozen=True)
class Option:
    """An optimisation, what it is measured against, and how often more images it handles."""

    name: str
    base: str
    run: Callable[[], Any]
    plain: Callable[[], Any]
    images: float = 1.0


def executed(problem: TimedProblem, execution: Execution) -> TimedProblem:
    """The embedded network run another way; a copy, for a layout changes the weights in place."""
    autoencoder = assets.autoencoder("diffae.safetensors", assets.profile("mini"))
    autoencoder.network.to(problem.x_T.device)
    return replace(problem, denoiser=replace(autoencoder, execution=execution).denoiser)


@contextmanager
def unfused_attention():
    """Attention as two products and a softmax, with the matrix of weights held in the graph."""

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

    fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, explicit
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def with_unfused_attention(problem: TimedProblem) -> Gradients:
    """The exact gradient without fused attention."""
    with unfused_attention():
        return EXACT(problem)


def with_trainable_weights(problem: TimedProblem) -> Gradients:
    """The exact gradient of a network that nobody froze: weight gradients are computed too."""
    assert isinstance(problem.denoiser, nn.Module)
    problem.denoiser.requires_grad_(True)
    try:
        return EXACT(problem)
    finally:
        problem.denoiser.requires_grad_(False)


def single(problem: TimedProblem) -> TimedProblem:
    """The first image of a batch."""
    return replace(
        problem,
        x_T=problem.x_T[:1],
        z=problem.z[:1],
        cotangent=problem.cotangent[:1],
    )


def options(problem: TimedProblem, compile: bool) -> list[Option]:
    """Every option that makes sense on the problem's device."""
    steps, batch = problem.grid.steps, len(problem.x_T)
    plain = lambda: EXACT(problem)  # noqa: E731
    kept = through(DiscreteAdjoint(keep_activations=steps))
    last = executed(problem, Execution(channels_last=True))
    bf16 = executed(problem, Execution("bfloat16"))
    both = executed(problem, Execution("bfloat16", channels_last=True))
    found = [
        Option(
            "weights frozen",
            "trainable weights",
            plain,
            lambda: with_trainable_weights(problem),
        ),
        Option(
            "one product for x and z",
            "two products (AdjointDEIS-1)",
            lambda: through(AdjointDEIS())(problem),
            lambda: published_pattern(problem),
        ),
        Option("activations kept", "exact gradient", lambda: kept(problem), plain),
        Option(
            "fused attention",
            "explicit attention",
            plain,
            lambda: with_unfused_attention(problem),
        ),
        Option("channels_last", "exact gradient", lambda: EXACT(last), plain),
        Option("bfloat16", "exact gradient", lambda: EXACT(bf16), plain),
        Option("bfloat16, channels_last", "exact gradient", lambda: EXACT(both), plain),
        Option(
            f"batch of {batch}",
            "batch of 1, per image",
            plain,
            lambda: EXACT(single(problem)),
            images=batch,
        ),
    ]
    if problem.x_T.device.type == "cuda":
        half = executed(problem, Execution("float16", channels_last=True))
        found.append(Option("float16, channels_last", "exact gradient", lambda: EXACT(half), plain))
    if compile:
        built = executed(problem, Execution(compile=True))
        found.append(Option("torch.compile", "exact gradient", lambda: EXACT(built), plain))
    return found


def agreement(option: Option) -> str:
    """Least cosine of the gradients of x_T and z with and without the option."""
    if option.images != 1.0:
        return "-"
    cosines = [
        float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))
        for one, other in zip(option.run(), option.plain(), strict=True)
    ]
    return f"cosine {min(cosines):.6f}"


def measure_optimisations(
    problem: TimedProblem, device: torch.device, rounds: int, seconds: float, compile: bool
) -> list[dict[str, Any]]:
    """Times faster (median and quartiles of the paired ratio) and agreement, per option."""
    chosen, rows = options(problem, compile), []
    for option in chosen:
        work = {"with": option.run, "without": option.plain}
        times = interleaved(work, rounds, seconds / len(chosen), device)
        gain = ratio(times, "without", "with")
        rows.append(
            {
                "name": option.name,
                "base": option.base,
                "speedup": gain["median"] * option.images,
                "low": gain["low"] * option.images,
                "high": gain["high"] * option.images,
                "rounds": len(times["with"]),
                "parity": agreement(option),
            }
        )
    return rows


def measure_parts(problem: TimedProblem, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of what surrounds a gradient, per image, beside one exact gradient."""
    profile = assets.profile("mini")
    autoencoder = assets.autoencoder("diffae.safetensors", profile)
    guide = assets.recogniser("guide.safetensors", profile)
    for network in (autoencoder.network, guide.network):
        network.to(device)
    images, batch = problem.x_T.clamp(-1, 1), len(problem.x_T)
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    with torch.no_grad():
        features = guide.features(images)

    def identity_step() -> None:
        x_0 = images.detach().requires_grad_()
        loss = IdentityLoss(guide.features)(x_0, features, features.flip(0)).loss.sum()
        torch.autograd.grad(loss, x_0)

    def source_features() -> None:
        with torch.no_grad():
            guide.features(images)

    with tempfile.TemporaryDirectory() as folder:
        cached, afresh = Encodings(autoencoder, Path(folder)), Encodings(autoencoder, None)
        cached(pixels, device, 50)
        work = {
            "exact gradient": lambda: EXACT(problem),
            "identity loss and its gradient": identity_step,
            "identity features of one source": source_features,
            "writing a morph (64x64 PNG)": lambda: write_image(Path(folder) / "m.png", pixels[0]),
            "an encoding of 50 steps, computed": lambda: afresh(pixels, device, 50),
            "an encoding, from the cache": lambda: cached(pixels, device, 50),
        }
        times = interleaved(work, rounds, 60.0, device)
    per_image = (
        "exact gradient",
        "identity loss and its gradient",
        "identity features of one source",
    )
    return {
        name: float(np.median(values)) / (batch if name in per_image else 1)
        for name, values in times.items()
    }
