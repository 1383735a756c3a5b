r"""Euler steps of a rectified flow, in the network's own velocity."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.solvers.base import Solver, State


@dataclass(frozen=True)
class FlowEuler(Solver):
    r"""Euler's method on a straight path: :math:`x_t = x_s + (\sigma_t - \sigma_s)\, u(x_s, z, s)`.

    The network given to ``sample`` predicts the velocity :math:`u = \epsilon - x_0` and not
    eps. With eps this step is DDIM, but a straight path may start at pure noise, alpha = 0,
    where eps = x whatever the network says and only u is left to step with. First order.

    Raises:
        ValueError: a schedule that is not straight, alpha + sigma = 1.
        NotSupportedError: from gradient methods that need eps.

    When not to use: on a grid that starts at alpha > 0, DDIM with ``EpsFromFlow`` takes the
    same steps and works with every gradient method.

    References:
        Flow straight and fast, https://arxiv.org/abs/2209.03003
    """

    order: ClassVar[int] = 1
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = False
    predicts: ClassVar[str] = "velocity"

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Tensor | None,
        s: Node,
        t: Node,
        state: State,
        noise: Tensor | None,
    ) -> tuple[Tensor, State]:
        del noise
        for node in (s, t):
            if abs(node.alpha + node.sigma - 1.0) > 1e-9:
                raise ValueError(
                    f"FlowEuler needs a straight path, alpha + sigma = 1, got {node.alpha:.6g} + "
                    f"{node.sigma:.6g}; use RectifiedFlow"
                )
        return x + (t.sigma - s.sigma) * denoiser(x, s.t, z), state
