"""Every metric against its definition written as loops, on random, tied, tiny and odd input."""

import itertools
import math

import numpy as np
import pytest

from adjointdeis.evaluation import (
    ScoreTable,
    equal_error_rate,
    evaluate,
    false_match_rate,
    false_non_match_rate,
    mmpmr,
    threshold_at_fmr,
)
from adjointdeis.evaluation.attack_potential import attack_potential
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.groups import group

KINDS = ("random", "tied", "tiny", "equal", "failures")


def study(kind: str, seed: int):
    """{(morph, subject): scores of its probes} and impostor scores; NaN is a failure."""
    generator = np.random.default_rng(seed)
    morphs = 1 if kind == "tiny" else int(generator.integers(2, 9))
    probes = 1 if kind == "tiny" else int(generator.integers(1, 4))

    def draw(n: int) -> list[float]:
        x = generator.normal(size=n)
        if kind == "tied":
            x = x.round()
        if kind == "equal":
            x = np.zeros(n)
        if kind == "failures":
            x = np.where(generator.random(n) < 0.3, np.nan, x)
        return x.tolist()

    scores = {}
    for m in range(morphs):
        for s in range(int(generator.integers(2, 4))):
            scores[f"m{m}", f"s{m}{s}"] = draw(probes)
    impostors = draw(1 if kind == "tiny" else int(generator.integers(3, 40)))
    if all(math.isnan(x) for x in impostors):
        impostors[0] = 0.5
    return scores, impostors


def expected(scores, tau: float, variant: str) -> float:
    by_morph: dict[str, list[list[float]]] = {}
    for (morph, _), probes in scores.items():
        by_morph.setdefault(morph, []).append(probes)
    hit = [[[x > tau for x in probes] for probes in subjects] for subjects in by_morph.values()]
    if variant in ("MMPMR", "MinMax"):
        return sum(all(any(p) for p in m) for m in hit) / len(hit)
    if variant == "ProdAvg":
        return sum(math.prod(sum(p) / len(p) for p in m) for m in hit) / len(hit)
    if variant == "FMMPMR":
        pairs = [all(row) for m in hit for row in zip(*m, strict=True)]
        return sum(pairs) / len(pairs)
    single = [x for m in hit for p in m for x in p]
    return sum(single) / len(single)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("direction", ["similarity", "dissimilarity"])
def test_rates_and_thresholds(kind, seed, direction) -> None:
    scores, impostors = study(kind, seed)
    sign = -1.0 if direction == "dissimilarity" else 1.0
    rows = [(m, s, i, x) for (m, s), probes in scores.items() for i, x in enumerate(probes)]
    morph, subject, probe = ([row[k] for row in rows] for k in range(3))
    values = sign * np.array([row[3] for row in rows])
    n = sum(not math.isnan(x) for x in impostors)
    for fmr in (0.0, 0.1, 0.25, 0.5):
        record = threshold_at_fmr(sign * np.array(impostors), fmr, score_type=direction)
        tau = sign * record.value
        false = sum(x > tau for x in impostors)
        assert (record.k, record.n) == (false, n) and false / n <= fmr
        # No looser observed score keeps to the target.
        looser = [x for x in impostors if x < tau]
        assert all(sum(y > x for y in impostors) / n > fmr for x in looser)
        above = [x for x in impostors if x > tau]
        strictest = record.value_strictest
        assert strictest is None if not above else sign * strictest == min(above)
        for variant in ("MinMax", "ProdAvg", "FMMPMR", "IAPMR"):
            found = mmpmr(
                values, morph, subject, record.value, probe=probe, variant=variant,
                score_type=direction,
            )  # fmt: skip
            assert found.value == pytest.approx(expected(scores, tau, variant), abs=1e-12)
        rate = false_match_rate(sign * np.array(impostors), record.value, score_type=direction)
        assert (rate.k, rate.n) == (false, n)
        missed = false_non_match_rate(sign * np.array(impostors), record.value,
                                      score_type=direction)  # fmt: skip
        assert missed.k == n - false


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_attack_potential(kind, seed) -> None:
    scores, _ = study(kind, seed)
    other = {key: [x + 0.3 * (i - 1) for i, x in enumerate(p)] for key, p in scores.items()}
    taus = {"a": 0.0, "b": 0.2}
    groups = {}
    for name, own in (("a", scores), ("b", other)):
        rows = [(m, s, i, x) for (m, s), probes in own.items() for i, x in enumerate(probes)]
        columns = list(zip(*rows, strict=True))
        groups[name] = group(columns[3], columns[0], columns[1], columns[2])
    found = attack_potential(groups, taus).counts
    probes = len(next(iter(scores.values())))
    for r, c in itertools.product(range(1, probes + 1), (1, 2)):
        count = 0
        for morph in {m for m, _ in scores}:
            systems = 0
            for name, own in (("a", scores), ("b", other)):
                hits = [sum(x > taus[name] for x in p) for (m, _), p in own.items() if m == morph]
                systems += min(hits) >= r
            count += systems >= c
        assert found[r - 1, c - 1] == count


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_equal_error_rates(seed, decimals) -> None:
    generator = np.random.default_rng(seed)
    mated = generator.normal(1, 1, int(generator.integers(1, 12))).round(decimals)
    nonmated = generator.normal(0, 1, int(generator.integers(1, 30))).round(decimals)
    taus = [-99.0, *sorted({*mated.tolist(), *nonmated.tolist()})]
    errors = [(float(np.mean(nonmated > t)), float(np.mean(mated <= t))) for t in taus]
    least = min(abs(a - b) for a, b in errors)
    found = equal_error_rate(mated, nonmated)
    assert abs(found.fmr - found.fnmr) == pytest.approx(least)
    detector = DetectionScores(nonmated, {"x": mated}, "morph")
    assert detector.d_eer()[0] == pytest.approx(found.value)


@pytest.mark.parametrize("seed", range(6))
def test_the_table_gives_what_the_arrays_give(seed) -> None:
    scores, impostors = study("random", seed)
    base = {"system": "x", "score_type": "similarity"}
    rows = [
        {**base, "kind": "morph", "morph_id": m, "attack": "a", "subject_id": s,
         "probe_id": f"{s}{i}", "probe_policy": "other", "score": x}
        for (m, s), probes in scores.items() for i, x in enumerate(probes)
    ]  # fmt: skip
    rows += [
        {**base, "kind": "nonmated", "subject_id": f"i{k}", "ref_subject_id": f"j{k % 2}i",
         "probe_id": f"p{k}", "ref_id": f"q{k}", "score": x}
        for k, x in enumerate(impostors)
    ]  # fmt: skip
    table = ScoreTable.from_rows(rows, metadata={"two_groups": True})
    found = evaluate(table, fmr=(0.1, 0.1), variants=["MinMax", "IAPMR"], replicates=0)
    assert len(found) == 2
    tau = threshold_at_fmr(np.array(impostors), 0.1).value
    for row in found:
        assert row["tau"] == tau
        assert row["value"] == pytest.approx(expected(scores, tau, row["variant"]))
