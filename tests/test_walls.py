"""The walls of the house, read from the sources: who may import whom, and what no file may hold."""

import ast
import dataclasses
import functools
import importlib
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "adjointdeis"
FORWARD = ("diffusion", "solvers", "gradients", "rollout", "guidance", "morphing")
ALLOWED: dict[str, set[str]] = {
    **{room: set(FORWARD[: k + 1]) for k, room in enumerate(FORWARD)},
    "faces": {"faces"},
    "evaluation": {"evaluation"},
    "reporting": {"evaluation", "reporting"},
    "detection": {"faces", "detection"},
    "adaptive": {"diffusion", "solvers", "gradients", "rollout", "adaptive"},
    "problems": {"diffusion", "solvers", "gradients", "rollout", "problems"},
    "harness": {
        *FORWARD,
        "faces",
        "detection",
        "evaluation",
        "reporting",
        "problems",
        "harness",
        "",
    },
    "__main__": {"evaluation", "harness"},
    "__init__": {"diffusion", "solvers", "gradients", "rollout", "adaptive"},
}
ALLOWED["morphing"] |= {"faces"}
# What every room may use: no mathematics, no framework.
COMMON = {"extras", "files", "images", "plugins", "terminal", "texts"}
ALLOWED = {**{room: rooms | COMMON for room, rooms in ALLOWED.items()}, **{c: {c} for c in COMMON}}
for common in ("terminal", "images"):
    ALLOWED[common] |= {"files", "texts"}
FRAMEWORKS = {"hydra", "lightning", "pytorch_lightning", "omegaconf", "wandb"}
TORCH = {"torch", "torchmetrics", "torchvision"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
# The command line of the evaluation is its one door to the reports, behind two commands.
DOORS = {"evaluation/commands.py": {"reporting"}}
RENDERER = ROOT / "src" / "synthetic_faces"
# Every Python file of the repository that is not a test.
CODE = [*SOURCES, *sorted(RENDERER.rglob("*.py")), *sorted((ROOT / "experiments").rglob("*.py"))]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path, text: str | None = None) -> list[str]:
    """Every module that a source imports, with the name that it takes from it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from adjointdeis import x` may name a room; `from a.b import x` is in room b anyway.
            # The dots of a relative import stay in front, for the test that forbids them.
            found += [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    return found


def rooms(path: Path, text: str | None = None) -> set[str]:
    found = set()
    for name in imports(path, text):
        top, _, rest = name.partition(".")
        if top == "adjointdeis":
            room = rest.partition(".")[0]
            is_room = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()
            found.add(room if room and is_room else "")
    return found


def outside(path: Path, text: str | None = None) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, text)}


def test_every_room_is_known() -> None:
    assert {room_of(path) for path in SOURCES} <= ALLOWED.keys()


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_point_one_way(room: str) -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): sorted(found)
        for path in SOURCES
        if room_of(path) == room
        and (
            found := rooms(path)
            - ALLOWED[room]
            - DOORS.get(path.relative_to(PACKAGE).as_posix(), set())
        )
    }
    assert not wrong, f"{room} may import {sorted(ALLOWED[room])} only"


def test_the_reader_of_imports_sees_each_form() -> None:
    path = PACKAGE / "solvers" / "ddim.py"
    text = "from adjointdeis.gradients.base import X\nimport adjointdeis.guidance.a\n"
    assert rooms(path, text + "from adjointdeis import morphing, sample") == {
        "gradients",
        "guidance",
        "morphing",
        "",
    }
    assert "hydra" in outside(path, "def f():\n    from hydra.utils import instantiate\n")


def test_the_package_knows_no_study() -> None:
    assert not [p for p in SOURCES if "experiments" in outside(p)]


def test_only_the_harness_knows_hydra_and_lightning() -> None:
    wrong = [p for p in SOURCES if room_of(p) != "harness" and outside(p) & FRAMEWORKS]
    assert not wrong


def test_evaluation_and_reporting_know_no_torch() -> None:
    free = [p for p in SOURCES if room_of(p) in ("evaluation", "reporting")]
    wrong = [p.relative_to(PACKAGE).as_posix() for p in free if outside(p) & TORCH]
    assert not wrong


def test_every_import_is_absolute() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*CODE, *tests]
        for name in imports(path)
        if name.startswith(".")
    ]
    assert not wrong
    assert list(imports(ROOT / "x.py", "from ..a import b")) == ["..a.b"]


def test_the_renderer_of_synthetic_faces_stands_alone() -> None:
    own = {"synthetic_faces", "torch", "numpy", "tqdm", *sys.stdlib_module_names}
    sources = sorted(RENDERER.rglob("*.py"))
    wrong = {p.name: sorted(outside(p) - own) for p in sources if outside(p) - own}
    assert sources and not wrong


# Modules of `gradients` whose every name others may use; of the rest, what the package exports.
OPEN = {"catalogue", "cost", "free_memory"}


def test_nobody_else_uses_the_private_parts_of_the_gradients() -> None:
    public = set(importlib.import_module("adjointdeis.gradients").__all__)
    wrong = set()
    for path in CODE:
        inside = path.is_relative_to(PACKAGE) and room_of(path) == "gradients"
        if inside:
            continue
        for name in imports(path):
            _, _, rest = name.partition("adjointdeis.gradients.")
            module, _, taken = rest.rpartition(".")
            if taken and taken not in public | OPEN and module not in OPEN:
                wrong.add(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def tracked() -> list[Path]:
    """Text files under version control; without git, the sources and settings."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        paths = [ROOT / name for name in listed]
    except (OSError, subprocess.SubprocessError):
        paths = [p for folder in ("src", "tests", "conf") for p in (ROOT / folder).rglob("*")]
    kinds = {".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".cff", ".json", ".csv", ""}
    return [p for p in paths if p.suffix in kinds and p.is_file()]


def test_no_path_of_a_machine_is_in_the_sources() -> None:
    # In two parts, so that this file does not hold what it looks for.
    pattern = re.compile(r"(?<![\w.~$}>-])/" + r"(work|tmp|root|home)/")
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not wrong


@pytest.mark.parametrize(("room", "base"), [("solvers", "Solver"), ("gradients", "GradientMethod")])
def test_methods_cite_their_source(room: str, base: str) -> None:
    module = importlib.import_module(f"adjointdeis.{room}")
    public = [getattr(module, name) for name in module.__all__]
    methods = [
        value
        for value in public
        if inspect.isclass(value)
        and issubclass(value, getattr(module, base))
        and value.__name__ not in (base, "StepwiseMethod")
    ]
    assert len(methods) >= 3
    wanted = re.compile(r"Paper:|https?://")
    missing = [v.__name__ for v in methods if not wanted.search(v.__doc__ or "")]
    assert not missing


def test_every_module_says_what_it_is() -> None:
    missing = [
        p.relative_to(ROOT).as_posix()
        for p in SOURCES
        if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not missing


def exported() -> Iterator[tuple[str, object]]:
    """Functions and classes that a package exports, by the full name."""
    for init in sorted((ROOT / "src").rglob("__init__.py")):
        name = ".".join(init.relative_to(ROOT / "src").parts[:-1])
        package = importlib.import_module(name)
        for each in getattr(package, "__all__", ()):
            value = getattr(package, each)
            if getattr(value, "__module__", "").startswith("adjointdeis"):
                yield f"{name}.{each}", value


def test_what_is_exported_says_what_it_takes() -> None:
    missing, seen = [], 0
    for name, value in exported():
        error = inspect.isclass(value) and issubclass(value, (Exception, Warning))
        if error or not callable(value) or getattr(value, "_is_protocol", False):
            continue
        told = re.search(
            r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", inspect.getdoc(value) or "", re.S | re.M
        )
        described = re.findall(r"^ {4}([\w, ()*-]+):", told[1], re.M) if told else []
        known = {word for line in described for word in re.findall(r"\w+", line)}
        parameters = inspect.signature(value).parameters.values()
        # What is handed on as it comes is described where it is taken.
        taken = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        seen += len(taken)
        missing += [f"{name}: {p}" for p in taken if not p.startswith("_") and p not in known]
    assert not missing
    assert seen > 200


def test_a_setting_that_is_no_number_is_refused() -> None:
    # nan < 0 and nan > 1 are both false: a check must ask for what is right.
    accepted, seen = [], 0
    for name, value in exported():
        if not dataclasses.is_dataclass(value):
            continue
        try:
            value()
        except TypeError:  # it needs more than numbers
            continue
        hints = get_type_hints(value)
        for field in dataclasses.fields(value):
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            if field.init and float in kinds and get_origin(hints[field.name]) is not tuple:
                seen += 1
                try:
                    value(**{field.name: math.nan})
                except ValueError as error:
                    assert "nan" in str(error), name
                else:
                    accepted.append(f"{name}({field.name}=nan)")
    assert not accepted
    assert seen > 30


def test_arguments_are_described_in_one_form() -> None:
    other = re.compile(r"^\s*(Arguments|Parameters|Params|Inputs):?\s*$|:param \w|^\s*-{4,}$", re.M)
    wrong = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                text = ast.get_docstring(node) or ""
                if found := other.search(text):
                    wrong.append(f"{path.relative_to(ROOT)}: {found[0].strip()}")
    assert not wrong


# Words that belong to two fields: a node of a time grid, and of a network's graph; a run of the
# program that a report is about, and of a sampler that a gradient goes through.
TWICE = {"Node", "Run"}


def test_a_name_has_one_meaning() -> None:
    found: dict[str, list[str]] = {}
    for path in CODE:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert twice.keys() <= TWICE, twice


def test_every_module_has_a_user() -> None:
    """Something other than a test imports it, or a configuration, a page or a registry names it."""
    code = [*SOURCES, *sorted((ROOT / "experiments").rglob("*.py")), ROOT / "run.py"]
    imported = {(path, name) for path in code for name in imports(path)}
    named = "\n".join(
        path.read_text()
        for folder in ("conf", "docs", "experiments", "src")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".yaml", ".md", ".ipynb")
    ) + (ROOT / "pyproject.toml").read_text()  # fmt: skip
    orphans = []
    for path in SOURCES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        module = "adjointdeis." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        users = [p for p, name in imported if p != path and (name + ".").startswith(module + ".")]
        registry = (path.parent / "__init__.py").read_text()
        if not users and module not in named and f'"{path.stem}"' not in registry:
            orphans.append(module)
    assert not orphans
