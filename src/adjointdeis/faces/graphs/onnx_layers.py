"""Torch forms of ONNX's layers: convolution, pooling, resizing, normalisation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.graphs.graph import UnsupportedOperator, checked_size, integers

Attributes = Mapping[str, Any]
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def pad_axes(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pads the last axes of x by (before, after) each, with one value."""
    if not any(a or b for a, b in pads):
        return x
    shape = [*x.shape[: -len(pads)]]
    shape += [n + a + b for n, (a, b) in zip(x.shape[-len(pads) :], pads, strict=True)]
    checked_size(shape, "the padded input")
    return F.pad(x, [n for pair in reversed(list(pads)) for n in pair], value=value)


def _pads(
    a: Attributes, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding (before, after) of each spatial axis, as the attributes say."""
    n, auto = len(kernel), a.get("auto_pad", "NOTSET")
    dilations = a.get("dilations") or [1] * n
    if auto == "VALID":
        return [(0, 0)] * n
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    given = a.get("pads") or [0] * 2 * n
    return list(zip(given[:n], given[n:], strict=True))


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv over one, two or three spatial axes."""
    n = weight.ndim - 2
    strides = a.get("strides") or [1] * n
    pads = _pads(a, x.shape[2:], weight.shape[2:], strides)
    dilations = a.get("dilations") or [1] * n
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = pad_axes(x, pads), [0] * n
    return _CONVOLUTIONS[n](x, weight, bias, strides, padding, dilations, a.get("group", 1))


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose with symmetric padding."""
    n = weight.ndim - 2
    given = a.get("pads") or [0] * 2 * n
    if a.get("auto_pad", "NOTSET") != "NOTSET" or given[:n] != given[n:] or a.get("output_shape"):
        raise UnsupportedOperator("auto_pad, output_shape and asymmetric pads are not supported")
    strides = a.get("strides") or [1] * n
    sizes = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    checked_size([*x.shape[:2], *sizes], "the result of ConvTranspose")
    return _TRANSPOSED[n](
        x,
        weight,
        bias,
        strides,
        given[:n],
        a.get("output_padding") or [0] * n,
        a.get("group", 1),
        a.get("dilations") or [1] * n,
    )


def _pool_pads(a: Attributes, x: Tensor) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Declared padding, further padding at the end for ceil_mode, and strides."""
    kernel = a["kernel_shape"]
    n = len(kernel)
    strides, dilations = a.get("strides") or [1] * n, a.get("dilations") or [1] * n
    pads = _pads(a, x.shape[2:], kernel, strides)
    extra = [0] * n
    if a.get("ceil_mode"):
        axes = zip(x.shape[2:], kernel, strides, dilations, pads, strict=True)
        for i, (size, k, s, d, (before, after)) in enumerate(axes):
            span = size + before + after - (k - 1) * d - 1
            count = -(-span // s) + 1
            # A window that would begin in the padding behind the input does not exist.
            count -= (count - 1) * s >= size + before
            extra[i] = max((count - 1) * s - span, 0)
    return pads, extra, strides


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    """MaxPool without indices."""
    pads, extra, strides = _pool_pads(a, x)
    whole = [(before, after + e) for (before, after), e in zip(pads, extra, strict=True)]
    x = pad_axes(x, whole, -math.inf)
    n = len(strides)
    return _MAX_POOLS[n](x, a["kernel_shape"], strides, 0, a.get("dilations") or [1] * n)


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    """AveragePool; padding counts where count_include_pad says so, that of ceil_mode never."""
    if any(d != 1 for d in a.get("dilations") or []):
        raise UnsupportedOperator("dilations are not supported")
    pads, extra, strides = _pool_pads(a, x)
    pool = _AVERAGE_POOLS[len(strides)]
    whole = [(before, after + e) for (before, after), e in zip(pads, extra, strict=True)]
    mean = pool(pad_axes(x, whole), a["kernel_shape"], strides)
    if not any(n for pair in whole for n in pair):
        return mean
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    ones = pad_axes(ones, pads, float(a.get("count_include_pad", 0)))
    return mean / pool(pad_axes(ones, [(0, e) for e in extra]), a["kernel_shape"], strides)


def _global_pool(reduce: str):
    """GlobalAveragePool or GlobalMaxPool."""

    def pool(a: Attributes, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        return x.mean(axes, keepdim=True) if reduce == "mean" else x.amax(axes, keepdim=True)

    return pool


def _resize(
    a: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resize (nearest, linear) with every coordinate transformation but tf_crop_and_resize."""
    if a.get("opset", 11) < 11:  # Resize-10 has no region of interest
        roi, scales = None, roi
    mode = a.get("mode", "nearest")
    transformation = a.get(
        "coordinate_transformation_mode", "half_pixel" if a.get("opset", 11) >= 11 else "asymmetric"
    )
    if (
        mode not in ("nearest", "linear")
        or transformation == "tf_crop_and_resize"
        or a.get("antialias")
        or a.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise UnsupportedOperator(
            f"mode {mode}, {transformation}, antialias {a.get('antialias', 0)}: supported are "
            "nearest and linear without antialias, crop or kept aspect ratio"
        )
    axes = [i % x.ndim for i in a.get("axes") or range(x.ndim)]
    if scales is not None and scales.numel():
        factors = [float(v) for v in scales.tolist()]
        lengths = [int(x.shape[i] * f) for i, f in zip(axes, factors, strict=True)]
    else:
        lengths = integers(sizes) or []
        factors = [n / x.shape[i] for i, n in zip(axes, lengths, strict=True)]
    shape = list(x.shape)
    for i, n in zip(axes, lengths, strict=True):
        shape[i] = n
    checked_size(shape, "the resized tensor")
    rounding = a.get("nearest_mode", "round_prefer_floor" if a.get("opset", 11) >= 11 else "floor")
    for i, n, factor in zip(axes, lengths, factors, strict=True):
        if n != x.shape[i] or factor != 1:
            where = _coordinates(transformation, x.shape[i], n, factor)
            x = _take(x, i, where, rounding if mode == "nearest" else None)
    return x


def _upsample(a: Attributes, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Upsample of opsets 7 to 9: Resize with asymmetric coordinates, rounded down."""
    factors = torch.tensor(a["scales"]) if scales is None else scales
    old = {"mode": a.get("mode", "nearest"), "opset": 10}
    return _resize(old, x, factors)


def _coordinates(transformation: str, size: int, length: int, factor: float) -> Tensor:
    """Where each of the ``length`` results lies among ``size`` inputs, in inputs."""
    k = torch.arange(length, dtype=torch.float64)
    if transformation == "asymmetric":
        return k / factor
    if transformation == "align_corners":
        return k * (size - 1) / (length - 1) if length > 1 else k * 0
    if transformation == "pytorch_half_pixel" and length == 1:
        return k * 0
    if transformation in ("half_pixel", "pytorch_half_pixel"):
        return (k + 0.5) / factor - 0.5
    if transformation == "half_pixel_symmetric":
        offset = size / 2 * (1 - length / (factor * size))
        return offset + (k + 0.5) / factor - 0.5
    raise UnsupportedOperator(f"coordinate transformation {transformation}")


def _take(x: Tensor, axis: int, where: Tensor, rounding: str | None) -> Tensor:
    """x at fractional places along an axis: rounded, or interpolated linearly if None."""
    last = x.shape[axis] - 1

    def at(index: Tensor) -> Tensor:
        return x.index_select(axis, index.long().clamp(0, last).to(x.device))

    if rounding is not None:
        rules = {
            "floor": torch.floor,
            "ceil": torch.ceil,
            "round_prefer_floor": lambda w: torch.ceil(w - 0.5),
            "round_prefer_ceil": lambda w: torch.floor(w + 0.5),
        }
        return at(rules[rounding](where))
    low = where.floor()
    share = (where - low).to(x.device, x.dtype)
    share = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return at(low) * (1 - share) + at(low + 1) * share


def _batch_normalization(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """BatchNormalization with its running statistics."""
    if a.get("training_mode"):
        raise UnsupportedOperator("training_mode is not supported; export in evaluation mode")
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _instance_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization."""
    # F.instance_norm cannot be batched by vmap without a loop; a group a channel is the same.
    return F.group_norm(x, x.shape[1], scale, bias, a.get("epsilon", 1e-5))


def _group_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization; scale and bias are per group before opset 21, then per channel."""
    groups = a["num_groups"]
    if len(scale) != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def _layer_normalization(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """LayerNormalization over the axes from ``axis`` on."""
    axis = a.get("axis", -1) % x.ndim
    shape = x.shape[axis:]
    scale = scale.expand(shape)
    bias = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale, bias, a.get("epsilon", 1e-5))


LAYERS = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_pool("mean"),
    "GlobalMaxPool": _global_pool("max"),
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _upsample,
}
"""Torch form by the name of the operator."""
