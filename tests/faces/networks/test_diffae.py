"""The autoencoder as a whole, at a size where its derivatives can be checked."""

import pytest
import torch

from adjointdeis.faces.networks import DiffAE, DiffAEConfig


def config(**changes) -> DiffAEConfig:
    numbers = {
        "image_size": 8,
        "model_channels": 8,
        "channel_mult": (1, 2),
        "encoder_channel_mult": (1, 2, 2),
        "residual_blocks": 1,
        "attention_resolutions": (4,),
        "embed_channels": 6,
        "code_channels": 5,
    }
    return DiffAEConfig(**(numbers | changes))


def network(**changes) -> DiffAE:
    torch.manual_seed(0)
    built = DiffAE(config(**changes)).double().eval()
    for parameter in built.parameters():
        # Zero-initialised layers would make the output, and its derivatives, vanish.
        parameter.data = 0.2 * torch.randn_like(parameter)
    return built


def latents(size: int = 8, batch: int = 2, code: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randn(batch, code, generator=generator, dtype=torch.float64)


def test_a_fresh_network_predicts_zero():
    x, z = latents()
    built = DiffAE(config()).double()
    assert built(x, torch.tensor(500), z).abs().max() == 0


def test_derivatives_by_x_and_z_are_those_of_finite_differences():
    built = network(image_size=4, encoder_channel_mult=(1, 2))
    x, z = latents(size=4, batch=1)
    x.requires_grad_()
    z.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, z: built(x, torch.tensor(123), z), (x, z), eps=1e-6, atol=1e-7, rtol=1e-5
    )


def test_derivative_of_the_code_is_that_of_finite_differences():
    built = network(image_size=4, encoder_channel_mult=(1, 2))
    x, _ = latents(size=4, batch=1)
    assert torch.autograd.gradcheck(built.encode, (x.requires_grad_(),), atol=1e-7, rtol=1e-5)


def test_the_decoder_stacks_its_own_features_before_the_lateral_ones():
    built = network()
    seen = {}
    built.middle_block.register_forward_hook(lambda m, i, o: seen.update(middle=o))
    built.input_blocks[-1].register_forward_hook(lambda m, i, o: seen.update(last=o))
    built.input_blocks[0].register_forward_hook(lambda m, i, o: seen.update(first=o))
    built.output_blocks[0].register_forward_pre_hook(lambda m, i: seen.update(coarse=i[0]))
    built.output_blocks[-1].register_forward_pre_hook(lambda m, i: seen.update(fine=i[0]))
    built.output_blocks[-2].register_forward_hook(lambda m, i, o: seen.update(before=o))
    x, z = latents()
    built(x, torch.tensor(10), z)
    coarse = torch.cat([seen["middle"], seen["last"]], dim=1)
    torch.testing.assert_close(seen["coarse"], coarse, rtol=0, atol=0)
    # Last in, first out: the finest block gets the very first convolution.
    fine = torch.cat([seen["before"], seen["first"]], dim=1)
    torch.testing.assert_close(seen["fine"], fine, rtol=0, atol=0)


def test_one_timestep_for_all_and_one_for_each_agree():
    built = network()
    x, z = latents()
    expected = built(x, torch.tensor([40, 40]), z)
    torch.testing.assert_close(built(x, torch.tensor(40), z), expected, rtol=0, atol=0)
    assert (built(x, torch.tensor(41), z) - expected).abs().max() > 1e-6


def test_samples_of_a_batch_do_not_mix():
    built = network()
    x, z = latents()
    whole = built(x, torch.tensor([7, 900]), z)
    parts = [built(x[i : i + 1], torch.tensor(t), z[i : i + 1]) for i, t in ((0, 7), (1, 900))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_folded_pixels_keep_the_shape_of_the_image():
    built = network(image_size=16, patch_size=2, attention_resolutions=(4,))
    assert built.input_blocks[0][0].in_channels == 12
    x, z = latents(size=16)
    assert built(x, torch.tensor(3), z).shape == x.shape
    assert built.encode(x).shape == z.shape


def test_an_image_of_another_size_is_named():
    x, z = latents(size=16)
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 8\), got \(2, 3, 16, 16\)"):
        network()(x, torch.tensor(3), z)
    with pytest.raises(ValueError, match="align or resize"):
        network().encode(x)


def test_a_size_that_the_levels_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="image_size=10 must be a multiple of 4"):
        config(image_size=10)


def test_a_config_from_json_is_hashable():
    assert config(channel_mult=[1, 2]) == config()
    assert hash(config(channel_mult=[1, 2])) == hash(config())
