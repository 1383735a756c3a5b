"""Network weights as safetensors files that describe themselves.

The header names the architecture and its numbers, so that a file alone is enough to rebuild the
network; a SHA-256 recorded beside it tells a damaged or altered file from a good one before any
tensor is read.

References:
    | safetensors: simple, safe way to store and distribute tensors
    | https://github.com/huggingface/safetensors
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from adjointdeis.faces.networks import (
    VGG16,
    AdaFace,
    AdaFaceConfig,
    DiffAE,
    DiffAEConfig,
    IResNet,
    IResNetConfig,
    MorphNet,
    MorphNetConfig,
    Network,
    StyleGAN2,
    StyleGAN2Config,
    VGG16Config,
)
from adjointdeis.files import write_atomically

_ARCHITECTURES: dict[str, Callable[[dict], Network]] = {
    "AdaFace": lambda numbers: AdaFace(AdaFaceConfig(**numbers)),
    "DiffAE": lambda numbers: DiffAE(DiffAEConfig(**numbers)),
    "IResNet": lambda numbers: IResNet(IResNetConfig(**numbers)),
    "MorphNet": lambda numbers: MorphNet(MorphNetConfig(**numbers)),
    "StyleGAN2": lambda numbers: StyleGAN2(StyleGAN2Config(**numbers)),
    "VGG16": lambda numbers: VGG16(VGG16Config(**numbers)),
}


class WeightsError(RuntimeError):
    """A weight file is missing, damaged, altered, or not of the network it should be."""


def fingerprint(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_network(
    network: Network,
    path: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> str:
    """Writes a network atomically and returns the file's SHA-256.

    Args:
        network: The network; its ``config`` goes into the header.
        path: Destination, ending in ``.safetensors``.
        metadata: JSON values added to the header (recipe, seed, cost).
        dtype: Stored type of the floating-point weights. Half precision halves the file and moves
            embeddings by less than 1e-4 in cosine.
    """
    path = Path(path)
    header = {
        "format": "pt",
        "architecture": type(network).__name__,
        "config": json.dumps(asdict(network.config)),
        **{key: json.dumps(value) for key, value in (metadata or {}).items()},
    }
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    data = _in_order(save(tensors, metadata=header))
    write_atomically(path, data)
    return fingerprint(path)


def _in_order(data: bytes) -> bytes:
    """A safetensors file whose header has its metadata in alphabetical order.

    safetensors writes them in another order every time, and the same network would have another
    fingerprint after every run.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_network(
    path: str | os.PathLike, sha256: str | None = None, *, remedy: str = "restore the file"
) -> Network:
    """Builds the network that a weight file describes, strictly, in float32 and evaluation mode.

    Args:
        path: A file written by :func:`save_network`.
        sha256: Expected fingerprint; None accepts any.
        remedy: What the user should do about a bad file, appended to the error.

    Raises:
        WeightsError: The file is missing, truncated, altered, of an unknown architecture, its
            tensors are not exactly the network's, or a weight is of another type than it must
            be, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weight file {path} is missing; {remedy}")
    if sha256 is not None and (found := fingerprint(path)) != sha256:
        raise WeightsError(
            f"weight file {path} has SHA-256 {found[:16]}..., expected {sha256[:16]}...: it was "
            f"altered or cut short; {remedy}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            build = _described(path, header, shapes, remedy)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weight file {path} cannot be read ({error}); {remedy}") from error
    network = build()
    wanted = network.state_dict()
    if strange := [f"{n} ({why})" for n, v in tensors.items() if (why := no_weight(v, wanted[n]))]:
        raise WeightsError(f"weight file {path} has no weights in {strange[:3]}; {remedy}")
    if broken := [n for n, v in tensors.items() if not bool(torch.isfinite(v).all())]:
        raise WeightsError(
            f"weight file {path} has weights that are not finite: {broken[:3]}; {remedy}"
        )
    network.load_state_dict(
        {name: value.to(wanted[name].dtype) for name, value in tensors.items()}, strict=True
    )
    return network.eval()


_FLOATS = "floating point of 16 bits or more"


def no_weight(value: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot be a network's weight, whatever its numbers are; empty if it can.

    Args:
        value: The tensor of a file.
        wanted: The network's own, also on the meta device.
    """
    if value.layout is not torch.strided:
        return f"{str(value.layout).removeprefix('torch.')}, not dense"
    if value.is_quantized:
        return "quantised"
    if value.is_meta:
        return "without its numbers, on the meta device"
    if not value.numel():
        return "empty"
    # A counter of batches may be a float: some programs keep all weights in one flat buffer.
    known = (_FLOATS,) if wanted.is_floating_point() else (_FLOATS, "whole numbers")
    if _sort(value.dtype) not in known:
        return f"{str(value.dtype).removeprefix('torch.')} for {_sort(wanted.dtype)}"
    return ""


def _sort(dtype: torch.dtype) -> str:
    """What kind of numbers a type holds; of floating point, those that networks compute with."""
    if dtype.is_floating_point and dtype.itemsize > 1:
        return _FLOATS
    whole = not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool
    return "whole numbers" if whole else str(dtype).removeprefix("torch.")


def _described(
    path: Path, header: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], remedy: str
) -> Callable[[], Network]:
    """What builds the network of a header, known to have exactly the tensors of the file.

    It was built once without memory, on the meta device: a header may describe a network of any
    size, and only one that the file fills is given memory.
    """
    architecture = header.get("architecture")
    if architecture not in _ARCHITECTURES:
        raise WeightsError(
            f"weight file {path} names the architecture {architecture!r}; known are "
            f"{', '.join(sorted(_ARCHITECTURES))}; {remedy}"
        )
    try:
        numbers = json.loads(header["config"])
        with torch.device("meta"), _at_most(len(shapes)):
            wanted = _ARCHITECTURES[architecture](numbers).state_dict()
    # Networks check their numbers only as far as mistakes go; a hostile header goes further.
    except Exception as error:
        raise WeightsError(
            f"weight file {path} does not describe its {architecture} "
            f"({type(error).__name__}: {str(error)[:200]}); {remedy}"
        ) from error
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    wrong = [
        f"{name} {shapes[name]} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != tuple(wanted[name].shape)
    ]
    if missing or extra or wrong:
        raise WeightsError(
            f"weight file {path} does not fit {architecture}: missing {missing[:3]}, "
            f"unexpected {extra[:3]}, wrong shape {wrong[:3]}; {remedy}"
        )
    return lambda: _ARCHITECTURES[architecture](numbers)


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """While a network is built, counts its parts; a file of few tensors describes few parts.

    The description of a network stands in its file and may be hostile: millions of layers would
    take all memory before the tensors are compared.

    Raises:
        ValueError: Within the block, at the first part too many.
    """
    left = 100 + 20 * tensors

    def count(*registered: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it describes far more layers than the file's {tensors} tensors")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Header of a weight file: architecture, config and recipe.

    Raises:
        WeightsError: Not a safetensors file; names it.
    """
    if not Path(path).is_file():  # a pipe would be waited for, for ever
        raise WeightsError(f"weight file {path} is missing; restore the file")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"weight file {path} cannot be read ({error}); restore the file"
        ) from error
    for key, value in header.items():
        # A value that is no JSON, or none of ours (too deep, a number too long), stays as text.
        with suppress(ValueError, RecursionError):
            header[key] = json.loads(value)
    return header
