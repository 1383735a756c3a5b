"""Places, the front and the order of the leaderboard, on rows whose answers are known."""

import json
from typing import Any

import pytest

from adjointdeis.reporting.leaderboard import (
    at_price,
    first,
    front,
    standings,
    write_leaderboard,
)

COMMITTED = 1
FACTS = {"committed": COMMITTED, "seeds": [7, 8], "budgets": [60, 30]}


def row(method: str, steps: int, error: float | None, price: int, **more: Any) -> dict[str, Any]:
    numbers = {"error": error, "bias": error, "spread": 0.0, "cosine": 1.0, "ratio": 1.0}
    return {
        "family": "gaussian", "loss": "distance", "seed": COMMITTED, "calculus": "ode",
        "steps": steps, "method": method, "sampler": "DDIM", "evaluations": price - 10,
        "products": 10, "seconds": 0.01, "bytes": None, "flow": {"x_T": numbers},
        "chain": {"x_T": numbers}, "truth_moves": {"x_T": 1e-9}, **more,
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
    (one,) = standings([row("m", 5, 0.01, 20), row("m", 5, 1.0, 24, loss="reward")], "x_T")
    assert one.error == pytest.approx(0.1)
    assert (one.price, one.failed) == (24, 0)
    lost = {k: v for k, v in row("m", 5, 1.0, 20).items() if k not in ("flow", "chain")}
    (one,) = standings([row("m", 5, 0.001, 20), lost | {"failed": "AssertionError"}], "x_T")
    assert one.error == pytest.approx(1.0)
    assert one.failed == 1
    (one,) = standings([row("m", 5, None, 20)], "x_T")
    assert (one.error, one.failed) == (pytest.approx(1000), 1)


def test_who_is_disqualified_once_has_no_place_at_that_n() -> None:
    found = [row("m", 5, 0.1, 20), row("m", 5, 0.1, 20) | {"disqualified": "hides"}]
    assert standings(found, "x_T") == []


def test_the_order_is_told_by_set(tmp_path) -> None:
    swapped = [row("good", 20, 0.3, 60, seed=8), row("cheap", 20, 0.1, 22, seed=8)]
    drawn = [row("good", 20, 0.1, 60, seed=7), row("cheap", 20, 0.3, 22, seed=7)]
    assert first(swapped, "x_T", 20) == ("cheap", "good")
    refused = {k: row("no", 20, 1, 20)[k] for k in ("family", "loss", "seed", "calculus", "steps")}
    refused |= {"method": "no", "refused": "not for me, \x1b[2J<i>", "truth_moves": {"x_T": 0.0}}
    rows = [*ROWS, *drawn, *swapped, refused]
    paths = write_leaderboard(rows, FACTS, tmp_path)
    page = paths[1].read_text()
    assert "in the same order in 0 of 1 cases" in page
    assert "\x1b" not in page and "<i>" not in paths[0].read_text()
    record = json.loads(paths[2].read_text())
    best = next(s for s in record["standings"] if s["problems"] == "drawn")
    assert best["method"] == "dear" and best["steps"] == 20
    assert (tmp_path / "front_ode_x_T.svg").is_file()
    alike = write_leaderboard([*ROWS, *drawn, *(r | {"seed": 8} for r in drawn)], FACTS, tmp_path)
    assert "in the same order in 1 of 1 cases" in alike[1].read_text()
