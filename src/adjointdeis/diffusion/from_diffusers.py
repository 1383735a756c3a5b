"""Models and schedulers of the diffusers library, seen as a denoiser, a schedule and grids.

Nothing of that library is imported: a model is a module that is called with ``sample`` (or
``hidden_states``) and ``timestep``, and a scheduler is its ``config``, its noise levels, its
``set_timesteps`` and its ``step``.
"""

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.called_model import CalledModel, unwrapped, without_variance
from adjointdeis.diffusion.conventions import check_scheduler
from adjointdeis.diffusion.denoiser import EpsFromFlow, EpsFromV, EpsFromX0, FromTimesteps
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM, RectifiedFlow, Schedule
from adjointdeis.diffusion.scheduler_sampler import Sampler, fresh, set_timesteps, split_arguments


class ClippingSchedulerWarning(UserWarning):
    """A scheduler that clips its data prediction, which a denoiser alone does not."""


class OtherSamplerWarning(UserWarning):
    """A grid of a scheduler whose steps no solver of this package takes."""


class DiffusersModel:
    """What :func:`from_diffusers` makes.

    :meth:`sampler` runs the scheduler itself. The rest is for the solvers and gradient methods
    of this package, and asks more of the scheduler: noise levels that this package has.

    Args:
        network: ``(x, timestep, z)``, the model's own output.
        scheduler: not changed.
    """

    def __init__(self, network: CalledModel, scheduler: Any) -> None:
        self.network = network
        self._scheduler = scheduler
        self._name = type(scheduler).__name__
        if self._prediction_type not in (*_EPS_FROM, "velocity"):
            raise ValueError(
                f"prediction_type={self._prediction_type!r} of {self._name} is unknown; this knows "
                "epsilon, sample, v_prediction, flow_prediction, and flow-matching schedulers. Say "
                "what the network predicts: from_diffusers(model, type(scheduler).from_config("
                "scheduler.config, prediction_type='epsilon'))"
            )

    def sampler(self, steps: int | None = None, *, seed: int = 0, **arguments: Any) -> Sampler:
        """The scheduler's own run, as ``sample`` takes it.

        ``sample(sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver,
        grid=sampler.grid)`` takes the steps of the pipeline's loop, history and noise included.

        Args:
            steps: as ``num_inference_steps``; None when timesteps or sigmas are given.
            seed: of the noise that a stochastic scheduler adds; step i draws from
                ``sampler.generator(i)``.
            arguments: of ``set_timesteps`` (``mu``, ``sigmas``, ``timesteps``) and of ``step``
                (``eta``, ``s_churn``).

        Raises:
            ValueError: a scheduler that is more than a ``step`` (predictor-corrector, RePaint).
            TypeError: an argument that neither takes.
        """
        reason = _NO_STEPS.get(self._name)
        if reason is None and not hasattr(self._scheduler, "step"):
            reason = "it has no method step"
        if reason is not None:
            raise ValueError(
                f"{self._name} cannot be run step by step: {reason}. Use another scheduler, or "
                "StepFunction(function) for a loop of your own"
            )
        scheduler = fresh(self._scheduler)
        setting, stepping = split_arguments(scheduler, arguments)
        set_timesteps(scheduler, steps, setting)
        kept = setting.get("strength", 1.0)
        return Sampler(self.network, scheduler, stepping, seed, self._prediction_type, kept)

    @cached_property
    def schedule(self) -> Schedule:
        """The scheduler's noise levels."""
        if self._is_flow:
            for name in ("invert_sigmas", "stochastic_sampling"):
                if self._scheduler.config.get(name):
                    raise self._no_levels(f"{name}=True")
            return RectifiedFlow()
        if getattr(self._scheduler, "alphas_cumprod", None) is None:
            raise self._no_levels("no alphas_cumprod, and no flow")
        return _discrete(self._scheduler.alphas_cumprod, self._prediction_type)

    @cached_property
    def denoiser(self) -> nn.Module:
        """Noise prediction ``(x, t, z) -> eps``, for every solver and gradient method.

        Warns:
            ClippingSchedulerWarning: the scheduler clips or thresholds the data prediction.
        """
        if self.velocity is not None:
            return EpsFromFlow(self.velocity, self.schedule)
        config, schedule = self._scheduler.config, self.schedule
        assert isinstance(schedule, DDPM)
        if config.get("clip_sample") or config.get("thresholding"):
            warnings.warn(
                f"{self._name} clips its data prediction "
                f"(clip_sample={config.get('clip_sample')}, "
                f"thresholding={config.get('thresholding')}); this denoiser does not. Use "
                "from_diffusers(...).sampler(steps), which does, or set both to False, or "
                "DDIM(clip_x0=True), which equals "
                "DDIMScheduler.step(..., use_clipped_model_output=True)",
                ClippingSchedulerWarning,
                stacklevel=2,
            )
        network = FromTimesteps(_Prediction(self.network), schedule, rounded=not self._fractional)
        convert = _EPS_FROM[self._prediction_type]
        return network if convert is None else convert(network, schedule)

    @cached_property
    def velocity(self) -> nn.Module | None:
        """For a flow, the network's own prediction eps - x0, for ``FlowEuler``; else None."""
        if not self._is_flow:
            return None
        return _FlowTime(
            _Prediction(self.network), self._scheduler.config.get("num_train_timesteps", 1000)
        )

    def grid(self, steps: int | None = None, **arguments: Any) -> TimeGrid:
        """The nodes that the scheduler's ``set_timesteps(steps)`` visits, for our own solvers.

        A step ends at the node where the next begins, and the last one at clean data, or at
        timestep 0 where the scheduler says so (``set_alpha_to_one=False``,
        ``final_sigmas_type="sigma_min"``). Diffusers' own ``DDIMScheduler.step`` ends at
        timestep - T // steps instead; the two agree for the spacings "leading" and "trailing"
        when steps divides T, not for "linspace".

        Args:
            steps: number N of network evaluations.
            arguments: passed on to ``set_timesteps``, such as ``mu`` of shifted flows.

        Warns:
            OtherSamplerWarning: whatever solver is used on it, another sampler than the
                scheduler's runs.

        Raises:
            ValueError: times that are visited twice (Heun, KDPM2, PNDM), or noise levels between
                those of the training (karras sigmas) for a prediction other than eps: there only
                the scheduler's own sampler is right.
        """
        scheduler = fresh(self._scheduler)
        set_timesteps(scheduler, steps, arguments)
        if self._name in _NO_EQUAL:
            warnings.warn(
                f"these are the times of {self._name}; no solver of this package takes its "
                "steps, so that another sampler will run. The scheduler itself is "
                "from_diffusers(model, scheduler).sampler(steps)",
                OtherSamplerWarning,
                stacklevel=2,
            )
        if self._is_flow:
            return TimeGrid.from_times(self.schedule, self._descending(scheduler.sigmas.double()))
        schedule = self.schedule
        assert isinstance(schedule, DDPM)
        timesteps = self._descending(torch.as_tensor(scheduler.timesteps).double().cpu())
        t = schedule.t_of_timestep(timesteps)
        end = 0.0 if _ends_clean(scheduler) else float(schedule.t_of_timestep(0))
        # A scheduler that ends at timestep 0 and visits it repeats that node: nothing moves.
        ends = t.new_tensor([end]) if float(t[-1]) > end else t[:0]
        t = torch.cat((t, ends))
        grid = TimeGrid.from_times(schedule, t)
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None or not self._fractional:
            return grid
        if self._prediction_type != "epsilon":
            raise self._only_sampler(
                f"its noise levels lie between those of the training, where "
                f"{self._prediction_type} means something else than at them"
            )
        rho = torch.as_tensor(sigmas).double().cpu()
        if len(rho) != len(t):
            raise self._only_sampler("it has another number of noise levels than of times")
        alpha = (1.0 + rho**2).rsqrt()
        return TimeGrid(schedule, t, alpha, rho * alpha, -rho.log(), rho)

    @property
    def _is_flow(self) -> bool:
        config = self._scheduler.config
        if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
            return True
        betas = getattr(self._scheduler, "alphas_cumprod", None)
        return betas is None and "shift" in config and "num_train_timesteps" in config

    @property
    def _prediction_type(self) -> str:
        if self._is_flow:
            return "velocity"
        return self._scheduler.config.get("prediction_type") or "epsilon"

    @property
    def _fractional(self) -> bool:
        """Whether the scheduler's noise levels lie between those of the training."""
        config = self._scheduler.config
        spaced = (
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
        )
        if any(config.get(name) for name in spaced):
            return True
        return config.get("timestep_spacing") == "linspace" and hasattr(self._scheduler, "sigmas")

    def _descending(self, times: Tensor) -> Tensor:
        if not (times[1:] < times[:-1]).all():
            raise self._only_sampler("it visits a time twice")
        return times

    def _only_sampler(self, why: str) -> ValueError:
        return ValueError(
            f"{self._name} has no grid for the solvers of this package: {why}. Run the scheduler "
            "itself: sampler = from_diffusers(model, scheduler).sampler(steps), then "
            "sample(sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver, "
            "grid=sampler.grid)"
        )

    def _no_levels(self, why: str) -> ValueError:
        return ValueError(
            f"{self._name} ({why}) has no noise schedule of this package. Run the scheduler "
            "itself: from_diffusers(model, scheduler).sampler(steps)"
        )


def from_diffusers(
    model: nn.Module, scheduler: Any, *, time: Any = None, output: Any = None, **arguments: Any
) -> DiffusersModel:
    """A diffusers model and its scheduler, to be sampled and differentiated.

    Args:
        model: a UNet or transformer of diffusers, also inside peft, DistributedDataParallel or
            ``torch.compile``. Its class decides what time it takes and what sign its output has
            (module ``conventions``).
        scheduler: any with ``set_timesteps`` and ``step``. It is not changed.
        time: for a class that is not known: what the model takes for a scheduler's timestep, such
            as "timestep", "timestep / 1000" or a function of the timesteps.
        output: likewise, "as is", "negated" or a function of the model's output.
        arguments: given to the model at every call, such as ``class_labels``,
            ``added_cond_kwargs`` or ``guidance=3.5``.

    Raises:
        UnknownModelError: a class whose convention is not known, without ``time`` and ``output``.
        ValueError: no model of diffusers.
        TypeError: an argument that the model does not take, or no scheduler.

    References:
        Diffusers, https://huggingface.co/docs/diffusers
    """
    fits = hasattr(scheduler, "config") and hasattr(scheduler, "set_timesteps")
    if isinstance(scheduler, type) or not fits:
        name = scheduler.__name__ if isinstance(scheduler, type) else type(scheduler).__name__
        why = "it is a class" if isinstance(scheduler, type) else "no config or no set_timesteps"
        raise TypeError(
            f"{name} is no scheduler of diffusers ({why}). The call is from_diffusers(pipe.unet, "
            "pipe.scheduler); a loop of your own is StepFunction(function)"
        )
    if not isinstance(model, nn.Module):
        parts = [name for name in ("unet", "transformer", "prior") if hasattr(model, name)]
        raise TypeError(
            f"{type(model).__name__} is no module. The call is from_diffusers(pipe."
            f"{(parts or ['unet'])[0]}, pipe.scheduler); a function goes into a module whose "
            "forward(self, sample, timestep, encoder_hidden_states=None) calls it"
        )
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    network = CalledModel(model, arguments, time, output, learned)
    check_scheduler(unwrapped(model), network.convention, scheduler)
    return DiffusersModel(network, scheduler)


_EPS_FROM: dict[str, Any] = {"epsilon": None, "sample": EpsFromX0, "v_prediction": EpsFromV}
_NO_EQUAL = (
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "LMSDiscreteScheduler", "LCMScheduler",
    "TCDScheduler", "SASolverScheduler", "IPNDMScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "FlowMatchLCMScheduler", "CogVideoXDPMScheduler", "UnCLIPScheduler",
)  # fmt: skip
_NO_STEPS = {
    "RePaintScheduler": "its loop goes back by undo_step",
    "ScoreSdeVeScheduler": "its corrector calls the network again",
    "VQDiffusionScheduler": "its samples are classes, not numbers",
    "AmusedScheduler": "its samples are tokens, not numbers",
    "BlockRefinementScheduler": "its samples are tokens, not numbers",
    "DiscreteDDIMScheduler": "its samples are tokens, not numbers",
    "EntropyBoundScheduler": "its samples are tokens, not numbers",
    "SCMScheduler": "its pipeline converts the model's output by the noise level",
    "HeliosScheduler": "its pipeline changes the resolution between stages",
    "HeliosDMDScheduler": "its pipeline changes the resolution between stages",
    "RFD4ProteinaScheduler": "its pipeline samples two latents at once",
}


class _Prediction(nn.Module):
    """A network without the variance that it learned, which only its scheduler has a use for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, z: Any) -> Tensor:
        return without_variance(self.network(x, timesteps, z), x)


class _FlowTime(nn.Module):
    """A network of time in 0..T, seen as one of time in [0, 1]."""

    predicts = "velocity"

    def __init__(self, network: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.network = network
        self.timesteps = timesteps

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        # float32, as the schedulers have it, whatever the latents are in.
        return self.network(x, (t * self.timesteps).float(), z)


def _discrete(alphas_cumprod: Tensor, prediction_type: str) -> DDPM:
    """The schedule with these signal levels, from their ratios so that float32 ones are kept."""
    squared = alphas_cumprod.detach().double().cpu()
    if float(squared[-1]) <= 0.0 and prediction_type == "epsilon":
        raise ValueError(
            "these betas end at zero signal (rescale_betas_zero_snr): there the noise prediction "
            "says nothing about the data, and no step can start. A network of v_prediction or "
            "sample can; otherwise use betas that are not rescaled"
        )
    previous = torch.cat((squared.new_ones(1), squared[:-1]))
    return DDPM(betas=1.0 - squared / previous)


def _ends_clean(scheduler: Any) -> bool:
    final = getattr(scheduler, "final_alpha_cumprod", None)
    if final is not None:
        return float(final) == 1.0
    return scheduler.config.get("final_sigmas_type", "zero") != "sigma_min"
