"""From shape weights to a posed head in front of the camera."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from synthetic_faces.assets import LEFT_EYE, RIGHT_EYE, TEETH, HeadAssets
from synthetic_faces.capture import Capture
from synthetic_faces.expression import Expression
from synthetic_faces.noise import smoothstep
from synthetic_faces.shape import Shape

# Teeth sit slightly too far forward once lips are reshaped.
_TEETH_BACK = 0.03
_CAMERA_DISTANCE = 14.0
# Framing: the eyes' line and the size of the face as fractions of the picture.
_EYE_LINE = 0.485
_FACE_SIZE = 0.228 * 1.22


@dataclass(frozen=True, eq=False)
class VertexSets:
    """Vertex sets that place the head: eyeballs, mouth and the pivot of the neck."""

    left_eye: Tensor
    right_eye: Tensor
    mouth: Tensor
    neck: Tensor
    teeth: Tensor


@lru_cache(maxsize=2)
def landmarks(assets: HeadAssets) -> VertexSets:
    """The vertex sets of the assets."""
    x, y, z = assets.mean.unbind(1)
    mouth = (y > 6.6) & (y < 6.75) & (x.abs() < 0.12) & (z > 1.4)
    neck = (y > 5.95) & (y < 6.35) & (z < 0.9)
    return VertexSets(
        left_eye=assets.vertices_of(LEFT_EYE),
        right_eye=assets.vertices_of(RIGHT_EYE),
        mouth=torch.nonzero(mouth).squeeze(1),
        neck=torch.nonzero(neck).squeeze(1),
        teeth=assets.vertices_of(*TEETH),
    )


def rest_mesh(assets: HeadAssets, shape: Shape) -> Tensor:
    """Vertices (v, 3) of an identity without expression."""
    weights = torch.tensor(shape.weights, dtype=torch.float32)
    mesh = assets.vertices + (weights @ assets.targets).view(-1, 3)
    mesh[landmarks(assets).teeth, 2] -= _TEETH_BACK
    return mesh


def expressed(assets: HeadAssets, mesh: Tensor, expression: Expression) -> Tensor:
    """Adds the expression's displacements to a rest mesh."""
    if not expression.units:
        return mesh
    rows = [assets.row(f"expr:{unit}") for unit, _ in expression.units]
    amounts = torch.tensor([amount for _, amount in expression.units])
    return mesh + (amounts @ assets.targets[rows]).view(-1, 3)


def rotation(yaw: float, pitch: float, roll: float) -> Tensor:
    """Rotation matrix (3, 3): yaw about y, then pitch about x, then roll about z; radians."""
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


@dataclass(frozen=True, eq=False)
class Pose:
    """Head rotation about the neck, fading to none at the shoulders."""

    matrix: Tensor
    pivot: Tensor

    def _turned(self, values: Tensor, centre: Tensor | float, rest_y: Tensor) -> Tensor:
        share = smoothstep(5.3, 6.15, rest_y)[:, None]
        local = values - centre
        return values + share * (local @ self.matrix.T - local)

    def points(self, points: Tensor, rest_y: Tensor) -> Tensor:
        """Moves points (n, 3); ``rest_y`` is their height on the mean head."""
        return self._turned(points, self.pivot, rest_y)

    def normals(self, normals: Tensor, rest_y: Tensor) -> Tensor:
        """Turns normals (n, 3) along with their points."""
        return torch.nn.functional.normalize(self._turned(normals, 0.0, rest_y), dim=1)


def pose_of(assets: HeadAssets, mesh: Tensor, capture: Capture) -> Pose:
    """The capture's head pose for this mesh."""
    pivot = mesh[landmarks(assets).neck].mean(0)
    pivot[0] = 0
    return Pose(rotation(capture.yaw, capture.pitch, capture.roll), pivot)


@dataclass(frozen=True, eq=False)
class Camera:
    """Perspective camera 1.4 m in front of the eyes, framed on the face.

    Attributes:
        position: (3,) of the camera.
        eyes: (3,) midpoint of the eyes.
        anchor: (2,) projection of that midpoint before framing.
        zoom: pixels per decimetre at the eyes.
        centre: pixel that the midpoint lands on.
    """

    position: Tensor
    eyes: Tensor
    anchor: Tensor
    zoom: float
    centre: tuple[float, float]

    def pixels(self, points: Tensor) -> Tensor:
        """Pixel x, pixel y (down) and distance of points (n, 3)."""
        flat = _project(points, self.position)
        x = self.centre[0] + (flat[:, 0] - self.anchor[0]) * self.zoom
        y = self.centre[1] + (flat[:, 1] - self.anchor[1]) * self.zoom
        return torch.stack([x, y, flat[:, 2]], 1)


def _project(points: Tensor, camera: Tensor) -> Tensor:
    depth = camera[2] - points[:, 2]
    scale = _CAMERA_DISTANCE / depth
    return torch.stack([points[:, 0] * scale, -(points[:, 1] - camera[1]) * scale, depth], 1)


def camera_of(assets: HeadAssets, mesh: Tensor, capture: Capture, pixels: int) -> Camera:
    """Frames a posed mesh in a square picture, as an alignment on eyes and mouth would."""
    at = landmarks(assets)
    left, right = mesh[at.left_eye].mean(0), mesh[at.right_eye].mean(0)
    eyes = (left + right) / 2
    position = torch.stack([torch.zeros(()), eyes[1], eyes[2] + _CAMERA_DISTANCE])
    corners = torch.cat([mesh[at.left_eye], mesh[at.right_eye], mesh[at.mouth]])
    flat = _project(corners, position)[:, :2]
    a, b = len(at.left_eye), len(at.left_eye) + len(at.right_eye)
    left, right, mouth = flat[:a].mean(0), flat[a:b].mean(0), flat[b:].mean(0)
    middle = (left + right) / 2
    # Yaw shortens the distance between the eyes, not the one from eyes to mouth.
    face = 0.5 * ((left - right).norm() / math.cos(capture.yaw) + (mouth - middle).norm())
    centre = (0.5 + capture.shift[0]) * pixels, (_EYE_LINE + capture.shift[1]) * pixels
    zoom = _FACE_SIZE * pixels * capture.scale / float(face)
    return Camera(position, eyes, middle, zoom, centre)
