"""A synthetic identity: bones plus appearance, sampled from one seed, and the oracle morph."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

from synthetic_faces.appearance import Appearance, sample_appearance
from synthetic_faces.seeds import Streams
from synthetic_faces.shape import Shape, sample_ancestry, sample_shape

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """A person who does not exist; the label of a picture is ``shape.seed``."""

    shape: Shape
    appearance: Appearance

    def with_appearance(self, seed: int) -> "Identity":
        """Same bones; other skin tone, brows, eye colour, hair, beard and shirt.

        Sex and age are kept. The colours are those of an ancestry drawn anew, so that a network
        trained on such pictures cannot use colour to tell people apart.
        """
        appearance = sample_appearance(
            seed, self.shape.female, self.shape.age, sample_ancestry(Streams(seed))
        )
        return replace(self, appearance=appearance)

    def with_shape(self, seed: int, spread: float = 0.25, asymmetry: float = 0.2) -> "Identity":
        """Same appearance on other bones."""
        return replace(self, shape=sample_shape(seed, spread, asymmetry))


def sample_identity(seed: int, spread: float = 0.25, asymmetry: float = 0.2) -> Identity:
    """Bones and a matching appearance from one integer; see ``sample_shape`` for the arguments."""
    shape = sample_shape(seed, spread, asymmetry)
    appearance = sample_appearance(seed, shape.female, shape.age, shape.ancestry)
    return Identity(shape, appearance)


def _is_numbers(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(x, float) for x in value)


def _lerp(a: T, b: T, w: float) -> T:
    """Interpolates floats and tuples of floats; everything discrete comes from ``a``."""
    if is_dataclass(a) and not isinstance(a, type):
        names = [field.name for field in fields(a)]
        return replace(a, **{n: _lerp(getattr(a, n), getattr(b, n), w) for n in names})
    if isinstance(a, float) and isinstance(b, float):
        return a + w * (b - a)
    if _is_numbers(a) and _is_numbers(b) and len(a) == len(b):  # type: ignore[arg-type]
        return tuple(_lerp(x, y, w) for x, y in zip(a, b, strict=True))  # type: ignore
    return a


def blend(a: Identity, b: Identity, w: float = 0.5) -> Identity:
    """The oracle morph: the head half-way between two heads, which no image morph can beat.

    Vertices are linear in the shape weights, so the geometry is exactly (1 - w) a + w b. Continuous
    appearance is interpolated too; hair style, moles and grain are those of ``a``.

    Args:
        a, b: the two contributors.
        w: weight of ``b`` in [0, 1]. ``blend(a, b, 0)`` has all the numbers of ``a``.

    Raises:
        ValueError: w is outside [0, 1].
    """
    if not 0 <= w <= 1:
        raise ValueError(f"w is {w}; the weight of the second identity lies in [0, 1]")
    if a == b:
        return a
    morph = _lerp(a, b, w)
    hair = morph.appearance.hair
    if (a.appearance.hair.style, a.appearance.hair.fringe) != (
        b.appearance.hair.style,
        b.appearance.hair.fringe,
    ):
        # Thickness and hairline only make sense within one style.
        hair = replace(a.appearance.hair, colour=hair.colour)
    return Identity(
        replace(morph.shape, seed=-1),
        replace(morph.appearance, seed=-1, hair=hair, grain=a.appearance.grain),
    )
