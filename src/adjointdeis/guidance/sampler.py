"""The sampler as the guidance algorithms see it: latents to a rollout, weights included."""

from collections.abc import Callable

from torch import Tensor, nn

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import GradientMethod
from adjointdeis.rollout import Rollout, sample
from adjointdeis.solvers.base import Solver


def sampler_of(
    denoiser: Callable[..., Tensor], solver: Solver, grid: TimeGrid, gradient: GradientMethod
) -> Callable[[Tensor, Tensor], Rollout]:
    """``(x_T, z) -> Rollout`` with a fixed sampler and a fixed gradient."""

    def sampler(x_T: Tensor, z: Tensor) -> Rollout:
        return sample(
            denoiser,
            x_T,
            z,
            solver=solver,
            grid=grid,
            gradient=gradient,
            parameters=weights_of(denoiser),
        )

    return sampler


def weights_of(denoiser: Callable[..., Tensor]) -> list[Tensor]:
    """The parameters of a denoiser that is a module; none of a plain callable."""
    return list(denoiser.parameters()) if isinstance(denoiser, nn.Module) else []
