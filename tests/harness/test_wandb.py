"""What a run leaves for Weights & Biases, written offline and read back from its own files."""

import importlib.util
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_profile import OPTIMISATION, PAIRS, ROOT, composed, overrides
from wandb_files import OfflineRun, offline_runs, read_offline

from adjointdeis.evaluation import ROW_KEYS
from adjointdeis.evaluation.paper import paper_table
from adjointdeis.evaluation.provenance import read_provenance
from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.launch import launch
from adjointdeis.harness.provenance import config_hash
from adjointdeis.harness.tasks import report
from adjointdeis.harness.wandb_logger import (
    RunLogger,
    download,
    fixed_pairs,
    loggers,
    wandb_mode,
)

pytest.importorskip("wandb")


def arguments(tiny: Path, run: Path, *more: str) -> list[str]:
    logger = ("logger=wandb", "logger.wandb.images=2")
    return overrides(tiny, run, *logger, *more, rows=("exact",))


@pytest.fixture(scope="module")
def directory(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one attack on three pairs, without pictures of its own."""
    from adjointdeis.harness.tasks import morph

    folder = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(morph, "write_report", lambda directory, **options: None)
        launch(composed(arguments(tiny, folder)))
    return folder


@pytest.fixture(scope="module")
def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def runs_of(folder: Path) -> list[OfflineRun]:
    import wandb

    # A finished run may still be on its way to the disk; the end of wandb's own process is not.
    wandb.teardown()
    return [read_offline(path) for path in offline_runs(folder)]


@pytest.fixture(scope="module")
def run(directory: Path) -> OfflineRun:
    (found,) = runs_of(directory)
    return found


def test_the_run_is_named_by_what_it_computes_and_ends_well(tiny, directory, run) -> None:
    assert run.id == config_hash(composed(arguments(tiny, directory)))
    assert run.exit_code == 0
    assert run.config["rows"]["exact"]["sampling_steps"] == 4
    assert run.config["optimisation"]["steps"] == OPTIMISATION
    assert "paths" not in run.config


def test_every_step_has_its_loss_and_gradient_norm(directory, run) -> None:
    stored = json.loads((directory / "morphs" / "exact" / f"{PAIRS[2]}.json").read_text())
    # The last pair is alone in its batch, so that its record and the curve are the same numbers.
    losses, norms = run.curve("exact/loss"), run.curve("exact/gradient_norm")
    assert len(losses) == 2 * (OPTIMISATION + 1)
    assert losses[-(OPTIMISATION + 1) :] == pytest.approx(stored["loss"], rel=1e-5)
    # Lightning repeats the last norm beside the loss of the finished morphs.
    assert norms[-(OPTIMISATION + 1) : -1] == pytest.approx(stored["gradient_norm"], rel=1e-5)


def test_images_are_those_of_the_fixed_pairs_and_keep_their_origin(run) -> None:
    (shown,) = run.curve("morphs/exact")
    assert shown["captions"] == [PAIRS[0], PAIRS[2]]
    for name in shown["filenames"]:
        assert read_provenance(run.files / name)["attack"] == "exact"


def test_the_result_table_holds_every_row(run, result) -> None:
    (table,) = run.curve("result")
    stored = json.loads((run.files / table["path"]).read_text())
    assert stored["columns"] == list(ROW_KEYS)
    assert [dict(zip(ROW_KEYS, row, strict=True)) for row in stored["data"]] == result["rows"]
    for row in result["rows"]:
        key = "/".join(row[k] for k in ("variant", "attack", "system", "probe_policy"))
        assert run.summary[key] == row["value"]
    nfe = result["attacks"]["exact"]["nfe"]
    assert run.summary["nfe_counted/exact"] == nfe["encode"] + nfe["forward"] + nfe["vjps"]


def test_the_artifact_holds_records_and_no_face(directory, run, result) -> None:
    files = run.artifacts[f"morphs-{run.id}"]
    assert "morphs.jsonl" in files and "result.json" in files and "config.yaml" in files
    assert not [name for name in files if name.endswith(".png")]
    asked = RunLogger(photographs=True, id="x", project="x", offline=True)
    artifact = asked._artifact(directory, result, "morphs-x")
    pictures = [name for name in artifact.manifest.entries if name.endswith(".png")]
    assert len([n for n in pictures if n.startswith("morphs/")]) == len(PAIRS)
    assert len([n for n in pictures if n.startswith("sources/")]) == 4
    records = Path(artifact.manifest.entries["morphs.jsonl"].local_path).read_text().splitlines()
    first = json.loads(records[0])
    assert first["pair"] == PAIRS[0] and first["sources"].keys() == {"001_03.png", "002_03.png"}
    assert len(records) == len(PAIRS) and all(len(json.loads(r)["sha256"]) == 64 for r in records)


def test_a_continued_run_goes_on_under_its_id(tiny, directory, tmp_path, quiet_report, run) -> None:
    folder = Path(shutil.copytree(directory, tmp_path / "run", symlinks=True))
    (folder / "done.json").unlink()
    (folder / "morphs" / "exact" / f"{PAIRS[2]}.png").unlink()
    launch(composed(arguments(tiny, folder)))
    parts = runs_of(folder)
    assert [part.id for part in parts] == [run.id, run.id]
    assert len(parts[1].curve("exact/loss")) == OPTIMISATION + 1
    assert parts[1].exit_code == 0 and parts[1].curve("result")


def test_a_failed_run_keeps_its_exit_code(tiny, tmp_path, quiet_report) -> None:
    (tmp_path / "faces").mkdir()
    for path in (tiny / "faces").iterdir():
        shutil.copyfile(path, tmp_path / "faces" / path.name)
    (tmp_path / "faces" / "001_03.png").write_text("no picture")
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match="001_03"):
        launch(composed(arguments(tiny, folder, f"data.faces={tmp_path}/faces")))
    (found,) = runs_of(folder)
    assert found.exit_code == 1


# The aggregator


def test_the_report_reads_offline_files_and_counts_a_run_once(directory, tmp_path, capsys) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(directory, outputs / "table1", symlinks=True)
    once = collected(outputs)
    assert [r.directory for r in once.runs] == [outputs / "table1"] and not once.skipped
    # The run directory is lost; what the logger kept is enough for the tables.
    (outputs / "table1" / "result.json").unlink()
    (kept,) = collected(outputs).runs
    assert kept.directory.name == "files"
    assert len(kept.scores) and kept.result["experiment"] == "table1_first"


def collected(outputs: Path) -> Any:
    from adjointdeis.reporting.collect import collect

    return collect(outputs)


class Server:
    """Stands in for the public API: two finished runs, one of them without a result."""

    directory: Path

    def runs(self, project: str, filters: dict[str, str]) -> list[Any]:
        assert filters == {"state": "finished"}
        if project != "team/project":
            raise ValueError("Could not find project")
        return [self.run("with", ["result.json", "scores.csv", "output.log"]), self.run("bare", [])]

    def run(self, identifier: str, names: list[str]) -> Any:
        def file(name: str) -> Any:
            def fetch(root: str, replace: bool) -> None:
                Path(root).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.directory / name, Path(root) / name)

            return SimpleNamespace(name=name, download=fetch)

        return SimpleNamespace(id=identifier, files=lambda: map(file, names), file=file)


def test_runs_of_a_project_are_fetched(directory, tmp_path, monkeypatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Api", Server)
    monkeypatch.setattr(Server, "directory", directory, raising=False)
    assert download("team/project", tmp_path / "wandb") == [tmp_path / "wandb" / "with"]
    assert len(collected(tmp_path).runs) == 1
    with pytest.raises(ValueError, match=r"task\.wandb=nobody/x: Could not find project; expected"):
        download("nobody/x", tmp_path / "wandb")
    written: dict[str, Any] = {}
    monkeypatch.setattr(report, "aggregate", lambda *a, **k: written.update(k) or [])
    run = tmp_path / "outputs" / "report"
    line = [f"paths.run={run}", f"paths.outputs={tmp_path}/outputs", "task.wandb=team/project"]
    report.run(composed(["task=report", *line]))
    assert (tmp_path / "outputs" / "wandb" / "with" / "result.json").is_file()
    assert written == {}


def test_pairs_are_spread_and_fixed() -> None:
    pairs = [{"pair_id": str(k)} for k in range(10)]
    assert [p["pair_id"] for p in fixed_pairs(pairs, 4)] == ["0", "3", "6", "9"]
    assert len(fixed_pairs(pairs, 50)) == 10 and fixed_pairs(pairs, 0) == []
    with pytest.raises(ValueError, match=r"logger\.wandb\.images=-1"):
        RunLogger(images=-1)


@pytest.mark.parametrize(
    ("environment", "offline", "mode"),
    [
        ({}, True, "offline"),
        ({}, False, "online"),
        ({"WANDB_MODE": "online"}, False, "online"),
        ({"WANDB_MODE": "offline"}, False, "offline"),
        ({"WANDB_MODE": "dryrun"}, False, "offline"),
        ({"WANDB_MODE": "disabled"}, True, "disabled"),
        ({"WANDB_MODE": "disabled"}, False, "disabled"),
        ({"WANDB_DISABLED": "true"}, False, "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, False, "disabled"),
        ({"WANDB_DISABLED": "false"}, False, "online"),
    ],
)
def test_the_environment_can_only_send_less(
    monkeypatch, environment: dict[str, str], offline: bool, mode: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(offline) == mode


def test_a_mode_that_is_none_and_one_that_does_not_suffice_are_told(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.warns(UserWarning, match=r"logger\.wandb\.offline=false"):
        assert wandb_mode(offline=True) == "offline"
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(ValueError, match="WANDB_MODE=off: expected online, offline or disabled"):
        wandb_mode(offline=True)


def test_a_disabled_logger_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cfg = composed(["logger=wandb", f"paths.run={tmp_path}", f"paths.root={tmp_path}"])
    assert loggers(cfg) == []
    assert "the environment disables W&B" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg.logger.wandb.offline = False
    (kept,) = loggers(cfg)
    assert isinstance(kept, RunLogger)
    assert kept._offline is True
    kept.experiment.finish()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    """W&B itself would go on in the system's temporary folder."""
    (tmp_path / "file").write_text("mine")
    place = tmp_path / "file" / "below"
    at = [f"paths.run={tmp_path}", f"paths.root={tmp_path}", f"logger.wandb.save_dir={place}"]
    with pytest.raises(ValueError, match=r"logger\.wandb\.save_dir=.*file/below: W&B cannot write"):
        loggers(composed(["logger=wandb", *at]))


# The dashboard and the sweeps

DASHBOARD = ROOT / "experiments" / "dashboard"
SWEEPS = sorted(DASHBOARD.glob("sweep_*.yaml"))


def test_every_panel_reads_a_key_that_runs_log(run) -> None:
    panels = pytest.importorskip("wandb_workspaces.reports.v2")
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD / "dashboard.py")
    assert spec is not None and spec.loader is not None
    dashboard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dashboard)
    view = dashboard.view("team", "project", attacks=("exact",), systems=("adaface", "arcface"))
    logged = {key for entry in run.history for key in entry} | run.summary.keys()
    read: list[str] = []
    for panel in (panel for section in view.sections for panel in section.panels):
        match panel:
            case panels.BarPlot():
                read += panel.metrics
            case panels.ScatterPlot():
                read += [panel.x.name, panel.y.name]
            case panels.LinePlot():
                read += panel.y
            case panels.MediaBrowser():
                read += panel.media_keys
            case panels.WeavePanelSummaryTable():
                read.append(panel.table_name)
            case panels.ParallelCoordinatesPlot():
                pass  # reads the ablations' attack, which this run has not
            case _:
                pytest.fail(f"{type(panel).__name__} is not checked")
    assert len(read) > 10 and set(read) <= logged


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_sweep_composes_and_covers_the_table(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    table = path.stem.removeprefix("sweep_")
    fixed = [part for part in sweep["command"] if not part.startswith("$")][1:]
    assert fixed[0] == f"+experiment={table}" and sweep["command"][-1] == "${args_no_hyphens}"
    values = {name: entry["values"] for name, entry in sweep["parameters"].items()}
    for point in itertools.product(*values.values()):
        chosen = [f"{name}={value}" for name, value in zip(values, point, strict=True)]
        check_overrides(ROOT / "conf", [*fixed, *chosen, "paths.root=."])
    rows = paper_table(table)
    assert {row["steps_M"] for row in rows} <= {*values.get("gradient.steps", ()), 20}
    if table == "table6":
        assert {row["eta"] for row in rows} <= set(values["optimizer.lr"])
    assert sweep["metric"]["name"].split("/")[1] == "guided"


def test_there_is_a_sweep_for_every_ablation() -> None:
    assert [path.stem for path in SWEEPS] == ["sweep_table4", "sweep_table5", "sweep_table6"]
