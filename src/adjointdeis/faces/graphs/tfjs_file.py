"""Reading of TensorFlow.js graph models (model.json and its weight files) as torch modules.

Reference:
    | TensorFlow.js graph model and weights manifest
    | https://github.com/tensorflow/tfjs/tree/master/tfjs-converter/docs
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adjointdeis.faces.graphs.graph import FAULTS, Graph, GraphError, Node, read_bytes
from adjointdeis.faces.graphs.onnx_file import require_sha256
from adjointdeis.faces.graphs.tfjs_operators import OPERATORS

_TYPES = {"float32": "<f4", "int32": "<i4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}


def load_tfjs(
    path: str | Path,
    outputs: Sequence[str] | None = None,
    sha256: Mapping[str, str] | None = None,
) -> Graph:
    """The network of a TensorFlow.js graph model.

    Inputs and outputs are as the file has them: images are (B, H, W, C). Nothing in the file is
    executed; weight files are read from the folder of the ``.json`` only.

    Args:
        path: The ``.json`` with the graph; its weight files lie beside it.
        outputs: Names of the nodes to return; None returns the last one that no node reads.
        sha256: Fingerprint by file name, of the graph and of every weight file; None takes any.

    Raises:
        UnsupportedOperator: Names every operator that has no torch form.
        GraphError: A file is missing, altered or damaged.
    """
    path, source = Path(path), str(path)
    data = read_bytes(path, "a TensorFlow.js graph model (.json)")
    _require(path, data, sha256)
    try:
        model = json.loads(data)
        stored = model["modelTopology"]["node"]
        manifest = model["weightsManifest"]
        entries = {node["name"]: node for node in stored}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GraphError(
            f"{path} is not a TensorFlow.js graph model ({type(error).__name__}: {error}); a "
            "layers model must be converted to a graph model first"
        ) from error
    try:
        constants = _weights(path, manifest, sha256)
        read = {_bare(i) for node in stored for i in node.get("input", ())}
        wanted = (
            list(outputs)
            if outputs is not None
            else [node["name"] for node in stored if node["name"] not in read][-1:]
        )
        order = _order(entries, wanted, source)
        nodes, inputs = [], []
        for name in order:
            entry = entries[name]
            if entry["op"] == "Placeholder":
                inputs.append(name)
            elif entry["op"] != "Const":
                taken = tuple(_bare(i) for i in entry.get("input", ()) if not i.startswith("^"))
                attributes = {k: _attribute(v) for k, v in (entry.get("attr") or {}).items()}
                nodes.append(Node(entry["op"], taken, (name,), attributes))
            elif name not in constants:
                raise GraphError(f"{path}: no weight file holds {name!r}")
        used = {name: constants[name] for name in order if name in constants}
        shapes = [_placeholder(entries[name]) for name in inputs]
        batch = {shape[0] if shape else None for shape in shapes}
        return Graph(
            nodes,
            used,
            inputs,
            wanted,
            OPERATORS,
            batch.pop() if len(batch) == 1 else None,
            [shape[1:] for shape in shapes] if all(shapes) else None,
            source,
        )
    except GraphError:
        raise
    except FAULTS as error:
        # A name that is no text, a list where one number belongs.
        raise GraphError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _require(path: Path, data: bytes, sha256: Mapping[str, str] | None) -> None:
    if sha256 is None:
        return
    if path.name not in sha256:
        raise GraphError(f"{path}: no fingerprint is given for it; known are {sorted(sha256)}")
    require_sha256(data, sha256[path.name], path)


def _bare(name: str) -> str:
    """A node's name without the control mark and the number of its output."""
    return name.lstrip("^").split(":")[0]


def _weights(path: Path, manifest: Any, sha256: Mapping[str, str] | None) -> dict[str, Tensor]:
    constants: dict[str, Tensor] = {}
    for group in manifest:
        data = b""
        for name in group["paths"]:
            if Path(name).name != name:
                raise GraphError(f"{path}: weight file {name!r} is not beside it")
            part = read_bytes(path.parent / name, "a weight file")
            _require(path.parent / name, part, sha256)
            data += part
        position = 0
        for weight in group["weights"]:
            value, position = _weight(weight, data, position, path)
            constants[weight["name"]] = value
        if position != len(data):
            raise GraphError(
                f"{path}: its weights take {position} bytes, their files have {len(data)}"
            )
    return constants


def _weight(weight: Any, data: bytes, position: int, path: Path) -> tuple[Tensor, int]:
    shape, packed = [int(n) for n in weight["shape"]], weight.get("quantization")
    kind = packed["dtype"] if packed else weight["dtype"]
    if kind not in _TYPES or weight["dtype"] not in _TYPES:
        raise GraphError(f"{path}: weights {weight['name']!r} are of type {kind}")
    dtype = np.dtype(_TYPES[kind])
    count = math.prod(shape)
    if min(shape, default=0) < 0 or position + count * dtype.itemsize > len(data):
        raise GraphError(
            f"{path}: weights {weight['name']!r} of shape {shape} do not fit into {len(data)} bytes"
        )
    values = np.frombuffer(data, dtype, count, position).astype(_TYPES[weight["dtype"]])
    if packed and "scale" in packed:
        values = values * np.float32(packed["scale"]) + np.float32(packed["min"])
    return torch.from_numpy(values.reshape(shape).copy()), position + count * dtype.itemsize


def _order(entries: Mapping[str, Any], wanted: Sequence[str], source: str) -> list[str]:
    """Names of all that the wanted nodes need, each after what it takes."""
    order: list[str] = []
    state: dict[str, bool] = {}  # False while its inputs are visited
    stack = [(name, False) for name in reversed(wanted)]
    while stack:
        name, visited = stack.pop()
        if visited:
            state[name] = True
            order.append(name)
            continue
        if state.get(name):
            continue
        if name in state:
            raise GraphError(f"{source}: node {name!r} takes its own result")
        if name not in entries:
            raise GraphError(f"{source}: there is no node {name!r}")
        state[name] = False
        stack.append((name, True))
        inputs = [_bare(i) for i in entries[name].get("input", ())]
        stack += [(i, False) for i in inputs if not state.get(i)]
    return order


def _attribute(value: Mapping[str, Any]) -> Any:
    """Plain value of an attribute; texts are base64 in the file."""
    if "s" in value:
        return base64.b64decode(value["s"]).decode("utf-8", "replace")
    if "i" in value:
        return int(value["i"])
    if "f" in value:
        return float(value["f"])
    if "b" in value:
        return bool(value["b"])
    if "list" in value:
        listed = value["list"]
        texts = [base64.b64decode(v).decode("utf-8", "replace") for v in listed.get("s", ())]
        return texts or [int(v) for v in listed.get("i", ())] or list(listed.get("f", ()))
    return value


def _placeholder(entry: Mapping[str, Any]) -> tuple[int | None, ...]:
    shape = ((entry.get("attr") or {}).get("shape") or {}).get("shape") or {}
    sizes = [int(d.get("size", -1)) for d in shape.get("dim", ())]
    return tuple(None if n < 0 else n for n in sizes)
