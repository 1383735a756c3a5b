"""experiments/nfe_pareto counts evaluations as the paper does, and rates as the library does."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest

from experiments.nfe_pareto import rates, settings, study


class SimplePair(NamedTuple):
    morph_id: str
    subject_a: str
    subject_b: str


# Three pairs; the threshold of the one judge is 0.5.
PAIRS = [SimplePair(name, subject_a=name[0], subject_b=name[1]) for name in ("cd", "ab", "ef")]
HIGH, LOW = [0.7, 0.6], [0.9, 0.4]


STUDY = SimpleNamespace(thresholds={"judge": 0.5}, judges=[SimpleNamespace(name="judge")])


def judged(only=None):
    return rates.Judged(STUDY, PAIRS, only)


def row(*scores, distance=0.5):
    return {
        "loss": [distance] * 3,
        "distance": [[distance, 0.0]] * 3,
        "scores": {"judge/other": list(scores), "judge/source": list(scores)},
    }


def setting(**changes):
    values = {"n": 5, "encode": 50, "steps": 2} | changes
    return study.Setting("exact", "Adam", 0.03, **values)


def test_evaluations_are_the_papers() -> None:
    # N_E + n (N + M): 250 + 50 (20 + 20), and the 20 that show the last iterate.
    assert settings.BASELINE.nfe(50) - settings.BASELINE.n == 2250
    # The first gradient step sees the sampling run after the encoding.
    assert setting().nfe(0) == 50 + 5
    assert setting().nfe(2) == 50 + 2 * (5 + 5) + 5
    # The SDE is encoded along its own grid.
    assert setting(calculus="sde").nfe(0) == 5 + 5


def test_a_morph_counts_when_both_subjects_are_above_the_threshold() -> None:
    point = judged().point([[HIGH, LOW, [0.5, 0.9]]], "judge/other")
    assert point.k == (1,)
    assert point.value == 1 / 3


def test_seeds_are_averaged_and_their_counts_kept() -> None:
    runs = [(setting(seed=seed), [row(*scores)], PAIRS) for seed, scores in enumerate(SEEDS)]
    (curve,) = rates.curves(STUDY, runs)
    point = curve.point(0, "judge/other")
    assert point.k == (3, 1)
    assert point.value == pytest.approx(4 / 6)
    low, high = point.interval
    assert low <= point.value <= high


SEEDS = ([HIGH, HIGH, HIGH], [LOW, HIGH, LOW])


def test_settings_that_differ_in_more_than_the_seed_stay_apart() -> None:
    runs = [(setting(), [row(*SEEDS[0])], PAIRS), (setting(n=10), [row(*SEEDS[0])], PAIRS)]
    assert len(rates.curves(STUDY, runs)) == 2


def test_a_curve_on_few_pairs_is_held_against_the_same_pairs() -> None:
    base = rates.Curve(setting(), [[row(HIGH, HIGH, LOW)]], judged())
    few = rates.Judged(STUDY, PAIRS[1:])
    curve = rates.Curve(setting(), [[row(LOW, LOW, HIGH)]], judged()).on(PAIRS[1:])
    # Of the last two pairs one is accepted in each; of all three the base has two.
    assert curve.point(0, "judge/other").k == base.on(few.pairs).point(0, "judge/other").k == (1,)
    assert rates.passes(curve, base, "other") == setting().nfe(0)
    assert base.on(PAIRS) is base


def test_a_difference_is_paired() -> None:
    everything = judged()
    one = everything.point([SEEDS[0]], "judge/other")
    other = everything.point([SEEDS[1]], "judge/other")
    gain, low, high = one.gain(other)
    assert gain == pytest.approx(2 / 3)
    assert 0 <= low <= gain <= high <= 1
    # The same morphs differ in no replicate, however wide the interval of their rate.
    assert other.gain(other) == (0, 0, 0)


def test_a_pair_stops_at_its_first_similar_iterate() -> None:
    early = row(HIGH, HIGH, LOW, distance=0.3)
    early["distance"][1] = [0.1, 0.2]
    early["distance"][2] = [0.1, 0.05]
    rows = [row(LOW, LOW, LOW), early, row(HIGH, LOW, HIGH, distance=0.15)]
    curve = rates.Curve(setting(), [rows], judged())
    nfe, points = curve.stopped(0.8)
    # Pairs two and three stop at step 1, the first one is never similar before the last step.
    assert nfe == pytest.approx((curve.setting.nfe(2) + 2 * curve.setting.nfe(1)) / 3)
    # Of the third pair the first iterate that is similar counts (LOW), not the last one.
    assert points["judge/other"].k == (2,)
    never, points = curve.stopped(0.99)
    assert never == curve.setting.nfe(2)
    assert points["judge/other"].k == (2,)


def test_passing_is_for_good() -> None:
    base = rates.Curve(setting(), [[row(HIGH, LOW, LOW)]], judged())
    course = [row(LOW, LOW, LOW), row(HIGH, HIGH, LOW), row(LOW, LOW, LOW), row(HIGH, LOW, LOW)]
    curve = rates.Curve(setting(), [course], judged())
    # The second iterate is above, the third below again: only the fourth passes for good.
    assert rates.passes(curve, base, "other") == setting().nfe(3)
    assert rates.passes(rates.Curve(setting(), [course[:3]], judged()), base, "other") is None


def test_some_pairs_can_be_judged_apart() -> None:
    point = judged({"ab", "ef"}).point([[HIGH, LOW, HIGH]], "judge/source")
    assert (point.k, point.n) == ((1,), 2)


def test_the_paper_rows_have_the_papers_settings() -> None:
    base = settings.BASELINE
    assert (base.optimiser, base.lr, base.n, base.steps) == ("SGD", 0.1, 20, 50)
    sde = [s for s in settings.SETTINGS if s.calculus == "sde"]
    # Whatever is random has three seeds; whatever is not has one.
    for found in sde:
        same = [s.seed for s in sde if rates.replace(s, seed=0) == rates.replace(found, seed=0)]
        assert sorted(same) == [0, 1, 2]
    assert all(s.seed == 0 for s in settings.SETTINGS if s.calculus == "ode")
