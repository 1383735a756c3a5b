"""Everything about a synthetic identity that is not bone: skin, brows, eyes, hair, beard, shirt."""

from dataclasses import dataclass

import numpy as np

from synthetic_faces.seeds import Streams

Colour = tuple[float, ...]


def linear(*srgb: float) -> Colour:
    """Display values in [0, 1] as linear light (gamma 2.2)."""
    return tuple(float(x) ** 2.2 for x in srgb)


def _scaled(colour: Colour, factors: float | tuple[float, ...]) -> Colour:
    return tuple((np.asarray(colour) * np.asarray(factors)).tolist())


def _mixed(a: Colour, b: Colour, w: float) -> Colour:
    return tuple((np.asarray(a) * (1 - w) + np.asarray(b) * w).tolist())


_SKIN_TONES = (
    linear(0.96, 0.80, 0.72),
    linear(0.90, 0.70, 0.58),
    linear(0.79, 0.57, 0.44),
    linear(0.60, 0.40, 0.29),
    linear(0.42, 0.27, 0.19),
    linear(0.27, 0.17, 0.125),
)
# Mean melanin of the three ancestry corners, in the order of ``ANCESTRIES``.
_MELANIN = (0.80, 0.30, 0.17)
_HAIR_COLOURS = (
    linear(0.05, 0.045, 0.045),
    linear(0.10, 0.075, 0.06),
    linear(0.19, 0.13, 0.09),
    linear(0.32, 0.21, 0.13),
    linear(0.50, 0.36, 0.22),
    linear(0.70, 0.56, 0.36),
    linear(0.40, 0.18, 0.09),
)
_GREY = linear(0.60, 0.59, 0.58)
_DARK_HAIR = (0.6, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0)
_ANY_HAIR = (0.0, 0.15, 0.25, 0.22, 0.16, 0.14, 0.08)
_BROW_BASE = linear(0.12, 0.08, 0.06)
_IRIS_COLOURS = (
    linear(0.20, 0.11, 0.06),
    linear(0.30, 0.18, 0.09),
    linear(0.42, 0.29, 0.13),
    linear(0.35, 0.40, 0.24),
    linear(0.34, 0.46, 0.56),
    linear(0.46, 0.55, 0.62),
)
_DARK_IRIS = (0.62, 0.28, 0.07, 0.01, 0.01, 0.01)
_ANY_IRIS = (0.12, 0.2, 0.15, 0.18, 0.2, 0.15)

_STYLES_FEMALE = {"long": 0.45, "bob": 0.2, "short": 0.1, "tied": 0.25}
_STYLES_MALE = {"short": 0.5, "buzz": 0.2, "crop": 0.18, "bald": 0.07, "long": 0.05}
# Thickness on the crown and on the sides, decimetres.
_TOP = {
    "short": (0.06, 0.15),
    "buzz": (0.006, 0.012),
    "crop": (0.06, 0.13),
    "bald": (0.002, 0.002),
    "long": (0.12, 0.25),
    "bob": (0.14, 0.28),
    "tied": (0.05, 0.10),
}
_SIDE = {
    "short": (0.03, 0.09),
    "buzz": (0.004, 0.010),
    "crop": (0.02, 0.05),
    "bald": (0.002, 0.002),
    "long": (0.12, 0.26),
    "bob": (0.16, 0.32),
    "tied": (0.03, 0.06),
}
# Height at which hanging hair ends; the chin is near y = 6.1.
_LENGTH = {"long": (4.6, 5.8), "bob": (5.9, 6.7)}


@dataclass(frozen=True)
class Skin:
    """Skin: colour, its variation, and what lies under it."""

    tone: Colour
    melanin: float
    blood: float
    freckles: float
    mottling: float
    moles: tuple[tuple[float, float, float], ...]
    lip_redness: float
    lip_hue: float


@dataclass(frozen=True)
class Brows:
    """Eyebrow strokes, decimetres on the mean head."""

    colour: Colour
    half_width: float
    arch: float
    inner: float
    outer: float
    height: float
    density: float
    tilt: float


@dataclass(frozen=True)
class Iris:
    """Iris colour and radius (sine of the angle at the eyeball's centre)."""

    colour: Colour
    radius: float


@dataclass(frozen=True)
class Hair:
    """Hair style; heights are y on the mean head, ``length`` is None when nothing hangs."""

    style: str
    colour: Colour
    front: float
    temple: float
    peak: float
    fringe: bool
    part: float
    burn: float
    top: float
    side: float
    length: float | None
    wave: float
    curtain_start: float
    flare: float
    curly: bool


@dataclass(frozen=True)
class Beard:
    """Stubble density, and whether it has grown out."""

    density: float
    full: bool


@dataclass(frozen=True)
class Shirt:
    """Colour of the shirt and height of its neckline."""

    colour: Colour
    neckline: float


@dataclass(frozen=True)
class Appearance:
    """What can change on a person from one day to the next, and the skin colour with it.

    ``grain`` offsets every noise pattern (pores, strands, stubble), in [0, 30).
    """

    seed: int
    female: bool
    age: float
    grain: float
    skin: Skin
    brows: Brows
    iris: Iris
    hair: Hair
    beard: Beard
    shirt: Shirt


def _clipped(s: Streams, name: str, mean: float, sigma: float, low: float, high: float) -> float:
    return float(np.clip(s.normal(name, mean, sigma), low, high))


def _sample_skin(s: Streams, female: bool, ancestry: tuple[float, ...]) -> Skin:
    melanin = float(np.clip(np.dot(ancestry, _MELANIN) + s.normal("melanin", 0, 0.10), 0.02, 1))
    step = min(int(melanin * 5), 4)
    tone = _mixed(_SKIN_TONES[step], _SKIN_TONES[step + 1], melanin * 5 - step)
    tint = 1 + s("skin tint").normal(0, (0.03, 0.025, 0.04))
    mole = s("moles")
    count = min(int(mole.poisson(0.6)), 5)
    moles = mole.uniform((-0.5, 6.3, 0.010), (0.5, 7.9, 0.020), (count, 3))
    return Skin(
        tone=_scaled(tone, tuple(tint.tolist())),
        melanin=melanin,
        blood=_clipped(s, "blood", 0.5, 0.25, 0, 1.2) * (1 - 0.6 * melanin),
        freckles=max(0.0, s.normal("freckles", -0.4, 0.6)) if melanin < 0.3 else 0.0,
        mottling=s.uniform("mottling", 0.03, 0.09),
        moles=tuple(tuple(row) for row in moles.tolist()),
        lip_redness=_clipped(s, "lip redness", 0.75 if female else 0.5, 0.25, 0.1, 1.2),
        lip_hue=s.normal("lip hue", 0, 0.5),
    )


def _sample_brows(s: Streams, female: bool, hair: Colour, fair: bool) -> Brows:
    return Brows(
        colour=_mixed(_scaled(hair, 0.65 if fair else 1.0), _BROW_BASE, 0.2),
        half_width=s.uniform("brow width", *((0.020, 0.036) if female else (0.028, 0.052))),
        arch=s.uniform("brow arch", -0.01, 0.05),
        inner=s.uniform("brow inner", 0.09, 0.16),
        outer=s.uniform("brow outer", 0.48, 0.58),
        height=s.normal("brow height", 0, 0.022),
        density=s.uniform("brow density", 0.55, 0.95),
        tilt=s.normal("brow tilt", 0, 0.025),
    )


def _sample_hair(s: Streams, female: bool, age: float, colour: Colour, african: float) -> Hair:
    styles = _STYLES_FEMALE if female else _STYLES_MALE
    style = str(s("hair style").choice(list(styles), p=list(styles.values())))
    if female:
        front, temple = 8.00, 0.0
    else:
        front, temple = 8.07 + 0.05 * age, 0.07
    return Hair(
        style=style,
        colour=colour,
        front=s.normal("hairline", front, 0.06),
        temple=max(-0.05, s.normal("temples", temple, 0.07)) + (0 if female else 0.10 * age),
        peak=s.normal("widow's peak", 0, 0.03),
        fringe=s.chance("fringe", 0.25) and style in ("long", "bob", "crop"),
        part=s.uniform("parting", -0.55, 0.55),
        burn=s.uniform("sideburn", 6.85, 7.25),
        top=s.uniform("hair top", *_TOP[style]),
        side=s.uniform("hair side", *_SIDE[style]),
        length=s.uniform("hair length", *_LENGTH[style]) if style in _LENGTH else None,
        wave=s.uniform("wave", 0.02, 0.06) if s.chance("wavy", 0.5) else 0.0,
        curtain_start=s.uniform("curtain", 1.02, 1.45),
        flare=s.uniform("flare", -0.12, 0.15),
        curly=african > 0.5 and s.chance("curls", 0.8),
    )


def sample_appearance(
    seed: int, female: bool, age: float, ancestry: tuple[float, ...]
) -> Appearance:
    """Skin, hair and clothes from one integer, given what they correlate with.

    Args:
        seed: non-negative integer.
        female: hair styles, brows, lips and beards differ.
        age: 0 young, 1 old; greys the hair and deepens the lines.
        ancestry: weights of (african, asian, caucasian), which set the mean colours.
    """
    s = Streams(seed)
    dark = s.chance("dark hair", 0.25 + 0.75 * min(1.0, ancestry[0] + ancestry[1]))
    pick = int(s("hair colour").choice(7, p=_DARK_HAIR if dark else _ANY_HAIR))
    shade = _scaled(_HAIR_COLOURS[pick], 1 + s.normal("hair shade", 0, 0.15))
    grey = float(np.clip((age - 0.45) * 3.2 * s.uniform("grey"), 0, 1))
    colour = _mixed(shade, _GREY, grey)
    iris = int(s("iris colour").choice(6, p=_DARK_IRIS if dark else _ANY_IRIS))
    density = 0.0 if female else max(0.0, s.normal("beard", 0.25, 0.3))
    cloth = s("shirt").uniform(0.1, 0.9, 3) * 0.5 + s.uniform("shirt lightness", 0, 0.5)
    return Appearance(
        seed=seed,
        female=female,
        age=age,
        grain=s.uniform("grain", 0, 30),
        skin=_sample_skin(s, female, ancestry),
        brows=_sample_brows(s, female, colour, fair=pick > 3),
        iris=Iris(
            colour=_scaled(_IRIS_COLOURS[iris], s.uniform("iris lightness", 0.8, 1.2)),
            radius=s.uniform("iris radius", 0.47, 0.53),
        ),
        hair=_sample_hair(s, female, age, colour, ancestry[0]),
        beard=Beard(density, density > 0.3 and s.chance("full beard", 0.2)),
        shirt=Shirt(linear(*cloth), s.uniform("neckline", 5.15, 5.55)),
    )
