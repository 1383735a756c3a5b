"""Networks in files of others, with sound ones to damage: ONNX, TFLite, TensorFlow.js, dlib."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fuzz_changes import INTEGERS, TOKENS, Random, changed_bytes


def onnx_files() -> list[bytes]:
    """A convolution, a reshape and a product; and the same with an older operator set."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((2, 3, 3, 3)).astype(np.float32),
        "shape": np.array([0, -1], np.int64),
        "m": rng.standard_normal((2 * 8 * 8, 4)).astype(np.float16).astype(np.float32),
        "b": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], strides=[1, 1]),
        helper.make_node("Constant", [], ["one"], value_floats=[1.0]),
        helper.make_node("Mul", ["h", "one"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "m", "b"], ["y"], alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return [
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        ).SerializeToString()
        for opset in (13, 9)
    ]


def changed_onnx(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Fields of the graph changed: operators, names, attributes, shapes, types; at times bytes."""
    from onnx import ModelProto

    from adjointdeis.faces.graphs.onnx_operators import OPERATORS

    if rng.random() < 0.4:
        return changed_bytes(rng, data, others)
    model = ModelProto()
    model.ParseFromString(data)
    graph = model.graph
    for _ in range(int(rng.integers(1, 4))):
        node = graph.node[int(rng.integers(len(graph.node)))]
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
        number = int(INTEGERS[int(rng.integers(len(INTEGERS)))]) % 2**63 * int(rng.choice([1, -1]))
        token = TOKENS[int(rng.integers(len(TOKENS) - 1))]
        match int(rng.integers(11)):
            case 0:
                node.op_type = str(rng.choice(sorted(OPERATORS)))
            case 1:
                node.op_type = token
            case 2 if node.input:
                node.input[int(rng.integers(len(node.input)))] = str(
                    rng.choice(["", "w", "y", "x"])
                )
            case 3:
                del node.output[:]
            case 4 if node.attribute:
                attribute = node.attribute[0]
                attribute.type = int(rng.integers(15))
            case 5 if node.attribute:
                attribute = node.attribute[0]
                attribute.ints.append(number)
                attribute.i = number
            case 6:
                tensor.dims.append(abs(number))
            case 7 if tensor.dims:
                tensor.dims[0] = number
            case 8:
                tensor.data_type = int(rng.integers(-1, 20))
            case 9:
                model.opset_import[0].version = number
            case _:
                graph.input[0].type.tensor_type.shape.dim[1].dim_value = number
    return model.SerializeToString()


def run_onnx(path: Path) -> object:
    """Reads and runs a file."""
    import torch

    from adjointdeis.faces.graphs import load_onnx

    with torch.no_grad():
        return load_onnx(path)(torch.zeros(2, 3, 8, 8))


def tflite_files() -> list[bytes]:
    """Several operators, each with its options."""
    from faces.graphs.tflite_cases import CASES

    from adjointdeis.faces.graphs.tflite_operators import OPTIONS

    files = {case.operator: case.file((), OPTIONS.get(case.operator, ("",))[0]) for case in CASES}
    return [file for name, file in files.items() if name in OPTIONS or name in ("PAD", "MEAN")]


def run_tflite(path: Path) -> object:
    """Reads a file, and runs it on what it says that it takes."""
    import torch

    from adjointdeis.faces.graphs import load_tflite

    graph = load_tflite(path)
    shapes = [[graph.batch or 1, *(n or 1 for n in shape)] for shape in graph.shapes or ()]
    if any(min(shape) < 1 or np.prod(shape, dtype=float) > 1e6 for shape in shapes):
        return graph  # nobody has an image of that size
    with torch.no_grad():
        return graph(*(torch.zeros(*shape) for shape in shapes))


def tfjs_files() -> list[bytes]:
    """A product and a sum; the weights are in no file, so that reading ends at them."""
    dims = [{"size": "-1"}, {"size": "3"}]
    nodes = [
        {"name": "x", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dims}}}},
        {"name": "m", "op": "Const"},
        {"name": "y", "op": "MatMul", "input": ["x:0", "m"], "attr": {"transpose_a": {"b": False}}},
        {"name": "z", "op": "Relu", "input": ["y", "^x"]},
    ]
    weights = [{"name": "m", "shape": [3, 2], "dtype": "float32"}]
    manifest = [{"paths": ["one.bin"], "weights": weights}]
    return [json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}).encode()]


def run_tfjs(path: Path) -> object:
    """Reads and runs a file whose weights are six numbers beside it."""
    import torch

    from adjointdeis.faces.graphs import load_tfjs

    (path.parent / "one.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    with torch.no_grad():
        return load_tfjs(path)(torch.zeros(2, 3))


def dlib_files() -> list[bytes]:
    """A network of dlib's format with one layer of each kind."""

    def integer(value: int) -> bytes:
        size = max(1, (abs(value).bit_length() + 7) // 8)
        return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")

    def integers(*values: int) -> bytes:
        return b"".join(map(integer, values))

    def text(value: str) -> bytes:
        return integer(len(value)) + value.encode()

    def tensor(*sizes: int) -> bytes:
        numbers = np.arange(np.prod(sizes), dtype="<f4")
        return integers(2, *sizes) + numbers.tobytes()

    empty = integers(2, 0, 0, 0, 0)
    layers = [
        text("con_4") + tensor(1, 1, 3, 3) + integers(1, 3, 3, 1, 1, 0, 0, *[0] * 18),
        text("affine_") + tensor(1, 2, 1, 1) + integers(*[0] * 11),
        text("relu_"),
        text("max_pool_2") + integers(3, 3, 2, 2, 0, 0),
        text("fc_2") + integers(2, 2) + tensor(2, 2, 1, 1) + integers(*[0] * 19),
    ]
    head = integer(1) + text("loss_metric_2") + integers(1, -3, 1, -4) + integers(2, 2, 3)
    head += text("input_rgb_image_sized") + integers(122, 0, 117, 0, 104, 0, 150, 150)
    ends = b"000" + 3 * empty
    body = [layer + ends + (integer(0) if not k else b"") for k, layer in enumerate(layers)]
    return [head + b"".join(body)]
