"""Builds the embedded profile from trained networks: weights, thresholds, pairs, model cards.

    python run.py task=mini
    python run.py task=mini task.networks=[stylegan2]     one of them; the others stay as they are

reads the runs of `task=train/...` and writes `src/adjointdeis/assets/mini`. The order is
the protocol: weights first, thresholds from identities that are in no pair, then the pair list,
chosen by a network that neither guides nor judges, before any morph exists.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

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
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.weights import fingerprint, load_network, read_header, save_network
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import OTHER, SOURCE
from adjointdeis.harness.model_cards import model_cards
from adjointdeis.harness.records import write_record
from adjointdeis.harness.training.generator_quality import generator_quality
from adjointdeis.harness.training.quality import autoencoder_quality
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
NETWORKS = {"diffae", "stylegan2", *LABELS}


def run(cfg: DictConfig) -> dict[str, Any]:
    """Publishes the chosen networks and everything that is derived from them."""
    root, chosen = Path(cfg.task.destination), set(cfg.task.networks)
    if unknown := sorted(chosen - NETWORKS):
        raise ValueError(f"task.networks={unknown}: known are {', '.join(sorted(NETWORKS))}")
    root.mkdir(parents=True, exist_ok=True)
    files, quality = (
        _present(root, "manifest.json").get("files", {}),
        _present(root, "quality.json"),
    )
    if lacking := sorted(n for n in NETWORKS - chosen if f"{n}.safetensors" not in files):
        raise ValueError(f"{root} has no {', '.join(lacking)} yet: add them to task.networks")
    files |= _publish_weights(cfg, root, chosen)
    _write_manifest(root, files)
    profile = assets.profile("mini", str(root))
    if chosen & LABELS.keys():
        _publish_recognition(cfg, root, profile, files, quality)
    if "diffae" in chosen:
        quality["autoencoder"] = autoencoder_quality(
            assets.autoencoder("diffae.safetensors", profile), root
        )
    if "stylegan2" in chosen:
        training = read_header(root / "stylegan2.safetensors")["training"]
        pool = _pool(cfg, PoolSpec(**training["recipe"]["pool"]))
        quality["generator"] = generator_quality(
            assets.style_generator("stylegan2.safetensors", training["recipe"]["trunk"], profile),
            assets.recogniser("guide.safetensors", profile),
            pool.images,
            root,
        )
    _write_manifest(root, files)
    write_record(root / "quality.json", quality)
    cards = {
        name: entry | {"training": read_header(root / name)["training"]}
        for name, entry in files.items()
        if name.endswith(".safetensors")
    }
    (root / "MODEL_CARDS.md").write_text(model_cards(cards, quality))
    return quality


def _present(root: Path, name: str) -> dict[str, Any]:
    """A record of the profile as it is; empty where there is none."""
    path = root / name
    return json.loads(path.read_text()) if path.is_file() else {}


def _publish_recognition(
    cfg: DictConfig,
    root: Path,
    profile: assets.Profile,
    files: dict[str, dict[str, Any]],
    quality: dict[str, Any],
) -> None:
    """Thresholds and pair list, which depend on every recogniser; fills files and quality."""
    systems: list[Any] = [assets.recogniser(f"{name}.safetensors", profile) for name in LABELS]
    systems += [instantiate(judge) for judge in (cfg.judges or {}).values()]

    pool = _pool(cfg, PoolSpec(**OmegaConf.to_container(cfg.task.threshold_pool)))  # type: ignore[arg-type]
    data_set = load_folder(root / "faces", "mini").fingerprint
    records, measured = _thresholds(pool, systems, cfg.task.fmr, data_set)
    quality |= measured
    quality["shortcut"] = _shortcut(cfg, systems)
    write_record(root / "thresholds.json", {"records": [r.to_dict() for r in records]})
    files["thresholds.json"] = {
        "sha256": fingerprint(root / "thresholds.json"),
        "kind": "thresholds",
    }

    pairs, excluded = _pairs(cfg, systems, records)
    write_pairs(root / "pairs.csv", pairs)
    files["pairs.csv"] = {"sha256": fingerprint(root / "pairs.csv"), "kind": "pairs"}
    quality["pairs"] = {
        "per_sex": cfg.task.pairs_per_sex,
        "excluded_false_matches": excluded,
        "similarity_of_the_last": min(pair.similarity for pair in pairs),
    }


def _publish_weights(cfg: DictConfig, root: Path, chosen: set[str]) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    trained = Path(cfg.paths.outputs)
    if "diffae" in chosen:
        source = trained / "train-autoencoder" / "weights.safetensors"
        files["diffae.safetensors"] = {
            **_copy_network(source, root / "diffae.safetensors"),
            "kind": "autoencoder",
            "prediction": "v",
        }
    if "stylegan2" in chosen:
        source = trained / "train-generator" / "weights.safetensors"
        files["stylegan2.safetensors"] = {
            **_copy_network(source, root / "stylegan2.safetensors"),
            "kind": "generator",
        }
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


def _pool(cfg: DictConfig, spec: PoolSpec, name: str | None = None) -> Pool:
    directory = Path(cfg.paths.data) / "pools" / (name or spec.role)
    return render_pool(spec, directory, workers=cfg.task.render_workers)


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
    pool: Pool, systems: list[Any], fmr: list[float], data_set: str
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
            tuple(fmr),
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


def _shortcut(cfg: DictConfig, systems: list[Any]) -> dict[str, Any]:
    """FNMR on faces that differ in bones only, and on faces that differ in texture only.

    Each at the set's own FMR of 1%, for what is asked is whether the set's identities can be told
    apart: a reader of geometry can on the first and cannot on the second, a reader of hair and skin
    the other way round.
    """
    result: dict[str, Any] = {}
    for name, spec in probe_specs(cfg.task.probe_identities, 2).items():
        pool = _pool(cfg, spec, name)
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


def _pairs(
    cfg: DictConfig, systems: list[Any], records: list[ThresholdRecord]
) -> tuple[list[Any], int]:
    """SYN-MAD's rule on the frozen faces, without the false matches of any recogniser."""
    dataset = load_folder(Path(cfg.task.destination) / "faces", "mini")
    sexes = _sexes(Path(cfg.task.destination) / "faces" / "subjects.csv")
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
        cfg.task.pairs_per_sex,
        banned,
    )
    return pairs, len(banned)


def _sexes(path: Path) -> dict[str, str]:
    with path.open(newline="") as lines:
        return {row["subject_id"]: row["sex"] for row in csv.DictReader(lines)}
