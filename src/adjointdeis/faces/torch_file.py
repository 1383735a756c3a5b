r"""Reading files of ``torch.save`` without running anything that is pickled inside.

A pickle is a program: it may name any function and call it. ``torch.load(weights_only=True)``
refuses what it does not know, which includes the callback classes that old Lightning checkpoints
carry, the official diffusion autoencoder's among them. The reader here never imports a name that
stands in a file. Every name falls in one of three classes:

===========  =====================================================================================
rebuilt      ``torch._utils._rebuild_tensor[_v2]`` and ``_rebuild_parameter``, torch storages and
             dtypes, ``torch.Size``, ``torch.device``, ``collections.OrderedDict``: reimplemented
             here, with bounds checked against the file
inert        classes of trainers and plain data types (:data:`INERT`): replaced by an empty object
             that keeps nothing and does nothing
refused      everything else: an error names it, and nothing of it was imported or called
===========  =====================================================================================

Both formats of ``torch.save`` are read: the zip archive and the older stream of pickles. Before
either is opened, :mod:`adjointdeis.faces.archive_limits` refuses what would take more memory or
time than the size of the file explains.

References:
    | pickle: Restricting Globals
    | https://docs.python.org/3/library/pickle.html#restricting-globals
    | torch.load
    | https://pytorch.org/docs/stable/generated/torch.load.html
"""

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from adjointdeis.faces.archive_limits import LimitError, check_torch_file

INERT = (
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "_codecs.encode",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pytorch_lightning",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in (
            *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"),
            *("list", "object", "range", "set", "slice", "str", "tuple"),
        )
    ),
)
"""Names, and packages with all that is in them, that a file may mention to no effect."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, unsafe, or not of the network it should be."""


def read_torch_file(path: str | os.PathLike, inert: Collection[str] = ()) -> Any:
    """Object of a ``torch.save`` file, on the CPU, with trainer classes replaced by nothing.

    ``torch.load(weights_only=True)`` of torch 2.6 or later reads what it can; the reader of this
    module the rest.

    Args:
        path: The file.
        inert: Further names or packages to treat as inert. That is safe, whatever they are:
            they are not imported. It only says that the file is expected to mention them.

    Raises:
        CheckpointError: The file is missing, cut short, not of ``torch.save``, asks for more
            memory or time than a checkpoint needs, or mentions a name that is neither rebuilt
            nor inert.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is missing, or no regular file")
    _check_limits(path)
    # Before 2.6 a file can make torch.load run code in spite of weights_only (CVE-2025-32434).
    if torch.__version__ >= "2.6":
        try:
            with warnings.catch_warnings():
                # It warns of pickle protocols that the reader below then reads.
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
        except Exception:
            # Callback classes, or damage of any kind: the reader below tells which, and names it.
            pass
    return read_without_executing(path, inert)


def read_without_executing(path: str | os.PathLike, inert: Collection[str] = ()) -> Any:
    """As :func:`read_torch_file`, by the reader of this module alone."""
    path = Path(path)
    allowed = (*INERT, *inert)
    _check_limits(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path, allowed)
        return _read_legacy(path, allowed)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    except Exception as error:
        # A pickle that was cut or made by hand can fail in any way an unpickler can.
        raise CheckpointError(
            f"checkpoint {path} is not a complete file of torch.save "
            f"({type(error).__name__}: {error}); download it again"
        ) from error


def _check_limits(path: Path) -> None:
    try:
        check_torch_file(path)
    except LimitError as error:
        raise CheckpointError(f"checkpoint {path}: {error}; nothing of it was loaded") from error
    # A directory of an archive that lies brings about whatever its decoding does.
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} is not a complete file of torch.save "
            f"({type(error).__name__}: {error}); download it again"
        ) from error


class Inert:
    """What stands for an object of a class that was not loaded: it keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Drops an item of what was a list."""

    def extend(self, items: Any) -> None:
        """Drops items of what was a list."""

    def add(self, item: Any) -> None:
        """Drops an item of what was a set."""


class _Rebuild:
    """A rebuilding function that a pickle's BUILD instruction cannot alter."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise CheckpointError(f"the pickle tries to alter {name} of a rebuilding function")

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError("the pickle tries to alter a rebuilding function")


class _Storage:
    """Bytes of a storage and the dtype that its tensors have."""

    __slots__ = ("dtype", "untyped")

    def __init__(self, untyped: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.untyped, self.dtype = untyped, dtype

    def fill(self, data: bytes) -> None:
        """Copies raw bytes in."""
        if data:
            view = torch.empty(0, dtype=torch.uint8).set_(self.untyped, 0, (len(data),), (1,))
            view.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *gradient_metadata: Any
) -> Tensor:
    size, stride = tuple(size), tuple(stride)
    whole = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
        raise CheckpointError("a tensor has an invalid offset, size or stride")
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        held = storage.untyped.nbytes() // storage.dtype.itemsize
        if last >= held:
            raise CheckpointError(
                f"a tensor of size {size} reaches element {last} of a storage with {held}"
            )
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped, offset, size, stride)


def _rebuild_parameter(data: Any, *gradient_metadata: Any) -> Any:
    return data


def _rebuild_device(*place: Any) -> str:
    if not all(isinstance(part, str | int) for part in place):
        raise CheckpointError("a device is neither a name nor a number")
    return ":".join(map(str, place))


class _Unpickler(pickle.Unpickler):
    """Resolves names by the table above; imports nothing."""

    def __init__(
        self, file: BinaryIO, allowed: Collection[str], storage: Callable[[tuple], _Storage]
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._allowed, self._storage = allowed, storage
        self._known: dict[str, Any] = {
            "torch._utils._rebuild_tensor": _Rebuild(_rebuild_tensor),
            "torch._utils._rebuild_tensor_v2": _Rebuild(_rebuild_tensor),
            "torch._utils._rebuild_parameter": _Rebuild(_rebuild_parameter),
            "torch.Size": torch.Size,
            "torch.device": _Rebuild(_rebuild_device),
            "collections.OrderedDict": OrderedDict,
        }
        for name, dtype in _STORAGES.items():
            # Markers, compared by identity in persistent_load.
            self._known[f"torch.{name}"] = self._known[f"torch.storage.{name}"] = dtype
        for dtype in {*_STORAGES.values(), torch.complex64, torch.complex128}:
            self._known[str(dtype)] = dtype

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in self._known:
            return self._known[name]
        if any(name == entry or name.startswith(entry + ".") for entry in self._allowed):
            return type(global_name, (Inert,), {"__module__": f"inert.{module_name}"})
        storage = module_name in ("torch", "torch.storage") and global_name.endswith("Storage")
        if storage or name.startswith("torch._utils._rebuild_"):
            raise CheckpointError(
                f"it holds a tensor of a kind that no network here has ({name}: sparse, quantised, "
                "complex, of 8 bits, or without its numbers); save dense tensors of 16 bits or more"
            )
        raise CheckpointError(
            f"refused: its pickle names {name}, which weights do not need; nothing of the file was "
            "executed. Do not load it by other means. If it is the official file, and the name is "
            f"a plain class of its training code, pass --inert {module_name}: that imports nothing"
        )

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise CheckpointError("its pickle has an unknown persistent id")
        if not isinstance(pid[1], torch.dtype) or not isinstance(pid[4], int) or pid[4] < 0:
            raise CheckpointError("its pickle has a storage of no known type or size")
        return self._storage(pid)


def _read_zip(path: Path, allowed: Collection[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError("it is a zip archive, but torch.save did not write it")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist():
            order = archive.read(root + "byteorder").decode()
            if order != "little":
                raise CheckpointError(f"its numbers are {order}-endian; little was expected")
        storages: dict[str, _Storage] = {}

        def storage(pid: tuple) -> _Storage:
            _, dtype, key, _, count = pid[:5]
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.file_size != count * dtype.itemsize:
                    raise CheckpointError(
                        f"storage {key} has {entry.file_size} bytes, "
                        f"expected {count * dtype.itemsize}"
                    )
                data = archive.read(entry)
                storages[key] = _Storage(torch.UntypedStorage(len(data)), dtype)
                storages[key].fill(data)
            # Tensors of two dtypes may share bytes.
            return _Storage(storages[key].untyped, dtype)

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), allowed, storage).load()


def _read_legacy(path: Path, allowed: Collection[str]) -> Any:
    left = path.stat().st_size
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        nonlocal left
        _, dtype, key, _, count, *view = pid
        if any(view):
            raise CheckpointError(f"storage {key} is a view of another, which is not supported")
        if key not in storages:
            # The bytes follow the pickle. A file cannot hold more than its own size.
            left -= count * dtype.itemsize
            if left < 0:
                raise CheckpointError(f"storage {key} of {count} elements exceeds the file")
            storages[key] = _Storage(torch.UntypedStorage(count * dtype.itemsize), dtype)
        return storages[key]

    with path.open("rb") as file:

        def load() -> Any:
            return _Unpickler(file, allowed, storage).load()

        if load() != _LEGACY_MAGIC:
            raise CheckpointError("it is a pickle, but torch.save did not write it")
        if load() != _LEGACY_PROTOCOL:
            raise CheckpointError(f"its protocol is not {_LEGACY_PROTOCOL}")
        if not load().get("little_endian", True):
            raise CheckpointError("its numbers are big-endian; little was expected")
        result = load()
        for key in load():
            target = storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            size = target.untyped.nbytes()
            data = file.read(size)
            if count * target.dtype.itemsize != size or len(data) != size:
                raise CheckpointError(f"storage {key} is cut short: it needs {size} bytes")
            target.fill(data)
    return result
