"""Detectors' matrix against closed forms, and what no file of a stranger may do."""

import numpy as np
import pytest
from detection_scores import (
    bscer_at_macer,
    d_eer,
    macer_at_bscer,
    quantiles,
    setting_rows,
    write_detection,
)

from adjointdeis.evaluation import DetectionError, DetectionScores, ScoreError
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import (
    DetectorSetting,
    hardening_rows,
    matrix_rows,
    read_detection,
)
from adjointdeis.evaluation.detection_points import images_needed
from adjointdeis.evaluation.detection_tables import overview_table

ATTACKS = {"landmark": (3.0, 1.0), "diffusion": (1.5, 0.5), "guided": (2.0, 2.0)}


@pytest.fixture
def study(tmp_path):
    def make(*parts):
        rows = [row for part in parts for row in part]
        return read_detection(write_detection(tmp_path / "detection.csv", rows))

    return make


def test_rates_are_those_of_the_closed_form(study):
    n = 2000
    made = study(setting_rows(ATTACKS, n_bona_fide=n, n_morphs=n, n_subjects=100))
    found = matrix_rows(made, replicates=0)
    rows = {row["attack"]: row for row in found}
    assert list(rows) == [*sorted(ATTACKS), WORST]
    for attack, (d, s) in ATTACKS.items():
        row = rows[attack]
        assert row["d_eer"] == pytest.approx(d_eer(d, s), abs=1.5 / n)
        for name, f in (("bscer10", 0.1), ("bscer20", 0.05), ("bscer100", 0.01)):
            # The density at the threshold carries the 1/n of one rate over to the other.
            assert row[name]["value"] == pytest.approx(bscer_at_macer(d, s, f), abs=6 / n)
            assert row[name]["n"] == n and row[name]["tau"] == pytest.approx(
                d + s * quantiles(n)[round(f * n)], abs=1e-9
            )
        for name, g in (("macer10", 0.1), ("macer100", 0.01)):
            assert row[name]["value"] == pytest.approx(macer_at_bscer(d, s, g), abs=6 / n)
    # The two rates differ by far more than that, so a swap would be seen.
    d, s = ATTACKS["guided"]
    assert abs(bscer_at_macer(d, s, 0.1) - macer_at_bscer(d, s, 0.1)) > 0.1
    for name in ("bscer10", "bscer20", "bscer100", "macer10", "macer100"):
        assert rows[WORST][name]["value"] == max(rows[a][name]["value"] for a in ATTACKS)


def test_a_detector_in_the_wrong_direction_is_worse_than_chance(study):
    rows = setting_rows({"a": (2.0, 1.0)})
    turned = [row | {"score": -row["score"]} for row in rows]
    found = matrix_rows(study(turned), replicates=0)[0]
    assert found["d_eer"] == pytest.approx(1 - d_eer(2.0, 1.0), abs=0.01)
    assert "worse than chance" in found["verdict"]


def test_a_score_at_the_threshold_is_called_bona_fide(study):
    rows = setting_rows({"a": (0.0, 1.0)}, n_bona_fide=10, n_morphs=10)
    for row in rows:
        row["score"] = 0.5
    found = matrix_rows(study(rows), replicates=0)[0]
    # All scores alike: every threshold flags all or none, and 10% of 10 morphs is not all of them.
    assert found["bscer10"]["value"] == 1.0
    # With BSCER at most 10% none is flagged, at a threshold equal to the scores.
    assert (found["macer10"]["value"], found["macer10"]["tau"]) == (1.0, 0.5)


def test_what_the_sample_cannot_support_is_refused_with_what_it_needs(study):
    few = setting_rows({"a": (2.0, 1.0)}, n_bona_fide=99, n_morphs=20)
    row = matrix_rows(study(few), replicates=50)[0]
    assert row["bscer20"]["value"] is not None and row["bscer20"]["needs"] is None
    for name in ("bscer100", "macer100"):
        assert row[name] == {**dict.fromkeys(("k", "n", "value", "lo", "hi", "tau")), "needs": 100}
    assert (row["n_morph"], row["n_bonafide"]) == (20, 99)
    enough = setting_rows({"a": (2.0, 1.0)}, n_bona_fide=100, n_morphs=100)
    row = matrix_rows(study(enough), replicates=0)[0]
    assert row["bscer100"]["needs"] is None and row["macer100"]["needs"] is None
    assert [images_needed(f) for f in (0.1, 0.05, 0.01, 0.3, 0.001)] == [10, 20, 100, 4, 1000]


def test_the_worst_attack_needs_as_many_images_as_its_smallest(study):
    rows = setting_rows({"a": (2.0, 1.0)}, n_morphs=200)
    rows += [r for r in setting_rows({"b": (2.0, 1.0)}, n_morphs=50) if r["label"] == "morph"]
    found = {row["attack"]: row for row in matrix_rows(study(rows), replicates=0)}
    assert found["a"]["bscer100"]["needs"] is None
    assert found[WORST]["bscer100"]["needs"] == 100 and found[WORST]["n_morph"] == 50


def test_intervals_hold_the_truth_and_are_wider_than_of_independent_images(study):
    d, s = 1.5, 0.5
    kept = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        rows = setting_rows({"a": (d, s)}, n_bona_fide=100, n_morphs=100, n_subjects=50, seed=seed)
        for row in rows:
            noise = float(generator.standard_normal())
            row["score"] = d + s * noise if row["label"] == "morph" else noise
        found = matrix_rows(study(rows), replicates=200, seed=seed)[0]
        assert found["resampled"] == "subjects"
        kept += found["d_eer_lo"] <= d_eer(d, s) <= found["d_eer_hi"]
        n = 100
        exact = 2 * 1.96 * np.sqrt(found["d_eer"] * (1 - found["d_eer"]) / n)
        assert found["d_eer_hi"] - found["d_eer_lo"] > 0.9 * exact
    assert kept >= 18


def test_a_shuffled_control_is_at_one_half(study):
    rows = setting_rows({"a": (0.0, 1.0), "b": (0.0, 1.0)}, trained_on="shuffled")
    for row in matrix_rows(study(rows), replicates=200):
        if row["attack"] != WORST:
            assert row["d_eer"] == pytest.approx(0.5, abs=0.01)
            assert row["d_eer_lo"] < 0.5 < row["d_eer_hi"]


def test_who_saw_which_attack(study):
    attacks = {"a": (1.0, 1.0), "b": (1.0, 1.0), "guided": (1.0, 1.0), "new": (1.0, 1.0)}
    few = {"n_bona_fide": 2, "n_morphs": 2}
    names = ("all", "a", "b", "guided", "without:a", "without:b", "hardened", "shuffled")
    made = study(*(setting_rows(attacks, trained_on=name, **few) for name in names))
    assert made.learnt("cnn") == {"a": "all", "b": "all", "guided": "hardened", "new": "never"}

    def saw(name):
        setting = DetectorSetting("cnn", "s_mad", name, "none")
        return [made.saw(setting, attack) for attack in attacks]

    assert saw("all") == [True, True, False, False]
    assert saw("a") == [True, False, False, False]
    assert saw("without:a") == [False, True, False, False]
    assert saw("hardened") == [True, True, True, False]
    assert saw("shuffled") == [None] * 4
    # Without leave-one-out nothing says what "all" had.
    alone = study(setting_rows(attacks, **few), setting_rows(attacks, trained_on="a", **few))
    assert alone.learnt("cnn") == {} and saw("a") == [True, False, False, False]
    assert alone.saw(DetectorSetting("cnn", "s_mad", "all", "none"), "a") is None


def test_settings_are_evaluated_apart(study):
    parts = [
        setting_rows({"a": (3.0, 1.0), "b": (1.0, 1.0)}, trained_on="a"),
        setting_rows({"a": (1.0, 1.0), "b": (3.0, 1.0)}, trained_on="b"),
        setting_rows({"a": (2.0, 1.0), "b": (2.0, 1.0)}, trained_on="without:b"),
        setting_rows({"a": (2.0, 1.0), "b": (0.5, 1.0)}, degradation="jpeg"),
    ]
    made = study(*reversed(parts))
    found = {
        (row["trained_on"], row["degradation"], row["attack"]): row["d_eer"]
        for row in matrix_rows(made, replicates=0)
    }
    for (trained, degradation), own in {
        ("a", "none"): (3, 1), ("b", "none"): (1, 3), ("without:b", "none"): (2, 2),
        ("all", "jpeg"): (2, 0.5),
    }.items():  # fmt: skip
        for attack, d in zip("ab", own, strict=True):
            assert found[trained, degradation, attack] == pytest.approx(d_eer(d, 1), abs=0.01)
    assert made.trainings("cnn") == ["all", "a", "b", "without:b"]
    assert made.degradations == ["none", "jpeg"]


def test_hardening_is_a_paired_difference_with_the_right_sign(study):
    before = {"seen": (2.0, 1.0), "unseen": (1.0, 1.0)}
    after = {"seen": (1.8, 1.0), "unseen": (1.6, 1.0)}
    made = study(setting_rows(before, seed=1), setting_rows(after, trained_on="hardened", seed=1))
    rows = {row["attack"]: row for row in hardening_rows(made, replicates=200)}
    for attack in before:
        (d, s), (e, t) = before[attack], after[attack]
        change = rows[attack]["d_eer"]
        assert change["change"] == pytest.approx(d_eer(e, t) - d_eer(d, s), abs=0.01)
        assert change["lo"] <= change["change"] <= change["hi"]
        pays = rows[attack]["bscer10"]["change"]
        wanted = bscer_at_macer(e, t, 0.1) - bscer_at_macer(d, s, 0.1)
        assert pays == pytest.approx(wanted, abs=0.02)
    # A gain on the unseen attack is negative, what is paid on the seen one positive.
    assert rows["unseen"]["d_eer"]["hi"] < 0 < rows["seen"]["bscer10"]["change"]
    assert rows[WORST]["n_morph"] == 200
    # The same people are drawn for both: without a change there is no width.
    same = study(setting_rows(before), setting_rows(before, trained_on="hardened"))
    row = hardening_rows(same, replicates=50)[0]["d_eer"]
    assert (row["change"], row["lo"], row["hi"]) == (0, 0, 0)


def test_hardening_refuses_other_images(study):
    rows = setting_rows({"a": (1.0, 1.0)}, trained_on="hardened", n_morphs=199)
    made = study(setting_rows({"a": (1.0, 1.0)}), rows)
    with pytest.raises(DetectionError, match="scored different images"):
        hardening_rows(made, replicates=0)


def edited(row, **values):
    return [dict(r, **values) if k == row else r for k, r in enumerate(BASE)]


BASE = setting_rows({"a": (1.0, 1.0)}, n_bona_fide=3, n_morphs=3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (edited(1, label="genuine"), r":3: label 'genuine': expected morph or bona_fide"),
        (edited(1, kind="smad"), r":3: kind 'smad': expected s_mad or d_mad or demorphing"),
        (edited(1, kind="d_mad"), r":3: kind 'd_mad': the detector has another kind"),
        (edited(1, detector=""), r":3: detector '': every line needs"),
        (edited(1, image=""), r":3: image ''"),
        (edited(1, attack="a"), r":3: attack 'a': a bona fide image is of no attack"),
        (edited(1, subject_2="x"), r":3: subject_2 'x': a bona fide image has one person"),
        (edited(3, attack=""), r":5: attack '': a morph needs"),
        (edited(3, attack="all"), r":5: attack 'all': this name means something else"),
        (edited(3, attack="bonafide"), r":5: attack 'bonafide': this name"),
        (edited(3, subject_2=""), r":5: subject_2 '': a morph has two people or none"),
        (edited(3, subject_1="7", subject_2="7"), r":5: subject_2 '7': a morph is of two"),
        (edited(3, trained_on="al"), r":5: trained_on 'al': expected all, .* of this file \(a\)"),
        (edited(3, trained_on="without:b"), r":5: trained_on 'without:b'"),
        (edited(3, score="high"), r":5: score 'high' is not a number"),
        (edited(3, score="inf"), r":5: score 'inf' is not finite"),
        ([*BASE, dict(BASE[0], score=9.0)], r":8: duplicate .* first seen at .*:2 as"),
        ([], r"no scored image in this file"),
    ],
)
def test_what_is_refused_names_file_and_line(tmp_path, rows, message):
    path = write_detection(tmp_path / "detection.csv", rows)
    with pytest.raises(ScoreError, match=r"detection\.csv" + ("" if rows else ": ") + message):
        read_detection(path)


def test_headers(tmp_path):
    path = tmp_path / "detection.csv"
    path.write_text("detector,attack,label,image\n")
    with pytest.raises(ScoreError, match=r":1: column 'score' is missing; expected the header"):
        read_detection(path)
    path.write_text("detector,attack,label,image,score,shade\n")
    with pytest.raises(ScoreError, match=r":1: unknown column 'shade'"):
        read_detection(path)
    path.write_text("detector,attack,label,image,score,score\n")
    with pytest.raises(ScoreError, match=r":1: column .* appears twice"):
        read_detection(path)
    path.write_text("detector,attack,label,image,score\nd,,bona_fide,x\n")
    with pytest.raises(ScoreError, match=r":2: 4 fields, expected 5"):
        read_detection(path)
    # The least that a file of one's own must say; a failure is an empty score.
    path.write_text(
        "image,label,attack,detector,score\nx,bona_fide,,d,0.1\ny,bona_fide,,d,\nm,morph,a,d,.9\n"
    )
    study = read_detection(path)
    assert list(study.tables) == [DetectorSetting("d", "s_mad", "given", "none")]
    row = matrix_rows(study, replicates=0)[0]
    assert (row["n_bonafide"], row["n_failed_bonafide"], row["d_eer"]) == (1, 1, 0.0)


def test_a_setting_without_morphs_is_named(tmp_path):
    rows = setting_rows({"a": (1.0, 1.0)})
    rows += [r for r in setting_rows({"a": (1.0, 1.0)}, degradation="jpeg") if not r["attack"]]
    study = read_detection(write_detection(tmp_path / "detection.csv", rows))
    with pytest.raises(DetectionError, match="cnn, trained on all, degradation jpeg: no attack"):
        matrix_rows(study, replicates=0)


def test_rates_agree_with_scikit_learn(study):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    for digits in (1, 6):  # with ties within and between the classes, and without
        rows = setting_rows({"a": (1.0, 0.7)}, n_bona_fide=150, n_morphs=120)
        for row in rows:
            row["score"] = round(row["score"] + 0.3 * float(generator.standard_normal()), digits)
        made = study(rows)
        truth = np.array([row["label"] == "morph" for row in rows])
        scores = np.array([row["score"] for row in rows])
        flagged, found, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
        own = DetectionScores.from_table(next(iter(made.tables.values())), "cnn")
        _, macer, bscer = own.det("a")
        # scikit-learn calls a score at the threshold a morph, we above it: the same points.
        assert np.allclose(np.unique(bscer), np.unique(flagged))
        ours = {(round(b, 9), round(m, 9)) for b, m in zip(bscer, macer, strict=True)}
        theirs = {(round(f, 9), round(1 - t, 9)) for f, t in zip(flagged, found, strict=True)}
        assert ours == theirs
        fpr, fnr, _ = metrics.det_curve(truth, scores)
        assert {(round(f, 9), round(m, 9)) for f, m in zip(fpr, fnr, strict=True)} <= ours
        row = matrix_rows(made, replicates=0)[0]
        at = np.argmin(np.abs(fnr - fpr))
        assert row["d_eer"] == pytest.approx((fnr[at] + fpr[at]) / 2, abs=1e-12)
        for name, f in (("bscer10", 0.1), ("bscer20", 0.05), ("bscer100", 0.01)):
            assert row[name]["value"] == pytest.approx(
                flagged[1 - found <= f + 1e-9].min(), abs=1e-12
            )
        for name, g in (("macer10", 0.1), ("macer100", 0.01)):
            assert row[name]["value"] == pytest.approx(
                1 - found[flagged <= g + 1e-9].max(), abs=1e-12
            )


def test_rates_agree_with_bob_measure():
    """No dependency: `pip install bob-measure` (6.1) brings it, with numba and a numpy below 2."""
    bob = pytest.importorskip("bob.measure")
    generator = np.random.default_rng(0)
    for digits in (1, 6):
        bona = np.round(generator.normal(0, 1, 150), digits)
        morph = np.round(generator.normal(1.2, 0.7, 120), digits)
        ours = DetectionScores(bona, {"a": morph}, "morph")
        for tau in ours.det("a")[0]:
            # bob calls a score at the threshold a morph, we above it.
            rates = bob.farfrr(bona, morph, float(np.nextafter(tau, np.inf)))
            assert rates == (ours.bscer(tau).value, ours.macer(tau, "a").value)
        assert bob.eer(bona, morph) == pytest.approx(ours.d_eer("a")[0], abs=1e-12)
        for f in (0.1, 0.05, 0.01):
            # bob takes the other end of the thresholds between two scores, or a stricter one.
            flagged, missed = bob.farfrr(bona, morph, bob.frr_threshold(bona, morph, f))
            assert missed <= f and ours.bscer_at_macer(f, "a").value <= flagged
            flagged, missed = bob.farfrr(bona, morph, bob.far_threshold(bona, morph, f))
            assert flagged <= f and ours.macer_at_bscer(f, "a").value <= missed


def small_file(folder, turn=lambda score: score, detector="d", degradation="none"):
    lines = ["detector,attack,label,subject_1,subject_2,image,score,degradation"]
    for k in range(12):
        bona, morph = turn(0.1 + k / 100), turn(0.7 + k / 100)
        of = f"{k:03d}"
        lines.append(f"d,,bona_fide,{of},,b{k}.png,{bona},none")
        lines.append(f"{detector},dim,morph,{of},{k + 1:03d},m{k}.png,{morph},{degradation}")
    (folder / "d.csv").write_text("\n".join(lines) + "\n")
    return folder / "d.csv"


@pytest.mark.parametrize("turn", [lambda score: score, lambda score: 1 - score])
def test_scores_that_point_the_other_way_are_said(turn, tmp_path):
    """D-EER 100% of 24 images told apart without an error: a larger score said bona fide."""
    rows = matrix_rows(read_detection(small_file(tmp_path, turn)), replicates=0)
    (note,) = [n for n in overview_table(rows).notes if "Worse than chance" in n] or [""]
    assert rows[0]["d_eer"] == (0.0 if turn(0.2) == 0.2 else 1.0)
    assert (note == "") == (turn(0.2) == 0.2)
    assert not note or "d, trained on given. Larger must say morph" in note


@pytest.mark.parametrize("changes", [{"detector": "D"}, {"degradation": "None"}])
def test_two_spellings_are_not_two_settings(changes, tmp_path):
    with pytest.raises(ScoreError, match=r"d\.csv:\d+: (detector|degradation) .*differ in case"):
        read_detection(small_file(tmp_path, **changes))
