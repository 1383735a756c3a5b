"""Lists, checks and converts the files of a profile.

    python run.py task=assets                   the embedded profile, against its SHA-256
    python run.py task=assets assets=paper      what the paper used: present, missing, wrong
    python run.py task=assets assets=paper task.action=convert task.source=data/official
    python run.py task=assets assets=real       recognisers in packages, and how to fetch them

Nothing is ever downloaded. For the paper's profile every missing file is listed with its origin,
its licence and where the conversion looks for it; present ones are registered in its manifest.
Converting reads official checkpoints without executing what is pickled in them.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.extras import MissingPackageError
from adjointdeis.faces.checkpoints import KINDS, convert_checkpoint
from adjointdeis.faces.dlib_dat import DatError
from adjointdeis.faces.graphs import GraphError
from adjointdeis.faces.torch_file import CheckpointError
from adjointdeis.faces.weights import WeightsError, fingerprint, read_header
from adjointdeis.harness import assets
from adjointdeis.harness.official import PAPER, OfficialFile, fault, manifest_entry, source_path
from adjointdeis.harness.packages import PackageError, fetch_command, tarball
from adjointdeis.harness.records import write_record

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
        row, path = _row(wanted, source), profile.root / wanted.name
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


def _row(wanted: OfficialFile, source: Path) -> dict[str, Any]:
    kind = KINDS[wanted.kind]
    return {
        "file": wanted.name,
        "use": wanted.use,
        "source": f"{wanted.source} from {kind.source}",
        "licence": kind.licence,
    }


def _data(cfg: DictConfig, profile: assets.Profile) -> list[dict[str, Any]]:
    """Faces, pairs, thresholds and published morphs, which are no checkpoints."""
    published = Path(cfg.paths.data) / "published"
    wanted = [
        (
            profile.root / "faces",
            "aligned faces NNN_03.png and NNN_08.png",
            "Face Research Lab London Set, https://doi.org/10.6084/m9.figshare.5047666, aligned by "
            "`python run.py task=align data=frll data.root=...`",
            "CC BY 4.0",
        ),
        (
            profile.root / "pairs.csv",
            "pairs to morph",
            "names of https://huggingface.co/datasets/zblasingame/DiM-FRLL-Morphs, MAD22 triples, "
            "or SYN-MAD's rule by `python run.py task=pairs`",
            "",
        ),
        (
            profile.root / "thresholds.json",
            "decision thresholds",
            "`python run.py task=calibrate assets=paper`",
            "",
        ),
    ]
    for name in ("Webmorph", "MIPGAN_I", "MIPGAN_II", "OpenCV", "FaceMorpher"):
        wanted.append(
            (
                published / name,
                "published morphs, aligned like the faces",
                "MAD22 (SYN-MAD 2022), on request: https://github.com/marcohuber/SYN-MAD-2022",
                "no licence stated; derived from FRLL: do not redistribute",
            )
        )
    return [
        {
            "file": str(path.relative_to(Path(cfg.paths.data)))
            if path.is_relative_to(cfg.paths.data)
            else str(path),
            "status": "present" if path.exists() else "missing",
            "use": use,
            "source": source,
            "licence": licence,
        }
        for path, use, source, licence in wanted
    ]
