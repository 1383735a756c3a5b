r"""Conversion of official checkpoints to safetensors files that describe themselves.

``python -m adjointdeis.faces.checkpoints --kind adaface adaface_ir101_ms1mv2.ckpt out.safetensors``

The source is read without executing what is pickled in it (see
:mod:`adjointdeis.faces.torch_file` for what is allowed), its keys must be exactly the network's,
and the result records where it came from.

==============  =================================================================================
diffae          ``last.ckpt`` of ffhq256_autoenc: the averaged weights ``ema_model.*``; the raw
                ``model.*`` and the sample noise ``x_T`` are left behind
arcface         ``backbone.pth`` of an arcface_torch r100 folder, no prefix, RGB
elasticface     ``295672backbone.pth`` of any of the four ElasticFace folders, no prefix, RGB
adaface         ``adaface_ir101_*.ckpt``: ``model.*``; the classification head ``head.*`` is left
                behind; the network takes **BGR**
stylegan2       state dict of ``G_ema`` of a StyleGAN2 at 1024x1024, see below
vgg16           torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES`` (the original weights): the
                layers up to conv3_3; the others, classifier included, are left behind
==============  =================================================================================

The official StyleGAN2 files (``ffhq.pkl``) are not weights but programs: they carry the source of
the network and run it when they are read. They are refused. Whoever trusts one reads it in the
official environment, once, and saves what it holds; in a checkout of stylegan2-ada-pytorch::

    import legacy, torch
    with open("ffhq.pkl", "rb") as file:
        generator = legacy.load_network_pkl(file)["G_ema"]
    torch.save(generator.state_dict(), "stylegan2_ffhq.pt")

References:
    | Diffusion Autoencoders (konpatp/diffae)
    | https://github.com/konpatp/diffae
    | InsightFace arcface_torch
    | https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch
    | ElasticFace
    | https://github.com/fdbtrs/ElasticFace
    | AdaFace
    | https://github.com/mk-minchul/AdaFace
    | StyleGAN2-ADA, PyTorch implementation
    | https://github.com/NVlabs/stylegan2-ada-pytorch
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjointdeis.faces.networks import (
    VGG16,
    AdaFace,
    AdaFaceConfig,
    DiffAE,
    DiffAEConfig,
    IResNet,
    IResNetConfig,
    Network,
    StyleGAN2,
    StyleGAN2Config,
)
from adjointdeis.faces.torch_file import INERT, CheckpointError, read_torch_file
from adjointdeis.faces.weights import fingerprint, no_weight, save_network
from adjointdeis.texts import printable


@dataclass(frozen=True)
class CheckpointKind:
    """Layout of one official checkpoint.

    Args:
        network: Builds the network with its official numbers.
        container: Key of the file's dictionary that holds the state dict; None if it is the file.
        prefix: What the wanted keys begin with; it is removed.
        dropped: Beginnings of keys that are left behind. Any other key is an error.
        licence: Licence of the weights, one line.
        source: Where the user obtains the file.
        colours: Order of the input channels that the weights expect.
        advice: What to do when the official file itself cannot be read; empty if it can.
    """

    network: Callable[[], Network]
    container: str | None
    prefix: str
    dropped: tuple[str, ...]
    licence: str
    source: str
    colours: str
    advice: str = ""


KINDS: Mapping[str, CheckpointKind] = {
    "diffae": CheckpointKind(
        network=lambda: DiffAE(DiffAEConfig.ffhq256()),
        container="state_dict",
        prefix="ema_model.",
        dropped=("model.", "x_T"),
        licence="none stated for the weights (code MIT); FFHQ is CC BY-NC-SA 4.0: non-commercial",
        source="https://github.com/konpatp/diffae, checkpoints/ffhq256_autoenc/last.ckpt",
        colours="rgb",
    ),
    "arcface": CheckpointKind(
        network=lambda: IResNet(IResNetConfig.r100()),
        container=None,
        prefix="",
        dropped=(),
        licence="non-commercial research only (insightface model zoo)",
        source="https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch, "
        "<model>/backbone.pth",
        colours="rgb",
    ),
    "elasticface": CheckpointKind(
        network=lambda: IResNet(IResNetConfig.r100()),
        container=None,
        prefix="",
        dropped=(),
        licence="CC BY-NC-SA 4.0",
        source="https://github.com/fdbtrs/ElasticFace, 295672backbone.pth",
        colours="rgb",
    ),
    "adaface": CheckpointKind(
        network=lambda: AdaFace(AdaFaceConfig.ir101()),
        container="state_dict",
        prefix="model.",
        dropped=("head.",),
        licence="MIT (code); weights from web-scraped training sets: research use",
        source="https://github.com/mk-minchul/AdaFace, adaface_ir101_<set>.ckpt",
        colours="bgr",
    ),
    "stylegan2": CheckpointKind(
        network=lambda: StyleGAN2(StyleGAN2Config.ffhq1024()),
        container=None,
        prefix="",
        dropped=(),
        licence="NVIDIA Source Code License, non-commercial; FFHQ is CC BY-NC-SA 4.0",
        source="https://github.com/NVlabs/stylegan2-ada-pytorch, G_ema of ffhq.pkl, saved as a "
        "state dict",
        colours="rgb",
        advice="the official .pkl is a program and is not read here: save the state dict of its "
        "G_ema in the official environment (the lines are in the documentation of "
        "adjointdeis.faces.checkpoints) and convert that",
    ),
    "vgg16": CheckpointKind(
        network=VGG16,
        container=None,
        prefix="",
        dropped=("classifier.", *(f"features.{k}." for k in range(16, 31))),
        licence="CC BY 4.0 (VGG, University of Oxford)",
        source="torchvision, VGG16_Weights.IMAGENET1K_FEATURES, vgg16_features-amdegroot-*.pth",
        colours="rgb",
    ),
}


def convert_checkpoint(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    kind: str,
    *,
    network: Network | None = None,
    inert: Collection[str] = (),
) -> str:
    """Converts an official checkpoint and returns the SHA-256 of the file written.

    Args:
        source: The official file.
        destination: Where to write, ending in ``.safetensors``; replaced atomically.
        kind: Entry of :data:`KINDS`.
        network: Another network than the kind's own, of the same layout (tests, fine-tuned sizes).
        inert: Names the source's pickle may mention to no effect, beyond the usual.

    Raises:
        ValueError: The kind or the destination's suffix is unknown.
        CheckpointError: The file is missing, damaged or unsafe; a key is missing, unexpected or of
            another shape; a weight is not finite.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; known are {', '.join(KINDS)}")
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".safetensors":
        raise ValueError(f"destination {destination} must end in .safetensors")
    layout = KINDS[kind]
    try:
        held = read_torch_file(source, inert)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {layout.advice}" if layout.advice else error) from error
    if network is None:
        with torch.device("meta"):
            network = layout.network()
    try:
        tensors, dropped = _select_tensors(held, layout)
        del held
        _check_fit(tensors, network.state_dict())
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint {source} is not a {kind} checkpoint: {error}; expected {layout.source}"
        ) from error
    # Cloned, so that each tensor has its own storage and none is mapped from the source.
    tensors = {
        name: (value.float() if value.is_floating_point() else value).clone()
        for name, value in tensors.items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    provenance = {
        "kind": kind,
        "source": source.name,
        "source_sha256": fingerprint(source),
        "origin": layout.source,
        "licence": layout.licence,
        "colours": layout.colours,
        "dropped": dropped,
    }
    return save_network(network, destination, provenance, dtype=torch.float32)


def _select_tensors(held: Any, layout: CheckpointKind) -> tuple[dict[str, Tensor], int]:
    """Wanted tensors of a checkpoint, prefix removed, and the number of entries left behind.

    Raises:
        CheckpointError: The layout is another one.
    """
    if layout.container is not None:
        if not isinstance(held, Mapping) or layout.container not in held:
            raise CheckpointError(f"it has no entry {layout.container!r}")
        held = held[layout.container]
    if not isinstance(held, Mapping):
        raise CheckpointError(f"it holds a {type(held).__name__}, not a state dict")
    tensors, strangers, dropped = {}, [], 0
    for key, value in held.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            strangers.append(str(key))
        elif key.startswith(layout.dropped):
            dropped += 1
        elif key.startswith(layout.prefix):
            tensors[key.removeprefix(layout.prefix)] = value
        else:
            strangers.append(key)
    if strangers:
        raise CheckpointError(f"unexpected entries {_some(strangers)}")
    if not tensors:
        raise CheckpointError(f"no key begins with {layout.prefix!r}")
    return tensors, dropped


def _check_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compares keys, shapes and types, and looks for weights that are not numbers.

    Raises:
        CheckpointError: Names the keys that are missing, unexpected, of another shape or type
            (sparse, quantised, float8, complex, on the meta device, empty), or not finite.
    """
    strange = {n: no_weight(tensors[n], wanted[n]) for n in wanted if n in tensors}
    faults = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
            for name in wanted
            if name in tensors and tensors[name].shape != wanted[name].shape
        ],
        "no weights": [f"{name} ({why})" for name, why in strange.items() if why],
        "not finite": [
            name
            for name, value in tensors.items()
            if not strange.get(name, "of no type that is wanted")
            and not bool(torch.isfinite(value).all())
        ],
    }
    found = [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]
    if found:
        raise CheckpointError("; ".join(found))


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the conversion; 0 is success, 1 a file that was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m adjointdeis.faces.checkpoints",
        description="Convert an official checkpoint to safetensors, executing nothing of it.",
        epilog="The file may hold tensors, containers and numbers. These it may mention to no "
        f"effect: {', '.join(INERT)}. Any other name is refused.",
    )
    parser.add_argument("--kind", required=True, choices=list(KINDS))
    parser.add_argument(
        "--inert",
        action="append",
        default=[],
        metavar="NAME",
        help="class or package that the file may mention; it is replaced by nothing, not imported",
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    options = parser.parse_args(arguments)
    try:
        sha256 = convert_checkpoint(
            options.source, options.destination, options.kind, inert=options.inert
        )
    except (CheckpointError, ValueError) as error:
        print(printable(error, "\n"), file=sys.stderr)
        return 1
    print(f"{options.destination}  sha256 {sha256}")
    print(f"licence: {KINDS[options.kind].licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
