"""Light on surfaces: key light with soft shadows, fill, ambient with occlusion, gloss and rim."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthetic_faces.capture import Light
from synthetic_faces.raster import rasterise

# Extent of the shadow map, decimetres, and where it is centred relative to the eyes.
_MAP_EXTENT, _MAP_SHIFT, _MAP_DEPTH = 3.2, 0.35, 8.0
_BIAS, _SOFTNESS, _OFFSET = 0.035, 30.0, 0.02
_TAPS = ((-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9), (0.9, 0.9), (0.0, 0.0))
_OCCLUSION_POWER = torch.tensor([0.8, 1.05, 1.1])
# Light bleeds through skin at the terminator, most in red.
SKIN_WRAP = torch.tensor([0.30, 0.18, 0.14])
HAIR_WRAP = torch.tensor([0.2, 0.2, 0.2])


@dataclass(frozen=True, eq=False)
class ShadowMap:
    """Distance from the key light to the first surface, on a square grid."""

    origin: Tensor
    frame: Tensor
    depth: Tensor
    size: int

    def coordinates(self, points: Tensor) -> Tensor:
        """Grid x, grid y and distance of points (n, 3)."""
        local = (points - self.origin) @ self.frame
        scale = self.size / _MAP_EXTENT
        local = local * torch.tensor([scale, scale, -1.0])
        shift = [self.size / 2, self.size / 2 + _MAP_SHIFT * scale, _MAP_DEPTH]
        return local + torch.tensor(shift)

    def lit(self, points: Tensor, normals: Tensor) -> Tensor:
        """Share of the key light that reaches each point, (n,) in [0, 1]."""
        at = self.coordinates(points + normals * _OFFSET)
        total = torch.zeros(len(points))
        for dx, dy in _TAPS:
            column = (at[:, 0] + dx).long().clamp(0, self.size - 1)
            row = (at[:, 1] + dy).long().clamp(0, self.size - 1)
            behind = at[:, 2] - self.depth[row * self.size + column]
            total += ((_BIAS - behind) * _SOFTNESS).clamp(0, 1)
        return total / len(_TAPS)


def shadow_map(
    light: Light, eyes: Tensor, vertices: Tensor, triangles: Tensor, size: int
) -> ShadowMap:
    """Renders the scene from the key light.

    Args:
        eyes: (3,) centre of the map.
        vertices, triangles: everything that casts a shadow.
        size: side of the grid; 160 resolves 0.02 dm.
    """
    towards = normalize(torch.tensor(light.key), dim=0)
    right = normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), towards), dim=0)
    frame = torch.stack([right, torch.linalg.cross(towards, right), towards], 1)
    empty = ShadowMap(eyes, frame, torch.full((size * size,), 1e9), size)
    seen = rasterise(empty.coordinates(vertices), triangles, size, size)
    empty.depth[seen.pixel] = seen.depth
    return empty


@dataclass(frozen=True, eq=False)
class Lighting:
    """One capture's light, ready to shade points."""

    light: Light
    shadows: ShadowMap
    camera: Tensor

    def view(self, position: Tensor) -> Tensor:
        """Unit vectors towards the camera."""
        return normalize(self.camera - position, dim=1)

    def half(self, view: Tensor) -> Tensor:
        """Unit vectors half-way between the key light and the camera."""
        return normalize(view + normalize(torch.tensor(self.light.key), dim=0), dim=1)

    def shade(
        self,
        albedo: Tensor,
        normal: Tensor,
        position: Tensor,
        occlusion: Tensor,
        wrap: Tensor,
        specular: Tensor | None = None,
        gloss: Tensor | None = None,
    ) -> Tensor:
        """Linear radiance (n, 3).

        Args:
            albedo: (n, 3); ``normal``, ``position`` (n, 3); ``occlusion`` (n,).
            wrap: (3,) how far light reaches past the terminator per channel.
            specular, gloss: (n,) strength and exponent of the highlight; None for none.
        """
        light = self.light
        key = normalize(torch.tensor(light.key), dim=0)
        fill = normalize(torch.tensor(light.fill), dim=0)
        lit, view = self.shadows.lit(position, normal), self.view(position)

        def diffuse(direction: Tensor) -> Tensor:
            return (((normal @ direction)[:, None] + wrap) / (1 + wrap)).clamp_min(0)

        up = normal[:, 1:2]
        ambient = light.ambient * occlusion[:, None] ** _OCCLUSION_POWER * (0.825 + 0.175 * up)
        ambient = ambient + light.top * up.clamp_min(0) * occlusion[:, None] * 0.6
        open_sky = occlusion[:, None].clamp(0, 1).sqrt()
        strength = light.key_intensity * torch.tensor(light.key_colour)
        direct = strength * diffuse(key) * (0.12 + 0.88 * lit[:, None])
        energy = ambient + (direct + light.fill_intensity * diffuse(fill)) * open_sky
        rim = (1 - (normal * view).sum(1).clamp(0, 1)) ** 4 * 0.03 * occlusion
        if specular is not None and gloss is not None:
            aligned = (normal * self.half(view)).sum(1).clamp_min(0)
            rim = rim + 1.4 * light.key_intensity * specular * aligned**gloss * lit
        return albedo * energy * 0.82 + rim[:, None]
