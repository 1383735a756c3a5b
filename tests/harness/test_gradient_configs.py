"""Every gradient method of the catalogue can be chosen by name, with all of its keys."""

from dataclasses import fields, replace

import pytest
from hydra.utils import instantiate
from tiny_profile import ROOT, composed

from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.catalogue import CATALOGUE
from adjointdeis.harness.command_line import check_overrides

CONF = ROOT / "conf"
NAMES = sorted(path.stem for path in (CONF / "gradient").glob("*.yaml"))


def chosen(name: str) -> tuple[GradientMethod, set[str]]:
    node = composed([f"gradient={name}"]).gradient
    return instantiate(node), set(node) - {"_target_"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_every_key_of_its_method(name: str) -> None:
    check_overrides(CONF, ["+experiment=quickstart", f"gradient={name}"])
    method, keys = chosen(name)
    assert isinstance(method, GradientMethod)
    assert keys == {f.name for f in fields(method) if f.init}
    assert replace(method) == method


def test_every_method_of_the_catalogue_has_a_file() -> None:
    offered = {type(chosen(name)[0]) for name in NAMES}
    missing = {
        type(one.method()).__name__ for one in CATALOGUE if type(one.method()) not in offered
    }
    assert not missing
