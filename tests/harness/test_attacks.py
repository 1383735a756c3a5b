"""An attack as an experiment states it: the paper's accounting, labels, and what is refused."""

from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tiny_profile import ROOT

from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from adjointdeis.harness.attacks import Attack
from adjointdeis.solvers import DDIM, SDEDPMSolver

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(scope="module")
def rows() -> dict[str, Attack]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["+experiment=table1_first", "paths.root=."])
    return {name: instantiate(row) for name, row in cfg.rows.items()}


@pytest.mark.parametrize(
    ("row", "nfe", "stochastic"),
    [
        ("dim_a", 350, False),
        ("adjoint_deis_ode", 2250, False),
        ("adjoint_deis_sde", 2250, True),
        ("exact", 2250, False),
    ],
)
def test_the_papers_accounting(rows, row: str, nfe: int, stochastic: bool) -> None:
    assert rows[row].nfe_paper == nfe
    assert rows[row].stochastic is stochastic
    assert rows[row].notes() == []


def test_adjoint_steps_count_apart_from_sampling_steps() -> None:
    fewer = Attack("a", "a", DDIM(), optimisation_steps=50, gradient=AdjointDEIS(steps=5),
                   optimizer=SGD)  # fmt: skip
    assert fewer.adjoint_steps == 5
    assert fewer.nfe_paper == 250 + 50 * (20 + 5)
    assert Attack("a", "a", DDIM(), sampling_steps=100).nfe_paper == 350


def test_the_paper_is_what_the_rows_say(rows) -> None:
    for name in ("adjoint_deis_ode", "adjoint_deis_sde"):
        settings = rows[name].settings()
        assert settings["sampling_steps"] == settings["adjoint_steps"] == 20
        assert settings["encoding_steps"] == 250
        assert settings["optimisation_steps"] == 50
        assert settings["states"] == "recorded"
        assert (settings["optimizer"], settings["keep"]) == ("SGD", "last")
    assert rows["dim_a"].settings()["gradient"] is None


def test_departures_from_the_paper_are_said() -> None:
    attack = Attack("a", "a", DDIM(), optimisation_steps=10, gradient=AdjointDEIS(), optimizer=SGD,
                    keep="best", paper_row="DiM + AdjointDEIS-1 (ODE)")  # fmt: skip
    assert len(attack.notes()) == 2
    assert "10 optimisation steps instead of the paper's 50" in attack.notes()[0]


def test_a_label_is_derived_when_none_is_given() -> None:
    attack = Attack("a", "", SDEDPMSolver(), optimisation_steps=1, gradient=DiscreteAdjoint(),
                    optimizer=SGD)  # fmt: skip
    assert "DiscreteAdjoint" in attack.label
    assert attack.label.endswith("SDEDPMSolver, lr 0.1")
    assert Attack("a", "", DDIM()).label == "DDIM"


def test_grids() -> None:
    schedule = DDPM()
    greedy = Attack("a", "a", DDIM()).sampling_grid(schedule)
    stride = Attack("a", "a", DDIM(), grid="ddim_stride").sampling_grid(schedule)
    assert greedy.steps == stride.steps == 20
    assert float(greedy[0].t) > float(stride[0].t)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"grid": "karras"}, r"attack x: grid='karras' must be one of greedy_dim, ddim_stride"),
        ({"optimisation_steps": -1}, r"attack x: optimisation_steps=-1"),
        ({"optimisation_steps": 5}, r"attack x makes 5 optimisation steps and needs"),
        (
            {"optimisation_steps": 5, "gradient": DiscreteAdjoint()},
            r"both a gradient method and an optimizer",
        ),
    ],
)
def test_errors(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Attack("x", "x", DDIM(), **settings)
