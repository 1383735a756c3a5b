r"""Butcher tableaus of explicit Runge-Kutta methods, shared by solvers and gradient methods.

For :math:`\dot y = f(\tau, y)` and a step of width r, the stages are
:math:`Y_i = y + r \sum_{j<i} a_{ij} k_j` and :math:`k_i = f(\tau + c_i r, Y_i)`, and the step
is :math:`y + r \sum_i b_i k_i`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

TableauName = Literal["euler", "midpoint", "heun", "kutta3", "bosh3", "rk4", "dopri5"]


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge-Kutta method.

    Args:
        name: what a configuration calls it.
        order: order of convergence.
        a: row i holds the i coefficients :math:`a_{i0}, \dots, a_{i,i-1}`.
        b: the s weights of the stages; they sum to 1.
        embedded: weights of a result of order ``order - 1`` from the same stages, which estimates
            the error of a step; with s + 1 of them the last is that of the slope at the end of the
            step, the first stage of the next one. Empty for a method without one.

    Raises:
        ValueError: rows of a wrong length, or weights that do not sum to 1.

    References:
        Solving ordinary differential equations I (Hairer, Norsett, Wanner),
        https://doi.org/10.1007/978-3-540-78862-1
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    embedded: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(f"{self.name}: row i of an explicit tableau has i coefficients")
        if abs(sum(self.b) - 1.0) > 1e-12:
            raise ValueError(f"{self.name}: the weights b must sum to 1, got {sum(self.b)}")
        if self.embedded and (
            len(self.embedded) - len(self.b) not in (0, 1) or abs(sum(self.embedded) - 1.0) > 1e-12
        ):
            raise ValueError(f"{self.name}: s or s + 1 embedded weights must sum to 1")

    @property
    def stages(self) -> int:
        """Number s of stages, network evaluations per step."""
        return len(self.b)

    @property
    def c(self) -> tuple[float, ...]:
        """Place of each stage in the step, the row sums of a."""
        return tuple(sum(row) for row in self.a)


EULER = Tableau("euler", 1, ((),), (1.0,))
MIDPOINT = Tableau("midpoint", 2, ((), (0.5,)), (0.0, 1.0))
HEUN = Tableau("heun", 2, ((), (1.0,)), (0.5, 0.5), (1.0, 0.0))
KUTTA3 = Tableau("kutta3", 3, ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
# Bogacki and Shampine, https://doi.org/10.1016/0893-9659(89)90079-7
BOSH3 = Tableau(
    "bosh3", 3, ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9), (7 / 24, 1 / 4, 1 / 3, 1 / 8)
)
RK4 = Tableau("rk4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
# Dormand and Prince, https://doi.org/10.1016/0771-050X(80)90013-3
DOPRI5 = Tableau(
    "dopri5",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
)

TABLEAUS = {
    tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN, KUTTA3, BOSH3, RK4, DOPRI5)
}


def tableau(name: str) -> Tableau:
    """The tableau of this name.

    Raises:
        ValueError: no such tableau; the message lists them.
    """
    if name not in TABLEAUS:
        raise ValueError(f"no Runge-Kutta tableau {name!r}; there are {', '.join(TABLEAUS)}")
    return TABLEAUS[name]


def combined(
    base: Tensor, width: float, weights: Sequence[float], slopes: Sequence[Tensor]
) -> Tensor:
    """base + width * sum of weight * slope, without touching slopes of weight 0."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            base = base + (width * weight) * slope
    return base
