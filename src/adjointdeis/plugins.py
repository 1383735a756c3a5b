"""What other installed packages add, by entry point: gradient methods, solvers, attacks, judges,
detectors, degradations.

A package names its classes in its ``pyproject.toml``, and they can be chosen by name beside ours:

.. code-block:: toml

    [project.entry-points."adjointdeis.gradients"]
    my_method = "my_package.method:MyMethod"

Groups are ``adjointdeis.gradients``, ``.solvers``, ``.attacks``, ``.recognisers``,
``.resources``, ``.detectors`` and ``.degradations``; docs/extending.md shows each.
"""

import re
import warnings
from functools import cache
from importlib.metadata import entry_points
from typing import Any

GROUPS = (
    "gradients",
    "solvers",
    "attacks",
    "recognisers",
    "resources",
    "detectors",
    "degradations",
)


@cache
def plugins(group: str) -> dict[str, Any]:
    """What the entry points of a group name, by entry point, in alphabetical order.

    A package that cannot be imported, or whose name is none that a file can have, is left out with
    a warning: it is not to take down those who do not use it.

    Args:
        group: One of :data:`GROUPS`.

    Raises:
        ValueError: Two packages give the same name; there is no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"{group!r} is no group of entry points; known are {', '.join(GROUPS)}")
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for point in sorted(entry_points(group=f"adjointdeis.{group}"), key=lambda p: p.name):
        if origin.setdefault(point.name, point.value) != point.value:
            raise ValueError(
                f"two packages name a plugin adjointdeis.{group} {point.name!r}: "
                f"{origin[point.name]} and {point.value}; uninstall one, or ask for another name"
            )
        try:
            if not re.fullmatch(r"\w[\w. +-]*", point.name):
                raise ValueError("its name is not one of letters, digits and - _ . +")
            found[point.name] = point.load()
        except (Exception, SystemExit) as error:
            # As a text in quotes, where nothing of it acts on a terminal or forges a line.
            why = repr(f"({point.value}) is left out: {type(error).__name__}: {error}")[1:-1]
            warnings.warn(f"the plugin adjointdeis.{group} {point.name!r} {why}", stacklevel=2)
    return found
