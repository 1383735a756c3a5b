"""Any face recogniser in an ONNX file, with its input spelt out rather than guessed."""

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from adjointdeis.extras import load
from adjointdeis.faces.graphs.onnx_file import ONE_FILE
from adjointdeis.faces.recogniser import Metric, acquired, require_embedding, similarity
from adjointdeis.faces.recognisers.crop import FaceCrop, InputSpec
from adjointdeis.faces.weights import WeightsError, fingerprint

_PIXELS = {"float": np.float32, "float16": np.float16, "double": np.float64, "uint8": np.uint8}
"""numpy's type by onnxruntime's name of what a network takes."""
# How a weight in another file begins: the first key of TensorProto.external_data.
_EXTERNAL = b"\n\x08location\x12"


@dataclass(frozen=True, kw_only=True)
class OnnxSpec(InputSpec):
    """What an ONNX file does not say about itself and a threshold depends on.

    Args:
        alignment: Label of the alignment that the images have (see `adjointdeis.faces.alignment`).
        sha256: Fingerprint of the file.
        origin: Where the file comes from.
        score_type: "similarity" compares by cosine, "dissimilarity" by Euclidean distance.
        output: Index of the embedding among the outputs.
        resize: Resize images of another side, bilinearly; otherwise they are an error, since a
            resized crop is another alignment.
        antialias: Low-pass filter before reducing.
        name, size, colours, mean, std, licence, box, layout, label: As in
            :class:`~adjointdeis.faces.recognisers.crop.InputSpec`.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        **InputSpec.CHOICES,
        "score_type": ("similarity", "dissimilarity"),
    }

    alignment: str
    sha256: str
    origin: str = "unknown"
    score_type: Literal["similarity", "dissimilarity"] = "similarity"
    output: int = 0
    resize: bool = False
    antialias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.output, Integral) and not isinstance(self.output, bool)
        if not whole or self.output < 0:
            raise ValueError(
                f"output={self.output!r} of {self.name}: expected the number of an output, from 0"
            )

    @property
    def crop(self) -> FaceCrop:
        """From an image to the network's pixels, before mean and std."""
        return FaceCrop(self.size, self.box, self.colours == "bgr", self.antialias)


class OnnxRecogniser:
    """Black-box recogniser over aligned images, run by onnxruntime on the CPU.

    Satisfies :class:`adjointdeis.faces.recogniser.Recogniser`. An image whose embedding is not
    finite counts as a failure to acquire. Pixels are rounded to the type that the file takes: of
    uint8 to whole levels, where the spec's mean is 0 and its std 1.

    Args:
        path: The ``.onnx`` file.
        spec: What the file does not say.
        batch_size: Images per run, where the file leaves the batch open.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        WeightsError: The file is missing, altered, unreadable, or contradicts the spec.
    """

    white_box = False

    def __init__(self, path: str | Path, spec: OnnxSpec, batch_size: int = 32) -> None:
        self.path, self.spec = Path(path), spec
        self.name, self.alignment, self.licence = spec.name, spec.alignment, spec.licence
        self.label = spec.label or spec.name
        self.metric: Metric = "cosine" if spec.score_type == "similarity" else "euclidean"
        # What `compare` returns, 1 - distance, is a similarity whatever the native score is.
        self.score_type: Literal["similarity", "dissimilarity"] = "similarity"
        remedy = f"it comes from: {spec.origin}; its licence: {spec.licence}"
        if not self.path.is_file():
            raise WeightsError(f"recogniser file {self.path} is missing; {remedy}")
        self.fingerprint = fingerprint(self.path)
        if self.fingerprint != spec.sha256.lower():
            raise WeightsError(
                f"recogniser file {self.path} has SHA-256 {self.fingerprint}, the spec of "
                f"{spec.name} says {spec.sha256}: it was altered or is another model; {remedy}"
            )
        data = self.path.read_bytes()
        if _EXTERNAL in data:
            raise WeightsError(f"recogniser file {self.path} has weights {ONE_FILE}")
        runtime = _import_onnxruntime()
        try:
            self._session = runtime.InferenceSession(
                str(self.path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise WeightsError(
                f"recogniser file {self.path} cannot be run ({error}); {remedy}"
            ) from error
        self._input, self._pixels, batch = self._check_interface()
        self._batch_size = batch or batch_size
        # Its scale is that of all images of a run: each would change with its company.
        self._together = 1 if b"DynamicQuantize" in data else self._batch_size
        self._output = self._session.get_outputs()[spec.output].name
        blank = np.zeros((1, spec.size, spec.size, 3), np.uint8)
        self.embedding_dim = self._run(blank).shape[1]
        require_embedding(self, spec.size, f"recogniser file {self.path}")

    @classmethod
    def from_file(
        cls,
        file: str | Path,
        name: str | None = None,
        sha256: str | None = None,
        alignment: str | None = None,
        batch_size: int = 32,
        **stated: Any,
    ) -> "OnnxRecogniser":
        """A recogniser of a file, as a configuration describes it.

        Args:
            file: The ``.onnx`` file.
            name: As in :class:`OnnxSpec`; the file's stem if None.
            sha256: As there; None takes the file as it is, and result.json records which it was.
            alignment: As there; None says what is fed: the whole image, or its `box`, resized.
            batch_size: Images per run.
            stated: Everything else of :class:`OnnxSpec`.

        Raises:
            MissingPackageError, WeightsError, ValueError: As the class and its spec.
        """
        path = Path(file)
        if not path.is_file():
            raise WeightsError(f"recogniser file {path} is missing; give an .onnx file")
        crop = {key: stated[key] for key in ("size", "box", "antialias") if key in stated}
        spec = OnnxSpec(
            name=name or path.stem,
            sha256=sha256 or fingerprint(path),
            alignment=alignment or FaceCrop(**crop, bgr=stated.get("colours") == "bgr").label,
            **stated,
        )
        return cls(path, spec, batch_size)

    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) float32 of aligned images (B, H, W, 3) uint8, (B) acquired flags.

        Raises:
            ValueError: The images are not uint8 RGB, or have another side while the spec forbids
                resizing.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images: expected (B, H, W, 3) uint8 RGB, got {images.shape} of {images.dtype}"
            )
        size = self.spec.size
        if images.shape[1:3] != (size, size) and not self.spec.resize:
            raise ValueError(
                f"{self.name} takes {self.alignment} images of {size} x {size} pixels, got "
                f"{images.shape[2]} x {images.shape[1]}; align them first, or set resize=True in "
                "its spec if a resized image is what its alignment label means"
            )
        embeddings = np.empty((len(images), self.embedding_dim), np.float32)
        for start in range(0, len(images), self._together):
            stop = start + self._together
            embeddings[start:stop] = self._run(images[start:stop])
        return acquired(embeddings, self.metric)

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Cosine, or 1 - Euclidean distance for a dissimilarity; broadcast over leading axes."""
        return similarity(self.metric, e1, e2)

    def _run(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
        blob = self.spec.crop(pixels).numpy()
        mean, std = (
            np.array(v, np.float32)[:, None, None] for v in (self.spec.mean, self.spec.std)
        )
        blob = (blob - mean) / std
        if self.spec.layout == "nhwc":
            blob = blob.transpose(0, 2, 3, 1)
        if self._pixels is np.uint8:
            blob = blob.round()
        # A file exported with a fixed batch gets exactly that many; the copies are cut off again.
        short = (self._batch_size if self._fixed else len(blob)) - len(blob)
        blob = np.concatenate([blob, np.repeat(blob[-1:], short, axis=0)])
        blob = np.ascontiguousarray(blob, self._pixels)
        try:
            (output,) = self._session.run([self._output], {self._input: blob})
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise WeightsError(
                f"recogniser file {self.path} cannot be run on {blob.shape} ({error}); check size "
                "and layout"
            ) from error
        output = np.asarray(output, np.float32)
        if output.shape[0] != len(blob) or output.size % len(blob):
            raise WeightsError(
                f"recogniser file {self.path}: output {self.spec.output} has shape {output.shape} "
                f"for {len(blob)} images; expected ({len(blob)}, D): choose another output"
            )
        return output.reshape(len(blob), -1)[: len(images)]

    def _check_interface(self) -> tuple[str, type, int]:
        """Name and type of the input, and its fixed batch or 0, after comparison with the spec."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        kinds = [entry.type.removeprefix("tensor(").removesuffix(")") for entry in inputs]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or kinds[0] not in _PIXELS:
            found = [f"{entry.name} {entry.type} {entry.shape}" for entry in inputs]
            raise WeightsError(
                f"recogniser file {self.path} has the inputs {found}; expected one image with four "
                f"axes of {', '.join(_PIXELS)}: export it so, or put a Cast before its first "
                "operator"
            )
        if kinds == ["uint8"] and (any(self.spec.mean) or {*self.spec.std} != {1.0}):
            raise WeightsError(
                f"recogniser file {self.path} takes uint8, pixels as they are, and brings mean and "
                f"std itself: state mean: [0, 0, 0] and std: [1, 1, 1] of {self.name}"
            )
        side, shape = self.spec.size, inputs[0].shape
        wanted = (3, side, side) if self.spec.layout == "nchw" else (side, side, 3)
        if any(isinstance(a, int) and a != b for a, b in zip(shape[1:], wanted, strict=True)):
            raise WeightsError(
                f"recogniser file {self.path} takes {shape}, the spec of {self.name} says "
                f"(B, {', '.join(map(str, wanted))}); correct size or layout"
            )
        if self.spec.output >= len(outputs):
            raise WeightsError(
                f"recogniser file {self.path} has {len(outputs)} outputs, the spec of {self.name} "
                f"asks for output {self.spec.output}"
            )
        output = outputs[self.spec.output]
        if not any(kind in output.type for kind in ("float", "double")):
            raise WeightsError(
                f"recogniser file {self.path}: output {self.spec.output} is of {output.type}, "
                "numbers without their scale and zero point; choose an output of floating-point "
                "numbers, or put a DequantizeLinear behind it"
            )
        batch = shape[0] if isinstance(shape[0], int) else 0
        self._fixed = batch > 0
        return inputs[0].name, _PIXELS[kinds[0]], batch


def _import_onnxruntime() -> Any:
    """The `onnxruntime` module, its usage reports off.

    Raises:
        MissingPackageError: It is not installed; the message says how to install it.
    """
    onnxruntime = load("onnxruntime", "ONNX recognisers")
    onnxruntime.disable_telemetry_events()
    return onnxruntime
