"""Translucent layers drawn over the head: eyelashes and hair."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthetic_faces.appearance import Appearance
from synthetic_faces.assets import HeadAssets
from synthetic_faces.hair import HairMesh, strand_noise
from synthetic_faces.noise import smoothstep, value_noise
from synthetic_faces.raster import vertex_normals
from synthetic_faces.shading import HAIR_WRAP, Lighting

_LASH_GRAIN = torch.tensor([1.0, 0.2, 0.2])
# How softly a style's hairline fades in, decimetres.
_HAIRLINE_SOFTNESS = {"buzz": 0.10, "bald": 0.12, "crop": 0.07}
_OTHER_SOFTNESS = 0.045
_CORE_COVER = 0.06


@dataclass(frozen=True, eq=False)
class Layer:
    """Triangles, per-vertex attributes (v, c), and how to colour interpolated attributes.

    ``colour`` maps (n, c) to linear colours (n, 3) and opacities (n,).
    """

    triangles: Tensor
    attributes: Tensor
    colour: Callable[[Tensor], tuple[Tensor, Tensor]]


def lash_layer(assets: HeadAssets, look: Appearance, triangles: Tensor) -> Layer:
    """Eyelashes: dark at the root, gone 0.1 dm further, stronger above the eye."""
    upper = 0.6 if look.female else 0.35
    dark = torch.tensor(look.brows.colour) * 0.25 + 0.004
    attributes = torch.cat([assets.lash_root[:, None], assets.lash_upper[:, None], assets.mean], 1)

    def colour(values: Tensor) -> tuple[Tensor, Tensor]:
        root, above, rest = values[:, 0], values[:, 1], values[:, 2:5]
        hairs = (0.75 + 0.5 * value_noise(rest * _LASH_GRAIN, 60.0, 1)).clamp(0, 1.3)
        alpha = (1 - root / 0.10).clamp(0, 1) ** 1.2 * (above * upper + 0.10) * hairs
        return dark.expand(len(values), 3), alpha.clamp(0, 0.9)

    return Layer(triangles, attributes, colour)


def _outward_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Normals turned away from the middle of the head."""
    normals = vertex_normals(vertices, triangles)
    middle = vertices.mean(0)
    outward = vertices - middle
    outward[:, 0] = vertices[:, 0]
    outward[:, 1] *= 0.5
    inwards = (normals * outward).sum(1) < 0
    return torch.where(inwards[:, None], -normals, normals)


def hair_layer(
    look: Appearance, hair: HairMesh, vertices: Tensor, eyes: Tensor, lighting: Lighting
) -> tuple[Layer, Layer]:
    """The dense core of the hair, then its translucent edge.

    Args:
        vertices: (n, 3) posed vertices of ``hair``.
        eyes: (3,) origin of the curls' noise.
    """
    style, base = look.hair.style, torch.tensor(look.hair.colour)
    cropped = style in ("buzz", "bald")
    softness = _HAIRLINE_SOFTNESS.get(style, _OTHER_SOFTNESS)
    density = {"bald": 0.10, "buzz": 0.62 + 0.005 * look.grain}.get(style, 1.0)
    key = normalize(torch.tensor(lighting.light.key), dim=0)
    normals = _outward_normals(vertices, hair.triangles)
    attributes = torch.cat([hair.cover[:, None], hair.strand, normals, vertices], 1)

    def colour(values: Tensor) -> tuple[Tensor, Tensor]:
        cover, strand, position = values[:, 0], values[:, 1:4], values[:, 7:10]
        normal = normalize(values[:, 4:7], dim=1)
        view = lighting.view(position)
        away = (normal * view).sum(1) < 0
        normal[:, 2] = torch.where(away, -normal[:, 2], normal[:, 2])
        grain = strand_noise(look.hair, look.grain, strand, position - eyes)
        albedo = base * (1 + (0.12 if cropped else 0.38) * grain).clamp(0.25, 2.0)[:, None]
        alpha = smoothstep(-softness, softness, cover - 0.02 + 0.035 * grain) * density
        depth = 0.62 + 0.38 * smoothstep(-0.05, 0.25, cover)
        occlusion = (depth * (0.8 + 0.2 * normal[:, 1].clamp(-1, 1))).clamp(0.2, 1)
        shaded = lighting.shade(albedo, normal, position, occlusion, HAIR_WRAP)
        if cropped:
            return shaded, alpha
        down = normalize(torch.tensor([0.0, 1.0, 0.0]) - normal * normal[:, 1:2], dim=1)
        across = (down * normalize(key + view, dim=1)).sum(1)
        sheen = (1 - across**2).clamp_min(0) ** 30 * 0.3 * (1 + 0.6 * grain).clamp(0, 2)
        return shaded + sheen[:, None] * (base + 0.04), alpha

    core = (hair.cover[hair.triangles] > _CORE_COVER).all(1)
    return (
        Layer(hair.triangles[core], attributes, colour),
        Layer(hair.triangles[~core], attributes, colour),
    )
