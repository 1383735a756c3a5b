"""The guidance methods that the paper compares, and where each is here: the rows of its Table 2."""

from dataclasses import dataclass
from pydoc import locate
from typing import Any

from adjointdeis.gradients.catalogue import CATALOGUE, Entry


@dataclass(frozen=True)
class ComparedMethod:
    """One guidance method of the paper.

    Attributes:
        paper: its name there.
        where: dotted name of its class here.
        gradient: name that the catalogue of gradient methods has for the one it uses, in its
            ``paper`` column; empty for an algorithm without a gradient through the sampler, or
            with any.
        optimises: what moves: "x_T", "z", "theta", "trajectory" (states or controls between
            the ends); empty takes what the gradient method gives.
        calculi: for an algorithm that does not take them from its gradient method.
        test: file that proves it, below ``tests``.
        row: its row of ``experiments/guidance``, as task/row.
    """

    paper: str
    where: str
    gradient: str = ""
    optimises: tuple[str, ...] = ()
    calculi: tuple[str, ...] = ()
    test: str = ""
    row: str = ""

    @property
    def found(self) -> Any:
        """The class; None when there is none of this name."""
        return locate(self.where)

    def method(self) -> Entry | None:
        """The first entry of its gradient method; None where it needs none or there is none."""
        return next((e for e in CATALOGUE if self.gradient and e.paper == self.gradient), None)

    def supports(self, calculus: str) -> bool:
        """Whether it works with ODE ("ode") or SDE ("sde") samplers."""
        if self.calculi:
            return calculus in self.calculi
        one = self.method()
        return one is not None and bool(one.capability(calculus))

    def moves(self) -> tuple[str, ...]:
        """What it optimises."""
        if self.optimises:
            return self.optimises
        one = self.method()
        names = ("x_T", "z", "theta")
        return () if one is None else tuple(name for name in names if one.capability(name))


_GUIDANCE = "adjointdeis.guidance"
ALGORITHMS: tuple[ComparedMethod, ...] = (
    ComparedMethod(
        "FlowGrad",
        f"{_GUIDANCE}.flowgrad.TrajectoryControl",
        "FlowGrad",
        ("trajectory",),
        test="guidance/test_flowgrad.py",
        row="mixture_16d/flowgrad",
    ),
    ComparedMethod(
        "FreeDoM",
        f"{_GUIDANCE}.freedom.FreeDoM",
        "FreeDoM",
        ("trajectory",),
        test="guidance/test_freedom.py",
        row="inpainting/freedom",
    ),
    ComparedMethod(
        "Greedy",
        f"{_GUIDANCE}.greedy.Greedy",
        optimises=("trajectory",),
        calculi=("ode", "sde"),
        test="guidance/test_greedy.py",
        row="identity/greedy",
    ),
    ComparedMethod(
        "DOODL",
        f"{_GUIDANCE}.doodl.DOODL",
        "DOODL",
        ("x_T",),
        ("ode",),
        test="guidance/test_doodl.py",
        row="mixture_16d/doodl",
    ),
    ComparedMethod(
        "DiffPure",
        f"{_GUIDANCE}.diffpure.DiffPure",
        optimises=("x_T",),
        calculi=("ode", "sde"),
        test="guidance/test_diffpure.py",
        row="purification/sde_backsolve",
    ),
    ComparedMethod(
        "AdjointDPM",
        f"{_GUIDANCE}.adjoint_dpm.AdjointDPMGuidance",
        "AdjointDPM",
        test="guidance/test_adjoint_dpm.py",
        row="mixture_16d/adjoint_dpm",
    ),
    ComparedMethod(
        "Implicit Diffusion",
        f"{_GUIDANCE}.implicit_diffusion.ImplicitDiffusion",
        optimises=("theta",),
        calculi=("ode", "sde"),
        test="guidance/test_implicit_diffusion.py",
        row="brightness/implicit",
    ),
    ComparedMethod(
        "AdjointDEIS",
        f"{_GUIDANCE}.latent_optimisation.LatentOptimisation",
        "AdjointDEIS",
        test="guidance/test_latent_optimisation.py",
        row="identity/adjoint_deis",
    ),
)
