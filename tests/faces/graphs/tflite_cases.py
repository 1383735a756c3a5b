"""Small TensorFlow Lite files of one operator, at least one for every operator that is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

RNG = np.random.default_rng(0)
TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4}


def normal(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Random float32 numbers in [.2, 2]."""
    return RNG.uniform(0.2, 2, shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    """An int32 vector or matrix."""
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Case:
    """One operator on the input x and constants."""

    operator: str
    x: np.ndarray
    others: Sequence[np.ndarray] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.operator}-{','.join(f'{k}={v}' for k, v in self.options.items())}"

    def file(self, y_shape: Sequence[int] = (), table: str = "") -> bytes:
        """The bytes of the file."""
        return write(self.operator, [self.x, *self.others], self.options, table, y_shape)


def _offsets(b: flatbuffers.Builder, start: Any, items: Sequence[int]) -> int:
    start(b, len(items))
    for item in reversed(items):
        b.PrependUOffsetTRelative(item)
    return b.EndVector()


def _numbers(b: flatbuffers.Builder, values: Sequence[int]) -> int:
    return b.CreateNumpyVector(np.array(values, np.int32))


def write(
    operator: str,
    values: Sequence[np.ndarray],
    options: Mapping[str, Any],
    table: str,
    y_shape: Sequence[int],
) -> bytes:
    """A file of one operator: values[0] is the input, the others are constants."""
    b = flatbuffers.Builder(1024)
    buffers, tensors = [], []
    for k, value in enumerate([None, *values]):
        stored = b.CreateNumpyVector(np.frombuffer(value.tobytes(), np.uint8)) if k > 1 else None
        tflite.BufferStart(b)
        if stored is not None:
            tflite.BufferAddData(b, stored)
        buffers.append(tflite.BufferEnd(b))
    made = np.zeros(tuple(y_shape), np.float32)
    for k, value in enumerate([*values, made]):
        name, shape = b.CreateString(f"t{k}"), _numbers(b, value.shape)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, TYPES[str(value.dtype)])
        tflite.TensorAddBuffer(b, k + 1 if k < len(values) else 0)
        tflite.TensorAddName(b, name)
        tensors.append(tflite.TensorEnd(b))
    options_at = _options(b, table, options) if table else None
    inputs, outputs = _numbers(b, range(len(values))), _numbers(b, [len(values)])
    tflite.OperatorStart(b)
    tflite.OperatorAddOpcodeIndex(b, 0)
    tflite.OperatorAddInputs(b, inputs)
    tflite.OperatorAddOutputs(b, outputs)
    if options_at is not None:
        tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, table))
        tflite.OperatorAddBuiltinOptions(b, options_at)
    operators = _offsets(b, tflite.SubGraphStartOperatorsVector, [tflite.OperatorEnd(b)])
    tensors_at = _offsets(b, tflite.SubGraphStartTensorsVector, tensors)
    inputs, outputs = _numbers(b, [0]), _numbers(b, [len(values)])
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, tensors_at)
    tflite.SubGraphAddInputs(b, inputs)
    tflite.SubGraphAddOutputs(b, outputs)
    tflite.SubGraphAddOperators(b, operators)
    graphs = _offsets(b, tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(b)])
    code = getattr(tflite.BuiltinOperator, operator)
    custom = b.CreateString("mystery") if operator == "CUSTOM" else None
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
    tflite.OperatorCodeAddBuiltinCode(b, code)
    if custom is not None:
        tflite.OperatorCodeAddCustomCode(b, custom)
    tflite.OperatorCodeAddVersion(b, 1)
    codes = _offsets(b, tflite.ModelStartOperatorCodesVector, [tflite.OperatorCodeEnd(b)])
    buffers_at = _offsets(b, tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, buffers_at)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    return bytes(b.Output())


def _options(b: flatbuffers.Builder, table: str, options: Mapping[str, Any]) -> int:
    stored = {
        key: _numbers(b, value) if isinstance(value, list) else value
        for key, value in options.items()
    }
    getattr(tflite, f"{table}Start")(b)
    for key, value in stored.items():
        getattr(tflite, f"{table}Add{key}")(b, value)
    return getattr(tflite, f"{table}End")(b)


IMAGE, ROWS = normal(2, 7, 6, 4), normal(2, 3, 5)
SAME, VALID, RELU, RELU6 = 0, 1, 1, 3
ONE = {"StrideH": 1, "StrideW": 1}
FLAT = {"DilationHFactor": 1, "DilationWFactor": 1}
POOL = {"FilterHeight": 3, "FilterWidth": 2, "StrideH": 2, "StrideW": 2}

CASES = [
    *(
        Case(name, IMAGE)
        for name in (
            *("ABS", "ELU", "EXP", "HARD_SWISH", "LOGISTIC", "NEG", "RELU", "RELU6"),
            *("RELU_N1_TO_1", "SQUARE", "TANH"),
        )
    ),
    *(Case(name, positive(2, 3)) for name in ("LOG", "RSQRT", "SQRT")),
    *(Case(name, ROWS, [normal(3, 5)]) for name in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE")),
    *(
        Case(name, IMAGE, [positive(4)], {"FusedActivationFunction": code})
        for name in ("ADD", "SUB", "MUL", "DIV")
        for code in (0, RELU, 2, RELU6)
    ),
    Case("POW", positive(2, 3), [positive(3)]),
    Case("PRELU", IMAGE, [normal(1, 1, 4)]),
    Case("LEAKY_RELU", IMAGE, options={"Alpha": 0.3}),
    Case("SOFTMAX", ROWS, options={"Beta": 1.5}),
    Case("L2_NORMALIZATION", normal(2, 5), options={"FusedActivationFunction": 0}),
    *(
        Case("CONV_2D", IMAGE, [normal(5, 3, 2, 4), normal(5)], {"Padding": p, **s, **d, **act})
        for p in (SAME, VALID)
        for s, d in (
            (ONE, FLAT),
            ({"StrideH": 2, "StrideW": 3}, FLAT),
            (ONE, {"DilationHFactor": 2, "DilationWFactor": 1}),
        )
        for act in ({}, {"FusedActivationFunction": RELU6})
    ),
    *(
        Case(
            "DEPTHWISE_CONV_2D",
            IMAGE,
            [normal(1, 3, 3, 4 * m), normal(4 * m)],
            {"Padding": p, "StrideH": s, "StrideW": s, "DepthMultiplier": m, **FLAT},
        )
        for p in (SAME, VALID)
        for s, m in ((1, 1), (2, 1), (2, 2))
    ),
    *(
        Case(name, IMAGE, options={"Padding": p, **POOL})
        for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D")
        for p in (SAME, VALID)
    ),
    *(
        Case("FULLY_CONNECTED", x, [normal(6, 5), normal(6)], {"KeepNumDims": keep})
        for x, keep in ((normal(2, 5), False), (ROWS, True), (ROWS, False))
    ),
    Case("BATCH_MATMUL", ROWS, [normal(2, 5, 4)], {"AdjX": False, "AdjY": False}),
    Case("BATCH_MATMUL", ROWS, [normal(2, 4, 3)], {"AdjX": True, "AdjY": True}),
    Case("CONCATENATION", ROWS, [normal(2, 3, 2)], {"Axis": -1}),
    Case("DEQUANTIZE", normal(2, 3).astype(np.float16)),
    Case("EXPAND_DIMS", ROWS, [np.array(1, np.int32)]),
    *(
        Case(name, IMAGE, [ints(1, 2)], {"KeepDims": keep})
        for name in ("MEAN", "SUM", "REDUCE_MAX")
        for keep in (False, True)
    ),
    Case("PAD", IMAGE, [ints([0, 0], [1, 2], [0, 1], [0, 3])]),
    Case("PADV2", IMAGE, [ints([0, 0], [1, 2], [0, 1], [0, 0]), np.array(0.5, np.float32)]),
    Case("RESHAPE", IMAGE, [ints(2, -1, 4)], {"NewShape": [2, -1, 4]}),
    Case("SQUEEZE", normal(2, 1, 3, 1), options={"SqueezeDims": [1]}),
    Case("TRANSPOSE", IMAGE, [ints(0, 3, 1, 2)]),
]
