"""Two processes of one run: uneven work, and one that dies, hangs or is asked to stop."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_directories import assert_same, plain
from tiny_profile import PAIRS, command_line, composed, overrides

from adjointdeis.harness.launch import launch

FIVE = (*PAIRS, "002_004", "001_004")
TWO = "trainer=ddp_sim"
ALONE = "optimisation.batch_size=1"  # the same batches on any number of processes: the same bytes


def guided(tiny: Path, run: Path, *more: str, rows: tuple[str, ...] = ("exact",)) -> list[str]:
    """One row or two, of gradients; the caches are the run's own."""
    plainest = ("optimisation.measure_gradient=false", "logger=none")
    own = (*plainest, ALONE, *more)
    return overrides(tiny, run, *own, root=run.parent, rows=rows, replicates=0)


# Uneven work


@pytest.fixture(scope="module")
def five(tiny, tmp_path_factory) -> Path:
    """A list of five pairs: shares of three and of two."""
    path = tmp_path_factory.mktemp("five") / "pairs.csv"
    path.write_text("".join(f"{p[:3]}_03.png,{p[4:]}_03.png,{p}.png\n" for p in FIVE))
    return path


@pytest.fixture(scope="module")
def similarities(tiny, five, tmp_path_factory) -> list[float]:
    """Of every pair's first iterate, the smaller similarity to its sources; in ascending order."""
    run = tmp_path_factory.mktemp("first") / "run"
    launch(composed(guided(tiny, run, f"data.pairs={five}", "optimisation.steps=0")))
    found = records(run, "exact").values()
    return sorted(1 - max(r["distance_a"], r["distance_b"]) for r in found)


def records(run: Path, row: str) -> dict[str, dict]:
    """Records by pair, without times, and without the command that names the folder."""
    read = {p.stem: plain(json.loads(p.read_text())) for p in run.glob(f"morphs/{row}/*.json")}
    return {
        pair: {key: value for key, value in record.items() if key != "reproduce"}
        for pair, record in read.items()
    }


def test_pairs_that_end_otherwise_in_one_process_only(
    tiny, five, similarities, tmp_path, program, quiet_report
) -> None:
    least, *_, second, most = similarities
    lines = [
        f"data.pairs={five}",
        # The most similar pair stops at its first iterate; the others make every step.
        f"rows.exact.stop_similarity={(second + most) / 2}",
        # The least similar pair makes a step, after which nothing is finite; the others stop.
        f"rows.adjoint_deis_ode.stop_similarity={(least + similarities[1]) / 2}",
    ]
    rows = ("exact", "adjoint_deis_ode")
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"

    def arguments(run: Path, *more: str) -> list[str]:
        given = guided(tiny, run, *lines, *more, rows=rows)
        return [*given, "rows.adjoint_deis_ode.optimizer.lr=1e38"]

    launch(composed(arguments(one)))
    done = program(arguments(two, TWO), timeout=400, plots=False)
    assert done.returncode == 0, done.stderr[-3000:]

    exact, failing = (records(two, row) for row in rows)
    (stopped,) = [pair for pair in FIVE if exact[pair]["stopped_at"] == 0]
    assert not any(record["failed"] for record in exact.values())
    vjps = {pair: exact[pair]["nfe"]["vjps"] for pair in FIVE}
    assert all(vjps[stopped] < vjps[pair] for pair in set(FIVE) - {stopped})
    (sick,) = [pair for pair in FIVE if failing[pair]["failed"]]
    assert failing[sick]["failed"].startswith("step ")
    assert f"pair {sick} stopped at" in done.stderr
    assert not (two / "morphs" / "adjoint_deis_ode" / f"{sick}.png").exists()
    for row in rows:
        alone, together = records(one, row), records(two, row)
        assert sorted(alone) == sorted(together) == sorted(FIVE)
        for pair in FIVE:
            # As text, since a loss that is not a number is not equal to itself.
            assert json.dumps(alone[pair]) == json.dumps(together[pair]), pair
    pictures = [sorted(run.glob("morphs/*/*.png")) for run in (one, two)]
    assert len(pictures[0]) == len(pictures[1]) == 2 * len(FIVE) - 1
    for a, b in zip(*pictures, strict=True):
        assert a.relative_to(one) == b.relative_to(two) and a.read_bytes() == b.read_bytes()
    results = [plain(json.loads((run / "result.json").read_text())) for run in (one, two)]
    assert json.dumps(results[0]["rows"]) == json.dumps(results[1]["rows"])


# One of two processes ends


class TwoProcesses:
    """A run of two processes under way: its first one, and the one that Lightning started."""

    def __init__(self, lines: list[str], cwd: Path, environ: dict[str, str]) -> None:
        self.errors = cwd / "stderr.txt"
        with self.errors.open("w") as errors:
            self.first = subprocess.Popen(
                command_line(lines),
                cwd=cwd,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.second = 0

    def wait_for(self, found: Callable[[], object]) -> None:
        deadline = time.time() + 1200
        while not found():
            assert self.first.poll() is None and time.time() < deadline, self.told()
            time.sleep(0.01)
        children = Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children")
        self.second = int(children.read_text().split()[0])

    def told(self) -> str:
        return self.errors.read_text()

    def second_is_gone(self) -> bool:
        """Whether the second process has ended; one that nobody has asked for counts as ended."""
        try:
            return (
                Path(f"/proc/{self.second}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            )
        except OSError:
            return True


@pytest.fixture
def pair(tiny, tmp_path, environ):
    """Starts forty steps of three pairs on two processes; goes on when a first morph is there."""
    started = []

    def start(*more: str) -> TwoProcesses:
        lines = guided(tiny, tmp_path / "run", "optimisation.steps=40", TWO, *more)
        started.append(TwoProcesses(lines, tmp_path, environ))
        started[0].wait_for(lambda: list(tmp_path.glob("run/morphs/exact/*.json")))
        return started[0]

    yield start
    for each in started:
        if each.first.poll() is None:
            os.killpg(each.first.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory) -> Path:
    """The same on one process, undisturbed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    launch(composed(guided(tiny, run, "optimisation.steps=40")))
    return run


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("victim", ["both", "first", "second", "asked", "asked both", "hanging"])
def test_one_of_two_ends_and_one_process_continues(
    alone, tiny, tmp_path, pair, victim: str
) -> None:
    limit = ["trainer.strategy.timeout.minutes=0.5"] if victim == "hanging" else []
    two = pair(*limit)
    strike = {
        "both": lambda: os.killpg(two.first.pid, signal.SIGKILL),
        "first": lambda: os.kill(two.first.pid, signal.SIGKILL),
        "second": lambda: os.kill(two.second, signal.SIGKILL),
        "asked": lambda: os.kill(two.first.pid, signal.SIGTERM),
        "asked both": lambda: os.killpg(two.first.pid, signal.SIGTERM),
        "hanging": lambda: os.kill(two.second, signal.SIGSTOP),
    }
    struck = time.time()
    strike[victim]()
    code = two.first.wait(timeout=600)
    while not two.second_is_gone():
        assert time.time() < struck + 600, "the second process goes on alone"
        time.sleep(0.05)
    print(f"{victim}: over after {time.time() - struck:.1f} s with {code}")
    if victim in ("both", "first"):
        assert code == -signal.SIGKILL
    elif victim.startswith("asked"):
        assert code == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM; the same command continues {tmp_path / 'run'}" in two.told()
    elif victim == "second":
        assert code in (1, -signal.SIGKILL)
        assert "process 1 of this run was killed by SIGKILL; the others stop" in two.told()
    else:
        assert code in (1, -signal.SIGKILL)
        assert "did not come to the next step within 0:00:30" in two.told()
        assert "the same command continues" in two.told()

    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("run/morphs/exact/*.png")}
    recorded = [p for p in made if p.with_suffix(".json").is_file()]
    assert 0 < len(recorded) < len(PAIRS)
    launch(composed(guided(tiny, tmp_path / "run", "optimisation.steps=40")))
    assert all(p.stat().st_mtime_ns == made[p] for p in recorded), "no morph is made twice"
    assert_same(alone, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_with_nothing_left_to_do_end_well(tiny, tmp_path, environ) -> None:
    run = tmp_path / "run"
    lines = guided(tiny, run, "optimisation.steps=2")
    launch(composed(lines))
    made = {p: p.stat().st_mtime_ns for p in run.glob("morphs/*/*.png")}
    first = json.loads((run / "result.json").read_text())["rows"]
    for name in ("done.json", "result.json"):
        (run / name).unlink()
    again = subprocess.run(
        command_line([*lines, TWO]), cwd=tmp_path, env=environ, capture_output=True, timeout=500
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in run.glob("morphs/*/*.png")} == made and made
    assert json.loads((run / "result.json").read_text())["rows"] == first
