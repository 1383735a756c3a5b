"""Whole runs on a tiny profile: results, resume, batches, processes, kills, bad input."""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_directories import plain
from tiny_profile import (
    ENCODING,
    OPTIMISATION,
    PAIRS,
    ROWS,
    SIZE,
    STEPS,
    command_line,
    composed,
    draw_face,
    overrides,
)

from adjointdeis.evaluation import read_scores
from adjointdeis.evaluation.provenance import read_provenance, sources_match
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import read_image
from adjointdeis.harness.benchmark import load_benchmark
from adjointdeis.harness.latent_morphing import PairSteps
from adjointdeis.harness.launch import launch
from adjointdeis.harness.provenance import config_hash
from adjointdeis.harness.records import every_record, read_records


def morphs(run: Path) -> dict[str, Path]:
    return {f"{p.parent.name}/{p.stem}": p for p in sorted((run / "morphs").glob("*/*.png"))}


EVERY_MORPH = sorted(f"{row}/{pair}" for row in ROWS for pair in PAIRS)


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """A finished run of the four rows, with its report."""
    run = tmp_path_factory.mktemp("base") / "run"
    launch(composed(overrides(tiny, run)))
    return run


@pytest.fixture(scope="module")
def result(base) -> dict:
    return json.loads((base / "result.json").read_text())


def worst_difference(one: Path, other: Path) -> int:
    assert list(morphs(one)) == list(morphs(other)) == EVERY_MORPH
    return max(
        int(np.abs(read_image(a).astype(int) - read_image(b).astype(int)).max())
        for a, b in zip(morphs(one).values(), morphs(other).values(), strict=True)
    )


@pytest.fixture
def faces(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny / "faces", tmp_path / "faces"))


# The order of work


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 7])
def test_shards_lose_nothing_and_repeat_nothing(world: int, count: int) -> None:
    pairs = [MorphPair(f"{k:03d}", f"{k + 100:03d}") for k in range(count)]
    shards = [PairSteps(pairs, 2, 3, rank, world) for rank in range(world)]
    dealt = [pair for shard in shards for batch in shard.batches for pair in batch]
    assert sorted(dealt, key=lambda p: p.subject_a) == pairs
    sizes = [sum(map(len, shard.batches)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in shards:
        items = list(shard)
        at_work = items[: 4 * len(shard.batches)]
        assert [item.step for item in at_work] == [0, 1, 2, 3] * len(shard.batches)
        assert all(1 <= len(item.pairs) <= 2 for item in at_work)
        assert not any(item.pairs for item in items[len(at_work) :])
        # Processes meet at every step: one that made fewer would leave the others waiting.
        assert len(items) == len(shard) == len(shards[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_are_the_same_whatever_is_finished(world: int) -> None:
    pairs = [MorphPair(f"{k:03d}", "100") for k in range(13)]
    names = [pair.morph_id for pair in pairs]
    whole = {pair for rank in range(world) for pair in PairSteps(pairs, 3, 1, rank, world).batches}
    for finished in ([], names[:1], names[:3], names[2:7], names[1:], names):
        shards = [PairSteps(pairs, 3, 1, rank, world, finished) for rank in range(world)]
        dealt = [batch for shard in shards for batch in shard.batches]
        assert set(dealt) <= whole and len(set(dealt)) == len(dealt)
        left = {batch for batch in whole if {p.morph_id for p in batch} - set(finished)}
        assert set(dealt) == left
        assert len({len(shard) for shard in shards}) == 1
        new = sum(item.unfinished for shard in shards for item in shard if item.step == 1)
        assert new == len(set(names) - set(finished))


def test_a_short_list_has_a_batch_for_every_process() -> None:
    pairs = [MorphPair(f"{k:03d}", "100") for k in range(4)]
    assert [len(PairSteps(pairs, 8, 1, rank, 4).batches) for rank in range(4)] == [1] * 4


# One run


def test_result_is_valid(result) -> None:
    schema = pytest.importorskip("adjointdeis.reporting.schema")
    assert schema.validate_result(result) == []
    assert list(result["attacks"]) == list(ROWS)
    assert {row["system"] for row in result["rows"]} == {"arcface", "adaface"}
    assert {row["attack"] for row in result["rows"]} == {*ROWS, "worst-case"}
    assert all(row["n"] == len(PAIRS) for row in result["rows"])


def test_a_run_stands_alone(base, result) -> None:
    for pair in result["pairs"]:
        names = [pair["source_a"], pair["source_b"], *pair["morphs"].values()]
        assert all((base / name).is_file() for name in names)
        assert len(pair["morphs"]) == len(ROWS)
    for name in ("scores.csv", "report.md", "report.html", "morphs.png", "config.yaml", "run.json"):
        assert (base / name).stat().st_size > 0
    assert (base / "logs" / "metrics.csv").is_file()
    assert not list(base.rglob(".partial*"))


def test_all_bona_fide_comparisons_are_scored_and_give_the_thresholds(base, result) -> None:
    table = read_scores(base / "scores.csv")
    subjects = {s for pair in PAIRS for s in pair.split("_")}
    for system in ("arcface", "adaface"):
        mated = table.select(kind="mated", system=system)
        nonmated = table.select(kind="nonmated", system=system)
        assert set(mated["subject_id"]) == subjects and len(mated) == len(subjects)
        pairs = set(zip(nonmated["ref_subject_id"], nonmated["subject_id"], strict=True))
        assert len(pairs) == len(nonmated) == len(subjects) * (len(subjects) - 1)
        assert all(str(p).endswith("_08") for p in nonmated["probe_id"])
        assert all(str(p).endswith("_03") for p in nonmated["ref_id"])
        # The profile's records were made for other faces: the run's own impostors decide, and
        # of so few none may pass at an FMR of 0.1%.
        (tau,) = {row["tau"] for row in result["rows"] if row["system"] == system}
        assert tau >= max(nonmated["score"]) and tau != 0.5
    assert {row["bootstrap_tau"] for row in result["rows"]} == {"re-estimated"}


def test_evaluations_are_counted(result) -> None:
    nfe = {name: attack["nfe"] for name, attack in result["attacks"].items()}
    assert nfe["dim_a"] == {
        "encode": ENCODING, "forward": STEPS, "backward": 0, "vjps": 0, "loss_gradients": 0,
    }  # fmt: skip
    for name in ("adjoint_deis_ode", "exact"):
        assert nfe[name]["encode"] == ENCODING
        # Every gradient step samples once, and so does the finished pair.
        assert nfe[name]["forward"] == (OPTIMISATION + 1) * STEPS
        assert nfe[name]["vjps"] == OPTIMISATION * STEPS
    # Cycle-SDE encodes along the sampling grid.
    assert nfe["adjoint_deis_sde"]["encode"] == STEPS
    assert nfe["adjoint_deis_sde"]["vjps"] == OPTIMISATION * STEPS
    paper = {name: attack["nfe_paper"] for name, attack in result["attacks"].items()}
    assert paper["dim_a"] == ENCODING + STEPS
    assert paper["exact"] == ENCODING + OPTIMISATION * 2 * STEPS


def test_optimisation_lowers_the_loss_it_follows(base, result) -> None:
    for name in ("adjoint_deis_ode", "exact"):
        curves = result["attacks"][name]["curves"]
        assert len(curves["loss"]) == OPTIMISATION + 1
        assert len(curves["gradient_norm"]) == OPTIMISATION
    losses = result["attacks"]["exact"]["curves"]["loss"]
    assert losses[-1] < losses[0]


def test_the_exact_gradient_has_no_error(result) -> None:
    exact = result["attacks"]["exact"]["gradient_error"]
    assert exact["relative"] < 1e-5 and exact["cosine"] > 0.9999 and exact["pairs"] == len(PAIRS)
    assert result["attacks"]["adjoint_deis_ode"]["gradient_error"]["relative"] > 1e-3


def test_guided_rows_start_from_the_same_morph_and_end_elsewhere(base) -> None:
    found = morphs(base)
    images = {row: read_image(found[f"{row}/{PAIRS[0]}"]) for row in ROWS}
    assert images["exact"].shape == (SIZE, SIZE, 3)
    assert not np.array_equal(images["exact"], images["dim_a"])
    assert not np.array_equal(images["adjoint_deis_ode"], images["adjoint_deis_sde"])


def test_every_morph_says_what_it_is(base, tiny) -> None:
    for key, path in morphs(base).items():
        found = read_provenance(path)
        attack, pair = key.split("/")
        assert found["attack"] == attack
        sources = [tiny / "faces" / f"{subject}_03.png" for subject in pair.split("_")]
        assert sources_match(found, sources)
        assert set(found["source_hashes"]) == {source.name for source in sources}


def test_inputs_are_left_as_they_were(base, tiny) -> None:
    pictures = list((tiny / "faces").glob("*.png"))
    assert len(pictures) == 8 == len(list((tiny / "faces").iterdir())) - 1  # and landmarks.npz
    assert all(Image.open(p).size == (SIZE, SIZE) for p in pictures)


# Again, and in other ways


def copied(base: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    (run / "done.json").unlink()
    return run


@pytest.mark.parametrize("name", ["result.json", "scores.csv", "sources/001_03.png"])
def test_a_finished_run_that_lost_a_file_is_concluded_again(
    base, tiny, tmp_path, quiet_report, name
) -> None:
    run = Path(shutil.copytree(base, tmp_path / "run"))
    made = {path: path.stat().st_mtime_ns for path in run.glob("morphs/*/*")}
    (run / name).unlink()
    launch(composed(overrides(tiny, run)))
    first, again = (plain(json.loads((r / "result.json").read_text())) for r in (base, run))
    assert first == again and (run / "done.json").is_file()
    assert (run / name).is_file()
    assert {path: path.stat().st_mtime_ns for path in run.glob("morphs/*/*")} == made


@pytest.mark.parametrize("damage", ["no picture", "no record", "half a record"])
def test_only_the_missing_morph_is_made_again(base, tiny, tmp_path, quiet_report, damage) -> None:
    run = copied(base, tmp_path)
    lost = run / "morphs" / "adjoint_deis_sde" / f"{PAIRS[1]}.png"
    if damage == "no picture":
        lost.unlink()
    elif damage == "no record":
        lost.with_suffix(".json").unlink()
    else:
        record = lost.with_suffix(".json")
        record.write_text(record.read_text()[:30])
    before = {key: path.stat().st_mtime_ns for key, path in morphs(run).items()}
    launch(composed(overrides(tiny, run)))
    after = {key: path.stat().st_mtime_ns for key, path in morphs(run).items()}
    lost_key = f"adjoint_deis_sde/{PAIRS[1]}"
    assert [key for key in after if after[key] != before.get(key)] == [lost_key]
    # The remade morph was alone in its batch, and rounds alike or one level off at most.
    assert worst_difference(base, run) <= 1
    again = run.parent / "again"
    shutil.copytree(run, again)
    (again / "done.json").unlink()
    made = (again / lost.relative_to(run)).read_bytes()
    (again / lost.relative_to(run)).unlink()
    launch(composed(overrides(tiny, again)))
    assert (again / lost.relative_to(run)).read_bytes() == made


@pytest.mark.parametrize("batch_size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_batch_size(
    base, tiny, tmp_path, quiet_report, batch_size: int
) -> None:
    run = tmp_path / "run"
    launch(composed(overrides(tiny, run, f"optimisation.batch_size={batch_size}")))
    assert worst_difference(base, run) <= 1


def test_another_seed_changes_the_sde_only(base, tiny, tmp_path, quiet_report) -> None:
    run = tmp_path / "run"
    launch(composed(overrides(tiny, run, "seed=5")))
    for key, path in morphs(run).items():
        same = np.array_equal(read_image(path), read_image(morphs(base)[key]))
        assert same is (not key.startswith("adjoint_deis_sde")), key


@pytest.mark.slow  # of every row; test_two_processes.py compares two rows to the last byte
def test_two_processes_make_the_same_morphs(base, tiny, tmp_path, program) -> None:
    run = tmp_path / "run"
    # Three pairs one by one: the shares are uneven, and the first process works longer.
    alone = "optimisation.batch_size=1"
    done = program(overrides(tiny, run, alone, "trainer=ddp_sim", root=tmp_path), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert worst_difference(base, run) <= 1
    two = json.loads((run / "result.json").read_text())
    assert two["run"]["config_hash"] == config_hash(
        composed(overrides(tiny, run, alone, root=tmp_path))
    )
    assert sum(len(pair["morphs"]) for pair in two["pairs"]) == len(EVERY_MORPH)
    one = json.loads((base / "result.json").read_text())
    for name, attack in two["attacks"].items():
        assert attack["nfe"] == one["attacks"][name]["nfe"]


def killed_midway(arguments: list[str], run: Path, cwd: Path, environ: dict) -> set[Path]:
    """Starts a run, kills it after its first morph, and returns the morphs that it finished."""
    process = subprocess.Popen(
        command_line(arguments),
        cwd=cwd,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 500
    while not list(run.glob("morphs/*/*.json")) and process.poll() is None:
        assert time.time() < deadline, "no morph appeared"
        time.sleep(0.01)
    process.kill()
    process.wait()
    return {path for path in run.glob("morphs/*/*.png") if path.with_suffix(".json").is_file()}


def test_a_killed_run_continues(base, tiny, tmp_path, environ, quiet_report) -> None:
    # On a busy machine a run may end before it is killed; another one is killed then.
    for attempt in range(3):
        run = tmp_path / f"run{attempt}"
        arguments = overrides(tiny, run, "optimisation.batch_size=1")
        finished = killed_midway(arguments, run, tmp_path, environ)
        if 0 < len(finished) < len(EVERY_MORPH):
            break
    assert 0 < len(finished) < len(EVERY_MORPH)
    assert not (run / "done.json").exists()
    written = {path: path.stat().st_mtime_ns for path in finished}
    launch(composed(arguments))
    assert (run / "done.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in finished} == written
    assert worst_difference(base, run) <= 1


def test_a_record_of_another_recipe_or_of_other_images_does_not_count(base, tiny, faces) -> None:
    folder = base / "morphs" / "exact"
    recipe = json.loads((folder / f"{PAIRS[0]}.json").read_text())["config_hash"]
    benchmark = load_benchmark(str(tiny / "faces"), str(tiny / "pairs.csv"))
    assert sorted(read_records(folder, benchmark, recipe)) == sorted(PAIRS)
    assert read_records(folder, benchmark, "another") == {}
    # Another photograph under the same name: only the morphs that were made of it are stale.
    Image.fromarray(draw_face(99, False)).save(faces / "002_03.png")
    replaced = load_benchmark(str(faces), str(tiny / "pairs.csv"))
    assert sorted(read_records(folder, replaced, recipe)) == sorted(PAIRS[1:])


def test_records_of_another_node_are_waited_for_and_missed(base, tiny, tmp_path) -> None:
    folder = Path(shutil.copytree(base / "morphs" / "exact", tmp_path / "exact"))
    benchmark = load_benchmark(str(tiny / "faces"), str(tiny / "pairs.csv"))
    late, held = folder / f"{PAIRS[1]}.json", tmp_path / "late.json"
    recipe = json.loads(late.read_text())["config_hash"]
    late.rename(held)
    with pytest.raises(RuntimeError, match=rf"no record of 1 pairs \({PAIRS[1]}\) 0.1 s after"):
        every_record(folder, benchmark, recipe, patience=0.1)
    appears = threading.Timer(0.3, held.rename, [late])
    appears.start()
    assert sorted(every_record(folder, benchmark, recipe, patience=30)) == sorted(PAIRS)


# Input that cannot be used


def failure(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        launch(composed(arguments))
    line, trace = str(caught.value).split("\n", 1)
    assert line.startswith("error: ") and "error.txt" in trace
    return line


@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered"])
def test_a_bad_weight_file_is_one_line(tiny, tmp_path, damage: str) -> None:
    profile = Path(shutil.copytree(tiny / "profile", tmp_path / "profile"))
    weights = profile / "arcface.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        data = bytearray(weights.read_bytes())
        data[-1] ^= 255
        weights.write_bytes(data)
    line = failure(overrides(tiny, tmp_path / "run", f"assets.root={profile}"))
    assert str(weights) in line
    assert ("is missing" if damage == "missing" else "altered or cut short") in line


def test_the_exit_code_tells_of_a_bad_weight_file(tiny, tmp_path, program) -> None:
    profile = Path(shutil.copytree(tiny / "profile", tmp_path / "profile"))
    (profile / "diffae.safetensors").write_bytes(b"nothing")
    done = program(overrides(tiny, tmp_path / "run", f"assets.root={profile}"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "diffae.safetensors" in done.stderr and "altered or cut short" in done.stderr


def test_an_empty_pair_list(tiny, tmp_path) -> None:
    (tmp_path / "pairs.csv").write_text("# nothing\n\n")
    line = failure(overrides(tiny, tmp_path / "run", f"data.pairs={tmp_path}/pairs.csv"))
    assert "the pair list is empty" in line and str(tmp_path / "pairs.csv") in line


def test_pairs_of_smiling_images_are_refused(tiny, tmp_path) -> None:
    # They would be scored against the wrong probes.
    (tmp_path / "pairs.csv").write_text("001_08-vs-002_08.jpg\n")
    with pytest.raises(SystemExit, match=r"1 pairs are not of neutral images \(001_08 \+ 002_08\)"):
        launch(composed(overrides(tiny, tmp_path / "run", f"data.pairs={tmp_path}/pairs.csv")))


def test_pairs_of_unknown_people(tiny, tmp_path) -> None:
    (tmp_path / "pairs.csv").write_text("001_03.png,077_03.png,x.png\n")
    with pytest.raises(SystemExit, match=r"unknown subject 077"):
        launch(composed(overrides(tiny, tmp_path / "run", f"data.pairs={tmp_path}/pairs.csv")))


def test_a_file_that_is_no_image(tiny, tmp_path, faces) -> None:
    (faces / "001_03.png").write_text("I am no picture")
    line = failure(overrides(tiny, tmp_path / "run", f"data.faces={faces}"))
    assert "001_03.png: not a readable image" in line


def test_an_image_of_another_size(tiny, tmp_path, faces) -> None:
    Image.new("RGB", (20, 24)).save(faces / "002_03.png")
    line = failure(overrides(tiny, tmp_path / "run", f"data.faces={faces}"))
    assert "002_03.png is 20x24" in line and f"not {SIZE}x{SIZE}" in line


def test_a_face_without_its_second_capture(tiny, tmp_path, faces, quiet_report) -> None:
    (faces / "002_08.png").unlink()
    line = failure(overrides(tiny, tmp_path / "run", f"data.faces={faces}"))
    assert "002_08" in line


@pytest.mark.parametrize("key", ["pairs", "faces"])
def test_a_number_where_a_path_belongs(tiny, tmp_path, key: str) -> None:
    with pytest.raises(SystemExit, match=rf"data\.{key}=2: expected a path.*data\.limit"):
        launch(composed(overrides(tiny, tmp_path / "run", f"data.{key}=2")))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(tiny, tmp_path, limit: int) -> None:
    with pytest.raises(
        SystemExit, match=rf"data\.limit={limit}: expected a whole number, 1 or more"
    ):
        launch(composed(overrides(tiny, tmp_path / "run", f"data.limit={limit}")))


def test_a_limit_takes_pairs_spread_over_the_list(tiny) -> None:
    chosen = load_benchmark(f"{tiny}/faces", f"{tiny}/pairs.csv", 2).pairs
    assert [pair.morph_id for pair in chosen] == [PAIRS[0], PAIRS[-1]]
