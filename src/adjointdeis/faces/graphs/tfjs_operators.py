"""Torch forms of TensorFlow.js graph operators, by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.graphs import channels_last
from adjointdeis.faces.graphs.graph import UnsupportedOperator, integers

Attributes = Mapping[str, Any]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **channels_last.UNARY,
    "Identity": lambda x: x,
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda x: torch.softmax(x, -1),
}


def _fused(a: Attributes, y: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    """Applies `fused_ops`; a bias and the slopes of a PReLU are further inputs."""
    rest = list(others)
    for name in a.get("fused_ops") or []:
        if name == "BiasAdd":
            y = y + rest.pop(0)
        elif name == "Prelu":
            y = channels_last.prelu(y, rest.pop(0))
        elif name == "LeakyRelu":
            y = F.leaky_relu(y, a.get("leakyrelu_alpha", 0.2))
        elif name in UNARY:
            y = UNARY[name](y)
        else:
            raise UnsupportedOperator(f"fused {name}")
    return y


def _spatial(a: Attributes, name: str) -> tuple[int, int]:
    values = a.get(name) or [1, 1, 1, 1]
    if a.get("data_format", "NHWC") != "NHWC":
        raise UnsupportedOperator(f"data format {a['data_format']}; NHWC is supported")
    return values[1], values[2]


def _conv(a: Attributes, x: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
    # (H, W, C, O)
    weight = weight.permute(3, 2, 0, 1)
    strides, dilations = _spatial(a, "strides"), _spatial(a, "dilations")
    y = channels_last.conv(x, weight, None, strides, dilations, a["padding"])
    return _fused(a, y, others)


def _depthwise(a: Attributes, x: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
    # (H, W, C, multiplier); results of one channel lie together.
    height, width, channels, multiplier = weight.shape
    weight = weight.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    strides, dilations = _spatial(a, "strides"), _spatial(a, "dilations")
    y = channels_last.conv(x, weight, None, strides, dilations, a["padding"])
    return _fused(a, y, others)


def _pool(function: Callable[..., Tensor]):
    def pool(a: Attributes, x: Tensor) -> Tensor:
        return function(x, _spatial(a, "ksize"), _spatial(a, "strides"), a["padding"])

    return pool


def _matmul(a: Attributes, x: Tensor, y: Tensor, *others: Tensor) -> Tensor:
    product = channels_last.matmul(x, y, a.get("transpose_a"), a.get("transpose_b"))
    return _fused(a, product, others)


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return (x - mean) * (scale * torch.rsqrt(variance + a.get("epsilon", 1e-3))) + offset


def _strided_slice(a: Attributes, x: Tensor, *bounds: Tensor) -> Tensor:
    if a.get("ellipsis_mask") or a.get("new_axis_mask"):
        raise UnsupportedOperator("ellipsis_mask and new_axis_mask")
    begin, end, strides = (integers(v) or [] for v in bounds)
    masks = (a.get(f"{name}_mask", 0) for name in ("begin", "end", "shrink_axis"))
    return channels_last.strided_slice(x, begin, end, strides, *masks)


OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: (lambda a, x, function=function: function(x)) for name, function in UNARY.items()},
    **{
        name: (lambda a, x, y, function=function: function(x, y))
        for name, function in {
            **channels_last.BINARY,
            "AddV2": torch.add,
            "BiasAdd": torch.add,
            "RealDiv": torch.div,
            "SquaredDifference": lambda x, y: (x - y).square(),
        }.items()
    },
    **channels_last.reductions("keep_dims"),
    "AvgPool": _pool(channels_last.average_pool),
    "ConcatV2": lambda a, *values: torch.cat(values[:-1], int(values[-1])),
    "Conv2D": _conv,
    "DepthwiseConv2dNative": _depthwise,
    "ExpandDims": lambda a, x, axis: x.unsqueeze(int(axis)),
    "FusedBatchNormV3": _batch_norm,
    "FusedDepthwiseConv2dNative": _depthwise,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.2)),
    "MatMul": _matmul,
    "MaxPool": _pool(channels_last.max_pool),
    "Pack": lambda a, *values: torch.stack(values, a.get("axis", 0)),
    "Pad": lambda a, x, widths: channels_last.pad(x, widths.tolist()),
    "PadV2": lambda a, x, widths, value: channels_last.pad(x, widths.tolist(), value.item()),
    "Reshape": lambda a, x, shape: channels_last.reshape(x, integers(shape) or []),
    "Shape": lambda a, x: torch.tensor(x.shape, dtype=torch.int32),
    "Squeeze": lambda a, x: channels_last.squeeze(x, a.get("squeeze_dims") or a.get("axis")),
    "StridedSlice": _strided_slice,
    "Transpose": lambda a, x, order: x.permute(integers(order) or []),
    "_FusedConv2D": _conv,
    "_FusedMatMul": _matmul,
}
"""Torch form by the name of the operator."""
