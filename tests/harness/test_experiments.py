"""Every experiment composes, passes validation, and states attacks that can be built."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_profile import ROOT, composed

from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.tasks.morph import chosen_attacks
from adjointdeis.morphing.adjoint_dim import GuidedDiM
from adjointdeis.morphing.attack import Attack

CONF = ROOT / "conf"
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").rglob("*.yaml")
)
TASKS = sorted(
    path.relative_to(CONF / "task").with_suffix("").as_posix()
    for path in (CONF / "task").rglob("*.yaml")
    if path.parent.name != "head"
)


def slow(value: str) -> object:
    """A value of a test that `make studies` runs."""
    return pytest.param(value, marks=pytest.mark.slow)


def command(experiment: str) -> list[str]:
    lines = [f"+experiment={experiment}", "paths.root=."]
    return [*lines, "data.root=somewhere"] if experiment.startswith("frll") else lines


def test_the_required_experiments_exist() -> None:
    assert {"quickstart", "table1_first", "frll/landmark"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes_and_passes_validation(experiment: str) -> None:
    check_overrides(CONF, command(experiment))


@pytest.mark.parametrize("experiment", ["quickstart", *map(slow, EXPERIMENTS)])
def test_it_does_with_a_dashboard_too(experiment: str) -> None:
    check_overrides(CONF, [*command(experiment), "logger=wandb"])


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if "frll" not in name])
def test_rows_are_attacks(experiment: str) -> None:
    cfg = composed(command(experiment))
    if cfg.task._target_.rpartition(".")[0] != "adjointdeis.harness.tasks.morph":
        pytest.skip("not a morphing experiment")
    tiny = composed([*command(experiment), "+debug=tiny"])
    attacks = chosen_attacks(cfg)
    assert attacks and all(isinstance(attack, Attack) for attack in attacks)
    assert len({attack.name for attack in attacks}) == len(attacks)
    assert cfg.name == experiment
    # The smoke run of the same experiment wins over the experiment's own numbers.
    guided = [a for a in chosen_attacks(tiny) if isinstance(a, GuidedDiM)]
    assert {attack.optimisation_steps for attack in guided} <= {2}
    assert tiny.data.limit == 2


@pytest.mark.parametrize("task", TASKS)
def test_tasks_compose(task: str) -> None:
    check_overrides(CONF, [f"task={task}", "paths.root=."])


def test_a_gradient_on_the_command_line_joins_the_baseline() -> None:
    lines = ["gradient=adjoint_deis", "gradient.steps=5", "optimizer.lr=0.5", "solver=sde_dpm"]
    cfg = composed([*command("quickstart"), *lines])
    baseline, landmark, chosen = chosen_attacks(cfg)
    assert (baseline.name, landmark.name) == ("dim_a", "opencv")
    assert chosen.optimisation_steps == cfg.optimisation.steps == 6
    assert chosen.gradient.steps == 5
    assert chosen.stochastic
    assert "lr 0.5" in chosen.label


def test_no_rows_and_no_gradient_is_an_error() -> None:
    cfg = composed(["paths.root=."])
    with pytest.raises(ValueError, match=r"no rows and no gradient.*\+experiment=quickstart"):
        chosen_attacks(cfg)


@pytest.mark.parametrize("launcher", ["local", "slurm", "slurm_local"])
def test_launchers_compose(launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    lines = ["-m", *command("quickstart"), f"hydra/launcher={launcher}", "seed=0,1"]
    check_overrides(CONF, lines)


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "ddp", "ddp_sim", "slurm"])
@pytest.mark.parametrize("execution", ["plain", "bf16", "fp16"])
def test_trainers_and_executions_compose(trainer: str, execution: str) -> None:
    lines = [*command("quickstart"), f"trainer={trainer}", f"execution={execution}"]
    check_overrides(CONF, lines)


def commands_of(page: Path) -> list[list[str]]:
    """Arguments of every `python run.py` in a page's code blocks, without what is left open."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in text.splitlines() if "run.py" in line]
    return [
        [word for word in words[words.index("run.py") + 1 :] if not word.endswith("...")]
        for words in found
    ]


def test_commands_of_the_page_on_clusters_compose() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    commands = commands_of(ROOT / "docs" / "clusters.md")
    assert len(commands) >= 8
    for words in commands:
        # The page's own class does not exist.
        words = [word for word in words if "mine.Problem" not in word]
        check_overrides(CONF, words)


def test_slurm_leaves_requeueing_to_slurm() -> None:
    from hydra.utils import instantiate

    cfg = composed([*command("quickstart"), "trainer=slurm"])
    (environment,) = instantiate(cfg.trainer.plugins)
    assert environment.auto_requeue is False
