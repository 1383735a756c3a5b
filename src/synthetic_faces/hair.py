"""Hair as a shell over the scalp, plus a curtain for hair that hangs below it.

The shell is a grid of rays from the head's centre, rooted on the scalp and lifted by the style's
thickness; a parametric hairline fades it out. Strands are noise along a coordinate that runs from
the crown outwards.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthetic_faces.appearance import Hair
from synthetic_faces.assets import HeadAssets
from synthetic_faces.noise import bump, smoothstep, value_noise

# Hairline: height as a function of |azimuth|, radians.
_HAIRLINE_AZIMUTH = torch.tensor(
    [0.0, 0.28, 0.62, 0.9, 1.12, 1.24, 1.40, 1.55, 1.85, 2.1, 2.45, 3.2]
)
_CURTAIN_COLUMNS, _CURTAIN_ROWS = 80, 26
_CURTAIN_POLAR = math.radians(56)
_AXIS = (0.0, 0.2)


@dataclass(frozen=True, eq=False)
class HairMesh:
    """Hair triangles with what their colouring needs.

    Attributes:
        vertices: (n, 3), unposed.
        triangles: (m, 3).
        cover: (n,) signed distance inside the hairline; negative is bare.
        strand: (n, 3) direction around the crown (2) and length from it.
        rest_y: (n,) height used by the head pose.
    """

    vertices: Tensor
    triangles: Tensor
    cover: Tensor
    strand: Tensor
    rest_y: Tensor


@dataclass(frozen=True, eq=False)
class _Scalp:
    """The shell's grid at one resolution: roots, directions and triangles."""

    roots: Tensor
    weights: Tensor
    valid: Tensor
    rest: Tensor
    azimuth: Tensor
    polar: Tensor
    direction: Tensor
    triangles: Tensor
    shape: tuple[int, int]


def _grid_triangles(rows: int, columns: int) -> Tensor:
    index = torch.arange(rows * columns).view(rows, columns)
    a, b = index[:-1, :-1].reshape(-1), index[1:, :-1].reshape(-1)
    c, d = index[:-1, 1:].reshape(-1), index[1:, 1:].reshape(-1)
    return torch.cat([torch.stack([a, c, b], 1), torch.stack([b, c, d], 1)])


@lru_cache(maxsize=4)
def _scalp(assets: HeadAssets, stride: int) -> _Scalp:
    full = (len(assets.azimuth), len(assets.polar))
    pick = torch.arange(full[0] * full[1]).view(full)[::stride, ::stride]
    shape, pick = (pick.shape[0], pick.shape[1]), pick.reshape(-1)
    roots, weights = assets.anchor_vertices[pick], assets.anchor_weights[pick][..., None]
    azimuth, polar = torch.meshgrid(assets.azimuth[::stride], assets.polar[::stride], indexing="ij")
    azimuth, polar = azimuth.reshape(-1), polar.reshape(-1)
    ring = polar.sin()
    direction = torch.stack([ring * azimuth.sin(), polar.cos(), ring * azimuth.cos()], 1)
    valid, triangles = assets.anchor_valid[pick], _grid_triangles(*shape)
    return _Scalp(
        roots=roots,
        weights=weights,
        valid=valid,
        rest=(assets.mean[roots] * weights).sum(1),
        azimuth=azimuth,
        polar=polar,
        direction=direction,
        triangles=triangles[valid[triangles].all(1)],
        shape=shape,
    )


def _hairline(hair: Hair, azimuth: Tensor) -> Tensor:
    """Height of the hairline at |azimuth|."""
    front, temple = hair.front, hair.temple
    burn = 7.3 if hair.style == "tied" else hair.burn
    heights = [front - hair.peak, front + 0.25 * temple, front - 0.06 + temple]
    heights += [front - 0.25 + 0.6 * temple, 7.62 + 0.2 * temple, min(7.35, burn + 0.2), burn]
    heights += [7.36, 7.42, 6.98, 6.72, 6.62]
    if hair.fringe:
        heights[:4] = [7.58, 7.57, 7.58, 7.5]
    y = torch.tensor(heights)
    i = torch.bucketize(azimuth, _HAIRLINE_AZIMUTH).clamp(1, len(y) - 1)
    low, high = _HAIRLINE_AZIMUTH[i - 1], _HAIRLINE_AZIMUTH[i]
    t = ((azimuth - low) / (high - low)).clamp(0, 1)
    return y[i - 1] + (y[i] - y[i - 1]) * (t * t * (3 - 2 * t))


def _thickness(hair: Hair, scalp: _Scalp, cover: Tensor, grain: float) -> Tensor:
    x, y, z = scalp.rest.unbind(1)
    up = smoothstep(7.45, 8.15, y)
    thickness = hair.side + (hair.top - hair.side) * up
    edge, bare = smoothstep(-0.05, 0.22, cover), 0.45 if hair.fringe else 0.12
    thickness = thickness * (bare + (1 - bare) * edge)
    if hair.style in ("short", "crop"):
        thickness = thickness * (1 + 0.5 * smoothstep(0.1, 0.9, scalp.azimuth.cos()) * up)
    lumps = 0.30 * value_noise(scalp.direction, 2.2, 0, grain)
    if hair.curly:
        lumps = lumps + 0.25 * value_noise(scalp.direction, 7.0, 1, grain)
    thickness = thickness * (1 + lumps).clamp_min(0.3)
    if hair.style in ("long", "bob", "short", "tied") and not hair.curly:
        parting = bump(x, hair.part * 0.45, 0.04)
        thickness = thickness * (
            1 - 0.30 * parting * smoothstep(7.8, 8.1, y) * smoothstep(-0.1, 0.3, z)
        )
    return thickness


def _strand_frame(hair: Hair, direction: Tensor) -> Tensor:
    """Around-the-crown direction (2) and angle from a crown tilted back and to the parting."""
    crown = normalize(torch.tensor([hair.part * 0.25, 0.92, -0.38]), dim=0)
    e1 = normalize(torch.linalg.cross(crown, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    e2 = torch.linalg.cross(crown, e1)
    around = torch.stack([direction @ e1, direction @ e2], 1)
    around = around / around.norm(dim=1, keepdim=True).clamp_min(0.05)
    along = torch.acos((direction @ crown).clamp(-1, 1))
    return torch.cat([around, along[:, None]], 1)


def _curtain(
    hair: Hair, length: float, scalp: _Scalp, shell: Tensor, strand: Tensor, grain: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Hanging hair: vertices, cover and strand coordinates of a grid from the shell downwards."""
    rows, columns = scalp.shape
    polar = scalp.polar.view(rows, columns)[0]
    k = int((polar - _CURTAIN_POLAR).abs().argmin())
    start, end = hair.curtain_start, 2 * math.pi - hair.curtain_start
    around = torch.linspace(start, end, _CURTAIN_COLUMNS)
    wrapped = torch.where(around > math.pi, around - 2 * math.pi, around)
    u = (wrapped + math.pi) / (2 * math.pi) * (rows - 1)
    i = u.long().clamp(0, rows - 2)
    f = (u - i)[:, None]

    def ring(values: Tensor) -> Tensor:
        at = values.view(rows, columns, 3)[:, k]
        return at[i] * (1 - f) + at[i + 1] * f

    top, top_strand = ring(shell), ring(strand)
    t = torch.linspace(0, 1, _CURTAIN_ROWS)[None, :, None]
    y = top[:, None, 1:2] + (length - top[:, None, 1:2]) * t
    axis = torch.tensor(_AXIS)
    waves = hair.wave * torch.sin(t * 14 + 3 * around[:, None, None] + grain)
    swell = 1 + hair.flare * t + 0.10 * torch.sin(t * 3.1) + waves
    xz = axis + (top[:, [0, 2]] - axis)[:, None] * swell
    vertices = torch.cat([xz[..., :1], y, xz[..., 1:]], 2).reshape(-1, 3)
    t = t.expand(_CURTAIN_COLUMNS, _CURTAIN_ROWS, 1)
    side = torch.minimum(around - start, end - around)[:, None, None]
    # Soft at both vertical edges and at the tips.
    cover = torch.minimum((side * 0.8 - 0.04).expand_as(t), (1 - t) * 0.8).reshape(-1)
    direction = top_strand[:, None, :2].expand(-1, _CURTAIN_ROWS, 2)
    along = top_strand[:, None, 2:] + t * 2.2
    return vertices, cover, torch.cat([direction, along], 2).reshape(-1, 3)


def hair_mesh(
    assets: HeadAssets, hair: Hair, grain: float, mesh: Tensor, normals: Tensor, stride: int
) -> HairMesh:
    """Hair on an unposed head.

    Args:
        mesh, normals: (v, 3) of the head.
        grain: offset of the noise.
        stride: step through the shell's 121 x 49 grid; 1, 2 or 4.
    """
    scalp = _scalp(assets, stride)
    point = (mesh[scalp.roots] * scalp.weights).sum(1)
    normal = normalize((normals[scalp.roots] * scalp.weights).sum(1), dim=1)
    lift = normalize(normal + scalp.direction * 1.2, dim=1)
    cover = scalp.rest[:, 1] - _hairline(hair, scalp.azimuth.abs())
    cover = torch.where(scalp.polar > 2.25, cover.clamp_max(-0.2), cover)
    shell = point + lift * (_thickness(hair, scalp, cover, grain) + 0.006)[:, None]
    strand = _strand_frame(hair, scalp.direction)
    triangles = scalp.triangles[(cover[scalp.triangles] > -0.10).any(1)]
    rest_y = scalp.rest[:, 1]
    if hair.length is None:
        return HairMesh(shell, triangles, cover, strand, rest_y)
    hanging, more_cover, more_strand = _curtain(hair, hair.length, scalp, shell, strand, grain)
    below = _grid_triangles(_CURTAIN_COLUMNS, _CURTAIN_ROWS) + len(shell)
    return HairMesh(
        vertices=torch.cat([shell, hanging]),
        triangles=torch.cat([triangles, below]),
        cover=torch.cat([cover, more_cover]),
        strand=torch.cat([strand, more_strand]),
        rest_y=torch.cat([rest_y, hanging[:, 1]]),
    )


def strand_noise(hair: Hair, grain: float, strand: Tensor, local: Tensor) -> Tensor:
    """Brightness pattern of strands, or of curls.

    Args:
        strand: (n, 3) strand coordinates.
        local: (n, 3) positions relative to the eyes, used by curls.
    """
    if hair.curly:
        return value_noise(local, 16.0, 0, grain) * 0.9 + value_noise(local, 29.0, 1, grain) * 0.5
    along = strand[:, 2]
    q = torch.stack(
        [strand[:, 0], strand[:, 1], along * 0.12 + hair.wave * torch.sin(along * 8)], 1
    )
    fine = value_noise(q, 34.0, 1, grain) * 0.55 + value_noise(q, 70.0, 2, grain) * 0.35
    return value_noise(q, 15.0, 0, grain) * 0.55 + fine
