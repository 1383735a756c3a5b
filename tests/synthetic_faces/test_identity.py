"""Identities: named streams, appearance and shape apart, the oracle morph."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from synthetic_faces.assets import load_assets
from synthetic_faces.identity import blend, sample_identity
from synthetic_faces.renderer import Renderer
from synthetic_faces.roles import RANGE, ROLES, identity_seed
from synthetic_faces.seeds import Streams
from synthetic_faces.shape import sample_shape


def test_streams_with_different_names_are_uncorrelated_and_order_free():
    first = [Streams(s).normal("nose") for s in range(400)]
    mouth = [Streams(s).normal("mouth") for s in range(400)]
    assert abs(np.corrcoef(first, mouth)[0, 1]) < 0.15
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.15
    streams = Streams(7)
    alone = streams.normal("nose")
    streams("a parameter of the future").random(100)
    assert streams.normal("nose") == alone


def test_an_additional_axis_leaves_all_other_weights(monkeypatch):
    """A face keeps its features when another axis is removed from, or added to, the model."""
    assets = load_assets()
    whole = np.array(sample_shape(11).weights)
    dropped = assets.axes[40]
    fewer = replace(assets, axes=assets.axes[:40] + assets.axes[41:])
    monkeypatch.setattr("synthetic_faces.shape.load_assets", lambda: fewer)
    without = np.array(sample_shape(11).weights)
    changed = np.flatnonzero(whole != without)
    assert set(changed) <= {*dropped.plus, *dropped.minus}
    assert len(changed) > 0


def test_spread_scales_features_and_not_demographics():
    narrow, wide = sample_shape(5, spread=0.1), sample_shape(5, spread=0.2)
    assets = load_assets()
    axis = assets.axes[30]
    rows = [*axis.plus, *axis.minus]
    np.testing.assert_allclose(2 * np.array(narrow.weights)[rows], np.array(wide.weights)[rows])
    assert narrow.ancestry == wide.ancestry
    assert narrow.sex == wide.sex


def test_macro_weights_are_convex():
    assets = load_assets()
    weights = np.array(sample_shape(3).weights)
    for group in ("race", "universal"):
        rows = [i for i, name in enumerate(assets.names) if name.startswith(group + ":")]
        assert weights[rows].sum() == pytest.approx(1)
        assert weights[rows].min() >= 0


def test_axes_pair_opposites_and_tie_sides():
    axes = {axis.name: axis for axis in load_assets().axes}
    names = load_assets().names
    hump = axes["nose:nose-hump-incr"]
    assert [names[i] for i in hump.minus] == ["nose:nose-hump-decr"]
    ear = axes["ears:l-ear-scale-incr"]
    assert {names[i] for i in ear.plus} == {"ears:l-ear-scale-incr", "ears:r-ear-scale-incr"}
    assert axes["head:head-round"].minus == ()
    assert (len(axes), len(load_assets().asymmetry)) == (105, 29)


def test_with_appearance_keeps_the_bones_bit_for_bit():
    identity = sample_identity(21)
    other = identity.with_appearance(99)
    renderer, fresh = Renderer(), Renderer()
    assert other.shape == identity.shape
    assert renderer.mesh(identity.shape).equal(fresh.mesh(other.shape))
    assert other.appearance.skin != identity.appearance.skin
    assert other.appearance.hair != identity.appearance.hair
    assert other.appearance.shirt != identity.appearance.shirt
    assert other.appearance.female == identity.appearance.female


def test_with_shape_keeps_the_appearance():
    identity = sample_identity(21)
    other = identity.with_shape(22)
    assert other.appearance == identity.appearance
    assert other.shape == sample_identity(22).shape


def test_blend_of_one_is_that_one():
    identity = sample_identity(8)
    assert blend(identity, identity) == identity


def test_blend_is_linear_in_the_vertices_and_keeps_discrete_traits():
    a, b = sample_identity(8), sample_identity(9)
    morph = blend(a, b, 0.25)
    renderer = Renderer()
    expected = 0.75 * renderer.mesh(a.shape) + 0.25 * renderer.mesh(b.shape)
    assert (renderer.mesh(morph.shape) - expected).abs().max() < 1e-4
    assert morph.appearance.hair.style == a.appearance.hair.style
    assert morph.appearance.skin.melanin == pytest.approx(
        0.75 * a.appearance.skin.melanin + 0.25 * b.appearance.skin.melanin
    )
    assert blend(a, b, 0.0).shape.weights == a.shape.weights


def test_sexes_and_groups_all_occur():
    shapes = [sample_shape(seed) for seed in range(60)]
    assert {s.sex for s in shapes} == {"female", "male"}
    assert {s.group for s in shapes} == {"african", "asian", "caucasian"}
    assert all(s.ancestry[("african", "asian", "caucasian").index(s.group)] > 1 / 3 for s in shapes)


def test_roles_are_disjoint_ranges():
    starts = sorted(ROLES.values())
    assert len(set(starts)) == len(ROLES)
    assert all(b - a >= RANGE for a, b in pairwise(starts))
    assert identity_seed("test", RANGE - 1) < min(s for s in starts if s > ROLES["test"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: identity_seed("holiday", 0), "holiday"),
        (lambda: identity_seed("test", RANGE), "does not exist"),
        (lambda: sample_shape(-1), "seed is -1"),
        (lambda: sample_shape(1, spread=-0.1), "spread is -0.1"),
        (lambda: blend(sample_identity(1), sample_identity(2), 1.5), "w is 1.5"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
