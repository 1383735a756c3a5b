"""Kinds of values that options take: what each accepts, and its words for a message."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adjointdeis.texts import is_file_name, printable

_SHOWN = 60


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Attributes:
        text: What is expected, for the message.
        accepts: Whether a plain value is one of them.
    """

    text: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.text}, or {other.text}", lambda v: self.accepts(v) or other.accepts(v))


def shown(value: Any) -> str:
    """A value as a message has it: quoted where it is a text, on one line, cut where it is long."""
    text = printable(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number in a closed range."""
    upper = "or more" if most is None else f"or more, at most {most}"
    return Kind(
        f"a whole number, {least} {upper}",
        lambda v: _is_whole(v) and least <= v and (most is None or v <= most),
    )


def real(least: float = -math.inf, most: float = math.inf, *, above: float | None = None) -> Kind:
    """A finite number in a closed range, or above a bound that it may not have."""
    if above is not None:
        text = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
    elif least == -math.inf:
        text = "finite" if most == math.inf else f"at most {most:g}"
    else:
        text = f"{least:g} or more" if most == math.inf else f"between {least:g} and {most:g}"

    def accepts(value: Any) -> bool:
        # A whole number beyond the largest float is compared as the whole number that it is.
        number = _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
        return number and abs(value) < 1e300 and (
            value > above if above is not None else least <= value
        ) and value <= most  # fmt: skip

    return Kind(f"a number, {text}", accepts)


def one_of(*values: Any) -> Kind:
    """One of a few values, of their very types: 1 is not true."""
    words = [str(v) for v in values]
    return Kind(
        " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words),
        lambda v: any(v == known and type(v) is type(known) for known in values),
    )


def several(
    kind: Kind, example: str, *, empty: bool = False, count: int | None = None, once: bool = False
) -> Kind:
    """A list whose every entry is of a kind, each once where that is asked for."""
    length = "each once, " if once else "" if count is None else f"{count} of "

    def accepts(value: Any) -> bool:
        if not isinstance(value, list) or not (empty or value) or not all(map(kind.accepts, value)):
            return False
        if once and len(set(map(str, value))) < len(value):
            return False
        return count is None or len(value) == count

    return Kind(f"a list such as {example}: {length}{kind.text}", accepts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and "\0" not in value


def _is_path(value: Any) -> bool:
    if isinstance(value, Path):
        value = str(value)
    if not _is_text(value) or not value.strip() or value == "???" or value.startswith("~"):
        return False
    return all(len(part.encode(errors="replace")) <= 255 for part in value.split(os.sep))


def _is_run(value: Any) -> bool:
    # A run sets its folder aside as a whole, and locks it from beside: neither the root of a file
    # system nor a folder around the one where the program was started can be that.
    if not _is_path(value):
        return False
    run = Path(os.path.abspath(value))
    return run.name != "" and run not in Path(os.getcwd()).parents


def _is_strategy(value: Any) -> bool:
    if value == "auto" or not _is_text(value):
        return value == "auto"
    from lightning.pytorch.strategies import StrategyRegistry  # takes seconds, and is rarely asked

    return value in StrategyRegistry.available_strategies()


NULL = Kind("null", lambda v: v is None)

FLAG = Kind("true or false", lambda v: isinstance(v, bool))

NODE = Kind("a class with its arguments", lambda v: isinstance(v, dict) and "_target_" in v)

MAPPING = Kind("its own keys, such as those of its group", lambda v: isinstance(v, dict))

TEXT = Kind("a text of at most 4096 characters", lambda v: _is_text(v))

NAME = Kind(
    "a folder name: letters, digits, - _ . and the like",
    lambda v: _is_text(v) and is_file_name(v),
)

NAMES = Kind(
    "a folder name, or several with / between, none of them .. or hidden",
    lambda v: _is_text(v) and is_file_name(v, 8),
)

PATH = Kind("the path of a file or folder, ~ written out", _is_path)

FACES = Kind("a path, ~ written out, or mini; data.limit takes fewer pairs", _is_path)

SHARE = real(0, 1)

RATE = real(above=0)

STEPS = whole(1, 100_000)

SIZE = whole(1, 16_384)

MANY = whole(1, 1_000_000)

COUNTS = several(STEPS, "[5,10]", once=True)

BELOW_ONE = Kind("a share below 1", lambda v: SHARE.accepts(v) and v < 1)

FMR = Kind(
    "shares between 0 and 1, such as 0.001",
    lambda v: isinstance(v, float) and SHARE.accepts(v) and 0 < v < 1,
)

SEED = whole(0, 2**32 - 1)

PRECISION = one_of(
    *("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"),
    *("transformer-engine", "transformer-engine-float16", "16", "bf16", "32", "64"),
    *(16, 32, 64),
)

DEVICES = (
    Kind("-1 for all", lambda v: v in (-1, "-1") and not isinstance(v, bool))
    | whole(1, 4096)
    | one_of("auto")
    | several(whole(0, 4096), "[0,1]")
    | Kind(
        "their numbers as text",
        lambda v: _is_text(v) and bool(v) and all(n.strip().isdigit() for n in v.split(",")),
    )
)
RUN = Kind(
    "the path of a folder, not the root of a file system nor a folder around the working one",
    _is_run,
)
STRATEGY = Kind("auto or a strategy of Lightning, such as ddp (trainer=ddp)", _is_strategy)
