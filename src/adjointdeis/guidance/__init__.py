"""Algorithms that use gradients through sampling, one file each, one shape: ``solve(problem)``."""

from adjointdeis.guidance.adjoint_dpm import AdjointDPMGuidance
from adjointdeis.guidance.adjoint_matching import AdjointMatching
from adjointdeis.guidance.dflow import DFlow
from adjointdeis.guidance.diffpure import DefenceProblem, DiffPure, Draw, ProjectedAscent
from adjointdeis.guidance.dno import Decorrelation, DirectNoiseOptimisation
from adjointdeis.guidance.doodl import DOODL
from adjointdeis.guidance.draft import DRaFT
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.flowgrad import TrajectoryControl
from adjointdeis.guidance.freedom import FreeDoM
from adjointdeis.guidance.greedy import Greedy, OptimiseEps, SearchBlend
from adjointdeis.guidance.implicit_diffusion import ImplicitDiffusion
from adjointdeis.guidance.implicit_langevin import ImplicitLangevin, PotentialProblem
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.lookahead import Lookahead
from adjointdeis.guidance.problem import (
    Algorithm,
    AlgorithmRun,
    Batch,
    Instance,
    LatentProblem,
    Outcome,
    Step,
    WeightProblem,
)

__all__ = [
    "DOODL",
    "AdjointDPMGuidance",
    "AdjointMatching",
    "Algorithm",
    "AlgorithmRun",
    "Batch",
    "DFlow",
    "DRaFT",
    "Decorrelation",
    "DefenceProblem",
    "DiffPure",
    "DirectNoiseOptimisation",
    "Draw",
    "FineTuning",
    "FreeDoM",
    "Greedy",
    "ImplicitDiffusion",
    "ImplicitLangevin",
    "Instance",
    "LatentOptimisation",
    "LatentProblem",
    "Lookahead",
    "OptimiseEps",
    "Outcome",
    "PotentialProblem",
    "ProjectedAscent",
    "SearchBlend",
    "Step",
    "TrajectoryControl",
    "WeightProblem",
]
