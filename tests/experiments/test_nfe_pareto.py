"""experiments/nfe_pareto reads curves from runs of the main program, and its commands compose."""

import json
import re
import shlex

import pytest
from tiny_profile import ROOT, composed

from adjointdeis.harness.tasks.morph import chosen_attacks
from adjointdeis.reporting.collect import AttackRuns
from experiments.nfe_pareto import run as study

FOLDER = ROOT / "experiments" / "nfe_pareto"


class FakeRun:
    """What a run of the main program leaves, as far as the study reads it."""

    systems = ("judge",)

    def __init__(self, seed: int, accepted: int, settings: dict, nfe: dict) -> None:
        attack = {"label": "a", "settings": settings, "nfe": nfe, "curves": {"loss": [0.9, 0.4]}}
        self.result = {
            "pairs": [None] * 10,
            "run": {"seed": seed},
            "attacks": {"guided": attack},
        }
        self.accepted = accepted

    def row(self, attack, system, at) -> dict:
        assert (at.impostors, at.variant, at.fmr) == ("all", "MMPMR", 0.001)
        k = self.accepted if at.probe == "other" else 10
        return {
            "k": k, "n": 10, "value": k / 10, "confidence": 0.95,
            "bootstrap_lo": k / 10 - 0.1, "bootstrap_hi": k / 10 + 0.1,
        }  # fmt: skip


def entry(steps: int, *accepted: int, **changes) -> AttackRuns:
    settings = {
        "gradient": "DiscreteAdjoint()", "solver": "DDIM()", "optimizer": "Adam",
        "learning_rate": 0.03, "sampling_steps": 5, "encoding_steps": 50,
        "optimisation_steps": steps, "optimizer_options": {}, **changes,
    }  # fmt: skip
    n = settings["sampling_steps"]
    nfe = {"encode": 50.0, "forward": float((steps + 1) * n), "vjps": float(steps * n)}
    runs = [FakeRun(seed, k, settings, nfe) for seed, k in enumerate(accepted)]
    return AttackRuns("guided", tuple(runs))


def test_a_curve_is_one_way_to_optimise_in_the_order_of_its_steps() -> None:
    plain = entry(0, 2, gradient=None)
    found = study.curves([entry(12, 6), entry(2, 3), plain, entry(12, 5, learning_rate=0.1)])
    assert [c["name"] for c in found] == [
        "exact ode Adam 0.03 N=5 N_E=50",
        "exact ode Adam 0.1 N=5 N_E=50",
    ]
    assert [p["step"] for p in found[0]["points"]] == [2, 12]
    # N_E + n (N + M), and the sampling run that shows the iterate.
    assert [p["nfe"] for p in found[0]["points"]] == [50 + 2 * 10 + 5, 50 + 12 * 10 + 5]
    assert found[0]["points"][1]["rates"]["judge/other"] == {
        "k": [6], "value": 0.6, "lo": 0.5, "hi": 0.7,
    }  # fmt: skip
    assert found[0]["points"][0]["loss"] == 0.4


def test_seeds_are_averaged_and_their_counts_kept() -> None:
    sde = {"solver": "SDEDPMSolver()", "gradient": "AdjointDEIS(order=1)"}
    (curve,) = study.curves([entry(4, 3, 4, 5, **sde)])
    assert curve["name"] == "AdjointDEIS-1 sde Adam 0.03 N=5" and curve["seeds"] == 3
    rate = curve["points"][0]["rates"]["judge/other"]
    assert rate["k"] == [3, 4, 5] and rate["value"] == 0.4


def test_reaching_is_for_good() -> None:
    base = {"points": [{"nfe": 2270.0, "rates": {"judge/other": {"value": 0.5}}}]}
    (curve,) = study.curves([entry(2, 3), entry(4, 6), entry(6, 4), entry(8, 5)])
    # The second point is above, the third below again: only the fourth is for good.
    assert study.reaches(curve, base, "other") == 50 + 8 * 10 + 5
    (below,) = study.curves([entry(2, 3), entry(4, 6), entry(6, 4)])
    assert study.reaches(below, base, "other") is None


def test_the_published_result_has_a_table_and_the_papers_evaluations() -> None:
    result = json.loads((FOLDER / "result.json").read_text())
    (base,) = (c for c in result["curves"] if c["name"] == study.BASELINE)
    # 250 + 50 (20 + 20), and the 20 that show the last iterate.
    assert base["points"][-1]["nfe"] == 2250 + 20
    text = study.printed(result, "other")
    assert "| exact ode Adam 0.03 N=5 N_E=50, 100 pairs" in text
    (chosen,) = (c for c in result["curves"] if c["name"] == "exact ode Adam 0.03 N=5 N_E=50")
    assert study.reaches(chosen, base, "other") == study.reaches(chosen, base, "source") == 135


PAGE = (FOLDER / "README.md").read_text()
COMMANDS = re.findall(r"^python run\.py -m (\+experiment=nfe_pareto [^#\n]+)", PAGE, re.M)
LBFGS = "optimizer._target_=torch.optim.LBFGS ~optimizer.betas +optimizer.max_iter=1"
COMMANDS += [
    f"+experiment=nfe_pareto {LBFGS}",
    "+experiment=nfe_pareto optimizer=sgd +optimizer.momentum=0.9",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_makes_one_guided_attack(command: str) -> None:
    # The last value of every sweep: what composes for one composes for the others.
    line = [re.sub(r"=.*,", "=", word) for word in shlex.split(command)]
    (attack,) = chosen_attacks(composed(line))
    settings = attack.settings()
    name = study.curve_name(settings)
    assert str(settings["sampling_steps"]) in name and f"{settings['learning_rate']:g}" in name
    assert COMMANDS
