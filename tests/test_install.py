"""What is installed: the core with torch and numpy alone, extras by name, a wheel that works."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from adjointdeis import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Run first in a process: whatever is not of these distributions, or of what they need, is absent.
ONLY = """
import re, sys
from importlib import metadata

def needed(names):
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        # Requirements of extras are not brought along.
        todo += [re.match(r"[\\w.-]+", r)[0] for r in requirements if "extra ==" not in r]
    return found

kept = needed(sys.argv.pop(1).split(","))
own = {"adjointdeis", "synthetic_faces"}
absent = {
    module
    for module, owners in metadata.packages_distributions().items()
    if module not in own
    and not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & kept
}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""

GRADIENT = """
import torch
from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.solvers import DDIM

network = torch.nn.Linear(3, 3)
grid = TimeGrid.uniform_lmbda(VPLinear(), steps=3)
x_T = torch.randn(2, 3, requires_grad=True)
z = torch.zeros(1, requires_grad=True)
rollout = sample(lambda x, t, z: network(x) + z, x_T, z, solver=DDIM(), grid=grid,
                 gradient=DiscreteAdjoint(), parameters=network.parameters())
rollout.x_0.square().sum().backward()
assert x_T.grad.abs().sum() > 0 and z.grad.abs() > 0 and network.weight.grad.abs().sum() > 0
"""

WALK = """
import importlib, pkgutil
for room in {rooms!r}:
    package = importlib.import_module("adjointdeis." + room)
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
        if module.name not in {but!r}:
            importlib.import_module(module.name)
"""


def alone(distributions: str, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code in a process where only some distributions and their requirements exist."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ONLY + textwrap.dedent(code),
         distributions, *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_core_needs_torch_and_numpy_only() -> None:
    names = [re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]]
    assert names == ["torch", "numpy"]
    core = ("diffusion", "solvers", "gradients", "guidance", "rollout", "extras", "files")
    done = alone("torch,numpy", GRADIENT + WALK.format(rooms=core, but=()))
    assert done.returncode == 0, done.stderr
    # The process is as bare as it claims to be.
    assert alone("torch,numpy", "import scipy").returncode != 0
    assert alone("torch,numpy", "import hydra").returncode != 0


def test_evaluation_needs_numpy_and_scipy_only() -> None:
    no_torch = "import sys; assert 'torch' not in sys.modules"
    done = alone("numpy,scipy", WALK.format(rooms=("evaluation",), but=()) + no_torch)
    assert done.returncode == 0, done.stderr
    program = "from adjointdeis.__main__ import evaluation; evaluation()"
    shown = alone("numpy,scipy", program, "--help")
    assert shown.returncode == 0 and "threshold" in shown.stdout
    assert alone("numpy,scipy", "import torch").returncode != 0


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from adjointdeis.__main__ import main; main()", "experiments"),
        ("from adjointdeis.__main__ import evaluation; evaluation()", "evaluation"),
        ("import adjointdeis.morphing.attack", "faces"),
        ("import adjointdeis.faces.image_io", "faces"),
        ("import adjointdeis.reporting", "experiments"),
        ("from adjointdeis.faces.dlib_models import import_dlib; import_dlib()", "faces"),
        ("from adjointdeis.extras import load; load('onnxruntime', 'recognisers')", "insightface"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(code: str, extra: str) -> None:
    done = alone("torch,numpy", code)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(rf"need .* missing: pip install 'adjointdeis\[{extra}\]'$", line)
    if "__main__" in code:
        assert done.stderr.count("\n") == 1


def test_every_extra_names_its_modules() -> None:
    stated = PROJECT["optional-dependencies"]
    tools = {"all", "docs", "dev", "launchers"}  # nothing of the package imports their modules
    assert set(stated) - tools == set(extras.EXTRAS)
    owners = metadata.packages_distributions()
    for extra, modules in extras.EXTRAS.items():
        listed = {re.match(r"[\w.-]+", line)[0].lower() for line in stated[extra]}
        listed.discard("adjointdeis")
        for module in modules:
            if module in owners:
                assert {owner.lower().replace("_", "-") for owner in owners[module]} & listed
        assert len(modules) == len(listed)
        brought = [re.search(r"\[(.+)\]", line)[1] for line in stated[extra] if "[" in line]
        assert set(brought) <= set(extras.INCLUDED.get(extra, ()))
    everything = re.search(r"\[(.+)\]", stated["all"][0])[1].split(",")
    assert set(everything) | {"evaluation", "faces"} == set(stated) - {"all", "docs", "dev"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as a stranger would build it."""
    build = pytest.importorskip("hatchling.build")
    folder, here = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder))
    finally:
        os.chdir(here)


def test_the_wheel_holds_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        stated = archive.read(f"adjointdeis-{PROJECT['version']}.dist-info/METADATA").decode()
    conf = {p.relative_to(ROOT).as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    assert {f"adjointdeis/{name}" for name in conf} <= names
    sources = {
        p.relative_to(ROOT / "src").as_posix()
        for package in ("adjointdeis", "synthetic_faces")
        for p in (ROOT / "src" / package).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert sources <= names
    assert {"adjointdeis/py.typed", "synthetic_faces/py.typed"} <= names
    strange = {name.split("/")[0] for name in names} - {"adjointdeis", "synthetic_faces"}
    assert strange == {f"adjointdeis-{PROJECT['version']}.dist-info"}
    plain = [line for line in re.findall(r"^Requires-Dist: (.+)$", stated, re.M) if ";" not in line]
    assert sorted(re.match(r"[\w.-]+", line)[0] for line in plain) == ["numpy", "torch"]


def test_the_installed_program_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    work.mkdir()
    # Somebody else's repository, around the installed package and around the work.
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "site"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    environ = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "adjointdeis", *arguments],
            cwd=work, env=environ, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    shown = run("+experiment=quickstart", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "dim_a" in shown.stdout
    wrong = run("+experiment=quickstrat")
    assert wrong.returncode == 1 and "did you mean 'quickstart'" in wrong.stderr
    told = subprocess.run(
        [sys.executable, "-c", "from adjointdeis.harness import provenance as p; "
         "print(p.__file__, p.git_revision())"],
        cwd=work, env=environ, capture_output=True, text=True,
    )  # fmt: skip
    place, revision = told.stdout.split()
    assert Path(place).is_relative_to(site) and revision == "None", told.stderr
