"""Renders one identity, expression and capture to a picture."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from synthetic_faces.appearance import Appearance
from synthetic_faces.assets import (
    BODY,
    LASHES,
    LEFT_EYE,
    RIGHT_EYE,
    TEETH,
    TONGUE,
    HeadAssets,
    load_assets,
)
from synthetic_faces.capture import Capture
from synthetic_faces.expression import REST, Expression
from synthetic_faces.eyes import eyeball_albedo
from synthetic_faces.geometry import (
    Camera,
    camera_of,
    expressed,
    landmarks,
    pose_of,
    rest_mesh,
)
from synthetic_faces.hair import HairMesh, hair_mesh
from synthetic_faces.identity import Identity
from synthetic_faces.layers import Layer, hair_layer, lash_layer
from synthetic_faces.noise import smoothstep
from synthetic_faces.raster import rasterise, vertex_normals
from synthetic_faces.shading import SKIN_WRAP, Lighting, shadow_map
from synthetic_faces.shape import Shape
from synthetic_faces.skin import lip_mask, shirt_mask, skin_albedo
from synthetic_faces.surface import Surface

# Triangles turned to the camera have negative signed area once y points down, positive from the
# light, whose map keeps y up.
_FRONT_ON_SCREEN = -1
_TEETH_COLOUR, _TONGUE_COLOUR = (0.62, 0.58, 0.50), (0.30, 0.08, 0.07)
_LAYER_BIAS = 0.004
_GAMMA = 2.2
_CACHED_SHAPES = 8
# Up to this many pixels a side, before downsampling, half of the hair grid is enough.
_COARSE_PIXELS = 160


@dataclass(frozen=True, eq=False)
class _Parts:
    """Triangle lists of the assets that the renderer draws."""

    closed: Tensor
    closed_parts: Tensor
    open: Tensor
    open_parts: Tensor
    lashes: Tensor
    eye_centres: tuple[Tensor, Tensor]
    attributes: Tensor


def _parts(assets: HeadAssets) -> _Parts:
    shut = assets.of_parts(BODY, LEFT_EYE, RIGHT_EYE)
    wide = assets.of_parts(BODY, LEFT_EYE, RIGHT_EYE, *TEETH, TONGUE)
    masks = torch.stack([assets.occlusion, assets.lid, assets.ears], 1)

    def centre(part: int) -> Tensor:
        eyeball = assets.mean[assets.vertices_of(part)]
        return (eyeball.amin(0) + eyeball.amax(0)) / 2

    return _Parts(
        closed=assets.triangles[shut],
        closed_parts=assets.parts[shut],
        open=assets.triangles[wide],
        open_parts=assets.parts[wide],
        lashes=assets.triangles[assets.of_parts(*LASHES)],
        eye_centres=(centre(LEFT_EYE), centre(RIGHT_EYE)),
        attributes=torch.cat([assets.mean, masks], 1),
    )


class Renderer:
    """A renderer over one set of head assets; keeps the meshes of the last few identities.

    The picture depends on the arguments of ``render`` only. Bits may differ between torch
    versions and numbers of threads; use one thread where they must not.
    """

    def __init__(self, assets: HeadAssets | None = None) -> None:
        self.assets = load_assets() if assets is None else assets
        self._parts = _parts(self.assets)
        self._meshes: OrderedDict[Shape, Tensor] = OrderedDict()

    def mesh(self, shape: Shape, expression: Expression = REST) -> Tensor:
        """Vertices (v, 3) in decimetres, unposed."""
        if shape in self._meshes:
            self._meshes.move_to_end(shape)
        else:
            self._meshes[shape] = rest_mesh(self.assets, shape)
            if len(self._meshes) > _CACHED_SHAPES:
                self._meshes.popitem(last=False)
        return expressed(self.assets, self._meshes[shape], expression)

    @torch.no_grad()
    def render(
        self,
        identity: Identity,
        expression: Expression = REST,
        capture: Capture | None = None,
        size: int = 64,
        supersample: int = 2,
    ) -> Tensor:
        """The picture, float32 (3, size, size) in [0, 1], display colours.

        Args:
            identity: who.
            expression: see ``neutral`` and ``smile``.
            capture: see ``sample_capture``; None is a noise-free studio picture.
            size: side in pixels.
            supersample: rays per pixel and axis; 1 is faster and jagged.

        Raises:
            ValueError: size or supersample is below 1.
        """
        if size < 1 or supersample < 1:
            raise ValueError(f"size is {size}, supersample {supersample}; both are 1 or more")
        capture = Capture() if capture is None else capture
        picture = self._linear(identity, expression, capture, size * supersample)
        picture = avg_pool2d(picture.t().view(1, 3, size * supersample, -1), supersample)[0]
        # A gentle shoulder keeps highlights on the forehead from clipping.
        picture = (picture / (1 + 0.18 * picture) * 1.12).clamp(0, 1) ** (1 / _GAMMA)
        if capture.noise > 0:
            rng = torch.Generator().manual_seed(capture.seed)
            picture = picture + capture.noise * torch.randn(picture.shape, generator=rng)
        return picture.clamp(0, 1)

    def _linear(
        self, identity: Identity, expression: Expression, capture: Capture, pixels: int
    ) -> Tensor:
        """Linear radiance (pixels * pixels, 3)."""
        assets, parts, look = self.assets, self._parts, identity.appearance
        opened = expression.mouth_open
        triangles = parts.open if opened else parts.closed
        part_of = parts.open_parts if opened else parts.closed_parts
        mesh = self.mesh(identity.shape, expression)
        normals = vertex_normals(mesh, triangles)
        stride = 2 if pixels <= _COARSE_PIXELS else 1
        hair = hair_mesh(assets, look.hair, look.grain, mesh, normals, stride)

        pose = pose_of(assets, mesh, capture)
        mesh = pose.points(mesh, assets.mean[:, 1])
        normals = pose.normals(normals, assets.mean[:, 1])
        strands = pose.points(hair.vertices, hair.rest_y)
        camera = camera_of(assets, mesh, capture, pixels)
        lighting = self._lighting(capture, camera, mesh, triangles, strands, hair, pixels)

        screen = camera.pixels(mesh)
        seen = rasterise(screen, triangles, pixels, pixels, cull=_FRONT_ON_SCREEN)
        values = seen.interpolate(triangles, torch.cat([mesh, normals, parts.attributes], 1))
        surface = Surface(
            rest=values[:, 6:9],
            position=values[:, :3],
            normal=normalize(values[:, 3:6], dim=1),
            occlusion=values[:, 9],
            lid=values[:, 10],
            ear=values[:, 11],
            part=part_of[seen.triangle],
        )
        picture = _background(capture.background, pixels)
        picture[seen.pixel] = self._shade(look, surface, mesh, capture, lighting)
        depth = torch.full((pixels * pixels,), 1e9)
        depth[seen.pixel] = seen.depth

        _compose(picture, depth, screen, lash_layer(assets, look, parts.lashes), pixels)
        strands_screen = camera.pixels(strands)
        for layer in hair_layer(look, hair, strands, camera.eyes, lighting):
            _compose(picture, depth, strands_screen, layer, pixels)
        return picture

    def _lighting(
        self,
        capture: Capture,
        camera: Camera,
        mesh: Tensor,
        triangles: Tensor,
        strands: Tensor,
        hair: HairMesh,
        pixels: int,
    ) -> Lighting:
        thick = hair.triangles[(hair.cover[hair.triangles] > 0.03).all(1)] + len(mesh)
        shadows = shadow_map(
            capture.light,
            camera.eyes,
            torch.cat([mesh, strands]),
            torch.cat([triangles, thick]),
            size=96 if pixels <= _COARSE_PIXELS else 160,
        )
        return Lighting(capture.light, shadows, camera.position)

    def _shade(
        self,
        look: Appearance,
        at: Surface,
        mesh: Tensor,
        capture: Capture,
        lighting: Lighting,
    ) -> Tensor:
        """Radiance (n, 3) of skin, eyes, teeth and shirt."""
        x, y, _ = at.rest.unbind(1)
        albedo = skin_albedo(look, at)
        normal, occlusion = at.normal, at.occlusion.clone()
        nose = torch.exp(-((x / 0.08) ** 2)) * (y > 6.85)
        specular = 0.045 + 0.05 * lip_mask(at) + 0.035 * nose - 0.04 * shirt_mask(look, at)
        gloss = torch.full_like(x, 18.0)
        at_eyes = landmarks(self.assets)
        for part, centre, vertices in (
            (LEFT_EYE, self._parts.eye_centres[0], at_eyes.left_eye),
            (RIGHT_EYE, self._parts.eye_centres[1], at_eyes.right_eye),
        ):
            rows = torch.nonzero(at.part == part).squeeze(1)
            direction = normalize(at.rest[rows] - centre, dim=1)
            albedo[rows] = eyeball_albedo(
                look.iris, look.age, look.grain, direction, capture.gaze, part == LEFT_EYE
            )
            normal[rows] = normalize(at.position[rows] - mesh[vertices].mean(0), dim=1)
            # The upper lid shades the top of the eyeball.
            lid = 0.45 + 0.55 * smoothstep(7.38, 7.28, y[rows])
            occlusion[rows] = lid * (0.6 + 0.4 * occlusion[rows])
            specular[rows], gloss[rows] = 0.55, 160.0
        teeth = (at.part == TEETH[0]) | (at.part == TEETH[1])
        albedo[teeth] = torch.tensor(_TEETH_COLOUR)
        occlusion[teeth] = occlusion[teeth].clamp_min(0.35) * 0.9
        albedo[at.part == TONGUE] = torch.tensor(_TONGUE_COLOUR)
        return lighting.shade(
            albedo, normal, at.position, occlusion, SKIN_WRAP, specular=specular, gloss=gloss
        )


def _background(colour: tuple[float, float, float], pixels: int) -> Tensor:
    """A wall with slightly darker corners, linear (pixels * pixels, 3)."""
    axis = torch.linspace(-1, 1, pixels)
    vignette = 1 - 0.10 * (axis[:, None] ** 2 + axis[None] ** 2)
    return vignette.reshape(-1, 1) * torch.tensor(colour, dtype=torch.float32) ** _GAMMA


def _compose(picture: Tensor, depth: Tensor, screen: Tensor, layer: Layer, pixels: int) -> None:
    """Blends a layer's visible pixels over the picture, in place."""
    seen = rasterise(screen, layer.triangles, pixels, pixels)
    front = torch.nonzero(seen.depth < depth[seen.pixel] + _LAYER_BIAS).squeeze(1)
    if not len(front):
        return
    values = seen.interpolate(layer.triangles, layer.attributes)[front]
    colour, alpha = layer.colour(values)
    pixel = seen.pixel[front]
    picture[pixel] = picture[pixel] * (1 - alpha[:, None]) + colour * alpha[:, None]
    opaque = alpha > 0.9
    depth[pixel[opaque]] = seen.depth[front][opaque]
