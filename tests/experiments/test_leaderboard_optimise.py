"""Latents and weights at equal price: what a price buys, and who moves least."""

from experiments.adjoint_matching import run as tilted
from experiments.leaderboard.optimise import latents, shown, weights


def test_a_price_buys_more_steps_of_a_cheap_gradient() -> None:
    exact, cheap = (
        latents(name, "Adam", 1, 180) for name in ("DiscreteAdjoint", "Lookahead, 4 leaps")
    )
    # 60 evaluations and products against 28.
    assert (exact["steps"], cheap["steps"]) == (3, 6)
    assert exact["after"] < exact["before"] == cheap["before"]


def test_nothing_moves_less_than_the_tilted_law() -> None:
    least = tilted.divergence(
        *tilted.tilted_law(), tilted.normal(tilted.DIM, seed=8), tilted.SCALE**2
    )
    matched, tuned = weights("adjoint matching", 1), weights("DiscreteAdjoint", 1)
    assert 0.95 * least < matched["moved"] < tuned["moved"]
    assert tuned["price"] == 60 * tuned["updates"]


def test_what_was_not_reached_is_said() -> None:
    assert shown([1.0, None, 2.0]) == "not reached on 1 of 3"
    assert shown([1.0, 3.0]) == "2 [1, 3]"
