"""The gradient methods and samplers as the tables of several studies print them."""

from dataclasses import fields

from adjointdeis.gradients.catalogue import CATALOGUE, Calculus, Entry
from adjointdeis.solvers.base import Solver

# The same gradient as DiscreteAdjoint in other memory.
MEMORY_VARIANTS = ("snapshots", "activations", "MiB", "ForwardMode")


def entries(calculus: Calculus) -> list[Entry]:
    """The catalogue's methods for samplers of this calculus, without variants in memory alone."""
    return [
        one
        for one in CATALOGUE
        if one.available
        and one.solver(calculus) is not None
        and not any(word in one.name for word in MEMORY_VARIANTS)
    ]


def short_name(solver: Solver) -> str:
    """The class and the arguments that are not its defaults."""
    given = [
        f"{field.name}={getattr(solver, field.name)!r}"
        for field in fields(solver)  # type: ignore[arg-type]
        if getattr(solver, field.name) != field.default
    ]
    return f"{type(solver).__name__}({', '.join(given)})"


def shown(number: float | None, style: str = ".2g") -> str:
    """A number of a table; "diverged" where it is not finite."""
    return "diverged" if number is None else format(number, style)
