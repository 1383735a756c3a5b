"""Fifty random SIGKILLs over the tasks: every run ends as an undisturbed one, byte by byte."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_directories import contents, plain
from tiny_profile import ROOT, overrides

from adjointdeis.harness.tasks.verify import check_run, run_directories

DRIVER = ROOT / "tests" / "killed.py"


def rows(tiny: Path, root: Path, *kept: str) -> list[str]:
    """Three pairs in batches of two, by some rows of table 1."""
    return overrides(tiny, root / "run", root=root, rows=kept)


def quickstart(tiny: Path, root: Path) -> dict:
    """The quickstart's four rows, drawn faces: a landmark morph, DiM, two guided ones."""
    lines = [x for x in rows(tiny, root, "dim_a") if not x.startswith(("+experiment", "~rows"))]
    few = [f"rows.{row}.encoding_steps=10" for row in ("adjoint_deis_sde", "exact_fast")]
    few += ["rows.adjoint_deis_sde.sampling_steps=4", "rows.adjoint_deis_sde.optimizer.lr=1e-9"]
    return {"arguments": ["+experiment=quickstart", *lines, *few, "rows.opencv.points=tem"]}


def sweep(tiny: Path, root: Path) -> dict:
    """Two seeds of one row, each in a folder of its own."""
    lines = [x for x in rows(tiny, root, "dim_a") if not x.startswith("paths.run=")]
    folder = f"hydra.sweep.dir={root}/sweep"
    return {"arguments": [*lines, "seed=0,1", folder], "multirun": True}


def tuned(tiny: Path, root: Path) -> dict:
    """Eight updates of weights, a checkpoint after each."""
    return {
        "arguments": [
            "task=fine_tuning", "~task.problem.steps", "~task.problem.raise_by",
            "task.problem._target_=fine_tuned_toy.Toy", "task.steps=8", "task.checkpoint_every=1",
            "task.optimizer.lr=0.05", "logger=none", f"paths.run={root}/run", f"paths.root={root}",
        ]
    }  # fmt: skip


def photographs(tiny: Path, root: Path) -> dict:
    """Drawn people as if downloaded: folds, two trainings, pairs, morphs, judges."""
    drawn = tiny.parent / "drawn"
    if not drawn.exists():
        draw_set(drawn)
    network = {
        "image_size": 16, "patch_size": 4, "model_channels": 8, "channel_mult": "[1,2]",
        "encoder_channel_mult": "[1,2]", "attention_resolutions": "[2]", "embed_channels": 16,
        "code_channels": 16,
    }  # fmt: skip
    gone = ("webmorph", "opencv", "fast_dim", "exact_10", "adjoint_deis_10")
    return {
        "arguments": [
            "+experiment=frll/quick", f"paths.root={root}", f"paths.run={root}/run",
            f"data.root={drawn}/set", f"task.faces={drawn}/faces", "judges=none", "logger=none",
            f"assets.root={tiny}/profile", "task.selectors=[arcface.safetensors]",
            "assets.identity=[guide.safetensors]", "assets.recognisers=[adaface.safetensors]",
            "task.folds=2", "task.pairs_per_group=1", "task.training.initial=null",
            "task.training.steps=4", "task.training.checkpoint_every=1",
            "task.training.batch_size=4", "task.training.warmup=1",
            "task.training.quality_faces=0", "protocol.fmr=[0.02]", "protocol.replicates=0",
            "optimisation.steps=2", "rows.dim_a.sampling_steps=4",
            *(f"~rows.{row}" for row in gone),
            *(f"rows.{row}.encoding_steps=10" for row in ("dim_a", "exact_5")),
            *(f"++task.training.network.{key}={value}" for key, value in network.items()),
        ]
    }  # fmt: skip


def draw_set(drawn: Path) -> None:
    """`set/` as downloaded and `faces/` aligned, of twelve drawn people."""
    from tiny_profile import draw_face, write_landmarks

    from adjointdeis.faces.image_io import write_image

    rows = ["face_id,face_age,face_gender,face_eth"]
    for k in range(12):
        for capture in ("03", "08"):
            for folder in ("set", "faces"):
                face = draw_face(k, capture == "08")
                write_image(drawn / folder / f"{k + 1:03d}_{capture}.png", face)
        rows.append(f"{k + 1:03d},30,{('female', 'male')[k // 6]},north")
    write_landmarks(drawn / "faces")
    (drawn / "set" / "london_faces_info.csv").write_text("\n".join(rows) + "\n")


def leaderboard(tiny: Path, root: Path) -> dict:
    """Three methods on one problem; what is measured lies in `data/leaderboard`."""
    return {
        "arguments": [
            "task=leaderboard", "task.problems=[gaussian]", "task.steps=[4,5]", "task.each=2",
            "task.drawn_steps=[5]", "task.losses=[distance]", f"paths.root={root}",
            "task.truth={ode: 40, sde: 40, network: 4}", f"paths.run={root}/run",
            "task.methods=[Backprop,DiscreteAdjoint,SymplecticAdjoint]", "logger=none",
        ]
    }  # fmt: skip


def drive(environ: dict, plan: dict, moments: list) -> tuple[list[int], float]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), json.dumps({**plan, "moments": moments})],
        env=environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=2900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["statuses"][-1] == 0, done.stderr[-3000:]
    return found["statuses"], found["cpu"]


def result_of(root: Path) -> dict[str, object]:
    """Everything that the runs below a folder left, and the caches beside them."""
    found: dict[str, object] = {}
    for run in run_directories(root):
        assert check_run(run) == []
        found |= {f"{run.relative_to(root)}/{name}": v for name, v in contents(run).items()}
    for path in (root / "data").rglob("*.*"):
        cell = path.suffix == ".json"
        value = plain(json.loads(path.read_text())) if cell else path.read_bytes()
        found[str(path.relative_to(root))] = value
    return found


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize(
    ("task", "kills"),
    [(quickstart, 15), (sweep, 10), (tuned, 8), (leaderboard, 7), (photographs, 10)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_killed_at_random(
    tiny, tmp_path, environ, task: Callable[[Path, Path], dict], kills: int
) -> None:
    _, cpu = drive(environ, task(tiny, tmp_path / "calm"), [])
    expected = result_of(tmp_path / "calm")
    draw = np.random.default_rng([17, *task.__name__.encode()])
    struck = runs = 0
    while struck < kills:
        root = tmp_path / f"killed{runs}"
        moments = [[float(draw.uniform(0, cpu)), "cpu"] for _ in range(min(8, kills - struck))]
        statuses, _ = drive(environ, task(tiny, root), moments)
        struck, runs = struck + statuses.count(-signal.SIGKILL), runs + 1
        print(task.__name__, "killed after", moments, "ended by", statuses, flush=True)
        found = result_of(root)
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            assert found[name] == value, name
    print(f"{task.__name__}: {struck} kills in {runs} runs of {cpu:.1f} s each, no byte differs")
