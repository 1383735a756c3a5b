"""Hydra as its users know it: own folders, sweepers, paths with an equals sign, one plain line."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny_profile import ROOT

from adjointdeis.harness.command_line import check_overrides, expand_globs, setting
from adjointdeis.harness.validation import ConfigError

CONF = ROOT / "conf"
QUICK = ["+experiment=quickstart"]
SWEPT = [*QUICK, "gradient=adjoint_deis"]
MINE = """# @package _global_
defaults:
  - /attack@rows.dim_a: dim_a
name: {name}
data:
  limit: 2
"""


def slow(value: object) -> object:
    """A value of a test that `make studies` runs."""
    return pytest.param(value, marks=pytest.mark.slow, id=str(value))


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONF, arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: experiments, an option of a group of ours, and a group of their own."""
    folder = tmp_path / "epoch=3" / "conf"
    for name, text in {
        "experiment/mine.yaml": MINE.format(name="mine"),
        "experiment/deep/er.yaml": MINE.format(name="deeper"),
        "gradient/my_adjoint.yaml": "defaults: [adjoint_deis]\nsteps: 7\n",
        "site/lab.yaml": "# @package _global_\nseed: 3\n",
        "whole.yaml": "defaults: [config, _self_]\nname: whole\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_an_override_without_its_plus_gets_the_hint_of_hydra() -> None:
    text = refusal("experiment=quickstart")
    assert text.endswith("To append to your default list use +experiment=quickstart")


@pytest.mark.parametrize("flag", ["--config-dir", slow("-cd")])
def test_a_folder_of_the_users_is_searched(own: Path, flag: str, monkeypatch) -> None:
    folder = [flag, str(own)]
    check_overrides(CONF, [*folder, "+experiment=mine", "gradient=my_adjoint", "+site=lab"])
    check_overrides(CONF, ["+experiment=mine", f"--config-dir={own}"])
    assert "did you mean 'mine'" in refusal(*folder, "+experiment=mien")
    assert "did you mean 'my_adjoint'" in refusal(*folder, *QUICK, "gradient=my_adjont")
    assert "did you mean 'lab'" in refusal(*folder, *QUICK, "+site=lap")
    assert "gradient.steps" in refusal(*folder, *QUICK, "gradient=my_adjoint", "gradient.stps=1")
    # The folder belongs to that command line alone.
    assert "experiment has no option 'mine'" in refusal("+experiment=mine")
    monkeypatch.chdir(own.parent)
    check_overrides(CONF, [flag, "conf", "+experiment=deep/er"])
    assert refusal(flag, "nowhere", *QUICK).startswith("--config-dir: there is no folder")


def test_globs_and_sweeps_reach_the_users_folder(own: Path) -> None:
    line = ["--config-dir", str(own), "-m", "+experiment=glob(*e*)"]
    *_, last = expand_globs(CONF, line)
    assert "mine" in last.split("=")[1].split(",") and "quickstart" not in last
    assert expand_globs(CONF, [*line[:3], "+experiment=glob(deep/*)"])[-1] == "+experiment=deep/er"
    check_overrides(CONF, [*line[:3], "+experiment=mine,deep/er", "gradient=my_adjoint,backprop"])


def test_searchpaths_a_name_and_a_path_of_configurations(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "experiment"
    other.mkdir(parents=True)
    (other / "theirs.yaml").write_text(MINE.format(name="theirs"))
    both = f'hydra.searchpath=["file://{own}","file://{other.parent}"]'
    for experiment in ("mine", "theirs", "quickstart"):
        check_overrides(CONF, [both, f"+experiment={experiment}"])
    assert "did you mean 'theirs'" in refusal(both, "+experiment=theris")
    check_overrides(CONF, ["--config-dir", str(own), "--config-name", "whole", "+site=lab"])
    assert "nothing" in refusal("--config-name", "nothing", *QUICK)
    path = ["--config-path", str(own), "-cn", "whole", f"hydra.searchpath=[file://{CONF}]"]
    check_overrides(CONF, [*path, "+experiment=mine"])
    check_overrides(CONF, ["--config-path", "conf", *QUICK])
    assert refusal("--config-path", "nowhere", *QUICK).startswith("--config-path: there is no")


@pytest.mark.parametrize(
    "sweep",
    [
        "optimizer.lr=0.1,1",
        "optimizer.lr=choice(0.1,1)",
        "gradient.steps=range(1,10,3)",
        "gradient.steps=shuffle(range(1,10))",
        "gradient.steps=sort(10,5,reverse=true)",
        "optimizer.lr=tag(small,large,choice(0.1,1))",
        "gradient=glob(adjoint_deis*)",
        "gradient=glob([adjoint_*,backprop],exclude=adjoint_dpm)",
        "data.faces=mini,'/data/epoch=3'",
    ],
)
def test_every_sweep_of_hydra_passes(sweep: str) -> None:
    check_overrides(CONF, ["--multirun", *SWEPT, sweep])


@pytest.mark.parametrize(
    "interval",
    [slow("interval(0.01,1)"), "tag(log, interval(0.01, 1))", slow("float(interval(1, 2))")],
)
def test_an_interval_is_for_a_sweeper_that_searches(interval: str, monkeypatch, tmp_path) -> None:
    text = refusal("-m", *SWEPT, f"optimizer.lr={interval}")
    assert "no intervals" in text and "hydra/sweeper=" in text
    # A wrong key is told of first; so is a value that the key cannot take.
    assert "optimizer.lrr" in refusal("-m", *SWEPT, f"+optimizer.lrr={interval}")
    assert "five" in refusal("-m", *SWEPT, f"optimizer.lr={interval}", "gradient.steps=5,five")
    (tmp_path / "hydra" / "sweeper").mkdir(parents=True)
    (tmp_path / "hydra" / "sweeper" / "search.yaml").write_text("_target_: somebodys.Sweeper\n")
    line = ["--config-dir", str(tmp_path), "-m", *SWEPT, "hydra/sweeper=search"]
    check_overrides(CONF, [*line, f"optimizer.lr={interval}"])
    assert "'big'" in refusal(*line, f"optimizer.lr={interval}", "optimisation.steps=big")
    assert "hydra/sweeper has no option 'optuna'" in refusal(*SWEPT, "hydra/sweeper=optuna")


@pytest.mark.parametrize("mode", [[], ["--multirun"]])
@pytest.mark.parametrize(
    "key",
    ["data.faces", "data.pairs", "paths.run", "paths.outputs", "paths.data", "assets.root", "+x.y"],
)
def test_an_equals_sign_in_a_path_is_quoted(key: str, mode: list[str]) -> None:
    text = refusal(*mode, *QUICK, f"{key}=/data/epoch=3/x=4")
    assert text.endswith(f"quote the value: '{key}=\"/data/epoch=3/x=4\"'")
    for quoted in ('"/data/epoch=3/x=4"', "'/data/epoch=3/x=4'"):
        check_overrides(CONF, [*mode, *QUICK, f"{key}={quoted}"])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("data.faces=/a=1,/b=2", 'data.faces="/a=1","/b=2"'),
        ("hydra.searchpath=[file:///a=1,pkg://b]", 'hydra.searchpath=["file:///a=1",pkg://b]'),
        ("data.faces=/data/run (3)", 'data.faces="/data/run (3)"'),
        ("data.faces=/data/a[1]", 'data.faces="/data/a[1]"'),
    ],
)
def test_what_quotes_mend_is_quoted_rightly(given: str, wanted: str) -> None:
    assert refusal(*QUICK, given).endswith(f"quote the value: '{wanted}'")


def test_a_command_that_is_printed_can_be_given_again() -> None:
    parser = OverridesParser.create()
    plain = ["/data/faces", "/data/epoch=3", "a b", "a,b", "[x]", "3", "null"]
    for path in [*plain, 'say "x"', "a\\b", "a\\=b", "a=\\", 'a=\\"b"']:
        assert parser.parse_override(setting("data.faces", path)).value() == path
    assert setting("data.faces", "/data/faces") == "data.faces=/data/faces"


def test_what_quotes_do_not_mend_has_no_such_hint() -> None:
    assert "quote" not in refusal(*QUICK, "quickstart")
    assert "quote" not in refusal(*QUICK, 'data.faces="unclosed')


@pytest.mark.parametrize("flag", ["--help", "--hydra-help", "--cfg=job", "--info", "-sc"])
def test_nothing_is_composed_for_a_question(flag: str) -> None:
    check_overrides(CONF, [flag, "+experiment=nothing"])


def test_a_run_with_a_folder_and_a_path_of_ones_own(own, tmp_path, started, environ) -> None:
    outputs = tmp_path / "lr=1"
    line = ["--config-dir", "epoch=3/conf", "+experiment=mine", f'paths.outputs="{outputs}"']
    done = started(
        [*line, "task._target_=tiny_profile.counting_task", "judges=none", "logger=none"],
        tmp_path,
        {**environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    (run,) = outputs.glob("mine/*/run.json")
    assert (run.parent / "done.json").is_file()


@pytest.mark.parametrize(
    "allocation",
    [
        slow({"SLURM_NTASKS": "4"}),
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
        slow({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2"}),
        slow({"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "4"}),
    ],
    ids=str,
)
def test_one_process_starts_in_any_allocation(
    allocation: dict[str, str],
    tiny: Path,
    tmp_path: Path,
    started: Callable[..., subprocess.CompletedProcess],
    environ: dict[str, str],
) -> None:
    from tiny_profile import overrides

    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "notebook", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    lines = overrides(tiny, tmp_path / "run", rows=("dim_a",), replicates=0)
    done = started(lines, tmp_path, {**environ, **slurm, **allocation}, plots=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "done.json").is_file()
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gradient=null", "null: expected the name of an option of the group gradient: adjoint"),
        ("degradation=[]", "print_scan, resize; degradation=none chooses nothing"),
        ("gradient={a:1}", "option of the group gradient: adjoint_deis, "),
        ("rows=[dim_a]", r"Error merging override rows=\[dim_a\]: .*Dict"),
    ],
)
def test_nothing_as_an_option_is_answered_with_the_options(given: str, said: str) -> None:
    assert re.search(said, refusal(*QUICK, given))
