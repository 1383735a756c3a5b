"""Reading of ONNX files as differentiable torch modules.

Reference:
    | Open Neural Network Exchange, IR and operator schemas
    | https://onnx.ai/onnx/repo-docs/IR.html
    | https://onnx.ai/onnx/operators/
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adjointdeis.extras import load
from adjointdeis.faces.graphs.graph import FAULTS, Graph, GraphError, Node, read_bytes
from adjointdeis.faces.graphs.onnx_operators import OPERATORS

OLDEST_OPSET = 7
"""Before it, arithmetic broadcast by other rules."""

_ITEM_SIZE = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""Bytes of one number by `TensorProto.DataType`."""
ONE_FILE = (
    "in another file, which the fingerprint does not cover; save the model as one file (onnx.save "
    "with save_as_external_data=False)"
)
_REPEATED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def load_onnx(
    path: str | Path, outputs: Sequence[str] | None = None, sha256: str | None = None
) -> Graph:
    """The network of an ONNX file.

    Nothing in the file is executed: it is a list of operators, and every one that is run is
    written in this package. Sizes are checked before memory is taken, and weights kept in other
    files are refused, since the file's fingerprint would not cover them.

    Args:
        path: The ``.onnx`` file. Opset 7 or later, floating point.
        outputs: Names of the values to return, which may be inner ones; None returns the file's
            outputs.
        sha256: Fingerprint that the file must have; None takes any.

    Raises:
        MissingPackageError: The package onnx is not installed.
        UnsupportedOperator: Names every operator that has no torch form.
        GraphError: The file is missing, altered, damaged or unsafe.
    """
    onnx = load("onnx", "networks in ONNX files")
    data = read_bytes(path, "an ONNX file")
    require_sha256(data, sha256, path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's errors have no common public base
        raise GraphError(f"{path} is not an ONNX file, or is cut short ({error})") from error
    try:
        return _read(model, onnx, outputs, str(path))
    except GraphError:
        raise
    except FAULTS as error:
        # A node without a result, an attribute of another type than its operator's.
        raise GraphError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _read(model: Any, onnx: Any, outputs: Sequence[str] | None, source: str) -> Graph:
    graph = model.graph
    if not graph.node:
        raise GraphError(f"{source} holds no graph; expected an ONNX file")
    opset = _opset(model, source)
    constants = {t.name: _tensor(t, source) for t in graph.initializer}
    if graph.sparse_initializer:
        raise GraphError(f"{source} holds sparse weights, which are not read")
    nodes = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            name = f"{node.domain}.{node.op_type}"
        else:
            name = node.op_type
        attributes = {a.name: _attribute(a, onnx, source) for a in node.attribute}
        if name == "Constant":
            constants[node.output[0]] = _constant(attributes, source)
            continue
        attributes |= {"opset": opset, "outputs": len(node.output)}
        nodes.append(Node(name, tuple(node.input), tuple(node.output), attributes))
    inputs = [value for value in graph.input if value.name not in constants]
    shapes = [_shape(value) for value in inputs]
    batches = {shape[0] if shape else None for shape in shapes}
    batch = batches.pop() if len(batches) == 1 else None
    return Graph(
        nodes,
        constants,
        [value.name for value in inputs],
        list(outputs) if outputs is not None else [value.name for value in graph.output],
        OPERATORS,
        batch or None,
        [shape[1:] for shape in shapes if shape] if all(shapes) else None,
        source,
        [_dtype(value, source) for value in inputs],
    )


def require_sha256(data: bytes, expected: str | None, path: str | Path) -> None:
    """Raises `GraphError` where a file's SHA-256 is not the expected one.

    Args:
        data: The file's bytes.
        expected: In hexadecimal; None for any.
        path: Its name, for the message.
    """
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected:
        raise GraphError(
            f"{path} has SHA-256 {found}, expected {expected}: it was altered or is another file"
        )


def _opset(model: Any, source: str) -> int:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] < OLDEST_OPSET:
        raise GraphError(
            f"{source} uses opset {versions or 'none'}; supported are {OLDEST_OPSET} and later: "
            "convert it with onnx.version_converter.convert_version"
        )
    if model.functions:
        raise GraphError(
            f"{source} defines functions of its own; write them out with onnx.inliner."
            "inline_local_functions first"
        )
    return versions[0]


def _tensor(tensor: Any, source: str) -> Tensor:
    """Values of a `TensorProto`, its size compared with its bytes before anything is made."""
    from onnx import numpy_helper

    what = f"{source}: constant {tensor.name!r}"
    if tensor.data_location == 1 or tensor.external_data:
        raise GraphError(f"{what} lies {ONE_FILE}")
    if tensor.data_type not in _ITEM_SIZE:
        raise GraphError(f"{what} is of data type {tensor.data_type}, which is not read")
    if any(size < 0 for size in tensor.dims):
        raise GraphError(f"{what} has the shape {tuple(tensor.dims)}")
    size = math.prod(tensor.dims)
    if tensor.raw_data or not any(len(getattr(tensor, name)) for name in _REPEATED):
        found, wanted = len(tensor.raw_data), size * _ITEM_SIZE[tensor.data_type]
    else:
        found, wanted = max(len(getattr(tensor, name)) for name in _REPEATED), size
    if found != wanted:
        raise GraphError(
            f"{what} has the shape {tuple(tensor.dims)}, which is not what its {found} stored "
            "bytes or numbers are; the file is damaged"
        )
    try:
        return torch.from_numpy(numpy_helper.to_array(tensor).copy())
    except (ValueError, TypeError) as error:
        raise GraphError(f"{what} cannot be read ({error})") from error


def _attribute(attribute: Any, onnx: Any, source: str) -> Any:
    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return _tensor(attribute.t, source)
    if attribute.type in (kind.GRAPH, kind.GRAPHS):
        return None  # of If, Loop and Scan, which are named as unsupported
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (int, float, str)) else list(value)


def _constant(attributes: dict[str, Any], source: str) -> Tensor:
    for name, dtype in (
        ("value", None),
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in attributes:
            value = attributes[name]
            return value if dtype is None else torch.tensor(value, dtype=dtype)
    raise GraphError(f"{source}: a Constant of the kind {sorted(attributes)} is not read")


def _dtype(value: Any, source: str) -> torch.dtype:
    """Type of an input's numbers."""
    from onnx import helper

    kind = value.type.tensor_type.elem_type
    if kind not in _ITEM_SIZE:
        raise GraphError(
            f"{source}: input {value.name!r} is of data type {kind}, which is not read"
        )
    return torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(kind))).dtype


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Declared shape of an input, None for an open size; None as a whole where none is given."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    # Some exporters write -1 for an open size.
    return tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
