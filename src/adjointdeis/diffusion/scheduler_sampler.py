"""A run of a scheduler as ``sample`` takes it: denoiser, solver, grid, initial state."""

import copy
import inspect
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.scheduler_solver import SchedulerSolver
from adjointdeis.diffusion.step_grid import AtSteps, StepGrid

# What a step of a scheduler is called with here, whatever the caller wants.
_SUPPLIED = {
    "self", "model_output", "timestep", "sample", "generator", "return_dict",
    "old_pred_original_sample", "timestep_back", "prev_timestep",
}  # fmt: skip


# Noise levels as a scheduler has them before a run; all else that it holds is a run's history.
_LEVELS = ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "sigmas")


class Sampler:
    """A scheduler's run over a number of steps, as ``sample`` takes it.

    ``sample(sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver,
    grid=sampler.grid)`` is the loop of a diffusers pipeline, differentiably. Two calls give the
    same result, and nothing of one is left in the other.

    Args:
        network: ``(x, timestep, z)``, with the timestep as the scheduler has it.
        scheduler: after ``set_timesteps``; now owned by the sampler.
        arguments: given to every ``scheduler.step``.
        seed: of the noise that a stochastic scheduler adds.
        predicts: what the scheduler asks of the network.
        strength: share of the times that ``set_timesteps`` kept (LCM and TCD take one).

    Attributes:
        denoiser: the network's own output at a step of ``grid``, whose time t counts the steps:
            1 before the first, 0 after the last.
        solver: the scheduler's steps.
        grid: the steps of one run; N of them are N calls of ``scheduler.step``. After
            :meth:`initial` with a strength below 1 it is the rest of the run that is left.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        arguments: dict[str, Any],
        seed: int,
        predicts: str,
        strength: float = 1.0,
    ) -> None:
        self._strength = strength
        convention = getattr(network, "convention", None)
        rounded = convention is not None and convention.rounded_state
        self.solver = SchedulerSolver(scheduler, arguments, seed, predicts, rounded)
        self.denoiser = AtSteps(network, scheduler, self.solver.steps, predicts)
        self.grid = StepGrid(self.solver.steps, 0, self.solver.steps, self.solver.name)

    def generator(self, step: int) -> torch.Generator:
        """The source of the noise that step ``step`` of the whole run adds, at its beginning."""
        return self.solver.generator(step)

    def initial(self, noise: Tensor, image: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """The state before the first step, differentiable in both tensors.

        Args:
            noise: standard normal, shape (B, *).
            image: for image-to-image, clean latents shaped like the noise.
            strength: share of the steps to take from there, in (0, 1]; ``grid`` then begins where
                the pipelines of diffusers begin.

        Raises:
            ValueError: a strength outside (0, 1], or below 1 without an image (here or in
                ``set_timesteps``), or one that leaves no step.
        """
        scheduler, total = self.solver.scheduler, self.solver.steps
        if self._strength < 1.0 and image is None:
            raise ValueError(
                f"sampler(..., strength={self._strength}) left out the first times, and the run "
                "begins with a noised image: sampler.initial(noise, image)"
            )
        if not 0.0 < strength <= 1.0 or (strength < 1.0 and image is None):
            raise ValueError(
                f"strength={strength} must lie in (0, 1], and below 1 it needs an image: "
                "sampler.initial(noise, image, strength=0.6)"
            )
        first = _first_step(scheduler, strength)
        if first >= total:
            raise ValueError(f"strength={strength} leaves none of the {total} steps; raise it")
        self.grid = StepGrid(total, first, total, self.solver.name)
        x_T = self._noised(noise, image, first)
        self.solver.starts(x_T, first)
        return x_T

    def _noised(self, noise: Tensor, image: Tensor | None, first: int) -> Tensor:
        # add_noise keeps an index of its own in some schedulers.
        scheduler = copy.copy(self.solver.scheduler)
        if image is None:
            return noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        timesteps = scheduler.timesteps[first : first + 1].expand(noise.shape[0])
        if hasattr(scheduler, "scale_noise"):
            return scheduler.scale_noise(image, timesteps, noise)
        return scheduler.add_noise(image, noise, timesteps)


def _first_step(scheduler: Any, strength: float) -> int:
    """Where image-to-image begins, as the pipelines of diffusers have it."""
    if strength == 1.0:
        return 0
    steps, order = scheduler.num_inference_steps, getattr(scheduler, "order", 1)
    # Pipelines of flows round the number of steps up, the others down.
    taken = min(steps * strength, steps)
    if not hasattr(scheduler, "scale_noise"):
        taken = int(taken)
    return int(max(steps - taken, 0)) * order


def fresh(scheduler: Any) -> Any:
    """A copy of a scheduler that shares nothing that a run changes, whatever it went through.

    Its own ``deepcopy`` fails once it holds a tensor with a graph.
    """
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if name in _LEVELS and isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"{name} of {type(scheduler).__name__} requires a gradient, which its steps would "
                "not give: detach it, or learn noise levels in a step of your own, "
                "sample(..., solver=StepFunction(function), parameters=[levels])"
            )
        if isinstance(value, Tensor):
            setattr(copied, name, value.detach().clone())
        elif isinstance(value, list):
            setattr(copied, name, [v.detach() if isinstance(v, Tensor) else v for v in value])
        elif hasattr(value, "set_timesteps"):
            raise ValueError(
                f"{type(scheduler).__name__} holds a scheduler of its own as {name!r}; that "
                "combination is not supported. Use it without"
            )
    return copied


def split_arguments(scheduler: Any, arguments: dict[str, Any]) -> tuple[dict, dict]:
    """Arguments of ``set_timesteps``, and those of ``step`` such as ``eta``.

    Raises:
        TypeError: one that neither takes.
    """
    setting = set(inspect.signature(scheduler.set_timesteps).parameters) - {"num_inference_steps"}
    stepping = set(inspect.signature(scheduler.step).parameters) - _SUPPLIED
    unknown = sorted(arguments.keys() - setting - stepping)
    if unknown:
        raise TypeError(
            f"{type(scheduler).__name__} takes no {', '.join(unknown)}; its set_timesteps takes "
            f"{', '.join(sorted(setting)) or 'nothing more'}, its step "
            f"{', '.join(sorted(stepping)) or 'nothing more'}"
        )
    return (
        {key: value for key, value in arguments.items() if key in setting},
        {key: value for key, value in arguments.items() if key not in setting},
    )


def set_timesteps(scheduler: Any, steps: int | None, arguments: dict[str, Any]) -> None:
    """Sets the times of a run; given times or noise levels decide its length.

    Raises:
        ValueError: no length, no whole number above 0, or one that the given times do not have.
    """
    if steps is not None and (not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"{steps!r} steps: say a whole number above 0, such as sampler(20)")
    own = [arguments[key] for key in ("timesteps", "sigmas") if arguments.get(key) is not None]
    if steps is None and not own:
        raise ValueError("say how many steps: sampler(20), or give timesteps= or sigmas=")
    if own:
        if steps is not None and steps != len(own[0]):
            raise ValueError(f"{len(own[0])} times were given for {steps} steps; leave out one")
        scheduler.set_timesteps(**arguments)
    else:
        scheduler.set_timesteps(steps, **arguments)
