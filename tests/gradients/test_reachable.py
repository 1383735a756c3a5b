"""What a walk over a sampler reaches, and what leads out of it and is left alone."""

import itertools
import logging
import random
import weakref
from contextvars import ContextVar

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from adjointdeis.gradients.consistency import _shape
from adjointdeis.gradients.reachable import (
    changes,
    comparable,
    next_number,
    own_state,
    reachable,
)

logger = logging.getLogger("adjointdeis.tests.reachable")
table = {"calls": [1, 2.0]}


class Told(nn.Module):
    """Names a logger and a class of numpy's, and takes a new logger at every time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(2, 2).double(), 0
        self.rng, self.own = np.random.default_rng(0), random.Random(1)

    def forward(self, x, t, z):
        assert isinstance(self.rng, Generator) and table
        logger.getChild(f"at {t}").debug("called")
        return self.inner(x)


def test_a_logger_leads_to_no_other_one_of_the_process() -> None:
    model = Told()
    found = comparable(reachable(model))
    assert {name for name in found if "logg" in name} == set()
    assert found["Told.calls"] == (int, 0) and found["table['calls'][1]"] == (float, "2.0")
    assert len(found) < 40
    model(torch.ones(1, 2).double(), 0.25, None)
    assert changes(found, comparable(reachable(model))) == []


def test_a_class_of_generators_is_no_generator() -> None:
    model = Told()
    before = comparable(reachable(model))
    model.rng.random()
    model.own.random()
    assert changes(before, comparable(reachable(model))) == ["Told.rng", "Told.own"]
    before = own_state(model)
    np.random.random()  # noqa: NPY002 - the generator that libraries share
    assert changes(before, own_state(model)) == ["numpy.random"]
    model.rng = Generator(np.random.MT19937(5))
    before = comparable(reachable(model))
    assert changes(before, comparable(reachable(model))) == []
    model.rng.random()
    assert changes(before, comparable(reachable(model))) == ["Told.rng"]


def test_a_counter_that_is_no_number_is_seen() -> None:
    count, place = itertools.count(3), ContextVar("place", default=0)

    def counting(x, t, z):
        place.set(place.get() + 1)
        return x * next(count)

    before = comparable(reachable(counting))
    assert changes(before, comparable(reachable(counting))) == []
    counting(1.0, 0.5, None)
    assert sorted(changes(before, comparable(reachable(counting)))) == ["count", "place"]


def test_a_proxy_is_walked_as_what_it_stands_for() -> None:
    class Text(dict):
        """A dictionary that can be referred to weakly."""

    module, text = nn.Linear(2, 3), Text(a=5)
    found = comparable(reachable([weakref.proxy(module), weakref.proxy(text)]))
    assert found["list[0].in_features"] == (int, 2) and found["list[1]['a']"] == (int, 5)


def test_how_a_tensor_lies_in_memory_makes_no_other_graph() -> None:
    """A morph's step, taken again, copies where it took a view."""

    def graph(x: torch.Tensor, detached: bool = False):
        own = x.requires_grad_().clone()
        first, flat = next_number(), own.reshape(-1)
        return _shape(flat.sin() * (flat.detach() if detached else flat).cos(), [own], first)

    one, other = torch.zeros(2, 3, 4), torch.zeros(2, 4, 3).transpose(1, 2)
    assert graph(one) == graph(other) is not None
    assert graph(one, detached=True) == graph(other, detached=True) != graph(one)
