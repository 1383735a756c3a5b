"""The forward world: schedules, time grids, denoisers, and noise paths."""

from adjointdeis.diffusion.checkpointing import checkpoint_blocks
from adjointdeis.diffusion.classifier_free import ClassifierFreeGuidance, Guidance
from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.cycle_sde import CycleSDE
from adjointdeis.diffusion.denoiser import (
    Denoiser,
    EpsFromFlow,
    EpsFromV,
    EpsFromX0,
    FromTimesteps,
)
from adjointdeis.diffusion.from_diffusers import DiffusersModel, from_diffusers
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.noise import BrownianPath, Noise, RecordedNoise, as_noise
from adjointdeis.diffusion.oracles import GaussianDenoiser, MixtureDenoiser
from adjointdeis.diffusion.schedule import DDPM, RectifiedFlow, Schedule, VPCosine, VPLinear

__all__ = [
    "DDPM",
    "BrownianPath",
    "ClassifierFreeGuidance",
    "CycleSDE",
    "Denoiser",
    "DiffusersModel",
    "EpsFromFlow",
    "EpsFromV",
    "EpsFromX0",
    "FromTimesteps",
    "GaussianDenoiser",
    "Guidance",
    "MixtureDenoiser",
    "Node",
    "Noise",
    "PerStep",
    "RecordedNoise",
    "RectifiedFlow",
    "Schedule",
    "TimeGrid",
    "VPCosine",
    "VPLinear",
    "as_noise",
    "checkpoint_blocks",
    "from_diffusers",
]
