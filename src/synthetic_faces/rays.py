"""Ray casting against a triangle mesh by plain matrix products, for the one-off data extraction.

Rays that share a direction, or share an origin, have barycentric coordinates that are linear in
the rest of the ray, so a block of rays against all triangles is a matrix product.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-9


def parallel_hits(
    origins: NDArray, direction: NDArray, corners: NDArray, block: int = 256
) -> NDArray:
    """Distance from each origin to the first triangle along one common direction.

    Args:
        origins: (n, 3).
        direction: (3,), unit length.
        corners: (f, 3, 3) triangle corners.
        block: rays per matrix product.

    Returns:
        (n,) distances, ``inf`` where nothing is hit.
    """
    helper = np.eye(3)[np.abs(direction).argmin()]
    u = np.cross(direction, helper)
    u /= np.linalg.norm(u)
    frame = np.stack([u, np.cross(direction, u), direction], 1)
    flat, start = corners @ frame, origins @ frame
    a, b, c = flat[:, 0], flat[:, 1], flat[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    keep = np.abs(area) > _EPS
    a, b, c, area = a[keep], b[keep], c[keep], area[keep]

    def linear(p: NDArray, q: NDArray) -> NDArray:
        # Barycentric weight of the corner opposite the edge p -> q, as (x, y, 1) coefficients.
        gx, gy = p[:, 1] - q[:, 1], q[:, 0] - p[:, 0]
        return np.stack([gx, gy, -(gx * p[:, 0] + gy * p[:, 1])]) / area

    wa, wb, wc = linear(b, c), linear(c, a), linear(a, b)
    depth = wa * a[:, 2] + wb * b[:, 2] + wc * c[:, 2]
    out = np.full(len(origins), np.inf)
    points = np.concatenate([start[:, :2], np.ones((len(start), 1))], 1).astype(np.float32)
    wa, wb, wc, depth = (x.astype(np.float32) for x in (wa, wb, wc, depth))
    for i in range(0, len(points), block):
        p = points[i : i + block]
        inside = (p @ wa >= 0) & (p @ wb >= 0) & (p @ wc >= 0)
        distance = p @ depth - start[i : i + block, 2:3]
        out[i : i + block] = np.where(inside & (distance > 0), distance, np.inf).min(1)
    return out


def central_hits(
    centre: NDArray, directions: NDArray, corners: NDArray, block: int = 256
) -> Iterator[tuple[int, NDArray, NDArray, NDArray]]:
    """All hits of rays that leave one common centre.

    Args:
        centre: (3,).
        directions: (n, 3), unit length.
        corners: (f, 3, 3) triangle corners.
        block: rays per matrix product.

    Yields:
        (ray, triangles (h,), distances (h,), barycentric weights (h, 3)) per ray that hits.
    """
    local = corners - centre
    a, b, c = local[:, 0], local[:, 1], local[:, 2]
    planes = [np.cross(b, c), np.cross(c, a), np.cross(a, b)]
    volume = (a * planes[0]).sum(1)
    for i in range(0, len(directions), block):
        d = directions[i : i + block]
        w = np.stack([d @ plane.T for plane in planes], -1)
        total = w.sum(-1)
        same = (w >= 0).all(-1) | (w <= 0).all(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = volume / total
        hit = same & (np.abs(total) > _EPS) & (distance > 0)
        for k in range(len(d)):
            t = np.flatnonzero(hit[k])
            if len(t):
                yield i + k, t, distance[k, t], w[k, t] / total[k, t, None]
