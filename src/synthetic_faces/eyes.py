"""Colour of the eyeballs: sclera, iris, limbus and pupil as angles to the direction of gaze."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthetic_faces.appearance import Iris
from synthetic_faces.noise import mix, smoothstep

_SCLERA = torch.tensor([0.80, 0.77, 0.74])
_VEINS = torch.tensor([0.10, 0.22, 0.22])
# Each eye converges slightly towards the nose.
_CONVERGENCE = 0.03


def eyeball_albedo(
    iris: Iris,
    age: float,
    grain: float,
    direction: Tensor,
    gaze: tuple[float, float],
    left: bool,
) -> Tensor:
    """Linear albedo (n, 3).

    Args:
        direction: (n, 3) unit vectors from the eyeball's centre, on the mean head.
        gaze: tangent of the gaze angle, (right, up).
        left: the person's left eye.
    """
    inward = -_CONVERGENCE if left else _CONVERGENCE
    forward = normalize(torch.tensor([gaze[0] + inward, gaze[1] - 0.02, 1.0]), dim=0)
    cosine = (direction @ forward).clamp(-1, 1)
    sine = (1 - cosine * cosine).clamp_min(0).sqrt()
    colour = _SCLERA * (1 - 0.06 * age) * (1 - (sine**3)[:, None] * _VEINS)
    across = direction - cosine[:, None] * forward
    angle, radius = torch.atan2(across[:, 1], across[:, 0]), sine / iris.radius
    rays = torch.sin(angle * 17 + grain) * torch.sin(angle * 7 + 2 * grain)
    fibres = 1 + 0.22 * rays + 0.15 * torch.sin(angle * 31)
    shade = fibres * (0.75 + 0.5 * smoothstep(0.9, 0.45, radius))
    limbus = 1 - 0.75 * smoothstep(0.82, 1.0, radius)
    disc = torch.tensor(iris.colour) * (shade * limbus)[:, None]
    colour = mix(colour, disc, smoothstep(1.04, 0.94, radius) * (cosine > 0))
    pupil = smoothstep(0.46, 0.38, radius) * (cosine > 0)
    return mix(colour, torch.full((3,), 0.006), pupil)
