"""Places, the front and the order of the leaderboard, on rows whose answers are known."""

import json
import math
import random
from typing import Any

import pytest

from adjointdeis.reporting.leaderboard import write_leaderboard
from adjointdeis.reporting.standings import ahead, at_price, first, front, placed, standings

COMMITTED = 1
FACTS = {"committed": COMMITTED, "seeds": [7, 8], "budgets": [60, 30]}


def row(method: str, steps: int, error: Any, price: int, **more: Any) -> dict[str, Any]:
    """One row; ``error`` is a number, None, or a list with one for each problem."""
    found = error if isinstance(error, list) else [error]
    same = [1.0] * len(found)
    numbers = {"error": found, "bias": found, "spread": [0.0], "cosine": same, "ratio": same}
    return {
        "family": "gaussian", "seed": COMMITTED, "calculus": "ode", "members": len(found),
        "number": 0, "steps": steps, "method": method, "sampler": "DDIM", "evaluations": price - 10,
        "products": 10, "seconds": 0.01, "bytes": None, "flow": {"x_T": numbers},
        "chain": {"x_T": numbers}, "truth_moves": {"x_T": [1e-9] * len(found)}, **more,
    }  # fmt: skip


ROWS = [
    row("good", 10, 0.2, 30), row("good", 20, 0.1, 60),
    row("dear", 10, 0.05, 90), row("dear", 20, 0.01, 180),
    row("cheap", 20, 0.3, 22),
    row("twin", 20, 0.1 * (1 + 1e-9), 50),
]  # fmt: skip


def names(found: Any) -> list[tuple[str, int]]:
    return [(one.method, one.steps) for one in found]


def test_a_price_buys_the_best_n_that_it_pays_for() -> None:
    found = standings(ROWS, "x_T")
    assert names(at_price(found, 60)) == [("twin", 20), ("good", 20), ("cheap", 20)]
    assert names(at_price(found, 30)) == [("good", 10), ("cheap", 20)]
    assert names(at_price(found, 100))[0] == ("dear", 10)
    assert at_price(found, 10) == []


def test_the_front_is_what_nobody_undercuts() -> None:
    assert names(front(standings(ROWS, "x_T"))) == [
        ("cheap", 20), ("good", 10), ("twin", 20), ("dear", 10), ("dear", 20),
    ]  # fmt: skip


def test_errors_are_averaged_geometrically_and_failures_count() -> None:
    (one,) = standings([row("m", 5, 0.01, 20), row("m", 5, 1.0, 24, seed=2)], "x_T")
    assert one.error == pytest.approx(0.1)
    assert (one.price, one.failed) == (24, 0)
    lost = {k: v for k, v in row("m", 5, 1.0, 20).items() if k not in ("flow", "chain")}
    lost |= {"failed": "AssertionError", "seed": 2}
    (one,) = standings([row("m", 5, 0.001, 20), lost], "x_T")
    assert one.error == pytest.approx(1.0)
    assert one.failed == 1
    (one,) = standings([row("m", 5, None, 20)], "x_T")
    assert (one.error, one.failed) == (pytest.approx(1000), 1)


def test_who_is_disqualified_once_has_no_place() -> None:
    found = [row("m", 5, 0.1, 20), row("m", 10, 0.1, 20) | {"disqualified": "hides"}]
    assert standings(found, "x_T") == []


def drawn(method: str, factor: float, price: int, noise: float = 0.0, seed: int = 0) -> Any:
    """Errors on 24 problems of a family, which differ more among themselves than methods do."""
    draw = random.Random(7)
    hard = [math.exp(draw.gauss(0.0, 1.0)) for _ in range(24)]
    own = random.Random(seed)
    return row(method, 20, [factor * h * math.exp(noise * own.gauss(0, 1)) for h in hard], price)


def test_who_refuses_some_of_the_problems_has_no_place(tmp_path) -> None:
    """Its mean is over the easy ones: below the others' there, it is better on none."""

    def refused(method: str, steps: int, **more: Any) -> dict[str, Any]:
        kept = {k: v for k, v in row(method, steps, 1.0, 20).items() if k not in ("flow", "chain")}
        return kept | {"family": "hard", "refused": f"{steps} steps take {17 * steps} bytes"} | more

    rows = [
        row("whole", 20, 0.01, 60), row("whole", 20, 0.5, 60, family="hard"),
        row("picky", 20, 0.005, 50), refused("picky", 20),
        row("picky", 10, 0.02, 30), row("picky", 10, 0.9, 30, family="hard"),
        refused("picky", 20, number=1),
    ]  # fmt: skip
    found = standings(rows, "x_T")
    assert [(one.method, one.steps, one.missing) for one in found] == [
        ("picky", 20, 2), ("whole", 20, 0), ("picky", 10, 0),
    ]  # fmt: skip
    assert [(one.method, one.place) for one in placed(found[:2])] == [("whole", 1), ("picky", None)]
    assert names(at_price(found, 60)) == [("whole", 20), ("picky", 10)]
    assert names(front(found)) == [("picky", 10), ("whole", 20)]
    assert names(first(rows, "x_T", 20)) == [("whole", 20)]
    write_leaderboard([*rows, refused("picky", 5)], FACTS, tmp_path)
    page = (tmp_path / "leaderboard.md").read_text()
    told = [line for line in page.splitlines() if "steps take" in line]
    assert len(told) == 1 and "20 steps take 340 bytes" in told[0] and told[0].endswith("| 3    |")


def test_methods_are_compared_problem_by_problem() -> None:
    """A fifth less on every problem is beyond doubt, whatever the problems; noise takes it back."""
    good, bad = standings([drawn("good", 0.01, 60), drawn("bad", 0.012, 40)], "x_T")
    assert ahead(good, bad) and not ahead(bad, good)
    good, bad = standings([drawn("good", 0.01, 60), drawn("bad", 0.012, 40, 0.5)], "x_T")
    assert not ahead(good, bad)
    # 0.5 / sqrt(24) is a standard error of 0.1: a factor of two is seven of them.
    good, bad = standings([drawn("good", 0.01, 60), drawn("bad", 0.02, 40, 0.5)], "x_T")
    assert ahead(good, bad)
    # Less than a tenth is not told, however sure it is.
    good, bad = standings([drawn("good", 0.01, 60), drawn("bad", 0.0109, 40)], "x_T")
    assert not ahead(good, bad)


def test_families_are_strata() -> None:
    """What differs between families is there on every draw, and no doubt."""
    rows = []
    for family, gains in (("gaussian", [3.0, 3.1, 2.9]), ("mixture-2", [1.0, 1.02, 0.98])):
        rows += [row("good", 20, [0.01] * 3, 20, family=family),
                 row("bad", 20, [0.01 * gain for gain in gains], 20, family=family)]  # fmt: skip
    good, bad = standings(rows, "x_T")
    assert ahead(good, bad)


def test_equal_methods_share_a_place_and_nobody_places_behind_nothing() -> None:
    rows = [
        drawn("dear", 0.01, 60), drawn("cheap", 0.01, 40, 0.3), drawn("third", 0.1, 20),
        drawn("like nothing", 0.95, 10, 1.0), row("zero", 20, [1.0] * 24, 5),
    ]  # fmt: skip
    found = placed(standings(rows, "x_T"))
    assert [(one.method, one.place) for one in found[:3]] == [
        ("cheap", 1), ("dear", 1), ("third", 3),
    ]  # fmt: skip
    assert [one.place for one in found[3:]] == [None, None]
    assert [one.method for one in first(rows, "x_T", 20)] == ["cheap", "dear", "third"]
    # The same gradient at another price is no further one.
    again = [*rows, drawn("dear, again", 0.01, 80)]
    assert [one.method for one in first(again, "x_T", 20)] == ["cheap", "dear", "third"]


def test_two_orders_of_equals_of_a_draw_seldom_differ() -> None:
    """The rule's errors: of 200 pairs that are equal on average hardly one is told apart."""
    told = 0
    for seed in range(200):
        rows = [drawn("a", 0.01, 20, 0.5, 2 * seed), drawn("b", 0.01, 20, 0.5, 2 * seed + 1)]
        one, other = standings(rows, "x_T")
        told += ahead(one, other)
    assert told <= 4


def test_the_order_is_told_by_set(tmp_path) -> None:
    swapped = [row("good", 20, 0.3, 60, seed=8), row("cheap", 20, 0.1, 22, seed=8)]
    drawn = [row("good", 20, 0.1, 60, seed=7), row("cheap", 20, 0.3, 22, seed=7)]
    assert [one.method for one in first(swapped, "x_T", 20)] == ["cheap", "good"]
    refused = {
        k: row("no", 20, 1, 20)[k]
        for k in ("family", "members", "number", "seed", "calculus", "steps")
    }
    refused |= {"method": "no", "refused": "not for me, \x1b[2J<i>", "truth_moves": {"x_T": [0]}}
    rows = [*ROWS, *drawn, *swapped, refused]
    paths = write_leaderboard(rows, FACTS, tmp_path)
    page = paths[1].read_text()
    assert "the same, place by place, in 0 of 1 cases" in page
    assert "each is ahead on one of the sets: 1." in page
    assert "\x1b" not in page and "<i>" not in paths[0].read_text()
    record = json.loads(paths[2].read_text())
    best = next(s for s in record["standings"] if s["problems"] == "drawn")
    assert best["method"] == "dear" and best["steps"] == 20
    assert (tmp_path / "front_ode_x_T.svg").is_file()
    alike = write_leaderboard([*ROWS, *drawn, *(r | {"seed": 8} for r in drawn)], FACTS, tmp_path)
    assert "the same, place by place, in 1 of 1 cases" in alike[1].read_text()


def test_problems_of_a_network_are_told_apart_and_have_a_table_of_their_own(tmp_path) -> None:
    rows = [
        row("m", steps, error, 30, family="mini", number=number)
        for steps, errors in ((5, [0.4, 0.1]), (20, [0.04, 0.01]))
        for number, error in enumerate(errors)
    ]
    fine = [one for one in standings(rows, "x_T") if one.steps == 20]
    assert [one.error for one in fine] == [pytest.approx(0.02)]
    write_leaderboard(rows, FACTS, tmp_path)
    page = (tmp_path / "leaderboard.md").read_text()
    assert "1 gradient methods on 2 problems" in page
    assert "Which gradient?" not in page  # nothing was drawn
    section = page.partition("## Trained networks")[2]
    assert "mini, ODE: Gradient of x_T at N = 20" in section and "problems: **2**" in section
    (line,) = [line for line in section.splitlines() if "| m with DDIM" in line]
    assert [cell.strip() for cell in line.split("|")[3:6]] == ["20 + 10", "0.02", "0.2"]
