"""Pools: resumable, bit-identical, refusing to mix specs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthetic_faces import pool as pool_module
from synthetic_faces.identity import sample_identity
from synthetic_faces.pool import PoolDamaged, PoolMismatch, open_pool, render_pool
from synthetic_faces.pool_spec import PoolSpec, probe_specs, scene
from synthetic_faces.roles import FIRST_APPEARANCE

SPEC = PoolSpec("example", 3, identities=4, images_per_identity=3, size=16, wild=0.4, reappear=0.5)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pool_module, "_SHARD", 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pool") / "finished"
    return render_pool(SPEC, directory, workers=0, progress=False), directory


def test_a_finished_pool_has_pictures_labels_and_metadata(finished):
    pool, directory = finished
    assert pool.images.shape == (12, 16, 16, 3)
    assert pool.images.dtype == np.uint8
    assert pool.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert pool.meta["identity_seed"][0] == 13_000_003
    assert pool.spec == SPEC
    assert sorted(p.name for p in directory.iterdir()) == [
        "images.npy", "meta.csv", "spec.json", "sums.json",
    ]  # fmt: skip


def test_a_finished_pool_is_reused(finished, monkeypatch):
    pool, directory = finished
    monkeypatch.setattr(pool_module, "_render_shard", None)
    again = render_pool(SPEC, directory, workers=0, progress=False)
    assert np.array_equal(again.images, pool.images)


def test_a_killed_pool_continues_with_the_same_bytes(finished, tmp_path, monkeypatch):
    _, directory = finished
    rendered = []
    original = pool_module._render_shard

    def stop_after_two(spec, where, first):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(first)
        return original(spec, where, first)

    monkeypatch.setattr(pool_module, "_render_shard", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        render_pool(SPEC, tmp_path / "p", workers=0, progress=False)
    (tmp_path / "p" / "shards" / "00000004.npz").unlink()
    (tmp_path / "p" / "images.npy.partial").write_bytes(b"half a file")
    with pytest.raises(FileNotFoundError, match="finish"):
        open_pool(tmp_path / "p")
    rendered.clear()
    monkeypatch.setattr(
        pool_module,
        "_render_shard",
        lambda spec, where, first: (rendered.append(first), original(spec, where, first))[1],
    )
    render_pool(SPEC, tmp_path / "p", workers=0, progress=False)
    assert rendered == [4, 8]
    for name in ("images.npy", "meta.csv", "spec.json"):
        assert (tmp_path / "p" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize("name", ["images.npy", "meta.csv", "sums.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_pool_is_said_and_rendered_again(finished, tmp_path, capsys, name, damage):
    pool, directory = finished
    copy = Path(shutil.copytree(directory, tmp_path / "p"))
    data = bytearray((copy / name).read_bytes())
    data[-9] ^= 1
    if damage == "gone":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(data if damage == "bit" else data[:-9])
        with pytest.raises(PoolDamaged, match=r"not the file that was rendered"):
            open_pool(copy)
    again = render_pool(SPEC, copy, workers=0, progress=False)
    assert np.array_equal(again.images, pool.images)
    assert again.meta["capture"].tolist() == pool.meta["capture"].tolist()
    assert capsys.readouterr().err.count("rendered again") == (damage != "gone")


def test_workers_do_not_change_the_pictures(finished, tmp_path):
    pool, _ = finished
    spec = replace(SPEC, identities=1)
    parallel = render_pool(spec, tmp_path / "p", workers=1, progress=False)
    assert np.array_equal(parallel.images, pool.images[:3])


def test_another_spec_is_refused_with_the_difference(finished):
    _, directory = finished
    with pytest.raises(PoolMismatch, match=r"spread: 0\.25 there, 0\.3 wanted"):
        render_pool(replace(SPEC, spread=0.3), directory, workers=0)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(PoolMismatch, match=r"no spec\.json"):
        render_pool(SPEC, tmp_path, workers=0)


def test_spec_file_can_be_read_back(finished):
    _, directory = finished
    stored = json.loads((directory / "spec.json").read_text())
    assert PoolSpec(**stored["spec"]) == SPEC
    assert stored["fingerprint"] == SPEC.fingerprint


def test_growing_a_pool_keeps_its_pictures():
    wider = replace(SPEC, identities=9)
    assert all(scene(wider, i) == scene(SPEC, i) for i in range(len(SPEC)))
    longer = replace(SPEC, images_per_identity=5)
    assert scene(longer, 5 + 1) == scene(SPEC, 3 + 1)


def test_reappearing_pictures_keep_the_shape():
    spec = replace(SPEC, reappear=1.0)
    shots = [scene(spec, i) for i in range(3)]
    assert len({s.identity.shape for s in shots}) == 1
    seeds = {s.identity.appearance.seed for s in shots}
    assert len(seeds) == 3
    assert min(seeds) >= FIRST_APPEARANCE


def test_probabilities_reach_their_extremes():
    everyone = replace(SPEC, smile=1.0, wild=1.0, reappear=0.0)
    nobody = replace(SPEC, smile=0.0, wild=0.0, reappear=0.0)
    for i in range(6):
        assert (scene(everyone, i).expression.name, scene(everyone, i).capture.kind) == (
            "smile",
            "wild",
        )
        quiet = scene(nobody, i)
        assert (quiet.expression.name, quiet.capture.kind) == ("neutral", "studio")
        assert quiet.identity == sample_identity(quiet.seed)


def test_probes_vary_one_thing():
    probes = probe_specs(identities=4, images_per_identity=2)
    shape = [scene(probes["shape_only"], i).identity for i in range(8)]
    assert len({x.appearance for x in shape}) == 1
    assert len({x.shape for x in shape}) == 4
    texture = [scene(probes["texture_only"], i).identity for i in range(8)]
    assert len({x.shape for x in texture}) == 1
    assert len({x.appearance for x in texture}) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identities": 0}, "identities is 0"),
        ({"smile": 1.2}, "smile is 1.2"),
        ({"role": "nobody"}, "nobody"),
        ({"first_seed": 999_999}, "leaves the"),
        ({"fixed_shape_seed": 1}, "reappear must be 0"),
        ({"fixed_shape_seed": 1, "fixed_appearance_seed": 2}, "not both"),
    ],
)
def test_bad_specs_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SPEC, **change)
