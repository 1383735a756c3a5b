"""TensorFlow.js graphs as torch modules: every operator against numpy, weights, damage."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adjointdeis.faces.graphs import GraphError, UnsupportedOperator, load_tfjs
from adjointdeis.faces.graphs.tfjs_operators import OPERATORS

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def attribute(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"s": base64.b64encode(value.encode()).decode()}
    if isinstance(value, bool):
        return {"b": value}
    if isinstance(value, int):
        return {"i": str(value)}
    if isinstance(value, float):
        return {"f": value}
    if value and isinstance(value[0], str):
        return {"list": {"s": [base64.b64encode(v.encode()).decode() for v in value]}}
    return {"list": {"i": [str(v) for v in value]}}


def write(
    folder: Path,
    operator: str,
    x: np.ndarray,
    others: Sequence[np.ndarray] = (),
    attributes: Mapping[str, Any] | None = None,
    quantised: bool = False,
) -> Path:
    """A graph model of one operator on the input x and constants."""
    names = [f"block/c{k}" for k in range(len(others))]
    nodes: list[dict[str, Any]] = [
        {"name": "y", "op": operator, "input": ["x:0", *names], "attr": {}}
    ]
    nodes[0]["attr"] = {k: attribute(v) for k, v in (attributes or {}).items()}
    dims = [{"size": str(n)} for n in (-1, *x.shape[1:])]
    nodes += [{"name": "x", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dims}}}}]
    nodes += [{"name": name, "op": "Const"} for name in names]
    weights, data = [], b""
    for name, value in zip(names, others, strict=True):
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(value.shape),
            "dtype": str(value.dtype),
        }
        if quantised:
            low, scale = float(value.min()), float(np.ptp(value) / 255)
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
            value = np.round((value - low) / scale).astype(np.uint8)
        weights.append(entry)
        data += value.tobytes()
    model = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["one.bin", "two.bin"], "weights": weights}],
    }
    (folder / "one.bin").write_bytes(data[:7])
    (folder / "two.bin").write_bytes(data[7:])
    path = folder / "model.json"
    path.write_text(json.dumps(model))
    return path


def windows(x: np.ndarray, kernel: tuple[int, int], stride: int, same: bool, fill: float):
    """Windows (B, H, W, kh, kw, C), by TensorFlow's definition of SAME."""
    if same:
        pads = [(0, 0)]
        for n, k in zip(x.shape[1:3], kernel, strict=True):
            total = max((int(np.ceil(n / stride)) - 1) * stride + k - n, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    v = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]
    return np.moveaxis(v, 3, -1)


def conv(x: np.ndarray, w: np.ndarray, stride: int, same: bool) -> np.ndarray:
    return np.einsum("bhwijc,ijco->bhwo", windows(x, w.shape[:2], stride, same, 0), w)


def depthwise(x: np.ndarray, w: np.ndarray, stride: int, same: bool) -> np.ndarray:
    y = np.einsum("bhwijc,ijcm->bhwcm", windows(x, w.shape[:2], stride, same, 0), w)
    return y.reshape(*y.shape[:3], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Case:
    operator: str
    expected: Callable[..., np.ndarray]
    x: np.ndarray
    others: Sequence[np.ndarray] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


IMAGE, ROWS, POSITIVE = normal(2, 7, 6, 4), normal(2, 3, 5), abs(normal(2, 3)) + 0.1
W, DEEP, BIAS = normal(3, 2, 4, 5), normal(3, 3, 4, 2), normal(5)
SAME = {"padding": "SAME", "strides": [1, 2, 2, 1], "data_format": "NHWC"}
VALID = {"padding": "VALID", "strides": [1, 1, 1, 1]}
POOL = {"ksize": [1, 3, 2, 1], **SAME}


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(x))


def prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def fused_conv(x, w, b, slope):
    return prelu(conv(x, w, 2, True) + b, slope)


CASES = [
    *(
        Case(name, function, IMAGE)
        for name, function in {
            "Abs": np.abs,
            "Elu": elu,
            "Exp": np.exp,
            "Identity": lambda x: x,
            "Neg": np.negative,
            "Relu": relu,
            "Relu6": lambda x: np.clip(x, 0, 6),
            "Sigmoid": sigmoid,
            "Softmax": softmax,
            "Square": np.square,
            "Tanh": np.tanh,
            "Shape": lambda x: ints(*x.shape),
        }.items()
    ),
    Case("Log", np.log, POSITIVE),
    Case("Rsqrt", lambda x: x**-0.5, POSITIVE),
    Case("Sqrt", np.sqrt, POSITIVE),
    *(
        Case(name, function, IMAGE, [normal(4)])
        for name, function in {
            "Add": np.add,
            "AddV2": np.add,
            "BiasAdd": np.add,
            "Maximum": np.maximum,
            "Minimum": np.minimum,
            "Mul": np.multiply,
            "Prelu": prelu,
            "RealDiv": np.divide,
            "SquaredDifference": lambda x, y: (x - y) ** 2,
            "Sub": np.subtract,
        }.items()
    ),
    *(
        Case(name, function, IMAGE, [ints(1, 2)], {"keep_dims": keep})
        for name, kernel in {"Mean": np.mean, "Sum": np.sum, "Max": np.max}.items()
        for keep in (True, False)
        for function in (lambda x, a, f=kernel, k=keep: f(x, tuple(a), keepdims=k),)
    ),
    Case("Conv2D", lambda x, w: conv(x, w, 1, False), IMAGE, [W], VALID),
    Case("Conv2D", lambda x, w: conv(x, w, 2, True), IMAGE, [W], SAME),
    Case(
        "_FusedConv2D",
        fused_conv,
        IMAGE,
        [W, BIAS, normal(5)],
        SAME | {"fused_ops": ["BiasAdd", "Prelu"]},
    ),
    Case(
        "_FusedConv2D",
        lambda x, w, b: np.clip(conv(x, w, 1, False) + b, 0, 6),
        IMAGE,
        [W, BIAS],
        VALID | {"fused_ops": ["BiasAdd", "Relu6"]},
    ),
    Case("DepthwiseConv2dNative", lambda x, w: depthwise(x, w, 2, True), IMAGE, [DEEP], SAME),
    Case(
        "FusedDepthwiseConv2dNative",
        lambda x, w, b: relu(depthwise(x, w, 1, False) + b),
        IMAGE,
        [DEEP, normal(8)],
        VALID | {"fused_ops": ["BiasAdd", "Relu"]},
    ),
    Case("MaxPool", lambda x: windows(x, (3, 2), 2, True, -np.inf).max((3, 4)), IMAGE, (), POOL),
    Case(
        "AvgPool",
        lambda x: np.nanmean(windows(x, (3, 2), 2, True, np.nan), (3, 4)),
        IMAGE,
        (),
        POOL,
    ),
    Case(
        "FusedBatchNormV3",
        lambda x, g, b, m, v: g * (x - m) / np.sqrt(v + 0.01) + b,
        IMAGE,
        [normal(4), normal(4), normal(4), abs(normal(4))],
        {"epsilon": 0.01},
    ),
    Case("LeakyRelu", lambda x: prelu(x, np.float32(0.3)), IMAGE, (), {"alpha": 0.3}),
    Case("MatMul", lambda x, y: x @ y.T, normal(2, 3), [normal(4, 3)], {"transpose_b": True}),
    Case(
        "_FusedMatMul",
        lambda x, y, b: elu(x @ y + b),
        normal(2, 3),
        [normal(3, 4), normal(4)],
        {"fused_ops": ["BiasAdd", "Elu"]},
    ),
    Case(
        "ConcatV2",
        lambda x, y, axis: np.concatenate([x, y], axis),
        ROWS,
        [normal(2, 3, 2), np.array(-1, np.int32)],
    ),
    Case("ExpandDims", lambda x, a: x[:, None], ROWS, [np.array(1, np.int32)]),
    Case("Pack", lambda x, y: np.stack([x, y], 1), ROWS, [normal(2, 3, 5)], {"axis": 1}),
    Case("Pad", lambda x, p: np.pad(x, p), ROWS, [ints([0, 0], [1, 2], [0, 3])]),
    Case(
        "PadV2",
        lambda x, p, v: np.pad(x, p, constant_values=v),
        ROWS,
        [ints([0, 0], [1, 2], [0, 3]), np.array(0.5, np.float32)],
    ),
    Case("Reshape", lambda x, s: x.reshape(s), ROWS, [ints(-1, 15)]),
    Case("Squeeze", lambda x: x[:, 0], normal(2, 1, 3, 1), (), {"squeeze_dims": [1]}),
    Case(
        "StridedSlice",
        lambda x, *_: x[:, 1, ::2],
        ROWS,
        [ints(0, 1, 0), ints(0, 2, 5), ints(1, 1, 2)],
        {"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 2},
    ),
    Case("Transpose", lambda x, p: x.transpose(p), IMAGE, [ints(0, 3, 1, 2)]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_operator_is_its_definition(case: Case, tmp_path: Path) -> None:
    path = write(tmp_path, case.operator, case.x, case.others, case.attributes)
    found = load_tfjs(path)(torch.from_numpy(case.x))
    assert isinstance(found, torch.Tensor)
    expected = case.expected(case.x, *case.others)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=5e-6)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.operator for case in CASES}


def test_quantised_weights_are_unpacked(tmp_path: Path) -> None:
    c = normal(3, 5)
    found = load_tfjs(write(tmp_path, "Add", ROWS, [c], quantised=True))(torch.from_numpy(ROWS))
    step = np.ptp(c) / 255
    np.testing.assert_allclose(found.numpy(), ROWS + c, atol=0.51 * step)


def test_gradient_is_that_of_the_function(tmp_path: Path) -> None:
    options = SAME | {"fused_ops": ["BiasAdd", "Prelu"]}
    path = write(tmp_path, "_FusedConv2D", IMAGE, [W, BIAS, normal(5)], options)
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    graph = load_tfjs(path)
    graph.shapes = None  # a smaller image than the file declares, for speed
    assert torch.autograd.gradcheck(graph.double(), (x,))


def test_unsupported_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="Where"):
        load_tfjs(write(tmp_path, "Where", ROWS))
    path = write(tmp_path, "Conv2D", IMAGE, [W], VALID | {"padding": "EXPLICIT"})
    with pytest.raises(UnsupportedOperator, match="EXPLICIT"):
        load_tfjs(path)(torch.from_numpy(IMAGE))


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    model = json.loads(path.read_text())
    edit(model)
    path.write_text(json.dumps(model))


def cycle(model: dict[str, Any]) -> None:
    model["modelTopology"]["node"][1] = {"name": "x", "op": "Relu", "input": ["y"]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=[10**12]), "do not fit"),
        (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=[-3, -5]), "do not fit"),
        (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=[2]), "take 8 bytes"),
        (lambda m: m["weightsManifest"][0].update(paths=["../one.bin"]), "not beside it"),
        (lambda m: m["modelTopology"].pop("node"), "not a TensorFlow.js graph model"),
        (lambda m: m["modelTopology"]["node"][0].update(input=["z"]), "no node 'z'"),
        (cycle, "takes its own result"),
    ],
)
def test_damage_is_refused(edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path):
    path = write(tmp_path, "Add", ROWS, [normal(3, 5)])
    change(path, edit)
    with pytest.raises(GraphError, match=message):
        load_tfjs(path, ["y"])


def test_fingerprints_cover_every_file(tmp_path: Path) -> None:
    path = write(tmp_path, "Add", ROWS, [normal(3, 5)])
    with pytest.raises(GraphError, match=r"one\.bin: no fingerprint"):
        load_tfjs(path, sha256={"model.json": hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(GraphError, match="has SHA-256"):
        load_tfjs(path, sha256={"model.json": "0" * 64})
