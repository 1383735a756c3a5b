"""Facial expressions as amounts of named facial units."""

from dataclasses import dataclass

import numpy as np

from synthetic_faces.shape import Shape


@dataclass(frozen=True)
class Expression:
    """A named set of facial units.

    Attributes:
        name: label written to metadata, e.g. ``neutral``.
        units: (unit, amount in [0, 1]) pairs; a unit is the last part of an ``expr:`` target.
    """

    name: str
    units: tuple[tuple[str, float], ...]

    @property
    def mouth_open(self) -> bool:
        """Whether teeth can be seen."""
        amounts = dict(self.units)
        return amounts.get("jawOpen", 0) + amounts.get("mouthUpperUpLeft", 0) > 0.02


REST = Expression("neutral", ())


def neutral(rng: np.random.Generator, amplitude: float = 0.05) -> Expression:
    """A neutral face with the small tensions that no two pictures share."""

    def tension() -> float:
        return abs(float(rng.normal(0, amplitude)))

    brow, squint = tension(), tension()
    blink = float(np.clip(rng.normal(0.03, 0.04), 0, 0.15))
    units = {
        "browInnerUp": tension(),
        "browDownLeft": brow,
        "browDownRight": brow,
        "mouthPressLeft": tension(),
        "mouthPressRight": tension(),
        "cheekPuff": tension(),
        "eyeSquintLeft": squint,
        "eyeSquintRight": squint,
        "eyeBlinkLeft": blink,
        "eyeBlinkRight": blink,
    }
    return Expression("neutral", tuple(units.items()))


def smile(shape: Shape, amount: float = 1.0) -> Expression:
    """This person's smile; about two people in three show their teeth.

    Args:
        shape: its ``smile_traits`` decide width, lopsidedness, eyes and teeth.
        amount: 0 gives the rest position, 1 a full smile.
    """
    width, cheeks, eyes, opens, opening, brows, lopsided, _ = shape.smile_traits
    pull, skew = amount * (0.62 + 0.38 * width), 0.12 * (lopsided - 0.5)
    units = {
        "mouthSmileLeft": pull * (1 + skew),
        "mouthSmileRight": pull * (1 - skew),
        "cheekSquintLeft": pull * (0.25 + 0.4 * cheeks),
        "cheekSquintRight": pull * (0.25 + 0.4 * cheeks),
        "eyeSquintLeft": pull * (0.15 + 0.35 * eyes),
        "eyeSquintRight": pull * (0.15 + 0.35 * eyes),
        "browOuterUpLeft": 0.15 * brows * amount,
        "browOuterUpRight": 0.15 * brows * amount,
    }
    if opens > 0.35:
        gap = amount * (0.25 + 0.5 * opening)
        for unit in ("mouthUpperUp", "mouthLowerDown"):
            units[unit + "Left"] = units[unit + "Right"] = 0.55 * gap
        units["jawOpen"] = 0.10 * gap
    return Expression("smile", tuple(units.items()))
