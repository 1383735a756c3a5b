"""Ray casting against the textbook intersection, one ray and one triangle at a time."""

import numpy as np

from synthetic_faces.rays import central_hits, parallel_hits


def moller_trumbore(origin, direction, triangle):
    e1, e2 = triangle[1] - triangle[0], triangle[2] - triangle[0]
    p = np.cross(direction, e2)
    determinant = e1 @ p
    s = origin - triangle[0]
    u = (s @ p) / determinant
    q = np.cross(s, e1)
    v = (direction @ q) / determinant
    t = (e2 @ q) / determinant
    return t if u >= 0 and v >= 0 and u + v <= 1 and t > 0 else np.inf


def test_parallel_rays():
    rng = np.random.default_rng(0)
    corners, origins = rng.normal(size=(30, 3, 3)), rng.normal(size=(70, 3))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    expected = [min(moller_trumbore(o, direction, t) for t in corners) for o in origins]
    found = parallel_hits(origins, direction, corners, block=16)
    assert 10 < np.isfinite(found).sum() < 70
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rays_from_a_centre():
    rng = np.random.default_rng(1)
    corners, centre = rng.normal(size=(30, 3, 3)) * 2, np.array([0.1, -0.2, 0.3])
    directions = rng.normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = {
        (r, t): distance
        for r in range(50)
        for t in range(30)
        if np.isfinite(distance := moller_trumbore(centre, directions[r], corners[t]))
    }
    found = {}
    for ray, triangles, distances, weights in central_hits(centre, directions, corners, block=16):
        for t, distance, w in zip(triangles, distances, weights, strict=True):
            found[ray, int(t)] = distance
            reached = centre + distance * directions[ray]
            np.testing.assert_allclose(w @ corners[t], reached, atol=1e-9)
    assert len(expected) > 20
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()))
