"""The widths at which a sign is lost are those that the theory gives."""

import math

import pytest

from adjointdeis.gradients.catalogue import entry
from experiments.stability.factors import factor, first_flip


@pytest.mark.parametrize(("calculus", "c"), [("ode", 1.0), ("sde", 2.0)])
def test_the_first_order_adjoint_multiplies_by_one_minus_c_expm1(calculus: str, c: float) -> None:
    h, steps = 0.3, 5
    found = factor(entry("AdjointDEIS-1"), calculus, h, steps)
    per_step = (1.0 - c * math.expm1(h)) / math.exp(-c * h)
    # The data are not infinitely narrow, hence not to the last digit.
    assert found.ratio == pytest.approx(per_step**steps, rel=1e-3)


def test_it_flips_at_ln_2_and_ln_three_halves() -> None:
    one = entry("AdjointDEIS-1")
    assert first_flip(one, "ode") == pytest.approx(math.log(2.0), abs=2e-3)
    assert first_flip(one, "sde") == pytest.approx(math.log(1.5), abs=2e-3)


def test_the_exact_gradient_of_ddim_does_not_flip() -> None:
    assert first_flip(entry("DiscreteAdjoint"), "ode") is None
    assert factor(entry("DiscreteAdjoint"), "ode", 1.5).ratio == pytest.approx(1.0, rel=1e-3)


def test_the_stochastic_sampler_itself_flips() -> None:
    """A step multiplies by 1 - 2 (1 - e^-h): no gradient of a sampler that overshoots is sound."""
    assert first_flip(entry("DiscreteAdjoint"), "sde") == pytest.approx(math.log(2.0), abs=2e-3)
