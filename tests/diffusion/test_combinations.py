"""Combinations that a user meets: each equals the pipeline's own loop, or is refused by a call."""

import inspect
import types

import numpy as np
import pytest
import torch
from oracles import relative_error
from tiny_diffusers import CASES, normal
from tiny_schedulers import Network, gradients, made, model_of, own_loop, run_of
from torch import nn

from adjointdeis import sample
from adjointdeis.diffusion import Guidance, from_diffusers
from adjointdeis.diffusion.called_model import unwrapped
from adjointdeis.diffusion.conventions import UnknownModelError
from adjointdeis.gradients import DiscreteAdjoint, ForwardMode, NotSupportedError

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 7


def compared(found, wanted, inputs) -> None:
    assert relative_error(found, wanted) < 1e-9
    theirs = gradients(wanted, inputs)
    for ours, their in zip(gradients(found, inputs), theirs, strict=True):
        assert float(their.norm()) > 0 and relative_error(ours, their) < 1e-9


# What set_timesteps takes besides the number of steps.
SETTINGS = {
    "ddpm, few times": ("DDPMScheduler", {}, {"timesteps": [999, 998, 3]}),
    "ddpm, parallel": ("DDPMParallelScheduler", {}, {"timesteps": [700, 350, 0]}),
    "euler, one time": ("EulerDiscreteScheduler", {}, {"timesteps": [600]}),
    "euler, sigmas, v": (
        "EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, {"sigmas": [9.0, 1.0, 0.2]}
    ),
    "euler, device": ("EulerDiscreteScheduler", {}, {"steps": 3, "device": "cpu"}),
    "heun, training times": (
        "HeunDiscreteScheduler", {}, {"steps": 3, "num_train_timesteps": 600}
    ),
    "kdpm2, training times": (
        "KDPM2DiscreteScheduler", {}, {"steps": 3, "num_train_timesteps": 600}
    ),
    "dpm++, times": (
        "DPMSolverMultistepScheduler", {"solver_order": 3}, {"timesteps": [981, 500, 90, 20, 1]}
    ),
    "dpm++, single, times": (
        "DPMSolverSinglestepScheduler", {}, {"timesteps": [999, 700, 500, 300, 100]}
    ),
    "dpm++, mu": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True,
         "use_dynamic_shifting": True, "time_shift_type": "exponential"},
        {"steps": 5, "mu": 0.8},
    ),
    "unipc, sigmas": (
        "UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        {"sigmas": np.array([1.0, 0.7, 0.3])},
    ),
    "lcm, strength": ("LCMScheduler", {}, {"steps": 3, "strength": 0.6}),
    "lcm, times": ("LCMScheduler", {}, {"timesteps": [999, 499]}),
    "tcd, strength": ("TCDScheduler", {}, {"steps": 3, "strength": 0.5, "eta": 0.2}),
    "consistency, times": ("CMStochasticIterativeScheduler", {}, {"timesteps": [22, 9, 0]}),
    "edm, sigmas": ("EDMEulerScheduler", {}, {"sigmas": torch.tensor([1.0, 0.5, 0.1])}),
    "flow, times": ("FlowMatchEulerDiscreteScheduler", {}, {"timesteps": [1000.0, 600.0, 50.0]}),
    "flow, both": (
        "FlowMatchEulerDiscreteScheduler", {},
        {"timesteps": [990.0, 500.0], "sigmas": [0.9, 0.4]},
    ),
    "flow, lcm, mu": (
        "FlowMatchLCMScheduler", {"use_dynamic_shifting": True}, {"steps": 4, "mu": 0.7}
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", SETTINGS)
def test_whatever_set_timesteps_takes(which: str) -> None:
    name, config, run = SETTINGS[which]
    network, scheduler = Network(), made(name, config)
    noise = normal(2, 4, 3, 3, seed=1).requires_grad_()
    image = normal(2, 4, 3, 3, seed=3).requires_grad_()
    z = normal(2, 2, seed=2).requires_grad_()
    sampler = model_of(network, scheduler).sampler(**run)
    # A part of the times of an image-to-image run: it begins with the image.
    image = image if "strength" in run else None
    x_T = sampler.initial(noise, image)
    found = sample(sampler.denoiser, x_T, z, solver=sampler.solver, grid=sampler.grid).x_0
    wanted = own_loop(network, scheduler, noise, z, run, sampler.generator, image)
    compared(found, wanted, [noise, z, network.inside, *([] if image is None else [image])])


def test_a_part_of_the_times_does_not_begin_with_noise() -> None:
    """A set_timesteps with a strength leaves out the first times, where noise belongs."""
    sampler = model_of(Network(), made("LCMScheduler", {})).sampler(3, strength=0.6)
    noise = normal(1, 4, 3, 3, seed=1)
    with pytest.raises(ValueError, match=r"strength=0.6.*sampler.initial\(noise, image\)"):
        sampler.initial(noise)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler",
        "UniPCMultistepScheduler", "KDPM2DiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler", "LCMScheduler",
    ],
)  # fmt: skip
def test_image_to_image_begins_where_the_pipelines_do(name: str, strength: float) -> None:
    """With a number of steps that the strengths do not divide."""
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler, network = made(name, config), Network()
    noise, image = (normal(2, 4, 3, 3, seed=k).requires_grad_() for k in (1, 3))
    z = normal(2, 2, seed=2).requires_grad_()
    sampler = model_of(network, scheduler).sampler(STEPS)
    x_T = sampler.initial(noise, image, strength=strength)
    found = sample(sampler.denoiser, x_T, z, solver=sampler.solver, grid=sampler.grid).x_0
    # As in StableDiffusionImg2ImgPipeline.get_timesteps, and the one of Flux.
    taken = min(STEPS * strength, STEPS)
    if not hasattr(scheduler, "scale_noise"):
        taken = int(taken)
    first = int(max(STEPS - taken, 0)) * scheduler.order
    wanted = own_loop(
        network, scheduler, noise, z, {"steps": STEPS}, sampler.generator, image, first
    )
    # At strength 1 a flow begins with noise alone.
    images = [] if strength == 1.0 and name.startswith("Flow") else [image]
    compared(found, wanted, [noise, z, network.inside, *images])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"thresholding": True}), ("PNDMScheduler", {}), ("TCDScheduler", {}),
        ("UniPCMultistepScheduler", {}), ("SASolverScheduler", {}), ("HeunDiscreteScheduler", {}),
        ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}), ("EDMEulerScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("DEISMultistepScheduler", {}),
    ],
)  # fmt: skip
def test_forward_mode_through_a_scheduler(name: str, config: dict) -> None:
    """Again and again on one sampler, beside other methods; DEIS leaves torch for numpy."""
    network = Network().requires_grad_(False)
    noise, z = normal(2, 4, 3, 3, seed=1), normal(2, 2, seed=2).requires_grad_()
    sampler, found = model_of(network, made(name, config)).sampler(STEPS), []
    for method in (DiscreteAdjoint(), ForwardMode(), ForwardMode(), DiscreteAdjoint()):
        if name == "DEISMultistepScheduler" and isinstance(method, ForwardMode):
            with pytest.raises(NotSupportedError, match=r"DiscreteAdjoint\(\) or Backprop\(\)"):
                run_of(sampler, noise, z, method)
            continue
        x_0 = run_of(sampler, noise, z, method)
        found.append(torch.autograd.grad(x_0.square().sum(), z)[0])
    # Several schedulers compute a part of their step in float32, whatever the latents are.
    assert all(relative_error(other, found[0]) < 1e-6 for other in found[1:])


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("interval", [(0.2, 0.8), (0.0, 0.5), None])
def test_guidance_with_rescale_and_interval(name: str, interval) -> None:
    """Of a stochastic scheduler, on a part of the run, with gradients of scale and negative."""
    pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    config = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
    network, scheduler, first = Network(), made(name, config), 3
    noise, image = (normal(2, 4, 3, 3, seed=k).requires_grad_() for k in (1, 3))
    z, negative = (normal(2, 2, seed=k).requires_grad_() for k in (2, 4))
    scale = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
    sampler = model_of(network, scheduler).sampler(STEPS)
    guided = Guidance(sampler.denoiser, negative, scale, rescale=0.7, interval=interval)
    x_T = sampler.initial(noise, image, strength=0.6)
    rollout = sample(guided, x_T, z, solver=sampler.solver, grid=sampler.grid)
    taken = []

    def loops(x, t, z, return_dict):
        # The step's number of the whole run, by the share of steps that is left.
        left = 1.0 - (first + len(taken)) / STEPS
        taken.append(interval is None or interval[0] <= left <= interval[1])
        text = network(x, t, z)[0]
        if not taken[-1]:
            return (text,)
        without = network(x, t, negative)[0]
        out = without + scale.view(-1, 1, 1, 1) * (text - without)
        return (rescale_noise_cfg(out, text, guidance_rescale=0.7),)

    wanted = own_loop(loops, scheduler, noise, z, {"steps": STEPS}, sampler.generator, image, first)
    assert len(taken) == sampler.grid.steps == 4 and any(taken)
    assert rollout.cost.nfe_forward == len(taken) + sum(taken)
    compared(rollout.x_0, wanted, [noise, image, z, negative, scale, network.inside])


class Mine(nn.Module):
    """A model of no library, whose pipeline divides the time and subtracts the output."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 4).double()

    def forward(self, hidden_states, timestep, encoder_hidden_states=None):
        wave = torch.sin(3.0 * timestep.double()).reshape(-1, 1, 1, 1)
        channels = self.to_q(hidden_states.movedim(1, -1)).movedim(-1, 1)
        return (torch.tanh(channels + wave + encoder_hidden_states.mean(1).view(-1, 1, 1, 1)),)


def lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def distributed(model: nn.Module) -> nn.Module:
    """Of one process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    return nn.parallel.DistributedDataParallel(model)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


WRAPPED = {
    "peft": lora,
    "compile": compiled,
    "ddp": distributed,
    "compile(ddp(peft))": lambda model: compiled(distributed(lora(model))),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_new_class_inside_wrappers(kind: str) -> None:
    torch.manual_seed(0)
    bare = Mine()
    model, scheduler = WRAPPED[kind](bare), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    try:
        with pytest.raises(UnknownModelError, match="Mine is no model"):
            from_diffusers(model, scheduler)
        noise = normal(2, 4, 3, 3, seed=1).requires_grad_()
        z = normal(2, 5, seed=2).requires_grad_()
        learned = [p for p in model.parameters() if p.requires_grad]
        sampler = from_diffusers(
            model, scheduler, time="timestep / 1000", output="negated"
        ).sampler(STEPS)
        found = sample(
            sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver, grid=sampler.grid
        ).x_0

        def loops(x, t, z, return_dict):
            return (-unwrapped(model)(x, t / 1000, z)[0],)

        wanted = own_loop(loops, scheduler, noise, z, {"steps": STEPS}, sampler.generator)
        compared(found, wanted, [noise, z, *learned])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def shown(error: BaseException, begin: str) -> str:
    """The call that a message shows: from its first word to the bracket that closes it."""
    text = str(error)
    start, depth = text.index(begin), 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        after = text[place + 1 : place + 2]
        if depth == 0 and text[place] == ")" and after != ".":
            return text[start : place + 1]
    raise AssertionError(f"no whole call in {text!r}")


def refused(make) -> BaseException:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    return caught.value


def test_the_call_that_a_refusal_shows_works() -> None:
    """It is taken out of the message, run, and its sampler differentiated."""
    torch.manual_seed(0)
    mine, network = Mine(), Network()
    flow, ddim = diffusers.FlowMatchEulerDiscreteScheduler(), made("DDIMScheduler", {})
    flux = CASES["flux"].network(torch.float64)
    krea_like = made("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500})
    lumina = CASES["lumina 2"].network(torch.float64)
    score = made("DDIMScheduler", {"prediction_type": "score"})
    heun = made("HeunDiscreteScheduler", {})
    cases = [
        (mine, flow, lambda m, s: from_diffusers(m, s), "from_diffusers("),
        (network, ddim, lambda m, s: from_diffusers(m, m), "from_diffusers("),
        (network, score, lambda m, s: from_diffusers(m, s), "from_diffusers("),
        (lumina, krea_like, lambda m, s: from_diffusers(m, s), "from_diffusers("),
        (network, heun, lambda m, s: from_diffusers(m, s).grid(3), "from_diffusers("),
        (
            flux, flow,
            lambda m, s: from_diffusers(m, s).network(
                normal(1, 4, 4, seed=1), torch.tensor(500.0), normal(1, 3, 12, seed=2)
            ),
            "from_diffusers(",
        ),
    ]  # fmt: skip
    for model, scheduler, request, begin in cases:
        error = refused(lambda m=model, s=scheduler, r=request: r(m, s))
        space = {
            "from_diffusers": from_diffusers, "model": model, "scheduler": scheduler, "steps": 3,
            "pipe": types.SimpleNamespace(unet=model, scheduler=scheduler),
        }  # fmt: skip
        call = shown(error, begin)
        made_ = eval(call, space)
        sampler = made_ if hasattr(made_, "initial") else made_.sampler(3)
        if model in (flux, lumina):
            continue  # their conditions have tests of their own; the call itself works
        noise = normal(1, 4, 3, 3, seed=1).requires_grad_()
        z = normal(1, 2, seed=2).requires_grad_()
        more = {"sampler": sampler, "noise": noise, "z": z, "sample": sample}
        text = "sample(sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver, "
        text += "grid=sampler.grid)"
        if "sample(sampler" in str(error):
            text = shown(error, "sample(sampler")
        x_0 = eval(text, space | more).x_0
        assert torch.autograd.grad(x_0.square().sum(), z)[0].norm() > 0, call


def test_a_model_with_other_names_is_shown_the_forward_that_works() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4).double()

        def forward(self, latents, sigma):
            return torch.tanh(self.layer(latents.movedim(1, -1)).movedim(-1, 1)) * sigma / 1000

    class Called(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states, timestep, encoder_hidden_states=None):
            return self.inner(hidden_states, timestep.reshape(-1, 1, 1, 1))

    scheduler, model = diffusers.DDIMScheduler(clip_sample=False), Other()
    error = refused(lambda: from_diffusers(model, scheduler))
    signature = shown(error, "forward(self, ")
    assert [*inspect.signature(Called.forward).parameters] == [
        name.partition("=")[0] for name in signature[len("forward(") : -1].split(", ")
    ]
    call = shown(error, "from_diffusers(")
    made_ = eval(
        call,
        {"from_diffusers": from_diffusers, "module": Called(model), "scheduler": scheduler},
    )
    sampler = made_.sampler(3)
    noise = normal(1, 4, 3, 3, seed=1).requires_grad_()
    x_0 = sample(
        sampler.denoiser, sampler.initial(noise), None, solver=sampler.solver, grid=sampler.grid
    ).x_0
    assert torch.autograd.grad(x_0.square().sum(), noise)[0].norm() > 0
