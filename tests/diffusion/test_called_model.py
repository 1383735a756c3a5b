"""How a model is called: wrappers, names of conditions, guidance embeddings, learned variance."""

import pytest
import torch
from oracles import relative_error
from tiny_diffusers import CASES, UNET, XL, normal
from torch import nn

from adjointdeis import sample
from adjointdeis.diffusion import Guidance, from_diffusers
from adjointdeis.diffusion.called_model import unwrapped

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
DDIM = {"clip_sample": False}


def small(**more) -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**UNET, **more}).double().eval()


def gradients(model: nn.Module, x, z, weight) -> list:
    sampler = from_diffusers(model, diffusers.DDIMScheduler(**DDIM)).sampler(2)
    x_0 = sample(sampler.denoiser, x, z, solver=sampler.solver, grid=sampler.grid).x_0
    return [x_0, *torch.autograd.grad((1 + x_0**2).sqrt().sum(), (x, z, weight))]


class Small(nn.Module):
    """Called like a UNet, and compiled in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 4, 1).double()

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True):
        time = torch.sin(timestep.double() / 100).reshape(-1, 1, 1, 1)
        return (torch.tanh(self.conv_in(sample) + time + encoder_hidden_states.mean()),)


def test_wrappers_are_looked_through() -> None:
    bare = Small()
    x, z = normal(1, 4, 8, 8, seed=1).requires_grad_(), normal(1, 5, 12, seed=2).requires_grad_()
    weight = bare.conv_in.weight
    wanted = gradients(bare, x, z, weight)
    wrapped = {
        "parallel": nn.DataParallel(bare),
        "compiled": torch.compile(bare, backend="eager"),
        "both": torch.compile(nn.DataParallel(bare), backend="eager"),
    }
    for name, model in wrapped.items():
        assert unwrapped(model) is bare, name
        for ours, theirs in zip(gradients(model, x, z, weight), wanted, strict=True):
            assert relative_error(ours, theirs) < 1e-12, name
    # The class behind the wrapper decides the convention.
    flux = torch.compile(CASES["flux"].network(torch.float64), backend="eager")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert from_diffusers(flux, scheduler).network.convention.time == "timestep / 1000"


def test_peft_is_looked_through() -> None:
    peft = pytest.importorskip("peft")
    bare = small()
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian")
    model = peft.get_peft_model(bare, config)
    assert unwrapped(model) is model.get_base_model()
    x, z = normal(1, 4, 8, 8, seed=1).requires_grad_(), normal(1, 5, 12, seed=2).requires_grad_()
    learned = [p for p in model.parameters() if p.requires_grad]
    sampler = from_diffusers(model, diffusers.DDIMScheduler(**DDIM)).sampler(2)
    x_0 = sample(sampler.denoiser, x, z, solver=sampler.solver, grid=sampler.grid).x_0
    found = torch.autograd.grad(x_0.square().sum(), learned)
    assert len(learned) > 0 and sum(float(g.norm()) for g in found) > 0


def test_ddp_is_looked_through(tmp_path) -> None:
    if not torch.distributed.is_available() or torch.distributed.is_initialized():
        pytest.skip("no process group to make")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        bare = small()
        model = nn.parallel.DistributedDataParallel(bare)
        x = normal(1, 4, 8, 8, seed=1).requires_grad_()
        z = normal(1, 5, 12, seed=2).requires_grad_()
        wanted = gradients(bare, x, z, bare.conv_in.weight)
        for ours, theirs in zip(gradients(model, x, z, bare.conv_in.weight), wanted, strict=True):
            assert relative_error(ours, theirs) < 1e-12
    finally:
        torch.distributed.destroy_process_group()


def test_conditions_by_their_names() -> None:
    scheduler = diffusers.DDIMScheduler(**DDIM)
    text, pooled = normal(2, 5, 12, seed=2), normal(2, 6, seed=3)
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).double()
    unet, x, t = small(**XL), normal(2, 4, 8, 8, seed=1), torch.tensor(500)
    added = {"text_embeds": pooled, "time_ids": ids.repeat(2, 1)}
    wanted = unet(x, t, text, added_cond_kwargs=added).sample
    bound = from_diffusers(unet, scheduler, added_cond_kwargs={"time_ids": ids}).network
    free = from_diffusers(unet, scheduler).network
    whole = {"encoder_hidden_states": text, "added_cond_kwargs": added}
    for network, z in (
        (bound, {"prompt": text, "pooled": pooled}),
        (free, {"prompt": text, "pooled": pooled, "time_ids": ids.repeat(2, 1)}),
        (free, whole),
    ):
        torch.testing.assert_close(network(x, t, z), wanted)
    sd3 = from_diffusers(CASES["stable diffusion 3"].network(torch.float64), scheduler).network
    out = sd3(x, t, {"prompt": text, "pooled": pooled})
    torch.testing.assert_close(
        out, sd3(x, t, {"encoder_hidden_states": text, "pooled_projections": pooled})
    )
    with pytest.raises(TypeError, match="takes no 'pooled' beside its input and time; it takes"):
        from_diffusers(small(), scheduler, pooled=pooled)
    with pytest.raises(TypeError, match=r"no 'guidance_scale'.*Guidance\(denoiser, nega"):
        from_diffusers(small(), scheduler, guidance_scale=7.5)
    with pytest.raises(TypeError, match="takes no 'propmt'"):
        free(x, t, {"propmt": text})
    with pytest.raises(ValueError, match="encoder_hidden_states is both in z and bound"):
        from_diffusers(small(), scheduler, encoder_hidden_states=text).network(x, t, text)
    with pytest.raises(ValueError, match="conditioned by a tensor, or by a dictionary"):
        free(x, t, (text, pooled))


def test_guidance_doubles_what_is_bound() -> None:
    """time_ids of one sample or of the batch, evaluated as one batch or two."""
    scheduler = diffusers.DDIMScheduler(**DDIM)
    unet, x = small(**XL), normal(2, 4, 8, 8, seed=1)
    z = {"prompt": normal(2, 5, 12, seed=2), "pooled": normal(2, 6, seed=3)}
    negative = {"prompt": normal(1, 5, 12, seed=4), "pooled": normal(1, 6, seed=5)}
    row = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).double()
    outs = []
    for ids in (row, row.repeat(2, 1)):
        sampler = from_diffusers(unet, scheduler, added_cond_kwargs={"time_ids": ids}).sampler(2)
        for batched in (True, False):
            guided = Guidance(sampler.denoiser, negative, 3.0, batched=batched)
            outs.append(guided(x, sampler.grid[0].t, z))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_a_guidance_embedding_is_not_left_out() -> None:
    case, flow = CASES["flux"], diffusers.FlowMatchEulerDiscreteScheduler()
    model = case.network(torch.float64)
    ids = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)}
    x, t = normal(2, 4, 4, seed=1), torch.tensor(500.0)
    z = {"prompt": normal(2, 3, 12, seed=2), "pooled": normal(2, 8, seed=3)}
    with pytest.raises(ValueError, match=r"distilled with a guidance embedding.*guidance=3\.5"):
        from_diffusers(model, flow, **ids).network(x, t, z)
    number = from_diffusers(model, flow, guidance=3.5, **ids).network(x, t, z)
    tensor = from_diffusers(model, flow, guidance=torch.full((2,), 3.5), **ids).network(x, t, z)
    torch.testing.assert_close(number, tensor)
    latent_consistency = small(time_cond_proj_dim=8)
    text = normal(1, 5, 12, seed=2)
    with pytest.raises(ValueError, match=r"timestep_cond=pipe\.get_guidance_scale_embedding"):
        from_diffusers(latent_consistency, flow).network(x[:1, None], t, text)
    given = from_diffusers(latent_consistency, flow, timestep_cond=normal(1, 8, seed=3)).network
    assert given(normal(1, 4, 8, 8, seed=1), t, text).shape == (1, 4, 8, 8)


def test_a_learned_variance_is_dropped_or_kept() -> None:
    unet, x, z = small(out_channels=8), normal(1, 4, 8, 8, seed=1), normal(1, 5, 12, seed=2)
    t = torch.tensor(500)
    out = unet(x, t, z).sample
    fixed = from_diffusers(unet, diffusers.DDPMScheduler()).network(x, t, z)
    learned = diffusers.DDPMScheduler(variance_type="learned_range")
    assert torch.equal(fixed, out[:, :4])
    assert torch.equal(from_diffusers(unet, learned).network(x, t, z), out)
    for scheduler in (diffusers.DDPMScheduler(), learned):
        sampler = from_diffusers(unet, scheduler).sampler(3)
        guided = Guidance(sampler.denoiser, torch.zeros_like(z), 2.0)
        rollout = sample(guided, x, z, solver=sampler.solver, grid=sampler.grid)
        assert rollout.x_0.shape == x.shape
    # Our own solvers take the noise prediction alone.
    model = from_diffusers(unet, learned)
    assert torch.equal(model.denoiser(x, model.schedule.t_of_timestep(500), z), out[:, :4])


def test_latents_are_brought_to_the_dtype_of_the_network() -> None:
    unet = small().to(torch.bfloat16)
    x, z = normal(1, 4, 8, 8, seed=1).float(), normal(1, 5, 12, seed=2).to(torch.bfloat16)
    network = from_diffusers(unet, diffusers.DDIMScheduler()).network
    out = network(x, torch.tensor(10), z)
    assert torch.equal(out, unet(x.to(torch.bfloat16), torch.tensor(10), z).sample)
