"""Guidance algorithms on tasks with a known answer: one table, every row reproducible alone.

python -m experiments.guidance.run                               every row; a stopped run continues
python -m experiments.guidance.run only=mixture_16d/exact        one row
python -m experiments.guidance.run only=[inpainting/exact,inpainting/freedom] out=outputs/other
python -m experiments.guidance.run rows.mixture_2d.exact.steps=10     every key of rows.yaml

Writes result.json and report.md into ``out``.
"""

import difflib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from adjointdeis.evaluation.rates import wilson
from adjointdeis.gradients.large_steps import LargeAdjointStepWarning
from adjointdeis.guidance.problem import Algorithm
from adjointdeis.harness.provenance import digest, environment, git_revision
from adjointdeis.harness.records import write_record
from adjointdeis.harness.validation import check_node
from experiments.guidance.tables import write_tables

HERE = Path(__file__).parent
REPLICATES = 2000
SHARES = ("match", "robust", "smiles")
"""Measures whose values are 0 or 1: their mean is a share and gets a Wilson interval."""


class RowError(ValueError):
    """A row that cannot be run."""


def settings(overrides: list[str]) -> dict[str, Any]:
    """rows.yaml with the overrides ``key=value`` of a command line.

    Raises:
        RowError: a key that rows.yaml does not have at its top level.
    """
    base = OmegaConf.load(HERE / "rows.yaml")
    own = OmegaConf.from_dotlist(overrides)
    for key in own:
        if key not in base:
            close = difflib.get_close_matches(str(key), [str(k) for k in base], n=1)
            hint = (
                f"did you mean {close[0]!r}" if close else f"there are {', '.join(map(str, base))}"
            )
            raise RowError(f"no key {key!r}; {hint}?")
    return OmegaConf.to_container(OmegaConf.merge(base, own), resolve=True)  # type: ignore


def run(chosen: dict[str, Any]) -> dict[str, Any]:
    """Runs the rows that are not recorded yet, then writes ``result.json`` and ``report.md``."""
    directory = Path(chosen["out"])
    finished = []
    for name, problem_node, method_node in chosen_rows(chosen):
        seeds = [
            _one(directory / "rows" / name, name, problem_node, method_node, seed)
            for seed in chosen["seeds"]
        ]
        finished.append({"row": name, "settings": _plain(method_node), **summary(seeds)})
        print(f"{name}: {json.dumps(finished[-1]['quality'])}", flush=True)
    result = {
        "schema": 1,
        "seeds": chosen["seeds"],
        "git": git_revision(),
        **environment(),
        "tasks": {name: _plain(node) for name, node in chosen["problems"].items()},
        "labels": chosen["labels"],
        "rows": finished,
    }
    write_record(directory / "result.json", result)
    write_tables(directory / "report.md", result)
    return result


def chosen_rows(chosen: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Names, problem nodes and algorithm nodes of the rows to run, all checked before any runs.

    Raises:
        RowError: a row of ``only`` that does not exist, or a problem or method that is not defined.
        ConfigError: a key or value that a problem or method cannot have.
    """
    problems, methods = chosen["problems"], chosen["methods"]
    found = {}
    for task, rows in chosen["rows"].items():
        for method, overrides in rows.items():
            base = (overrides or {}).get("method", method)
            for kind, name, known in (("problem", task, problems), ("method", base, methods)):
                if name not in known:
                    raise RowError(f"no {kind} {name!r}; there are {', '.join(sorted(known))}")
            own = {key: value for key, value in (overrides or {}).items() if key != "method"}
            node = merged(methods[base], own)
            check_node(f"problems.{task}", problems[task])
            check_node(f"rows.{task}.{method}", node)
            found[f"{task}/{method}"] = (f"{task}/{method}", problems[task], node)
    only = chosen["only"]
    if only is None:
        return list(found.values())
    wanted = [only] if isinstance(only, str) else list(only)
    missing = [name for name in wanted if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], list(found), n=1, cutoff=0.4)
        task = missing[0].partition("/")[0]
        known = [name for name in found if name.startswith(f"{task}/")] or sorted(problems)
        hint = f"did you mean {close[0]!r}" if close else f"there are {', '.join(known)}"
        raise RowError(f"no row {missing[0]!r}; {hint}?")
    return [found[name] for name in wanted]


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A node with the keys of another; an object that names its class replaces the old one."""
    result = dict(base)
    for key, value in own.items():
        partly = isinstance(value, dict) and "_target_" not in value
        inner = result.get(key)
        result[key] = merged(inner, value) if partly and isinstance(inner, dict) else value
    return result


def _one(
    folder: Path, name: str, problem_node: dict, method_node: dict, seed: int
) -> dict[str, Any]:
    """The record of one seed of a row, read if it is there and made with these settings."""
    path = folder / f"{seed}.json"
    recipe = digest({"problem": problem_node, "method": method_node, "seed": seed})
    try:
        record = json.loads(path.read_text())
        if record["recipe"] == recipe:
            return record
    except (OSError, ValueError, KeyError):
        pass
    torch.manual_seed(seed)
    algorithm: Algorithm = instantiate(method_node, _convert_="all")
    instance = instantiate(problem_node, _convert_="all").instance(seed)
    if not isinstance(instance.problem, algorithm.solves):
        raise RowError(
            f"{name}: {type(algorithm).__name__} solves a {algorithm.solves.__name__}, not a "
            f"{type(instance.problem).__name__}"
        )
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LargeAdjointStepWarning)
        outcome = algorithm.solve(instance.problem)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    quality = instance.quality(outcome)
    notes = [f"sample {k} {text}" for k, text in outcome.failed.items()]
    if outcome.loss_gradients:
        notes.append(f"{outcome.loss_gradients} gradients of the loss alone")
    record = {
        "recipe": recipe,
        "quality": {k: [float(v) for v in values] for k, values in quality.items()},
        "nfe": outcome.cost.nfe,
        "vjps": outcome.cost.vjps,
        "peak_latents": outcome.cost.peak_latents,
        "peak_graphs": outcome.cost.peak_graphs,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "notes": [*notes, *_warned(caught)],
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


if __name__ == "__main__":
    try:
        run(settings(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
