"""Gradient methods: interchangeable objects that differentiate a rollout."""

from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.extras import MissingPackageError
from adjointdeis.gradients.adjoint_deis import AdjointDEIS, LargeAdjointStepWarning
from adjointdeis.gradients.adjoint_dpm import AdjointDPM
from adjointdeis.gradients.backprop import Backprop
from adjointdeis.gradients.backsolve import Backsolve
from adjointdeis.gradients.base import (
    GradientMethod,
    NotFiniteWarning,
    SecondDerivativeError,
    StepwiseMethod,
    UnusedConditionWarning,
)
from adjointdeis.gradients.certified import Certified, OtherLossError, extrapolated_error
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.consistency import InconsistentStepError
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.gradients.flowgrad import FlowGrad
from adjointdeis.gradients.forward_mode import ForwardMode
from adjointdeis.gradients.graphs import UnreachableLeafError
from adjointdeis.gradients.independence import CoupledSamplesError, check_independent
from adjointdeis.gradients.memory_plan import MemoryBudgetError
from adjointdeis.gradients.one_step import OneStep
from adjointdeis.gradients.reversible import Reversible
from adjointdeis.gradients.sampling_path import SamplingPath
from adjointdeis.gradients.sde_backsolve import SdeBacksolve
from adjointdeis.gradients.surrogate import Surrogate
from adjointdeis.gradients.symplectic_adjoint import SymplecticAdjoint
from adjointdeis.gradients.truncated import Truncated

__all__ = [
    "AdjointDEIS",
    "AdjointDPM",
    "Backprop",
    "Backsolve",
    "Certified",
    "Chain",
    "Cost",
    "CoupledSamplesError",
    "DiscreteAdjoint",
    "FlowGrad",
    "ForwardMode",
    "GradientMethod",
    "InconsistentStepError",
    "LargeAdjointStepWarning",
    "MemoryBudgetError",
    "MissingPackageError",
    "NotFiniteWarning",
    "NotSupportedError",
    "OneStep",
    "OtherLossError",
    "PerStep",
    "Reversible",
    "SamplingPath",
    "SdeBacksolve",
    "SecondDerivativeError",
    "StepwiseMethod",
    "Surrogate",
    "SymplecticAdjoint",
    "Truncated",
    "UnreachableLeafError",
    "UnusedConditionWarning",
    "check_independent",
    "extrapolated_error",
]
