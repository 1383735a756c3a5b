"""A configuration that cannot run fails with one line that says what to change."""

import pytest
from omegaconf import OmegaConf
from tiny_profile import ROOT

from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.validation import ConfigError, flat_keys

CONF = ROOT / "conf"


def message(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONF, list(arguments))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        # An unknown key, in a group, at the root, and inside a node: the nearest name is offered.
        (["gradient=adjoint_deis", "gradient.step=5"], ["gradient.step", "gradient.steps"]),
        (["optimisation.stepps=5"], ["optimisation.stepps", "optimisation.steps"]),
        (["sed=3"], ["sed", "seed"]),
        (["optimizer.learning=1"], ["optimizer.learning", "optimizer"]),
        (["+optimizer.lrr=1"], ["optimizer.lrr", "lr"]),
        (["+solver.clip_x=true"], ["solver.clip_x", "clip_x0"]),
        # An unknown option of a group.
        (["gradient=adjoint_dies"], ["gradient=adjoint_dies", "adjoint_deis"]),
        (["+experiment=quickstar"], ["experiment", "quickstart"]),
        (["task=trian/autoencoder"], ["task", "train/autoencoder"]),
        (["solver=ddmi"], ["solver", "ddim"]),
        # A value of the wrong type, or outside its set.
        (["gradient=adjoint_deis", "gradient.steps=five"], ["gradient.steps", "five", "whole"]),
        (["gradient=adjoint_deis", "gradient.order=7"], ["gradient.order", "7", "2M"]),
        (["gradient=adjoint_deis", "gradient.states=record"], ["gradient.states", "recorded"]),
        (["optimizer.lr=big"], ["optimizer.lr", "big", "number"]),
        (["optimisation.keep=first"], ["keep", "first", "best"]),
        (["optimisation.steps=-1"], ["optimisation.steps=-1", "0 or more"]),
        (["optimisation.steps=1.5"], ["optimisation.steps=1.5", "whole number"]),
        (["optimisation.batch_size=0"], ["optimisation.batch_size=0", "1 or more"]),
        (["seed=abc"], ["seed='abc'", "whole number"]),
        (["seed=true"], ["seed=True", "whole number"]),
        (["force=maybe"], ["force='maybe'", "true or false"]),
        (["protocol.fmr=[0.1,2.0]"], ["protocol.fmr=2.0", "between 0 and 1"]),
        (["protocol.fmr=0.001"], ["protocol.fmr", "list"]),
        (["data.limit=few"], ["data.limit='few'", "whole number"]),
        # A command line that cannot be read at all.
        (["optimisation.steps=[1,"], ["optimisation.steps"]),
        (["quickstart"], ["quickstart"]),
    ],
    ids=lambda value: " ".join(value) if "=" in "".join(value) else None,
)
def test_one_readable_line(arguments: list[str], parts: list[str]) -> None:
    text = message("+experiment=quickstart", *arguments) if (
        "experiment" not in arguments[0]
    ) else message(*arguments)  # fmt: skip
    for part in parts:
        assert part in text


def test_every_value_of_a_sweep_is_of_a_known_key() -> None:
    assert "gradient.steps" in message("gradient=adjoint_deis", "gradient.stepz=5,10,20")
    check_overrides(CONF, ["gradient=adjoint_deis", "gradient.steps=5,10", "optimizer.lr=0.1,1"])


@pytest.mark.parametrize(
    "sweep", ["gradient.steps=5,five", "gradient.states=recorded,record", "optimizer.lr=1,big"]
)
def test_a_later_value_of_a_sweep_is_checked_too(sweep: str) -> None:
    text = message("+experiment=quickstart", "gradient=adjoint_deis", sweep)
    assert sweep.partition("=")[0] in text


def test_good_command_lines_pass() -> None:
    for arguments in (
        ["+experiment=quickstart"],
        ["+experiment=quickstart", "gradient=adjoint_deis", "gradient.steps=5"],
        ["+experiment=quickstart", "gradient=adjoint_deis_2m", "optimizer=adam", "seed=null"],
        ["+experiment=table1_first", "+debug=tiny", "solver=dpmpp", "gradient=backprop"],
        ["-m", "+experiment=quickstart", "gradient=discrete_adjoint", "optimizer.lr=0.1,1"],
        ["--help"],
    ):
        check_overrides(CONF, arguments)


def test_keys_are_dotted_and_leave_hydra_out() -> None:
    cfg = OmegaConf.create({"a": {"b": 1, "c": {"d": 2}}, "hydra": {"x": 1}, "e": None})
    assert flat_keys(cfg) == {"a", "a.b", "a.c", "a.c.d", "e"}


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        (["optimizer.lr=0.1,1"], "or rows.exact_fast.optimizer.lr=... for that one"),
        (["solver=dpmpp"], "or solver@rows.exact_fast.solver=... for that one"),
        (["guided.sampling_steps=10"], "add gradient=discrete_adjoint"),
        (["task=fine_tuning", "optimizer.lr=1"], "task.optimizer.lr"),
    ],
)
def test_settings_that_no_row_reads_are_refused(line: list[str], instead: str) -> None:
    """They named a folder of results that were those of the plain experiment."""
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONF, ["-m", "+experiment=quickstart", *line])
    assert "nothing reads it here" in str(caught.value) and instead in str(caught.value)
    check_overrides(CONF, ["+experiment=quickstart", "gradient=backprop", "optimizer.lr=1"])
    check_overrides(CONF, ["+experiment=quickstart", "optimizer@rows.exact_fast.optimizer=sgd"])
