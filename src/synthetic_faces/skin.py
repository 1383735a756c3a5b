"""Colour of the skin and of what is painted on it: lips, brows, stubble, lines, shirt.

There are no texture maps. Every pattern is a function of the position on the mean head
(decimetres; eyes at y = 7.28, lips' line at y = 6.678), so it follows identity and expression.
"""

import math

import torch
from torch import Tensor

from synthetic_faces.appearance import Appearance
from synthetic_faces.assets import BODY
from synthetic_faces.noise import bump, mix, smoothstep, value_noise
from synthetic_faces.surface import Surface

_EYES_Y, _LIPS_Y, _MOUTH_HALF_WIDTH = 7.284, 6.678, 0.245
_BLOOD = torch.tensor([0.02, 0.22, 0.20])
_LIP_TINT = torch.tensor([0.80, 0.48, 0.47])
_LIP_ADD = torch.tensor([0.06, 0.01, 0.015])
_BROW_STRETCH = torch.tensor([1.5, 0.8, 1.0])


def _skin_tone(a: Appearance, at: Surface, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Mottled base colour, with redness where blood is close to the surface."""
    x, y, z = at.rest.unbind(1)
    side = x.abs()
    mottle = 1 + a.skin.mottling * (0.6 * n1 + 0.5 * n2) + 0.025 * n3
    cheeks = torch.exp(-(((side - 0.42) / 0.17) ** 2) - ((y - 6.98) / 0.16) ** 2) * 0.8
    nose = torch.exp(-((x / 0.12) ** 2) - ((y - 6.93) / 0.1) ** 2) * (z > 1.45) * 0.7
    redness = a.skin.blood * (cheeks + nose + 0.5 * at.ear + 0.15)
    return torch.tensor(a.skin.tone) * mottle[:, None] * (1 - redness[:, None] * _BLOOD)


def _marks(a: Appearance, at: Surface, n3: Tensor) -> Tensor:
    """Multiplier (n,) of freckles and moles."""
    x, y, z = at.rest.unbind(1)
    factor = torch.ones_like(x)
    if a.skin.freckles > 0:
        band = smoothstep(7.35, 7.1, y) * smoothstep(6.6, 6.8, y)
        factor = factor * (1 - 0.5 * a.skin.freckles * smoothstep(0.9, 1.6, n3) * band)
    for mx, my, radius in a.skin.moles:
        spot = torch.exp(-((x - mx) ** 2 + (y - my) ** 2) / radius**2)
        factor = factor * (1 - 0.45 * spot * (z > 0.6))
    return factor


def _age_lines(a: Appearance, at: Surface, n1: Tensor) -> Tensor:
    """Multiplier (n,) of shadows under the eyes, folds beside the mouth and forehead lines."""
    x, y, _ = at.rest.unbind(1)
    side, age = x.abs(), a.age
    under = torch.exp(-(((side - 0.308) / 0.15) ** 2) - ((y - 7.16) / 0.05) ** 2)
    factor = 1 - (0.10 + 0.22 * age) * under
    fold = torch.exp(-(((side - (0.20 + 0.30 * (6.95 - y).clamp_min(0))) / 0.018) ** 2))
    fold = fold * smoothstep(6.55, 6.65, y) * smoothstep(6.98, 6.88, y)
    factor = factor * (1 - (0.04 + 0.20 * age) * fold)
    if age > 0.3:
        wave = smoothstep(0.4, 1.0, torch.sin(y * 62 + n1 * 1.2 + 6 * side * side))
        band = smoothstep(7.62, 7.7, y) * smoothstep(8.0, 7.9, y) * smoothstep(0.5, 0.35, side)
        factor = factor * (1 - 0.22 * (age - 0.3) * wave * band)
    return factor


def _stubble(a: Appearance, at: Surface) -> Tensor:
    """Opacity (n,) of the beard and moustache."""
    x, y, z = at.rest.unbind(1)
    side = x.abs()
    jaw = smoothstep(0.05, -0.07, y - (6.60 + 0.58 * side))
    jaw = jaw * smoothstep(5.95, 6.15, y) * smoothstep(0.15, 0.4, z)
    lip = torch.exp(-(((y - 6.825 + 0.15 * side * side) / 0.038) ** 2))
    lip = lip * smoothstep(0.36, 0.26, side) * (z > 1.2)
    density = min(0.78, a.beard.density * (1.8 if a.beard.full else 1.0))
    speckle = (0.6 + 0.4 * value_noise(at.rest, 40.0, 3, a.grain)).clamp(0, 1.3)
    return (torch.maximum(jaw, lip) * density * speckle).clamp(0, 0.92)


def lip_mask(at: Surface) -> Tensor:
    """1 on the lips, 0 elsewhere, (n,): the band between two curves around the lips' line."""
    x, y, z = at.rest.unbind(1)
    side = (x.abs() / _MOUTH_HALF_WIDTH).clamp(0, 1)
    bow = 1 - 0.22 * bump(x, 0.0, 0.045)
    upper = _LIPS_Y + 0.082 * (1 - side**2.2) * bow
    lower = _LIPS_Y - 0.112 * (1 - side**2.6).clamp_min(0) ** 0.8
    band = smoothstep(-0.014, 0.010, upper - y) * smoothstep(-0.016, 0.012, y - lower)
    return band * smoothstep(1.0, 0.93, x.abs() / _MOUTH_HALF_WIDTH) * (z > 1.15)


def _lip_colour(a: Appearance) -> Tensor:
    skin = a.skin
    colour = torch.tensor(skin.tone) * _LIP_TINT * (1 - 0.15 * skin.melanin)
    colour = colour + _LIP_ADD * (1 - skin.melanin)
    hue = torch.tensor([1.0, 1 - 0.08 * skin.lip_hue, 1 + 0.08 * skin.lip_hue])
    return colour * hue.clamp(0.5, 1.5)


def _brow_mask(a: Appearance, at: Surface) -> Tensor:
    """Opacity (n,) of the eyebrows: an arched stroke that thins outwards."""
    x, y, z = at.rest.unbind(1)
    b = a.brows
    t = (x.abs() - b.inner) / (b.outer - b.inner)
    s = t.clamp(0, 1)
    centre = _EYES_Y + 0.185 + b.height + b.arch * torch.sin(math.pi * s**0.9)
    centre = centre + b.tilt * (s - 0.3) - 0.10 * (s - 0.66).clamp_min(0) + 0.03 * s
    width = (b.half_width * (1.05 - 0.75 * s**2.2)).clamp_min(0.004)
    slanted = at.rest * _BROW_STRETCH
    slanted[:, 0] += y * 0.6 * x.sign()
    hairs = (0.85 + 0.25 * value_noise(slanted, 34.0, 0, a.grain + 3)).clamp(0.2, 1.15)
    stroke = torch.exp(-(((y - centre) / width).abs() ** 2.6)) * (z > 0.8)
    ends = smoothstep(-0.06, 0.10, t) * smoothstep(1.06, 0.86, t)
    return (stroke * ends * b.density * hairs).clamp(0, 0.95)


def _lid_mask(a: Appearance, at: Surface) -> Tensor:
    upper = 0.62 if a.female else 0.42
    return (at.lid * torch.where(at.rest[:, 1] > 7.27, upper, 0.15)).clamp(0, 0.8)


def shirt_mask(a: Appearance, at: Surface) -> Tensor:
    """1 on the shirt, 0 on bare skin, (n,)."""
    x, y, _ = at.rest.unbind(1)
    return smoothstep(-0.015, 0.015, a.shirt.neckline + 0.42 * x.abs() - y) * (y < 6.0)


def skin_albedo(a: Appearance, at: Surface) -> Tensor:
    """Linear albedo (n, 3) of skin and shirt."""
    x, y, z = at.rest.unbind(1)
    side = x.abs()
    n1 = value_noise(at.rest, 3.0, 0, a.grain)
    n2 = value_noise(at.rest, 9.0, 1, a.grain)
    n3 = value_noise(at.rest, 31.0, 2, a.grain)
    colour = _skin_tone(a, at, n1, n2, n3)
    colour = colour * (_marks(a, at, n3) * _age_lines(a, at, n1))[:, None]
    hair = torch.tensor(a.hair.colour)
    if a.beard.density > 0.02:
        colour = mix(colour, hair * 0.7 + 0.01, _stubble(a, at))
    lips = _lip_colour(a) * (1 + 0.10 * n3[:, None])
    colour = mix(colour, lips, lip_mask(at) * min(1.0, 0.35 + 0.6 * a.skin.lip_redness))
    # The inside of the mouth is skin that sees almost no light.
    inner = smoothstep(0.30, 0.12, at.occlusion) * (side < 0.27) * (y > 6.45) * (y < 6.78)
    colour = colour * (1 - 0.80 * inner * (z > 0.6) * (at.part == BODY))[:, None]
    brows = torch.tensor(a.brows.colour)
    colour = mix(colour, brows, _brow_mask(a, at))
    colour = mix(colour, brows * 0.5 + 0.004, _lid_mask(a, at))
    cloth = 1 + 0.06 * value_noise(at.rest, 24.0, 2, 1.0)
    return mix(colour, torch.tensor(a.shirt.colour) * cloth[:, None], shirt_mask(a, at))
