"""TensorFlow Lite files as torch modules: every operator against LiteRT, batches, damage."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tflite")
interpreters = pytest.importorskip("ai_edge_litert.interpreter")

from faces.graphs.tflite_cases import CASES, FLAT, ONE, Case, ints, normal  # noqa: E402

from adjointdeis.faces.graphs import (  # noqa: E402
    GraphError,
    UnsupportedOperator,
    channels_last,
    load_tflite,
)
from adjointdeis.faces.graphs.tflite_operators import OPERATORS, OPTIONS  # noqa: E402


def write(case: Case, folder: Path) -> Path:
    """The file; the declared shape of the result is that which torch finds."""
    path = folder / "graph.tflite"
    table = OPTIONS[case.operator][0] if case.operator in OPTIONS else ""
    path.write_bytes(case.file((), table))
    if case.operator in OPERATORS:
        shape = load_tflite(path)._run(torch.from_numpy(case.x))[0].shape
        path.write_bytes(case.file(shape, table))
    return path


def runtime(path: Path, x: np.ndarray) -> np.ndarray:
    interpreter = interpreters.Interpreter(
        str(path),
        experimental_op_resolver_type=interpreters.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_the_runtime(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    (found,) = load_tflite(path)._run(torch.from_numpy(case.x))
    expected = runtime(path, case.x)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.operator for case in CASES}


def test_batch_written_into_a_file_is_free(tmp_path: Path) -> None:
    case = Case("RESHAPE", normal(2, 3, 4), [ints(2, 12)], {"NewShape": [2, 12]})
    graph = load_tflite(write(case, tmp_path))
    x = torch.randn(5, 3, 4)
    assert graph.batch == 2
    assert torch.equal(graph(x), x.flatten(1))


def test_gradient_is_that_of_the_function(tmp_path: Path) -> None:
    options = {"Padding": 0, **ONE, **FLAT, "FusedActivationFunction": 1}
    case = Case("CONV_2D", normal(1, 4, 4, 2), [normal(3, 3, 3, 2), normal(3)], options)
    graph = load_tflite(write(case, tmp_path)).double()
    x = torch.randn(2, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(graph, (x,))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("CUSTOM", normal(1, 2)), "CUSTOM:mystery"),
        (Case("TOPK_V2", normal(1, 2)), "TOPK_V2"),
        (Case("ADD", normal(1, 2), [np.zeros(2, np.uint8)]), "quantised"),
        (Case("DEQUANTIZE", np.zeros((1, 2), np.uint8)), "quantised"),
        (Case("ADD", normal(1, 2), [normal(2)], {"FusedActivationFunction": 5}), "SIGN_BIT"),
    ],
    ids=str,
)
def test_unsupported_is_named(case: Case, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        load_tflite(write(case, tmp_path))._run(torch.from_numpy(case.x))


def test_any_tensor_may_be_the_output(tmp_path: Path) -> None:
    """The description of a recogniser names one; it was ignored, and the first output taken."""
    path = write(Case("NEG", normal(1, 2)), tmp_path)
    x = torch.randn(3, 2)
    assert torch.equal(load_tflite(path, outputs=["t0"])(x), x)
    assert torch.equal(load_tflite(path, outputs=["t1"])(x), -x)
    with pytest.raises(GraphError, match=r"0 tensors of the name 'y', .* its outputs are t1"):
        load_tflite(path, outputs=["y"])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(Case("PRELU", normal(1, 2, 2, 4), [normal(1, 1, 4)]), tmp_path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        data = bytearray(good)
        for place in rng.integers(8, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(8, len(data))] if trial % 3 == 0 else data))
        try:
            load_tflite(path)
        except GraphError:
            refused += 1  # any other error fails the test
    assert refused > 100
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(GraphError, match="not a TensorFlow Lite file"):
        load_tflite(path)
    with pytest.raises(GraphError, match="no such file"):
        load_tflite(tmp_path / "missing.tflite")
    path.write_bytes(good)
    with pytest.raises(GraphError, match="has SHA-256"):
        load_tflite(path, sha256="0" * 64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_of_one_pixel_are_convolutions(stride: int, padding: str) -> None:
    x, weight, bias = torch.randn(2, 5, 4, 3), torch.randn(6, 3, 1, 1), torch.randn(6)
    found = channels_last.conv(x, weight, bias, (stride, stride), (1, 1), padding)
    wanted = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride)
    torch.testing.assert_close(found, wanted.permute(0, 2, 3, 1))
