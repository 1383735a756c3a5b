"""Small ONNX models, written by the tests."""

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")


def write_model(path: Path, nodes, inputs, outputs, tensors) -> Path:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in outputs],
        [onnx.numpy_helper.from_array(v, n) for n, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


class Models:
    """Writers of ONNX files."""

    @staticmethod
    def recogniser(
        path: Path,
        side: int = 8,
        batch: int | str = "batch",
        layout: str = "nchw",
        outputs: int = 1,
    ) -> tuple[Path, np.ndarray]:
        """A linear recogniser: embedding = pixels @ matrix; the second output is a norm."""
        pixels = 3 * side * side
        matrix = np.random.default_rng(0).normal(size=(pixels, 5)).astype(np.float32)
        shape = [batch, 3, side, side] if layout == "nchw" else [batch, side, side, 3]
        nodes = [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
        ]
        declared = [("embedding", [batch, 5])]
        if outputs == 2:
            nodes.append(
                onnx.helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1], keepdims=1)
            )
            declared.append(("norm", [batch, 1]))
        write_model(path, nodes, [("image", shape)], declared, {"matrix": matrix})
        return path, matrix

    @staticmethod
    def detector(path: Path, points: np.ndarray, side: int = 64) -> Path:
        """A detector of SCRFD's interface that finds one face wherever the image is not dark.

        Args:
            path: The file.
            points: Five landmarks (5, 2) in pixels of a side x side image.
            side: Fixed side of its input, a multiple of 32.
        """
        make = onnx.helper.make_node
        nodes = [
            make("ReduceMax", ["image"], ["brightest"], axes=[0, 1, 2, 3], keepdims=0),
            make("Clip", ["brightest", "zero", "one"], ["light"]),
        ]
        tensors = {"zero": np.float32(0).reshape(()), "one": np.float32(1).reshape(())}
        outputs = []
        for kind, width in (("score", 1), ("box", 4), ("point", 10)):
            for stride in (8, 16, 32):
                count = 2 * (side // stride) ** 2
                value = np.zeros((count, width), np.float32)
                if stride == 8:
                    # Anchor 0 sits at the origin: distances are coordinates over the stride.
                    if kind == "score":
                        value[0] = 0.9
                    elif kind == "box":
                        value[0] = np.array([-16, -16, 48, 48]) / stride
                    else:
                        value[0] = points.ravel() / stride
                name = f"{kind}{stride}"
                tensors[f"{name}_value"] = value
                # The light moves the scores alone: it is a little below one for a white image.
                nodes.append(
                    make("Mul", [f"{name}_value", "light"], [name])
                    if kind == "score"
                    else make("Identity", [f"{name}_value"], [name])
                )
                outputs.append((name, [count, width]))
        return write_model(path, nodes, [("image", [1, 3, side, side])], outputs, tensors)


@pytest.fixture(scope="session")
def models() -> type[Models]:
    return Models
