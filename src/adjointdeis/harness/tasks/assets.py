"""Lists, checks and converts the files of a profile.

    python run.py task=assets                   the embedded profile, against its SHA-256
    python run.py task=assets assets=paper      what the paper used: present, missing, wrong
    python run.py task=assets assets=paper task.action=convert task.source=data/official
    python run.py task=assets assets=real       recognisers in packages, and how to fetch them

Nothing is ever downloaded. For the paper's profile every missing file is listed with its origin,
its licence and where the conversion looks for it; present ones are registered in its manifest.
Converting reads official checkpoints without executing what is pickled in them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open

from adjointdeis.extras import MissingPackageError
from adjointdeis.faces.checkpoints import KINDS, convert_checkpoint
from adjointdeis.faces.dlib_dat import DatError
from adjointdeis.faces.graphs import GraphError
from adjointdeis.faces.torch_file import CheckpointError
from adjointdeis.faces.weights import WeightsError, fingerprint, read_header
from adjointdeis.harness import assets
from adjointdeis.harness.packages import PackageError, fetch_command, tarball
from adjointdeis.harness.records import write_record


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


# The paper calls the identity loss's network ArcFace; the published Glint360k r100 file was trained
# with CosFace. It does not say which of the four ElasticFace files it took; all have the same name.
# MIPGAN's own generators were fine-tuned on passport-like photographs and are not public.
PAPER: tuple[OfficialFile, ...] = (
    OfficialFile("diffae_ffhq256.safetensors", "diffae", "generator", "ffhq256_autoenc/last.ckpt"),
    OfficialFile(
        "glint360k_cosface_r100.safetensors", "arcface", "identity loss",
        "glint360k_cosface_r100_fp16_0.1/backbone.pth",
        "identity", "IResNet-100, Glint360k (CosFace)",
    ),
    OfficialFile(
        "ms1mv3_arcface_r100.safetensors", "arcface", "evaluation",
        "ms1mv3_arcface_r100_fp16/backbone.pth", "arcface", "ArcFace",
    ),
    OfficialFile(
        "elasticface_arc_r100.safetensors", "elasticface", "evaluation",
        "ElasticFace-Arc/295672backbone.pth", "elasticface", "ElasticFace-Arc",
    ),
    OfficialFile(
        "adaface_ir101_ms1mv2.safetensors", "adaface", "evaluation",
        "adaface_ir101_ms1mv2.ckpt", "adaface", "AdaFace",
    ),
    OfficialFile(
        "stylegan2_ffhq1024.safetensors", "stylegan2", "generator of MIPGAN, if you run it",
        "stylegan2_ffhq.pt, the state dict of G_ema of ffhq.pkl",
    ),
    OfficialFile(
        "vgg16.safetensors", "vgg16", "features of MIPGAN's perceptual loss",
        "vgg16_features-amdegroot-88682ab5.pth",
    ),
)  # fmt: skip


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


PRINTED = ("problem", "fetch", "source", "licence", "training data", "sha256", "remedy")
"""Keys of a row that are printed below it."""
UNUSABLE = (PackageError, MissingPackageError, GraphError, FileNotFoundError, DatError)
"""What a recogniser that is missing or altered raises."""


class ConversionError(RuntimeError):
    """Official files were found that are not what they should be."""


def run(cfg: DictConfig) -> dict[str, Any]:
    """Prints the table of the profile and returns it."""
    action, source = cfg.task.action, Path(cfg.task.source)
    if action not in ("list", "convert"):
        raise ValueError(f"task.action={action!r}: expected list or convert")
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    if profile.name != "paper":
        if action == "convert":
            raise ValueError(
                f"there is nothing to convert in assets={profile.name}; choose assets=paper"
            )
        rows = _embedded(profile) if profile.name == "mini" else _packaged(profile)
    else:
        if action == "convert":
            _convert(profile.root, source)
        rows = _official(profile, source) + _data(cfg, profile)
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        print(f"{row['status']:<8}{row['file']:<{width + 2}}{row['use']}")
        for key in PRINTED:
            if row.get(key):
                print(f"{'':<8}{key}: {row[key]}")
    good = sum(row["status"] in ("ok", "present") for row in rows)
    print(f"{good} of {len(rows)} files present in {profile.root}")
    return {"files": rows}


def _convert(root: Path, source: Path) -> None:
    """Converts every official file that is there and of which there is no converted one yet."""
    problems, converted = [], 0
    for wanted in PAPER:
        found, target = source_path(wanted, source), root / wanted.name
        if not found.is_file() or _converted_from(target) == fingerprint(found):
            continue
        try:
            print(f"{found} -> {target}")
            root.mkdir(parents=True, exist_ok=True)
            convert_checkpoint(found, target, wanted.kind)
            converted += 1
        except CheckpointError as error:
            problems.append(str(error))
    print(f"{converted} files converted from {source}")
    if problems:
        raise ConversionError("; ".join(problems))


def _converted_from(path: Path) -> str | None:
    """SHA-256 of the official file that a converted one was made of; None where there is none."""
    try:
        return read_header(path).get("source_sha256")
    except WeightsError:
        return None


def _embedded(profile: assets.Profile) -> list[dict[str, Any]]:
    rows = []
    for name, entry in profile.manifest.items():
        row = {
            "file": name,
            "status": "ok",
            "use": entry.get("label") or entry["kind"],
            "licence": entry.get("licence"),
            "sha256": entry["sha256"],
        }
        try:
            profile.path(name)
        except assets.AssetError as error:
            row["status"] = "wrong" if (profile.root / name).is_file() else "missing"
            row["problem"] = str(error)
        rows.append(row)
    return rows


def _packaged(profile: assets.Profile) -> list[dict[str, Any]]:
    """Recognisers of packages: what is there is loaded and tried, what is not has its command."""
    rows = []
    for name, entry in profile.manifest.items():
        row = {
            "file": name,
            "status": "ok",
            "use": f"{entry['label']}, in {entry['package']} {entry['version']}",
            "licence": entry["licence"],
            "training data": entry["training_data"],
        }
        try:
            row["sha256"] = assets.recogniser(name, profile).fingerprint
        except UNUSABLE as error:
            there = (profile.root / tarball(entry)).is_file() or (profile.root / name).is_dir()
            row["status"] = "wrong" if there else "missing"
            row["problem"] = str(error)
            row["fetch"] = fetch_command(entry, profile.root)
        rows.append(row)
    return rows


def _official(profile: assets.Profile, source: Path) -> list[dict[str, Any]]:
    rows, files = [], {}
    for wanted in PAPER:
        kind, path = KINDS[wanted.kind], profile.root / wanted.name
        row = {
            "file": wanted.name,
            "use": wanted.use,
            "source": f"{wanted.source} from {kind.source}",
            "licence": kind.licence,
        }
        if not path.is_file():
            row["status"] = "missing"
            row["remedy"] = (
                f"put it at {source_path(wanted, source)} and run "
                "`python run.py task=assets assets=paper task.action=convert`"
            )
        elif problem := fault(wanted, path):
            row |= {"status": "wrong", "problem": problem}
            row["remedy"] = "delete it and convert the official file again"
        else:
            files[wanted.name] = manifest_entry(wanted, path)
            row |= {"status": "present", "sha256": files[wanted.name]["sha256"]}
        rows.append(row)
    thresholds = profile.root / "thresholds.json"
    if thresholds.is_file():
        files["thresholds.json"] = {"sha256": fingerprint(thresholds), "kind": "thresholds"}
    if files:
        write_record(profile.root / "manifest.json", {"profile": "paper", "files": files})
    return rows


def _data(cfg: DictConfig, profile: assets.Profile) -> list[dict[str, Any]]:
    """Faces, pairs, thresholds and published morphs, which are no checkpoints."""
    data, published = Path(cfg.paths.data), Path(cfg.paths.data) / "published"
    wanted = [
        (profile.root / "faces", "aligned faces NNN_03.png and NNN_08.png",
         "Face Research Lab London Set, https://doi.org/10.6084/m9.figshare.5047666, aligned by "
         "`python run.py task=align data=frll data.root=...`", "CC BY 4.0"),
        (profile.root / "pairs.csv", "pairs to morph",
         "names of https://huggingface.co/datasets/zblasingame/DiM-FRLL-Morphs, MAD22 triples, "
         "or SYN-MAD's rule by `python run.py task=pairs`", ""),
        (profile.root / "thresholds.json", "decision thresholds",
         "`python run.py task=calibrate assets=paper`", ""),
        *((published / name, "published morphs, aligned like the faces",
           "MAD22 (SYN-MAD 2022), on request: https://github.com/marcohuber/SYN-MAD-2022",
           "no licence stated; derived from FRLL: do not redistribute")
          for name in ("Webmorph", "MIPGAN_I", "MIPGAN_II", "OpenCV", "FaceMorpher")),
    ]  # fmt: skip
    return [
        {
            "file": str(path.relative_to(data) if path.is_relative_to(data) else path),
            "status": "present" if path.exists() else "missing",
            "use": use,
            "source": source,
            "licence": licence,
        }
        for path, use, source, licence in wanted
    ]
