"""The checkpoints that the paper's experiments need, and what has become of each here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adjointdeis.faces.checkpoints import KINDS
from adjointdeis.faces.weights import WeightsError, fingerprint, read_header


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint that the paper's experiments need.

    Args:
        name: File name in the profile's folder.
        kind: Entry of :data:`adjointdeis.faces.checkpoints.KINDS`.
        use: What it is for.
        source: Which of the published files it is.
        system: Name of the recogniser in score files, or None for another network.
        label: Its name in tables.
    """

    name: str
    kind: str
    use: str
    source: str
    system: str | None = None
    label: str = ""


PAPER: tuple[OfficialFile, ...] = (
    OfficialFile(
        "diffae_ffhq256.safetensors",
        "diffae",
        "generator",
        "ffhq256_autoenc/last.ckpt",
    ),
    OfficialFile(
        "glint360k_cosface_r100.safetensors",
        "arcface",
        # The paper calls it ArcFace; the published Glint360k r100 file was trained with CosFace.
        "identity loss",
        "glint360k_cosface_r100_fp16_0.1/backbone.pth",
        "identity",
        "IResNet-100, Glint360k (CosFace)",
    ),
    OfficialFile(
        "ms1mv3_arcface_r100.safetensors",
        "arcface",
        "evaluation",
        "ms1mv3_arcface_r100_fp16/backbone.pth",
        "arcface",
        "ArcFace",
    ),
    OfficialFile(
        "elasticface_arc_r100.safetensors",
        "elasticface",
        # The paper does not say which of the four ElasticFace files; all have the same name.
        "evaluation",
        "ElasticFace-Arc/295672backbone.pth",
        "elasticface",
        "ElasticFace-Arc",
    ),
    OfficialFile(
        "adaface_ir101_ms1mv2.safetensors",
        "adaface",
        "evaluation",
        "adaface_ir101_ms1mv2.ckpt",
        "adaface",
        "AdaFace",
    ),
    OfficialFile(
        "stylegan2_ffhq1024.safetensors",
        "stylegan2",
        # MIPGAN's own generators were fine-tuned on passport-like photographs and are not public.
        "generator of MIPGAN, if you run it",
        "stylegan2_ffhq.pt, the state dict of G_ema of ffhq.pkl",
    ),
    OfficialFile(
        "vgg16.safetensors",
        "vgg16",
        "features of MIPGAN's perceptual loss",
        "vgg16_features-amdegroot-88682ab5.pth",
    ),
)


def fault(wanted: OfficialFile, path: Path) -> str | None:
    """Checks a converted file: one sentence that names the fault, None where there is none.

    Keys and shapes are compared with the network's, the weights themselves are not read.
    """
    layout = KINDS[wanted.kind]
    try:
        header = read_header(path)
        with safe_open(str(path), "pt") as stored:
            found = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}
    except (WeightsError, SafetensorError, OSError) as error:
        return f"it cannot be read ({error})"
    if header.get("kind") not in (None, wanted.kind):
        return f"it was converted from a {header['kind']} checkpoint, expected {wanted.kind}"
    with torch.device("meta"):
        network = layout.network()
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"{wrong[0]}{more} missing, unexpected or of another shape"
    return None


def source_path(wanted: OfficialFile, folder: Path) -> Path:
    """Where the official file is looked for: below the folder, named as it is published."""
    return folder / wanted.source.partition(",")[0]


def manifest_entry(wanted: OfficialFile, path: Path) -> dict[str, Any]:
    """What the profile's manifest says of a converted file."""
    header = read_header(path)
    entry: dict[str, Any] = {
        "sha256": fingerprint(path),
        "licence": header.get("licence") or KINDS[wanted.kind].licence,
        "source_sha256": header.get("source_sha256"),
    }
    if wanted.kind == "diffae":
        return entry | {"kind": "autoencoder", "prediction": "eps"}
    if wanted.system is None:
        return entry | {"kind": {"stylegan2": "generator", "vgg16": "features"}[wanted.kind]}
    # The paper feeds the whole aligned image, resized; AdaFace's network wants blue first.
    crop = {"size": 112, "bgr": KINDS[wanted.kind].colours == "bgr"}
    protocol = path.parent / "protocol.json"
    if protocol.is_file():  # what task=calibrate found the resize to have been
        crop["antialias"] = json.loads(protocol.read_text(encoding="utf-8"))["antialias"]
    return entry | {
        "kind": "recogniser",
        "name": wanted.system,
        "label": wanted.label,
        "crop": crop,
    }
