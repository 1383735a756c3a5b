"""A package of somebody else's adds a gradient method, a solver, an attack and a judge by name."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from tiny_profile import PAIRS, ROOT, composed, overrides

from adjointdeis.detection import MorphDetector
from adjointdeis.harness.choices import register_plugins
from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.launch import launch
from adjointdeis.harness.validation import ConfigError
from adjointdeis.plugins import plugins

CONF = ROOT / "conf"
THEIRS = '''
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from adjointdeis.faces.recogniser import cosine_similarity
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.morphing.attack import Attack, MorphCost, Morphs
from adjointdeis.solvers import DDIM


@dataclass(frozen=True)
class TheirGradient(DiscreteAdjoint):
    """A gradient method."""


@dataclass(frozen=True)
class TheirSolver(DDIM):
    """A sampler."""


@dataclass(frozen=True, kw_only=True)
class Mean(Attack):
    """The mean of the pixels, to which a shade is added by a resource of their own."""

    weight: float = 0.5
    resources: ClassVar[frozenset[str]] = frozenset({"shade"})

    def begin(self, sources, bench):
        self_, shade = self, bench.resource("shade")

        class Work:
            def finish(self):
                a, b = sources.tensors(bench.device)
                images = (1 - self_.weight) * a + self_.weight * b + shade
                return Morphs(images.clamp(-1, 1), MorphCost())

        return Work()


class Colours:
    """A judge that looks at the mean colour of a few regions."""

    alignment, score_type, metric, white_box = "none", "similarity", "cosine", False
    licence, fingerprint = "MIT", "0" * 64

    def __init__(self, name: str = "colours", regions: int = 4) -> None:
        self.name = self.label = name
        self.regions, self.embedding_dim = regions, 3 * regions * regions

    def embed(self, images):
        side = images.shape[1] // self.regions
        cut = images[:, : side * self.regions, : side * self.regions].astype(np.float32)
        blocks = cut.reshape(len(images), self.regions, side, self.regions, side, 3).mean((2, 4))
        return blocks.reshape(len(images), -1) - 100, np.ones(len(images), bool)

    def compare(self, e1, e2):
        return cosine_similarity(e1, e2)


class Darker:
    """A degradation."""

    def __init__(self, name: str = "darker", by: int = 2) -> None:
        self.name, self.by = name, by

    def __call__(self, images, names):
        return images // self.by


class Greyness:
    """A detector that calls grey images morphs."""

    kind, training, fingerprint = "s_mad", "none", "0" * 64

    def __init__(self, name: str = "greyness") -> None:
        self.name = name

    def score(self, suspects):
        return -suspects.images.std(-1).mean((1, 2))
'''
RESOURCE = """
from adjointdeis.harness.resources import Resource

SHADE = Resource(load=lambda loading: 0.01, identity=lambda shade: {"shade": str(shade)})
"""
POINTS = """
[adjointdeis.gradients]
theirs = their_package.methods:TheirGradient
[adjointdeis.solvers]
theirs = their_package.methods:TheirSolver
[adjointdeis.attacks]
mean = their_package.methods:Mean
[adjointdeis.recognisers]
colours = their_package.methods:Colours
[adjointdeis.resources]
shade = their_package.resource:SHADE
[adjointdeis.degradations]
darker = their_package.methods:Darker
[adjointdeis.detectors]
greyness = their_package.methods:Greyness
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch):
    """Installs the package as pip would: its code, and its metadata beside it."""

    def install(points: str = POINTS, name: str = "their_package") -> None:
        site = tmp_path / f"site-{name}"
        package, info = site / name, site / f"{name}-1.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text("")
        (package / "methods.py").write_text(THEIRS)
        (package / "resource.py").write_text(RESOURCE)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(site)
        plugins.cache_clear()

    monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
    groups = ConfigStore.instance().repo
    for group in ("gradient", "solver", "attack", "judges", "degradation", "detector"):
        groups[group] = dict(groups.get(group, {}))
    yield install
    plugins.cache_clear()
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def test_a_run_is_made_of_what_a_package_adds(
    installed, tiny, tmp_path, quiet_report, capsys
) -> None:
    installed()
    register_plugins(CONF)
    lines = [x for x in overrides(tiny, tmp_path / "run") if not x.startswith(("rows.", "judges"))]
    drop = ("dim_a", "adjoint_deis_ode", "adjoint_deis_sde", "exact")
    lines += [f"rows.{row}=null" for row in drop]
    lines += ["gradient=theirs", "solver=theirs", "guided.sampling_steps=2"]
    lines += ["guided.encoding_steps=3", "+attack@rows.mean=mean", "rows.mean.weight=0.4"]
    lines += ["judges=colours", "judges.colours.regions=5"]
    lines += ["degradation=darker", "degradation.darker.by=3"]
    check_overrides(CONF, lines)
    with pytest.raises(ConfigError, match=r"rows\.mean\.wait.*did you mean 'rows\.mean\.weight'"):
        check_overrides(CONF, [*lines, "rows.mean.wait=1"])
    launch(composed(lines))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["attacks"]["mean"]["settings"]["weight"] == 0.4
    assert result["attacks"]["guided"]["settings"]["gradient"].startswith("TheirGradient")
    assert result["attacks"]["guided"]["settings"]["solver"].startswith("TheirSolver")
    assert result["run"]["degradation"] == "darker"
    assert result["systems"]["colours"]["alignment"] == "none, after darker"
    assert (tmp_path / "run" / "degraded" / "morphs" / "mean" / f"{PAIRS[0]}.png").is_file()
    assert all(attack["failed"] == [] for attack in result["attacks"].values())
    assert len(list((tmp_path / "run" / "morphs" / "mean").glob("*.png"))) == len(PAIRS)


def test_a_detector_of_theirs_is_an_option(installed) -> None:
    installed()
    register_plugins(CONF)
    lines = ["+experiment=detection", "paths.root=.", "+detector@task.detectors.mine=greyness"]
    check_overrides(CONF, lines)
    detector = instantiate(composed(lines).task.detectors.mine)
    assert isinstance(detector, MorphDetector) and detector.name == "greyness"


def test_a_package_that_cannot_be_imported_is_left_out_and_named(installed) -> None:
    installed("[adjointdeis.solvers]\nbroken = their_package.nowhere:Solver\n")
    with pytest.warns(UserWarning, match=r"adjointdeis\.solvers 'broken'.*is left out: Module"):
        assert plugins("solvers") == {}


def test_names_that_are_taken_are_refused(installed) -> None:
    installed("[adjointdeis.solvers]\nddim = their_package.methods:TheirSolver\n")
    with pytest.raises(ConfigError, match=r"'ddim' .* an option of ours, solver=ddim"):
        register_plugins(CONF)
    installed("[adjointdeis.solvers]\nddim = other_package.methods:TheirSolver\n", "other_package")
    with pytest.raises(ValueError, match=r"two packages name a plugin adjointdeis\.solvers 'ddim'"):
        plugins("solvers")
    with pytest.raises(ValueError, match="known are gradients, solvers"):
        plugins("metrics")


def test_an_attack_of_an_unknown_resource_is_told_which_there_are() -> None:
    from adjointdeis.harness.resources import resource

    with pytest.raises(ValueError, match=r"'gan', which is no resource; known are .*autoencoder"):
        resource("gan")


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("../../x", None, "its name is not one of letters, digits and - _ . +"),
        ("", None, "its name is not one of letters, digits and - _ . +"),
        ("a\x1b[2J", None, r"'a\x1b[2J' (m:x) is left out"),
        ("exits", SystemExit("bye"), "left out: SystemExit: bye"),
        ("escapes", ValueError("x\x1b[2J\nforged"), r"ValueError: x\x1b[2J\nforged"),
    ],
)
def test_a_hostile_plugin_is_left_out_in_one_line(monkeypatch, name, fault, told) -> None:
    def load() -> type:
        if fault is not None:
            raise fault
        return dict

    point = SimpleNamespace(name=name, value="m:x", load=load)
    monkeypatch.setattr("adjointdeis.plugins.entry_points", lambda group: [point])
    plugins.cache_clear()
    try:
        with pytest.warns(UserWarning) as caught:
            assert plugins("gradients") == {}
    finally:
        plugins.cache_clear()
    (said,) = (str(each.message) for each in caught)
    assert told in said and said.isprintable()
