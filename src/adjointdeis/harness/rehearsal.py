"""What a morphing run will cost, from one evaluation of each kind on its device."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjointdeis.faces.datasets.pairs import Pair
from adjointdeis.harness.batch_size import memory_taken
from adjointdeis.morphing.adjoint_dim import GuidedDiM
from adjointdeis.morphing.attack import Attack, Workbench
from adjointdeis.morphing.dim import DiM

_GIB = 2**30


class RehearsalError(RuntimeError):
    """A network does not do what the run will ask of it."""


@dataclass(frozen=True)
class Units:
    """Seconds a pair of one evaluation, one vector-Jacobian product, one gradient of the loss.

    Attributes:
        evaluation: Denoiser without a graph.
        vjp: Denoiser with a graph, and back to (x, z).
        loss_gradient: Identity network, and back to the image.
        memory: Bytes held at most when each had run once at the batch size.
    """

    evaluation: float
    vjp: float
    loss_gradient: float
    memory: int


def rehearse(
    attacks: Sequence[Attack], bench: Workbench, todo: Mapping[str, Sequence[Pair]], batch_size: int
) -> list[dict[str, Any]]:
    """Expected price of every attack.

    Args:
        attacks: The rows.
        bench: With the device that the run will have.
        todo: Pairs without a morph, by attack.
        batch_size: Pairs optimised together.

    Raises:
        RehearsalError: A network's output has another shape than it must, or is not finite.
    """
    units = measure(bench, max(1, min(batch_size, max(map(len, todo.values()), default=1))))
    rows = []
    for attack in attacks:
        pairs, price = len(todo[attack.name]), attack.price()
        row: dict[str, Any] = {
            "attack": attack.name,
            "label": attack.label,
            "pairs": pairs,
            "nfe_paper": attack.nfe_paper,
            "encode": price.encode,
            "forward": price.forward,
            "vjps": price.vjps,
            "loss_gradients": price.loss_gradients,
            "hours": None,
            "gib": None,
        }
        if isinstance(attack, DiM):
            attack.sampling_grid(bench.generator()[0].schedule)
            # The accounting counts both sources as one; the device has to do both.
            evaluations = 2 * price.encode + price.forward
            seconds = evaluations * units.evaluation + price.vjps * units.vjp
            seconds += (price.loss_gradients + _losses(attack)) * units.loss_gradient
            row["hours"] = pairs * seconds / 3600
            row["gib"] = (units.memory + _latents(attack, bench, batch_size)) / _GIB
        rows.append(row)
    return rows


def measure(bench: Workbench, batch: int) -> Units:
    """Times one evaluation of each kind, and looks at what it returns.

    Args:
        bench: Networks; those that are absent cost nothing.
        batch: Pairs.
    """
    evaluation = vjp = loss_gradient = 0.0
    if bench.autoencoder is not None:
        network = bench.autoencoder.network.to(bench.device)
        size, device = network.config.image_size, bench.device
        image = torch.zeros(batch, 3, size, size, device=device)
        x = torch.randn(image.shape, device=device)
        denoiser, t = bench.autoencoder.denoiser, torch.tensor(0.5, dtype=torch.float64)
        with torch.no_grad():
            z = bench.autoencoder.code(image)
            if z.ndim != 2 or len(z) != batch:
                raise RehearsalError(f"codes have shape {tuple(z.shape)}, expected ({batch}, D)")
            evaluation = _seconds(lambda: denoiser(x, t, z), "the denoiser", x.shape, device)
        vjp = _seconds(lambda: _pulled_back(denoiser, x, t, z), "its VJP", x.shape, device)
    if bench.identity is not None:
        identity = bench.identity
        identity.network.to(bench.device)
        side = 112 if bench.autoencoder is None else bench.autoencoder.network.config.image_size
        face = torch.zeros(batch, 3, side, side, device=bench.device)

        def slope() -> Tensor:
            leaf = face.clone().requires_grad_()
            with torch.enable_grad():
                (found,) = torch.autograd.grad(identity.features(leaf).sum(), leaf)
            return found

        loss_gradient = _seconds(slope, "the identity network's gradient", face.shape, bench.device)
    taken = memory_taken(bench.device)
    return Units(evaluation / batch, vjp / batch, loss_gradient / batch, taken)


def rehearsal_table(rows: Sequence[Mapping[str, Any]], device: torch.device, batch: int) -> str:
    """The prices as a text table."""
    head = ("attack", "pairs", "NFE (paper)", "counted", "hours", "GiB")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        counted = f"{row['encode'] + row['forward']}"
        for key, name in (("vjps", "VJPs"), ("loss_gradients", "loss gradients")):
            counted += f" + {row[key]} {name}" if row[key] else ""
        hours = row["hours"]
        lines.append(
            (
                row["label"],
                str(row["pairs"]),
                "-" if row["nfe_paper"] is None else str(row["nfe_paper"]),
                counted,
                "-" if hours is None else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}",
                "-" if row["gib"] is None else f"{row['gib']:.2f}",
            )
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    total = sum(row["hours"] or 0 for row in rows)
    text.append(
        f"On {device}, {batch} pairs at a time: about {total:.2f} hours for what is listed in "
        "hours. Networks, shapes and devices were tried; nothing was run. Encodings in the cache "
        "cost nothing, the judges' scoring is not in it."
    )
    return "\n".join(text)


def _losses(attack: Attack) -> int:
    return attack.optimisation_steps if isinstance(attack, GuidedDiM) else 0


def _latents(attack: Attack, bench: Workbench, batch: int) -> int:
    """Bytes of the states that a gradient keeps: N + 1 latents a pair."""
    if not isinstance(attack, GuidedDiM):
        return 0
    side = bench.generator()[0].network.config.image_size
    return (attack.sampling_steps + 1) * batch * 3 * side * side * 4


def _pulled_back(denoiser: Callable, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    with torch.enable_grad():
        eps = denoiser(x, t, z)
        a_x, a_z = torch.autograd.grad(eps, (x, z), torch.ones_like(eps))
    if not a_z.isfinite().all():
        raise RehearsalError("the denoiser's gradient with respect to z is not finite")
    return a_x


def _seconds(
    call: Callable[[], Tensor], name: str, shape: torch.Size, device: torch.device
) -> float:
    """Seconds of the second call: the first one is for allocators and kernels."""
    found = call()
    if found.shape != shape:
        raise RehearsalError(f"{name} has shape {tuple(found.shape)}, expected {tuple(shape)}")
    if not found.isfinite().all():
        raise RehearsalError(f"{name} is not finite")
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
