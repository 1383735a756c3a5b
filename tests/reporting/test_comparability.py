"""Every row of the paper's Table 1 is held against the settings that it was made with."""

from types import SimpleNamespace

import pytest
from hydra.utils import instantiate
from tiny_profile import composed

from adjointdeis.evaluation.paper import SYSTEMS, paper_table
from adjointdeis.reporting.paper_tables import ROWS, reasons_not_comparable, setting_reasons

ATTACKS = {
    "Webmorph": "webmorph", "OpenCV": "opencv", "FaceMorpher": "facemorpher",
    "MIPGAN-I": "mipgan_i", "MIPGAN-II": "mipgan_ii", "DiM-A": "dim_a", "DiM-C": "dim_c",
    "Fast-DiM": "fast_dim", "Fast-DiM-ode": "fast_dim_ode", "Morph-PIPE": "morph_pipe",
    "Greedy-DiM-S": "greedy_dim_s", "Greedy-DiM*": "greedy_dim",
    "DiM + AdjointDEIS-1 (ODE)": "adjoint_deis_ode",
    "DiM + AdjointDEIS-1 (SDE)": "adjoint_deis_sde",
}  # fmt: skip


def settings(name: str) -> dict:
    cfg = composed([f"+attack@rows.it={name}", "paths.root=."])
    return instantiate(cfg.rows.it).settings()


def run_of(row: str, stated: dict, profile: str = "paper") -> SimpleNamespace:
    entry = {"paper_row": row, "settings": stated}
    result = {
        "attacks": {"it": entry}, "rows": [{"n": 489}], "systems": dict.fromkeys(SYSTEMS),
    }  # fmt: skip
    return SimpleNamespace(result=result, profile=profile, degradation=None)


def test_every_row_of_the_table_has_its_settings() -> None:
    assert ROWS.keys() == {row["attack"] for row in paper_table("table1")} == ATTACKS.keys()


@pytest.mark.parametrize("row", ATTACKS)
def test_the_attack_as_configured_is_the_papers_and_a_changed_one_is_not(row) -> None:
    stated = settings(ATTACKS[row])
    assert setting_reasons(stated, ROWS[row]) == []
    for key, value in ROWS[row].items():
        other = value + 2 if isinstance(value, int | float) else "another"
        (reason,) = setting_reasons({**stated, key: other}, ROWS[row])
        assert f"{key.replace('_', ' ')} {other} instead of {value}" == reason
        if value:
            (reason,) = setting_reasons({**stated, key: None}, ROWS[row])
            assert "unstated" in reason


def test_verdicts() -> None:
    greedy = settings("greedy_dim")
    assert reasons_not_comparable(run_of("Greedy-DiM*", greedy), "it") == []
    found = reasons_not_comparable(run_of("Greedy-DiM*", {**greedy, "sampling_steps": 2}), "it")
    assert found == ["sampling steps 2 instead of 20"]
    assert "not known here" in reasons_not_comparable(run_of("Mixup", {}), "it")[0]
    assert "StyleGAN2" in reasons_not_comparable(run_of("MIPGAN-I", settings("mipgan_i")), "it")[-1]
    # Published morphs are the paper's own, whatever made them.
    assert reasons_not_comparable(run_of("MIPGAN-I", {"method": "Precomputed"}), "it") == []
    assert "other faces" in reasons_not_comparable(run_of("DiM-A", {}, "mini"), "it")[0]
