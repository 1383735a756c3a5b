r"""Butcher tableaus of explicit Runge-Kutta methods, shared by solvers and gradient methods.

For :math:`\dot y = f(\tau, y)` and a step of width r, the stages are
:math:`Y_i = y + r \sum_{j<i} a_{ij} k_j` and :math:`k_i = f(\tau + c_i r, Y_i)`, and the step
is :math:`y + r \sum_i b_i k_i`.
"""

from dataclasses import dataclass

from adjointdeis.diffusion.grid import Clock, Node


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Runge-Kutta method.

    Args:
        name: what a configuration calls it.
        order: order of convergence.
        a: row i holds the i coefficients :math:`a_{i0}, \dots, a_{i,i-1}`.
        b: the s weights of the stages; they sum to 1.

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

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(f"{self.name}: row i of an explicit tableau has i coefficients")
        if abs(sum(self.b) - 1.0) > 1e-12:
            raise ValueError(f"{self.name}: the weights b must sum to 1, got {sum(self.b)}")

    @property
    def stages(self) -> int:
        """Number s of stages, network evaluations per step."""
        return len(self.b)

    @property
    def c(self) -> tuple[float, ...]:
        """Place of each stage in the step, the row sums of a."""
        return tuple(sum(row) for row in self.a)

    def nodes(self, s: Node, t: Node, clock: Clock) -> list[Node]:
        """The node of every stage of a step from s to t, exact on the clock."""
        return [s.towards(t, c, clock) for c in self.c]


EULER = Tableau("euler", 1, ((),), (1.0,))
MIDPOINT = Tableau("midpoint", 2, ((), (0.5,)), (0.0, 1.0))
HEUN = Tableau("heun", 2, ((), (1.0,)), (0.5, 0.5))
KUTTA3 = Tableau("kutta3", 3, ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
RK4 = Tableau("rk4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

TABLEAUS = {tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN, KUTTA3, RK4)}


def tableau(name: str) -> Tableau:
    """The tableau of this name.

    Raises:
        ValueError: no such tableau; the message lists them.
    """
    if name not in TABLEAUS:
        raise ValueError(f"no Runge-Kutta tableau {name!r}; there are {', '.join(TABLEAUS)}")
    return TABLEAUS[name]
