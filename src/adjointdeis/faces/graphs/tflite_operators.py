"""Torch forms of TensorFlow Lite operators, by name, and the options that each one reads."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.graphs import channels_last
from adjointdeis.faces.graphs.graph import UnsupportedOperator, integers

Attributes = Mapping[str, Any]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{name.upper(): function for name, function in channels_last.UNARY.items()},
    "HARD_SWISH": F.hardswish,
    "LOGISTIC": torch.sigmoid,
    "RELU_N1_TO_1": lambda x: x.clamp(-1, 1),
}
ACTIVATIONS = {k: UNARY[k] for k in ("ELU", "HARD_SWISH", "RELU", "RELU6", "RELU_N1_TO_1", "TANH")}

_FUSED = ("FusedActivationFunction",)
_WINDOW = ("Padding", "StrideH", "StrideW")
_POOL = ("Pool2DOptions", (*_WINDOW, "FilterHeight", "FilterWidth", *_FUSED))
_REDUCER = ("ReducerOptions", ("KeepDims",))

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("AddOptions", _FUSED),
    "AVERAGE_POOL_2D": _POOL,
    "BATCH_MATMUL": ("BatchMatMulOptions", ("AdjX", "AdjY")),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", *_FUSED)),
    "CONV_2D": ("Conv2DOptions", (*_WINDOW, "DilationHFactor", "DilationWFactor", *_FUSED)),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        (*_WINDOW, "DilationHFactor", "DilationWFactor", *_FUSED),
    ),
    "DIV": ("DivOptions", _FUSED),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("KeepNumDims", *_FUSED)),
    "L2_NORMALIZATION": ("L2NormOptions", _FUSED),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "MAX_POOL_2D": _POOL,
    "MEAN": _REDUCER,
    "MUL": ("MulOptions", _FUSED),
    "REDUCE_MAX": _REDUCER,
    "RESHAPE": ("ReshapeOptions", ("NewShape",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "SQUEEZE": ("SqueezeOptions", ("SqueezeDims",)),
    "SUB": ("SubOptions", _FUSED),
    "SUM": _REDUCER,
}
"""Table of the schema and the fields that are read, by operator."""


def _fused(a: Attributes, y: Tensor) -> Tensor:
    name = a.get("FusedActivationFunction", "NONE")
    if name == "NONE":
        return y
    if name not in ACTIVATIONS:
        raise UnsupportedOperator(f"activation {name}")
    return ACTIVATIONS[name](y)


def _binary(function: Callable[[Tensor, Tensor], Tensor]):
    return lambda a, x, y: _fused(a, function(x, y))


def _convolution(depthwise: bool):
    def convolution(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # Dense weights are (O, H, W, C / groups), depthwise ones (1, H, W, O).
        weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
        y = channels_last.conv(
            x,
            weight,
            bias,
            (a["StrideH"], a["StrideW"]),
            (a["DilationHFactor"], a["DilationWFactor"]),
            a["Padding"],
        )
        return _fused(a, y)

    return convolution


def _pool(function: Callable[..., Tensor]):
    def pool(a: Attributes, x: Tensor) -> Tensor:
        kernel, strides = (a["FilterHeight"], a["FilterWidth"]), (a["StrideH"], a["StrideW"])
        return _fused(a, function(x, kernel, strides, a["Padding"]))

    return pool


def _fully_connected(
    a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    x = x if a.get("KeepNumDims") else x.reshape(-1, weight.shape[1])
    return _fused(a, F.linear(x, weight, bias))


def _reshape(a: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = integers(shape) if shape is not None else a["NewShape"]
    return channels_last.reshape(x, wanted or [])


def _pad(a: Attributes, x: Tensor, widths: Tensor, value: Tensor | None = None) -> Tensor:
    return channels_last.pad(x, widths.tolist(), 0.0 if value is None else value.item())


def _concatenation(a: Attributes, *values: Tensor) -> Tensor:
    return _fused(a, torch.cat(values, a["Axis"]))


def _dequantize(a: Attributes, x: Tensor) -> Tensor:
    """Half-precision weights are stored behind it."""
    if not x.is_floating_point():
        raise UnsupportedOperator("quantised numbers; only floating-point files are read")
    return x.float() if x.dtype == torch.float16 else x


_REDUCTIONS = channels_last.reductions("KeepDims")

OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: (lambda a, x, function=function: function(x)) for name, function in UNARY.items()},
    **{
        name.upper(): _binary(function)
        for name, function in {
            **channels_last.BINARY,
            "Div": torch.div,
            "Pow": torch.pow,
            "Squared_difference": lambda x, y: (x - y).square(),
        }.items()
    },
    "AVERAGE_POOL_2D": _pool(channels_last.average_pool),
    "BATCH_MATMUL": lambda a, x, y: channels_last.matmul(x, y, a.get("AdjX"), a.get("AdjY")),
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution(depthwise=False),
    "DEQUANTIZE": _dequantize,
    "DEPTHWISE_CONV_2D": _convolution(depthwise=True),
    "EXPAND_DIMS": lambda a, x, axis: x.unsqueeze(int(axis)),
    "FULLY_CONNECTED": _fully_connected,
    "L2_NORMALIZATION": lambda a, x: _fused(a, F.normalize(x, dim=-1, eps=1e-6)),
    "LEAKY_RELU": lambda a, x: F.leaky_relu(x, a["Alpha"]),
    "MAX_POOL_2D": _pool(channels_last.max_pool),
    "MEAN": _REDUCTIONS["Mean"],
    "PAD": _pad,
    "PADV2": _pad,
    "REDUCE_MAX": _REDUCTIONS["Max"],
    "RESHAPE": _reshape,
    "SOFTMAX": lambda a, x: torch.softmax(a.get("Beta", 1.0) * x, -1),
    "SQUEEZE": lambda a, x: channels_last.squeeze(x, a.get("SqueezeDims")),
    "SUM": _REDUCTIONS["Sum"],
    "TRANSPOSE": lambda a, x, order: x.permute(integers(order) or []),
}
"""Torch form by the name of the operator."""
