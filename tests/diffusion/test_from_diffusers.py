"""Small random diffusers models: the same steps and gradients as the schedulers' own loops."""

import warnings

import pytest
import torch
from oracles import relative_error
from torch import nn

from adjointdeis import sample
from adjointdeis.diffusion import from_diffusers
from adjointdeis.diffusion.from_diffusers import ClippingSchedulerWarning, OtherSamplerWarning
from adjointdeis.gradients import AdjointDEIS, Backprop, NotSupportedError, OneStep
from adjointdeis.solvers import DDIM, DPMSolverPP, FlowEuler

diffusers = pytest.importorskip("diffusers")
STEPS = 5


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def conditional() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def unconditional() -> nn.Module:
    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def own_loop(unet, scheduler, x, z, **arguments) -> torch.Tensor:
    """Sampling as diffusers writes it, with gradients."""
    condition = {} if z is None else {"encoder_hidden_states": z}
    for timestep in scheduler.timesteps:
        out = unet(x, timestep, **condition, return_dict=False)[0]
        x = scheduler.step(out, timestep, x, **arguments).prev_sample
    return x


def loss(x: torch.Tensor) -> torch.Tensor:
    return (1.0 + x * x).sqrt().sum()


def compare(unet, x_0, x_T, z, theirs, tolerance: float = 1e-5) -> None:
    inputs = [x_T, *([] if z is None else [z]), *unet.parameters()]
    assert relative_error(x_0, theirs) < tolerance
    ours = torch.autograd.grad(loss(x_0), inputs, allow_unused=True)
    wanted = torch.autograd.grad(loss(theirs), inputs, allow_unused=True)
    assert relative_error(ours[0], wanted[0]) < tolerance
    assert z is None or relative_error(ours[1], wanted[1]) < tolerance
    # A weight that is not used has None in one graph and zero in the other.
    both = [
        [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]
        for found in (ours, wanted)
    ]
    first = 1 if z is None else 2
    theta = [torch.cat([g.flatten() for g in found[first:]]) for found in both]
    assert theta[1].norm() > 0 and relative_error(theta[0], theta[1]) < tolerance


SCHEDULERS = {
    "stable-diffusion": {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "steps_offset": 1, "set_alpha_to_one": False,
    },
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trailing-v": {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gradients_equal_autograd_through_the_scheduler(name: str, conditional) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **SCHEDULERS[name])
    x_T, z = normal(2, 4, 8, 8, seed=1), normal(2, 3, 12, seed=2)
    for tensor in (x_T, z):
        tensor.requires_grad_()
    model = from_diffusers(conditional, scheduler)
    grid = model.grid(STEPS)
    assert scheduler.num_inference_steps is None  # the caller's scheduler is left alone
    x_0 = sample(model.denoiser, x_T, z, solver=DDIM(), grid=grid).x_0
    scheduler.set_timesteps(STEPS)
    assert grid.steps == STEPS
    compare(conditional, x_0, x_T, z, own_loop(conditional, scheduler, x_T, z))


def test_an_unconditional_model_and_class_labels(unconditional) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    x_T = normal(1, 3, 8, 8, seed=1).requires_grad_()
    model = from_diffusers(unconditional, scheduler)
    x_0 = sample(model.denoiser, x_T, solver=DDIM(), grid=model.grid(STEPS)).x_0
    scheduler.set_timesteps(STEPS)
    compare(unconditional, x_0, x_T, None, own_loop(unconditional, scheduler, x_T, None))
    with pytest.raises(ValueError, match="takes no condition"):
        sample(model.denoiser, x_T, normal(1, 3, seed=2), solver=DDIM(), grid=model.grid(2))
    torch.manual_seed(0)
    labelled = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=5,
    ).eval()  # fmt: skip
    found = [
        from_diffusers(labelled, scheduler, class_labels=torch.tensor([k])).denoiser(
            x_T, torch.tensor(0.5, dtype=torch.float64), None
        )
        for k in (1, 2)
    ]
    assert not torch.allclose(*found)


def test_a_clipping_scheduler_warns_and_has_an_equal_here(unconditional) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    x_T = (3.0 * normal(1, 3, 8, 8, seed=1)).requires_grad_()
    model = from_diffusers(unconditional, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.sampler(STEPS).grid.steps == STEPS  # the scheduler itself does clip
    with pytest.warns(ClippingSchedulerWarning, match="clip_sample=True"):
        assert isinstance(model.denoiser, nn.Module)
    solver = DDIM(clip_x0=True)
    x_0 = sample(model.denoiser, x_T, solver=solver, grid=model.grid(STEPS)).x_0
    scheduler.set_timesteps(STEPS)
    theirs = own_loop(unconditional, scheduler, x_T, None, use_clipped_model_output=True)
    compare(unconditional, x_0, x_T, None, theirs)


def test_a_multistep_scheduler_has_its_equal_here(unconditional) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=2, lower_order_final=False, final_sigmas_type="sigma_min",
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    x_T = normal(1, 3, 8, 8, seed=1).requires_grad_()
    model = from_diffusers(unconditional, scheduler)
    x_0 = sample(model.denoiser, x_T, solver=DPMSolverPP(), grid=model.grid(STEPS)).x_0
    scheduler.set_timesteps(STEPS)
    compare(unconditional, x_0, x_T, None, own_loop(unconditional, scheduler, x_T, None), 1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_from_pure_noise(shift: float, conditional) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    x_T, z = normal(1, 4, 8, 8, seed=1), normal(1, 3, 12, seed=2)
    for tensor in (x_T, z):
        tensor.requires_grad_()
    model = from_diffusers(conditional, scheduler)
    grid = model.grid(STEPS)
    assert grid[0].alpha == 0.0 and grid[-1].sigma == 0.0
    x_0 = sample(model.velocity, x_T, z, solver=FlowEuler(), grid=grid).x_0
    scheduler.set_timesteps(STEPS)
    compare(conditional, x_0, x_T, z, own_loop(conditional, scheduler, x_T, z))
    # From alpha > 0 on, DDIM with the noise prediction takes the same steps.
    rest = grid.at(range(1, STEPS + 1))
    a = sample(model.velocity, x_T, z, solver=FlowEuler(), grid=rest, gradient=Backprop()).x_0
    b = sample(model.denoiser, x_T, z, solver=DDIM(), grid=rest, gradient=Backprop()).x_0
    assert relative_error(a, b) < 1e-5
    for method in (AdjointDEIS(), OneStep()):
        with pytest.raises(NotSupportedError, match="takes one that predicts velocity"):
            sample(model.velocity, x_T, z, solver=FlowEuler(), grid=rest, gradient=method)
    with pytest.raises(ValueError, match="straight path"):
        other = from_diffusers(conditional, diffusers.DDIMScheduler(clip_sample=False))
        sample(other.denoiser, x_T, z, solver=FlowEuler(), grid=other.grid(2))


def test_a_transformer_is_called_by_the_same_names() -> None:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
        pooled_projection_dim=6,
    ).eval()  # fmt: skip
    pooled = normal(1, 6, seed=4)
    x_T, z = normal(1, 4, 8, 8, seed=1).requires_grad_(), normal(1, 5, 12, seed=2).requires_grad_()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = from_diffusers(transformer, scheduler, pooled_projections=pooled)
    x_0 = sample(model.velocity, x_T, z, solver=FlowEuler(), grid=model.grid(STEPS)).x_0
    scheduler.set_timesteps(STEPS)
    theirs = x_T
    for timestep in scheduler.timesteps:
        out = transformer(theirs, z, pooled, timestep.expand(1), return_dict=False)[0]
        theirs = scheduler.step(out, timestep, theirs).prev_sample
    compare(transformer, x_0, x_T, z, theirs)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_signal_with_our_own_sampler(kind: str, conditional) -> None:
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, rescale_betas_zero_snr=True, prediction_type=kind,
        timestep_spacing="trailing",
    )  # fmt: skip
    x_T, z = normal(2, 4, 8, 8, seed=1).requires_grad_(), normal(2, 3, 12, seed=2).requires_grad_()
    model = from_diffusers(conditional, scheduler)
    grid = model.grid(STEPS)
    assert grid.steps == STEPS and grid[0].alpha == 0.0
    x_0 = sample(model.denoiser, x_T, z, solver=DDIM(), grid=grid).x_0
    scheduler.set_timesteps(STEPS)
    compare(conditional, x_0, x_T, z, own_loop(conditional, scheduler, x_T, z))


def test_a_grid_says_where_only_the_scheduler_itself_will_do(unconditional) -> None:
    for name in ("UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler"):
        model = from_diffusers(unconditional, getattr(diffusers, name)())
        with pytest.warns(OtherSamplerWarning, match=rf"times of {name}.*sampler\(steps\)"):
            assert model.grid(4).steps == 4
    for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"):
        model = from_diffusers(unconditional, getattr(diffusers, name)())
        with pytest.raises(ValueError, match=rf"{name} has no grid.*(twice|another number)"):
            model.grid(8)
    karras = {"use_karras_sigmas": True, "prediction_type": "v_prediction"}
    model = from_diffusers(unconditional, diffusers.EulerDiscreteScheduler(**karras))
    with pytest.raises(ValueError, match="lie between those of the training"):
        model.grid(4)
    with pytest.raises(ValueError, match=r"no noise schedule of this package\. Run the scheduler"):
        assert from_diffusers(unconditional, diffusers.EDMEulerScheduler()).grid(4)


def test_what_is_not_understood_is_named(unconditional) -> None:
    for arguments, message in (
        ({"prediction_type": "score"}, "prediction_type='score'"),
        ({"rescale_betas_zero_snr": True}, "zero signal"),
    ):
        scheduler = diffusers.DDIMScheduler(clip_sample=False, **arguments)
        with pytest.raises(ValueError, match=message):
            from_diffusers(unconditional, scheduler).grid(STEPS)
    for name in ("invert_sigmas", "stochastic_sampling"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{name: True})
        with pytest.raises(ValueError, match=f"{name}.*Run the scheduler itself"):
            from_diffusers(unconditional, scheduler).grid(STEPS)
    with pytest.raises(ValueError, match="expected sample"):
        from_diffusers(nn.Linear(2, 2), diffusers.DDIMScheduler(clip_sample=False))
