r"""Landmarks of synthetic faces, exact by construction: projections of fixed vertices of the head.

The 68 points are those of iBUG. Which vertex each one is was chosen once: over identities of role
``tuning``, rendered large, the visible vertex whose projection stays closest to what dlib's
predictor finds in the picture,

.. math:: v_k = \arg\min_v \sum_i \lVert \pi_i(v) - p_{ik} \rVert^2 .

``choose_vertices`` repeats the choice.

A template for Webmorph's method adds points that the 68 lack, on neck, ears and scalp: the vertices
farthest from those already taken. It has as many points as FRLL's templates; they are not the same.

References:
    | 300 Faces In-The-Wild Challenge: the iBUG-68 mark-up
    | https://ibug.doc.ic.ac.uk/resources/300-W/
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from synthetic_faces.assets import BODY, HeadAssets
from synthetic_faces.capture import Capture
from synthetic_faces.expression import REST, Expression, neutral
from synthetic_faces.geometry import camera_of, pose_of
from synthetic_faces.identity import Identity, sample_identity
from synthetic_faces.raster import vertex_normals
from synthetic_faces.renderer import Renderer
from synthetic_faces.roles import identity_seed
from synthetic_faces.seeds import Streams

TEMPLATE_POINTS = 189
IBUG_68: tuple[int, ...] = (
    2516, 2387, 1965, 910, 735, 2059, 2056, 914, 2057, 4487, 4490, 4492, 3231, 3388, 4404,
    4812, 4941, 261, 225, 204, 205, 209, 2760, 2756, 2755, 2775, 2806, 132, 131, 164, 294,
    344, 313, 317, 2852, 2881, 2534, 0, 54, 2540, 47, 2552, 4965, 2614, 2560, 4984, 4977,
    2607, 1672, 2113, 460, 467, 2995, 4543, 3026, 2942, 3017, 492, 486, 484, 438, 472, 474,
    3004, 2974, 3018, 494, 487,
)  # fmt: skip
"""The vertices, in iBUG order; 0.9% of the side from dlib's points at the median of the 68."""
_FRONT = 0.15
_NECK = 5.6


def project(
    renderer: Renderer,
    identity: Identity,
    expression: Expression = REST,
    capture: Capture | None = None,
    size: int = 64,
) -> np.ndarray:
    """Where every vertex lands in the picture of these arguments.

    Returns:
        (v, 2) float64 (x, y), pixel centres at integers; a hidden vertex lands where it is.
    """
    capture = Capture() if capture is None else capture
    assets = renderer.assets
    with torch.no_grad():
        mesh = renderer.mesh(identity.shape, expression)
        mesh = pose_of(assets, mesh, capture).points(mesh, assets.mean[:, 1])
        pixels = camera_of(assets, mesh, capture, size).pixels(mesh)[:, :2]
    return pixels.double().numpy() - 0.5


@lru_cache(maxsize=2)
def template_vertices(assets: HeadAssets, count: int = TEMPLATE_POINTS) -> tuple[int, ...]:
    """The 68 vertices, then front-facing ones of skin, each the farthest from all before it."""
    candidates = _front(assets)
    at = assets.mean[candidates, :2]
    chosen = list(IBUG_68)
    nearest = torch.cdist(at, assets.mean[list(chosen), :2]).amin(1)
    while len(chosen) < count:
        farthest = int(nearest.argmax())
        chosen.append(int(candidates[farthest]))
        nearest = torch.minimum(nearest, (at - at[farthest]).norm(dim=1))
    return tuple(chosen)


def _front(assets: HeadAssets) -> torch.Tensor:
    """Vertices of the skin that face the camera, from the neck up."""
    skin = assets.triangles[assets.of_parts(BODY)]
    normals = vertex_normals(assets.mean, skin)
    visible = (normals[:, 2] > _FRONT) & (assets.mean[:, 1] > _NECK)
    body = torch.zeros(len(assets.mean), dtype=torch.bool)
    body[assets.vertices_of(BODY)] = True
    return torch.nonzero(visible & body).squeeze(1)


def choose_vertices(
    find: Callable[[np.ndarray], np.ndarray], identities: int = 40, size: int = 256
) -> tuple[tuple[int, ...], np.ndarray]:
    """Repeats the choice of the 68 vertices; the shipped ones are those of dlib's predictor.

    Args:
        find: Landmarks (68, 2) in pixels, in iBUG's order, of a picture (size, size, 3) uint8.
        identities: How many of role ``tuning``.
        size: Side of the pictures that are looked at.

    Returns:
        The vertices, and the root mean square distance of each to the point found, as a fraction
        of the picture's side.
    """
    renderer = Renderer()
    candidates = _front(renderer.assets).numpy()
    total = np.zeros((68, len(candidates)))
    for index in range(identities):
        seed = identity_seed("tuning", index)
        identity, face = sample_identity(seed), neutral(Streams(seed)("landmark face"))
        picture = renderer.render(identity, face, size=size)
        image = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        found = find(np.ascontiguousarray(image))
        points = project(renderer, identity, face, size=size)[candidates]
        total += ((points[None] - found[:, None]) ** 2).sum(-1)
    best = total.argmin(1)
    distance = np.sqrt(total[np.arange(68), best] / identities) / size
    return tuple(int(v) for v in candidates[best]), distance
