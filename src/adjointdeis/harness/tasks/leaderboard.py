"""The gradient leaderboard: measures every method, keeps what was measured, writes one page.

    python run.py task=leaderboard

``task.cells`` holds one file for each problem and N, with a row a method. What is there is not
measured again, by whatever run: one that was stopped continues, and a new method is measured alone.
``leaderboard.html``, ``leaderboard.md`` and ``result.json`` of the run are made from them.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import adjointdeis
from adjointdeis.files import read_record
from adjointdeis.gradients.catalogue import Entry
from adjointdeis.harness.leaderboard import Measurement, contestants
from adjointdeis.harness.network_problems import terrain_file
from adjointdeis.harness.problem_sets import COMMITTED, Case, cases
from adjointdeis.harness.provenance import digest, environment
from adjointdeis.harness.records import write_record
from adjointdeis.reporting.leaderboard import write_leaderboard
from adjointdeis.reporting.standings import NETWORKS
from adjointdeis.texts import slug

TOLD = (
    "problems", "losses", "each", "steps", "drawn_each", "drawn_steps", "paths", "budgets",
    "network_losses", "network_steps", "limit",
)  # fmt: skip
"""Options of the task that its page repeats."""


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measures and writes the page; see the module."""
    task, entries, todo = check(cfg)
    directory = Path(cfg.paths.run)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(todo, 1):
        rows += _rows(case, task, entries, Path(task["cells"]))
        print(f"{number}/{len(todo)} {case.key}", file=sys.stderr, flush=True)
    facts = {
        "version": adjointdeis.__version__,
        "machine": environment()["machine"],
        "committed": COMMITTED,
        "seeds": sorted({case.seed for case in todo} - {COMMITTED}),
        **{key: task[key] for key in TOLD},
    }
    files = write_leaderboard(rows, facts, directory)
    return {"files": [str(path) for path in files]}


def chosen(names: Sequence[str] | None) -> list[Entry]:
    """Methods by name; all where none is named.

    Raises:
        ValueError: a name that no method has.
    """
    known = contestants()
    unknown = set(() if names is None else names) - set(known)
    if unknown:
        listed = "; ".join(known)
        raise ValueError(f"task.methods: {sorted(unknown)[0]!r} is unknown; there are {listed}")
    picked = [known[name] for name in known if names is None or name in names]
    # Once each: an entry point and an entry of its class may both be named.
    return list({entry.name: entry for entries in picked for entry in entries}.values())


def check(cfg: DictConfig) -> tuple[dict[str, Any], list[Entry], list[Case]]:
    """Settings, methods and cases of a configuration; nothing is measured or written.

    Raises:
        ValueError: An unknown method, the seed of the committed set, or no problem at all.
        FileNotFoundError: the network of a problem is not installed.
    """
    task: Any = OmegaConf.to_container(cfg.task, resolve=True)
    todo = cases(
        task["problems"], task["losses"], task["calculi"], cfg.seed or 0, task["draws"],
        task["each"], task["drawn_each"], task["network_losses"],
    )  # fmt: skip
    todo = [case for case in todo if _steps(case, task)]
    if not todo:
        raise ValueError(
            "task.steps=[] leaves out the committed set and task.draws=0 every drawn one, so that "
            "no problem is left: give task.steps=[20] or task.draws=1"
        )
    if "terrain" in task["problems"]:
        terrain_file()
    return task, chosen(task["methods"]), todo


def _steps(case: Case, task: dict[str, Any]) -> list[int]:
    """Numbers of steps at which a case is measured."""
    if case.family in NETWORKS:
        return task["network_steps"]
    return task["steps" if case.seed == COMMITTED else "drawn_steps"]


def _rows(
    case: Case, task: dict[str, Any], entries: Sequence[Entry], cells: Path
) -> list[dict[str, Any]]:
    """Rows of a case, those of methods that were measured before read from their files."""
    network, drawn = case.family in NETWORKS, case.seed != COMMITTED
    truth_steps = task["truth"]["network" if network else case.calculus]
    if network and case.calculus == "sde":
        truth_steps *= 2
    limit = {"limit": task["limit"]} if network else {}
    made_by = {"version": adjointdeis.__version__, "paths": task["paths"], "truth": truth_steps}
    made_by |= limit
    # Where a function lies in memory is no part of what a method is.
    names = {e.name: digest(made_by | {"is": re.sub(" at 0x\\w+", "", repr(e))}) for e in entries}
    found = []
    # The drawn sets are there for places; spread, bytes and cheats are seen on the committed one.
    measure = Measurement(case, 1 if drawn else task["paths"], truth_steps, not drawn, **limit)
    for count in _steps(case, task):
        path = cells / f"{slug(case.key)}-{count}.json"
        known = _kept(path)
        todo = [e for e in entries if known.get(e.name, {}).get("identity") != names[e.name]]
        if todo:
            for entry, row in zip(todo, measure.rows(count, todo), strict=True):
                known[entry.name] = {"identity": names[entry.name], "row": row, "sum": _sum(row)}
            write_record(path, known)
        found += [row for name in names if (row := known[name]["row"]) is not None]
    return found


def _kept(path: Path) -> dict[str, Any]:
    """What a file holds of every method; nothing of those where it is damaged, or not there.

    Rows of earlier versions have no checksum.
    """
    return {
        name: entry
        for name, entry in (read_record(path) or {}).items()
        if isinstance(entry, dict)
        and isinstance(row := entry.get("row"), dict | None)
        and entry.get("sum", _sum(row)) == _sum(row)
    }


def _sum(row: dict[str, Any] | None) -> str:
    return digest({"row": row})
