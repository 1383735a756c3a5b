"""A recogniser in a graph file (ONNX, TensorFlow Lite, TensorFlow.js) as a white box."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from adjointdeis.faces.graphs import Graph, load_onnx, load_tfjs, load_tflite
from adjointdeis.faces.recogniser import Metric, require_embedding
from adjointdeis.faces.recognisers.crop import FaceCrop, InputSpec
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.faces.weights import WeightsError

Format = Literal["onnx", "tflite", "tfjs"]


@dataclass(frozen=True, kw_only=True)
class GraphSpec(InputSpec):
    """What a graph file does not say about itself and its scores depend on.

    Args:
        format: Kind of the file.
        sha256: Fingerprint of every file by name, the graph first.
        metric: How embeddings are compared.
        outputs: Name of the value that is the embedding, alone; None takes the file's first output.
        training_data: What the network was trained on, as far as its source says.
        name, size, colours, mean, std, licence, box, layout, label: As in
            :class:`~adjointdeis.faces.recognisers.crop.InputSpec`.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        **InputSpec.CHOICES,
        "format": get_args(Format),
        "metric": get_args(Metric),
    }

    format: Format
    sha256: Mapping[str, str]
    metric: Metric = "cosine"
    outputs: tuple[str, ...] | None = None
    training_data: str = "unstated"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.sha256
        if not given or not isinstance(given, Mapping) or not all(map(_is_text, given.values())):
            raise ValueError(f"sha256 of {self.name} must name its files and their fingerprints")
        digests = {file: digest.lower() for file, digest in given.items()}
        object.__setattr__(self, "sha256", digests)
        if self.outputs is not None:
            names = [self.outputs] if isinstance(self.outputs, str) else list(self.outputs)
            if len(names) != 1 or not _is_text(names[0]):
                raise ValueError(f"outputs={names} of {self.name}: expected the embedding's name")
            object.__setattr__(self, "outputs", tuple(names))

    @classmethod
    def from_mapping(cls, name: str, entry: Mapping[str, Any]) -> "GraphSpec":
        """From an entry of a manifest, or the content of a spec file.

        Raises:
            ValueError: A key is missing, unknown or wrong; the message names it.
        """
        known = [each.name for each in fields(cls)]
        given: dict[str, Any] = {k: v for k, v in entry.items() if k in known}
        if unknown := [key for key in entry if key not in given and key not in _OF_PACKAGES]:
            raise ValueError(
                f"recogniser {name}: unknown key {unknown[0]!r}; expected some of "
                f"{', '.join(known)}"
            )
        wanted = ("format", "sha256", "size", "colours", "mean", "std", "licence")
        missing = [key for key in wanted if key not in given]
        if missing:
            raise ValueError(f"recogniser {name}: its description lacks {', '.join(missing)}")
        return cls(**(given | {"name": given.get("name", name)}))


# Of a manifest's entry: where the files come from.
_OF_PACKAGES = ("kind", "package", "version", "registry", "folder", "parameters", "note")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class PixelNetwork(nn.Module):
    """A graph behind the arithmetic that its input needs.

    forward(x): (B, 3, S, S) in [-1, 1], channels in the network's order; returns (B, D).
    """

    def __init__(self, graph: Graph, spec: GraphSpec) -> None:
        super().__init__()
        self.graph, self.layout = graph, spec.layout
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, D)."""
        pixels = ((x + 1) * 127.5 - self.mean) / self.std
        if self.layout == "nhwc":
            pixels = pixels.permute(0, 2, 3, 1)
        # A file of half precision computes in it; embeddings are compared in single.
        half = self.graph.dtypes is not None and self.graph.dtypes[0] == torch.float16
        found = self.graph(pixels.half() if half else pixels)
        embedding = found[0] if isinstance(found, tuple) else found
        if not embedding.is_floating_point():
            raise WeightsError(
                f"recogniser file {self.graph.source}: the embedding is of {embedding.dtype}, "
                "numbers without their scale and zero point; choose an output of floating-point "
                "numbers"
            )
        return embedding.to(x.dtype).flatten(1)


def graph_recogniser(spec: GraphSpec, folder: str | Path) -> NetworkRecogniser:
    """The recogniser, differentiable, from files whose fingerprints are checked.

    Args:
        spec: What the files do not say.
        folder: Where the files lie.

    Raises:
        MissingPackageError: The package that reads the format is not installed.
        GraphError: A file is missing, altered, damaged, or holds an unsupported operator.
        WeightsError: The network does not take what the spec says.
    """
    file, digest = next(iter(spec.sha256.items()))
    path = Path(folder) / file
    if spec.format == "onnx":
        graph = load_onnx(path, spec.outputs, digest)
    elif spec.format == "tflite":
        graph = load_tflite(path, digest, spec.outputs)
    else:
        graph = load_tfjs(path, spec.outputs, spec.sha256)
    shape = (3, spec.size, spec.size) if spec.layout == "nchw" else (spec.size, spec.size, 3)
    taken = (graph.shapes or (shape,))[0]
    if (
        len(graph.inputs) != 1
        or len(taken) != 3
        or any(n is not None and n != m for n, m in zip(taken, shape, strict=True))
    ):
        raise WeightsError(
            f"recogniser file {path} takes {len(graph.inputs)} inputs, the first {taken} after the "
            f"batch; the description of {spec.name} says one of {shape}: correct size or layout"
        )
    if graph.dtypes and graph.dtypes[0] not in (torch.float32, torch.float16):
        raise WeightsError(
            f"recogniser file {path} takes pixels of {graph.dtypes[0]}; expected float32 or "
            "float16, for whole numbers have no gradient: export it so; to judge alone, an ONNX "
            "file of uint8 runs as judges=onnx judges.onnx.file=..."
        )
    network = PixelNetwork(graph, spec).eval()
    with torch.no_grad():
        dim = network(torch.zeros(1, 3, spec.size, spec.size)).shape[1]
    found = NetworkRecogniser(
        name=spec.name,
        label=spec.label or spec.name,
        network=network,
        crop=FaceCrop(spec.size, spec.box, spec.colours == "bgr"),
        fingerprint=digest if len(spec.sha256) == 1 else list(spec.sha256.values())[-1],
        licence=f"{spec.licence}; training data: {spec.training_data}",
        metric=spec.metric,
        dim=dim,
        batch_size=32,
    )
    require_embedding(found, spec.size, f"recogniser file {path}")
    return found
