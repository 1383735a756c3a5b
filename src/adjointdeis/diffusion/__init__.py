"""The forward world: schedules, time grids, denoisers, and noise paths."""

from adjointdeis.diffusion.checkpointing import checkpoint_blocks
from adjointdeis.diffusion.classifier_free import ClassifierFreeGuidance, Guidance
from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.cycle_sde import CycleSDE
from adjointdeis.diffusion.denoiser import (
    EDM,
    Denoiser,
    EpsFromFlow,
    EpsFromV,
    EpsFromX0,
    FromNoiseLevels,
    FromTimesteps,
)
from adjointdeis.diffusion.fit import InitialNoiseWarning, OtherSamplerError
from adjointdeis.diffusion.from_diffusers import DiffusersModel, from_diffusers
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.noise import BrownianPath, Noise, RecordedNoise, as_noise
from adjointdeis.diffusion.oracles import GaussianDenoiser, MixtureDenoiser
from adjointdeis.diffusion.other_libraries import (
    FunctionSchedule,
    from_azula,
    from_diffae,
    from_flow_matching,
    from_k_diffusion,
)
from adjointdeis.diffusion.schedule import (
    DDPM,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VPCosine,
    VPLinear,
)

__all__ = [
    "DDPM",
    "EDM",
    "BrownianPath",
    "ClassifierFreeGuidance",
    "CycleSDE",
    "Denoiser",
    "DiffusersModel",
    "EpsFromFlow",
    "EpsFromV",
    "EpsFromX0",
    "FromNoiseLevels",
    "FromTimesteps",
    "FunctionSchedule",
    "GaussianDenoiser",
    "Guidance",
    "InitialNoiseWarning",
    "MixtureDenoiser",
    "Node",
    "Noise",
    "OtherSamplerError",
    "PerStep",
    "RecordedNoise",
    "RectifiedFlow",
    "Schedule",
    "TimeGrid",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "as_noise",
    "checkpoint_blocks",
    "from_azula",
    "from_diffae",
    "from_diffusers",
    "from_flow_matching",
    "from_k_diffusion",
]
