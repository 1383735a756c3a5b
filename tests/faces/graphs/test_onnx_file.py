"""ONNX graphs as torch modules: every operator against onnxruntime, batches, hostile files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from faces.graphs.onnx_cases import CASES, IMAGE, ROWS, Case, ints, normal, positive  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from adjointdeis.faces.graphs import Graph, GraphError, UnsupportedOperator, load_onnx  # noqa: E402
from adjointdeis.faces.graphs.onnx_operators import OPERATORS  # noqa: E402


def write(model: onnx.ModelProto, folder: Path, name: str = "graph.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def runtime(path: Path, *values: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, map(np.asarray, values), strict=True)))


def as_tuple(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def run_one(graph: Graph, x: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The graph on one batch exactly as the file declares it."""
    return graph._run(torch.from_numpy(np.asarray(x)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_onnxruntime(case: Case, tmp_path: Path) -> None:
    path = write(case.model(), tmp_path)
    found = run_one(load_onnx(path), case.x)
    expected = runtime(path, case.x)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert tuple(a.shape) == b.shape
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.operator for case in CASES}


def network(batch: int | str, rows: int) -> onnx.ModelProto:
    """Conv, PRelu, pool, Reshape to (rows, 12), Gemm: a recogniser in small."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["h", "slope"], ["p"]),
        helper.make_node("AveragePool", ["p"], ["q"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Reshape", ["q", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "m"], ["y"]),
    ]
    constants = {
        "w": normal(3, 3, 3, 3),
        "slope": positive(3, 1, 1),
        "shape": ints(rows, 12),
        "m": normal(12, 4),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 5), (2, 6), (2, 1), (2, 5)])
def test_batch_written_into_a_file_is_free(batch: int, size: int, tmp_path: Path) -> None:
    path = write(network(batch, batch), tmp_path)
    x = normal(size, 3, 5, 5)
    found = load_onnx(path)(torch.from_numpy(x))
    x = np.concatenate([x, x[-1:]])[: size + size % batch]
    expected = [runtime(path, x[i : i + batch])[0] for i in range(0, len(x), batch)]
    expected = [np.concatenate(expected)[:size]]
    np.testing.assert_allclose(found.numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_function(tmp_path: Path) -> None:
    graph = load_onnx(write(network(1, 1), tmp_path)).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(graph, (x,))
    graph.requires_grad_(True)
    graph(x).square().sum().backward()
    weight = graph.weights["w0"]
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_another_output_by_name(tmp_path: Path) -> None:
    graph = load_onnx(write(network("batch", 2), tmp_path), outputs=["flat", "y"])
    flat, y = graph(torch.from_numpy(normal(2, 3, 5, 5)))
    assert flat.shape == (2, 12) and y.shape == (2, 4)
    with pytest.raises(GraphError, match="nothing makes the output 'z'"):
        load_onnx(write(network(1, 1), tmp_path), outputs=["z"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 5, 4), r"input x takes \(B, 3, 5, 5\), got \(1, 3, 5, 4\)"),
        (torch.zeros(3, 25), r"input x takes \(B, 3, 5, 5\), got \(3, 25\)"),
    ],
)
def test_wrong_input_is_named(x: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=message):
        load_onnx(write(network(2, 2), tmp_path))(x)


def test_unsupported_operators_are_all_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"]),
        helper.make_node("Mystery", ["x"], ["b"], domain="vendor"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    made = [helper.make_empty_tensor_value_info(n) for n in "ab"]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], made))
    with pytest.raises(UnsupportedOperator, match=r"NonZero, vendor\.Mystery"):
        load_onnx(write(model, tmp_path))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("Resize", IMAGE, [None, np.ones(4, np.float32)], {"mode": "cubic"}), "mode cubic"),
        (Case("Pad", ROWS[0], [ints(1, 0, 0, 0)], {"mode": "reflect"}), "mode reflect"),
        (
            Case("BatchNormalization", IMAGE, [positive(4)] * 4, {"training_mode": 1}),
            "training_mode",
        ),
    ],
    ids=str,
)
def test_unsupported_variants_are_named(case: Case, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        run_one(load_onnx(write(case.model(), tmp_path)), case.x)


def damaged(kind: str) -> onnx.ModelProto:
    model = network(1, 1)
    weight = model.graph.initializer[0]
    if kind == "huge shape":
        weight.dims[0] = 10**12
    elif kind == "negative shape":
        weight.dims[0] = -3
    elif kind == "external":
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")
        weight.ClearField("raw_data")
    elif kind == "unknown input":
        model.graph.node[1].input[0] = "nowhere"
    elif kind == "old opset":
        model.opset_import[0].version = 5
    elif kind == "function":
        model.functions.add(name="f", domain="d")
    elif kind == "strings":
        weight.data_type = TensorProto.STRING
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("huge shape", "not what its 324 stored bytes"),
        ("negative shape", "has the shape"),
        ("external", "lies in another file"),
        ("unknown input", "PRelu takes 'nowhere'"),
        ("old opset", "opset"),
        ("function", "functions of its own"),
        ("strings", "data type"),
    ],
)
def test_damaged_file_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=message):
        load_onnx(write(damaged(kind), tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b"\x08\x07"])
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="ONNX file"):
        load_onnx(path)
    with pytest.raises(GraphError, match="no such file"):
        load_onnx(tmp_path / "missing.onnx")
    with pytest.raises(GraphError, match="has SHA-256"):
        load_onnx(path, sha256="0" * 64)


@pytest.mark.parametrize(
    "case",
    [
        Case("ConstantOfShape", ints(10**6, 10**6)),
        Case("Expand", ROWS, [ints(10**9, 1, 1, 1)]),
        Case("Tile", ROWS, [ints(10**6, 10**6, 1)]),
        Case("Pad", IMAGE, [ints(0, 0, 10**9, 0, 0, 0, 0, 0)]),
        Case("Resize", IMAGE, [None, np.array([1, 1, 1e6, 1e6], np.float32)]),
        Case("Range", np.int64(0), [np.int64(10**12), np.int64(1)]),
        Case("ConvTranspose", IMAGE, [normal(4, 3, 3, 3)], {"strides": [10**5, 10**5]}),
    ],
    ids=str,
)
def test_sizes_that_a_file_asks_for_are_checked_first(case: Case, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="because a file says so"):
        run_one(load_onnx(write(case.model(), tmp_path)), case.x)


def test_doubling_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adjointdeis.faces.graphs.graph.LARGEST_RESULT", 2**22)
    nodes = [
        helper.make_node("Concat", [f"x{k}", f"x{k}"], [f"x{k + 1}"], axis=1) for k in range(60)
    ]
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", 2**10])
    made = [helper.make_empty_tensor_value_info("x60")]
    model = helper.make_model(helper.make_graph(nodes, "bomb", [x], made))
    with pytest.raises(GraphError, match="numbers an image"):
        load_onnx(write(model, tmp_path))(torch.zeros(1, 2**10))


@pytest.mark.parametrize(
    "case",
    [
        Case("Conv", IMAGE, [normal(5, 4, 3, 3)], {"strides": [0, 0], "auto_pad": "SAME_UPPER"}),
        Case("Range", np.int64(0), [np.int64(5), np.int64(0)]),
        Case("Transpose", ROWS, attributes={"perm": [0, 1, 7]}),
        Case("Reshape", ROWS, [ints(7, 7)]),
        Case("Concat", ROWS, [normal(2, 3, 2)]),
        Case("Conv", IMAGE, [normal(5, 4, 3, 3)], {"pads": [1, 1]}),
    ],
    ids=str,
)
def test_attributes_that_do_not_fit_are_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=f"{case.operator} to 'y0' cannot be run"):
        run_one(load_onnx(write(case.model(), tmp_path)), case.x)


FILES = os.environ.get("ADJOINTDEIS_GRAPHS")


@pytest.mark.skipif(not FILES, reason="ADJOINTDEIS_GRAPHS names no folder of .onnx files")
def test_files_of_a_folder() -> None:
    paths = sorted(Path(FILES or "").rglob("*.onnx"))
    assert paths
    rng = np.random.default_rng(0)
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        made = {i.name for i in model.graph.initializer}
        values = []
        for value in (v for v in model.graph.input if v.name not in made):
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            values.append(rng.uniform(0.1, 1, shape).astype(np.float32))
        found = as_tuple(load_onnx(path)(*map(torch.from_numpy, values)))
        for a, b in zip(found, runtime(path, *values), strict=True):
            np.testing.assert_allclose(
                a.detach().numpy(), b, rtol=1e-4, atol=1e-4, err_msg=str(path)
            )
