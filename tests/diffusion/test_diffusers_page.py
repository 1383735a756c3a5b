"""Every block of docs/diffusers.md on tiny random models, against autograd through the loop."""

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error
from tiny_diffusers import CASES, UNET, XL
from torch import Tensor, nn

from adjointdeis import sample
from adjointdeis.diffusion import from_diffusers
from adjointdeis.solvers import DDIM, DPMSolverPP, FlowEuler, SDEDPMSolverPP

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text()
TITLES = re.split(r"^## (.+)$", "## Ten lines\n" + PAGE.partition("\n")[2], flags=re.M)[1:]
BLOCKS = {
    title: re.findall(r"```python\n(.*?)```", text, re.S)
    for title, text in zip(TITLES[::2], TITLES[1::2], strict=True)
}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(x: Tensor) -> Tensor:
    return (1.0 + x * x).sqrt().sum()


def unet(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**UNET, **more}).eval()


def loop(predict: Callable, scheduler: Any, x: Tensor, steps: int, after=None, **setting) -> Tensor:
    """The loop of a pipeline; ``after(x, i)`` follows every step."""
    scheduler.set_timesteps(steps, **setting)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(scaled, t), t, x).prev_sample
        x = x if after is None else after(x, i)
    return x


def run(title: str, space: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(3)
    (block,) = BLOCKS[title]
    exec(compile(block, title, "exec"), space)
    return space


@pytest.fixture
def space() -> dict[str, Any]:
    head = "import torch\nfrom adjointdeis import sample\n"
    head += "from adjointdeis.diffusion import Guidance, from_diffusers\n"
    given: dict[str, Any] = {
        "unet": unet(), "scheduler": diffusers.PNDMScheduler(skip_prk_steps=True, **SD),
        "ddim": diffusers.DDIMScheduler(clip_sample=False, **SD), "loss": loss,
        "prompt_embeds": normal(1, 5, 12, seed=2), "negative_embeds": normal(1, 5, 12, seed=3),
        "image_latents": normal(1, 4, 8, 8, seed=4),
    }  # fmt: skip
    exec(head, given)
    return given


def check(found: list[Tensor], wanted: Tensor, leaves: list[Tensor]) -> None:
    theirs = torch.autograd.grad(loss(wanted), leaves)
    for ours, gradient in zip(found, theirs, strict=True):
        assert gradient.norm() > 0 and relative_error(ours, gradient) < 1e-4


def test_the_first_block(space) -> None:
    lines = [line for line in BLOCKS["Ten lines"][0].splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) <= 10
    run("Ten lines", space)
    network, z, negative = space["unet"], space["z"], space["negative_embeds"]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        out = network(torch.cat([x, x]), t, torch.cat([negative, z]), return_dict=False)[0]
        without, given = out.chunk(2)
        return without + 7.5 * (given - without)

    wanted = loop(guided, space["scheduler"], space["noise"], 20)
    assert relative_error(space["rollout"].x_0, wanted) < 1e-4
    check([space["noise"].grad, z.grad], wanted, [space["noise"], z])


def test_flux(space) -> None:
    model = CASES["flux"].network(torch.float32)
    space |= {
        "transformer": model,
        "flow_scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "prompt_embeds_2": normal(1, 3, 12, seed=5), "pooled_embeds": normal(1, 8, seed=6),
    }  # fmt: skip
    run("FLUX.1", space)
    z, positions = space["z"], space["positions"]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return model(
            hidden_states=x, timestep=t.expand(1) / 1000, guidance=torch.full([1], 3.5),
            pooled_projections=z["pooled"], encoder_hidden_states=z["prompt"],
            txt_ids=torch.zeros(3, 3), img_ids=positions, return_dict=False,
        )[0]  # fmt: skip

    sigmas = torch.linspace(1.0, 0.25, 4).tolist()
    wanted = loop(predict, space["flow_scheduler"], space["noise"], 4, sigmas=sigmas)
    leaves = [space["noise"], z["prompt"], z["pooled"]]
    check([leaf.grad for leaf in leaves], wanted, leaves)


def test_the_readme(space) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(model = from_diffusers.*?)```", readme, re.S)
    assert readme.index(block) < readme.index("## ")  # on the first screen
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    model = CASES["flux"].network(torch.float32)
    space |= {
        "pipe": types.SimpleNamespace(transformer=model, scheduler=scheduler), "mu": 0.8,
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
        "noise": normal(1, 4, 4, seed=1).requires_grad_(),
        "prompt_embeds": normal(1, 3, 12, seed=5).requires_grad_(),
        "pooled_prompt_embeds": normal(1, 8, seed=6).requires_grad_(),
    }  # fmt: skip
    exec(compile(block, "README.md", "exec"), space)
    for name in ("noise", "prompt_embeds", "pooled_prompt_embeds"):
        assert space[name].grad.norm() > 0
    assert space["rollout"].cost.nfe_forward == 28


def test_sdxl(space) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, sample_size=16,
    ).eval()  # fmt: skip
    xl = unet(**XL).requires_grad_(False)
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    pooled, negative = normal(1, 6, seed=6), normal(1, 6, seed=7)
    space |= {
        "xl_unet": xl, "vae": vae.requires_grad_(False), "time_ids": ids,
        "pooled_embeds_xl": pooled, "negative_pooled": negative,
    }  # fmt: skip
    run("SDXL, decoded, within a budget", space)
    text = torch.cat([space["negative_embeds"], space["prompt_embeds"]])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        added = {"text_embeds": torch.cat([negative, pooled]), "time_ids": ids.repeat(2, 1)}
        out = xl(torch.cat([x, x]), t, text, added_cond_kwargs=added, return_dict=False)[0]
        without, given = out.chunk(2)
        guided = without + 5.0 * (given - without)
        dims = list(range(1, guided.ndim))
        spread = given.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        return 0.7 * guided * spread + 0.3 * guided

    latents = loop(guided, space["scheduler"], space["noise"], 20)
    image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    check([space["noise"].grad, pooled.grad], image, [space["noise"], pooled])


def test_a_reward_and_a_lora(space) -> None:
    pytest.importorskip("peft")
    space["reward"] = lambda x: -(1.0 + x * x).sqrt().flatten(1).sum(1)
    network = space["unet"].requires_grad_(False)
    run("A reward and a LoRA", space)
    weights = space["weights"]
    assert 0 < len(weights) < len(list(network.parameters()))
    found = [weight.grad.clone() for weight in weights]
    with torch.no_grad():  # undo the optimiser's step: Adam's first one is lr times the sign
        for weight, gradient in zip(weights, found, strict=True):
            weight.add_(1e-3 * gradient / (gradient.abs() + 1e-8)).div_(1 - 1e-3 * 1e-2)
    text = space["prompt_embeds"].expand(2, -1, -1)
    wanted = loop(
        lambda x, t: network(x, t, text, return_dict=False)[0], space["scheduler"],
        space["noise"], 10,
    )  # fmt: skip
    theirs = torch.autograd.grad(loss(wanted) / 2, weights)
    both = [torch.cat([g.flatten() for g in gradients]) for gradients in (found, theirs)]
    assert both[1].norm() > 0 and relative_error(*both) < 1e-3


def test_a_reward_over_more_images_than_fit(space) -> None:
    def reward(x: Tensor) -> Tensor:
        return (1.0 + x * x).sqrt().flatten(1).sum(1)

    def diversity(x: Tensor) -> Tensor:
        return x.std(0).sum()

    space |= {"reward": reward, "diversity": diversity}
    run("A reward over more images than fit", space)
    text = space["prompt_embeds"].expand(5, -1, -1)
    wanted = loop(
        lambda x, t: space["unet"](x, t, text, return_dict=False)[0], space["scheduler"],
        space["noise"], 10,
    )  # fmt: skip
    (theirs,) = torch.autograd.grad(reward(wanted).mean() + diversity(wanted), space["noise"])
    assert relative_error(space["noise"].grad, theirs) < 1e-4


def test_controlnet(space) -> None:
    torch.manual_seed(1)
    controlnet = diffusers.ControlNetModel.from_unet(
        space["unet"], conditioning_embedding_out_channels=(4,)
    ).eval()
    with torch.no_grad():  # it starts at zero
        for k, weight in enumerate(controlnet.parameters()):
            weight.copy_(0.1 * normal(*weight.shape, seed=k))
    image = normal(1, 3, 8, 8, seed=8)
    space |= {"controlnet": controlnet, "control_image": image}
    run("ControlNet", space)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        text = space["prompt_embeds"]
        down, middle = controlnet(x, t, text, image, return_dict=False)
        return space["unet"](
            x, t, text, down_block_additional_residuals=down,
            mid_block_additional_residual=middle, return_dict=False,
        )[0]  # fmt: skip

    wanted = loop(predict, space["scheduler"], space["noise"], 10)
    check([space["noise"].grad, image.grad], wanted, [space["noise"], image])


def test_image_to_image(space) -> None:
    run("Image-to-image", space)
    scheduler, latents = space["scheduler"], space["latents"]
    torch.manual_seed(3)
    noise = torch.randn(1, 4, 8, 8)
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[4:]
    x = scheduler.add_noise(latents, noise, times[:1])
    for t in times:
        out = space["unet"](x, t, space["prompt_embeds"], return_dict=False)[0]
        x = scheduler.step(out, t, x).prev_sample
    check([latents.grad], x, [latents])


def test_inpainting(space) -> None:
    space["mask"] = (normal(1, 1, 8, 8, seed=9) > 0).float()
    run("Inpainting", space)
    x, known, mask, scheduler = (space[k] for k in ("x", "image_latents", "mask", "ddim"))

    def put_back(x: Tensor, i: int) -> Tensor:
        times = scheduler.timesteps[i + 1 : i + 2]
        old = scheduler.add_noise(known, space["noise"], times) if len(times) else known
        return mask * x + (1 - mask) * old

    predict = lambda x, t: space["unet"](x, t, space["prompt_embeds"], return_dict=False)[0]  # noqa: E731
    check([x.grad], loop(predict, scheduler, x, 10, put_back), [x])


def test_our_own_solvers(space) -> None:
    run("Our own solvers on your model", space)
    assert space["x_T"].grad.norm() > 0


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.4 * normal(4, 4, seed=0).double())

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        time = torch.sin(timestep.reshape(-1, 1, 1, 1).double() / 150)
        return (torch.tanh(torch.einsum("bchw,cd->bdhw", sample, self.weight) + time),)


# A scheduler, what its solver is here, and the arguments of its sampler.
EQUAL = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, DDIM(), {}),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, DDIM(), {}),
    "Euler, karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, DDIM(), {}),
    "DPM++ 1": ("DPMSolverMultistepScheduler", {"solver_order": 1}, DDIM(), {}),
    "DDIM, clipped": (
        "DDIMScheduler", {"clip_sample": True}, DDIM(clip_x0=True),
        {"use_clipped_model_output": True},
    ),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, DPMSolverPP(lower_order_final=True), {}),
    "DPM++ 2M, karras": (
        "DPMSolverMultistepScheduler", {"use_karras_sigmas": True},
        DPMSolverPP(lower_order_final=True), {},
    ),
    "Euler, ancestral": (
        "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"},
        SDEDPMSolverPP(order=1), {},
    ),
    "DDIM, eta": (
        "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"},
        SDEDPMSolverPP(order=1), {"eta": 1.0},
    ),
    "DPM++ 2M SDE": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"},
        SDEDPMSolverPP(order=2), {},
    ),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, DDIM(), {}),
    "flow, velocity": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, FlowEuler(), {}),
}  # fmt: skip


@pytest.mark.parametrize("which", EQUAL)
def test_which_scheduler_is_which_solver(which: str) -> None:
    name, config, solver, step = EQUAL[which]
    betas = {} if name.startswith("Flow") else SD
    scheduler = getattr(diffusers, name)(**betas, **config)
    model, steps = from_diffusers(Network(), scheduler), 10
    sampler, grid = model.sampler(steps, **step), model.grid(steps)
    noise = 2.0 * normal(2, 4, 3, 3, seed=1).double()
    theirs = sample(
        sampler.denoiser, sampler.initial(noise), solver=sampler.solver, grid=sampler.grid
    ).x_0
    # Schedulers of sigmas hold x / alpha.
    x_T = sampler.initial(noise)
    if "Euler" in name and "Flow" not in name:
        x_T = grid[0].alpha * x_T
    draws = None
    if solver.calculus == "sde":
        # The step to clean data adds none; Euler ancestral draws in the dtype of the latents.
        shape = (2, 4, 3, 3)
        draws = [
            torch.randn(shape, generator=sampler.generator(i), dtype=x_T.dtype)
            for i in range(steps)
        ]
        if name == "DPMSolverMultistepScheduler":  # draws in float32
            draws = [
                torch.randn(shape, generator=sampler.generator(i)).double() for i in range(steps)
            ]
    network = model.velocity if isinstance(solver, FlowEuler) else model.denoiser
    ours = sample(network, x_T, solver=solver, grid=grid, noise=draws).x_0
    assert relative_error(ours, theirs) < 1e-4, which
    assert inspect.isclass(type(solver)) and f"{type(solver).__name__}(" in PAGE
