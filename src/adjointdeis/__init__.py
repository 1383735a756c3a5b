"""Gradients of diffusion sampling with respect to the noise, the condition and the weights."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adjointdeis.adaptive import (
        AdaptiveGradient,
        AdaptiveGrid,
        adaptive_gradient,
        adaptive_grid,
    )
    from adjointdeis.diffusion.conditions import PerStep
    from adjointdeis.diffusion.grid import TimeGrid
    from adjointdeis.diffusion.schedule import (
        DDPM,
        RectifiedFlow,
        VarianceExploding,
        VPCosine,
        VPLinear,
    )
    from adjointdeis.rollout import Encoding, Rollout, encode, sample

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "AdaptiveGradient",
    "AdaptiveGrid",
    "Encoding",
    "PerStep",
    "RectifiedFlow",
    "Rollout",
    "TimeGrid",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "adaptive_gradient",
    "adaptive_grid",
    "encode",
    "sample",
]

# Imported when first used: the evaluation library below this package needs no torch, and its
# command line must not wait seconds for one.
_HOMES = {
    "adjointdeis.diffusion.grid": ("TimeGrid",),
    "adjointdeis.diffusion.schedule": (
        "DDPM",
        "RectifiedFlow",
        "VPCosine",
        "VPLinear",
        "VarianceExploding",
    ),
    "adjointdeis.diffusion.conditions": ("PerStep",),
    "adjointdeis.adaptive": (
        "AdaptiveGradient",
        "AdaptiveGrid",
        "adaptive_gradient",
        "adaptive_grid",
    ),
    "adjointdeis.rollout": ("Encoding", "Rollout", "encode", "sample"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
