"""Every gradient method of the package, once: tables, studies and the matrix test read this list.

To add a method, add one :class:`Entry` to :data:`CATALOGUE`. What a method can do is not said
here but by its class attributes; the matrix test runs every entry for every input and calculus
and demands the gradient it promises, or :class:`NotSupportedError` where it promises none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from adjointdeis.extras import installed
from adjointdeis.gradients.adjoint_deis import AdjointDEIS
from adjointdeis.gradients.adjoint_dpm import AdjointDPM
from adjointdeis.gradients.backprop import Backprop
from adjointdeis.gradients.backsolve import Backsolve
from adjointdeis.gradients.base import GradientMethod
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.gradients.flowgrad import FlowGrad
from adjointdeis.gradients.forward_mode import ForwardMode
from adjointdeis.gradients.one_step import OneStep
from adjointdeis.gradients.reversible import Reversible
from adjointdeis.gradients.sde_backsolve import SdeBacksolve
from adjointdeis.gradients.surrogate import Parts, Rescaled, Surrogate
from adjointdeis.gradients.surrogates import lookahead
from adjointdeis.gradients.symplectic_adjoint import SymplecticAdjoint
from adjointdeis.gradients.truncated import Truncated
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    DPMSolverPP,
    Rex,
    RungeKutta,
    SDEDPMSolver,
    SDEDPMSolverPP,
)
from adjointdeis.solvers.base import Solver

Calculus = Literal["ode", "sde"]
Target = Literal["chain", "flow", "own"]


@dataclass(frozen=True)
class Entry:
    """One gradient method with the samplers it is meant for.

    Attributes:
        name: unique, as tables print it.
        method: makes it.
        ode, sde: make the sampler of each calculus; None where the method supports none.
        target: what the result is the gradient of: "chain", the sampler that ran (equal to
            autograd through it); "flow", the continuous equations (converges to their
            gradient); "own", something else that ``bias`` describes.
        order: for "flow", the order in the largest step at which the gradient converges when
            sampled by ``ode`` or ``sde``.
        tolerance: for "chain", the relative error that float64 leaves; solvers that
            reconstruct their states amplify rounding.
        paper: its name in the paper's Tables 2 and 3; empty where they do not have it.
        bias: one sentence on what an approximate result leaves out; empty for exact methods.
        requires: modules of optional packages that it imports.
    """

    name: str
    method: Callable[[], GradientMethod]
    ode: Callable[[], Solver] | None = DDIM
    sde: Callable[[], Solver] | None = SDEDPMSolver
    target: Target = "chain"
    order: int = 1
    tolerance: float = 1e-12
    paper: str = ""
    bias: str = ""
    requires: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """Whether the optional packages are installed."""
        return installed(self.requires)

    def solver(self, calculus: Calculus) -> Solver | None:
        """A sampler of this calculus, or None."""
        make = {"ode": self.ode, "sde": self.sde}[calculus]
        return None if make is None else make()

    def capability(self, name: str) -> Any:
        """A declared capability: ode, sde, x_T, z, z_t, theta, exact or memory."""
        return getattr(self.method(), name)


_flow = partial(Entry, target="flow")
_deis = partial(_flow, method=AdjointDEIS, paper="AdjointDEIS")
_own = partial(Entry, target="own")
_CLEAN_END = "the Jacobian is taken at the clean end of every step"
_EXTRAPOLATED = "an extrapolation of the adjoint velocity, wrong on coarse grids"
_TOO_SMALL = "too small a gradient: at low noise a wide step cannot grow the adjoint enough"
_OTHER_STATES = "the states of the adjoint are not those of the sampling run"
_SOME_STEPS = "all steps but some, and how later answers of the network depend on earlier ones"

CATALOGUE: tuple[Entry, ...] = (
    Entry("Backprop", Backprop),
    Entry("DiscreteAdjoint", DiscreteAdjoint),
    Entry("DiscreteAdjoint, 2M sampler", DiscreteAdjoint, ode=DPMSolverPP, sde=None),
    Entry("DiscreteAdjoint, SDE++ 2M sampler", DiscreteAdjoint, ode=None, sde=SDEDPMSolverPP),
    Entry("DiscreteAdjoint, 3 snapshots", partial(DiscreteAdjoint, snapshots=3)),
    Entry("DiscreteAdjoint, 3 activations", partial(DiscreteAdjoint, keep_activations=3)),
    Entry("ForwardMode", partial(ForwardMode, limit=512)),
    Entry("SymplecticAdjoint", SymplecticAdjoint, ode=RungeKutta, sde=None),
    Entry("DiscreteAdjoint, 1 MiB", partial(DiscreteAdjoint, budget="1 MiB")),
    Entry("Reversible, EDICT", Reversible, ode=EDICT, sde=None, tolerance=1e-10, paper="DOODL"),
    Entry("Reversible, BDIA", Reversible, ode=BDIA, sde=None, tolerance=1e-10),
    Entry("Reversible, O-BELM", Reversible, ode=OBELM, sde=None, tolerance=1e-10),
    Entry(
        "Reversible, Rex",
        Reversible,
        ode=partial(Rex, "midpoint"),
        sde=partial(Rex, calculus="sde"),
        tolerance=1e-10,
    ),
    _deis("AdjointDEIS-1", bias=_CLEAN_END),
    _deis(
        "AdjointDEIS-2M",
        method=partial(AdjointDEIS, order="2M"),
        ode=DPMSolverPP,
        sde=None,
        order=2,
        bias=_EXTRAPOLATED,
    ),
    _deis("AdjointDEIS-1, SDE++ 2M sampler", ode=None, sde=SDEDPMSolverPP, bias=_CLEAN_END),
    _deis(
        "AdjointDEIS-2M, SDE",
        method=partial(AdjointDEIS, order="2M"),
        ode=None,
        bias=_EXTRAPOLATED,
    ),
    _deis(
        "AdjointDEIS-3M",
        method=partial(AdjointDEIS, order="3M"),
        ode=RungeKutta,
        sde=None,
        order=3,
        bias=_EXTRAPOLATED,
    ),
    _deis(
        "AdjointDEIS-2M, data prediction",
        method=partial(AdjointDEIS, order="2M", prediction="data"),
        ode=DPMSolverPP,
        sde=None,
        order=2,
        bias=_TOO_SMALL,
    ),
    _deis(
        "AdjointDEIS-2M, data prediction, SDE",
        method=partial(AdjointDEIS, order="2M", prediction="data"),
        ode=None,
        bias=_TOO_SMALL,
    ),
    _flow(
        "AdjointDPM, euler",
        AdjointDPM,
        sde=None,
        paper="AdjointDPM",
        bias=_CLEAN_END,
        requires=("torchdiffeq",),
    ),
    _flow(
        "AdjointDPM, rk4",
        partial(AdjointDPM, method="rk4"),
        ode=RungeKutta,
        sde=None,
        order=4,
        paper="AdjointDPM",
        bias="the adjoint is that of the flow, not of the sampler",
        requires=("torchdiffeq",),
    ),
    _flow(
        "Backsolve",
        partial(Backsolve, rtol=1e-9, atol=1e-9),
        ode=RungeKutta,
        sde=None,
        order=4,
        bias=_OTHER_STATES,
        requires=("torchdiffeq",),
    ),
    _flow(
        "SdeBacksolve",
        SdeBacksolve,
        ode=None,
        paper="DiffPure",
        bias=_OTHER_STATES,
        requires=("torchsde",),
    ),
    _deis(
        "AdjointDEIS-1, re-solved states",
        method=partial(AdjointDEIS, states="resolved"),
        bias=_OTHER_STATES,
    ),
    _own(
        "FlowGrad",
        FlowGrad,
        sde=None,
        paper="FlowGrad",
        bias="the turning of the velocity inside merged steps",
    ),
    _own(
        "Truncated, last 3 steps",
        partial(Truncated, last=3),
        bias="the influence of all but the last K steps",
    ),
    _own(
        "ReFL, third step from the end",
        partial(Surrogate, active=(-3,), weights="leaps", bridge=0.0),
        bias="all steps but one, and the bend of the path after it",
    ),
    _own("DRTune, 4 steps", partial(Surrogate, active=Parts(4), bridge=0.0), bias=_SOME_STEPS),
    _own(
        "LeapAlign, two leaps",
        partial(Surrogate, active=Parts(3, first=1), weights="leaps", bridge=0.3),
        bias="one output stands for a leap, and a discounted Jacobian",
    ),
    _own(
        "FlowBP-Sparse, last 4 steps",
        partial(Surrogate, active=(-4, -3, -2, -1), weights=Rescaled(0.5), bridge=0.0),
        bias=_SOME_STEPS,
    ),
    _own(
        "FlowBP-Bridge, 4 steps",
        partial(Surrogate, active=Parts(4), weights=Rescaled(0.5), bridge=(0.0, 0.0, 0.5, 0.0)),
        bias="all steps but some, and all but one discounted Jacobian",
    ),
    _own(
        "SDO, middle step",
        partial(Surrogate, active=Parts(2, first=1), weights=Rescaled(1.0)),
        bias="one step stands for all, and every product of Jacobians",
    ),
    _own(
        "Lookahead, 4 leaps",
        partial(lookahead, 4),
        bias="the turning of the network's output inside a leap",
    ),
    _own(
        "OneStep",
        OneStep,
        paper="FreeDoM",
        bias="the Jacobian of every step but one long first step; its length means little",
    ),
)


def entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    for candidate in CATALOGUE:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no gradient method {name!r}; there are {[e.name for e in CATALOGUE]}")
