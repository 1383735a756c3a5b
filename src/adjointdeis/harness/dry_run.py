"""What a morphing run will cost, from one evaluation of each kind on its device."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adjointdeis.harness.batch_size import memory_taken
from adjointdeis.morphing.attack import Attack, Workbench

_GIB = 2**30
UnitTimes = dict[str, float]
"""Seconds a pair of one evaluation of each kind, by the counter of a cost that counts it."""


class DryRunError(RuntimeError):
    """A network does not do what the run will ask of it."""


def expected_costs(
    attacks: Sequence[Attack],
    bench: Workbench,
    todo: Mapping[str, int],
    batch_size: int,
    times: Mapping[str, UnitTimes],
) -> list[dict[str, Any]]:
    """Expected cost of every attack.

    Args:
        attacks: The rows.
        bench: With the device that the run will have.
        todo: How many pairs have no morph yet, by attack.
        batch_size: Pairs optimised together.
        times: Seconds of one evaluation of each kind, by resource.
    """
    taken = memory_taken(bench.device)
    rows = []
    for attack in attacks:
        attack.check(bench)
        pairs, cost = todo[attack.name], attack.expected_cost()
        row: dict[str, Any] = {
            "attack": attack.name,
            "label": attack.label,
            "pairs": pairs,
            "nfe_paper": attack.nfe_paper,
            **cost.counters(),
            "hours": None,
            "gib": None,
        }
        units: dict[str, float] = {}
        for name in attack.resources:
            units |= times.get(name, {})
        work = {key: n for key, n in vars(attack.device_cost()).items() if n and key in COUNTERS}
        # Where something cannot be timed, no number is better than one that leaves it out.
        if work and units.keys() >= work.keys():
            row["hours"] = pairs * sum(n * units[key] for key, n in work.items()) / 3600
            side = attack.image_size(bench) or 0
            latents = attack.stored_latents * batch_size * 3 * side * side * 4
            row["gib"] = (taken + latents) / _GIB
        rows.append(row)
    return rows


COUNTERS = ("encode", "nfe_forward", "nfe_backward", "vjps", "loss_gradients", "loss_evaluations")


def time_autoencoder(autoencoder: Any, bench: Workbench, batch: int) -> UnitTimes:
    """Times the denoiser without a graph, and with one and back to (x, z).

    Args:
        autoencoder: The diffusion autoencoder.
        bench: Where its device is.
        batch: Pairs at a time.

    Raises:
        DryRunError: An output has another shape than it must, or is not finite.
    """
    device, network = bench.device, autoencoder.network.to(bench.device)
    size = network.config.image_size
    image = torch.zeros(batch, 3, size, size, device=device)
    x, t = torch.randn(image.shape, device=device), torch.tensor(0.5, dtype=torch.float64)
    denoiser = autoencoder.denoiser
    with torch.no_grad():
        z = autoencoder.code(image)
        if z.ndim != 2 or len(z) != batch:
            raise DryRunError(f"codes have shape {tuple(z.shape)}, expected ({batch}, D)")
        plain = _seconds(lambda: denoiser(x, t, z), "the denoiser", x.shape, device)
    vjp = _seconds(lambda: _pulled_back(denoiser, x, t, z), "its VJP", x.shape, device)
    # A vector-Jacobian product is timed with the evaluation that builds its graph.
    return {"encode": plain / batch, "nfe_forward": plain / batch, "vjps": vjp / batch} | {
        "nfe_backward": 0.0
    }


def time_identity(identity: Any, bench: Workbench, batch: int) -> UnitTimes:
    """Times the identity network, alone and back to the image.

    Args:
        identity: What offers ``network`` and ``features``.
        bench: Where its device is, and the autoencoder that says how large images are.
        batch: Pairs at a time.

    Raises:
        DryRunError: An output has another shape than it must, or is not finite.
    """
    device = bench.device
    identity.network.to(device)
    autoencoder = bench.resources.get("autoencoder")
    side = 112 if autoencoder is None else autoencoder.network.config.image_size
    face = torch.zeros(batch, 3, side, side, device=device)

    def gradient() -> Tensor:
        leaf = face.clone().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(identity.features(leaf).sum(), leaf)
        return found

    with torch.no_grad():
        features = identity.features(face)
        plain = _seconds(
            lambda: identity.features(face), "the identity network", features.shape, device
        )
    seconds = _seconds(gradient, "the identity network's gradient", face.shape, device)
    return {"loss_gradients": seconds / batch, "loss_evaluations": plain / batch}


def cost_table(rows: Sequence[Mapping[str, Any]], device: torch.device, batch: int) -> str:
    """The costs as a text table.

    Args:
        rows: What `expected_costs` gives.
        device: Where the times were taken.
        batch: Pairs optimised together.
    """
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


def _pulled_back(denoiser: Callable, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    with torch.enable_grad():
        eps = denoiser(x, t, z)
        a_x, a_z = torch.autograd.grad(eps, (x, z), torch.ones_like(eps))
    if not a_z.isfinite().all():
        raise DryRunError("the denoiser's gradient with respect to z is not finite")
    return a_x


def _seconds(
    call: Callable[[], Tensor], name: str, shape: torch.Size, device: torch.device
) -> float:
    """Seconds of the second call: the first one is for allocators and kernels."""
    found = call()
    if found.shape != shape:
        raise DryRunError(f"{name} has shape {tuple(found.shape)}, expected {tuple(shape)}")
    if not found.isfinite().all():
        raise DryRunError(f"{name} is not finite")
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
