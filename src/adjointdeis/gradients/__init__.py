"""Gradient methods: interchangeable objects that differentiate a rollout."""

from adjointdeis.gradients.adjoint_deis import AdjointDEIS, LargeAdjointStepWarning
from adjointdeis.gradients.backprop import Backprop
from adjointdeis.gradients.base import GradientMethod, NotSupportedError, StepwiseMethod
from adjointdeis.gradients.chain import Chain, UnreachableLeafError
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.gradients.symplectic_adjoint import SymplecticAdjoint

__all__ = [
    "AdjointDEIS",
    "Backprop",
    "Chain",
    "Cost",
    "DiscreteAdjoint",
    "GradientMethod",
    "LargeAdjointStepWarning",
    "NotSupportedError",
    "StepwiseMethod",
    "SymplecticAdjoint",
    "UnreachableLeafError",
]
