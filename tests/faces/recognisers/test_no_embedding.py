"""Outputs of ONNX files that are no embedding: judged by them, everybody is like everybody."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
            batch: int | str = "n", gives=TensorProto.FLOAT) -> Path:  # fmt: skip
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
        [helper.make_tensor_value_info(nodes[-1].output[0], gives, [batch, 6])],
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
@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32])
def test_pixels_of_another_type_are_named(tmp_path, load, kind):
    """A network of whole numbers would get -1, 0 and 1 for every pixel."""
    said = "export it so" if load == white_box or kind == TensorProto.INT32 else "state mean: .0, 0"
    with pytest.raises(WeightsError, match=rf"m\.onnx .*: {said}"):
        load(written(tmp_path, kind=kind))


@KINDS
@pytest.mark.parametrize("batch", [4, "n"])
def test_pixels_of_half_precision_are_rounded_to_it(tmp_path, load, batch):
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found, _ = load(written(tmp_path, kind=TensorProto.FLOAT16, batch=batch)).embed(images)
    pixels = (images.transpose(0, 3, 1, 2).reshape(5, -1).astype(np.float32) - 127.5) / 127.5
    matrix = 0.02 * np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)
    expected = pixels.astype(np.float16).astype(np.float32) @ matrix + np.arange(6)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32


def test_pixels_of_whole_levels_are_judged(tmp_path):
    """As they are, or, of a crop between pixels, the nearest level."""
    path, whole = written(tmp_path, kind=TensorProto.UINT8), {"mean": [0] * 3, "std": [1] * 3}
    matrix = 0.02 * np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for box in ((0, 0, 1, 1), (0.1, 0.1, 0.9, 0.9)):
        judge = OnnxRecogniser.from_file(path, **(DESCRIPTION | whole), box=box)
        levels = judge.spec.crop(to_pixels(images)).numpy().reshape(5, -1).round()
        found, _ = judge.embed(images)
        np.testing.assert_allclose(found, levels @ matrix + np.arange(6), rtol=1e-5, atol=1e-3)


def to_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


@KINDS
def test_whole_numbers_are_no_embedding(tmp_path, load):
    """Those of a quantised output, whose zero point the file keeps to itself."""
    cast = helper.make_node("Cast", ["e"], ["y"], to=TensorProto.UINT8)
    with pytest.raises(WeightsError, match=r"m\.onnx: .*uint8.*, numbers without their scale"):
        load(written(tmp_path, cast, gives=TensorProto.UINT8))


def test_weights_in_another_file_are_refused(tmp_path):
    """They could change under the same fingerprint, and with them every score."""
    model = onnx.load(written(tmp_path))
    path = tmp_path / "two.onnx"
    onnx.save(model, path, save_as_external_data=True, location="two.bin", size_threshold=0)
    with pytest.raises(WeightsError, match=r"two\.onnx has weights in another file, .*save the"):
        black_box(path)


@pytest.mark.parametrize("batch", [4, "n"])
def test_a_scale_of_the_whole_run_is_of_one_image(tmp_path, batch):
    """Weights quantised dynamically: the scores of a picture changed with those beside it."""
    scaled = helper.make_node("DynamicQuantizeLinear", ["cast"], ["q", "scale", "zero"])
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["level"])
    flat = helper.make_node("Flatten", ["level"], ["flat2"])
    end = helper.make_node("Gemm", ["flat2", "matrix", "bias"], ["y"])
    judge = black_box(written(tmp_path, scaled, back, flat, end, batch=batch))
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images[1] //= 3
    together, _ = judge.embed(images)
    alone = np.concatenate([judge.embed(image[None])[0] for image in images])
    assert (together == alone).all()
    pixels = ((to_pixels(images[1:2]) - 127.5) / 127.5).flatten(1).numpy()
    low, high = min(pixels.min(), 0), max(pixels.max(), 0)
    step = np.float32((high - low) / 255)
    zero = np.round(-low / step)
    levels = (np.clip(np.round(pixels / step) + zero, 0, 255) - zero) * step
    matrix = 0.02 * np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)
    np.testing.assert_allclose(together[1:2], levels @ matrix + np.arange(6), atol=2e-4)


def test_fractions_are_not_dropped_without_a_word(tmp_path):
    graph = load_onnx(written(tmp_path, kind=TensorProto.UINT8))
    assert graph(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)).shape == (1, 6)
    with pytest.raises(GraphError, match=r"input x takes numbers of torch.uint8, got torch.float"):
        graph(torch.zeros(1, 3, 8, 8))
    half = written(tmp_path, kind=TensorProto.FLOAT16)
    narrow = onnx.load(half)
    for weight in narrow.graph.initializer[:2]:
        array = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    half.write_bytes(narrow.SerializeToString())
    with pytest.raises(GraphError, match=r"takes numbers of torch.float16, .* give x\.half\(\)"):
        load_onnx(half)(torch.zeros(1, 3, 8, 8))


def test_the_number_of_an_output_is_a_number(tmp_path):
    with pytest.raises(ValueError, match="output='y' of m: expected the number of an output"):
        OnnxRecogniser.from_file(written(tmp_path), output="y", **DESCRIPTION)


def test_what_the_runtime_cannot_run_is_told_of_by_the_file(tmp_path):
    reshaped = helper.make_node("Reshape", ["e", "shape"], ["y"])
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 6])
    with pytest.raises(WeightsError, match=r"m\.onnx cannot be run on \(3, 3, 8, 8\)"):
        black_box(written(tmp_path, shape, reshaped))
