r"""Scores published morphs under every protocol and finds the one nearest to the published rows.

    python run.py task=calibrate assets=paper task.morphs.DiM-A=data/dim_frll/morphs/dim_a

The paper states neither its probe images, nor the impostors behind its thresholds, nor how its
resize filters; every combination gives other rates on the same morphs. The morphs are folders that
the user owns, by the row of Table 1 that they are of. Scored under each combination, the one that
comes closest to the published rows is the best guess at what was done,

.. math:: \Delta = \frac{1}{|C|} \sum_{(r, s) \in C}
    \left| 100 \cdot \mathrm{MMPMR}_{rs} - p_{rs} \right|,

the mean absolute difference in percentage points over the cells C (row r, recogniser s) that both
have. It is a fit: what is reported with it says so. What comes out: ``calibration.md`` with every
combination, ``calibration.json``, and, with ``task.write=true``, the thresholds of the nearest one
in the profile, which carry how they were chosen.

A preparation is how an aligned face becomes a recogniser's input:

================  ==============================================================================
resize            bilinear with a low-pass filter, the default of image libraries
resize-aliased    bilinear without one, the default of tensor libraries
arcface-5pt       a similarity of five points to ArcFace's template; landmarks are needed
================  ==============================================================================
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from adjointdeis.evaluation import (
    ScoreTable,
    Subjects,
    ThresholdRecord,
    concatenate,
    estimate_thresholds,
)
from adjointdeis.evaluation.groups import group_table
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.metrics import vulnerability
from adjointdeis.evaluation.paper import SYSTEMS, paper_table
from adjointdeis.evaluation.protocol import WORST_CASE
from adjointdeis.evaluation.thresholds import relabelled
from adjointdeis.faces.alignment import ARCFACE_5PT, align_arcface, five_points_of_68
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import AnyPath, read_image
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.files import read_json, write_atomically
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import Benchmark, load_benchmark, read_people
from adjointdeis.harness.landmarks import BenchmarkLandmarks
from adjointdeis.harness.records import write_record
from adjointdeis.harness.scoring import PROBES, score_morphs
from adjointdeis.morphing.precomputed import Precomputed

IMPOSTORS = ("neutral-smiling", "all-captures")
POLICIES = ("all", "same-sex")


@dataclass(frozen=True)
class ScoringProtocol:
    """One way of scoring.

    Attributes:
        preparation: How a face becomes a recogniser's input, see the task.
        impostors: "neutral-smiling" compares every neutral image with everybody else's smiling
            one, in both orders (102 people: 10,302); "all-captures" every two images of two
            people, once (20,604).
        policy: "all" pairs of people, or "same-sex" ones.
        probe: "source", the image that was morphed, or "other", the subject's other image.
    """

    preparation: str
    impostors: str
    policy: str
    probe: str


@dataclass(frozen=True)
class CalibrationResult:
    """What a protocol gives.

    Attributes:
        protocol: The way of scoring.
        deviation: Mean absolute difference to the published cells, percentage points.
        cells: ``{row: {system: {"percent", "published", "k", "n"}}}``.
        thresholds: One record per recogniser.
    """

    protocol: ScoringProtocol
    deviation: float
    cells: Mapping[str, Mapping[str, Mapping[str, float]]]
    thresholds: tuple[ThresholdRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        records = [record.to_dict() for record in self.thresholds]
        return asdict(self) | {"thresholds": records}


def outcomes(
    tables: Mapping[str, ScoreTable],
    published: Mapping[str, Mapping[str, float]],
    fmr: float = 0.001,
    people: Subjects | None = None,
    impostors: Iterable[str] = IMPOSTORS,
    policies: Iterable[str] = ("all",),
    probes: Iterable[str] = tuple(PROBES),
) -> list[CalibrationResult]:
    """Every protocol's outcome, the closest to the published rows first.

    Args:
        tables: By preparation, the scores that :func:`~adjointdeis.harness.scoring.score_morphs`
            gives with ``every_capture``.
        published: Percent by row and recogniser.
        fmr: Target false match rate, a share.
        people: Sex of every person, for the policy "same-sex".
        impostors, policies, probes: What to try.

    Raises:
        ValueError: Nothing to compare, an unknown choice, or "same-sex" without people.
    """
    kinds = _known("impostors", impostors, IMPOSTORS)
    rules = _known("policies", policies, POLICIES)
    sides = _known("probes", probes, PROBES)
    if "same-sex" in rules and people is None:
        raise ValueError("the policy same-sex needs the people's sexes; give task.info")
    found = []
    for preparation, scores in tables.items():
        for kind in kinds:
            judged = scores if kind == "all-captures" else scores.where(~_same_capture(scores))
            named = f"the benchmark's own people, {kind}"
            for policy in rules:
                records = [
                    estimate_thresholds(
                        judged, system, [fmr], [policy], people, impostor_set=named
                    )[0]
                    for system in dict.fromkeys(scores["system"].tolist())
                ]
                for probe in sides:
                    protocol = ScoringProtocol(preparation, kind, policy, probe)
                    found.append(_outcome(protocol, scores, records, published))
    return sorted(found, key=lambda outcome: outcome.deviation)


def _known(name: str, wanted: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    for value in (chosen := tuple(wanted)):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; known are {', '.join(known)}")
    return chosen


def _same_capture(table: ScoreTable) -> np.ndarray:
    """Impostor comparisons of two neutral images, or of two smiling ones."""
    captures = ([str(i).rpartition("_")[2] for i in table[name]] for name in ("probe_id", "ref_id"))
    return (table["kind"] == "nonmated") & np.equal(*map(np.array, captures))


def _outcome(
    protocol: ScoringProtocol,
    table: ScoreTable,
    records: list[ThresholdRecord],
    published: Mapping[str, Mapping[str, float]],
) -> CalibrationResult:
    attacks = dict.fromkeys(table.select(kind="morph")["attack"].tolist())
    rows = [attack for attack in attacks if attack != WORST_CASE]
    cells: dict[str, dict[str, dict[str, float]]] = {row: {} for row in rows}
    differences = []
    for record in records:
        for row in rows:
            groups = group_table(
                table, attack=row, system=record.model, probe_policy=protocol.probe
            )
            rate = vulnerability(groups, record.oriented)
            percent = 100 * rate.k / rate.n
            cell: dict[str, float] = {"percent": percent, "k": rate.k, "n": rate.n}
            if (stated := published.get(row, {}).get(record.model)) is not None:
                cell["published"] = stated
                differences.append(abs(percent - stated))
            cells[row][record.model] = cell
    if not differences:
        raise ValueError(
            f"no row has a published number: morphs of {', '.join(cells)}, published are "
            f"{', '.join(published)}"
        )
    return CalibrationResult(protocol, float(np.mean(differences)), cells, tuple(records))


PREPARATIONS = ("resize", "resize-aliased", ARCFACE_5PT)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs the calibration; see the module."""
    task, directory = cfg.task, Path(cfg.paths.run)
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    benchmark = load_benchmark(cfg.data.faces, cfg.data.pairs, cfg.data.limit)
    folders: Any = OmegaConf.to_container(task.morphs, resolve=True)
    if not folders:
        raise ValueError(
            "task.morphs is empty: name folders of published morphs by their row of Table 1, such "
            "as task.morphs.DiM-A=data/dim_frll/morphs/dim_a"
        )
    _known("task.preparations", task.preparations, PREPARATIONS)
    published = _published(task.published)
    missing = sorted(set(folders) - set(published))
    if len(missing) == len(folders):
        raise ValueError(
            f"task.morphs: no published row is called {', '.join(missing)}; there are "
            f"{', '.join(published)}"
        )
    systems = [assets.recogniser(name, profile) for name in cfg.assets.recognisers]
    rows = {name: _morphs(name, folder, benchmark.pairs) for name, folder in folders.items()}
    find = BenchmarkLandmarks(benchmark.dataset)
    people = read_people(task.info) if task.info else None
    tables = {
        preparation: concatenate(
            _scores(benchmark, rows, *_prepared(preparation, system, find)) for system in systems
        )
        for preparation in task.preparations
    }
    found = outcomes(
        tables, published, task.fmr, people, task.impostors, task.policies, task.probes
    )
    write_record(
        directory / "calibration.json",
        {"schema": "adjointdeis-calibration/1", "outcomes": [o.to_dict() for o in found]},
    )
    text = report(found)
    write_atomically(directory / "calibration.md", text)
    print(text)
    if task.write:
        _write(found, profile, benchmark.dataset.fingerprint)
    return {"objective": found[0].deviation}


def report(found: Sequence[CalibrationResult]) -> str:
    """Every protocol with its distance to the published rows, and the nearest one's cells."""
    tried = ("difference", "preparation", "impostors", "policy", "probe")
    names = sorted({name for row in found[0].cells.values() for name in row})
    rows = []
    for row, cells in found[0].cells.items():
        shown = (
            f"{cells[n]['percent']:.2f} ({cells[n]['k']}/{cells[n]['n']}), "
            + (f"{cells[n]['published']:.2f}" if "published" in cells[n] else "-")
            for n in names
        )
        rows.append([row, *shown])
    parts = (
        "# Calibration of the protocol",
        "Mean absolute difference to the published rows, percentage points. A fit, not a fact.",
        table(tried, ([f"{o.deviation:.2f}", *vars(o.protocol).values()] for o in found)),
        "The nearest one, ours (k/n) and published:",
        table(("row", *names), rows),
    )
    return "\n\n".join(parts) + "\n"


def _write(found: Sequence[CalibrationResult], profile: assets.Profile, data_set: str) -> None:
    """Thresholds of the nearest protocol that the profile's recognisers can run."""
    runnable = [o for o in found if o.protocol.preparation != ARCFACE_5PT]
    if profile.name == "mini":
        raise ValueError(
            "task.write=true is for a profile of your own; mini's thresholds are fixed"
        )
    if not runnable:
        raise ValueError(
            "only arcface-5pt was tried, which a morphing run does not use; try resize"
        )
    best = runnable[0]
    note = (
        f"calibrated: nearest of {len(found)} protocols to the published rows "
        f"{', '.join(best.cells)}, mean difference {best.deviation:.2f} percentage points; "
        f"probe {best.protocol.probe}"
    )
    records = [
        relabelled(record, note=note, data_set=data_set).to_dict() for record in best.thresholds
    ]
    write_record(profile.root / "thresholds.json", {"records": records})
    antialias = best.protocol.preparation == "resize"
    write_record(profile.root / "protocol.json", {"antialias": antialias, "note": note})
    path = profile.root / "manifest.json"
    manifest = read_json(path)
    for entry in manifest["files"].values():
        if entry.get("kind") == "recogniser":
            entry["crop"]["antialias"] = antialias
    sha256 = assets.fingerprint(profile.root / "thresholds.json")
    manifest["files"]["thresholds.json"] = {"sha256": sha256, "kind": "thresholds"}
    write_record(path, manifest)
    print(f"thresholds written to {profile.root}: {note}")


def _published(source: str | None) -> dict[str, dict[str, float]]:
    """Percent by row and recogniser: the paper's, or a JSON file of the same shape."""
    if source is not None:
        return read_json(Path(source))
    return {
        row["attack"]: {name: row[f"{name}_percent"] for name in SYSTEMS}
        for row in paper_table("table1")
    }


def _morphs(row: str, folder: str, pairs: Sequence[MorphPair]) -> dict[str, Path]:
    files = Precomputed(name=row, folder=folder).files
    found = {pair.morph_id: files[key] for pair in pairs if (key := frozenset(pair.sides)) in files}
    if not found:
        raise ValueError(f"{folder}: no morph of the {len(pairs)} pairs of the list")
    return found


def _scores(
    benchmark: Benchmark,
    rows: Mapping[str, Mapping[str, Path]],
    system: NetworkRecogniser,
    read: Callable[[AnyPath], np.ndarray],
) -> ScoreTable:
    everyone, pairs = (system.name,), benchmark.pairs
    return score_morphs(
        benchmark, rows, [system], pairs, everyone=everyone, every_capture=True, read=read
    )


def _prepared(
    preparation: str, system: NetworkRecogniser, find: BenchmarkLandmarks
) -> tuple[NetworkRecogniser, Callable[[AnyPath], np.ndarray]]:
    """The recogniser with its input changed, and how an image is read for it."""
    crop = system.crop
    if preparation != ARCFACE_5PT:
        antialias = preparation == "resize"
        return replace(system, crop=replace(crop, antialias=antialias)), read_image

    def load(path: AnyPath) -> np.ndarray:
        picture = read_image(path)
        points = five_points_of_68(find(path, picture, "dlib68"))
        return align_arcface(picture, points, crop.size)

    return replace(system, crop=FivePoint(crop.size, bgr=crop.bgr)), load


class FivePoint(FaceCrop):
    """A crop of images that are already aligned by five points."""

    @property
    def label(self) -> str:
        return ARCFACE_5PT
