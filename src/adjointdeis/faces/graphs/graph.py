"""A graph of operators, run with torch: what the three file formats have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Operator = Callable[..., Any]
"""``operator(attributes, *values)`` returns a tensor, or a tuple of the outputs in order; an input
that the node leaves out is None."""

LARGEST_RESULT = 2**28
"""Numbers that an operator may fill whose result is as large as a file says (1 GiB of float32)."""


FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)
"""What operators raise on attributes and shapes that do not fit together."""


class GraphError(ValueError):
    """A graph file is missing, damaged, altered, unsafe, or not run as it was asked to be."""


class UnsupportedOperator(GraphError):
    """The graph holds an operator, or a variant of one, that has no torch form here."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        operator: Its name in the file's format.
        inputs: Names of its inputs, "" for one that is left out.
        outputs: Names of its outputs, "" for one that nobody reads.
        attributes: What the file says of it besides.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Graph(nn.Module):
    """A network read from a graph file.

    ``forward`` takes the graph's inputs in their order and returns its output, or a tuple of
    them. Floating-point constants are frozen parameters, so that ``.to``, ``.double()`` and a
    gradient with respect to weights (after ``requires_grad_``) work as for every module.

    The batch is free. A file exported for batches of b, where b may be written into shapes inside,
    is run on groups of b by ``torch.vmap``: the numbers are those of one group at a time, whatever
    the operators are. (A last group that is short is filled up with copies of its last image, which
    matters only to a network that mixes the images of a batch.)

    Args:
        nodes: Operators, each after those whose results it takes.
        constants: Weights and other constant values by name.
        inputs: Names of the inputs.
        outputs: Names of the outputs to return.
        operators: Torch form of every operator of the format.
        batch: Leading size that the file fixes for its inputs; None where it leaves it open.
        shapes: Shape of each input after the batch, None for a size that is left open.
        dtypes: Type of each input's numbers; None where the file does not say.
        source: What error messages call the file.

    Raises:
        UnsupportedOperator: Names every operator without a torch form.
        GraphError: A node takes a value that nothing before it makes.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, Tensor],
        inputs: Sequence[str],
        outputs: Sequence[str],
        operators: Mapping[str, Operator],
        batch: int | None = None,
        shapes: Sequence[tuple[int | None, ...]] | None = None,
        source: str = "graph",
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.nodes, self.inputs, self.outputs = tuple(nodes), tuple(inputs), tuple(outputs)
        self.operators, self.batch, self.source = operators, batch, source
        self.shapes = None if shapes is None else tuple(shapes)
        self.dtypes = None if dtypes is None else tuple(dtypes)
        missing = sorted({n.operator for n in nodes if n.operator not in operators})
        if missing:
            raise UnsupportedOperator(
                f"{source}: no torch form of the operators {', '.join(missing)}; supported are "
                f"{', '.join(sorted(operators))}"
            )
        self.weights = nn.ParameterDict()
        self._parameter_of: dict[str, str] = {}
        # Shapes, axes and indices stay where Python can read them without asking a device.
        self._integers: dict[str, Tensor] = {}
        for name, value in constants.items():
            if value.is_floating_point():
                key = f"w{len(self._parameter_of)}"  # names of files hold dots and slashes
                self._parameter_of[name] = key
                self.weights[key] = nn.Parameter(value, requires_grad=False)
            else:
                self._integers[name] = value
        self._forget = self._check_order(set(constants))

    def _check_order(self, known: set[str]) -> tuple[tuple[str, ...], ...]:
        """Names of the values that are read for the last time by each node."""
        known |= set(self.inputs)
        last: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            unknown = [name for name in node.inputs if name and name not in known]
            if unknown:
                raise GraphError(
                    f"{self.source}: {node.operator} takes {unknown[0]!r}, which no constant, "
                    "input or earlier operator is; the file is damaged"
                )
            known |= set(node.outputs)
            last |= dict.fromkeys((*node.inputs, *node.outputs), index)
        unknown = [name for name in self.outputs if name not in known]
        if unknown:
            raise GraphError(f"{self.source}: nothing makes the output {unknown[0]!r}")
        forget: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last.items():
            if name not in self.outputs:
                forget[index].append(name)
        return tuple(map(tuple, forget))

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch of inputs.

        Raises:
            GraphError: Wrong number of inputs, or shapes or types that the file does not take.
        """
        self._check(values)
        if self.batch is None or not len(values[0]):
            results = self._run(*values)
        else:
            size = len(values[0])
            # The last group is filled up with copies of the last image, which are cut off again.
            fill = -size % self.batch
            full = [
                torch.cat([v, v[-1:].expand(fill, *v.shape[1:])]) if fill else v for v in values
            ]
            groups = [v.reshape(-1, self.batch, *v.shape[1:]) for v in full]
            results = tuple(r.flatten(0, 1)[:size] for r in torch.vmap(self._run)(*groups))
        return results[0] if len(results) == 1 else results

    def _check(self, values: Sequence[Tensor]) -> None:
        if len(values) != len(self.inputs):
            raise GraphError(
                f"{self.source} takes the {len(self.inputs)} inputs {', '.join(self.inputs)}; "
                f"got {len(values)}"
            )
        for name, value, shape in zip(self.inputs, values, self.shapes or (), strict=False):
            found = tuple(value.shape[1:])
            if len(found) != len(shape) or any(
                want is not None and want != have for want, have in zip(shape, found, strict=True)
            ):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise GraphError(
                    f"{self.source}: input {name} takes (B, {wanted}), got {tuple(value.shape)}"
                )
        half = torch.float16 in {weight.dtype for weight in self.weights.values()}
        for name, value, dtype in zip(self.inputs, values, self.dtypes or (), strict=False):
            if half and dtype == torch.float16 and value.dtype == torch.float32:
                raise GraphError(
                    f"{self.source}: input {name} takes numbers of {dtype}, got {value.dtype}: "
                    "give x.half(), or compute in single precision, network.float()"
                )
            # Whole numbers become others without a loss.
            if value.is_floating_point() and not dtype.is_floating_point:
                raise GraphError(
                    f"{self.source}: input {name} takes numbers of {dtype}, got {value.dtype}, of "
                    "which it would drop the fractions"
                )
        if not values or any(len(value) != len(values[0]) for value in values):
            raise GraphError(f"{self.source}: the inputs are of different batch sizes")

    def _run(self, *values: Tensor) -> tuple[Tensor, ...]:
        known: dict[str, Any] = dict(self._integers)
        known |= {name: self.weights[key] for name, key in self._parameter_of.items()}
        known |= dict(zip(self.inputs, values, strict=True))
        limit = LARGEST_RESULT * max(1, len(values[0]) if values and values[0].ndim else 1)
        for node, forget in zip(self.nodes, self._forget, strict=True):
            absent = [name for name in node.inputs if name and name not in known]
            if absent:
                raise UnsupportedOperator(
                    f"{self.source}: {node.operator} takes {absent[0]!r}, a second output of an "
                    "operator whose torch form makes only the first"
                )
            arguments = [known[name] if name else None for name in node.inputs]
            try:
                result = self.operators[node.operator](node.attributes, *arguments)
            except UnsupportedOperator as error:
                raise UnsupportedOperator(f"{self.source}: {node.operator}: {error}") from error
            except GraphError:
                raise
            except FAULTS as error:
                shapes = [tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments]
                raise GraphError(
                    f"{self.source}: {node.operator} to {node.outputs[0]!r} cannot be run on "
                    f"{shapes}: {error}"
                ) from error
            made = result if isinstance(result, tuple) else (result,)
            if max((value.numel() for value in made), default=0) > limit:
                # Operators that double what they take, in a row, would fill any memory.
                raise GraphError(
                    f"{self.source}: {node.operator} to {node.outputs[0]!r} makes more than "
                    f"{LARGEST_RESULT} numbers an image"
                )
            known |= zip(node.outputs, made, strict=False)
            for name in forget:
                known.pop(name, None)
        return tuple(known[name] for name in self.outputs)


def read_bytes(path: str | Path, kind: str, largest: int = 2**31) -> bytes:
    """Bytes of a graph file.

    Args:
        path: The file.
        kind: What it should be, for messages.
        largest: Bytes that a file may have.

    Raises:
        GraphError: No such file, or a larger one.
    """
    path = Path(path)
    if not path.is_file():
        there = "not a regular file" if path.exists() else "no such file"
        raise GraphError(f"{path}: {there}; expected {kind}")
    if path.stat().st_size > largest:
        raise GraphError(f"{path} has {path.stat().st_size} bytes; {kind} has at most {largest}")
    return path.read_bytes()


def checked_size(shape: Sequence[int], what: str) -> int:
    """Number of elements of a shape that a file asks for.

    Raises:
        GraphError: A negative size, or more than :data:`LARGEST_RESULT`.
    """
    size = 1
    for length in shape:
        if length < 0:
            raise GraphError(f"{what} has the shape {tuple(shape)}")
        size *= int(length)
    if size > LARGEST_RESULT:
        raise GraphError(
            f"{what} has the shape {tuple(shape)}, {size} numbers; at most {LARGEST_RESULT} are "
            "made because a file says so"
        )
    return size


def integers(value: Tensor | None) -> list[int] | None:
    """A tensor of sizes, axes or indices as Python integers; None stays."""
    return None if value is None else [int(v) for v in value.reshape(-1).tolist()]
