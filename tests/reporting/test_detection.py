"""Detection in reports: numbers of closed forms, beside MMPMR, and files of strangers."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from detection_scores import d_eer, macer_at_bscer, setting_rows, write_detection

from adjointdeis.evaluation import DetectionScores, read_detection
from adjointdeis.evaluation.cli import main
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import (
    DETECTION,
    DetectorSetting,
    hardening_rows,
    matrix_rows,
)
from adjointdeis.reporting import ReportError, Run, aggregate, write_report
from adjointdeis.reporting.curves import ErrorCurve, detection_curve, detection_curves, error_figure
from adjointdeis.reporting.detection import (
    beside_table,
    candidates_table,
    detection_blocks,
    reconstructed_table,
)
from adjointdeis.reporting.detection_figures import plane_figure
from adjointdeis.reporting.detection_result import ROWS, DetectionResult
from adjointdeis.reporting.detection_verdict import verdict
from adjointdeis.reporting.document import FigureRow, Table, parts
from adjointdeis.reporting.schema import DEGRADED

ATTACKS = {
    "dim_a": ("DiM-A", "DiM-A", 0.22, None, 350),
    "exact": ("exact gradient", None, 0.33, 0, 650),
}
SEPARATION = {"dim_a": (3.0, 0.5), "exact": (1.0, 2.0)}
LOST = {"none": 0.0, "print_scan": 1.0}
TRAININGS = ("all", "dim_a", "exact", "without:dim_a", "hardened", "shuffled")


def rows_of(result, detector="cnn", kind="s_mad", gain=0.0):
    """Every training and degradation; the morphs are those of the run's pairs."""
    pairs = [(pair["subject_a"], pair["subject_b"]) for pair in result["pairs"]]
    found = []
    for degradation, lost in LOST.items():
        for trained_on in TRAININGS:
            attacks = {
                name: (0.0 if trained_on == "shuffled" else d + gain - lost, s)
                for name, (d, s) in SEPARATION.items()
            }
            own = setting_rows(
                attacks, detector=detector, kind=kind, trained_on=trained_on,
                degradation=degradation, n_bona_fide=120, n_morphs=len(pairs), seed=1,
            )  # fmt: skip
            morphs = [row for row in own if row["label"] == "morph"]
            for k, row in enumerate(morphs):
                row["subject_1"], row["subject_2"] = pairs[k % len(pairs)]
                row["image"] = "_".join(pairs[k % len(pairs)])
            found += own
    return found


@pytest.fixture(scope="module")
def detected(tmp_path_factory, make_run):
    """A run with a detection.csv and rates after a degradation: (directory, result)."""
    directory = tmp_path_factory.mktemp("detected")
    result = make_run(directory, attacks=ATTACKS, systems=("arcface",), n_pairs=60, replicates=30,
                      images=False)  # fmt: skip
    rows = [*rows_of(result), *rows_of(result, "gate", "d_mad", gain=1.0)]
    write_detection(directory / DETECTION, rows)
    halved = []
    for row in result["rows"]:
        if row["attack"] in ATTACKS:
            halved.append({**row, "k": row["k"] // 2, "value": row["k"] // 2 / row["n"]})
    (directory / DEGRADED).write_text(json.dumps({"print_scan": halved}))
    at = {"trained_on": "all", "degradation": "none", "n": 120}
    control = [{"detector": "cnn", "k": 30, **at}, {"detector": "gate", "k": 100, **at}]
    result["run"]["detection"] = {"control": [*control, {"k": "many"}, 3]}
    (directory / "result.json").write_text(json.dumps(result))
    return directory, result


@pytest.fixture(scope="module")
def study(detected):
    return DetectionResult.of_run(Run.read(detected[0]))


def test_the_report_has_the_section_and_its_numbers(detected):
    directory, _ = detected
    files = write_report(directory, plots=False)
    assert directory / ROWS in files
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert '<section id="detection">' in page and "MMPMR beside detection" in page
    rows = json.loads((directory / ROWS).read_text())["matrix"]
    found = {
        (r["detector"], r["trained_on"], r["degradation"], r["attack"]): r["d_eer"] for r in rows
    }
    for (name, (d, s)), (detector, gain) in [
        (item, g) for item in SEPARATION.items() for g in (("cnn", 0.0), ("gate", 1.0))
    ]:
        for degradation, lost in LOST.items():
            wanted = d_eer(d + gain - lost, s)
            assert found[detector, "all", degradation, name] == pytest.approx(wanted, abs=0.02)
            shuffled = found[detector, "shuffled", degradation, name]
            assert shuffled == pytest.approx(0.5, abs=0.02)
    worst = found["cnn", "all", "none", WORST]
    assert f"{100 * worst:.1f}" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_run_without_scores_of_detectors_has_no_such_section(bare_run, tmp_path):
    assert DetectionResult.of_run(Run.read(bare_run[0])) is None


def test_mmpmr_stands_beside_what_the_detectors_say(detected, study):
    run = study.run
    at = run.headline[0]
    assert study.ranked == ["gate", "cnn"]
    table = beside_table(study, at)
    for attack, line in zip(study.study.attacks, table.rows, strict=True):
        name, rate, both, gate, cnn = line
        assert name.text == run.attack_label(attack)
        row = run.row(attack, "arcface", at)
        assert rate.detail[0] == f"{row['k']}/{row['n']}"
        d, s = SEPARATION[attack]
        for cell, gain in ((gate, 1.0), (cnn, 0.0)):
            assert float(cell.text) == pytest.approx(100 * d_eer(d + gain, s), abs=1.5)
            missed = float(re.search(r"misses ([\d.]+)%", cell.flat)[1])
            assert missed == pytest.approx(100 * macer_at_bscer(d + gain, s, 0.1), abs=2.5)
        # No more morphs pass both than pass either.
        k = int(both.detail[0].split("/")[0])
        assert k <= row["k"] and both.detail[0].endswith(f"/{row['n']}")
        assert 100 * k / row["n"] <= float(re.search(r"misses ([\d.]+)%", gate.flat)[1]) + 0.1
    after = beside_table(study, at, "print_scan")
    for attack, line in zip(study.study.attacks, after.rows, strict=True):
        assert line[1].detail[0] == f"{run.row(attack, 'arcface', at)['k'] // 2}/60"
    assert not beside_table(study, at, "jpeg").rows


def test_the_plane_has_both_rates_of_every_attack(study, tmp_path):
    at = study.run.headline[0]
    for degradation, share in (("none", 1), ("print_scan", 2)):
        made = plane_figure(study, "cnn", "arcface", degradation, at, tmp_path / degradation)
        for attack in ATTACKS:
            row = study.run.row(attack, "arcface", at)
            x = 100 * (row["k"] // share) / row["n"]
            y = 100 * study.row("cnn", attack, degradation)["macer10"]["value"]
            assert f"{study.run.attack_label(attack)} {x:.0f}% and {y:.0f}%" in made.alt
    assert plane_figure(study, "cnn", "arcface", "jpeg", at, tmp_path / "jpeg") is None


def test_the_verdict_is_about_the_system_and_what_hardens_it(study):
    text = " ".join(verdict(study, study.run.headline[0]))
    both = study.passing("exact", "arcface", study.run.headline[0])
    assert f"{both['matched']} of 60 morphs of exact gradient" in text
    assert f"{both['k']} of 60 still pass" in text
    assert "Best at its worst attack, exact gradient, is gate (with a live capture)" in text
    assert "With a live capture (gate) D-EER" in text and "intervals overlap" in text
    assert "After print_scan gate has" in text
    at, bounds = study.run.headline[0], {}
    for attack in ATTACKS:
        accepted = study.vulnerable(attack, "arcface", at, "print_scan")["value"]
        missed = study.row("gate", attack, "print_scan")["macer10"]["value"]
        bounds[attack] = min(accepted, missed)
    assert f"at most {100 * max(bounds.values()):.1f}% pass both" in text
    assert "change no detector's D-EER by more than chance" in text
    assert "shuffled labels" not in text


def test_after_a_degradation_morphs_are_counted_one_by_one(detected, tmp_path):
    """By hand: who is accepted as both people, and is no more like a morph than 90% of faces."""
    directory, result = detected
    shutil.copytree(directory, tmp_path / "run")
    kept = tmp_path / "run/degraded/print_scan/scores.csv"
    kept.parent.mkdir(parents=True)
    shutil.copyfile(directory / result["scores"], kept)
    found = DetectionResult.of_run(Run.read(tmp_path / "run"))
    at, counts = found.run.headline[0], {}
    for attack in ATTACKS:
        both = found.passing(attack, "arcface", at, "print_scan")
        table = found.study.tables[DetectorSetting("gate", "d_mad", "all", "print_scan")]
        faces = np.sort(table.select(attack="bonafide")["score"])
        own = table.select(attack=attack)
        missed = dict(zip(own["ref_id"], own["score"] <= faces[-1 - 12], strict=True))
        accepted = found.run.verdicts(attack, "arcface", at)
        counts[attack] = sum(accepted[pair] == "yes" and missed[pair] for pair in accepted)
        assert (both["k"], both["n"]) == (counts[attack], 60)
        # Not that of the images as they are.
        assert attack != "exact" or both != found.passing(attack, "arcface", at)
    assert len(set(counts.values())) == 2
    shown = beside_table(found, at, "print_scan")
    column = shown.header.index(f"pass both, {found.run.system_label('arcface')}")
    assert [row[column].detail[0] for row in shown.rows] == [f"{k}/60" for k in counts.values()]
    text = " ".join(verdict(found, at))
    assert f"{max(counts.values())} of 60 pass both" in text and "highest such bound" not in text
    # A stranger's folder outside of the run is not read.
    kept.unlink()
    kept.symlink_to(directory / result["scores"])
    outside = DetectionResult.of_run(Run.read(tmp_path / "run"))
    assert outside.passing("exact", "arcface", at, "print_scan") is None


def test_validation_people_rank_the_detectors_and_not_the_test(detected, tmp_path):
    directory, result = detected
    shutil.copytree(directory, tmp_path / "run")

    def tried(d_eer, **settings):
        return {"settings": settings, "d_eer": d_eer, "attack": "dim_a", "n_morph": 60,
                "n_bonafide": 150, "taken": False}  # fmt: skip

    rows = {"cnn": [tried(0.05, steps=1), tried(0.02, steps=2) | {"taken": True}],
            "gate": [tried(0.2) | {"taken": True}]}  # fmt: skip
    for change, best in (({}, "cnn"), ({"gate": [tried(0.2)]}, "gate"), ({"gate": "x"}, "gate")):
        stated = {name: {"candidates": of} for name, of in (rows | change).items()}
        said = result["run"] | {"detection": {"detectors": stated}}
        (tmp_path / "run/result.json").write_text(json.dumps(result | {"run": said}))
        found = DetectionResult.of_run(Run.read(tmp_path / "run"))
        assert found.ranked[0] == best and found.held_out == (best == "cnn")
        text = " ".join(verdict(found, found.run.headline[0]))
        assert ("Best on the validation people, who are not tested, is cnn" in text) == (not change)
    found = DetectionResult.of_run(Run.read(tmp_path / "run"))
    lines = [[cell.flat for cell in row] for row in candidates_table(found).rows]
    assert lines == [["cnn", "steps=1", "5.0", "dim_a", "60", "150", ""],
                     ["cnn", "steps=2", "2.0", "dim_a", "60", "150", "taken"]]  # fmt: skip


def test_a_control_that_is_not_at_one_half_is_said(tmp_path):
    rows = setting_rows({"a": (2.0, 1.0)}) + setting_rows({"a": (2.0, 1.0)}, trained_on="shuffled")
    made = read_detection(write_detection(tmp_path / DETECTION, rows))
    result = DetectionResult(made, matrix_rows(made, replicates=0), [])
    assert "cnn trained on shuffled labels has" in verdict(result, None)[-1]


def test_scores_that_are_turned_round_are_said(tmp_path):
    """Nothing in a file of scores says which way they go; rates far above one half do."""
    for d, said in ((-2.0, True), (2.0, False), (0.0, False)):
        made = read_detection(write_detection(tmp_path / DETECTION, setting_rows({"a": (d, 1.0)})))
        text = " ".join(verdict(DetectionResult(made, matrix_rows(made, replicates=0), []), None))
        assert ("worse than chance: is a high score of it bona fide" in text) == said


def test_hardening_says_gain_and_cost(tmp_path):
    def rows(trained_on, seen, new):
        attacks = {"seen": (seen, 1.0), "guided": (2.0, 1.0), "new": (new, 1.0)}
        return setting_rows(attacks, trained_on=trained_on, n_subjects=100, seed=3)

    every = [*rows("all", 2.0, 0.3), *rows("guided", 0.5, 1.0), *rows("without:seen", 1.0, 0.3),
             *rows("hardened", 2.0, 2.0)]  # fmt: skip
    made = read_detection(write_detection(tmp_path / DETECTION, every))
    changed = hardening_rows(made, replicates=100)
    text = " ".join(verdict(DetectionResult(made, matrix_rows(made, replicates=0), changed), None))
    assert "help beyond chance on new by cnn, which neither training had seen." in text


def test_three_morphs_prove_nothing(tmp_path):
    """Whatever is drawn again of three images that all changed sides, they changed."""
    few = {"n_bona_fide": 4, "n_morphs": 3, "n_subjects": 4}
    rows = setting_rows({"a": (-3.0, 1.0)}, **few)
    rows += setting_rows({"a": (3.0, 1.0)}, trained_on="hardened", **few)
    made = read_detection(write_detection(tmp_path / DETECTION, rows))
    changed = hardening_rows(made, replicates=100)
    assert changed[0]["d_eer"]["change"] < -0.9 and changed[0]["d_eer"]["hi"] == 0.0
    result = DetectionResult(made, matrix_rows(made, replicates=50), changed)
    assert any("more than chance explains" in line for line in verdict(result, None))


def test_reconstructed_bona_fides_that_are_called_morphs(study):
    table = reconstructed_table(study)
    assert [cell.flat for cell in table.rows[0]] == ["cnn trained on all", "25.0 30/120"]
    said = [line for line in verdict(study, None) if "nothing blended" in line]
    assert len(said) == 1 and "by gate (100 of 120): what these find" in said[0]


def test_every_figure_is_drawn_and_says_its_rates(study, tmp_path, recwarn):
    blocks = detection_blocks(study, study.run.headline[0], tmp_path)
    figures = [f for b in parts(blocks) if isinstance(b, FigureRow) for f in b.figures]
    # DET of two detectors, before and after degradation; planes of two kinds and two degradations.
    assert len(figures) == 2 + 2 + 2 * 2
    assert all(figure.svg.is_file() for figure in figures)
    assert not [w for w in recwarn if "constrained_layout" in str(w.message)]
    rate = 100 * study.row("cnn", "dim_a")["d_eer"]
    alt = next(f.alt for f in figures if f.key == "det_cnn")
    assert f"DiM-A {rate:.2f}%" in alt
    keys = [b.key for b in parts(blocks) if isinstance(b, Table)]
    assert len(keys) == len(set(keys))


def test_few_errors_are_drawn_thin_and_hollow(tmp_path):
    def markers(n):
        generator = np.random.default_rng(0)
        scores = DetectionScores(
            generator.normal(0, 1, n), {"a": generator.normal(1, 1, n)}, "morph"
        )
        curve = detection_curve(scores, "a", "a")
        assert isinstance(curve, ErrorCurve) and (curve.n_x, curve.n_y) == (n, n)
        made = detection_curves([curve], "t", "an attack a curve", tmp_path / str(n))
        svg = made.svg.read_text()
        mark = re.findall(r'<use [^>]*style="fill: (#\w+); stroke: #1b1d21"', svg)
        return mark[-1], svg.count("stroke-width: 1.5")

    # The D-EER is 31%: of 60 images 19 errors, of 600 186.
    few, many = markers(60), markers(600)
    assert (few[0], many[0]) == ("#fefefe", "#0072b2")
    assert error_figure([], ("x", "y"), "t", "c", "a", tmp_path / "none") is None


def test_a_file_alone_gets_a_page_tables_and_figures(tmp_path, capsys):
    rows = setting_rows(SEPARATION, n_subjects=30)
    rows += setting_rows(SEPARATION, n_subjects=30, degradation="jpeg")
    path = write_detection(tmp_path / "mine.csv", rows)
    out = tmp_path / "report"
    assert main(["detection", str(path), "-o", str(out), "--replicates", "30"]) == 0
    assert "report.html first" in capsys.readouterr().err
    with (out / "tables" / "matrix-cnn-none.csv").open(encoding="utf-8") as f:
        lines = list(csv.DictReader(f))
    assert float(lines[0]["exact"].split()[0]) == pytest.approx(100 * d_eer(1, 2), abs=1)
    assert (out / "plots" / "det_cnn.svg").is_file() and (out / "report.md").is_file()


EVIL = '../../x"><script>alert(1)</script>\x1b[2J'


def test_names_of_strangers_are_text(tmp_path, make_run):
    result = make_run(tmp_path / "a/run", attacks={"dim_a": ATTACKS["dim_a"]},
                      systems=("arcface",), n_pairs=12, replicates=0, images=False)  # fmt: skip
    rows = []
    for degradation in ("none", EVIL):
        rows += setting_rows({"dim_a": (2.0, 1.0), EVIL: (1.0, 1.0)}, detector=EVIL,
                             degradation=degradation, n_subjects=20, n_morphs=30)  # fmt: skip
    write_detection(tmp_path / "a/run" / DETECTION, rows)
    (tmp_path / "a/run" / DEGRADED).write_text(json.dumps({EVIL: result["rows"][:2]}))
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    files = write_report(tmp_path / "a/run", pairs=1)
    files += aggregate(tmp_path / "a", tmp_path / "a/made")
    made = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "a") for path in made)
    for path in files:
        if path.suffix in (".html", ".md", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert "\x1b" not in text, path
            assert "<script" not in text.replace("\\<script", ""), path


def test_a_broken_file_is_named_and_the_others_are_reported(tmp_path, make_run, detected):
    directory, _ = detected
    make_run(tmp_path / "runs/one", attacks=ATTACKS, systems=("arcface",), n_pairs=60,
             replicates=0, images=False)  # fmt: skip
    rows = setting_rows(SEPARATION, n_subjects=30)
    write_detection(tmp_path / "runs/one" / DETECTION, rows)
    write_detection(tmp_path / "runs/alone" / DETECTION, rows)
    (tmp_path / "runs/bad").mkdir()
    (tmp_path / "runs/bad" / DETECTION).write_text("detector,score\ncnn,1\n")
    (tmp_path / "runs/out").mkdir()
    (tmp_path / "runs/out" / DETECTION).symlink_to(directory / DETECTION)
    aggregate(tmp_path / "runs", tmp_path / "made", plots=False)
    page = (tmp_path / "made/report.html").read_text(encoding="utf-8")
    assert "Detection: quickstart" in page and "Detection: alone" in page
    assert "bad/detection.csv: " in page and "column &#x27;attack&#x27; is missing" in page
    assert "leaves the run directory" in page
    ids = re.findall(r' id="(detection-[^"]+)"', page)
    assert len(ids) == len(set(ids)) > 10
    (tmp_path / "runs/one" / DETECTION).write_text("detector,score\ncnn,1\n")
    with pytest.raises(ReportError, match=r"detection.csv:1: column 'attack' is missing"):
        write_report(tmp_path / "runs/one", plots=False)
