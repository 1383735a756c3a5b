"""Sphinx: `make docs` builds the pages strictly, a warning fails the build."""

import os
import re
from typing import Any

import adjointdeis

project = "AdjointDEIS"
author = "The AdjointDEIS reference implementation authors"
copyright = "2026, " + author
version = release = adjointdeis.__version__

extensions = [
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "myst_nb",
]
exclude_patterns = ["_build"]

# What a package lends from its modules is described where it is defined. Package pages read their
# options from the environment only.
os.environ["SPHINX_APIDOC_OPTIONS"] = "members,show-inheritance,ignore-module-all"
# One page a package, made anew at each build, so that no module can be forgotten.
apidoc_modules = [
    {
        "path": "../src/adjointdeis",
        "destination": "reference",
        "max_depth": 3,
        "separate_modules": False,
        "module_first": True,
    }
]
html_theme = "furo"
html_title = f"AdjointDEIS {version}"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# The notebook is run by the test suite and stored with what it printed.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
# Lightning's own docstrings use roles that only its documentation knows.
autodoc_inherit_docstrings = False
# `Attributes:` of a dataclass describes fields that autodoc lists as well.
napoleon_use_ivar = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Cost", "notes_style"),
    ("Warns", "notes_style"),
    ("When not to use", "notes_style"),
]


def escape_shapes(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes are written (B, *) in the sources; in reStructuredText a star opens emphasis."""
    del app, what, name, obj, options
    lines[:] = [re.sub(r"(?<=, )\*(?=[,)])|(?<=/)\*(?=\.)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", escape_shapes)
