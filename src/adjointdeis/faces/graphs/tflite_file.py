"""Reading of TensorFlow Lite files (.tflite) as differentiable torch modules.

Reference:
    | TensorFlow Lite schema
    | https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adjointdeis.extras import load
from adjointdeis.faces.graphs.graph import (
    Graph,
    GraphError,
    Node,
    UnsupportedOperator,
    read_bytes,
)
from adjointdeis.faces.graphs.onnx_file import require_sha256
from adjointdeis.faces.graphs.tflite_operators import OPERATORS, OPTIONS

_TYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 6: "?", 9: "i1", 10: "<f8"}
"""numpy's name by the schema's TensorType."""
_QUANTISED = (3, 9)


def load_tflite(
    path: str | Path, sha256: str | None = None, outputs: Sequence[str] | None = None
) -> Graph:
    """The network of a TensorFlow Lite file of floating-point weights.

    Inputs and outputs are as the file has them: images are (B, H, W, C). Nothing in the file is
    executed, and sizes are checked before memory is taken.

    Args:
        path: The ``.tflite`` file; one subgraph.
        sha256: Fingerprint that the file must have; None takes any.
        outputs: Names of the tensors to return; None returns the file's outputs.

    Raises:
        MissingPackageError: The package tflite is not installed.
        UnsupportedOperator: Names every operator that has no torch form, or quantised weights.
        GraphError: The file is missing, altered or damaged.
    """
    tflite = load("tflite", "networks in TFLite files")
    data = read_bytes(path, "a TensorFlow Lite file")
    require_sha256(data, sha256, path)
    if data[4:8] != b"TFL3":
        raise GraphError(f"{path} is not a TensorFlow Lite file: it does not begin as one")
    try:
        return _read(tflite, data, outputs, str(path))
    except GraphError:
        raise
    except Exception as error:
        # An offset that points nowhere can end in any error of struct, numpy or flatbuffers.
        raise GraphError(
            f"{path} is damaged or cut short ({type(error).__name__}: {error})"
        ) from error


def _read(tflite: Any, data: bytes, wanted: Sequence[str] | None, source: str) -> Graph:
    model = tflite.Model.GetRootAsModel(data, 0)
    if model.SubgraphsLength() != 1:
        raise UnsupportedOperator(f"{source} has {model.SubgraphsLength()} subgraphs, expected 1")
    graph = model.Subgraphs(0)
    # Each entry of a list takes at least four bytes of the file.
    for count in (graph.TensorsLength(), graph.OperatorsLength(), model.BuffersLength()):
        if 4 * count > len(data):
            raise GraphError(f"{source} claims {count} entries in {len(data)} bytes")
    names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
    constants = {}
    for i in range(graph.TensorsLength()):
        value = _constant(model, graph.Tensors(i), source)
        if value is not None:
            constants[str(i)] = value
    nodes = []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = names.get(number, f"operator {number}")
        if name == "CUSTOM":
            name = f"CUSTOM:{(code.CustomCode() or b'?').decode('utf-8', 'replace')}"
        inputs = _indices(operator.InputsAsNumpy())
        outputs = _indices(operator.OutputsAsNumpy())
        attributes = _options(tflite, name, operator) | {"outputs": len(outputs)}
        nodes.append(Node(name, inputs, outputs, attributes))
    inputs, outputs = _indices(graph.InputsAsNumpy()), _indices(graph.OutputsAsNumpy())
    if wanted is not None:
        called = [_name(graph.Tensors(i)) for i in range(graph.TensorsLength())]
        for name in wanted:
            if called.count(name) != 1:
                made = ", ".join(called[int(i)] for i in outputs)
                raise GraphError(
                    f"{source} has {called.count(name)} tensors of the name {name!r}, expected "
                    f"one; its outputs are {made}"
                )
        outputs = tuple(str(called.index(name)) for name in wanted)
    shapes = [_signature(graph.Tensors(int(name))) for name in inputs]
    batches = {shape[0] if shape else None for shape in shapes}
    batch = batches.pop() if len(batches) == 1 else None
    return Graph(
        nodes,
        constants,
        inputs,
        outputs,
        OPERATORS,
        batch,
        [shape[1:] for shape in shapes],
        source,
        [_dtype(graph.Tensors(int(name)), source) for name in inputs],
    )


def _indices(values: Any) -> tuple[str, ...]:
    if isinstance(values, int):  # the reader's answer for an absent list
        return ()
    return tuple(str(int(v)) if v >= 0 else "" for v in values)


def _dtype(tensor: Any, source: str) -> torch.dtype:
    """Type of a tensor's numbers."""
    if tensor.Type() not in _TYPES:
        raise UnsupportedOperator(f"{source}: an input is of type {tensor.Type()}")
    return torch.from_numpy(np.empty(0, np.dtype(_TYPES[tensor.Type()]))).dtype


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()


def _signature(tensor: Any) -> tuple[int | None, ...]:
    """Shape of a tensor as the file declares it; None for a size that each call may choose."""
    shape: list[int | None] = list(_shape(tensor))
    if tensor.ShapeSignatureLength() == len(shape):
        signature = tensor.ShapeSignatureAsNumpy()
        shape = [None if s < 0 else n for n, s in zip(shape, signature, strict=True)]
    return tuple(shape)


def _constant(model: Any, tensor: Any, source: str) -> Tensor | None:
    """Stored values of a tensor, None for one that the network computes."""
    buffer = model.Buffers(tensor.Buffer())
    if getattr(buffer, "Offset", lambda: 0)() > 1:
        raise GraphError(f"{source} keeps weights outside of its tables, which is not read")
    size = buffer.DataLength()
    if not size:
        return None
    shape, kind = _shape(tensor), tensor.Type()
    name = _name(tensor)
    if kind in _QUANTISED:
        raise UnsupportedOperator(
            f"{source}: weights {name!r} are quantised; only floating-point files are read: "
            "convert it without optimisation, or to float16"
        )
    if kind not in _TYPES:
        raise UnsupportedOperator(f"{source}: weights {name!r} are of type {kind}")
    dtype = np.dtype(_TYPES[kind])
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != size:
        raise GraphError(
            f"{source}: weights {name!r} have the shape {shape} and {size} bytes; the file is "
            "damaged"
        )
    values = np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype).reshape(shape)
    return torch.from_numpy(values.copy())


def _name(tensor: Any) -> str:
    return (tensor.Name() or b"?").decode("utf-8", "replace")


def _options(tflite: Any, name: str, operator: Any) -> dict[str, Any]:
    """Attributes of an operator: the schema's names and values, enumerations as their names."""
    if name not in OPTIONS:
        return {}
    table, wanted = OPTIONS[name]
    stored = operator.BuiltinOptions()
    options = getattr(tflite, table)()
    if stored is None:
        return {}
    options.Init(stored.Bytes, stored.Pos)
    found = {}
    for field in wanted:
        if field == "FusedActivationFunction":
            found[field] = _name_of(tflite.ActivationFunctionType, options)
        elif field == "Padding":
            found[field] = "SAME" if options.Padding() == tflite.Padding.SAME else "VALID"
        elif field == "NewShape":
            found[field] = options.NewShapeAsNumpy().tolist() if options.NewShapeLength() else None
        elif field == "SqueezeDims":
            length = options.SqueezeDimsLength()
            found[field] = options.SqueezeDimsAsNumpy().tolist() if length else None
        else:
            found[field] = getattr(options, field)()
    return found


def _name_of(enumeration: Any, options: Any) -> str:
    value = options.FusedActivationFunction()
    names = {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}
    return names.get(value, str(value))
