"""Checkpoints inside a network: the same gradient from fewer held bytes, and a network unharmed."""

import copy

import pytest
import torch
from oracles import relative_error
from torch import nn

from adjointdeis import DDPM, TimeGrid, sample
from adjointdeis.diffusion import FromTimesteps, checkpoint_blocks
from adjointdeis.diffusion.checkpointing import is_checkpointed
from adjointdeis.diffusion.execution import Execution
from adjointdeis.faces.networks.blocks import ResidualBlock, Stage
from adjointdeis.faces.networks.diffae import DiffAE, DiffAEConfig
from adjointdeis.gradients import Backprop, DiscreteAdjoint
from adjointdeis.gradients.memory_plan import SavedBytes
from adjointdeis.solvers import DDIM

SCHEDULE = DDPM()
GRID = TimeGrid.ddim_stride(SCHEDULE, 4)


def small_diffae() -> DiffAE:
    torch.manual_seed(0)
    config = DiffAEConfig(
        image_size=8, model_channels=32, channel_mult=(1, 1), encoder_channel_mult=(1, 1),
        residual_blocks=1, attention_resolutions=(4,), embed_channels=8, code_channels=8,
        dropout=0.5,
    )  # fmt: skip
    network = DiffAE(config).double()
    for parameter in network.parameters():  # the official initialisation has zero gradients
        nn.init.normal_(parameter, std=0.05)
    return network.train()


def gradients(network: DiffAE, method) -> tuple[list[torch.Tensor], int]:
    generator = torch.Generator().manual_seed(1)
    x_T = torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    z = torch.randn(1, 8, generator=generator, dtype=torch.float64).requires_grad_()
    network.zero_grad()
    torch.manual_seed(2)
    denoiser = FromTimesteps(network, SCHEDULE)
    with SavedBytes(network.parameters()) as saved:
        x_0 = sample(denoiser, x_T, z, solver=DDIM(), grid=GRID, gradient=method).x_0
    x_0.sin().sum().backward()
    theta = torch.cat(
        [
            torch.zeros(p.numel()).double() if p.grad is None else p.grad.flatten()
            for p in network.parameters()
        ]
    )
    return [x_0.detach(), x_T.grad, z.grad, theta], saved.total


@pytest.mark.parametrize("blocks", [None, Stage, ResidualBlock, (ResidualBlock, nn.Conv2d)])
def test_a_diffusion_autoencoder_holds_less_and_says_the_same(blocks) -> None:
    """Dropout is on: the masks must be drawn again."""
    network = small_diffae()
    exact, whole = gradients(network, Backprop())
    keys = list(network.state_dict())
    with checkpoint_blocks(network, blocks) as handle:
        assert list(network.state_dict()) == keys
        assert any(isinstance(m, Stage) for m in network.modules())
        one_level, less = gradients(network, Backprop())
        two_levels, _ = gradients(network, DiscreteAdjoint())
        budgeted, _ = gradients(network, DiscreteAdjoint(budget="1 MB"))
    assert less < 0.6 * whole
    for found in (one_level, two_levels, budgeted):
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, exact, strict=True))
    assert not handle.blocks[0].__class__.__mro__[1].__name__.startswith("_Checkpointed")
    after, again = gradients(network, Backprop())
    assert again == whole and all(torch.equal(a, b) for a, b in zip(after, exact, strict=True))


class Net(nn.Module):
    """Counts its evaluations of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
        self.calls = 0
        for block in self.blocks:
            block.register_forward_hook(self.count)

    def count(self, *arguments) -> None:
        self.calls += 1

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def test_blocks_recompute_once_and_only_for_a_gradient() -> None:
    net, x = Net(), torch.ones(2, 3, requires_grad=True)
    evaluated = []
    inner = nn.Linear.forward

    class Seen(nn.Linear):
        def forward(self, x):
            evaluated.append(torch.is_grad_enabled())
            return inner(self, x)

    for block in net.blocks:
        block.__class__ = Seen
    checkpoint_blocks(net, tuple(net.blocks[:2]))
    with torch.no_grad():
        net(x)
    assert len(evaluated) == 4
    net(x).sum().backward()
    assert len(evaluated) == 4 + 4 + 2


def test_a_copy_of_a_checkpointed_network_is_its_own() -> None:
    net = Net()
    handle = checkpoint_blocks(net, nn.Linear)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.blocks[0].weight.zero_()
    x = torch.ones(2, 3)
    assert not torch.allclose(net(x), twin(x))
    handle.remove()
    handle.remove()
    assert type(net.blocks[0]) is nn.Linear


def test_the_outermost_of_nested_blocks_recompute() -> None:
    network = small_diffae()
    handle = checkpoint_blocks(network, (Stage, ResidualBlock))
    assert {type(block).__name__ for block in handle.blocks} == {"Stage"}


def test_an_execution_can_ask_for_them() -> None:
    network = small_diffae()
    exact, whole = gradients(network, Backprop())
    executed = Execution(checkpoint=True).of(network)
    again = Execution(checkpoint=True).of(network)  # the network is shared and already done
    assert is_checkpointed(network) and executed.network is again.network is network
    found, less = gradients(network, Backprop())
    assert less < 0.6 * whole and not Execution(checkpoint=True).plain
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, exact, strict=True))
    assert all(isinstance(block, Stage) for block in network.output_blocks)


def test_impossible_blocks_are_refused() -> None:
    net = Net()
    with pytest.raises(ValueError, match="consists of Linear, ModuleList, Net"):
        checkpoint_blocks(net, nn.Conv2d)
    with pytest.raises(ValueError, match="not part"):
        checkpoint_blocks(net, [nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="inside another"):
        checkpoint_blocks(net, [net.blocks, net.blocks[0]])
    checkpoint_blocks(net, nn.Linear)
    with pytest.raises(ValueError, match="already"):
        checkpoint_blocks(net, nn.Linear)
