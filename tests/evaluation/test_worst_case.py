"""The worst-case morph: closed form, and no random embedding beats it."""

import numpy as np
import pytest

from adjointdeis.evaluation import (
    EvaluationError,
    worst_case_bound,
    worst_case_embedding,
    worst_case_scores,
)


def test_bound_is_reached_and_never_exceeded():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 50, 8))
    bound = worst_case_bound(a, b)
    to_a, to_b = worst_case_scores(a, b, a, b)
    assert np.allclose(to_a, bound) and np.allclose(to_b, bound)
    units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    tries = generator.normal(size=(400, 1, 8)) + worst_case_embedding(a, b)
    tries /= np.linalg.norm(tries, axis=-1, keepdims=True)
    smaller = np.minimum(*[(tries * u).sum(-1) for u in units])
    assert (smaller <= bound + 1e-12).all()


def test_length_of_an_embedding_does_not_matter():
    a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    assert np.allclose(worst_case_embedding(3 * a, b), np.sqrt(0.5))
    assert np.allclose(worst_case_bound(a, b), np.sqrt(0.5))


def test_degenerate_embeddings():
    a = np.array([1.0, 0.0])
    with pytest.raises(EvaluationError, match="opposite"):
        worst_case_embedding(a, -a)
    with pytest.raises(EvaluationError, match="zero"):
        worst_case_embedding(a, 0 * a)
