"""Run directories, what is skipped, what is set aside, seeds, and errors as one line."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import tiny_profile
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from tiny_profile import ROOT, composed

from adjointdeis.files import write_atomically
from adjointdeis.harness.finished import write_marker
from adjointdeis.harness.launch import launch, run_directory
from adjointdeis.harness.provenance import config_hash

COUNTING = "task._target_=tiny_profile.counting_task"


def made(run: Path, *more: str):
    return composed([COUNTING, f"paths.root={run.parent}", f"paths.run={run}", *more])


def calls(run: Path) -> list[str]:
    return (run / "calls.txt").read_text().splitlines()


@pytest.fixture
def hydra_of():
    """Makes Hydra's own record of a command line, as run.py has it."""

    def of(*arguments: str):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", ["paths.root=here", *arguments], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        plain = cfg.copy()
        with open_dict(plain):
            del plain["hydra"]
        return plain

    yield of
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=quickstart"],
        ["+experiment=quickstart", "logger=none"],
        ["+experiment=quickstart", "trainer.devices=2"],
        ["+experiment=quickstart", "force=true"],
    ],
)
def test_the_bare_experiment_gets_the_plain_name(hydra_of, arguments: list[str]) -> None:
    assert run_directory(hydra_of(*arguments)) == Path("here/outputs/quickstart")


def test_settings_of_ones_own_get_a_folder_of_their_own(hydra_of) -> None:
    directories = set()
    for lr in ("0.1", "1"):
        cfg = hydra_of("+experiment=quickstart", f"optimizer.lr={lr}")
        directory = run_directory(cfg)
        assert directory.parent == Path("here/outputs/quickstart")
        assert directory.name == config_hash(cfg)
        directories.add(directory)
    assert len(directories) == 2


def test_a_stated_directory_is_obeyed(hydra_of) -> None:
    cfg = hydra_of("+experiment=quickstart", "optimizer.lr=0.5", "paths.run=mine")
    assert run_directory(cfg) == Path("mine")


def test_without_hydra_the_name_is_the_folder(tmp_path) -> None:
    cfg = made(tmp_path / "run")
    cfg.paths.run = None
    assert run_directory(cfg) == tmp_path / "outputs" / "morph"


def test_a_run_leaves_its_record(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert launch(made(run)) == 1.5
    record = json.loads((run / "run.json").read_text())
    assert record["config_hash"] == config_hash(made(run))
    assert record["seed"] == 0
    assert {"git", "command", "versions", "machine"} <= record.keys()
    stored = OmegaConf.load(run / "config.yaml")
    assert stored.optimisation.batch_size == 8
    assert json.loads((run / "done.json").read_text())["config_hash"] == record["config_hash"]
    assert f"Written to {run}" in capsys.readouterr().out


def test_a_finished_run_is_skipped_unless_forced(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    launch(made(run))
    assert launch(made(run)) is None
    assert "is finished; force=true runs it again" in capsys.readouterr().out
    assert launch(made(run, "trainer=gpu", "logger=none")) is None
    assert len(calls(run)) == 1
    assert launch(made(run, "force=true")) == 1.5
    assert len(calls(run)) == 1  # a fresh folder
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("run.")]
    assert len(aside) == 1 and len(calls(aside[0])) == 1


def test_an_unfinished_run_is_continued_in_place(tmp_path) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "done.json").unlink()
    launch(made(run))
    assert len(calls(run)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_is_continued_with_new_settings(tmp_path) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "done.json").unlink()
    launch(made(run, "seed=1"))
    assert [line.split()[0] for line in calls(run)] == ["0", "1"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_another_configurations_directory_is_set_aside(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    launch(made(run))
    launch(made(run, "seed=1"))
    assert "holds another run; it moves to" in capsys.readouterr().out
    assert calls(run)[0].startswith("1 ")
    aside = next(p for p in tmp_path.iterdir() if p.name.startswith("run."))
    assert calls(aside)[0].startswith("0 ")


def test_what_fits_is_taken_over_from_the_run_set_aside(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tiny_profile, "REUSED", ("part*", "list.csv", "absent"), raising=False)
    run = tmp_path / "run"
    launch(made(run))
    for name in ("part1/a.txt", "part2/b.txt", "list.csv", "other/c.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    launch(made(run, "seed=1"))
    found = {p.relative_to(run).as_posix() for p in run.rglob("*.txt")} | {"list.csv"}
    assert found == {"calls.txt", "part1/a.txt", "part2/b.txt", "list.csv"}
    assert (run / "list.csv").read_text() == "list.csv" and len(calls(run)) == 1
    aside = next(p for p in tmp_path.iterdir() if p.name.startswith("run."))
    assert (aside / "part1" / "a.txt").is_file() and (aside / "other" / "c.txt").is_file()
    # Asked to start over, it starts with nothing.
    launch(made(run, "force=true"))
    assert not (run / "part1").exists() and not (run / "list.csv").exists()


def test_two_runs_set_aside_in_one_second_both_survive(tmp_path) -> None:
    run = tmp_path / "run"
    for seed in range(4):
        launch(made(run, f"seed={seed}"))
    found = {calls(path)[0].split()[0] for path in tmp_path.iterdir()}
    assert found == {"0", "1", "2", "3"}
    assert len(list(tmp_path.iterdir())) == 4


def test_a_seed_fixes_every_generator_and_zero_is_one(tmp_path) -> None:
    for name in ("a", "b"):
        launch(made(tmp_path / name, "seed=0"))
    launch(made(tmp_path / "c", "seed=7"))
    first, second, other = (calls(tmp_path / name)[0] for name in "abc")
    assert first == second
    assert first.split()[1:] != other.split()[1:]


def test_no_seed_leaves_the_generators_alone(tmp_path) -> None:
    import torch

    torch.manual_seed(99)
    expected = torch.rand(())
    torch.manual_seed(99)
    launch(made(tmp_path / "run", "seed=null"))
    assert calls(tmp_path / "run")[0].split()[1] == f"{expected.item():.9f}"


def test_a_failure_is_one_line_and_leaves_its_trace(tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as caught:
        launch(made(run, "task._target_=tiny_profile.failing_task"))
    text = str(caught.value)
    assert text.startswith("error: the file x.png is no image; give another\n")
    assert "failing_task" in (run / "error.txt").read_text()
    assert not (run / "done.json").exists()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match=r"x\.png is no image"):
        launch(made(run, "task._target_=tiny_profile.failing_task"))


def test_a_repaired_run_forgets_its_error(tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "done.json").unlink()
    (run / "error.txt").write_text("old")
    launch(made(run))
    assert not (run / "error.txt").exists()


def test_a_damaged_marker_does_not_stop_a_run(tmp_path) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "done.json").write_text("{")
    assert launch(made(run)) == 1.5


@pytest.mark.parametrize(
    "damage", [b"[" * 100_000, b"7" * 6000, b"[]", b"\xff\xfe\xff", b'{"config_hash": {}}']
)
def test_a_strange_marker_or_record_does_not_stop_a_run(tmp_path, damage) -> None:
    run = tmp_path / "run"
    launch(made(run))
    for name in ("done.json", "run.json", "error.txt"):
        (run / name).write_bytes(damage)
    assert launch(made(run)) == 1.5


def test_a_pipe_in_the_place_of_the_marker_is_no_marker(tmp_path) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "done.json").unlink()
    os.mkfifo(run / "done.json")
    assert launch(made(run)) == 1.5
    assert (run / "done.json").is_file()


def test_a_run_that_lost_a_file_is_not_finished(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    launch(made(run))
    done = json.loads((run / "done.json").read_text())
    assert done["files"] == {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in ("calls.txt", "config.yaml", "run.json")
    }
    (run / "calls.txt").unlink()
    assert launch(made(run)) == 1.5
    assert "calls.txt is gone or changed; made again" in capsys.readouterr().out
    assert len(calls(run)) == 1
    assert launch(made(run)) is None
    (run / "calls.txt").write_text("")
    assert launch(made(run)) == 1.5
    assert f"{run} was finished, but calls.txt is gone or changed" in capsys.readouterr().out
    # Of what lies in folders, as morphs do, the size is looked at.
    write_atomically(run / "morphs" / "x.png", b"whole")
    write_marker(run, config_hash(made(run)), 1.0)
    assert launch(made(run)) is None
    (run / "morphs" / "x.png").write_bytes(b"who")
    assert launch(made(run)) == 1.5
    assert f"{run} was finished, but morphs/x.png is gone or changed" in capsys.readouterr().out


def test_a_run_whose_data_changed_is_not_finished(tmp_path, capsys) -> None:
    run, faces = tmp_path / "run", tmp_path / "faces"
    faces.mkdir()
    face = faces / "001_03.png"
    face.write_bytes(b"one")
    launch(made(run, f"data.faces={faces}"))
    face.touch()  # another time, the same content
    (faces / ".hidden").touch()
    assert launch(made(run, f"data.faces={faces}")) is None
    for change, said in (
        (lambda: face.write_bytes(b"two"), "001_03.png changed since"),
        (lambda: (faces / "002_03.png").touch(), "002_03.png is new since"),
        (lambda: face.unlink(), "001_03.png is gone since"),
    ):
        change()
        assert launch(made(run, f"data.faces={faces}")) == 1.5
        assert f"{run} was finished, but {faces}/{said}; made again" in capsys.readouterr().out
        assert len(calls(run)) == 1, "the former result was not set aside"
        assert launch(made(run, f"data.faces={faces}")) is None
    assert len(list(tmp_path.glob("run.*/done.json"))) == 3


def test_what_a_run_goes_on_with_is_said_where_it_is_another(tmp_path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("adjointdeis.harness.launch.git_revision", lambda: "aaaa")
    launch(made(run, "threads=1"))
    monkeypatch.setattr("adjointdeis.harness.launch.git_revision", lambda: "bbbb")
    launch(made(run, "threads=1"))
    said = "is finished (by revision aaaa, this is bbbb); force=true runs it again"
    assert said in capsys.readouterr().out
    (run / "done.json").unlink()
    launch(made(run, "threads=2", "seed=1"))
    said = capsys.readouterr().out
    assert (
        "is continued with other settings, another revision (bbbb, was aaaa), another mach" in said
    )
    assert "2 threads, was " in said and "force=true makes all of it again" in said
    (run / "done.json").unlink()
    launch(made(run, "threads=2", "seed=1"))
    assert "is continued with" not in capsys.readouterr().out


def test_a_folder_of_something_else_is_no_run_directory(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("name: my own")
    cfg = made(tmp_path)
    with pytest.raises(SystemExit, match=r"no run can be kept there \(its config.yaml is of"):
        launch(cfg)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "name: my own"


def test_a_run_of_an_earlier_version_without_its_result_is_not_finished(tmp_path) -> None:
    run = tmp_path / "run"
    launch(made(run))
    done = json.loads((run / "done.json").read_text())
    del done["files"]
    (run / "done.json").write_text(json.dumps(done))
    assert launch(made(run)) is None
    (run / "morphs").mkdir()
    assert launch(made(run)) == 1.5


def test_a_run_under_way_is_not_finished(tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    launch(made(run))
    (run / "calls.txt").unlink()
    with pytest.raises(SystemExit):
        launch(made(run, "task._target_=tiny_profile.failing_task"))
    assert not (run / "done.json").exists()


def test_help_and_a_typo_from_the_shell(program) -> None:
    good = program(["--help"])
    assert good.returncode == 0
    assert "python run.py +experiment=quickstart" in good.stdout
    bad = program(["+experiment=quickstart", "optimisation.stepps=3"])
    assert bad.returncode != 0
    assert bad.stderr.strip().splitlines()[-1].startswith("error: optimisation.stepps=3")
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("tasks", [None, "2"])
def test_a_point_of_a_sweep_starts_no_processes(tmp_path, monkeypatch, capsys, tasks) -> None:
    monkeypatch.setattr("adjointdeis.harness.launch.sweeping", lambda: True)
    monkeypatch.setattr("adjointdeis.harness.launch._own_command", list)
    for name, value in (("LOCAL_RANK", None), ("SLURM_NTASKS", tasks)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    launch(made(run, "trainer=ddp_sim", "logger=none"))
    if tasks is None:
        told = capsys.readouterr().err
        assert "trainer.devices=2 within a sweep: the processes that Lightning starts" in told
        assert not run.exists()
    else:
        assert len(calls(run)) == 1, "SLURM has started them"
