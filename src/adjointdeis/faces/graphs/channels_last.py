"""Layers of TensorFlow's formats: images are (B, H, W, C), padding is SAME or VALID."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.graphs.graph import UnsupportedOperator, checked_size, integers
from adjointdeis.faces.graphs.onnx_layers import pad_axes


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis; the odd pixel goes behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _padded(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: str,
    value: float = 0.0,
) -> Tensor:
    """x (B, H, W, C), padded as the name says, as (B, C, H, W) in the same order of memory."""
    if padding == "SAME":
        sizes = zip(x.shape[1:3], kernel, strides, dilations, strict=True)
        x = pad_axes(x, [*(_same_padding(*axis) for axis in sizes), (0, 0)], value)
    elif padding != "VALID":
        raise UnsupportedOperator(f"padding {padding}; SAME and VALID are supported")
    return x.permute(0, 3, 1, 2)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: str,
) -> Tensor:
    """Convolution of (B, H, W, C) with weights (O, C / groups, kernel, kernel).

    Args:
        x: Images.
        weight: One group where C equals its second size, else several.
        bias: Shape (O,), or None.
        strides, dilations: Of height and width.
        padding: TensorFlow's word, SAME or VALID.
    """
    groups = x.shape[-1] // weight.shape[1]
    x = _padded(x, weight.shape[2:], strides, dilations, padding)
    if groups == 1 and (*weight.shape[2:], *strides) == (1, 1, 1, 1):
        # Each pixel by itself. Torch's convolution of a small batch in one thread would copy it to
        # (B, C, H, W), and everything behind it would run on that other order of memory.
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return F.conv2d(x, weight, bias, tuple(strides), 0, tuple(dilations), groups).permute(
        0, 2, 3, 1
    )


def max_pool(x: Tensor, kernel: Sequence[int], strides: Sequence[int], padding: str) -> Tensor:
    """Maximum over windows of (B, H, W, C)."""
    x = _padded(x, kernel, strides, (1, 1), padding, -math.inf)
    return F.max_pool2d(x, tuple(kernel), tuple(strides)).permute(0, 2, 3, 1)


def average_pool(x: Tensor, kernel: Sequence[int], strides: Sequence[int], padding: str) -> Tensor:
    """Mean over windows of (B, H, W, C); padding does not count."""
    ones = x.new_ones(1, *x.shape[1:3], 1)

    def pool(y: Tensor) -> Tensor:
        padded = _padded(y, kernel, strides, (1, 1), padding)
        return F.avg_pool2d(padded, tuple(kernel), tuple(strides))

    return (pool(x) / pool(ones)).permute(0, 2, 3, 1)


def pad(x: Tensor, widths: Sequence[Sequence[int]], value: float = 0.0) -> Tensor:
    """Pads every axis by (before, after)."""
    return pad_axes(x, [(int(a), int(b)) for a, b in widths], value)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape; one size may be -1."""
    checked_size([n for n in shape if n != -1], "the reshaped tensor")
    return x.reshape(list(shape))


def strided_slice(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int,
    end_mask: int,
    shrink_mask: int,
) -> Tensor:
    """TensorFlow's StridedSlice with positive strides.

    Args:
        x: Any tensor.
        begin, end, strides: One entry for each leading axis.
        begin_mask, end_mask: Bits of the axes whose begin or end is not used.
        shrink_mask: Bits of the axes of which one index is taken.
    """
    if any(step < 1 for step in strides):
        raise UnsupportedOperator(f"strides {list(strides)}; positive ones are supported")
    index: list[int | slice] = []
    for axis, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        if shrink_mask >> axis & 1:
            index.append(first)
            continue
        start = None if begin_mask >> axis & 1 else first
        stop = None if end_mask >> axis & 1 else last
        index.append(slice(start, stop, step))
    return x[tuple(index)]


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where positive, slope x elsewhere."""
    return x.clamp(min=0) + slope * x.clamp(max=0)


def matmul(x: Tensor, y: Tensor, transpose_x: object, transpose_y: object) -> Tensor:
    """Product over the last two axes, either factor transposed first where asked."""
    x = x.transpose(-1, -2) if transpose_x else x
    return x @ (y.transpose(-1, -2) if transpose_y else y)


def squeeze(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """x without these axes of one element, or without any."""
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


def reductions(keep: str) -> dict[str, Callable[..., Tensor]]:
    """Operators over axes; `keep` is the attribute that keeps those with one element."""

    def operator(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda a, x, axes: function(
            x, tuple(integers(axes) or ()), keepdim=bool(a.get(keep))
        )

    return {name: operator(f) for name, f in (("Max", torch.amax), ("Mean", torch.mean),
                                              ("Sum", torch.sum))}  # fmt: skip


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Elu": F.elu,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Relu": F.relu,
    "Relu6": F.relu6,
    "Rsqrt": torch.rsqrt,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "Tanh": torch.tanh,
}
"""By TensorFlow.js's names; TensorFlow Lite's are the same in capitals."""

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Mul": torch.mul,
    "Prelu": prelu,
    "Sub": torch.sub,
}
"""Likewise."""
