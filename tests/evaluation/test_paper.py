"""The paper's tables: every percentage is a whole count of 489 morphs to the printed digit."""

import pytest

from adjointdeis.evaluation import EvaluationError
from adjointdeis.evaluation.paper import N_MORPHS, NUMERIC_TABLES, SYSTEMS, TABLES, paper_table

CELLS = [
    (name, i, system)
    for name in NUMERIC_TABLES
    for i in range(len(paper_table(name)))
    for system in SYSTEMS
]


@pytest.mark.parametrize(("name", "row", "system"), CELLS)
def test_every_cell_is_k_of_489(name, row, system):
    cells = paper_table(name)[row]
    rate, printed = cells[system], cells[f"{system}_percent"]
    assert rate.n == N_MORPHS
    assert isinstance(rate.k, int)
    assert round(100 * rate.k / rate.n, 2) == printed
    # No neighbouring count prints the same percentage, so k is certain.
    for other in (rate.k - 1, rate.k + 1):
        assert round(100 * other / rate.n, 2) != printed
    assert rate.lo < rate.value <= rate.hi


def test_known_cells():
    table = {row["attack"]: row for row in paper_table("table1")}
    assert table["DiM-A"]["arcface"].k == 441
    assert table["DiM + AdjointDEIS-1 (ODE)"]["adaface"].k == 488
    assert table["DiM + AdjointDEIS-1 (ODE)"]["nfe"] == 2250
    assert table["Webmorph"]["nfe"] is None
    assert table["Greedy-DiM*"]["arcface"].hi == 1.0
    assert str(table["DiM-A"]["arcface"]) == "90.18% (441/489) [87.23, 92.52]%"


def test_table_1_repeats_the_row_of_table_6_with_rate_a_tenth():
    """The text says a learning rate of 0.01; the numbers are those of 0.1."""
    ode = next(r for r in paper_table("table1") if r["attack"] == "DiM + AdjointDEIS-1 (ODE)")
    row = next(
        r for r in paper_table("table6") if (r["sde"], r["eta"], r["steps_M"]) == (False, 0.1, 20)
    )
    assert [ode[s].k for s in SYSTEMS] == [row[s].k for s in SYSTEMS]


def test_all_tables_load():
    assert [len(paper_table(name)) for name in TABLES] == [14, 8, 7, 3, 2, 9]
    assert paper_table("table2")[-1] == {
        "method": "AdjointDEIS",
        "ode": "yes",
        "sde": "yes",
        "optimises_x_T": "yes",
        "optimises_z_theta": "yes",
    }
    assert paper_table("table5")[0]["recorded"] is False
    with pytest.raises(EvaluationError, match="paper table 'table7'"):
        paper_table("table7")
