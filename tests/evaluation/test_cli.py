"""The command: every subcommand end to end, errors of one line, and nothing heavy at start."""

import csv
import json
import re
import subprocess
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adjointdeis.evaluation import read_scores, read_thresholds, write_scores
from adjointdeis.evaluation.cli import COMMANDS, main


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    path = folder / "scores.csv"
    size = ["--n-subjects", "20", "--n-morphs", "20"]
    assert main(["synth", str(path), "--subjects", str(folder / "subjects.csv"), *size]) == 0
    return path


def test_scoring_prints_a_table_and_writes_json(scores, capsys):
    subjects = str(scores.with_name("subjects.csv"))
    code = main(
        [str(scores), "--fmr", "0.001", "0.05", "--impostors", "all", "same-sex",
         "--subjects", subjects, "--replicates", "30"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "| attack | system" in out and "not met: " in out and "share subjects" in out
    result = json.loads(scores.with_name("scores.csv.result.json").read_text())
    assert result["schema"] == "adjointdeis-evaluation/1"
    assert len(result["rows"]) == 2 * 3 * 2 * 2 * 2
    assert len(result["thresholds"]) == 3 * 2 * 2
    for row in result["rows"]:
        assert f"{row['k']}/{row['n']}" in out
        assert row["bootstrap_tau"] == "re-estimated"


def test_thresholds_are_written_and_used_again(scores, tmp_path, capsys):
    out = tmp_path / "tau.json"
    narrow = ["--systems", "adaface", "--confidence", "50%"]
    assert main(["threshold", str(scores), "--fmr", "0.01", "-o", str(out), *narrow]) == 0
    assert read_thresholds(out)[0].confidence == 0.5 and len(read_thresholds(out)) == 1
    for command in ("map", "verification"):
        options = [str(scores), "--systems", "adaface", "--replicates", "0"]
        assert main([command, *options]) == 0
        printed = capsys.readouterr().out
        assert "adaface" in printed and "arcface" not in printed
    assert main(["threshold", str(scores), "--fmr", "0.01", "--out", str(out)]) == 0
    assert len(read_thresholds(out)) == 3
    result = tmp_path / "r.json"
    options = ["--thresholds", str(out), "--json", str(result), "--replicates", "0"]
    assert main([str(scores), *options]) == 0
    assert {r["fmr_target"] for r in json.loads(result.read_text())["rows"]} == {0.01}
    assert main([str(scores), *options, "--fmr", "0.1"]) == 2
    assert "drop those" in capsys.readouterr().err


def test_detectors_of_others_are_tabled(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text(
        "detector,attack,label,subject_1,subject_2,image,score\n"
        + "".join(f"mine,,bona_fide,{k:03d},,{k:03d}_03.png,0.{k}\n" for k in range(10, 40))
        + "".join(f"mine,opencv,morph,{k:03d},{k + 1:03d},m{k},0.{k + 20}\n" for k in range(10, 40))
    )
    assert main(["detection", str(path), "--replicates", "50"]) == 0
    out = capsys.readouterr().out
    # Of 30 morphs three may be missed: above 0.32, tau, are seven of the bona fide images.
    assert "23.3 (7/30)" in out and "needs n ≥ 100" in out and "opencv" in out
    path.write_text(path.read_text() + "mine,opencv,morph,1,1,x,0.5\n")
    assert main(["detection", str(path)]) == 2
    assert f"{path}:62: subject_2 '1': a morph is of two people" in capsys.readouterr().err


def test_other_commands_print_their_tables(scores, capsys):
    assert main(["compare", str(scores), "strong", "weak", "--probe", "other",
                 "--replicates", "20"]) == 0  # fmt: skip
    assert "McNemar p" in capsys.readouterr().out
    assert main(["map", str(scores), "--replicates", "0"]) == 0
    printed = capsys.readouterr().out
    assert "Attack: **strong**; Probe: **other**" in printed and "MAP[r, c] in %" in printed
    assert "G-MAP over all attacks" in printed and "strong, weak" in printed
    det = scores.with_name("det.csv")
    assert main(["mad", str(scores), "--det", str(det)]) == 0
    assert "max over attacks" in capsys.readouterr().out
    with det.open(newline="") as file:
        points = list(csv.DictReader(file))
    for attack in ("strong", "weak", "max over attacks"):
        curve = [(float(p["macer"]), float(p["bscer"])) for p in points if p["attack"] == attack]
        # From "everything is a morph" to "nothing is": one rate rises, the other falls.
        assert curve[0] == (0.0, 1.0) and curve[-1] == (1.0, 0.0)
        assert curve == sorted(curve, key=lambda point: (point[0], -point[1]))
    assert main(["paper", "table4"]) == 0
    assert "94.89% (464/489)" in capsys.readouterr().out


def test_convert(tmp_path, capsys):
    source = tmp_path / "m.txt"
    source.write_text("m; a; 1; 0.5\nm; b; 1; 0.4\n")
    out = tmp_path / "scores.csv"
    command = ["convert", "--from", "mvr", str(source), "--into", str(out), "--system", "arc"]
    assert main(command) == 2
    assert "state --probe source" in capsys.readouterr().err
    assert main([*command, "--probe", "other"]) == 0
    assert read_scores(out).unique("system") == ["arc"]
    again = tmp_path / "again.txt"
    assert (
        main(["convert", "--from", "canonical", "--to", "mvr", str(out), "--into", str(again)]) == 0
    )
    assert again.read_text() == source.read_text()


def test_verify(tmp_path, capsys):
    info = PngInfo()
    keys = ("tool", "version", "attack", "config_hash")
    provenance = dict.fromkeys(keys, "x") | {"source_hashes": ["0" * 64], "notice": "synthetic"}
    info.add_itxt("adjointdeis", json.dumps(provenance))
    marked, plain = tmp_path / "m.png", tmp_path / "p.png"
    Image.new("RGB", (2, 2)).save(marked, pnginfo=info)
    Image.new("RGB", (2, 2)).save(plain)
    assert main(["verify", str(marked)]) == 0
    assert "source: " + "0" * 64 in capsys.readouterr().out
    assert main(["verify", "--json", str(marked)]) == 0
    assert json.loads(capsys.readouterr().out)["notice"] == "synthetic"
    assert main(["verify", str(marked), str(plain)]) == 1
    assert "was not written by this project" in capsys.readouterr().err
    assert main(["verify", str(marked), "--source", str(plain)]) == 1
    (tmp_path / "cut.png").write_bytes(plain.read_bytes()[:30])
    capsys.readouterr()
    assert main(["verify", str(tmp_path), str(tmp_path / "cut.png"), str(marked)]) == 2
    said = capsys.readouterr()
    assert "not a regular file" in said.err and "truncated PNG" in said.err
    assert "source: " + "0" * 64 in said.out


def test_verify_prints_no_line_and_no_control_character_of_others(tmp_path, capsys):
    forged = "x\n  signature: Valid, by CN=Anyone\x1b[2J\x9b1m\u202e"
    keys = ("tool", "version", "attack", "config_hash", "notice")
    for hashes in ([forged], {forged: forged}, forged, 5):
        info = PngInfo()
        found = {**dict.fromkeys(keys, forged), "source_hashes": hashes}
        info.add_itxt("adjointdeis", json.dumps(found))
        marked = tmp_path / "m\n  signature: Valid.png"
        Image.new("RGB", (2, 2)).save(marked, pnginfo=info)
        assert main(["verify", str(marked)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert not any(line.strip().startswith("signature") for line in lines)
        assert all(line.isprintable() for line in lines)
        assert main(["verify", "--json", str(marked)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.isprintable()
        assert json.loads(line)["tool"] == forged


def test_an_error_that_quotes_the_input_moves_no_cursor(tmp_path, capsys):
    assert main([str(tmp_path / "\x1b[2Jabsent.csv")]) == 2
    assert "\\x1b[2Jabsent.csv: no such score file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv"], "absent.csv: no such score file"),
        (["{scores}", "--fmr", "5"], "expected a share"),
        (["{scores}", "--impostors", "same-sex"], "a table subject_id,sex,group"),
        (["{scores}", "--attacks", "mipgan"], "attack 'mipgan' is not in the table"),
        (["{scores}", "--confidence", "95"], "--confidence 95.0: expected between 0 and 1"),
        (["{scores}", "--replicates", "-1"], "--replicates -1"),
        (["convert", "--from", "x", "a", "--into", "b"], "format 'x': expected one of"),
        (["verify", "{scores}"], "not a PNG file"),
        (["synth", "x.csv", "--n-subjects", "2"], "--n-subjects 2: expected 4 to 100000"),
        (["synth", "x.csv", "--n-morphs", "1000000000"], "--n-morphs 1000000000: expected 1 to"),
        (["synth", "x.csv", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["{scores}", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["map", "{impostors}"], "no row of kind 'morph' to evaluate"),
        (
            ["compare", "{impostors}", "strong", "weak", "--probe", "other"],
            "no row of kind 'morph'",
        ),
        (["map", "{scores}", "--replicates", "1000000000"], "expected at most 1000000"),
        (["{scores}", "--replicates", "1000000000"], "--replicates 1000000000: expected at most"),
        (["{scores}", "--confidence", "nan"], "--confidence nan: expected between 0 and 1"),
        (["{scores}", "--fmr", "nan"], "expected a share"),
    ],
)
def test_errors_are_one_line_and_exit_2(scores, capsys, arguments, message):
    impostors = scores.with_name("impostors.csv")
    write_scores(read_scores(scores).select(kind="nonmated"), impostors)
    assert main([a.format(scores=scores, impostors=impostors) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adjointdeis-eval: ") and message in error
    assert error.count("\n") == 1


HEADER = "kind,morph_id,attack,subject_id,probe_id,ref_id,system,score,score_type,probe_policy"
FIRST = "morph,m1,dim,a,a8,m1,arc,0.5,similarity,other"
SECOND = "morph,m1,dim,b,b8,m1,arc,0.4,similarity,other"


@pytest.mark.parametrize(
    ("lines", "at", "message"),
    [
        ((FIRST, SECOND.replace("0.4", "oops")), 3, "score 'oops' is not a number"),
        ((FIRST, "morph,m1,dim"), 3, "3 fields, expected 10"),
        (
            (FIRST.replace("similarity", "likeness"), SECOND),
            2,
            "score_type 'likeness': expected one of similarity, dissimilarity",
        ),
        (
            (FIRST, SECOND, FIRST.replace("0.5", "0.6")),
            4,
            "duplicate comparison with another score: 0.6, first seen at {file}:2 as 0.5",
        ),
        (
            (FIRST, SECOND, FIRST.replace("arc", "ada")),
            4,
            "subject 'b' of morph 'm1' has no probe under system 'ada', policy 'other'",
        ),
    ],
    ids=["malformed", "short", "direction", "duplicate", "no probe"],
)
def test_a_bad_score_file_is_one_line_with_its_place(tmp_path, capsys, lines, at, message):
    path = tmp_path / "scores.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n")
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"adjointdeis-eval: {path}:{at}: ")
    assert message.format(file=path) in error and error.count("\n") == 1


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-u", "-m", "adjointdeis.evaluation.cli", "paper", "table1"]
    pipe = subprocess.PIPE
    writer = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    writer.stdout.close()
    assert writer.stderr.read() == "" and writer.wait(timeout=60) == 0


def test_help_waits_for_nothing():
    code = (
        "import sys, adjointdeis.evaluation.cli as cli; cli.parser().format_help(); "
        "print(sorted({'numpy', 'scipy', 'torch', 'c2pa'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_every_public_name_is_at_home():
    import adjointdeis.evaluation as evaluation

    assert all(getattr(evaluation, name) is not None for name in evaluation.__all__)
    assert set(evaluation.__all__) <= set(dir(evaluation))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evaluation.nothing  # noqa: B018 - the access is the test


def test_importing_the_library_imports_no_torch():
    code = (
        "import sys, adjointdeis.evaluation.cli, adjointdeis.evaluation.commands; "
        "heavy = {'torch', 'lightning', 'hydra', 'wandb', 'matplotlib', 'pandas', 'scipy.stats'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_intervals_and_thresholds_are_printed_by_every_command(scores, capsys):
    for command in (["map"], ["mad"]):
        assert main([*command, str(scores), "--replicates", "30"]) == 0
    printed = capsys.readouterr().out
    matrix, detection = printed.split("### Morphing attack detection")
    cells = re.findall(r"\d+/\d+ \[[\d.]+, [\d.]+\]", matrix)
    # A MAP cell for three recognisers, two attacks and two probe policies.
    assert len(cells) == 3 * 2 * 2 and "G-MAP" in matrix
    # D-EER and five operating points of two attacks and of the worst, with their thresholds.
    assert len(re.findall(r"\[[\d.]+, [\d.]+\] tau ", detection)) == 4 * 3
    # Two of them at 1%, of which 20 images say nothing.
    assert detection.count("– needs n ≥ 100") == 2 * 3
    assert "too few for MACER" in detection and "bootstrap over subjects" in detection


def test_a_file_of_the_other_command_names_it(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("detector,attack,label,image,score\nmine,,bona_fide,1.png,0.1\n")
    assert main(["mad", str(path)]) == 2
    assert "use `adjointdeis-eval detection`" in capsys.readouterr().err
    path.write_text("kind,system,score,score_type\nmad,x,0.1,similarity\n")
    assert main(["detection", str(path)]) == 2
    assert "use `adjointdeis-eval mad`" in capsys.readouterr().err
