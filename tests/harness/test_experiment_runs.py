"""Every morphing experiment is run, on one pair of the tiny profile and with few steps."""

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tiny_profile import ROOT, composed

from adjointdeis.evaluation.paper import paper_table
from adjointdeis.harness.command_line import check_overrides, expand_globs
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks.morph import chosen_attacks
from adjointdeis.reporting.schema import validate_result

CONF = ROOT / "conf"
FEW = {
    "sampling_steps": 2,
    "encoding_steps": 10,
    "blends": 2,
    "projection_steps": 1,
    "inner_steps": 1,
}


def names(folder: str = "") -> list[str]:
    found = (CONF / "experiment" / folder).rglob("*.yaml")
    return sorted(p.relative_to(CONF / "experiment").with_suffix("").as_posix() for p in found)


def is_morphing(experiment: str) -> bool:
    # Read and not composed, which would take seconds of every worker.
    return "override /task: " not in (CONF / "experiment" / f"{experiment}.yaml").read_text()


MORPHING = [name for name in names() if is_morphing(name)] + ["table1/dim_c", "table1/opencv"]
TABLE1 = sorted(f"table1/{row}" for row in composed(["+experiment=table1", "paths.root=."]).rows)


def shrunk(cfg: DictConfig) -> DictConfig:
    """The same experiment with few steps everywhere."""
    nodes = [*cfg.rows.values(), *cfg.assets.published.values(), cfg.guided]
    for node in nodes:
        for key, value in FEW.items():
            if node is not None and key in node:
                node[key] = value
        if node is not None and "optimisation_steps" in node:
            node["optimisation_steps"] = 1
            for inner in ("gradient", "optimizer"):
                if inner in node and node[inner] is not None and "steps" in node[inner]:
                    node[inner].steps = None
    return cfg


def tiny_lines(experiment: str, tiny: Path, run: Path) -> list[str]:
    return [
        f"+experiment={experiment}",
        "judges=none",
        "logger=none",
        f"paths.root={tiny}",
        f"paths.run={run}",
        f"assets.root={tiny}/profile",
        "assets.generator=stylegan2.safetensors",
        "assets.perceptual=arcface.safetensors",
        "assets.recognisers=[arcface.safetensors]",
        f"data.faces={tiny}/faces",
        f"data.pairs={tiny}/pairs.csv",
        "data.limit=1",
        "optimisation.measure_gradient=false",
        "protocol.replicates=0",
    ]


@pytest.mark.parametrize("experiment", MORPHING)
def test_it_runs(experiment: str, tiny, tmp_path, quiet_report) -> None:
    cfg = shrunk(composed(tiny_lines(experiment, tiny, tmp_path / "run")))
    assert cfg.task._target_ == "adjointdeis.harness.tasks.morph.run"
    launch(cfg)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert validate_result(result) == []
    assert result["experiment"] == experiment
    assert result["attacks"] and not any(a["failed"] for a in result["attacks"].values())


def rows(experiment: str, *more: str) -> list:
    return chosen_attacks(composed([f"+experiment={experiment}", "paths.root=.", *more]))


@pytest.mark.parametrize("assets", ["mini", "paper"])
def test_table_1_has_every_row_at_the_papers_price(assets: str) -> None:
    published = {row["attack"]: row["nfe"] for row in paper_table("table1")}
    ours = {}
    for experiment in TABLE1:
        (attack,) = rows(experiment, f"assets={assets}")
        ours[attack.paper_row] = attack.nfe_paper
    assert ours.keys() == published.keys() and len(ours) == len(TABLE1) == 14
    for name, nfe in published.items():
        assert nfe is None or ours[name] == nfe, name


def test_the_papers_folders_are_read_and_not_remade() -> None:
    for name in ("webmorph", "mipgan_i", "mipgan_ii", "opencv", "facemorpher"):
        (attack,) = rows(f"table1/{name}", "assets=paper")
        assert type(attack).__name__ == "Precomputed"
        (made,) = rows(f"table1/{name}", "assets=mini")
        assert type(made).__name__ != "Precomputed"


SWEEPS = {
    "table4": [[f"gradient.steps={m}"] for m in (15, 10, 5)],
    "table5": [[f"gradient.states={s}"] for s in ("recorded", "resolved")],
    "table6": [
        *([f"optimizer.lr={lr}", f"gradient.steps={m}"] for lr in (0.1, 1) for m in (5, 10, 20)),
        ["optimizer.lr=0.01", "gradient.steps=20"],
        *([f"optimizer.lr={lr}", "gradient.steps=20", "solver=sde_dpm"] for lr in (0.1, 1)),
    ],
}


@pytest.mark.parametrize("table", SWEEPS)
def test_the_stated_sweeps_are_the_papers_rows(table: str) -> None:
    wanted = set()
    for row in paper_table(table):
        # Table 5 prints 0.001 where Table 6 prints 0.01 over the same numbers.
        eta = 0.01 if table == "table5" else row.get("eta", 0.1)
        wanted.add((row["steps_M"], eta, row.get("recorded", True), bool(row.get("sde", False))))
    found = set()
    for point in SWEEPS[table]:
        (attack,) = rows(table, *point)
        settings = attack.settings()
        assert settings["sampling_steps"] == 20 and settings["optimisation_steps"] == 50
        recorded = settings["states"] == "recorded"
        found.add(
            (settings["adjoint_steps"], settings["learning_rate"], recorded, attack.stochastic)
        )
    assert found == wanted


def test_figures_show_what_the_paper_varies() -> None:
    assert [a.adjoint_steps for a in rows("figure4")] == [20, 15, 10, 5]
    rates = [a.settings()["learning_rate"] for a in rows("figure5")]
    assert rates == [0.01, 0.1, 1.0]
    figure6 = rows("figure6")
    assert [(a.sampling_steps, a.adjoint_steps, a.stochastic) for a in figure6] == [
        (20, 20, True),
        (50, 50, True),
    ]
    assert {a.name for a in rows("figure3")} >= {"webmorph", "dim_a", "adjoint_deis_ode"}


def test_a_glob_of_experiments_is_checked() -> None:
    check_overrides(CONF, ["-m", "+experiment=glob(table1/*)", "assets=mini", "paths.root=."])
    with pytest.raises(ValueError, match="the sweep has no value"):
        check_overrides(CONF, ["-m", "+experiment=glob(tabel1/*)"])
    with pytest.raises(ValueError, match=r"optimisation.stepz"):
        check_overrides(CONF, ["-m", "+experiment=glob(table1/*)", "optimisation.stepz=1"])


def test_a_glob_is_written_out_within_its_folder() -> None:
    (line,) = expand_globs(CONF, ["+experiment=glob(table1/*)"])
    key, _, values = line.partition("=")
    assert key == "+experiment" and values.split(",") == TABLE1
    (line,) = expand_globs(CONF, ["experiment=glob([table*,figure*],exclude=table1*)"])
    assert set(line.partition("=")[2].split(",")) >= {"table4", "table6", "figure3"}
    assert "/" not in line and "table1_first" not in line
    unchanged = ["-m", "a=1", "a=glob(", "+experiment=glob(nothing/*)", "seed=1,2"]
    assert expand_globs(CONF, unchanged) == unchanged


def test_a_glob_of_experiments_runs_them(tiny, tmp_path, program) -> None:
    lines = tiny_lines("x", tiny, tmp_path)[1:]
    lines = [x for x in lines if "paths.run" not in x]
    done = program(
        ["-m", "+experiment=glob([table1/o*,table1/w*])", *lines, f"paths.outputs={tmp_path}/o"],
        plots=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = {json.loads(p.read_text())["experiment"] for p in tmp_path.rglob("result.json")}
    assert made == {"table1/opencv", "table1/webmorph"}


def test_rows_can_be_instantiated_from_the_command_line() -> None:
    line = ["+attack@rows.mine=precomputed", "rows.mine.folder=somewhere", "rows.mine.name=mine"]
    cfg = composed(["paths.root=.", *line])
    assert instantiate(cfg.rows.mine).folder == "somewhere"
    assert OmegaConf.select(cfg, "rows.mine.paper_row") is None
