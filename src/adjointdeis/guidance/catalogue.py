"""The guidance methods that the paper compares, and where each is here: the rows of its Table 2."""

from dataclasses import dataclass
from pydoc import locate
from typing import Any

from adjointdeis.gradients.catalogue import entry


@dataclass(frozen=True)
class Algorithm:
    """One guidance method of the paper.

    Attributes:
        paper: its name there.
        where: dotted name of the class or function that runs it here.
        gradient: name of the entry in the catalogue of gradient methods that it uses; empty for
            an algorithm without a gradient through the sampler, or with any.
        optimises: what moves: "x_T", "z", "theta", "trajectory" (states or controls between
            the ends); empty takes what the gradient method gives.
        calculi: for an algorithm that does not take them from its gradient method.
    """

    paper: str
    where: str
    gradient: str = ""
    optimises: tuple[str, ...] = ()
    calculi: tuple[str, ...] = ()

    @property
    def found(self) -> Any:
        """The class or function; None when there is none of this name."""
        return locate(self.where)

    def supports(self, calculus: str) -> bool:
        """Whether it works with ODE ("ode") or SDE ("sde") samplers."""
        if self.calculi:
            return calculus in self.calculi
        return bool(entry(self.gradient).capability(calculus))

    def moves(self) -> tuple[str, ...]:
        """What it optimises."""
        if self.optimises:
            return self.optimises
        one = entry(self.gradient)
        return tuple(name for name in ("x_T", "z", "theta") if one.capability(name))


_GUIDANCE = "adjointdeis.guidance"
ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm("FlowGrad", f"{_GUIDANCE}.flowgrad.control_trajectory", "FlowGrad", ("trajectory",)),
    Algorithm("FreeDoM", f"{_GUIDANCE}.freedom.FreeDoM", "OneStep", ("trajectory",)),
    Algorithm(
        "Greedy",
        f"{_GUIDANCE}.greedy.GreedyRun",
        optimises=("trajectory",),
        calculi=("ode", "sde"),
    ),
    Algorithm(
        "DOODL",
        f"{_GUIDANCE}.latent_optimisation.LatentOptimisation",
        "Reversible, EDICT",
        ("x_T",),
        ("ode",),
    ),
    Algorithm(
        "DiffPure", f"{_GUIDANCE}.diffpure.DiffPure", optimises=("x_T",), calculi=("ode", "sde")
    ),
    Algorithm("AdjointDPM", f"{_GUIDANCE}.latent_optimisation.LatentOptimisation", "AdjointDPM"),
    Algorithm(
        "Implicit Diffusion",
        f"{_GUIDANCE}.implicit_diffusion.ImplicitDiffusion",
        optimises=("theta",),
        calculi=("ode", "sde"),
    ),
    Algorithm(
        "AdjointDEIS", f"{_GUIDANCE}.latent_optimisation.LatentOptimisation", "AdjointDEIS-1"
    ),
)
