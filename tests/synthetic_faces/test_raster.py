"""The z-buffer against a triangle-by-triangle loop."""

import numpy as np
import pytest
import torch

from synthetic_faces.raster import rasterise, vertex_normals


def brute_force(points, triangles, height, width, cull):
    """Owner and depth of every pixel in float64, and how close it is to an edge or a tie."""
    owner = np.full((height, width), -1)
    depth = np.full((height, width), np.inf)
    margin = np.full((height, width), np.inf)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for index, triangle in enumerate(triangles):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[triangle].astype(float)
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0 or (cull and area * cull < 0):
            continue
        wb = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
        wc = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
        wa = 1 - wb - wc
        margin = np.minimum(margin, np.abs(np.stack([wa, wb, wc])).min(0))
        z = wa * az + wb * bz + wc * cz
        inside = (wa >= 0) & (wb >= 0) & (wc >= 0)
        margin = np.where(inside, np.minimum(margin, np.abs(z - depth)), margin)
        nearer = inside & (z < depth)
        owner[nearer], depth[nearer] = index, z[nearer]
    return owner, depth, margin


@pytest.mark.parametrize("cull", [0, 1, -1])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_loop_on_random_triangles(seed, cull):
    rng = np.random.default_rng(seed)
    height, width = 23, 31
    points = rng.uniform((-8, -8, 1), (40, 32, 9), (60, 3)).astype(np.float32)
    triangles = rng.integers(0, 60, (40, 3))
    owner, depth, margin = brute_force(points, triangles, height, width, cull)
    seen = rasterise(torch.tensor(points), torch.tensor(triangles), height, width, cull)
    found = np.full(height * width, -1)
    found[seen.pixel] = seen.triangle
    # Pixels on an edge, or where two depths coincide, may go either way.
    clear = margin.ravel() > 1e-3
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(found[clear], owner.ravel()[clear])
    kept = clear[seen.pixel]
    np.testing.assert_allclose(seen.depth[kept], depth.ravel()[seen.pixel][kept], atol=1e-3)


def test_interpolation_reproduces_linear_functions():
    rng = np.random.default_rng(0)
    points = torch.tensor(rng.uniform((0, 0, 1), (20, 20, 5), (30, 3)), dtype=torch.float32)
    triangles = torch.tensor(rng.integers(0, 30, (20, 3)))
    seen = rasterise(points, triangles, 20, 20)
    values = seen.interpolate(triangles, points)
    assert len(seen.pixel) > 100
    torch.testing.assert_close(values[:, 0], seen.pixel % 20 + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        values[:, 1],
        torch.div(seen.pixel, 20, rounding_mode="floor") + 0.5,
        atol=1e-3,
        rtol=0,
    )
    torch.testing.assert_close(values[:, 2], seen.depth, atol=1e-3, rtol=0)


def test_shared_edges_leave_no_hole():
    grid = torch.linspace(0.37, 15.8, 6)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x.reshape(-1), y.reshape(-1), torch.ones(36)], 1)
    index = torch.arange(36).view(6, 6)
    a, b = index[:-1, :-1].reshape(-1), index[:-1, 1:].reshape(-1)
    c, d = index[1:, :-1].reshape(-1), index[1:, 1:].reshape(-1)
    triangles = torch.cat([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1)])
    covered = torch.zeros(16, 16, dtype=torch.bool)
    covered.view(-1)[rasterise(points, triangles, 16, 16).pixel] = True
    assert covered.all()


def test_nothing_in_view_gives_no_fragment():
    points = torch.tensor([[-5.0, -5.0, 1.0], [-4.0, -5.0, 1.0], [-5.0, -4.0, 1.0]])
    seen = rasterise(points, torch.tensor([[0, 1, 2]]), 8, 8)
    assert len(seen.pixel) == 0


def test_normals_of_a_sphere_point_outwards():
    t = torch.linspace(0, torch.pi, 20)
    p = torch.linspace(0, 2 * torch.pi, 40)
    theta, phi = torch.meshgrid(t, p, indexing="ij")
    ring = theta.sin()
    points = torch.stack([ring * phi.cos(), ring * phi.sin(), theta.cos()], -1).view(-1, 3)
    index = torch.arange(800).view(20, 40)
    a, b = index[:-1, :-1].reshape(-1), index[1:, :-1].reshape(-1)
    c, d = index[:-1, 1:].reshape(-1), index[1:, 1:].reshape(-1)
    triangles = torch.cat([torch.stack([a, b, c], 1), torch.stack([c, b, d], 1)])
    normals = vertex_normals(points, triangles).view(20, 40, 3)[2:-2, 1:-1]
    inner = points.view(20, 40, 3)[2:-2, 1:-1]
    assert ((normals * inner).sum(-1) > 0.99).all()
