"""Torch forms of ONNX operators, by name. Layers are in `onnx_layers`."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.graphs.graph import UnsupportedOperator, checked_size, integers
from adjointdeis.faces.graphs.onnx_layers import LAYERS, pad_axes

Attributes = Mapping[str, Any]

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""By `TensorProto.DataType`."""


def _unary(function: Callable[[Tensor], Tensor]):
    return lambda a, x: function(x)


def _together(*values: Tensor) -> list[Tensor]:
    """The values on one device: shape arithmetic happens on the CPU, networks may be elsewhere."""
    device = next((v.device for v in values if v.device.type != "cpu"), values[0].device)
    return [v.to(device) for v in values]


def _binary(function: Callable[[Tensor, Tensor], Tensor]):
    return lambda a, x, y: function(*_together(x, y))


def _folded(function: Callable[[Tensor, Tensor], Tensor]):
    def fold(a: Attributes, *values: Tensor) -> Tensor:
        first, *others = _together(*values)
        for other in others:
            first = function(first, other)
        return first

    return fold


def _divide(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def _clip(
    a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    if low is None and "min" in a:
        low = torch.tensor(a["min"], dtype=x.dtype)
    if high is None and "max" in a:
        high = torch.tensor(a["max"], dtype=x.dtype)
    if low is None and high is None:
        return x
    low, high = (None if v is None else v.to(x.device, x.dtype) for v in (low, high))
    return torch.clamp(x, low, high)


def _softmax(function: Callable[..., Tensor]):
    def softmax(a: Attributes, x: Tensor) -> Tensor:
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        # Before opset 13 every axis from the given one on is one axis.
        axis = a.get("axis", 1) % x.ndim
        return function(x.flatten(axis), axis).reshape(x.shape)

    return softmax


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]):
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = integers(axes) if axes is not None else a.get("axes")
        if not chosen:
            if a.get("noop_with_empty_axes"):
                return x
            chosen = range(x.ndim)
        return function(x, tuple(i % x.ndim for i in chosen), bool(a.get("keepdims", 1)))

    return reduce


def _reshape(a: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = integers(shape) if shape is not None else list(a["shape"])
    assert wanted is not None
    if not a.get("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = integers(axes) if axes is not None else a.get("axes")
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = integers(axes) if axes is not None else a["axes"]
    assert chosen is not None
    for axis in sorted(i % (x.ndim + len(chosen)) for i in chosen):
        x = x.unsqueeze(axis)
    return x


def _split(a: Attributes, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    sizes = integers(split) if split is not None else a.get("split")
    if sizes is None:
        count = a.get("num_outputs") or a["outputs"]
        sizes = -(-x.shape[axis] // count)
    return torch.split(x, sizes, axis)


def _slice(a: Attributes, x: Tensor, *given: Tensor | None) -> Tensor:
    if given:
        starts, ends, axes, steps = (integers(v) for v in (*given, None, None)[:4])
    else:
        starts, ends, axes, steps = a["starts"], a["ends"], a.get("axes"), None
    assert starts is not None and ends is not None
    axes = axes or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes), strict=True):
        # An end before the first element means "with the first" where the step is backwards.
        end = None if step < 0 and end < -x.shape[axis] else end
        kept = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.long, device=x.device))
    return x


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = indices.reshape(-1).to(x.device)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, flat).reshape(shape)


def _dropout(a: Attributes, x: Tensor, ratio: Any = None, training: Any = None) -> Tensor:
    """Dropout, which does nothing where the network is used."""
    if training is not None and bool(training):
        raise UnsupportedOperator("training_mode is not supported; export in evaluation mode")
    return x


def _expand(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = torch.broadcast_shapes(x.shape, integers(shape) or ())
    checked_size(wanted, "the result of Expand")
    return x.expand(wanted)


def _tile(a: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    counts = integers(repeats) or []
    checked_size([n * k for n, k in zip(x.shape, counts, strict=True)], "the result of Tile")
    return x.repeat(counts)


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = a.get("value")
    value = torch.zeros(1) if value is None else value
    wanted = integers(shape) or []
    checked_size(wanted, "the result of ConstantOfShape")
    return torch.full(wanted, value.reshape(-1)[0].item(), dtype=value.dtype)


def _range(a: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    first, last, by = start.item(), limit.item(), step.item()
    checked_size([max(0, int((last - first) / by) + 1)], "the result of Range")
    return torch.arange(first, last, by, dtype=start.dtype)


def _pad(
    a: Attributes,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given = integers(pads) if pads is not None else list(a["pads"])
    assert given is not None
    chosen = [i % x.ndim for i in integers(axes) or range(x.ndim)]
    n = len(chosen)
    widths = [(0, 0)] * x.ndim
    for axis, before, after in zip(chosen, given[:n], given[n:], strict=True):
        widths[axis] = (before, after)
    mode = a.get("mode", "constant")
    if mode == "constant":
        return pad_axes(x, widths, value.item() if value is not None else a.get("value", 0.0))
    names = {"reflect": "reflect", "edge": "replicate"}
    if mode not in names or any(w != (0, 0) for w in widths[:2]) or not 3 <= x.ndim <= 5:
        raise UnsupportedOperator(
            f"mode {mode} on {tuple(x.shape)}; constant is supported, and reflect and edge over "
            "the spatial axes of (B, C, ...)"
        )
    flat = [w for pair in reversed(widths[2:]) for w in pair]
    return F.pad(x, flat, mode=names[mode])


def _cast(a: Attributes, x: Tensor) -> Tensor:
    if a["to"] not in _DTYPES:
        raise UnsupportedOperator(f"data type {a['to']}")
    dtype = _DTYPES[a["to"]]
    if x.dtype == torch.float64 and dtype == torch.float32:
        return x  # the module was turned into double precision
    return x.to(dtype)


def _gemm(a: Attributes, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    x = x.transpose(0, 1) if a.get("transA") else x
    y = y.transpose(0, 1) if a.get("transB") else y
    product = a.get("alpha", 1.0) * (x @ y)
    return product if c is None else product + a.get("beta", 1.0) * c


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _where(a: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(*_together(condition, x, y))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=torch.long)


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm") or list(reversed(range(x.ndim))))


def _lp_normalization(a: Attributes, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True)
    return x / norm


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, (b, c, h, w) = a["blocksize"], x.shape
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, n)
    y = x.reshape(b, n, n, c // n**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(b, c // n**2, h * n, w * n)


def _space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    n, (b, c, h, w) = a["blocksize"], x.shape
    y = x.reshape(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(b, c * n**2, h // n, w // n)


OPERATORS: dict[str, Callable[..., Any]] = {
    **LAYERS,
    **{
        name: _unary(function)
        for name, function in {
            "Abs": torch.abs,
            "Ceil": torch.ceil,
            "Cos": torch.cos,
            "Erf": torch.erf,
            "Exp": torch.exp,
            "Floor": torch.floor,
            "HardSwish": F.hardswish,
            "Log": torch.log,
            "Mish": F.mish,
            "Neg": torch.neg,
            "Not": torch.logical_not,
            "Reciprocal": torch.reciprocal,
            "Relu": F.relu,
            "Sigmoid": torch.sigmoid,
            "Sin": torch.sin,
            "Softplus": F.softplus,
            "Sqrt": torch.sqrt,
            "Tanh": torch.tanh,
        }.items()
    },
    **{
        name: _binary(function)
        for name, function in {
            "Add": operator.add,
            "And": torch.logical_and,
            "Div": _divide,
            "Equal": torch.eq,
            "Greater": torch.gt,
            "GreaterOrEqual": torch.ge,
            "Less": torch.lt,
            "LessOrEqual": torch.le,
            "MatMul": torch.matmul,
            "Mul": operator.mul,
            "Or": torch.logical_or,
            "Pow": torch.pow,
            "Sub": operator.sub,
        }.items()
    },
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sum": _folded(operator.add),
    **{
        name: _reduce(function)
        for name, function in {
            "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
            "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
            "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
            "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
            "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
            "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
            "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
            "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
        }.items()
    },
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *values: torch.cat(_together(*values), a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Einsum": lambda a, *values: torch.einsum(a["equation"], *values),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_normalization,
    "PRelu": _prelu,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""Torch form by the name of the operator."""
