"""Every sampler can be chosen by name, and the reversible ones go with their gradient."""

from dataclasses import fields

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from tiny_profile import ROOT, composed

from adjointdeis.gradients import NotSupportedError
from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.tasks.morph import chosen_attacks
from adjointdeis.solvers import ReversibleSolver

CONF = ROOT / "conf"
NAMES = sorted(path.stem for path in (CONF / "solver").glob("*.yaml"))
REVERSIBLE = ["bdia", "edict", "obelm", "rex"]


def quickstart(*overrides: str):
    return composed(["+experiment=quickstart", "paths.root=.", *overrides])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_makes_its_sampler_from_keys_it_has(name: str) -> None:
    check_overrides(CONF, ["+experiment=quickstart", "gradient=backprop", f"solver={name}"])
    node = quickstart(f"solver={name}").solver
    solver, keys = instantiate(node), set(node) - {"_target_"}
    assert solver.calculus in ("ode", "sde")
    assert keys <= {field.name for field in fields(solver)}
    assert isinstance(solver, ReversibleSolver) == (name in REVERSIBLE)
    if name in REVERSIBLE:
        assert keys == {field.name for field in fields(solver)}
        assert solver == type(solver)()


@pytest.mark.parametrize("name", REVERSIBLE)
def test_a_reversible_sampler_goes_with_its_gradient(name: str) -> None:
    *_, attack = chosen_attacks(quickstart("gradient=reversible", f"solver={name}"))
    assert isinstance(attack.solver, ReversibleSolver)


def test_a_sampler_without_inverse_is_refused_before_anything_is_encoded() -> None:
    with pytest.raises((NotSupportedError, InstantiationException), match="DDIM has none"):
        chosen_attacks(quickstart("gradient=reversible", "solver=ddim"))
