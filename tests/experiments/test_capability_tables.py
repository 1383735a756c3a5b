"""Tables 2 and 3 of the paper against the class attributes, with every difference stated."""

import runpy
from pathlib import Path

import pytest

from adjointdeis.gradients.catalogue import CATALOGUE
from experiments.table2.algorithms import ALGORITHMS

FOLDER = Path(__file__).parents[2] / "experiments"
TABLE2 = runpy.run_path(str(FOLDER / "table2" / "run.py"))
TABLE3 = runpy.run_path(str(FOLDER / "table3" / "run.py"))
NAMES = {one.paper for one in CATALOGUE if one.paper}


def differing(paper: dict, here: dict, method: str) -> set[tuple[str, str]]:
    assert paper.keys() == here.keys()
    return {(method, name) for name in paper if paper[name] != here[name]}


def test_every_method_of_table_2_runs_here() -> None:
    paper = TABLE2["paper"]()
    assert [one.paper for one in ALGORITHMS] == list(paper)
    assert not [one.where for one in ALGORITHMS if one.found is None]
    # Every name that the catalogue of gradients takes from the paper is a row there.
    assert paper.keys() >= NAMES


def test_table_2_is_the_papers_but_for_the_stated_cells() -> None:
    paper, found = TABLE2["paper"](), set()
    for one in ALGORITHMS:
        found |= differing(paper[one.paper], TABLE2["here"](one), one.paper)
    assert found == TABLE2["DIFFERENCES"].keys()
    assert all(TABLE2["DIFFERENCES"].values())


def test_table_3_is_the_papers_but_for_the_stated_cells() -> None:
    found = set()
    for name in TABLE3["METHODS"]:
        kind = TABLE3["method_of"](name)
        assert kind is not None, f"no continuous adjoint of the catalogue stands for {name}"
        found |= differing(TABLE3["paper"](name), TABLE3["here"](kind), name)
    assert found == TABLE3["DIFFERENCES"].keys()


def test_every_method_of_the_continuous_equations_says_how_it_solves_them() -> None:
    for one in CATALOGUE:
        assert (type(one.method()).adjoint is not None) == (one.target == "flow"), one.name


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_the_page_holds_the_generated_tables(name: str) -> None:
    page = (FOLDER / name / "README.md").read_text()
    made = {"table2": TABLE2, "table3": TABLE3}[name]["written"](page)
    assert page == made, f"run python experiments/{name}/run.py --write"
    assert page.count("|--") > 0
