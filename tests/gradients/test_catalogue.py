"""The catalogue agrees with what the methods declare, and requests beyond that are refused."""

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, generator, inputs

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import Backprop, GradientMethod, NotSupportedError, surrogates
from adjointdeis.gradients.catalogue import CATALOGUE, Entry, entry
from adjointdeis.solvers import DDIM, SDEDPMSolver

each_entry = pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)


def test_names_are_unique_and_can_be_asked_for() -> None:
    names = [one.name for one in CATALOGUE]
    assert len(set(names)) == len(names)
    assert entry("DiscreteAdjoint").name == "DiscreteAdjoint"
    with pytest.raises(KeyError, match="AdjointDEIS-2M"):
        entry("AdjointDEIS-17")


@each_entry
def test_an_entry_says_no_more_than_its_method(one: Entry) -> None:
    if not one.available:
        pytest.skip(f"needs {one.requires}")
    method = one.method()
    assert isinstance(method, GradientMethod)
    for calculus in ("ode", "sde"):
        solver = one.solver(calculus)
        if solver is not None:
            assert solver.calculus == calculus and one.capability(calculus)
    assert one.ode is not None or one.sde is not None
    assert (one.target == "chain") == bool(one.capability("exact"))
    assert bool(one.bias) != bool(one.capability("exact"))
    assert one.capability("memory")


def limited(missing: str) -> GradientMethod:
    """A method that lacks one capability and would otherwise work."""
    return type("Limited", (Backprop,), {missing: False})()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ode", "Limited does not differentiate ode solvers, and DDIM is one"),
        ("x_T", "no gradient of the initial noise x_T"),
        ("z", "no gradient of a constant condition z"),
        ("z_t", "no gradient of a scheduled condition z_t"),
        ("theta", "no gradient of the weights"),
    ],
)
def test_what_a_method_does_not_declare_is_refused_by_name(missing: str, message: str) -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 3)
    network, (x_T, z) = MLPDenoiser(), inputs(3 if missing == "z_t" else 0)
    for tensor in (x_T, *(z if isinstance(z, list) else [z])):
        tensor.requires_grad_()
    arguments = {"solver": DDIM(), "grid": grid, "gradient": limited(missing)}
    z = PerStep(z) if isinstance(z, list) else z
    with pytest.raises(NotSupportedError, match=message):
        sample(network, x_T, z, **arguments)
    # Nothing is refused that is not asked for.
    with torch.no_grad():
        sample(network, x_T, z, **arguments)
    if missing == "theta":
        network.requires_grad_(False)
        assert sample(network, x_T, z, **arguments).x_0.requires_grad


def test_an_sde_sampler_is_refused_by_a_method_for_odes() -> None:
    grid, (x_T, z) = TimeGrid.uniform_time(VPLinear(), 3), inputs()
    with pytest.raises(NotSupportedError, match="sde solvers, and SDEDPMSolver is one"):
        sample(
            MLPDenoiser(), x_T.requires_grad_(), z, solver=SDEDPMSolver(), grid=grid,
            noise=BrownianPath((BATCH, DIM), seed=0), gradient=limited("sde"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("ReFL, third step from the end", surrogates.refl(generator=generator(0))),
        ("DRTune, 4 steps", surrogates.drtune(4, generator(0))),
        ("LeapAlign, two leaps", surrogates.leapalign(generator=generator(0))),
        ("FlowBP-Sparse, last 4 steps", surrogates.flowbp_sparse(generator=generator(0))),
        ("SDO, middle step", surrogates.sdo(generator(0))),
    ],
)
def test_an_entry_of_the_catalogue_is_one_draw_of_its_method(name: str, draws) -> None:
    """Their steps are fixed there, so that tables can be repeated; all else is the method's own."""
    one, drawn = entry(name).method(), draws.rule(16, generator(1))
    assert len(one.steps(16)) == len(drawn.steps(16))
    for part in ("weights", "bridge"):
        assert getattr(one, part) == getattr(drawn, part)
    assert entry("ReFL, third step from the end").method().steps(16) == [13]
