"""Every method has a page, every snippet on it runs, and every test that it names exists."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from adjointdeis import TimeGrid, VPLinear, gradients
from adjointdeis.diffusion import MixtureDenoiser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "methods").rglob("*.md"))
ABSTRACT = {"GradientMethod", "StepwiseMethod"}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names() -> dict:
    """What the overview page promises the snippets."""
    schedule = VPLinear()
    denoiser = MixtureDenoiser(
        schedule,
        normal(3, 4, seed=0),
        torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64),
        normal(3, 4, 3, seed=1),
        normal(3, seed=2),
    )
    given = {
        "denoiser": denoiser,
        "x_T": normal(2, 4, seed=3).requires_grad_(),
        "z": normal(2, 3, seed=4).requires_grad_(),
        "grid": TimeGrid.uniform_lmbda(schedule, 20),
        "loss": lambda x_0: x_0.square().sum(),
        "objective": lambda x_0: x_0.square().sum(1),
        "sample": __import__("adjointdeis").sample,
    }
    (overview,) = snippets(DOCS / "methods" / "index.md")
    exec(compile(overview, "index.md", "exec"), given)
    return given


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path) -> None:
    for snippet in snippets(page):
        for package in ("torchdiffeq", "torchsde"):
            if package in page.read_text():
                pytest.importorskip(package)
        given = names()
        exec(compile(snippet, str(page), "exec"), given)
        if page.parent.name == "gradients":
            assert given["z"].grad is not None and bool(given["z"].grad.isfinite().all())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_tests_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).is_file()]
    if page.name != "index.md":
        assert named


def test_every_gradient_method_has_a_page() -> None:
    methods = {
        name
        for name in gradients.__all__
        if isinstance(getattr(gradients, name), type)
        and issubclass(getattr(gradients, name), gradients.GradientMethod)
    }
    titles = {
        page.read_text().splitlines()[0].removeprefix("# ")
        for page in (DOCS / "methods" / "gradients").glob("*.md")
    }
    assert methods - ABSTRACT == titles


def test_every_guidance_algorithm_has_a_page() -> None:
    modules = {
        path.stem
        for path in (ROOT / "src" / "adjointdeis" / "guidance").glob("*.py")
        if path.stem not in {"__init__", "catalogue", "per_sample", "problem"}
    }
    # Two share the page of what they are a form of.
    modules -= {"fine_tuning", "implicit_langevin"}
    assert modules == {page.stem for page in (DOCS / "methods" / "guidance").glob("*.md")}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.S):
            listed |= {
                (page.parent / line.strip()).resolve()
                for line in block.splitlines()
                if line.strip() and not line.startswith(":")
            }
    pages = {p.resolve().with_suffix("") for p in [*DOCS.rglob("*.md"), *DOCS.glob("*.ipynb")]}
    made = {"_build", "reference", "pages", "jupyter_execute"}
    built = {p for p in pages if made & set(p.relative_to(DOCS).parts)}
    assert pages - built - listed == {(DOCS / "index").resolve()}


def moved_pages() -> dict:
    """What docs/conf.py says about the pages that live elsewhere."""
    return runpy.run_path(str(DOCS / "conf.py"))


def test_pages_that_live_elsewhere_come_into_the_site_with_their_links(tmp_path) -> None:
    conf = moved_pages()
    names = set(conf["ELSEWHERE"].values())
    studies = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("experiments/*/README.md")}
    assert len(studies) > 20 and studies < names
    page, copy = (
        ROOT / "experiments" / "table4" / "README.md",
        conf["PAGES"] / "experiments/table4/README.md",
    )

    def link(text: str, target: str) -> str:
        return conf["moved"](text, target, page, copy)

    assert link("a", "../table1/README.md#cost") == "[a](../table1/README.md#cost)"
    assert link("a", "../../docs/choosing.md") == "[a](../../../choosing.md)"
    assert link("a", "../../README.md") == "[a](../../../index.md)"
    assert link("a", "../../conf/config.yaml") == "[a](../../../../conf/config.yaml)"
    assert link("a", "../../CHANGELOG.md") == "[a](../../CHANGELOG.md)"
    assert link("a", "../../src") == "a"
    assert link("a", "https://arxiv.org") == "[a](https://arxiv.org)"


def test_the_numbers_of_the_front_page_are_those_of_the_pages_it_names() -> None:
    text = (DOCS / "index.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == 7
    for row in rows:
        study = re.search(r"\(pages/(experiments/\w+/README\.md)\)", row)[1]
        page = (ROOT / study).read_text()
        numbers = re.findall(r"\*\*(.+?)\*\*", row)
        assert numbers and not [n for n in numbers if n not in page], row


def test_the_page_on_score_files_runs(tmp_path, monkeypatch, capsys) -> None:
    from adjointdeis.evaluation.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(DOCS / "data", tmp_path / "data")
    text = (DOCS / "evaluation.md").read_text()
    commands = re.search(r"```bash\n(.*?)```", text, re.S)[1].splitlines()
    assert len(commands) == 10
    for command in commands:
        words = command.partition("#")[0].split()
        assert words.pop(0) == "adjointdeis-eval"
        assert main(words) == 0, command
    capsys.readouterr()
    exec(snippets(DOCS / "evaluation.md")[0], {})
    # Two attacks, three recognisers, one probe policy.
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert (tmp_path / "report" / "plots" / "det.svg").is_file()
    assert (tmp_path / "report" / "tables" / "by-sex.tex").is_file()
