"""Gradients of diffusion sampling with respect to the noise, the condition and the weights."""

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM, RectifiedFlow, VPCosine, VPLinear
from adjointdeis.rollout import Encoding, Rollout, encode, sample

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "Encoding",
    "RectifiedFlow",
    "Rollout",
    "TimeGrid",
    "VPCosine",
    "VPLinear",
    "encode",
    "sample",
]
