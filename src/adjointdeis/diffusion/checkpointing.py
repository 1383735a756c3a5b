"""Checkpoints inside a network: the second level of saving memory, below whole steps."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Blocks: TypeAlias = type[nn.Module] | tuple[type[nn.Module], ...] | Iterable[nn.Module]
Kind = TypeVar("Kind", bound=nn.Module)


class _Checkpointed(nn.Module):
    """Mixed into the class of a block: its activations are recomputed in the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


class BlockCheckpoints:
    """The checkpoints put into a network; :meth:`remove`, or leaving the context, takes them out.

    Attributes:
        blocks: the blocks that recompute.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self._kinds = [type(block) for block in blocks]
        for block, kind in zip(blocks, self._kinds, strict=True):
            # The class is exchanged, not the module: names of weights, isinstance and copies
            # of the network stay as they are.
            block.__class__ = type(kind.__name__, (_Checkpointed, kind), {})

    def remove(self) -> None:
        """Restore the network; a second call does nothing."""
        for block, kind in zip(self.blocks, self._kinds, strict=True):
            block.__class__ = kind

    def __enter__(self) -> "BlockCheckpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def checkpoint_blocks(network: nn.Module, blocks: Blocks | None = None) -> BlockCheckpoints:
    """Let blocks of a network hold only their inputs for the backward pass.

    One evaluation then needs the inputs of its blocks and the activations of one block at a
    time, for about one more evaluation in every backward pass, which ``Cost`` does not see:
    it counts calls of the denoiser. Together with ``DiscreteAdjoint``, which holds the
    activations of one step, this is two-level checkpointing. The gradient is the same; dropout
    and autocast are repeated.

    Args:
        network: any module, such as a ``DiffAE`` or a diffusers model.
        blocks: what recomputes: a class or classes of modules (of nested ones the outermost:
            ``checkpoint_blocks(diffae, Stage)``), or the modules themselves. None takes the
            elements of the outermost ``ModuleList``, which are the stages of a U-Net and the
            layers of a transformer.

    Returns:
        A handle that is also a context manager.

    Raises:
        ValueError: no block was found, one lies inside another, is not part of the network,
            or is checkpointed already.

    When not to use: when one evaluation's activations fit in memory. A network cannot be
    pickled while it is checkpointed; its state_dict can.

    References:
        Training deep nets with sublinear memory cost, https://arxiv.org/abs/1604.06174
    """
    if blocks is None:
        chosen = [block for stack in _outermost(network, nn.ModuleList) for block in stack]
    else:
        named = (blocks,) if isinstance(blocks, type) else tuple(blocks)
        kinds = tuple(block for block in named if isinstance(block, type))
        modules = [block for block in named if not isinstance(block, type)]
        inside = {id(module) for module in network.modules()}
        if any(id(module) not in inside for module in modules):
            raise ValueError("a block to checkpoint is not part of the network")
        chosen = [*_outermost(network, kinds), *modules]
    if not chosen:
        found = sorted({type(module).__name__ for module in network.modules()})
        raise ValueError(f"no block to checkpoint; the network consists of {', '.join(found)}")
    inner = {id(module) for block in chosen for module in block.modules() if module is not block}
    if any(id(block) in inner for block in chosen):
        raise ValueError("a block to checkpoint lies inside another; choose one level")
    if any(is_checkpointed(block) for block in chosen):
        raise ValueError("a block is checkpointed already; remove() its checkpoints first")
    return BlockCheckpoints(chosen)


def is_checkpointed(network: nn.Module) -> bool:
    """Whether any block of a network recomputes its activations."""
    return any(isinstance(module, _Checkpointed) for module in network.modules())


def _outermost(network: nn.Module, kinds: type[Kind] | tuple[type[Kind], ...]) -> Iterator[Kind]:
    for child in network.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from _outermost(child, kinds)
