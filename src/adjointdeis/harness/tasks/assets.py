"""Lists and checks the files of a profile; registers converted official checkpoints.

    python run.py task=assets                 the embedded profile: every file against its SHA-256
    python run.py task=assets assets=paper    what the paper used: present or missing, from where

Nothing is ever downloaded. For the paper's profile every missing file is listed with its origin,
its licence and the command that converts it; present ones are registered in its manifest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.faces.checkpoints import KINDS
from adjointdeis.faces.weights import fingerprint, read_header
from adjointdeis.harness import assets
from adjointdeis.harness.records import write_record


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint that the paper's experiments need.

    Arguments:
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


PAPER = (
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


def run(cfg: DictConfig) -> dict[str, Any]:
    """Prints the table of the profile and returns it."""
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    rows = _embedded(profile) if profile.name == "mini" else _official(profile)
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        print(f"{row['status']:<8}{row['file']:<{width + 2}}{row['use']}")
        for key in ("source", "licence", "convert"):
            if row.get(key):
                print(f"{'':<8}{key}: {row[key]}")
    missing = sum(row["status"] == "missing" for row in rows)
    print(f"{len(rows) - missing} of {len(rows)} files present in {profile.root}")
    return {"files": rows}


def _embedded(profile: assets.Profile) -> list[dict[str, Any]]:
    rows = []
    for name, entry in profile.manifest.items():
        try:
            profile.path(name)
            status = "ok"
        except assets.AssetError as error:
            status = "missing" if not (profile.root / name).is_file() else "altered"
            print(error)
        rows.append(
            {
                "file": name,
                "status": status,
                "use": entry.get("label") or entry["kind"],
                "licence": entry.get("licence"),
            }
        )
    return rows


def _official(profile: assets.Profile) -> list[dict[str, Any]]:
    rows, files = [], {}
    for wanted in PAPER:
        kind, path = KINDS[wanted.kind], profile.root / wanted.name
        row = {
            "file": wanted.name,
            "status": "present" if path.is_file() else "missing",
            "use": wanted.use,
            "source": f"{wanted.source} from {kind.source}",
            "licence": kind.licence,
        }
        if path.is_file():
            files[wanted.name] = _manifest_entry(wanted, path)
        else:
            row["convert"] = (
                f"python -m adjointdeis.faces.checkpoints --kind {wanted.kind} "
                f"{Path(wanted.source.partition(',')[0]).name} {path}"
            )
        rows.append(row)
    if files:
        write_record(profile.root / "manifest.json", {"profile": "paper", "files": files})
    return rows


def _manifest_entry(wanted: OfficialFile, path: Path) -> dict[str, Any]:
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
    return entry | {
        "kind": "recogniser",
        "name": wanted.system,
        "label": wanted.label,
        "crop": crop,
    }
