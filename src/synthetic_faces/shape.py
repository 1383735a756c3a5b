"""The bones of a synthetic identity: weights of the head's shape targets."""

from dataclasses import dataclass

import numpy as np

from synthetic_faces.assets import ANCESTRIES, SEXES, load_assets
from synthetic_faces.seeds import Streams

_ANCESTRY_CONCENTRATION = (0.45, 0.45, 0.6)
_SMILE_TRAITS = 8


@dataclass(frozen=True)
class Shape:
    """Geometry of a head and the demographics that made it.

    Attributes:
        seed: the seed it was sampled from; -1 for a blend.
        female: which end of the sex axis it was drawn near.
        age: 0 young adult, 1 old.
        ancestry: convex weights of ``ANCESTRIES``.
        weights: one weight per shape target of the assets.
        smile_traits: eight numbers in [0, 1] that make this person's smile their own.
    """

    seed: int
    female: bool
    age: float
    ancestry: tuple[float, ...]
    weights: tuple[float, ...]
    smile_traits: tuple[float, ...]

    @property
    def sex(self) -> str:
        """``female`` or ``male``."""
        return SEXES[0] if self.female else SEXES[1]

    @property
    def group(self) -> str:
        """The ancestry with the largest weight."""
        return ANCESTRIES[int(np.argmax(self.ancestry))]


def sample_ancestry(streams: Streams) -> tuple[float, ...]:
    """Dirichlet weights of ``ANCESTRIES``, mostly near one of the corners."""
    return tuple(float(x) for x in streams("ancestry").dirichlet(_ANCESTRY_CONCENTRATION))


def _levels(x: float) -> dict[str, float]:
    """Piecewise-linear weights of the anchors min (0), average (0.5) and max (1)."""
    return {
        "min": max(0.0, 1 - 2 * x),
        "average": 1 - abs(2 * x - 1),
        "max": max(0.0, 2 * x - 1),
    }


def _macro_weights(
    femininity: float, age: float, ancestry: tuple[float, ...], muscle: float, weight: float
) -> dict[str, float]:
    weights = {}
    for sex, of_sex in (("female", femininity), ("male", 1 - femininity)):
        for years, of_age in (("young", 1 - age), ("old", age)):
            for name, share in zip(ANCESTRIES, ancestry, strict=True):
                weights[f"race:{name}-{sex}-{years}"] = of_sex * of_age * share
            for m, of_muscle in _levels(muscle).items():
                for w, of_weight in _levels(weight).items():
                    name = f"universal:{sex}-{years}-{m}muscle-{w}weight"
                    weights[name] = of_sex * of_age * of_muscle * of_weight
    return weights


def sample_shape(seed: int, spread: float = 0.25, asymmetry: float = 0.2) -> Shape:
    """Bones from one integer.

    Args:
        seed: non-negative integer.
        spread: standard deviation of the feature axes, which are clipped to [-1, 1]. 0.12 makes a
            hard set of look-alikes, 0.33 and above makes caricatures.
        asymmetry: standard deviation of the one-sided axes.

    Raises:
        ValueError: a negative seed, spread or asymmetry.
    """
    if spread < 0 or asymmetry < 0:
        raise ValueError(f"spread is {spread} and asymmetry {asymmetry}; both must be 0 or more")
    assets, streams = load_assets(), Streams(seed)
    female = streams.chance("sex", 0.5)
    femininity = float(streams("femininity").beta(*((8, 1.2) if female else (1.2, 8))))
    age = float(streams("age").beta(1.1, 2.2))
    ancestry = sample_ancestry(streams)
    muscle = float(np.clip(streams.normal("muscle", 0.5, 0.2), 0, 1))
    mass = float(np.clip(streams.normal("weight", 0.48, 0.2), 0, 1))
    weights = np.zeros(len(assets.names))
    for name, value in _macro_weights(femininity, age, ancestry, muscle, mass).items():
        weights[assets.row(name)] = value
    for axes, sigma in ((assets.axes, spread), (assets.asymmetry, asymmetry)):
        for axis in axes:
            x = float(np.clip(streams.normal(axis.name, 0, sigma), -1, 1)) * axis.gain
            weights[list(axis.plus if x > 0 else axis.minus)] += abs(x)
    return Shape(
        seed=seed,
        female=female,
        age=age,
        ancestry=ancestry,
        weights=tuple(weights.tolist()),
        smile_traits=tuple(streams("smile").random(_SMILE_TRAITS).tolist()),
    )
