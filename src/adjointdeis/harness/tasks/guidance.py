"""Guidance algorithms on tasks with a known answer: one table, every row reproducible alone.

`python run.py +experiment=guidance` runs every row; `task.only=[task/method]` runs some of them.
"""

import difflib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adjointdeis.evaluation.rates import wilson
from adjointdeis.gradients.large_steps import LargeAdjointStepWarning
from adjointdeis.harness.bench.document import write_tables
from adjointdeis.harness.bench.problem import SHARES, BenchError, Method, Problem, check_kinds
from adjointdeis.harness.provenance import digest, environment, git_revision
from adjointdeis.harness.records import write_record
from adjointdeis.harness.validation import check_node

REPLICATES = 2000


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs the rows that are not recorded yet, then writes ``result.json`` and ``report.md``."""
    directory = Path(cfg.paths.run)
    settings: dict[str, Any] = OmegaConf.to_container(cfg.task, resolve=True)  # type: ignore
    rows = chosen_rows(settings)
    finished = []
    for name, problem_node, method_node in rows:
        problem: Problem = instantiate(problem_node, _convert_="all")
        method: Method = instantiate(method_node, _convert_="all")
        check_kinds(name, problem, method)
        seeds = [
            _one(directory / "rows" / name, problem, method, (problem_node, method_node), seed)
            for seed in settings["seeds"]
        ]
        finished.append({"row": name, "settings": _plain(method_node), **summary(seeds)})
        print(f"{name}: {json.dumps(finished[-1]['quality'])}", flush=True)
    result = {
        "schema": 1,
        "seeds": settings["seeds"],
        "git": git_revision(),
        **environment(),
        "tasks": {name: _plain(node) for name, node in settings["problems"].items()},
        "labels": settings["labels"],
        "rows": finished,
    }
    write_record(directory / "result.json", result)
    write_tables(directory / "report.md", result)
    return result


def chosen_rows(settings: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Names, task nodes and method nodes of the rows to run, all checked before any runs.

    Raises:
        BenchError: a row of ``only`` that does not exist, or a task or method that is not defined.
        ConfigError: a key or value that a task or method cannot have.
    """
    problems, methods = settings["problems"], settings["methods"]
    found = {}
    for task, rows in settings["rows"].items():
        for method, overrides in rows.items():
            base = (overrides or {}).get("method", method)
            for kind, name, known in (("task", task, problems), ("method", base, methods)):
                if name not in known:
                    raise BenchError(f"no {kind} {name!r}; there are {', '.join(sorted(known))}")
            own = {key: value for key, value in (overrides or {}).items() if key != "method"}
            node = {**methods[base], **own}
            check_node(f"task.problems.{task}", problems[task])
            check_node(f"task.rows.{task}.{method}", node)
            found[f"{task}/{method}"] = (f"{task}/{method}", problems[task], node)
    only = settings["only"]
    if only is None:
        return list(found.values())
    wanted = [only] if isinstance(only, str) else list(only)
    missing = [name for name in wanted if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], list(found), n=1, cutoff=0.4)
        task = missing[0].partition("/")[0]
        known = [name for name in found if name.startswith(f"{task}/")] or sorted(problems)
        hint = f"did you mean {close[0]!r}" if close else f"there are {', '.join(known)}"
        raise BenchError(f"no row {missing[0]!r}; {hint}?")
    return [found[name] for name in wanted]


def _one(
    folder: Path, problem: Problem, method: Method, nodes: tuple[dict, dict], seed: int
) -> dict[str, Any]:
    """The record of one seed of a row, read if it is there and made with these settings."""
    path = folder / f"{seed}.json"
    recipe = digest({"problem": nodes[0], "method": nodes[1], "seed": seed})
    try:
        record = json.loads(path.read_text())
        if record["recipe"] == recipe:
            return record
    except (OSError, ValueError, KeyError):
        pass
    torch.manual_seed(seed)
    instance = problem.instance(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LargeAdjointStepWarning)
        outcome = method.run(instance)
    record = {
        "recipe": recipe,
        "quality": {k: [float(v) for v in values] for k, values in outcome.quality.items()},
        "nfe": outcome.cost.nfe,
        "vjps": outcome.cost.vjps,
        "peak_latents": outcome.cost.peak_latents,
        "peak_graphs": outcome.cost.peak_graphs,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "notes": [*outcome.notes, *_warned(caught)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    return record


def _warned(caught: list[warnings.WarningMessage]) -> list[str]:
    large = any(issubclass(w.category, LargeAdjointStepWarning) for w in caught)
    return ["warned: adjoint steps wide enough to flip the sign"] if large else []


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals over the samples of all seeds, and the cost of one seed."""
    quality = {}
    for name in seeds[0]["quality"]:
        values = np.array([v for record in seeds for v in record["quality"][name]])
        quality[name] = interval(values, name in SHARES)
    first = seeds[0]
    return {
        "quality": quality,
        **{key: first[key] for key in ("nfe", "vjps", "peak_latents", "peak_graphs")},
        "seconds": round(float(np.mean([record["seconds"] for record in seeds])), 1),
        "cpu_seconds": round(float(np.mean([record["cpu_seconds"] for record in seeds])), 1),
        "notes": sorted({note for record in seeds for note in record["notes"]}),
    }


def interval(values: np.ndarray, share: bool = False) -> dict[str, Any]:
    """Mean and 95% interval: Wilson for a share, bootstrap over samples otherwise.

    A value that is not a number leaves no mean.
    """
    n, mean = len(values), float(np.mean(values))
    if share:
        low, high = wilson(float(values.sum()), n)
        return {"mean": mean, "lo": low, "hi": high, "n": n, "share": True}
    if not np.isfinite(values).all():
        return {"mean": None, "lo": None, "hi": None, "n": n, "share": False}
    drawn = np.random.default_rng(0).choice(values, (REPLICATES, n)).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": mean, "lo": float(low), "hi": float(high), "n": n, "share": False}


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A node as a table shows it: the class by its own name."""
    return {
        "of" if key == "_target_" else key: (
            _plain(value)
            if isinstance(value, dict)
            else value.rpartition(".")[2]
            if key == "_target_"
            else value
        )
        for key, value in node.items()
    }
