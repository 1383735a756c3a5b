"""Small ONNX graphs, at least one for every operator that the reader supports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Random float32 numbers in [.2, 2]."""
    return RNG.uniform(0.2, 2, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """A graph of one operator on one input, besides constants."""

    operator: str
    x: np.ndarray
    others: Sequence[np.ndarray | None] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    x_at: int = 0

    def __str__(self) -> str:
        settings = ",".join(f"{k}={v}" for k, v in self.attributes.items() if k != "value")
        return f"{self.operator}-{self.opset}-{settings}-{tuple(self.x.shape)}"

    def model(self, batch: int | str | None = None) -> onnx.ModelProto:
        """The graph as a model; ``batch`` replaces the leading size."""
        names = [f"c{i}" if c is not None else "" for i, c in enumerate(self.others)]
        initializers = [
            numpy_helper.from_array(c, n)
            for c, n in zip(self.others, names, strict=True)
            if c is not None
        ]
        names.insert(self.x_at, "x")
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.operator, names, outputs, **self.attributes)
        shape = list(self.x.shape)
        if batch is not None:
            shape[0] = batch
        kind = helper.np_dtype_to_tensor_dtype(self.x.dtype)
        x = helper.make_tensor_value_info("x", kind, shape)
        made = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph([node], "case", [x], made, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


IMAGE = normal(2, 4, 7, 6)
ROWS = normal(2, 3, 5)
SQUARE = normal(2, 4, 6, 6)
TRUTH = RNG.random((2, 3)) > 0.5

CASES = [
    *(
        Case(name, ROWS)
        for name in (
            *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg", "Relu"),
            *("Sigmoid", "Sin", "Softplus", "Tanh", "Identity", "Elu", "HardSigmoid", "Shape"),
            *("LeakyRelu", "Transpose", "Squeeze", "Flatten", "Dropout", "LpNormalization"),
        )
    ),
    *(Case(name, positive(2, 3)) for name in ("Log", "Reciprocal", "Sqrt")),
    Case("Not", TRUTH),
    *(Case(name, TRUTH, [RNG.random((2, 3)) > 0.5]) for name in ("And", "Or")),
    *(
        Case(name, ROWS, [normal(3, 1)])
        for name in (
            *("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"),
            *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        )
    ),
    Case("Sub", ROWS, [normal(5)], x_at=1),
    Case("Div", np.array([[-7, 7, 5]], np.int64), [ints(2, 2, -3)]),
    Case("Max", ROWS, [normal(5), normal(3, 1)]),
    Case("Pow", positive(2, 3), [np.array(1.7, np.float32)]),
    Case("MatMul", ROWS, [normal(5, 4)]),
    Case("Gelu", ROWS, opset=20),
    Case("Gelu", ROWS, attributes={"approximate": "tanh"}, opset=20),
    *(
        Case(name, positive(2, 3, 4), attributes={"axes": [1, -1], "keepdims": keep}, opset=12)
        for keep in (0, 1)
        for name in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean")
    ),
    *(
        Case(name, ROWS, [ints(-1)])
        for name in ("ReduceMin", "ReduceSum", "ReduceSumSquare", "ReduceMean", "ReduceL2")
    ),
    Case("ReduceSum", ROWS),
    Case("ReduceSum", ROWS, attributes={"noop_with_empty_axes": 1}),
    Case("Cast", ROWS, attributes={"to": TensorProto.INT32}),
    Case("Cast", TRUTH, attributes={"to": TensorProto.FLOAT}),
    Case("Clip", ROWS, [np.float32(-0.5), np.float32(0.7)]),
    Case("Clip", ROWS, [None, np.float32(0.7)]),
    Case("Clip", ROWS, attributes={"min": -0.3, "max": 0.4}, opset=9),
    Case("Concat", ROWS, [normal(2, 3, 2)], {"axis": -1}),
    Case("ConstantOfShape", ints(2, 3), attributes={"value": numpy_helper.from_array(normal(1))}),
    Case("ConstantOfShape", ints(2, 3)),
    Case("DepthToSpace", IMAGE, attributes={"blocksize": 2}),
    Case("DepthToSpace", IMAGE, attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", SQUARE, attributes={"blocksize": 2}),
    Case("Einsum", ROWS, [normal(2, 5, 4)], {"equation": "bij,bjk->bki"}),
    Case("Elu", ROWS, attributes={"alpha": 0.6}),
    Case("Expand", normal(2, 1, 3), [ints(2, 4, 1)]),
    Case("Flatten", IMAGE, attributes={"axis": 2}),
    Case("Gather", ROWS, [np.array([[0, -1], [2, 1]], np.int64)], {"axis": 1}),
    Case("Gather", ROWS, [np.array(1, np.int64)], {"axis": -1}),
    Case("Gemm", normal(2, 3), [normal(3, 4), normal(4)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", normal(3, 2), [normal(4, 3)], {"transA": 1, "transB": 1}),
    Case("HardSigmoid", ROWS, attributes={"alpha": 0.3, "beta": 0.4}),
    Case("LeakyRelu", ROWS, attributes={"alpha": 0.2}),
    *(
        Case(name, ROWS, attributes={"axis": axis}, opset=opset)
        for name in ("Softmax", "LogSoftmax")
        for axis, opset in ((1, 13), (-1, 18), (1, 9), (2, 11))
    ),
    Case("LpNormalization", ROWS, attributes={"axis": 1, "p": 1}),
    Case("PRelu", IMAGE, [positive(4, 1, 1)]),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)]),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    Case("Pad", IMAGE, [ints(1, 2), None, ints(-1)]),
    Case("Pad", IMAGE, attributes={"pads": [0, 1, 0, 0, 0, 0, 0, 2], "value": 0.25}, opset=9),
    Case("Range", np.int64(1), [np.int64(9), np.int64(3)]),
    Case("Reshape", ROWS, [ints(0, -1)]),
    Case("Reshape", IMAGE, [ints(2, 2, 2, -1)]),
    Case("Shape", IMAGE, attributes={"start": 1, "end": -1}),
    Case("Slice", IMAGE, [ints(1, -3), ints(3, 2**62), ints(1, 3), ints(1, 2)]),
    Case("Slice", IMAGE, [ints(-1, 4), ints(-(2**62), 1), ints(2, -1), ints(-1, -2)]),
    Case("Slice", IMAGE, [ints(1), ints(2)]),
    Case("Slice", IMAGE, attributes={"starts": [1], "ends": [100], "axes": [2]}, opset=9),
    Case("Split", IMAGE, [ints(1, 3)], {"axis": 1}, outputs=2),
    Case("Split", IMAGE, attributes={"axis": 2, "num_outputs": 3}, outputs=3),
    Case("Split", IMAGE, attributes={"axis": 1, "split": [3, 1]}, opset=9, outputs=2),
    Case("Split", IMAGE, attributes={"axis": 1}, opset=9, outputs=2),
    Case("Squeeze", normal(2, 1, 3, 1), [ints(-1)]),
    Case("Squeeze", normal(2, 1, 3, 1), attributes={"axes": [1]}, opset=9),
    Case("Tile", ROWS, [ints(1, 2, 3)]),
    Case("Transpose", IMAGE, attributes={"perm": [0, 2, 3, 1]}),
    Case("Unsqueeze", ROWS, [ints(0, -1)]),
    Case("Unsqueeze", ROWS, attributes={"axes": [1]}, opset=9),
    Case("Where", TRUTH, [normal(2, 3), normal(3)]),
    # layers
    Case("Conv", IMAGE, [normal(5, 4, 3, 3), normal(5)], {"pads": [1, 1, 1, 1]}),
    Case(
        "Conv", IMAGE, [normal(6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 0]}
    ),
    Case("Conv", IMAGE, [normal(5, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", IMAGE, [normal(5, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", IMAGE, [normal(5, 4, 2, 2)], {"auto_pad": "VALID", "dilations": [2, 2]}),
    Case("Conv", ROWS, [normal(4, 3, 3)]),
    Case("ConvTranspose", IMAGE, [normal(4, 3, 3, 3), normal(3)], {"strides": [2, 2]}),
    Case(
        "ConvTranspose",
        IMAGE,
        [normal(4, 3, 3, 3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0], "group": 2},
    ),
    *(
        Case(name, IMAGE, attributes={"kernel_shape": [3, 2], **extra})
        for name in ("AveragePool", "MaxPool")
        for extra in (
            {},
            {"strides": [2, 2], "pads": [1, 1, 1, 0]},
            {"strides": [2, 3], "ceil_mode": 1},
            {"strides": [3, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        )
    ),
    Case(
        "AveragePool",
        IMAGE,
        attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "dilations": [2, 1]}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case(
        "BatchNormalization",
        IMAGE,
        [normal(4), normal(4), normal(4), positive(4)],
        {"epsilon": 1e-3},
    ),
    Case("InstanceNormalization", IMAGE, [normal(4), normal(4)], {"epsilon": 1e-3}),
    Case("GroupNormalization", IMAGE, [normal(4), normal(4)], {"num_groups": 2}, opset=21),
    Case("LayerNormalization", ROWS, [normal(5), normal(5)]),
    Case("LayerNormalization", IMAGE, [normal(7, 6)], {"axis": 2}),
    *(
        Case(
            "Resize",
            IMAGE,
            [None, np.array([1, 1, 2, 1.5], np.float32)],
            {"mode": mode, "coordinate_transformation_mode": transformation},
        )
        for mode in ("nearest", "linear")
        for transformation in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    ),
    *(
        Case("Resize", IMAGE, [None, None, ints(2, 4, 3, 11)], {"nearest_mode": rule})
        for rule in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    Case(
        "Resize",
        IMAGE,
        [None, np.array([1.7, 0.6], np.float32)],
        {
            "axes": [2, 3],
            "coordinate_transformation_mode": "half_pixel_symmetric",
            "mode": "linear",
        },
        opset=19,
    ),
    Case("Resize", IMAGE, [np.array([1, 1, 2, 3], np.float32)], opset=10),
    Case("Upsample", IMAGE, [np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, opset=9),
    Case("Upsample", IMAGE, attributes={"scales": [1.0, 1.0, 2.0, 2.0]}, opset=8),
]
