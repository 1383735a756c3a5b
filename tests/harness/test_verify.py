"""`task=verify`: every kind of damage is found, in a run that is otherwise left alone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_profile import PAIRS, composed, overrides

from adjointdeis.faces.array_cache import ArrayCache
from adjointdeis.harness.benchmark import file_hash
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks.verify import check_run, run_directories

ROW = "exact"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> Path:
    """A small run of one row, with three pairs."""
    run = tmp_path_factory.mktemp("made") / "run"
    launch(composed(overrides(tiny, run, root=run.parent, rows=(ROW,), replicates=0)))
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run", symlinks=True))


def morph(run: Path, pair: str = PAIRS[0]) -> Path:
    return run / "morphs" / ROW / f"{pair}.png"


def change(path: Path, **values) -> None:
    """Sets values of a JSON file, at dotted keys."""
    found = json.loads(path.read_text())
    for key, value in values.items():
        at, *rest = found, *key.split("__")
        for part in rest[:-1]:
            at = at[int(part)] if isinstance(at, list) else at[part]
        at[int(rest[-1]) if isinstance(at, list) else rest[-1]] = value
    path.write_text(json.dumps(found))


def forget(run: Path) -> None:
    """Takes the list of files away, as in runs of earlier versions: other checks are alone."""
    done = json.loads((run / "done.json").read_text())
    del done["files"]
    (run / "done.json").write_text(json.dumps(done))


def replaced(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def linked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**43)


def swapped(run: Path) -> None:
    one, other = (morph(run, pair).read_bytes() for pair in PAIRS[:2])
    morph(run, PAIRS[0]).write_bytes(other)
    morph(run, PAIRS[1]).write_bytes(one)


def swapped_with_records(run: Path) -> None:
    """Both halves exchanged: every hash fits, but the pair that a record names does not."""
    swapped(run)
    one, other = (morph(run, pair).with_suffix(".json") for pair in PAIRS[:2])
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def another_score(run: Path) -> None:
    """A score that turns a decision, in the table alone."""
    rows = (run / "scores.csv").read_text().splitlines()
    column = rows[0].split(",").index("score")
    for k, row in enumerate(rows):
        cells = row.split(",")
        if row.startswith("morph,") and f",{ROW}," in row:
            cells[column] = "1.0"
            rows[k] = ",".join(cells)
    (run / "scores.csv").write_text("\n".join(rows) + "\n")


def bomb(run: Path) -> None:
    """YAML whose aliases make 10 bytes into 10^12 nodes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for k in range(1, 12):
        lines.append(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]")
    replaced(run / "config.yaml", "\n".join(lines).encode())


RECORD = f"morphs/{ROW}/{PAIRS[0]}.json"
MORPH = f"morphs/{ROW}/{PAIRS[0]}.png"
# What is done to the run; the file that is named; what is said of it.
DAMAGES = {
    "no morph": (lambda r: morph(r).unlink(), MORPH, "missing"),
    "empty morph": (lambda r: morph(r).write_bytes(b""), MORPH, "damaged or replaced"),
    "cut morph": (
        lambda r: morph(r).write_bytes(morph(r).read_bytes()[:200]), MORPH, "damaged or replaced"
    ),
    "swapped morphs": (swapped, MORPH, "damaged or replaced"),
    "linked morph": (lambda r: linked(morph(r), "/etc/hostname"), MORPH, "leaves the run"),
    "piped morph": (lambda r: piped(morph(r)), MORPH, "not a regular file"),
    "sparse morph": (lambda r: sparse(morph(r)), MORPH, "larger than 4 GiB"),
    "no record": (lambda r: (r / RECORD).unlink(), RECORD, "missing"),
    "cut record": (lambda r: replaced(r / RECORD, b'{"pair": '), RECORD, "damaged or replaced"),
    "changed record": (lambda r: change(r / RECORD, nfe__forward=1), RECORD, "damaged or replaced"),
    "foreign morph": (
        lambda r: shutil.copy(morph(r), morph(r, "009_009")),
        f"morphs/{ROW}/009_009.png",
        "not a file of this run",
    ),
    "source": (
        lambda r: shutil.copy(r / "sources/002_03.png", r / "sources/001_03.png"),
        "sources/001_03.png",
        "damaged or replaced",
    ),
    "no source": (lambda r: (r / "sources/001_03.png").unlink(), "sources/001_03.png", "missing"),
    "no scores": (lambda r: (r / "scores.csv").unlink(), "scores.csv", "missing"),
    "scores": (another_score, "scores.csv", "damaged or replaced"),
    "no result": (lambda r: (r / "result.json").unlink(), "result.json", "missing"),
    "deep result": (
        lambda r: replaced(r / "result.json", b"[" * 200_000), "result.json", "damaged or replaced"
    ),
    "piped result": (lambda r: piped(r / "result.json"), "result.json", "not a regular file"),
    "no marker": (lambda r: (r / "done.json").unlink(), "done.json", "absent"),
    "cut marker": (lambda r: replaced(r / "done.json", b'{"con'), "done.json", "not JSON"),
    "piped marker": (lambda r: piped(r / "done.json"), "done.json", "not a regular file"),
    "foreign marker": (
        lambda r: change(r / "done.json", config_hash="0" * 16), "done.json", "another config"
    ),
    "leaving marker": (
        lambda r: change(r / "done.json", files={"../../x": "0"}), "done.json", "outside of the run"
    ),
    "odd marker": (lambda r: change(r / "done.json", files=[3]), "done.json", "its list of files"),
    "no run.json": (lambda r: (r / "run.json").unlink(), "run.json", "no such file"),
    "list for run.json": (lambda r: replaced(r / "run.json", b"[]"), "run.json", "not a JSON obj"),
    "no config": (lambda r: (r / "config.yaml").unlink(), "config.yaml", "no such file"),
    "another config": (
        lambda r: replaced(
            r / "config.yaml", (r / "config.yaml").read_bytes().replace(b"seed: 0", b"seed: 1")
        ),
        "config.yaml",
        "not the configuration whose hash",
    ),
    "bomb for config": (bomb, "config.yaml", "not the configuration of a run"),
    "deep config": (lambda r: replaced(r / "config.yaml", b"[" * 9000), "config.yaml", ""),
    "config of another tag": (
        lambda r: replaced(r / "config.yaml", b"!!python/object/apply:os.system ['true']"),
        "config.yaml",
        "could not determine a constructor",
    ),
    "empty wandb": (
        lambda r: (
            (r / "wandb/offline-run-1-x").mkdir(parents=True),
            (r / "wandb/offline-run-1-x/run-x.wandb").touch(),
        ),
        "wandb/offline-run-1-x/run-x.wandb",
        "holds no record of a run",
    ),
    "cache": (
        lambda r: (
            ArrayCache(r / "cache").write(("a",), {"x": np.zeros(3)}),
            next((r / "cache").iterdir()).rename(r / f"cache/{'0' * 64}.arrays"),
        ),
        f"cache/{'0' * 64}.arrays",
        "foreign entry",
    ),
}  # fmt: skip
# The same without the list of files: what the parts say of each other.
UNLISTED = {
    "empty morph": (lambda r: morph(r).write_bytes(b""), MORPH, "damaged or replaced"),
    "swapped morphs and records": (swapped_with_records, RECORD, "the record of another morph"),
    "morph of a stranger": (
        lambda r: (
            shutil.copy(r / "sources/001_03.png", morph(r)),
            change(r / RECORD, sha256=file_hash(morph(r))),
        ),
        MORPH,
        "no 'adjointdeis' text",
    ),
    "cut record": (lambda r: replaced(r / RECORD, b'{"pair": '), RECORD, "not JSON"),
    "record that lacks": (lambda r: replaced(r / RECORD, b"{}"), RECORD, "lacks attack"),
    "deep record": (lambda r: replaced(r / RECORD, b"[" * 99_999), RECORD, "nested too deeply"),
    "another recipe": (
        lambda r: change(r / RECORD, config_hash="x"), MORPH, "another config_hash than its record"
    ),
    "no record": (lambda r: (r / RECORD).unlink(), MORPH, "a morph without a record"),
    "source": (
        lambda r: shutil.copy(r / "sources/002_03.png", r / "sources/001_03.png"),
        "sources/001_03.png",
        "not what the morphs were made of",
    ),
    "scores": (another_score, "result.json", f"its rate of {ROW} is not that of the scores"),
    "cut scores": (
        lambda r: (r / "scores.csv").write_bytes((r / "scores.csv").read_bytes()[:3000]),
        "scores.csv",
        "",
    ),
    "no result": (lambda r: (r / "result.json").unlink(), "result.json", "missing"),
    "deep result": (
        lambda r: replaced(r / "result.json", b"[" * 200_000), "result.json", "nested too deeply"
    ),
    "changed rate": (
        lambda r: change(r / "result.json", rows__0__tau=0.123), "result.json", "its rate of"
    ),
    "another hash": (
        lambda r: change(r / "result.json", run__config_hash="f" * 16), "result.json", "of another"
    ),
    "schema": (lambda r: change(r / "result.json", rows=3), "result.json", "rows: expected a list"),
    "leaving source": (
        lambda r: change(r / "result.json", pairs__0__source_a="../../x.png"),
        "result.json",
        "leaves the run directory",
    ),
}  # fmt: skip


def test_an_undamaged_run_has_no_fault(made) -> None:
    assert check_run(made) == []


def test_a_run_of_an_earlier_version_has_no_fault(run) -> None:
    forget(run)
    assert check_run(run) == []


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
@pytest.mark.parametrize("name", [*DAMAGES, *(n for n in UNLISTED if n not in DAMAGES)])
def test_damage_is_named(run, name: str, listed: bool) -> None:
    if name not in (DAMAGES if listed else UNLISTED):
        pytest.skip("found by the other way alone")
    spoil, file, reason = (DAMAGES if listed else UNLISTED)[name]
    if not listed:
        forget(run)
    spoil(run)
    faults = check_run(run)
    own = [fault for fault in faults if fault.path == run / file]
    assert own and reason in own[0].reason, faults
    assert all("\n" not in str(fault) and str(fault).isprintable() for fault in faults)
    assert len({fault.path for fault in faults}) == len(faults)


def contents(folder: Path) -> dict[str, tuple]:
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in folder.rglob("*")
    }


def verify(folder: Path, root: Path) -> None:
    launch(composed(["task=verify", f"task.run={folder}", f"paths.root={root}"]))


def test_the_task_says_what_is_damaged_and_ends_with_one(run, tmp_path, capsys) -> None:
    shutil.copytree(run, tmp_path / "runs/good")
    shutil.copytree(run, tmp_path / "runs/bad")
    morph(tmp_path / "runs/bad").write_bytes(b"\x1b[2J")
    before = contents(tmp_path / "runs")
    with pytest.raises(SystemExit) as ended:
        verify(tmp_path / "runs", tmp_path / "own")
    assert str(ended.value) == "error: 1 of 2 runs are damaged, see above"
    told = capsys.readouterr().out
    line = f"{morph(tmp_path / 'runs/bad')}: damaged or replaced since the run wrote it; delete it"
    assert line in told
    assert f"{tmp_path / 'runs/good'}: whole" in told
    assert contents(tmp_path / "runs") == before
    verify(tmp_path / "runs/good", tmp_path / "own")


def test_what_was_said_mends_it(run, tiny, tmp_path) -> None:
    """The remedy of most faults, followed: the file is deleted and the command started again."""
    morph(run).write_bytes(b"")
    (run / "scores.csv").write_text("kind\n")
    for fault in check_run(run):
        assert "run its command again" in fault.remedy
        if fault.remedy.startswith("delete it"):
            fault.path.unlink()
    launch(composed(overrides(tiny, run, root=tmp_path, rows=(ROW,), replicates=0)))
    assert check_run(run) == []


def test_an_unfinished_run_is_no_finished_one(run) -> None:
    (run / "done.json").unlink()
    (run / "result.json").unlink()
    (fault,) = check_run(run)
    assert "the run is unfinished; to finish it, run its command again" in str(fault)


def test_a_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no run directory"):
        run_directories(tmp_path)
    with pytest.raises(SystemExit, match=r"task\.run: name a run directory"):
        launch(composed(["task=verify", f"paths.root={tmp_path}"]))
