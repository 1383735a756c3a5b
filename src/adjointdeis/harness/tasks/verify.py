"""Checks finished runs from end to end, and says what is damaged. Nothing in them is changed.

python run.py task=verify task.run=outputs/quickstart

A run directory may be a stranger's. Everything in it is data: regular files only, none larger than
a limit, no link out of the directory, no pickle, and what cannot be read is a line like any other.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from adjointdeis.evaluation import EvaluationError, evaluate
from adjointdeis.evaluation.provenance import read_provenance
from adjointdeis.faces.array_cache import DAMAGED, SUFFIX, read_entry
from adjointdeis.faces.weights import fingerprint
from adjointdeis.files import read_json, read_text
from adjointdeis.harness.finished import MARKER, inside, outputs
from adjointdeis.harness.provenance import config_hash
from adjointdeis.harness.records import KEYS
from adjointdeis.images import ImageError, open_rgb
from adjointdeis.reporting import ReportError
from adjointdeis.reporting.run import Run, condition
from adjointdeis.texts import printable


def run(cfg: DictConfig) -> dict[str, Any]:
    """Checks every run below `task.run`, and the encodings that runs share.

    One line is printed for each damaged file, or for a run that is whole.

    Raises:
        ValueError: No run is named, or there is none.
        SystemExit: A file is damaged; the exit code is 1.
    """
    if not cfg.task.run:
        raise ValueError("task.run: name a run directory, such as task.run=outputs/quickstart")
    own = Path(cfg.paths.run).resolve()
    directories = [d for d in run_directories(Path(cfg.task.run)) if d.resolve() != own]
    damaged = 0
    for directory in directories:
        faults = check_run(directory)
        for fault in faults:
            print(fault)
        damaged += bool(faults)
        if not faults:
            print(printable(f"{directory}: whole"))
    faults = list(_caches(Path(cfg.paths.data) / "encodings"))
    for fault in faults:
        print(fault)
    if damaged or faults:
        sys.stdout.flush()
        cache = f", {len(faults)} entries of the cache" if faults else ""
        sys.exit(f"error: {damaged} of {len(directories)} runs are damaged{cache}, see above")
    return {"runs": [str(directory) for directory in directories]}


LARGEST = 4 * 2**30
"""Bytes of the largest file whose checksum is made."""
_NODES = 100_000  # of a configuration; aliases of YAML make few bytes into many nodes
_AGAIN = "run its command again"
_OF_A_RUN = ("run.json", "config.yaml", MARKER, "result.json")
_WANDB = b":W&B"


@dataclass(frozen=True)
class Fault:
    """One damaged file.

    Attributes:
        path: The file.
        reason: What is wrong with it.
        remedy: What to do.
    """

    path: Path
    reason: str
    remedy: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}; {self.remedy}")


def run_directories(folder: Path) -> list[Path]:
    """Run directories in a folder, which may be one itself; links are not followed.

    Raises:
        ValueError: No such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a run directory, or one of several")
    found = {path.parent for name in _OF_A_RUN for path in folder.rglob(name)}
    inner = {path for path in found if path.name == "files" and path.parent.parent.name == "wandb"}
    if not found - inner:
        raise ValueError(f"{folder}: no run directory (with run.json) in it or below it")
    return sorted(found - inner)


def check_run(directory: Path) -> list[Fault]:
    """Every fault of a run directory, in the order of its parts.

    Compared are: the configuration and its hash; every file with the SHA-256 that ``done.json``
    keeps of it; every morph with its record, its provenance and the sources; the rates with the
    scores they were counted from; caches with their checksums; files of Weights & Biases.
    """
    faults = [*_configuration(directory), *_listed(directory), *_morphs(directory)]
    faults += [*_result(directory), *_caches(directory / "cache"), *_wandb(directory)]
    named: dict[Path, Fault] = {}
    for fault in faults:
        named.setdefault(fault.path, fault)  # the first reason is the one to mend
    return list(named.values())


def _json(path: Path, remedy: str) -> tuple[dict[str, Any], list[Fault]]:
    """A JSON object, or none and why."""
    try:
        found = read_json(path)
    except ValueError as error:
        return {}, [Fault(path, _reason(error, path), remedy)]
    if not isinstance(found, dict):
        return {}, [Fault(path, "not a JSON object", remedy)]
    return found, []


def _reason(error: Exception, path: Path) -> str:
    text = str(error) or type(error).__name__
    return text.removeprefix(f"{path}:").strip().partition("\n")[0]


def _configuration(directory: Path) -> Iterator[Fault]:
    record, faults = _json(directory / "run.json", _AGAIN)
    yield from faults
    path = directory / "config.yaml"
    try:
        plain = yaml.load(read_text(path, largest=2**20), yaml.CSafeLoader)
        if not isinstance(plain, dict) or _nodes(plain) > _NODES:
            raise ValueError("not the configuration of a run")
        cfg = OmegaConf.create(plain)
        assert isinstance(cfg, DictConfig)
        stated = config_hash(cfg)
    # Whatever a stranger's YAML brings about, it is no configuration of ours.
    except Exception as error:
        yield Fault(path, _reason(error, path), _AGAIN)
        return
    if not faults and record.get("config_hash") != stated:
        yield Fault(path, "not the configuration whose hash run.json has", _AGAIN)


def _nodes(value: Any) -> int:
    """Values in nested lists and mappings, counted up to the limit; an alias counts every time."""
    todo, count = [value], 0
    while todo and count <= _NODES:
        entry = todo.pop()
        count += 1
        if isinstance(entry, dict):
            todo += [*entry.keys(), *entry.values()][: _NODES + 1]
        elif isinstance(entry, list):
            todo += entry[: _NODES + 1]
    return count


def _listed(directory: Path) -> Iterator[Fault]:
    path = directory / MARKER
    if not path.exists() and not path.is_symlink():
        yield Fault(path, "absent: the run is unfinished", f"to finish it, {_AGAIN}")
        return
    done, faults = _json(path, _AGAIN)
    yield from faults
    if faults:
        return
    record, _ = _json(directory / "run.json", _AGAIN)
    if record and done.get("config_hash") != record.get("config_hash"):
        yield Fault(path, "of another configuration than run.json", _AGAIN)
    files = done.get("files")
    if files is None:  # of an earlier version
        return
    if not isinstance(files, dict) or not all(isinstance(h, str) for h in files.values()):
        yield Fault(path, "its list of files is none", _AGAIN)
        return
    for name, sha256 in files.items():
        own = directory / name
        if not inside(name):
            yield Fault(path, f"names {name}, outside of the run directory", _AGAIN)
        elif (reason := _unlike(own, directory, sha256)) is not None:
            yield Fault(own, reason, f"delete it and {_AGAIN}")
    for name in outputs(directory, hashed=False):
        if name.startswith(("morphs/", "sources/")) and name not in files:
            yield Fault(directory / name, "not a file of this run", "delete it")


def _unlike(path: Path, directory: Path, sha256: str) -> str | None:
    """Why a file is not the one with a checksum; None where it is."""
    if not os.path.lexists(path):
        return "missing"
    if not path.resolve().is_relative_to(directory.resolve()):
        return "leaves the run directory"
    if not path.is_file():
        return "not a regular file"
    if path.stat().st_size > LARGEST:
        return f"larger than {LARGEST // 2**30} GiB, which is not read"
    try:
        return None if fingerprint(path) == sha256 else "damaged or replaced since the run wrote it"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _morphs(directory: Path) -> Iterator[Fault]:
    """Records and morphs, each of which needs the other, and the sources that they name."""
    again = f"delete it and {_AGAIN}"
    sources: dict[str, str | None] = {}
    folder = directory / "morphs"
    for attack in sorted(p for p in folder.glob("*") if p.is_dir()):
        if not attack.resolve().is_relative_to(directory.resolve()):
            yield Fault(attack, "leaves the run directory", again)
            continue
        for path in sorted(attack.glob("*.png")):
            if not path.with_suffix(".json").is_file():
                yield Fault(path, "a morph without a record", again)
        for path in sorted(attack.glob("*.json")):
            record, faults = _json(path, again)
            yield from faults
            if faults:
                continue
            if lacking := sorted(KEYS - record.keys()):
                yield Fault(path, f"lacks {lacking[0]}", again)
                continue
            if (record["pair"], record["attack"]) != (path.stem, attack.name):
                yield Fault(path, "the record of another morph", again)
                continue
            morph = path.with_suffix(".png")
            if record["failed"]:
                if morph.exists():
                    yield Fault(morph, "the morph of a pair that failed", again)
                continue
            reason = _unlike(morph, directory, record["sha256"]) or _unreadable(morph, record)
            if reason is not None:
                yield Fault(morph, reason, again)
            stated = record["sources"]
            for name, sha256 in stated.items() if isinstance(stated, dict) else ():
                source = directory / "sources" / str(name)
                if name not in sources and inside(str(name)) and source.exists():
                    sources[name] = _unlike(source, directory, sha256)
                    if (why := sources[name]) is not None:
                        yield Fault(source, f"{why}: not what the morphs were made of", again)


def _unreadable(morph: Path, record: dict[str, Any]) -> str | None:
    """Why a morph is no picture, or its provenance not that of its record."""
    try:
        open_rgb(morph)
        stated = read_provenance(morph)
    except (ImageError, EvaluationError, OSError) as error:
        return _reason(error, morph)
    for key, wanted in (
        ("attack", record["attack"]),
        ("config_hash", record["config_hash"]),
        ("source_hashes", record["sources"]),
    ):
        if stated[key] != wanted:
            return f"its provenance has another {key} than its record"
    return None


def _result(directory: Path) -> Iterator[Fault]:
    """The result by its schema, its images, and its rates counted again from the scores."""
    path = directory / "result.json"
    finished, table = (directory / MARKER).exists(), (directory / "morphs").is_dir()
    if not path.exists() and not path.is_symlink():
        if finished and table:
            yield Fault(path, "missing", _AGAIN)
        return
    result, faults = _json(path, f"delete it and {_AGAIN}")
    yield from faults
    if faults or not (table or "rows" in result):
        return
    remedy = f"delete it and {_AGAIN}"
    try:
        run = Run.read(directory)
    except ReportError as error:
        yield Fault(path, _reason(error, path), remedy)
        return
    record, _ = _json(directory / "run.json", _AGAIN)
    if record and run.result["run"]["config_hash"] != record.get("config_hash"):
        yield Fault(path, "of another configuration than run.json", remedy)
    for pair in run.result["pairs"]:
        for name in (pair["source_a"], pair["source_b"], *pair["morphs"].values()):
            try:
                open_rgb(run.path(name))
            except (ImageError, ReportError, OSError, ValueError) as error:
                yield Fault(directory / name, _reason(error, directory / name), remedy)
    scores = directory / run.result["scores"]
    try:
        counted = evaluate(run.scores, run.thresholds, replicates=0)
    # Scores of a stranger may bring about anything.
    except Exception as error:
        yield Fault(scores, _reason(error, scores).removeprefix(f"scores: {scores}: "), remedy)
        return
    found = {(r["attack"], r["system"], condition(r)): r for r in counted}
    for row in run.result["rows"]:
        own = found.get((row["attack"], row["system"], condition(row)))
        if own is None or any(not _same(own[key], row[key]) for key in ("k", "n", "value", "tau")):
            yield Fault(path, f"its rate of {row['attack']} is not that of the scores", remedy)
            break


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _caches(folder: Path) -> Iterator[Fault]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if read_entry(path) is None:
            yield Fault(path, DAMAGED, "delete it; it is made again when it is needed")


def _wandb(directory: Path) -> Iterator[Fault]:
    remedy = "a killed session left it; delete its folder, the others hold the rest"
    for path in sorted((directory / "wandb").rglob("run-*.wandb")):
        start = b""
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(_WANDB))
        if start != _WANDB:
            yield Fault(path, "holds no record of a run, `wandb sync` fails at it", remedy)
