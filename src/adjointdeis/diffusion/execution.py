r"""How a network is run: arithmetic, memory layout, compilation. What it computes stays the same.

The sampler's state, its coefficients and the adjoint stay as they are (float32 state, float64
coefficients); only the network's inside changes.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.checkpointing import checkpoint_blocks, is_checkpointed

Precision = Literal["float32", "bfloat16", "float16"]


class CompilationWarning(UserWarning):
    """A network could not be compiled and runs as it is."""


@dataclass(frozen=True)
class Execution:
    """Options of running a network; the default is to run it as it is.

    Args:
        precision: arithmetic of convolutions and matrix products. "bfloat16" pays on processors
            that multiply it (CUDA and AMX; with avx512_bf16 a sixth was measured), "float16" on
            CUDA. With "float16" the cotangent of every product is scaled to its range.
        channels_last: hold images with the channels innermost, as tensor cores want them; on a
            CPU it was 3% slower.
        compile: let ``torch.compile`` fuse the network; the first call takes a minute or more.
        checkpoint: hold only the inputs of the network's blocks for the backward pass and
            recompute their inside, about one evaluation more per product
            (``checkpoint_blocks``).

    When not to use: where gradients are compared to the last digits. A gradient through bfloat16
    is within about a thousandth of the float32 one in direction.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"precision={self.precision!r} must be float32, bfloat16 or float16")

    @property
    def plain(self) -> bool:
        """Whether this changes nothing."""
        return self == Execution()

    def of(self, network: nn.Module, example: tuple[Tensor, ...] | None = None) -> nn.Module:
        """The network, run this way; its weights are shared, and laid out anew if need be.

        Args:
            network: called as ``(x, timesteps, z)``.
            example: inputs to try a compilation on; needed for ``compile``.

        Raises:
            ValueError: ``compile`` without an example.

        Warns:
            CompilationWarning: compilation failed; the network runs uncompiled.
        """
        if self.plain:
            return network
        if self.checkpoint and not is_checkpointed(network):
            checkpoint_blocks(network)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        executed = Executed(network, self)
        if self.compile:
            if example is None:
                raise ValueError("compile=True needs example inputs (x, timesteps, z) to try")
            executed.run_by(compiled(network, executed, example))
        return executed


class Executed(nn.Module):
    """A network under an :class:`Execution`."""

    def __init__(self, network: nn.Module, execution: Execution) -> None:
        super().__init__()
        self.network, self.execution = network, execution
        # In a tuple, so that it is no second entry for the same weights.
        self._run: tuple[Callable[..., Tensor]] = (network,)

    def run_by(self, function: Callable[..., Tensor]) -> None:
        """Replaces what is called in the network's place."""
        self._run = (function,)

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        """The network's output in the dtype of ``x``."""
        precision, dtype = self.execution.precision, x.dtype
        scale = None
        if precision == "float16" and torch.is_grad_enabled():
            scale = CotangentScale(self.network)
            x, z = scale.entering(x), scale.entering(z)
        if self.execution.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            x.device.type, dtype=getattr(torch, precision), enabled=precision != "float32"
        ):
            output = self._run[0](x, timesteps, z)
        output = output.to(dtype)
        return output if scale is None else scale.leaving(output)


class CotangentScale:
    """Keeps a product through float16 in its range: scaled on its way in, unscaled on its way out.

    The product is linear, so a power of two changes nothing but what would have underflowed.

    Args:
        network: must have no trainable weights; their gradients would stay scaled.

    Raises:
        ValueError: it has.
    """

    def __init__(self, network: nn.Module) -> None:
        if any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(
                "precision=float16 differentiates latents only; train weights in bfloat16"
            )
        self.factor: Tensor | float = 1.0

    def leaving(self, output: Tensor) -> Tensor:
        """The output, whose cotangent will be brought to about one."""
        if output.requires_grad:
            output = output.view_as(output)
            output.register_hook(self._enlarge)
        return output

    def entering(self, tensor: Tensor) -> Tensor:
        """An input, whose gradient will be brought back."""
        if not tensor.requires_grad:
            return tensor
        tensor = tensor.view_as(tensor)
        tensor.register_hook(lambda gradient: gradient / self.factor)
        return tensor

    def _enlarge(self, cotangent: Tensor) -> Tensor:
        largest = cotangent.abs().amax()
        exponent = torch.where(largest > 0, -largest.log2().ceil(), 0.0)
        self.factor = torch.exp2(exponent)
        return cotangent * self.factor


def compiled(
    network: nn.Module, executed: Executed, example: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """The compiled network, tried with and without a gradient; the network itself if that fails.

    A compilation that was killed leaves a library without content in torch's cache, on which every
    later one of the same network would fail: it is removed and compiled anew.

    Args:
        network: What is compiled.
        executed: How it is run.
        example: Arguments of one call, with the shapes of the run.
    """
    while True:
        function = torch.compile(network)
        executed.run_by(function)
        try:
            x, timesteps, z = example
            with torch.no_grad():
                executed(x, timesteps, z)
            with torch.enable_grad():
                x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
                torch.autograd.grad(executed(x, timesteps, z).sum(), (x, z))
        except Exception as error:
            damaged = _damaged_library(error)
            if damaged is not None:
                damaged.unlink()
                continue
            lines = (line for line in str(error).splitlines() if line.strip())
            reason = next(lines, "no reason given")
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {reason}); running uncompiled",
                CompilationWarning,
                stacklevel=3,
            )
            return network
        return function


def _damaged_library(error: Exception) -> Path | None:
    """The generated library that could not be loaded, if it is one that torch can write again."""
    inner = getattr(error, "inner_exception", error)
    if not isinstance(inner, ImportError) or inner.path is None:
        return None
    path = Path(inner.path)
    ours = path.is_file() and path.with_suffix(".cpp").is_file()
    return path if ours else None
