"""Finished runs under a folder, each attack of each as an entry, entries of several seeds as one.

Seeds change the noise, not the pairs: a mean over seeds therefore keeps N, the number of pairs,
and its interval is that of the mean count, not of a pooled N times as many comparisons.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from adjointdeis.evaluation import WORST_CASE, EvaluationError, wilson
from adjointdeis.files import read_json
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.run import EvaluationSetting, Run, condition
from adjointdeis.reporting.schema import RESULT, SCHEMA
from adjointdeis.texts import printable


@dataclass(frozen=True)
class Collection:
    """What was found under a folder.

    Attributes:
        outputs: the folder.
        runs: readable runs, ordered by experiment and path; of two runs of one configuration and
            seed only the later one.
        skipped: (path, reason) of every result that was left out.
    """

    outputs: Path
    runs: tuple[Run, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


@dataclass(frozen=True, eq=False)
class AttackRuns:
    """One attack under one configuration, over the seeds that ran it.

    Attributes:
        attack: its name in `attacks`.
        runs: one per seed.
    """

    attack: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> dict[str, Any]:
        """The attack as the first run states it; settings are the same in all."""
        return self.runs[0].result["attacks"][self.attack]  # type: ignore[return-value]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that the seeds share."""
        return self.first["settings"]

    @property
    def degradation(self) -> str | None:
        """What documents went through before they were judged, in all runs."""
        return self.runs[0].degradation

    @property
    def label(self) -> str:
        """The attack's printed name."""
        return printable(self.first["label"])

    @property
    def config_hash(self) -> str:
        """That of the first run."""
        return str(self.runs[0].result["run"]["config_hash"])

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [run.result["run"]["seed"] for run in self.runs]

    def guided(self, system: str) -> bool:
        """Whether a recogniser guided the attack in some run, which makes it a white box there."""
        return any(run.guided(self.attack, system) for run in self.runs if system in run.systems)

    def number(self, key: str) -> float | None:
        """The mean over seeds of a number of the attack; None where a run lacks it."""
        values = [run.result["attacks"][self.attack].get(key) for run in self.runs]
        return None if any(v is None for v in values) else float(np.mean(values))  # type: ignore[arg-type]

    def counted(self) -> float | None:
        """Mean over seeds of network evaluations and products that ran, per pair."""
        found = [run.result["attacks"][self.attack]["nfe"] for run in self.runs]
        totals = [n["encode"] + n["forward"] + n["vjps"] for n in found if n is not None]
        return float(np.mean(totals)) if len(totals) == len(found) else None

    def conditions(self) -> list[EvaluationSetting]:
        """Conditions that every run has rows for."""
        sets = [
            dict.fromkeys(condition(r) for r in run.result["rows"] if r["attack"] == self.attack)
            for run in self.runs
        ]
        return [c for c in sets[0] if all(c in other for other in sets)]

    def rate(self, system: str, at: EvaluationSetting) -> dict[str, Any] | None:
        """The mean count over seeds as a row: k, n, value, both intervals, values."""
        rows = [run.row(self.attack, system, at) for run in self.runs]
        rows = [row for row in rows if row is not None and row["value"] is not None]
        if not rows or len({row["n"] for row in rows}) != 1:
            return None
        n = rows[0]["n"]
        k = float(np.mean([row["k"] for row in rows]))
        lo, hi = wilson(min(k, n), n, rows[0]["confidence"])
        values = [row["value"] for row in rows]
        ends: dict[str, float | None] = {}
        for end in ("bootstrap_lo", "bootstrap_hi"):
            # Seeds share subjects, so the mean rate is no surer of new ones than each of them.
            own = [row[end] for row in rows]
            ends[end] = None if None in own else float(np.mean(own))
        return {
            **ends,
            "k": int(k) if k.is_integer() else k,
            "n": n,
            "value": k / n,
            "wilson_lo": lo,
            "wilson_hi": hi,
            "values": values,
            "seed_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }


def collect(outputs: Path | str) -> Collection:
    """Reads every `result.json` below a folder, such as `outputs/<experiment>/<hash>/result.json`.

    Results of another schema, unfinished or broken ones are left out and named in `skipped`.

    Args:
        outputs: The folder.

    Raises:
        ReportError: no such folder, or no result in it that can be read.
    """
    outputs = Path(outputs)
    if not outputs.is_dir():
        raise ReportError(f"{outputs}: no such folder; expected one that holds finished runs")
    found: dict[tuple[Any, ...], Run] = {}
    skipped: list[tuple[Path, str]] = []
    for path in sorted(outputs.rglob(RESULT)):
        try:
            run = Run.read(path.parent)
            _require_finished(run)
            stated = run.result["run"]
            identity = run.result["experiment"], stated["config_hash"], stated["seed"]
        # A stranger's file may bring about anything; the other runs must be reported all the same.
        except Exception as error:
            skipped.append((path, reason_of(error).removeprefix(f"{path}: ")))
            continue
        other = found.get(identity)
        if other is not None and other.result["created"] == run.result["created"]:
            # A copy, as a logger keeps one; the run directory itself also has the images.
            run = min(other, run, key=lambda r: len(r.directory.parts))
        elif other is not None:
            old, new = sorted((other, run), key=lambda r: r.result["created"])
            skipped.append((old.directory / RESULT, f"run again later in {new.directory.name}"))
            run = new
        found[identity] = run
    if not found:
        why = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ReportError(f"{outputs}: no readable {RESULT} of schema {SCHEMA} below it{why}")
    runs = sorted(found.values(), key=lambda r: (r.result["experiment"], str(r.directory)))
    return Collection(outputs, tuple(runs), tuple(skipped))


def entries(runs: Sequence[Run]) -> list[AttackRuns]:
    """Attacks of runs, those that differ in nothing but the seed grouped into one entry.

    Args:
        runs: Finished runs.
    """
    grouped: dict[str, list[tuple[str, Run]]] = {}
    for run in runs:
        pairs = [pair["pair_id"] for pair in run.result["pairs"]]
        for name, attack in run.result["attacks"].items():
            key = {
                "experiment": run.result["experiment"],
                "profile": run.profile,
                "attack": name,
                "label": attack["label"],
                "settings": attack["settings"],
                "pairs": hashlib.sha256("\n".join(pairs).encode()).hexdigest(),
                "degradation": run.degradation,
                "systems": {
                    s: (v.get("fingerprint"), v.get("alignment"))
                    for s, v in run.result["systems"].items()
                },
                # Of other faces, impostors or files; to the digits that rounding leaves.
                "thresholds": sorted(
                    f"{t.model} {t.impostor_policy} {t.target_fmr:g} {t.value:.5g} {t.data_set}"
                    for t in run.thresholds
                ),
            }
            grouped.setdefault(json.dumps(key, sort_keys=True), []).append((name, run))
    found = []
    for members in grouped.values():
        by_seed = {run.result["run"]["seed"]: run for _, run in members}
        found.append(AttackRuns(members[0][0], tuple(by_seed.values())))
    return [entry for entry in found if entry.attack != WORST_CASE]


def without_broken(
    collection: Collection, write: Callable[[Collection, Path], object]
) -> Collection:
    """The runs that can be reported alone; each of the others is skipped with its reason.

    Args:
        collection: Runs that could be read, some of which a report of all fails at.
        write: Writes the report of a collection into a folder.
    """
    good, skipped = [], list(collection.skipped)
    for run in collection:
        alone = replace(collection, runs=(run,), skipped=())
        with TemporaryDirectory() as folder:
            try:
                write(alone, Path(folder))
            except Exception as error:
                skipped.append((run.directory / RESULT, reason_of(error)))
            else:
                good.append(run)
    return replace(collection, runs=tuple(good), skipped=tuple(skipped))


def reason_of(error: Exception) -> str:
    """Why a run was left out, on one line; what we did not foresee also says its kind."""
    foreseen = isinstance(error, ReportError | EvaluationError | OSError)
    return printable(error if foreseen else f"{type(error).__name__}: {error}")


def _require_finished(run: Run) -> None:
    """Refuses what an unfinished run left, and files that changed since a run was finished.

    A result without the record of its run, copied or fetched from a server, is taken as it is.
    """
    if not (run.directory / "run.json").is_file():
        return
    try:
        done = read_json(run.directory / "done.json", ReportError)
    except ReportError:
        raise ReportError("the run is unfinished; its command continues it") from None
    files = done.get("files") if isinstance(done, dict) else None
    for name, sha256 in files.items() if isinstance(files, dict) else ():
        path = run.directory / name
        if path.parent != run.directory or path.suffix not in (".json", ".csv"):
            continue
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise ReportError(f"{name} is not the file that the run wrote; run its command again")
