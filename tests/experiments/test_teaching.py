"""The page that teaches: its numbers are the library's, and it asks for nothing from outside."""

import json
import re
from pathlib import Path

import pytest
import torch

from adjointdeis.gradients import DiscreteAdjoint
from experiments.teaching import run as teaching

PAGE = Path(__file__).parents[2] / "docs" / "_static" / "gradients.html"


@pytest.fixture(scope="module")
def data() -> dict:
    (text,) = re.findall(r"^const data = (.*);$", PAGE.read_text(), re.M)
    return json.loads(text)


def test_the_committed_page_is_that_of_the_template(data) -> None:
    template = (Path(teaching.__file__).parent / "page.html").read_text()
    head, tail = template.split("__DATA__")
    page = PAGE.read_text()
    assert page.startswith(head) and page.endswith(tail)
    outside = set(re.findall(r"(?:https?:)?//[\w.]+", head + tail))
    assert not outside - {"http://www.w3.org"}


def test_every_choice_has_a_path_and_a_gradient_or_a_reason(data) -> None:
    assert list(data["methods"]) == list(teaching.METHODS)
    for sampler in teaching.SAMPLERS:
        for steps in teaching.COUNTS:
            path = data["paths"][f"{sampler}|{steps}"]
            assert len(path) == len(teaching.STARTS) and len(path[0]) == steps + 1
            for method in teaching.METHODS:
                found = data["gradients"][f"{sampler}|{method}|{steps}"]
                assert "gradient=" in found if isinstance(found, str) else len(found["g"]) == 6


def test_the_numbers_are_the_librarys(data) -> None:
    one = teaching.problem()
    for sampler, steps in (("DDIM", 5), ("Runge-Kutta 4", 10)):
        solver = teaching.SAMPLERS[sampler]
        found = data["gradients"][f"{sampler}|DiscreteAdjoint|{steps}"]["g"]
        wanted = teaching.gradient(one, DiscreteAdjoint(), solver, steps, None)
        torch.testing.assert_close(torch.tensor(found).double(), wanted, atol=6e-5, rtol=0)
    # A fine solve is near the truth that the page draws.
    fine = teaching.gradient(one, DiscreteAdjoint(), teaching.SAMPLERS["Runge-Kutta 4"], 200, None)
    truth = torch.tensor(data["truth"]["ode"]).double()
    torch.testing.assert_close(truth, fine, atol=1e-3, rtol=1e-3)
