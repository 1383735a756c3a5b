"""What a stranger meets first is in step: versions, requirements, links, the weight budget."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MEGABYTES = 1_000_000


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(extras: tuple[str, ...]) -> set[str]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
    return names - {"adjointdeis"}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {normal(name): version for name, version in pins}


ALL_EXTRAS = tuple(PROJECT["optional-dependencies"])


def test_every_requirement_is_pinned() -> None:
    assert required(ALL_EXTRAS) <= constraints().keys()


def test_pins_satisfy_the_lower_bounds() -> None:
    pins, wrong = constraints(), []
    lines = [*PROJECT["dependencies"]]
    lines += [line for extra in ALL_EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    for line in lines:
        found = re.match(r"([\w.-]+)>=([\d.]+)", line)
        if found is None:
            continue
        pinned = [int(part) for part in re.findall(r"\d+", pins[normal(found[1])])[:3]]
        if pinned < [int(part) for part in found[2].split(".")]:
            wrong.append(f"{line}: {pins[normal(found[1])]}")
    assert not wrong


def test_constraints_install_anywhere() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert constraints()["torch"] == "2.13.0"
    rows = [line for line in text.splitlines() if line and not line.startswith("#")]
    # No build tag, no local file, no editable install, no direct address: an index is enough.
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", row) for row in rows)
    assert len({normal(row.split("==")[0]) for row in rows}) == len(rows)


def test_environment_yml_is_in_step() -> None:
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "pip" in conda
    python = next(entry for entry in conda if entry.startswith("python"))
    assert python.removeprefix("python") == "=3.11"
    assert PROJECT["requires-python"] == ">=3.11"
    # The list of packages is written once, in pyproject.toml: the environment installs that.
    assert "--constraint constraints.txt" in pip
    editable = next(entry for entry in pip if entry.startswith("--editable"))
    extras = re.search(r"\[(.+)\]", editable)[1].split(",")
    assert set(extras) <= set(ALL_EXTRAS)
    # Anything it names beside that must be pinned to the version of the constraints.
    for entry in pip:
        if not entry.startswith("--"):
            name, _, version = entry.partition("==")
            assert constraints()[normal(name)] == version


def test_version_is_said_once_everywhere() -> None:
    text = (ROOT / "src" / "adjointdeis" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"$', text, re.M)[1]
    assert version == PROJECT["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_citation_file_is_valid() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Blasingame", "Liu"]
    assert "2405.15020" in str(paper["identifiers"])
    assert citation["license"] == PROJECT["license"]


def _plain(target: str) -> str:
    return target.partition("#")[0].removeprefix("pages/")


PAGES = [ROOT / "README.md", ROOT / "RESPONSIBLE_USE.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "experiments").rglob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = [
        target
        for target in targets
        if not re.match(r"(https?|mailto):|#", target)
        # docs/conf.py copies the pages that live elsewhere into docs/pages.
        and not (page.parent / target.partition("#")[0]).exists()
        and not any((root / _plain(target)).exists() for root in (ROOT, ROOT / "src"))
    ]
    assert not broken


def test_commands_of_the_readme_name_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\+experiment=(?!glob\()([\w/]+)", text))
    folders = re.findall(r"\+experiment=glob\((\w+)/\*[^)]*\)", text)
    experiments = ROOT / "conf" / "experiment"
    # The rows of one file are experiments too: harness/choices.py makes them.
    assert folders and all((experiments / f"{f}.yaml").is_file() for f in folders)
    assert "quickstart" in named
    assert not [n for n in named if not (ROOT / "conf" / "experiment" / f"{n}.yaml").is_file()]
    made = set(re.findall(r"`?make (\w+)", text))
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert made <= rules


def test_every_study_has_a_page_and_its_commands_exist() -> None:
    folders = {p.parent for p in (ROOT / "experiments").glob("*/*.py")} - {
        ROOT / "experiments/common"
    }
    assert folders and not [f.name for f in folders if not (f / "README.md").is_file()]
    texts = [*PAGES, ROOT / "Makefile", *(ROOT / "experiments").rglob("*.py")]
    named = {
        name
        for text in texts
        for name in re.findall(r"-m (experiments\.\w+\.\w+)", text.read_text())
    }
    assert named and not [n for n in named if not (ROOT / f"{n.replace('.', '/')}.py").is_file()]
    # docs/extending.md adds tests of its own.
    told = [t for t in texts if t.suffix == ".md" and t.name != "extending.md"]
    tests = {name for t in told for name in re.findall(r"\btests/[\w/]+\.py", t.read_text())}
    assert tests and not [name for name in tests if not (ROOT / name).is_file()]


def test_weights_stay_small() -> None:
    folder = ROOT / "src" / "adjointdeis" / "assets"
    weights = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".onnx", ".pt")]
    if not weights:
        pytest.skip("no embedded weights yet")
    assert sum(p.stat().st_size for p in weights) < 30 * MEGABYTES


def test_installed_metadata_is_of_this_version() -> None:
    assert metadata.version("adjointdeis") == PROJECT["version"]


def test_the_lock_has_the_hashes_of_the_pinned_versions() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)(.*?)(?=^\S|\Z)", text, re.S | re.M)
    pins, locked = constraints(), {normal(name): version for name, version, _ in entries}
    assert all("--hash=sha256:" in hashes for _, _, hashes in entries)
    direct = required(ALL_EXTRAS) - {"torch"}
    assert direct <= locked.keys(), "run `make lock`"
    assert not [n for n in direct if pins[n] != locked[n]], "run `make lock`"
    # Which build of torch, with or without CUDA, is the user's choice.
    assert not [n for n in locked if n == "torch" or n.startswith(("nvidia-", "cuda-"))]
    assert not re.search(r"https?://|file:|--index|--find", text)


def test_what_builds_elsewhere_names_what_exists() -> None:
    yaml = pytest.importorskip("yaml")
    extras = set(ALL_EXTRAS)
    hosted = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    (install,) = hosted["python"]["install"]
    assert set(install["extra_requirements"]) <= extras
    assert (ROOT / hosted["sphinx"]["configuration"]).is_file()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    supported = {f"3.{minor}" for minor in (11, 12, 13)}
    classified = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: 3." in c}
    for job in ("matrix", "wheel"):
        tested = set(workflow["jobs"][job]["strategy"]["matrix"]["python"])
        assert tested == supported == classified
    text = "".join((ROOT / n).read_text() for n in ("Dockerfile", ".github/workflows/test.yaml"))
    named = {e for group in re.findall(r"\[([a-z0-9,]+)\]\"", text) for e in group.split(",")}
    assert named and named <= extras
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", text)) <= rules
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
