"""Run directories as the harness leaves them: drawn faces, simulated scores, real evaluation."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adjointdeis.evaluation import (
    WORST_CASE,
    ScoreTable,
    concatenate,
    estimate_thresholds,
    evaluate,
    write_scores,
)
from adjointdeis.evaluation.simulate import synthetic_table

ATTACKS = {
    "dim_a": ("DiM-A", "DiM-A", 0.22, None, 350),
    "adjoint_deis_ode": ("AdjointDEIS-1 ODE", "DiM + AdjointDEIS-1 (ODE)", 0.25, 1, 650),
    "adjoint_deis_sde": ("AdjointDEIS-1 SDE", "DiM + AdjointDEIS-1 (SDE)", 0.24, 1, 650),
    "exact": ("exact gradient", None, 0.33, 0, 650),
}
SYSTEMS = {
    "arcface": ("ArcFace", "similarity"),
    "elasticface": ("ElasticFace", "similarity"),
    "adaface": ("AdaFace", "similarity"),
    "dlib": ("dlib ResNet", "dissimilarity"),
}


def draw_face(path: Path, shape: np.ndarray, size: int = 64) -> None:
    """An oval with eyes and a mouth; `shape` sets its proportions and hue, all in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    width, height = 0.5 + 0.2 * shape[0], 0.7 + 0.15 * shape[1]
    image = np.ones((size, size, 3)) * (0.75, 0.78, 0.82)
    skin = np.array([0.55, 0.40, 0.32]) + 0.4 * shape[2] * np.array([1.0, 0.9, 0.8])
    light = 1 - 0.25 * np.clip(x + 0.4 * y, -1, 1)
    oval = (x / width) ** 2 + (y / height) ** 2 < 1
    image[oval] = np.clip(skin * light[oval][:, None], 0, 1)
    for side in (-1, 1):
        eye = ((x - side * (0.18 + 0.1 * shape[3])) / 0.09) ** 2 + ((y + 0.15) / 0.05) ** 2 < 1
        image[eye] = (0.12, 0.1, 0.1)
    mouth = (x / (0.14 + 0.12 * shape[4])) ** 2 + ((y - 0.4) / 0.05) ** 2 < 1
    image[mouth] = (0.6, 0.25, 0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * image).astype(np.uint8)).save(path)


def scores_of(
    n_pairs: int, strengths: dict[str, float], seed: int, systems: tuple[str, ...]
) -> ScoreTable:
    """Simulated scores; those of dlib are turned into distances."""
    table, _ = synthetic_table(
        systems=systems, attacks=strengths, n_subjects=40, n_morphs=n_pairs, seed=0
    )
    table = table.where(table["kind"] != "mad")
    # A seed changes the morphs, never the pairs or the bona fide comparisons.
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(table))
    moved = table["score"] + np.where(table["kind"] == "morph", noise * (seed > 0), 0.0)
    table = ScoreTable.from_columns(**{**table.columns, "score": moved})
    parts = []
    for system in systems:
        score_type = SYSTEMS[system][1]
        own = table.select(system=system)
        columns = dict(own.columns)
        if score_type == "dissimilarity":
            columns["score"] = 0.9 - own["score"]
            columns["score_type"] = np.full(len(own), score_type)
        parts.append(ScoreTable.from_columns(**columns))
    stated = {
        name: {"model_fingerprint": f"{name:0<64}"[:64], "alignment": "ffhq-resize64"}
        for name in systems
    }
    table = concatenate(parts)
    return ScoreTable(table.columns, {"systems": stated, "impostor_set": "mini/thresholds"})


def build_run(
    directory: Path,
    *,
    n_pairs: int = 16,
    attacks: dict | None = None,
    experiment: str = "quickstart",
    profile: str = "mini",
    seed: int = 0,
    settings: dict | None = None,
    replicates: int = 200,
    images: bool = True,
    systems: tuple[str, ...] = tuple(SYSTEMS),
) -> dict:
    """Writes a run directory and returns its result."""
    attacks = ATTACKS if attacks is None else attacks
    strengths = {name: entry[2] for name, entry in attacks.items()}
    if "exact" in strengths:
        strengths[WORST_CASE] = 0.4
    table = scores_of(n_pairs, strengths, seed, systems)
    directory.mkdir(parents=True, exist_ok=True)
    write_scores(table, directory / "scores.csv")
    rows = evaluate(table, replicates=replicates, seed=seed)
    thresholds = [r.to_dict() for s in systems for r in estimate_thresholds(table, s)]
    generator = np.random.default_rng(seed)
    shapes = {f"{i:03d}": generator.random(5) for i in range(1, 41)}
    pairs = []
    for morph_id in table.unique("morph_id"):
        a, b = morph_id.split("_")
        morphs = {name: f"morphs/{name}/{morph_id}.png" for name in attacks}
        if images and len(pairs) < 8:
            draw_face(directory / f"sources/{a}_03.png", shapes[a])
            draw_face(directory / f"sources/{b}_03.png", shapes[b])
            for i, path in enumerate(morphs.values()):
                mean = (shapes[a] + shapes[b]) / 2 + 0.05 * i * generator.standard_normal(5)
                draw_face(directory / path, np.clip(mean, 0, 1))
        pairs.append(
            {
                "pair_id": morph_id,
                "subject_a": a,
                "subject_b": b,
                "source_a": f"sources/{a}_03.png",
                "source_b": f"sources/{b}_03.png",
                "morphs": morphs,
            }
        )
    entries = {}
    for name, (label, paper_row, _, order, nfe) in attacks.items():
        entries[name] = attack_entry(label, paper_row, order, nfe, n_pairs, generator)
        entries[name]["settings"].update(settings or {})
    result = {
        "schema": 1,
        "tool": "adjointdeis 0.1.0",
        "experiment": experiment,
        "created": "2026-11-23T18:00:00+00:00",
        "run": {
            "config_hash": hashlib.sha256(repr((experiment, settings, seed)).encode()).hexdigest()[
                :12
            ],
            "git": "801e4e4",
            "seed": seed,
            "machine": "2 cores, CPU",
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "wall_seconds": 310.2,
            "profile": profile,
            "assets": {"autoencoder": {"fingerprint": "ab" * 32, "licence": "MIT"}},
        },
        "attacks": entries,
        "systems": {
            name: {
                "label": label,
                "alignment": "ffhq-resize64",
                "fingerprint": f"{name:0<64}"[:64],
                "licence": "CC0-1.0" if name == "dlib" else "MIT",
                "score_type": score_type,
            }
            for name, (label, score_type) in SYSTEMS.items()
            if name in systems
        },
        "rows": rows,
        "thresholds": thresholds,
        "pairs": pairs,
        "scores": "scores.csv",
    }
    (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return result


def attack_entry(
    label: str,
    paper_row: str | None,
    order: int | None,
    nfe: int,
    n_pairs: int,
    generator: np.random.Generator,
) -> dict:
    """One attack of a result; `order` None is unguided, 0 the exact gradient."""
    entry = {
        "label": label,
        "paper_row": paper_row,
        "settings": {
            "solver": "SDEDPMSolver" if "SDE" in label else "DDIM",
            "sampling_steps": 100 if order is None else 20,
            "gradient": None,
        },
        "nfe_paper": nfe,
        "nfe": {"encode": 500, "forward": 100 if order is None else 220, "vjps": 0},
        "seconds_per_pair": 1.3 if order is None else 12.3,
        "pairs": n_pairs,
        "failed": [],
        "notes": [],
    }
    if order is not None:
        entry["settings"].update(
            gradient=f"AdjointDEIS(order={order})" if order else "DiscreteAdjoint()",
            adjoint_steps=20,
            states="recorded",
            optimisation_steps=10,
            learning_rate=0.1,
            optimizer="SGD",
            keep="last",
        )
        entry["nfe"]["vjps"] = 200
        entry["notes"] = ["10 optimisation steps instead of the paper's 50"]
        rate = 0.05 if order else 0.25
        noise = 0.01 * generator.standard_normal(10)
        entry["curves"] = {
            "loss": (1.3 * np.exp(-rate * np.arange(10)) + noise).tolist(),
            "gradient_norm": (0.5 * np.exp(-0.1 * np.arange(10)) * (1.0 if order else 12)).tolist(),
        }
        entry["gradient_error"] = {
            "relative": 0.95 if order else 0.0,
            "cosine": 0.41 if order else 1.0,
            "norm_ratio": 0.06 if order else 1.0,
            "pairs": 4,
        }
    return entry


@pytest.fixture(scope="session")
def make_run():
    """The builder of run directories."""
    return build_run


@pytest.fixture(scope="session")
def bare_run(tmp_path_factory):
    """A run directory without a report: (directory, result)."""
    directory = tmp_path_factory.mktemp("bare")
    few = {name: ATTACKS[name] for name in ("dim_a", "adjoint_deis_ode", "exact")}
    systems = ("arcface", "dlib")
    return directory, build_run(directory, attacks=few, systems=systems, replicates=60)


@pytest.fixture(scope="session")
def reported(bare_run):
    """A run directory with a report without plots in it: (directory, result, files written)."""
    from adjointdeis.reporting import write_report

    directory, result = bare_run
    return directory, result, write_report(directory, plots=False)
