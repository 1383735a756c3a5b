"""Problems to hold gradient methods against: a denoiser, its inputs and a loss on the sample.

The Gaussian's flow is linear, with a gradient in closed form; the mixture's is nonlinear, and a
fine solve gives its gradient. Both have gradients of x_T, z and theta. :func:`drawn` makes one of
any family of :data:`FAMILIES` under any loss of :data:`LOSSES` from a seed.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion import (
    GaussianDenoiser,
    MixtureDenoiser,
    RectifiedFlow,
    Schedule,
    TimeGrid,
    VPLinear,
)
from adjointdeis.gradients import Cost, GradientMethod
from adjointdeis.rollout import sample
from adjointdeis.solvers.base import Solver

PARTS = ("x_T", "z", "theta")
SPACINGS: dict[str, Callable[..., TimeGrid]] = {
    "log-SNR": TimeGrid.uniform_lmbda,
    "time": TimeGrid.uniform_time,
}


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients by part, each flattened and in float64, member by member, and what they cost."""

    gradients: dict[str, Tensor]
    cost: Cost


@dataclass(frozen=True, eq=False)
class GradientProblem:
    """A loss on what a denoiser generates.

    Attributes:
        name: as tables print it.
        denoiser: noise prediction; its parameters are theta.
        schedule: its schedule.
        x_T, z: initial noise, shape (B, *), and condition, shape (B, d).
        loss: of samples, summed over the batch to a 0-d tensor.
        t_min: where sampling ends; above 0, so that the log-SNR is finite.
        members: how many problems it is at once; see :func:`together`.
    """

    name: str
    denoiser: nn.Module
    schedule: Schedule
    x_T: Tensor
    z: Tensor
    loss: Callable[[Tensor], Tensor]
    t_min: float = 1e-3
    members: int = 1

    def grid(self, spacing: str, steps: int) -> TimeGrid:
        """Sampling grid from the schedule's noisiest time to ``t_min``."""
        return SPACINGS[spacing](self.schedule, steps, t_min=self.t_min)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "GradientProblem":
        """The same problem on another device, in another precision; this one stays as it is.

        Args:
            device, dtype: Of the network's weights, x_T and z. The loss must follow its samples.
        """
        return replace(
            self,
            denoiser=copy.deepcopy(self.denoiser).to(device, dtype),
            x_T=self.x_T.to(device, dtype),
            z=self.z.to(device, dtype),
        )

    def differentiate(
        self,
        method: GradientMethod,
        solver: Solver,
        grid: TimeGrid,
        noise: Any = None,
        parts: Sequence[str] = PARTS,
        states: Sequence[Tensor] | None = None,
    ) -> Gradients:
        """Gradients of the loss by one method.

        Args:
            method: How to differentiate.
            solver: Which solver samples.
            grid: Its times.
            noise: Of the steps, where the solver is stochastic.
            parts: Which of x_T, z and theta to differentiate by; the others are constants.
            states: At the nodes of the grid, where they are known.
        """
        x_T = self.x_T.detach().clone().requires_grad_("x_T" in parts)
        z = self.z.detach().clone().requires_grad_("z" in parts)
        weights = list(self.denoiser.parameters()) if "theta" in parts else []
        self.denoiser.requires_grad_("theta" in parts)
        try:
            rollout = sample(
                self.denoiser, x_T, z, solver=solver, grid=grid, noise=noise, gradient=method,
                states=states,
            )  # fmt: skip
            inputs = [t for t in (x_T, z) if t.requires_grad] + weights
            found = list(torch.autograd.grad(self.loss(rollout.x_0), inputs, allow_unused=True))
        finally:
            self.denoiser.requires_grad_(False)
        gradients = {
            name: _flat([found.pop(0)], [like], self.members)
            for name, like in (("x_T", x_T), ("z", z))
            if name in parts
        }
        if weights:
            gradients["theta"] = _flat(found, weights, self.members)
        return Gradients(gradients, rollout.cost)


@dataclass(frozen=True)
class Distance:
    """A gradient against a reference.

    Attributes:
        relative: norm of the difference over the norm of the reference.
        cosine: of the angle between them.
        ratio: norm over norm of the reference.
    """

    relative: float
    cosine: float
    ratio: float


def distance(found: Tensor, reference: Tensor) -> Distance:
    """Compare two flat gradients; infinite where the first is not finite."""
    if not bool(found.isfinite().all()):
        return Distance(math.inf, math.nan, math.inf)
    size, other = float(found.norm()), float(reference.norm())
    cosine = float(found @ reference) / (size * other) if size else 0.0
    return Distance(float((found - reference).norm()) / other, cosine, size / other)


def _flat(found: Sequence[Tensor | None], like: Sequence[Tensor], members: int) -> Tensor:
    filled = [torch.zeros_like(t) if g is None else g for g, t in zip(found, like, strict=True)]
    rows = [gradient.detach().reshape(members, -1).double() for gradient in filled]
    return torch.cat(rows, 1).flatten()


def _normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _towards(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x_0: (x_0 - target.to(x_0)).square().sum()


def mixture(batch: int = 8) -> GradientProblem:
    """Three conditional modes in four dimensions: nonlinear, every gradient exists."""
    schedule = VPLinear()
    denoiser = MixtureDenoiser(
        schedule,
        means=_normal(3, 4, seed=10),
        scales=torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64),
        weight=0.5 * _normal(3, 4, 3, seed=11),
        logits=0.3 * _normal(3, seed=12),
    )
    x_T, z = _normal(batch, 4, seed=30), _normal(batch, 3, seed=31)
    return GradientProblem("mixture", denoiser, schedule, x_T, z, _towards(_normal(4, seed=32)))


def gaussian(batch: int = 8, scale: float = 0.7) -> GradientProblem:
    """A conditional Gaussian: the flow is linear, its gradient known in closed form."""
    schedule = VPLinear()
    denoiser = GaussianDenoiser(
        schedule, mean=_normal(4, seed=20), scale=scale, weight=_normal(4, 3, seed=21)
    )
    x_T, z = _normal(batch, 4, seed=30), _normal(batch, 3, seed=31)
    return GradientProblem("Gaussian", denoiser, schedule, x_T, z, _towards(_normal(4, seed=32)))


Loss = Callable[[Tensor], Tensor]
Draw = Callable[..., Tensor]


def _distance_loss(count: int, draw: Draw) -> Loss:
    """Squared distance to a point."""
    return _towards(draw(count))


def _classifier_loss(count: int, draw: Draw) -> Loss:
    """Cross entropy of a linear classifier of three classes; sample i is of class i mod 3."""
    weight = draw(3, count) * (2.0 / math.sqrt(count))

    def loss(x_0: Tensor) -> Tensor:
        classes = torch.arange(len(x_0), device=x_0.device) % 3
        scores = x_0.flatten(1) @ weight.to(x_0).mT
        return torch.nn.functional.cross_entropy(scores, classes, reduction="sum")

    return loss


def _reward_loss(count: int, draw: Draw) -> Loss:
    r"""Minus a reward with a tail that saturates, :math:`-\tanh(2 w^T x)` with :math:`|w| = 1`."""
    direction = draw(count)
    direction = 2.0 * direction / direction.norm()
    return lambda x_0: -(x_0.flatten(1) @ direction.to(x_0)).tanh().sum()


LOSSES: dict[str, Callable[[int, Draw], Loss]] = {
    "distance": _distance_loss,
    "classifier": _classifier_loss,
    "reward": _reward_loss,
}
"""Losses by name: each makes one from the number of values of a sample and a draw of normals."""

FAMILIES: dict[str, tuple[int, Schedule]] = {
    "gaussian": (4, VPLinear()),
    "mixture-2": (2, VPLinear()),
    "mixture-16": (16, VPLinear()),
    "mixture-64": (64, VPLinear()),
    "flow-matching": (4, RectifiedFlow()),
}
"""Dimension and schedule of each family that :func:`drawn` knows."""


def loss_of(name: str, count: int, seed: int) -> Loss:
    """A loss of :data:`LOSSES` with what it consists of drawn from a seed.

    Args:
        name: which one.
        count: values of a sample.
        seed: any whole number, 0 or more.
    """
    return LOSSES[name](count, _drawing(2 * seed + 1))


def drawn(family: str, loss: str, seed: int, batch: int = 8) -> GradientProblem:
    r"""A problem of a family, everything in it drawn from a seed.

    "gaussian" is a conditional Gaussian, "mixture-D" a conditional mixture of three modes in D
    dimensions, some :math:`2\sqrt 2` apart whatever D is, and "flow-matching" such a mixture
    in four dimensions with the closed-form velocity :math:`(\epsilon - x)/(1 - t)` of its rectified
    flow, handed over as the noise prediction that it is equivalent to.

    Args:
        family: a name of :data:`FAMILIES`.
        loss: a name of :data:`LOSSES`.
        seed: any whole number, 0 or more. The same seed gives the same denoiser, x_T and z under
            every loss.
        batch: samples.

    Raises:
        ValueError: an unknown family or loss.
    """
    for name, known in ((family, FAMILIES), (loss, LOSSES)):
        if name not in known:
            raise ValueError(f"{name!r} is unknown; there are {', '.join(known)}")
    size, schedule = FAMILIES[family]
    draw = _drawing(2 * seed)
    width = 2.0 / math.sqrt(size)
    x_T, z = draw(batch, size), draw(batch, 3)
    if family == "gaussian":
        scale = 0.3 + 0.6 * float(torch.special.ndtr(draw(1)))
        denoiser: nn.Module = GaussianDenoiser(
            schedule, mean=width * draw(size), scale=scale, weight=0.5 * width * draw(size, 3)
        )
    else:
        denoiser = MixtureDenoiser(
            schedule,
            means=width * draw(3, size),
            scales=0.3 + 0.5 * torch.special.ndtr(draw(3)),
            weight=0.25 * width * draw(3, size, 3),
            logits=0.3 * draw(3),
        )
    return GradientProblem(family, denoiser, schedule, x_T, z, loss_of(loss, size, seed))


def together(problems: Sequence[GradientProblem]) -> GradientProblem:
    """Problems of one family as one, sampled and differentiated at once.

    x_T, z and the parameters get a leading dimension; the loss is the sum of their losses. Nothing
    of one enters another, so that gradients are those of each alone.

    Args:
        problems: whose denoisers differ in the values of their parameters alone; a single one
            stays as it is.
    """
    first = problems[0]
    if len(problems) == 1:
        return first
    denoiser = copy.deepcopy(first.denoiser)
    for name, _ in first.denoiser.named_parameters():
        values = [one.denoiser.get_parameter(name).detach() for one in problems]
        setattr(denoiser, name, nn.Parameter(torch.stack(values)))
    return replace(
        first,
        denoiser=denoiser,
        x_T=torch.stack([one.x_T for one in problems]),
        z=torch.stack([one.z for one in problems]),
        loss=lambda x_0: sum(
            (one.loss(x) for one, x in zip(problems, x_0, strict=True)), x_0.new_zeros(())
        ),
        members=len(problems),
    )


def _drawing(seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
