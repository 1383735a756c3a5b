"""SdeBacksolve: the adjoint of the reverse SDE, solved back along the path that sampled it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.noise import BrownianPath, refuse_without_increments
from adjointdeis.diffusion.transition import rho_gap
from adjointdeis.extras import load
from adjointdeis.gradients.augmented import Augmented, Coefficients
from adjointdeis.gradients.base import ContinuousAdjoint, StepwiseMethod, refuse_count, refuse_other
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.large_steps import warn_of_large_steps
from adjointdeis.gradients.trace import Trace


@dataclass(frozen=True)
class SdeBacksolve(StepwiseMethod):
    r"""The stochastic adjoint by torchsde, as DiffPure takes its gradients.

    On the clock :math:`\rho` the sampler is :math:`dy = 2\epsilon\,d\rho + dB`, B a Wiener
    process in :math:`\rho^2`. From the clean end

    .. math:: dy = 2\epsilon\,d\rho - dB, \qquad dp = -2\,p\,\alpha J_x\,d\rho, \qquad
              da_z = -2\,p J_z\,d\rho, \qquad da_\theta = -2\,p J_\theta\,d\rho

    are solved together; for a sampler with another ``eps_factor`` c the factor is c and the noise
    :math:`\sqrt{c - 1}\,dB`. The noise does not depend on the state, so the adjoint has no noise
    term, Ito and Stratonovich solutions coincide, and Milstein's method is Euler's. The
    increments are those that sampling saw: one path, in both directions.

    "euler" with one substep is ``AdjointDEIS`` of order 1 with re-solved states.

    Args:
        method: "euler", "midpoint" or "heun" of torchsde.
        substeps: how many steps to take in each sampling step; more than 1 needs the path
            between the sampling nodes.
        check: as for ``StepwiseMethod``.

    Warns:
        LargeAdjointStepWarning: with "euler", where a substep passes h = ln 1.5; it then flips
            the sign of the gradient in directions where the data vary less than the noise.

    Raises:
        ValueError: unknown method, substeps < 1, or substeps > 1 without a ``BrownianPath``.
        MissingPackageError: torchsde is not installed.
        NotSupportedError: an ODE sampler, or a scheduled z.

    When not to use: to measure the robustness of a defence. The gradient belongs to the
    re-solved states and not to those that were sampled, and an attack with a wrong gradient
    overstates the robustness (DiffBreak). ``DiscreteAdjoint`` is exact at the same evaluations,
    for N latents.

    References:
        Diffusion models for adversarial purification, https://arxiv.org/abs/2205.07460
        Scalable gradients for stochastic differential equations, https://arxiv.org/abs/2001.01328
        DiffBreak, https://arxiv.org/abs/2411.16598
    """

    method: Literal["euler", "midpoint", "heun"] = "euler"
    substeps: int = 1
    ode: ClassVar[bool] = False
    z_t: ClassVar[bool] = False
    memory: ClassVar[str] = "O(1) latents"
    adjoint: ClassVar[ContinuousAdjoint] = ContinuousAdjoint(
        clock="rho", integrator="black-box SDE solver"
    )

    def __post_init__(self) -> None:
        refuse_other(self, method=(self.method, ("euler", "midpoint", "heun")))
        refuse_count("SdeBacksolve.substeps", self.substeps, 1)

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        refuse_without_increments(chain.noise, "SdeBacksolve")
        if self.substeps > 1 and not isinstance(chain.noise, BrownianPath):
            raise ValueError(
                f"SdeBacksolve(substeps={self.substeps}) needs the path between the sampling "
                "nodes: pass noise=BrownianPath(...), or take substeps=1"
            )
        if self.method == "euler":
            warn_of_large_steps(
                chain.grid, chain.factor, owner="SdeBacksolve", substeps=self.substeps
            )
        return self.traced(chain, by)

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        torchsde = load("torchsde", "gradients by SdeBacksolve")
        grid, check = chain.grid, record.reevaluations(chain, by)
        # It evaluates the network between the sampler's nodes, where nothing can be compared.
        check.finish()
        augmented = Augmented(chain, by, check, record.contexts[-1])
        chain.cost.holds(1, graphs=1)
        state = augmented.start(x_0 / grid[-1].alpha, grid[-1].alpha * a_x)
        shapes = [value.shape for value in state]
        flat = _flattened(state)
        # Readings on an accelerator without float64 are in float32.
        dtype = torch.float32 if flat.device.type == "mps" else torch.float64
        for step in reversed(range(chain.steps)):
            interval = _Interval(augmented, grid[step], grid[step + 1], shapes, self.method)
            (_, flat) = torchsde.sdeint(
                interval,
                flat,
                torch.tensor([0.0, 1.0], dtype=dtype, device=flat.device),
                bm=PathOfInterval(chain, grid[step], grid[step + 1], x_0),
                method=self.method,
                dt=1.0 / self.substeps,
            )
        return augmented.finish(_unflattened(flat, shapes)) / grid[0].alpha


class _Interval:
    """The augmented SDE on one interval, in the form that torchsde asks for.

    Its clock runs from 0 at the clean end to 1 at the noisy end, linearly in rho.
    """

    noise_type = "general"

    def __init__(
        self, augmented: Augmented, s: Node, t: Node, shapes: list[torch.Size], method: str
    ) -> None:
        self.augmented, self.s, self.t, self.shapes = augmented, s, t, shapes
        self.sde_type = "ito" if method == "euler" else "stratonovich"
        # torchsde evaluates once more at the start, to look at the shapes.
        self.known: tuple[float, Tensor, Tensor] | None = None

    def f_and_g_prod(self, reading: Tensor, flat: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Drift, and the diffusion applied to an increment: it moves y alone."""
        place = float(reading)
        if self.known is not None and self.known[0] == place and self.known[1] is flat:
            drift = self.known[2]
        else:
            node = self.t.towards(self.s, min(place, 1.0))
            weight = self.augmented.chain.factor * rho_gap(self.s, self.t)
            slopes = self.augmented.slopes(
                Coefficients(node.t, node.alpha, 0.0, weight), _unflattened(flat, self.shapes)
            )
            drift = _flattened(slopes)
            self.known = (place, flat, drift)
        v = self.augmented.chain.spread * v.to(flat.dtype)
        return drift, torch.nn.functional.pad(v, (0, flat.shape[1] - v.shape[1]))


@dataclass(frozen=True, eq=False)
class PathOfInterval:
    r"""The path of a sampling run over one step, as torchsde's Brownian motion.

    Called with two readings of the clock from 0 (clean, t) to 1 (noisy, s), it returns
    :math:`-(B(\rho_b^2) - B(\rho_a^2))`: sampling adds the increment towards the data, the
    backward solve takes it away.
    """

    chain: Chain
    s: Node
    t: Node
    like: Tensor
    levy_area_approximation: ClassVar[str] = "none"

    @property
    def shape(self) -> tuple[int, int]:
        """One row of all coordinates of x."""
        return (1, self.like.numel())

    @property
    def dtype(self) -> torch.dtype:
        """That of x."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """That of x."""
        return self.like.device

    def __call__(self, first: Any, last: Any) -> Tensor:
        a, b = float(first), float(last)
        noise = self.chain.noise
        assert noise is not None
        if a <= 0.0 and b >= 1.0:
            grid = self.chain.grid
            increment = noise.increment(grid, self.s.index, self.t.index, self.like)
        else:
            assert isinstance(noise, BrownianPath)
            clean, noisy = (self.t.towards(self.s, min(place, 1.0)) for place in (a, b))
            increment = (noise.value(noisy.rho) - noise.value(clean.rho)).to(self.like)
        return -increment.reshape(1, -1)


def _flattened(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(1, -1) for value in values], dim=1)


def _unflattened(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes], dim=1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
