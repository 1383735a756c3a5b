r"""Rex: reversible exponential integrators made from any explicit Runge-Kutta method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import signal_ratio
from adjointdeis.solvers.coupling import Coupling, Increment
from adjointdeis.solvers.reversible import ReversibleSolver
from adjointdeis.solvers.tableau import Tableau, TableauName, combined, tableau
from adjointdeis.solvers.variables import Prediction, SamplingVariables


@dataclass(frozen=True)
class Rex(ReversibleSolver):
    r"""Reversible exponential Runge-Kutta sampler for the probability-flow ODE or the SDE.

    In the variables of :class:`SamplingVariables`, with the increment :math:`\Phi_h` of an explicit
    Runge-Kutta step and its reversal :math:`\Phi_{-h}`, a step is

    .. math:: x' = \tfrac{\kappa_t}{\kappa_s} (\zeta x + (1 - \zeta) \hat x)
                   + \kappa_t \Phi_h(\hat x), \qquad
              \hat x' = \tfrac{\kappa_t}{\kappa_s} \hat x - \kappa_t \Phi_{-h}(x').

    Two Runge-Kutta increments per step: 2s evaluations with s stages. The order is at least
    that of the base method. For the SDE each stage adds the mean of the path given the step's
    standard normal, in both directions, so nothing but that normal is needed to undo a step;
    strong order 1 with every base method.

    A step to sigma = 0, where gamma is infinite, is taken in noise prediction.

    Args:
        method: base method, "euler", "midpoint", "heun", "kutta3", "bosh3", "rk4" or "dopri5".
        prediction: "data" to sample; "noise" to invert data (see below).
        calculus: "ode", or "sde" for the reverse SDE with noise from outside.
        zeta: coupling, 0 < zeta <= 1; 1 is symmetric and has no region of stability.

    Raises:
        ValueError: a value outside its range; a step from alpha = 0.

    When not to use: each prediction serves one direction. Noise prediction cannot sample from
    x_T on a coarse grid (Gaussian data, Euler, N = 20, even log-SNR: error 0.5 against 5e-3),
    because its first widths of rho are as large as the noise, and data prediction cannot encode
    data there (1.1 against 0.01), for the same reason at the other end; for the SDE, noise
    prediction diverges. Undoing an SDE path amplifies rounding most, since the SDE forgets
    x_T: 5e9 times over the whole time range, so reconstruct it in float64 or over a part of
    the range, or use ``DiscreteAdjoint``. With a small budget ``OBELM`` takes one evaluation
    per step.

    References:
        Rex: A family of reversible exponential (stochastic) Runge-Kutta solvers,
        https://arxiv.org/abs/2502.08834
        Efficient, accurate and stable gradients for neural ODEs, https://arxiv.org/abs/2410.11648
    """

    method: TableauName = "euler"
    prediction: Prediction = "data"
    calculus: Literal["ode", "sde"] = "ode"
    zeta: float = 0.999
    multistep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        tableau(self.method)
        if self.prediction not in ("data", "noise"):
            raise ValueError(f"Rex.prediction is 'data' or 'noise', got {self.prediction!r}")
        if self.calculus not in ("ode", "sde"):
            raise ValueError(f"Rex.calculus is 'ode' or 'sde', got {self.calculus!r}")
        if not 0.0 < self.zeta <= 1.0:
            raise ValueError(f"Rex needs 0 < zeta <= 1, got {self.zeta}; the usual value is 0.999")

    @property
    def tableau(self) -> Tableau:
        """Coefficients of the base method."""
        return tableau(self.method)

    @property
    def order(self) -> int:
        """That of the base method for the ODE; 1, in the strong sense, for the SDE."""
        return self.tableau.order if self.calculus == "ode" else 1

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        signal_ratio(s, t)  # refuses a step from alpha = 0
        stochastic = self.calculus == "sde"
        if stochastic and noise is None:
            raise ValueError("Rex.step needs the noise of this step for calculus='sde'")
        form = SamplingVariables("noise" if t.sigma == 0.0 else self.prediction, stochastic)
        ratio = form.level(t) / form.level(s)
        path = None if noise is None else form.spread(s, t) * noise
        back = None if path is None else -path
        return (
            Coupling(
                0,
                self.zeta * ratio,
                (1.0 - self.zeta) * ratio,
                increment(self.tableau, form, s, t, path, form.level(t)),
            ),
            Coupling(1, ratio, 0.0, increment(self.tableau, form, t, s, back, -form.level(t))),
        )

    def amplification(self, grid: TimeGrid) -> float:
        r""":math:`\zeta^{-N}`, times what data prediction loses on the way to clean data.

        Where the data vary more than the noise, :math:`\hat x_0` is about :math:`x/\alpha` and
        a step mixes the pair with weights :math:`e^{-ch}` and :math:`1 - e^{-ch}` (c = 1 for
        the ODE, 2 for the SDE): their difference shrinks by :math:`e^{-2ch}`, in all by
        :math:`\gamma^{2c}`. Above that noise level both shrink with kappa.
        """
        factor = self.zeta ** (-float(grid.steps))
        if self.prediction == "noise":
            return factor
        form, stochastic = SamplingVariables("data", self.calculus == "sde"), self.calculus == "sde"
        nodes = [node for node in grid if node.sigma > 0.0 and node.alpha > 0.0]
        gamma, middle = nodes[-1].on("gamma"), min(nodes, key=lambda node: abs(node.lmbda))
        factor *= max(1.0, gamma) ** (4 if stochastic else 2)
        return factor * max(1.0, form.level(nodes[0]) / form.level(middle))


def increment(
    method: Tableau, form: SamplingVariables, s: Node, t: Node, path: Tensor | None, factor: float
) -> Increment:
    r""":math:`\Phi` of a Runge-Kutta step from s to t in either direction, times a factor.

    Args:
        method, form: coefficients and variables.
        s, t: where the step begins and ends.
        path: noise of the step in Y; None for an ODE.
        factor: applied to the increment.
    """
    width, nodes = form.clock(t) - form.clock(s), [form.stage(s, t, c) for c in method.c]

    def phi(denoiser: Denoiser, v: Tensor, z: Tensor | None) -> Tensor:
        y, slopes = v / form.level(s), []
        for row, node in zip(method.a, nodes, strict=True):
            x = v
            if row:
                stage = combined(y, width, row, slopes)
                if path is not None:
                    stage = stage + form.elapsed(s, node, t) * path
                x = form.level(node) * stage
            slopes.append(form.slope(denoiser, x, node, z))
        start = torch.zeros_like(v) if path is None else path
        return factor * combined(start, width, method.b, slopes)

    return phi
