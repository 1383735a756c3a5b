"""Sphinx: `make docs` builds the pages strictly, a warning fails the build."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.domains.python import PyObject

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
exclude_patterns = ["_build", "jupyter_execute"]

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
    },
    {
        "path": "../src/synthetic_faces",
        "destination": "reference/synthetic_faces",
        "max_depth": 1,
        "separate_modules": False,
        "module_first": True,
    },
]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["front_page.css"]
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


ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "pages"
# Pages that live beside what they are about, by their name in the site.
ELSEWHERE = {
    ROOT / "src" / "synthetic_faces" / "README.md": "synthetic_faces/README.md",
    **{ROOT / name: name for name in ("CONTRIBUTING.md", "RESPONSIBLE_USE.md", "CHANGELOG.md")},
    **{
        page: page.relative_to(ROOT).as_posix()
        for page in [ROOT / "experiments/README.md", *ROOT.glob("experiments/*/README.md")]
    },
}


def collect_pages() -> None:
    """Copies the pages that live elsewhere, and their pictures, into docs/pages; links follow."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for page, name in ELSEWHERE.items():
        copy = PAGES / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        link = re.compile(r"\[([^][]*)\]\(([^)\s]+)\)")
        text = link.sub(
            lambda found, p=page, c=copy: moved(*found.groups(), p, c), page.read_text()
        )
        if name == "experiments/README.md":
            text += "\n```{toctree}\n:glob:\n:maxdepth: 1\n\n*/README\n```\n"
        copy.write_text(text)
        for picture in page.parent.glob("*.[jp][pn]g"):
            shutil.copy(picture, copy.parent)


def moved(text: str, target: str, page: Path, copy: Path) -> str:
    """A Markdown link of a page, as it must read in the copy."""
    path, mark, anchor = target.partition("#")
    there = (page.parent / path).resolve()
    if not path or re.match(r"(https?|mailto):", target) or not there.exists():
        return f"[{text}]({target})"
    if there == ROOT / "README.md":
        there = ROOT / "docs" / "index.md"
    elif there in ELSEWHERE:
        there = PAGES / ELSEWHERE[there]
    elif there.suffix in (".png", ".jpg"):
        there = copy.parent / there.name
    elif there.is_dir() or (there.suffix == ".md" and not there.is_relative_to(ROOT / "docs")):
        return text  # a folder, or a page that is not in the site
    return f"[{text}]({os.path.relpath(there, copy.parent)}{mark}{anchor})"


def as_sphinx_reads(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escapes what the sources write and reStructuredText reads otherwise, after napoleon.

    Shapes are written (B, *), and a star opens emphasis. ``x_T, z: ...`` describes two arguments,
    and a space in a field makes its first words a type: "z (x_T,)".
    """
    del app, what, name, obj, options
    lines[:] = [re.sub(r"(?<=, )\*(?=[,)])|(?<=/)\*(?=\.)", r"\\*", line) for line in lines]
    lines[:] = [
        re.sub(r"^:(?:param|ivar) [^:]+:", lambda found: found[0].replace(", ", ","), line)
        for line in lines
    ]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    collect_pages()
    # The name of a field is no reference: Sphinx would link it to some attribute of that name, and
    # warn as soon as there are two.
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.rolename = ""
    app.connect("autodoc-process-docstring", as_sphinx_reads)
