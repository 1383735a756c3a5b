"""Models and schedulers of the diffusers library, seen as a denoiser, a schedule and grids.

Nothing of that library is imported: a model is a module that is called with ``sample`` (or
``hidden_states``), ``timestep`` and perhaps ``encoder_hidden_states``, and a scheduler is its
``config``, its ``alphas_cumprod`` and its ``set_timesteps``.
"""

import copy
import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.denoiser import EpsFromFlow, EpsFromV, EpsFromX0, FromTimesteps
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM, RectifiedFlow, Schedule


class ClippingSchedulerWarning(UserWarning):
    """A scheduler that clips its data prediction, which a denoiser alone does not."""


@dataclass(frozen=True, eq=False)
class DiffusersModel:
    """What :func:`from_diffusers` makes.

    Attributes:
        denoiser: noise prediction ``(x, t, z) -> eps``, for every solver and gradient method.
        schedule: the scheduler's noise levels.
        velocity: for flow matching, the network's own prediction eps - x0, for ``FlowEuler``;
            None otherwise.
    """

    denoiser: nn.Module
    schedule: Schedule
    velocity: nn.Module | None
    _scheduler: Any = field(repr=False)

    def grid(self, steps: int, **arguments: Any) -> TimeGrid:
        """The nodes that the scheduler's ``set_timesteps(steps)`` visits.

        A step ends at the node where the next begins, and the last one at clean data, or at
        timestep 0 where the scheduler says so (``set_alpha_to_one=False``,
        ``final_sigmas_type="sigma_min"``). Diffusers' own ``DDIMScheduler.step`` ends at
        timestep - T // steps instead; the two agree for the spacings "leading" and "trailing"
        when steps divides T, not for "linspace".

        Args:
            steps: number N of network evaluations.
            arguments: passed on to ``set_timesteps``, such as ``mu`` of shifted flows.
        """
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps, **arguments)
        if self.velocity is not None:
            return TimeGrid.from_times(self.schedule, scheduler.sigmas.double())
        assert isinstance(self.schedule, DDPM)
        timesteps = torch.as_tensor(scheduler.timesteps).double()
        t = self.schedule.t_of_timestep(timesteps)
        end = 0.0 if _ends_clean(scheduler) else float(self.schedule.t_of_timestep(0))
        # A scheduler that ends at timestep 0 and visits it repeats that node: nothing moves.
        ends = t.new_tensor([end]) if float(t[-1]) > end else t[:0]
        return TimeGrid.from_times(self.schedule, torch.cat((t, ends)))


def from_diffusers(model: nn.Module, scheduler: Any, **arguments: Any) -> DiffusersModel:
    """A denoiser and a schedule from a diffusers model and its scheduler.

    Args:
        model: ``UNet2DModel`` (then z is None), ``UNet2DConditionModel`` (z is what it calls
            ``encoder_hidden_states``), or another model called by the same names.
        scheduler: any with ``alphas_cumprod`` (DDIM, DDPM, PNDM, DPMSolver, ...), whose betas
            and prediction type (epsilon, sample, v_prediction) are taken over, or
            ``FlowMatchEulerDiscreteScheduler``. It is not changed.
        arguments: given to the model at every call, such as ``class_labels``,
            ``added_cond_kwargs`` or ``encoder_attention_mask``.

    Warns:
        ClippingSchedulerWarning: the scheduler clips or thresholds the data prediction.

    Raises:
        ValueError: an unknown prediction type; betas with zero terminal signal; a flow that is
            stochastic or inverted.

    When not to use: to imitate a scheduler bit by bit. The schedule is the scheduler's, the
    sampler is a solver of this package; wrap ``scheduler.step`` in ``StepFunction`` for its own.

    References:
        Diffusers, https://huggingface.co/docs/diffusers
    """
    config = scheduler.config
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return _flow(model, scheduler, arguments)
    if config.get("clip_sample") or config.get("thresholding"):
        warnings.warn(
            f"{type(scheduler).__name__} clips its data prediction "
            f"(clip_sample={config.get('clip_sample')}, "
            f"thresholding={config.get('thresholding')}); this denoiser does not. The gradient "
            "is zero where a sampler clips: set both to False, or use DDIM(clip_x0=True), which "
            "equals DDIMScheduler.step(..., use_clipped_model_output=True)",
            ClippingSchedulerWarning,
            stacklevel=2,
        )
    schedule = _discrete(scheduler.alphas_cumprod)
    network: nn.Module = FromTimesteps(_Called(model, arguments), schedule)
    kind = config.get("prediction_type", "epsilon")
    if kind == "sample":
        network = EpsFromX0(network, schedule)
    elif kind == "v_prediction":
        network = EpsFromV(network, schedule)
    elif kind != "epsilon":
        raise ValueError(
            f"prediction_type={kind!r} of {type(scheduler).__name__} is unknown; this knows "
            "epsilon, sample, v_prediction, and flow-matching schedulers"
        )
    return DiffusersModel(network, schedule, None, scheduler)


class _Called(nn.Module):
    """A diffusers model as a callable of (x, timesteps, z)."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        names = inspect.signature(model.forward).parameters
        self.input = next((n for n in ("sample", "hidden_states") if n in names), None)
        self.conditional = "encoder_hidden_states" in names
        if self.input is None or "timestep" not in names:
            raise ValueError(
                f"{type(model).__name__}.forward takes ({', '.join(names)}); expected sample or "
                "hidden_states, and timestep"
            )

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor | None) -> Tensor:
        if z is not None and not self.conditional:
            raise ValueError(
                f"{type(self.model).__name__} takes no condition: pass z=None, and class labels "
                "as from_diffusers(..., class_labels=...)"
            )
        condition = {"encoder_hidden_states": z} if self.conditional else {}
        called = {self.input: x, "timestep": timesteps, **condition, **self.arguments}
        return self.model(**called, return_dict=False)[0]


class _FlowTime(nn.Module):
    """A network of time in 0..T, seen as one of time in [0, 1]."""

    def __init__(self, network: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.network = network
        self.timesteps = timesteps

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        time = (t * self.timesteps).to(device=x.device, dtype=x.dtype)
        return self.network(x, time.expand(x.shape[0]), z)


def _flow(model: nn.Module, scheduler: Any, arguments: dict[str, Any]) -> DiffusersModel:
    config = scheduler.config
    if "shift" not in config or "num_train_timesteps" not in config:
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod and is no flow-matching scheduler"
        )
    for name in ("invert_sigmas", "stochastic_sampling"):
        if config.get(name):
            raise ValueError(f"a flow-matching scheduler with {name}=True is not supported")
    schedule = RectifiedFlow()
    velocity = _FlowTime(_Called(model, arguments), config["num_train_timesteps"])
    return DiffusersModel(EpsFromFlow(velocity, schedule), schedule, velocity, scheduler)


def _discrete(alphas_cumprod: Tensor) -> DDPM:
    """The schedule with these signal levels, from their ratios so that float32 ones are kept."""
    squared = alphas_cumprod.detach().double().cpu()
    if float(squared[-1]) <= 0.0:
        raise ValueError(
            "these betas end at zero signal (rescale_betas_zero_snr): there the noise prediction "
            "says nothing about the data, and no step can start. Use betas that are not rescaled"
        )
    previous = torch.cat((squared.new_ones(1), squared[:-1]))
    return DDPM(betas=1.0 - squared / previous)


def _ends_clean(scheduler: Any) -> bool:
    final = getattr(scheduler, "final_alpha_cumprod", None)
    if final is not None:
        return float(final) == 1.0
    return scheduler.config.get("final_sigmas_type", "zero") != "sigma_min"
