r"""Which protocol gives the published numbers on the published morphs.

The paper states neither its probe images, nor the impostors behind its thresholds, nor how its
resize filters; every combination gives other rates on the same morphs.  Scored under each, the one
that comes closest to the published rows is the best guess at what was done,

.. math:: \Delta = \frac{1}{|C|} \sum_{(r, s) \in C}
    \left| 100 \cdot \mathrm{MMPMR}_{rs} - p_{rs} \right|,

the mean absolute difference in percentage points over the cells C (row r, recogniser s) that both
have.  It is a fit: what is reported with it says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation import ThresholdRecord
from adjointdeis.evaluation.thresholds import threshold_at_fmr
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.recogniser import Recogniser

PROBES = ("source", "other")
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


@dataclass(frozen=True, eq=False)
class Embedded:
    """Everything that one recogniser makes of the images under one preparation.

    Attributes:
        system: The recogniser, prepared.
        neutral, smiling: Embeddings of the people, (N, D) each; NaN is a failure to acquire.
        morphs: Pairs and embeddings (M, D) of each published row.
    """

    system: Recogniser
    neutral: np.ndarray
    smiling: np.ndarray
    morphs: Mapping[str, tuple[Sequence[MorphPair], np.ndarray]]


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
    embedded: Mapping[str, Mapping[str, Embedded]],
    ids: Sequence[str],
    published: Mapping[str, Mapping[str, float]],
    fmr: float = 0.001,
    sexes: Mapping[str, str] | None = None,
    impostors: Iterable[str] = IMPOSTORS,
    policies: Iterable[str] = ("all",),
    probes: Iterable[str] = PROBES,
) -> list[CalibrationResult]:
    """Every protocol's outcome, the closest to the published rows first.

    Args:
        embedded: By preparation and recogniser.
        ids: The N people, in the order of the embeddings.
        published: Percent by row and recogniser.
        fmr: Target false match rate, a share.
        sexes: By person, for the policy "same-sex".
        impostors, policies, probes: What to try.

    Raises:
        ValueError: Nothing to compare, an unknown choice, or "same-sex" without sexes.
    """
    choices = (
        ("impostors", tuple(impostors), IMPOSTORS),
        ("policies", tuple(policies), POLICIES),
        ("probes", tuple(probes), PROBES),
    )
    for name, wanted, known in choices:
        for value in wanted:
            if value not in known:
                raise ValueError(f"{name}: {value!r} is unknown; known are {', '.join(known)}")
    kinds, rules, sides = (wanted for _, wanted, _ in choices)
    if "same-sex" in rules and sexes is None:
        raise ValueError("the policy same-sex needs the people's sexes; give task.info")
    found = []
    for preparation, systems in embedded.items():
        for kind in kinds:
            for policy in rules:
                records = {
                    name: _threshold(made, ids, kind, policy, sexes, fmr)
                    for name, made in systems.items()
                }
                for probe in sides:
                    protocol = ScoringProtocol(preparation, kind, policy, probe)
                    found.append(_outcome(protocol, systems, ids, records, published))
    return sorted(found, key=lambda outcome: outcome.deviation)


def _threshold(
    made: Embedded,
    ids: Sequence[str],
    kind: str,
    policy: str,
    sexes: Mapping[str, str] | None,
    fmr: float,
) -> ThresholdRecord:
    other = ~np.eye(len(ids), dtype=bool)
    if policy == "same-sex":
        assert sexes is not None
        sex = np.array([sexes[i] for i in ids])
        other &= sex[:, None] == sex[None]
    cross = made.system.compare(made.neutral[:, None], made.smiling[None])
    scores = [cross[other]]
    if kind == "all-captures":
        once = np.triu(other)
        for side in (made.neutral, made.smiling):
            scores.append(made.system.compare(side[:, None], side[None])[once])
    return threshold_at_fmr(
        np.concatenate(scores),
        fmr,
        score_type=made.system.score_type,
        impostor_policy=policy,
        impostor_set=f"the benchmark's own people, {kind}",
        model=made.system.name,
        model_fingerprint=made.system.fingerprint,
        alignment=made.system.alignment,
    )


def _outcome(
    protocol: ScoringProtocol,
    systems: Mapping[str, Embedded],
    ids: Sequence[str],
    records: Mapping[str, ThresholdRecord],
    published: Mapping[str, Mapping[str, float]],
) -> CalibrationResult:
    index = {person: k for k, person in enumerate(ids)}
    cells: dict[str, dict[str, dict[str, float]]] = {}
    differences = []
    for name, made in systems.items():
        captures = {"03": made.neutral, "08": made.smiling}
        for row, (pairs, morphs) in made.morphs.items():
            weakest = []
            for pair, morph in zip(pairs, morphs, strict=True):
                scores = [
                    made.system.compare(morph, captures[_capture(c, protocol.probe)][index[s]])
                    for s, c in pair.sides
                ]
                # A morph or probe without a face matches nobody.
                weakest.append(-np.inf if np.isnan(scores).any() else float(min(scores)))
            hits = int(records[name].matches(np.array(weakest)).sum())
            percent = 100 * hits / len(pairs)
            cell = {"percent": percent, "k": hits, "n": len(pairs)}
            if (stated := published.get(row, {}).get(name)) is not None:
                cell["published"] = stated
                differences.append(abs(percent - stated))
            cells.setdefault(row, {})[name] = cell
    if not differences:
        raise ValueError(
            f"no row has a published number: morphs of {', '.join(cells)}, published are "
            f"{', '.join(published)}"
        )
    return CalibrationResult(protocol, float(np.mean(differences)), cells, tuple(records.values()))


def _capture(capture: str, probe: str) -> str:
    if probe == "source":
        return capture
    return "08" if capture == "03" else "03"
