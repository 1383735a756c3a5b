"""A tiny network, the schedulers of diffusers, and the loop that a pipeline runs of them."""

import copy
import inspect

import torch
from torch import Tensor, nn

from adjointdeis import sample
from adjointdeis.diffusion import from_diffusers

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WITHOUT_BETAS = {
    "IPNDMScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
    "CosineDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler", "UnCLIPScheduler",
    "DDPMWuerstchenScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
}  # fmt: skip


class Network(nn.Module):
    """A small smooth function of latents, time and condition, called like a UNet."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inside = nn.Parameter(0.4 * torch.randn(7, 16, generator=generator).double())
        self.outside = nn.Parameter(0.4 * torch.randn(16, 4, generator=generator).double())
        self.evaluations = 0

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor, ...]:
        self.evaluations += 1
        wave = torch.sin(timestep.reshape(-1, 1, 1, 1).double() / 150).expand_as(sample[:, :1])
        features = [sample.movedim(1, -1), wave.movedim(1, -1)]
        if encoder_hidden_states is not None:
            condition = encoder_hidden_states[:, None, None]
            features.append(condition.expand(*sample.shape[:1], *sample.shape[2:], -1))
        return ((torch.cat(features, -1) @ self.inside).tanh() @ self.outside).movedim(-1, 1), 0


def made(name: str, config: dict, **more):
    """A scheduler with the betas of Stable Diffusion, where it has betas."""
    import diffusers

    betas = {} if name in WITHOUT_BETAS else SD
    return getattr(diffusers, name)(**betas, **config, **more)


def model_of(network: nn.Module, scheduler):
    """The network with its convention said."""
    return from_diffusers(network, scheduler, time="timestep", output="as is")


def own_loop(
    network, scheduler, x, z, run: dict, generator, image: Tensor | None = None, first: int = 0
) -> Tensor:
    """The loop of a pipeline, with gradients.

    Args:
        network: called as a model of diffusers is.
        x: noise.
        z: condition.
        run: arguments of ``set_timesteps`` ("steps" for its number) and of ``step``.
        generator: of the noise of a step.
        image, first: for image-to-image, and which step of the whole run begins it.
    """
    scheduler = copy.deepcopy(scheduler)
    setting = set(inspect.signature(scheduler.set_timesteps).parameters)
    known = {("num_inference_steps" if k == "steps" else k): v for k, v in run.items()}
    scheduler.set_timesteps(**{k: v for k, v in known.items() if k in setting})
    step = {k: v for k, v in known.items() if k not in setting}
    names = inspect.signature(scheduler.step).parameters
    times = list(scheduler.timesteps)
    batched = type(scheduler).__name__ == "DDPMWuerstchenScheduler"
    if batched:
        times = times[:-1]
    if image is None:
        x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        begin = scheduler.timesteps[first : first + 1].repeat(len(x))
        if hasattr(scheduler, "scale_noise"):
            x = scheduler.scale_noise(image, begin, x)
        else:
            x = scheduler.add_noise(image, x, begin)
    old = None
    for i, t in enumerate(times):
        if i < first:
            continue
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(scaled, t.expand(x.shape[0]), z, return_dict=False)[0]
        if "generator" in names:
            step["generator"] = generator(i)
        if "prev_timestep" in names:
            step["prev_timestep"] = times[i + 1] if i + 1 < len(times) else None
        if "old_pred_original_sample" in names:
            back = times[i - 1] if i > first else None
            x, old = scheduler.step(out, old, t, back, x, **step)
        elif batched:
            x = scheduler.step(out, t.expand(x.shape[0]).to(x.dtype), x, **step).prev_sample
        else:
            x = scheduler.step(out, t, x, **step).prev_sample
    return x


def gradients(x_0: Tensor, inputs) -> list[Tensor]:
    """Of a loss that is convex and nowhere flat."""
    return list(torch.autograd.grad((1 + x_0**2).sqrt().sum(), inputs))


def run_of(sampler, noise, z, gradient) -> Tensor:
    """x_0 of a whole run from noise."""
    x_T = sampler.initial(noise)
    return sample(
        sampler.denoiser, x_T, z, solver=sampler.solver, grid=sampler.grid, gradient=gradient
    ).x_0
