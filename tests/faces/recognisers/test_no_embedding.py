"""Outputs of ONNX files that are no embedding: judged by them, everybody is like everybody."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from adjointdeis.faces.graphs import GraphError, load_onnx  # noqa: E402
from adjointdeis.faces.recogniser import Recogniser  # noqa: E402
from adjointdeis.faces.recognisers.graph_file import GraphSpec, graph_recogniser  # noqa: E402
from adjointdeis.faces.recognisers.onnx import OnnxRecogniser  # noqa: E402
from adjointdeis.faces.weights import WeightsError  # noqa: E402

DESCRIPTION = {"size": 8, "colours": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3, "licence": "x"}
SAME = "same for different pictures"
MIXED = "depends on the others of the batch"
SHARES = "probabilities of 6 classes"


def black_box(path: Path) -> Recogniser:
    return OnnxRecogniser.from_file(path, **DESCRIPTION)


def white_box(path: Path) -> Recogniser:
    digest = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    spec = GraphSpec(name="m", format="onnx", sha256=digest, **DESCRIPTION)
    return graph_recogniser(spec, path.parent)


KINDS = pytest.mark.parametrize("load", [black_box, white_box], ids=["runtime", "torch"])


def written(folder: Path, *more: Any, scale: float = 0.02, kind=TensorProto.FLOAT,
            batch: int | str = "n") -> Path:  # fmt: skip
    """A file whose embedding is a projection of the pixels plus (0, 1, ..., 5), and `more`."""
    matrix = scale * np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["e"]),
        *more,
    ]
    constants = {
        "matrix": matrix,
        "bias": np.arange(6, dtype=np.float32),
        "half": np.float32(0.5),
        "yes": np.array(True),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [batch, 6])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@KINDS
@pytest.mark.parametrize("batch", [1, 4, "n", -1])
def test_an_embedding_is_taken_whatever_the_batch_of_the_file(tmp_path, load, batch):
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found, ok = load(written(tmp_path, batch=batch)).embed(images)
    matrix = 0.02 * np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)
    pixels = (images.transpose(0, 3, 1, 2).reshape(5, -1) - 127.5) / 127.5
    np.testing.assert_allclose(found, pixels @ matrix + np.arange(6), atol=1e-4)
    assert ok.all()


@KINDS
@pytest.mark.parametrize(
    ("more", "scale", "message"),
    [
        ([], 0.0, SAME),
        ([helper.make_node("Softmax", ["e"], ["y"], axis=1)], 0.02, SHARES),
        ([helper.make_node("LogSoftmax", ["e"], ["y"], axis=1)], 0.02, SHARES),
        ([helper.make_node("ReduceMean", ["e"], ["mean"], axes=[0], keepdims=1),
          helper.make_node("Sub", ["e", "mean"], ["y"])], 0.02, MIXED),
    ],
    ids=["constant", "softmax", "logsoftmax", "batch"],
)  # fmt: skip
def test_what_is_no_embedding_is_refused_by_the_files_name(tmp_path, load, more, scale, message):
    with pytest.raises(ValueError, match=rf"m\.onnx: its output .*{message}"):
        load(written(tmp_path, *more, scale=scale))


def test_chance_is_refused(tmp_path):
    path = written(tmp_path, helper.make_node("Dropout", ["e", "half", "yes"], ["y"]))
    with pytest.raises(ValueError, match=MIXED):
        black_box(path)
    with pytest.raises(GraphError, match="Dropout: training_mode is not supported"):
        white_box(path)


@KINDS
@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT16])
def test_pixels_of_another_type_are_named(tmp_path, load, kind):
    """A network of whole numbers would get -1, 0 and 1 for every pixel."""
    with pytest.raises(WeightsError, match=r"m\.onnx .*float32.*: export it so, or put a Cast"):
        load(written(tmp_path, kind=kind))


def test_fractions_are_not_dropped_without_a_word(tmp_path):
    import torch

    graph = load_onnx(written(tmp_path, kind=TensorProto.UINT8))
    assert graph(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)).shape == (1, 6)
    with pytest.raises(GraphError, match=r"input x takes numbers of torch.uint8, got torch.float"):
        graph(torch.zeros(1, 3, 8, 8))


def test_the_number_of_an_output_is_a_number(tmp_path):
    with pytest.raises(ValueError, match="output='y' of m: expected the number of an output"):
        OnnxRecogniser.from_file(written(tmp_path), output="y", **DESCRIPTION)


def test_what_the_runtime_cannot_run_is_told_of_by_the_file(tmp_path):
    reshaped = helper.make_node("Reshape", ["e", "shape"], ["y"])
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 6])
    with pytest.raises(WeightsError, match=r"m\.onnx cannot be run on \(3, 3, 8, 8\)"):
        black_box(written(tmp_path, shape, reshaped))
