"""Detection rates by hand, against brute force, and under both directions."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adjointdeis.evaluation import DetectionError, ScoreTable, clopper_pearson
from adjointdeis.evaluation.detection import WORST, DetectionScores
from adjointdeis.evaluation.detection_points import OPERATING_POINTS, detection_rows

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25).map(np.array)


def test_by_hand():
    d = DetectionScores(
        np.array([0.1, 0.2, 0.6, np.nan]),
        {"weak": np.array([0.3, 0.7]), "strong": np.array([0.2, 0.2, 0.8])},
        "morph",
    )
    assert (d.macer(0.5, "weak").k, d.macer(0.5, "weak").n) == (1, 2)
    assert (d.macer(0.5, "strong").k, d.macer(0.5, "strong").n) == (2, 3)
    name, worst = d.macer_max(0.5)
    assert (name, worst.value) == ("strong", 2 / 3)
    assert (d.bscer(0.5).k, d.bscer(0.5).n, d.bscer(0.5).n_failed) == (1, 3, 1)
    assert d.n_failed == {"bonafide": 1, "weak": 0, "strong": 0}
    # No miss of "weak" is allowed at 10%: every image above or at 0.3 is flagged.
    assert d.bscer_at_macer(0.1, "weak").k == 1
    assert d.bscer_at_macer(0.1).k == 2


@given(scores, scores, st.floats(0, 0.99))
def test_operating_points_are_conservative_and_tight(bona, morph, target):
    d = DetectionScores(bona, {"a": morph}, "morph")
    tau = d.tau_at_macer(target, "a")
    assert (morph <= tau).mean() <= target
    candidates = [t for t in [*bona, *morph, -99.0] if (morph <= t).mean() <= target]
    best = min((bona > t).mean() for t in candidates)
    # Just below a score is as good as any threshold between two scores.
    assert d.bscer_at_macer(target, "a").value <= best + 1e-12
    tau = d.tau_at_bscer(target)
    assert (bona > tau).mean() <= target
    best = min((morph <= t).mean() for t in [*bona, *morph] if (bona > t).mean() <= target)
    assert d.macer_at_bscer(target, "a").value <= best + 1e-12


@given(scores, scores, scores, st.floats(0, 0.99))
def test_worst_case_holds_every_attack_at_the_target(bona, one, two, target):
    d = DetectionScores(bona, {"one": one, "two": two}, "morph")
    tau = d.tau_at_macer(target)
    assert d.macer_max(tau)[1].value <= target
    worst = max(d.bscer_at_macer(target, a).value for a in ("one", "two"))
    assert d.bscer_at_macer(target).value == worst


@given(scores, scores, scores, st.floats(0, 0.9))
def test_direction_mirrors(bona, one, two, target):
    up = DetectionScores(bona, {"one": one, "two": two}, "morph")
    down = DetectionScores(-bona, {"one": -one, "two": -two}, "bonafide")
    assert up.bscer_at_macer(target) == down.bscer_at_macer(target)
    assert up.tau_at_macer(target) == -down.tau_at_macer(target)
    assert up.d_eer()[0] == down.d_eer()[0]
    for ours, mirrored in zip(up.det("one"), down.det("one"), strict=True):
        same = np.allclose(ours, mirrored[::-1]) or np.allclose(ours, -mirrored[::-1])
        assert same


@given(scores, scores)
def test_det_is_every_operating_point(bona, morph):
    taus, macer, bscer = DetectionScores(bona, {"a": morph}, "morph").det("a")
    assert (np.diff(taus) > 0).all()
    assert np.allclose(macer, [(morph <= t).mean() for t in taus])
    assert np.allclose(bscer, [(bona > t).mean() for t in taus])
    assert (macer[0], bscer[0], macer[-1], bscer[-1]) == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(("higher_is", "sign"), [("morph", 1.0), ("bonafide", -1.0)])
def test_a_score_at_the_threshold_is_called_bona_fide(higher_is, sign):
    scores = DetectionScores(
        sign * np.array([0.1, 0.5]), {"a": sign * np.array([0.5, 0.9])}, higher_is
    )
    # A morph at tau is missed, a bona fide image at tau is not flagged.
    assert (scores.macer(sign * 0.5, "a").k, scores.bscer(sign * 0.5).k) == (1, 0)


def test_old_names_are_aliases():
    assert DetectionScores.apcer is DetectionScores.macer
    assert DetectionScores.bpcer is DetectionScores.bscer
    assert DetectionScores.bpcer_at_apcer is DetectionScores.bscer_at_macer


def test_bad_input():
    bona, morph = np.array([0.1]), {"a": np.array([0.9])}
    with pytest.raises(DetectionError, match="higher_is 'attack': expected morph or bonafide"):
        DetectionScores(bona, morph, "attack")
    with pytest.raises(DetectionError, match="no attack"):
        DetectionScores(bona, {}, "morph")
    with pytest.raises(DetectionError, match="bonafide: no score"):
        DetectionScores(np.array([np.nan]), morph, "morph")
    with pytest.raises(DetectionError, match="attack 'b': expected one of a"):
        DetectionScores(bona, morph, "morph").macer(0.5, "b")
    with pytest.raises(DetectionError, match="expected a share"):
        DetectionScores(bona, morph, "morph").tau_at_macer(10)


def test_rows_of_a_table(table):
    rows = detection_rows(table)
    assert [row["attack"] for row in rows] == ["strong", "weak", WORST]
    detector = DetectionScores.from_table(table, "detector")
    assert rows[2]["d_eer"] == detector.d_eer()[0]
    assert rows[0]["bscer10"]["k"] == detector.bscer_at_macer(0.1, "strong").k
    assert rows[1]["macer10"]["k"] == detector.macer_at_bscer(0.1, "weak").k
    # Of 40 bona fide images none may be flagged at 1%, which says nothing about 1%.
    assert {row["macer100"]["value"] for row in rows} == {None}
    assert {row["macer100"]["needs"] for row in rows} == {100}
    worst = max((row["macer10"] for row in rows[:2]), key=lambda found: found["value"])
    assert [rows[2]["macer10"][key] for key in ("k", "n", "tau")] == [
        worst[key] for key in ("k", "n", "tau")
    ]
    with pytest.raises(DetectionError, match="no mad row of system 'other'"):
        DetectionScores.from_table(table, "other")


def test_direction_of_a_table_comes_from_its_score_type(table):
    rows = table.select(kind="mad").to_rows()
    mirrored = ScoreTable.from_rows(
        [r | {"score": -r["score"], "score_type": "dissimilarity"} for r in rows]
    )

    def without_taus(rows):
        found = [{k: v for k, v in row.items() if k != "d_eer_tau"} for row in rows]
        points = [{k: {**row[k], "tau": 0} for k in OPERATING_POINTS} for row in found]
        return [row | own for row, own in zip(found, points, strict=True)]

    assert without_taus(detection_rows(mirrored)) == without_taus(detection_rows(table))


def test_intervals_of_detection_resample_people_and_do_not_collapse(table):
    rows = detection_rows(table, replicates=100)
    assert {row["resampled"] for row in rows} == {"subjects"}
    for row in rows:
        assert row["d_eer_lo"] <= row["d_eer"] <= row["d_eer_hi"]
        for name in OPERATING_POINTS:
            point = row[name]
            if point["needs"]:
                continue
            assert point["lo"] <= point["value"] <= point["hi"]
            # Wider than images taken as independent: the people are fewer than the images.
            lo, hi = clopper_pearson(point["k"], point["n"])
            assert point["hi"] - point["lo"] > 0.9 * (hi - lo)
        assert "too few for" in row["verdict"] and "30 wanted" in row["verdict"]
    nobody = table.select(kind="mad").to_rows()
    nobody = [r | {"subject_id": "", "ref_subject_id": ""} for r in nobody]
    anonymous = detection_rows(ScoreTable.from_rows(nobody), replicates=50)
    assert {row["resampled"] for row in anonymous} == {"images"}
    exact = detection_rows(table, replicates=0)
    assert exact[0]["d_eer"] == rows[0]["d_eer"] and exact[0]["d_eer_hi"] > exact[0]["d_eer"]


def test_a_detector_in_the_wrong_direction_is_said(table):
    rows = [r | {"score_type": "dissimilarity"} for r in table.select(kind="mad").to_rows()]
    found = detection_rows(ScoreTable.from_rows(rows), replicates=0)
    assert all("worse than chance" in row["verdict"] for row in found)
