"""Variables in which the equations of sampling have no linear term."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.transition import eps_weight, path_scale
from adjointdeis.solvers.base import data_prediction

Prediction = Literal["data", "noise"]


@dataclass(frozen=True)
class SamplingVariables:
    r"""Variables in which sampling has no linear term, so that Runge-Kutta steps fit it.

    In :math:`Y = x / \kappa` over the clock :math:`\varsigma`, with :math:`\gamma = \alpha /
    \sigma` and Wiener processes B on :math:`\rho^2` and M on :math:`\gamma^2`:

    =====  ===========  ======================  ==================  ================================
    form   calculus     :math:`\kappa`          :math:`\varsigma`   :math:`dY`
    =====  ===========  ======================  ==================  ================================
    noise  ode          alpha                   rho                 eps d rho
    noise  sde          alpha                   rho                 2 eps d rho + dB
    data   ode          sigma                   gamma               x0 d gamma
    data   sde          sigma^2 / alpha         gamma^2             x0 d gamma^2 + dM
    =====  ===========  ======================  ==================  ================================

    Args:
        prediction, stochastic: row of the table.
    """

    prediction: Prediction
    stochastic: bool

    def level(self, node: Node) -> float:
        """kappa."""
        if self.prediction == "noise":
            return node.alpha
        return node.sigma**2 / node.alpha if self.stochastic else node.sigma

    def clock(self, node: Node) -> float:
        """The reading of the clock."""
        if self.prediction == "noise":
            return node.rho
        return node.on("gamma") ** (2 if self.stochastic else 1)

    def width(self, s: Node, t: Node) -> float:
        """The clock's way from s to t for the ODE, without the rounding of a difference of rho.

        Raises:
            ValueError: rho is infinite at an end.
        """
        if self.prediction == "data":
            return self.clock(t) - self.clock(s)
        if s.alpha == 0.0 or t.alpha == 0.0:
            raise ValueError(
                "this step goes over rho = sigma/alpha, which is infinite where alpha = 0: end the "
                "grid at the schedule's t_max, or use DDIM, whose step has a limit there"
            )
        return eps_weight(s, t) / t.alpha

    def stage(self, s: Node, t: Node, fraction: float) -> Node:
        """The node at a fraction of the clock between s and t, at its exact time.

        Args:
            s, t: Nodes of a step.
            fraction: Of the clock between them, in [0, 1].
        """
        if self.prediction == "noise":
            return s.towards(t, fraction, "rho")
        if self.stochastic and 0.0 < fraction < 1.0:
            first, last = s.on("gamma"), t.on("gamma")
            place = math.sqrt(first**2 + fraction * (last**2 - first**2))
            fraction = (place - first) / (last - first)
        return s.towards(t, fraction, "gamma")

    def slope(self, denoiser: Denoiser, x: Tensor, node: Node, z: Any) -> Tensor:
        """dY over the clock, without noise.

        Args:
            denoiser: Noise prediction.
            x: Latents (B, ...) at the node.
            node: Of the grid, or a stage.
            z: Condition, or None.
        """
        if self.prediction == "data":
            return data_prediction(denoiser, x, z, node)
        eps = denoiser(x, node.t, z)
        return 2.0 * eps if self.stochastic else eps

    def spread(self, s: Node, t: Node) -> float:
        """Standard deviation of the noise of a sampling step, in Y."""
        if self.prediction == "noise":
            return path_scale(s, t)
        return math.sqrt(self.clock(t) - self.clock(s))

    def elapsed(self, s: Node, node: Node, t: Node) -> float:
        """Share of the variance of the step's noise that lies between s and a stage."""
        if self.prediction == "noise":
            return (s.rho**2 - node.rho**2) / (s.rho**2 - t.rho**2)
        return (self.clock(node) - self.clock(s)) / (self.clock(t) - self.clock(s))
