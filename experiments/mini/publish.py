"""Publishes the embedded profile from trained networks: weights, thresholds, pairs, model cards.

    python -m experiments.mini.publish
    python -m experiments.mini.publish --networks diffae        one of them; the others stay

reads the runs of `task=train/...` below `outputs/` and writes `src/adjointdeis/assets/mini`. The
order is the protocol: weights first, thresholds from identities that are in no pair, then the pair
list, chosen by a network that neither guides nor judges, before any morph exists.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adjointdeis.evaluation import (
    ScoreTable,
    Subjects,
    ThresholdRecord,
    concatenate,
    estimate_thresholds,
    false_non_match_rate,
)
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.datasets.pairs import most_similar_pairs, write_pairs
from adjointdeis.faces.dlib_models import DlibLandmarker, DlibRecogniser
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.faces.weights import fingerprint, load_network, read_header, save_network
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import OTHER, SOURCE, read_aligned
from adjointdeis.harness.records import write_record
from adjointdeis.harness.training.quality import autoencoder_quality
from experiments.mini.model_cards import model_cards
from synthetic_faces.pool import Pool, render_pool
from synthetic_faces.pool_spec import PoolSpec, probe_specs

LICENCE = "MIT (trained by this repository on synthetic faces made from CC0 data)"
LABELS = {
    "guide": "guide (identity loss)",
    "selector": "selector (pair list)",
    "arcface": "ArcFace (mini)",
    "elasticface": "ElasticFace (mini)",
    "adaface": "AdaFace (mini)",
}
NETWORKS = ("diffae", *LABELS)
# Identities that no network has seen and no pair contains.
THRESHOLD_POOL = PoolSpec("threshold", identities=300, images_per_identity=2)
FMR = (0.01, 0.001)
PAIRS_PER_SEX = 50  # of 1275 possible pairs of each sex
MEASURED = 32  # faces that the autoencoder is measured on
PROBE_IDENTITIES = 60  # of the shape-only and texture-only sets


@dataclass(frozen=True)
class Folders:
    """Where things are.

    Args:
        outputs: Runs of `task=train/...`.
        pools: Rendered pools; what is missing is rendered.
        profile: The embedded profile, which is written.
    """

    outputs: Path
    pools: Path
    profile: Path


def publish(folders: Folders, networks: set[str], judges: list[Any]) -> dict[str, Any]:
    """Publishes the chosen networks and everything that is derived from them.

    Args:
        folders: Where things are.
        networks: Some of `NETWORKS`, published anew; the others stay as they are.
        judges: Recognisers that get thresholds beside the embedded ones.

    Raises:
        ValueError: A network that is not chosen has never been published.
    """
    root, chosen = folders.profile, networks
    root.mkdir(parents=True, exist_ok=True)
    files, quality = (
        _present(root, "manifest.json").get("files", {}),
        _present(root, "quality.json"),
    )
    if lacking := sorted(n for n in {*NETWORKS} - chosen if f"{n}.safetensors" not in files):
        raise ValueError(f"{root} has no {', '.join(lacking)} yet: add them to --networks")
    files |= _publish_weights(folders, chosen)
    _write_manifest(root, files)
    profile = assets.profile("mini", str(root))
    if chosen & LABELS.keys():
        _publish_recognition(folders, profile, judges, files, quality)
    if "diffae" in chosen:
        dataset = load_folder(root / "faces", "mini")
        paths = [dataset.subject(i).images[SOURCE] for i in dataset.ids[:MEASURED]]
        network = assets.autoencoder("diffae.safetensors", profile)
        faces = to_tensor(read_aligned(paths, network.network.config.image_size))
        quality["autoencoder"] = autoencoder_quality(network, faces, root)
    _write_manifest(root, files)
    write_record(root / "quality.json", quality)
    (root / "MODEL_CARDS.md").write_text(cards(root, files, quality))
    return quality


def cards(root: Path, files: dict[str, dict[str, Any]], quality: dict[str, Any]) -> str:
    """The page of model cards of a profile.

    Args:
        root: The profile, whose weight files hold the record of their training.
        files: Entries of its manifest.
        quality: What was measured.
    """
    trained = {
        name: entry | {"training": read_header(root / name)["training"]}
        for name, entry in files.items()
        if name.endswith(".safetensors")
    }
    return model_cards(trained, quality)


def _present(root: Path, name: str) -> dict[str, Any]:
    """A record of the profile as it is; empty where there is none."""
    path = root / name
    return json.loads(path.read_text()) if path.is_file() else {}


def _publish_recognition(
    folders: Folders,
    profile: assets.Profile,
    judges: list[Any],
    files: dict[str, dict[str, Any]],
    quality: dict[str, Any],
) -> None:
    """Thresholds and pair list, which depend on every recogniser; fills files and quality."""
    root = folders.profile
    systems = [*(assets.recogniser(f"{name}.safetensors", profile) for name in LABELS), *judges]
    data_set = load_folder(root / "faces", "mini").fingerprint
    records, measured = _thresholds(_pool(folders, THRESHOLD_POOL), systems, data_set)
    quality |= measured
    quality["shortcut"] = _shortcut(folders, systems)
    write_record(root / "thresholds.json", {"records": [r.to_dict() for r in records]})
    files["thresholds.json"] = {
        "sha256": fingerprint(root / "thresholds.json"),
        "kind": "thresholds",
    }

    pairs, excluded = _pairs(root, systems, records)
    write_pairs(root / "pairs.csv", pairs)
    files["pairs.csv"] = {"sha256": fingerprint(root / "pairs.csv"), "kind": "pairs"}
    quality["pairs"] = {
        "per_sex": PAIRS_PER_SEX,
        "excluded_false_matches": excluded,
        "similarity_of_the_last": min(pair.similarity for pair in pairs),
    }


def _publish_weights(folders: Folders, chosen: set[str]) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    trained, root = folders.outputs, folders.profile
    if "diffae" in chosen:
        source = trained / "train-autoencoder" / "weights.safetensors"
        entry = _copy_network(source, root / "diffae.safetensors") | {"kind": "autoencoder"}
        recipe = read_header(source)["training"]["recipe"]
        entry |= {"prediction": recipe["prediction"], "spread": recipe["spread"]}
        files["diffae.safetensors"] = entry
    for name, label in LABELS.items():
        if name not in chosen:
            continue
        source = trained / "train-recogniser" / name / "weights.safetensors"
        entry = _copy_network(source, root / f"{name}.safetensors")
        crop = read_header(source)["training"]["recipe"]["crop"]
        entry |= {"kind": "recogniser", "name": name, "label": label}
        entry["crop"] = {key: value for key, value in crop.items() if key != "_target_"}
        files[f"{name}.safetensors"] = entry
    return files


def _copy_network(source: Path, target: Path) -> dict[str, Any]:
    network = load_network(source, remedy="train it with `python run.py task=train/...`")
    training = read_header(source)["training"]
    sha256 = save_network(
        network, target, {"training": training, "licence": LICENCE}, torch.float16
    )
    return {"sha256": sha256, "bytes": target.stat().st_size, "licence": LICENCE}


def _write_manifest(root: Path, files: dict[str, dict[str, Any]]) -> None:
    write_record(root / "manifest.json", {"profile": "mini", "files": files})


def _pool(folders: Folders, spec: PoolSpec, name: str | None = None) -> Pool:
    return render_pool(spec, folders.pools / (name or spec.role))


def _embeddings(system: Recogniser, images: np.ndarray) -> np.ndarray:
    embeddings, acquired = system.embed(images)
    embeddings[~acquired] = np.nan
    return embeddings


def _captures(pool: Pool) -> np.ndarray:
    """Images as (identities, captures, S, S, 3)."""
    images = np.asarray(pool.images)
    return images.reshape(pool.spec.identities, -1, *images.shape[1:])


def _comparisons(pool: Pool, systems: list[Any]) -> ScoreTable:
    """Every ordered pair of identities, first capture against second; mated on the diagonal."""
    images = _captures(pool)
    ids = np.array([f"t{i:04d}" for i in range(len(images))])
    tables = []
    for system in systems:
        first, second = (_embeddings(system, images[:, k]) for k in (0, 1))
        scores = system.compare(first[:, None], second[None])
        same = np.eye(len(ids), dtype=bool)
        for kind, chosen in (("mated", same), ("nonmated", ~same)):
            row, column = np.nonzero(chosen)
            values = scores[row, column]
            tables.append(
                ScoreTable.from_columns(
                    kind=kind,
                    subject_id=ids[row],
                    ref_subject_id=ids[column],
                    probe_id=ids[row],
                    ref_id=ids[column],
                    score=values,
                    status=np.where(np.isfinite(values), "ok", "fta"),
                    system=system.name,
                    score_type=system.score_type,
                )
            )
    return concatenate(tables)


def _thresholds(
    pool: Pool, systems: list[Any], data_set: str
) -> tuple[list[ThresholdRecord], dict[str, Any]]:
    table = _comparisons(pool, systems)
    captures = pool.spec.images_per_identity
    subjects = Subjects.from_rows(
        [
            {
                "subject_id": f"t{i:04d}",
                "sex": str(pool.meta["sex"][i * captures]),
                "group": str(pool.meta["group"][i * captures]),
            }
            for i in range(pool.spec.identities)
        ]
    )
    records: list[ThresholdRecord] = []
    quality: dict[str, Any] = {"recognisers": {}}
    for system in systems:
        stated = {
            "model_fingerprint": system.fingerprint,
            "alignment": system.alignment,
            "data_set": data_set,
            "impostor_set": f"mini threshold identities ({pool.spec.fingerprint[:12]})",
        }
        own = estimate_thresholds(
            table,
            system.name,
            FMR,
            ("all", "same-sex", "same-sex-and-group"),
            subjects,
            **stated,
        )
        records += own
        strict = next(r for r in own if r.target_fmr == 0.001 and r.impostor_policy == "all")
        mated = table.select(kind="mated", system=system.name)
        rate = false_non_match_rate(mated.oriented, strict.oriented)
        quality["recognisers"][system.name] = {
            "threshold": strict.value,
            "impostors": strict.n,
            "fnmr_at_fmr_0.1%": rate.value,
            "fnmr_k": rate.k,
            "fnmr_n": rate.n,
            "failures_to_acquire": int((mated["status"] == "fta").sum()),
        }
    return records, quality


def _shortcut(folders: Folders, systems: list[Any]) -> dict[str, Any]:
    """FNMR on faces that differ in bones only, and on faces that differ in texture only.

    Each at the set's own FMR of 1%, for what is asked is whether the set's identities can be told
    apart: a reader of geometry can on the first and cannot on the second, a reader of hair and skin
    the other way round.
    """
    result: dict[str, Any] = {}
    for name, spec in probe_specs(PROBE_IDENTITIES, 2).items():
        pool = _pool(folders, spec, name)
        table = _comparisons(pool, systems)
        for system in systems:
            mated = table.select(kind="mated", system=system.name).oriented
            nonmated = table.select(kind="nonmated", system=system.name).oriented
            nonmated, mated = nonmated[np.isfinite(nonmated)], mated[np.isfinite(mated)]
            # Each set at its own threshold: what is asked is whether it separates identities.
            tau = np.sort(nonmated)[::-1][int(0.01 * len(nonmated))]
            result.setdefault(system.name, {})[name] = {
                "fnmr_at_own_fmr_1%": float((mated <= tau).mean()),
                "identities": spec.identities,
            }
    return result


def _pairs(root: Path, systems: list[Any], records: list[ThresholdRecord]) -> tuple[list[Any], int]:
    """SYN-MAD's rule on the frozen faces, without the false matches of any recogniser."""
    dataset = load_folder(root / "faces", "mini")
    sexes = _sexes(root / "faces" / "subjects.csv")
    ids = list(dataset.ids)
    images = {
        capture: np.stack([read_image(dataset.subject(i).images[capture]) for i in ids])
        for capture in (SOURCE, OTHER)
    }
    banned: set[frozenset[str]] = set()
    chooser, chooser_embeddings = None, None
    for system in systems:
        neutral, smiling = (_embeddings(system, images[c]) for c in (SOURCE, OTHER))
        if system.name == "selector":
            chooser, chooser_embeddings = system, neutral
        record = next(
            r
            for r in records
            if r.model == system.name and r.target_fmr == 0.001 and r.impostor_policy == "all"
        )
        for left, right in ((neutral, neutral), (neutral, smiling), (smiling, smiling)):
            scores = system.compare(left[:, None], right[None])
            matches = record.matches(np.nan_to_num(scores, nan=-np.inf))
            for i, j in zip(*np.nonzero(matches), strict=True):
                if i != j:
                    banned.add(frozenset((ids[i], ids[j])))
    assert chooser is not None and chooser_embeddings is not None
    pairs = most_similar_pairs(
        chooser_embeddings,
        ids,
        [sexes[i] for i in ids],
        chooser,
        PAIRS_PER_SEX,
        banned,
    )
    return pairs, len(banned)


def _sexes(path: Path) -> dict[str, str]:
    with path.open(newline="") as lines:
        return {row["subject_id"]: row["sex"] for row in csv.DictReader(lines)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Publish the embedded profile.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="trained networks")
    parser.add_argument("--pools", type=Path, default=Path("data/pools"), help="rendered pools")
    parser.add_argument("--profile", type=Path, default=assets.MINI, help="folder to write")
    options = parser.parse_args()
    # The benchmark's faces are aligned: the usual box where the detector finds none.
    dlib = DlibRecogniser(landmarker=DlibLandmarker(box="hog-then-frame"))
    folders = Folders(options.outputs, options.pools, options.profile)
    print(json.dumps(publish(folders, set(options.networks), [dlib]), indent=1))


if __name__ == "__main__":
    main()
