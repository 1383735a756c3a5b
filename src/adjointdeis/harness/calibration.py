r"""Which protocol gives the published numbers on the published morphs.

The paper states neither its probe images, nor the impostors behind its thresholds, nor how its
resize filters; every combination gives other rates on the same morphs.  Scored under each, the one
that comes closest to the published rows is the best guess at what was done,

.. math:: \Delta = \frac{1}{|C|} \sum_{(r, s) \in C}
    \left| 100 \cdot \mathrm{MMPMR}_{rs} - p_{rs} \right|,

the mean absolute difference in percentage points over the cells C (row r, recogniser s) that both
have.  It is a fit: what is reported with it says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation import ScoreTable, Subjects, ThresholdRecord, estimate_thresholds
from adjointdeis.evaluation.groups import group_table
from adjointdeis.evaluation.metrics import vulnerability
from adjointdeis.evaluation.protocol import WORST_CASE
from adjointdeis.harness.scoring import PROBES

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
    for preparation, table in tables.items():
        for kind in kinds:
            judged = table if kind == "all-captures" else table.where(~_same_capture(table))
            named = f"the benchmark's own people, {kind}"
            for policy in rules:
                records = [
                    estimate_thresholds(
                        judged, system, [fmr], [policy], people, impostor_set=named
                    )[0]
                    for system in dict.fromkeys(table["system"].tolist())
                ]
                for probe in sides:
                    protocol = ScoringProtocol(preparation, kind, policy, probe)
                    found.append(_outcome(protocol, table, records, published))
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
