"""Gradient methods: interchangeable objects that differentiate a rollout."""

from adjointdeis.extras import MissingPackageError
from adjointdeis.gradients.adjoint_deis import AdjointDEIS, LargeAdjointStepWarning
from adjointdeis.gradients.adjoint_dpm import AdjointDPM
from adjointdeis.gradients.backprop import Backprop
from adjointdeis.gradients.backsolve import Backsolve
from adjointdeis.gradients.base import GradientMethod, NotSupportedError, StepwiseMethod
from adjointdeis.gradients.chain import Chain, UnreachableLeafError
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.gradients.flowgrad import FlowGrad
from adjointdeis.gradients.memory_plan import MemoryBudgetError
from adjointdeis.gradients.one_step import OneStep
from adjointdeis.gradients.reversible import Reversible
from adjointdeis.gradients.sde_backsolve import SdeBacksolve
from adjointdeis.gradients.symplectic_adjoint import SymplecticAdjoint
from adjointdeis.gradients.truncated import Truncated

__all__ = [
    "AdjointDEIS",
    "AdjointDPM",
    "Backprop",
    "Backsolve",
    "Chain",
    "Cost",
    "DiscreteAdjoint",
    "FlowGrad",
    "GradientMethod",
    "LargeAdjointStepWarning",
    "MemoryBudgetError",
    "MissingPackageError",
    "NotSupportedError",
    "OneStep",
    "Reversible",
    "SdeBacksolve",
    "StepwiseMethod",
    "SymplecticAdjoint",
    "Truncated",
    "UnreachableLeafError",
]
