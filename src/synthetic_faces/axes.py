"""Shape axes: opposite targets of the head paired into one signed coordinate.

``nose-hump-decr`` and ``nose-hump-incr`` become one axis; the left and right copies of a target
move together. A target without an opposite gives a one-sided axis.
"""

from dataclasses import dataclass

_OPPOSITES = (
    ("decr", "incr"),
    ("in", "out"),
    ("down", "up"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
# Translations only move the head inside the frame, measures repeat other axes, and pointed ears
# or an infant's proportions make caricatures.
_UNUSED = (
    "head-trans",
    "neck-trans",
    "measure",
    "ear-shape-pointed",
    "ear-shape-triangle",
    "nose-trans-in",
    "nose-trans-out",
    "mouth-trans-in",
    "mouth-trans-out",
    "head-age",
)
_OTHER_GROUPS = ("race", "universal", "expr", "asym")


@dataclass(frozen=True)
class LocalAxis:
    """One signed coordinate of a face.

    Attributes:
        name: the axis' target name, sides removed; names the random stream.
        plus: rows that grow with a positive coordinate.
        minus: rows that grow with a negative one; empty for a one-sided axis.
        gain: factor between the sampled coordinate and the target weight.
    """

    name: str
    plus: tuple[int, ...]
    minus: tuple[int, ...]
    gain: float


def _gain(name: str, one_sided: bool) -> float:
    group, target = name.split(":")
    gain = 1.0
    if group == "ears":
        gain *= 0.7
    if group == "neck":
        gain *= 0.5
    if any(part in target for part in ("eye-push", "nubian", "head-back")):
        gain *= 0.5
    if any(part in target for part in ("eye-height", "eye-bag")):
        gain *= 0.7
    if one_sided:
        gain *= 0.42 if group == "head" else 0.4
    return gain


def _opposite(name: str, rows: dict[str, int]) -> tuple[str | None, bool]:
    """The other member of the pair, and whether ``name`` is the positive one."""
    for negative, positive in _OPPOSITES:
        if name.endswith("-" + negative) and (other := name[: -len(negative)] + positive) in rows:
            return other, False
        if name.endswith("-" + positive) and (other := name[: -len(positive)] + negative) in rows:
            return other, True
    return None, True


def _both_sides(name: str, rows: dict[str, int]) -> tuple[int, ...]:
    if ":l-" in name:
        return rows[name], rows[name.replace(":l-", ":r-")]
    return (rows[name],)


def local_axes(names: tuple[str, ...]) -> tuple[LocalAxis, ...]:
    """Axes of the features: eyes, brows, ears, nose, mouth, chin, cheeks, forehead, head, neck."""
    rows = {name: i for i, name in enumerate(names)}
    axes = []
    for name in names:
        group, target = name.split(":")
        if group in _OTHER_GROUPS or target.startswith("r-"):
            continue
        if any(part in target for part in _UNUSED):
            continue
        other, positive = _opposite(name, rows)
        if other is None:
            axes.append(LocalAxis(name, _both_sides(name, rows), (), _gain(name, True)))
        elif positive:
            plus, minus = _both_sides(name, rows), _both_sides(other, rows)
            axes.append(LocalAxis(name, plus, minus, _gain(name, False)))
    return tuple(axes)


def asymmetry_axes(names: tuple[str, ...]) -> tuple[LocalAxis, ...]:
    """Axes that change one side of the face only; positive is the left side."""
    rows = {name: i for i, name in enumerate(names)}
    return tuple(
        LocalAxis(name, (rows[name],), (rows[name[:-1] + "r"],), 1.0)
        for name in names
        if name.startswith("asym:") and name.endswith("-l")
    )
