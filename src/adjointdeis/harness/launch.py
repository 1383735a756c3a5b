"""From a composed configuration to a run: its directory, seeds, readable errors, no work twice."""

import contextlib
import errno
import logging
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from adjointdeis.files import read_bytes, read_record, read_text, write_atomically
from adjointdeis.harness.command_line import this_command
from adjointdeis.harness.finished import (
    MARKER,
    changed_input,
    inputs,
    missing,
    set_aside,
    write_marker,
)
from adjointdeis.harness.interruption import (
    DirectoryInUse,
    end_with_parent,
    ending_cleanly,
    holding,
    is_child,
    is_full_disk,
    one_process,
    remove_leftovers,
    starts_processes,
)
from adjointdeis.harness.provenance import (
    changes,
    config_hash,
    environment,
    git_revision,
    identifies,
)
from adjointdeis.harness.records import write_record
from adjointdeis.harness.sweep import note_job, sweeping
from adjointdeis.harness.validation import ConfigError, validate
from adjointdeis.texts import printable


def launch(cfg: DictConfig) -> float | None:
    """Runs ``cfg.task`` in its run directory, unless that run is finished already.

    A job of a sweep that fails says so and lets the other jobs go on; any other run exits.

    Returns:
        The task's objective, for sweepers that minimise one, or None.
    """
    try:
        # Again, after the command line: a sweeper may have chosen the values, or a caller.
        validate(cfg, runs=True)
    except ConfigError as error:
        if not sweeping():
            sys.exit(f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        note_job(Path(HydraConfig.get().sweep.dir), "failed", f"error: {error}")
        return None
    directory, child = run_directory(cfg), is_child(cfg.trainer)
    end_with_parent()

    def note(status: str, reason: str = "") -> None:
        # A dry run leaves no trace, in the records of a sweep either.
        if not cfg.dry_run and not child:
            note_job(directory, status, reason)

    note("started")
    with ending_cleanly(directory):
        try:
            status, objective = _run(cfg, directory)
        except RunFailed as failure:
            if not sweeping():
                sys.exit(printable(failure, "\n"))
            print(printable(failure, "\n"), file=sys.stderr)
            note("failed", str(failure).splitlines()[0])
            return None
    note(status)
    return objective


class RunFailed(Exception):
    """A run that could not do its work; the message is for the user."""


def _run(cfg: DictConfig, directory: Path) -> tuple[str, float | None]:
    """Runs a task; returns "done", "skipped" or "dry run", and its objective."""
    identifier = config_hash(cfg)
    with open_dict(cfg):
        cfg.paths.run, cfg.paths.id = str(directory), identifier
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        # What waits to be synchronised; by default it would lie in the user's home.
        os.environ.setdefault(name, str(Path(cfg.paths.data).absolute() / "wandb"))
    # wandb and matplotlib otherwise write below the working directory and the home.
    os.environ.setdefault("WANDB_SILENT", "true")
    if cfg.dry_run:
        _dry_run(cfg)
        return "dry run", None
    if sweeping() and starts_processes(cfg.trainer):
        raise RunFailed(
            f"error: trainer.devices={cfg.trainer.devices} within a sweep: the processes that "
            "Lightning starts would repeat the whole sweep. Run this point alone, give every point "
            "one process (trainer=cpu or trainer=gpu), or let SLURM start several "
            "(hydra/launcher=slurm trainer=slurm, docs/clusters.md)"
        )
    repeat = cfg.force or cfg.task.get("repeat", False)
    done, changed = read_record(directory / MARKER) or {}, None
    if not repeat and done.get("config_hash") == identifier:
        lost, changed = missing(directory, done), changed_input(done, cfg)
        if not lost and changed is None:
            made, now = (read_record(directory / "run.json") or {}).get("git"), git_revision()
            by = f" (by revision {made}, this is {now})" if made and now and made != now else ""
            print(printable(f"{directory} is finished{by}; force=true runs it again"))
            return "skipped", None
        more = f" and {len(lost) - 1} more files" if len(lost) > 1 else ""
        why = changed or f"{lost[0]}{more} {'are' if more else 'is'} gone or changed"
        print(printable(f"{directory} was finished, but {why}; made again"))
    _check_task(cfg)
    if cfg.threads is not None:  # before the record of the run says how many
        torch.set_num_threads(cfg.threads)
    with contextlib.ExitStack() as held:
        if not is_child(cfg.trainer):
            try:
                held.enter_context(holding(directory))
                reused = _beside_task(cfg, "REUSED") or ()
                prepare(directory, cfg, identifier, cfg.force, reused, changed is not None)
            except DirectoryInUse as error:
                raise RunFailed(f"error: {error}") from error
            except OSError as error:
                if is_full_disk(error):
                    raise RunFailed(_explained(error, directory)) from error
                raise RunFailed(
                    f"error: {directory}: no run can be kept there ({error.strerror or error}); "
                    "name another place, paths.outputs=... or paths.run=..."
                ) from error
        return "done", _work(cfg, directory, identifier)


def _check_task(cfg: DictConfig) -> None:
    """Lets a task refuse what it can before anything is written, by a function ``check`` beside it.

    Raises:
        RunFailed: With its error.
    """
    check = _beside_task(cfg, "check")
    if check is not None:
        try:
            check(cfg)
        except ValueError as error:
            raise RunFailed(f"error: {_message(error)}") from error


def _beside_task(cfg: DictConfig, name: str) -> Any:
    """What the module of the task calls by a name; None where it does not."""
    return getattr(sys.modules.get(get_method(cfg.task._target_).__module__), name, None)


def _work(cfg: DictConfig, directory: Path, identifier: str) -> float | None:
    """Runs a task in its prepared directory, and leaves ``done.json`` or ``error.txt`` there."""
    child, task = is_child(cfg.trainer), get_method(cfg.task._target_)
    # Lightning takes seconds to import, and half of the tasks train nothing.
    if "lightning" in sys.modules and one_process(cfg.trainer):
        # It takes its rank from SLURM or torchrun, where this may be the third task.
        sys.modules["lightning"].pytorch.utilities.rank_zero_only.rank = 0
    if cfg.seed is not None:
        _seed(cfg.seed)
    _quieten()
    start = time.monotonic()
    try:
        result = task(cfg) or {}
    except Exception as error:
        if not child:
            # On a full disk there is no room for the trace either.
            with contextlib.suppress(OSError):
                (directory / "error.txt").write_text(
                    traceback.format_exc(), encoding="utf-8", errors="backslashreplace"
                )
        with contextlib.suppress(OSError):
            _close_wandb(1)
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        trace = directory / "error.txt"
        hint = f"\n(the trace is in {trace})" if trace.is_file() else ""
        raise RunFailed(_explained(error, directory) + hint) from error
    _close_wandb(0)
    if not child:
        (directory / "error.txt").unlink(missing_ok=True)
        write_marker(directory, identifier, round(time.monotonic() - start, 1), inputs(cfg))
        _announce(directory)
    return result.get("objective")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that libraries share
    torch.manual_seed(seed)
    # Lightning's strategies seed by it once more when they start their processes.
    os.environ["PL_GLOBAL_SEED"] = str(seed)


def _dry_run(cfg: DictConfig) -> None:
    """Loads and checks what a run needs and prints what it will cost; leaves no trace of a run."""
    if not _beside_task(cfg, "DRY_RUN"):
        sys.exit(
            "error: dry_run=true is for task=morph, task=photographs and task=detection; the other "
            "tasks have no dry run"
        )
    _quieten()
    try:
        get_method(cfg.task._target_)(cfg)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {_message(error)}")


def run_directory(cfg: DictConfig) -> Path:
    """Where a run writes: stated, or ``outputs/<name>``, or with overrides below that by its hash.

    The bare experiment gets the plain name, so that everyone finds ``outputs/quickstart``; each
    point of a sweep, and each run with settings of its own, gets a folder of its own.
    """
    if cfg.paths.run:
        return Path(cfg.paths.run)
    base = Path(cfg.paths.outputs) / (cfg.task.get("name") or cfg.name)
    if not HydraConfig.initialized():
        return base
    own = any(identifies(override) for override in HydraConfig.get().overrides.task)
    return base / config_hash(cfg) if own else base


def prepare(
    directory: Path,
    cfg: DictConfig,
    identifier: str,
    force: bool,
    reused: Sequence[str] = (),
    changed: bool = False,
) -> None:
    """Makes the run directory and records what will run in it.

    A finished run of another configuration, or of other data, is set aside, never overwritten, and
    the new one gets copies of what it may use of it. An unfinished one is continued even when its
    settings changed: every morph carries the hash of what made it, and those that the new settings
    would make otherwise are made again.

    Args:
        directory: The run directory.
        cfg: The whole configuration.
        identifier: Its hash.
        force: Sets aside any earlier run, and uses nothing of it.
        reused: Patterns of files and folders that the task takes up where they fit its settings.
        changed: Whether the data of a finished run changed since.
    """
    record, finished = directory / "run.json", (directory / MARKER).is_file()
    former = read_record(record) or {}
    other = finished and (changed or former.get("config_hash") != identifier)
    if record.is_file() and (force or other):
        aside = set_aside(directory)
        print(f"{directory} holds another run; it moves to {aside}")
        directory.mkdir(parents=True, exist_ok=True)
        for path in [p for pattern in reused if not force for p in aside.glob(pattern)]:
            # Whole or not at all, where the copying is interrupted.
            part = aside / f".{path.name}"
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, part)
            part.rename(directory / path.name)
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yaml"
    if config.exists() and not (finished or record.exists()):
        if b"adjointdeis.harness" not in read_bytes(config, OSError, 2**20):
            raise FileExistsError(errno.EEXIST, "its config.yaml is of something else than a run")
    # From here to its end the run is unfinished, whatever it was before.
    (directory / MARKER).unlink(missing_ok=True)
    remove_leftovers(directory)
    # Other runs may be writing there: nothing takes a day to write.
    remove_leftovers(Path(cfg.paths.data) / "encodings", older_than=86400)
    if (directory / "error.txt").is_file():
        print(f"{directory} failed before ({_last_error(directory)}); trying it again")
    _keep_curves(directory / "logs")
    text = OmegaConf.to_yaml(cfg, resolve=False)
    write_atomically(config, text)
    facts: dict[str, Any] = {
        "config_hash": identifier,
        "git": git_revision(),
        "command": _own_command(),
        "seed": cfg.seed,
        **environment(),
    }
    if former and not (force or finished) and (others := changes(former, facts)):
        print(
            printable(
                f"{directory} is continued with {', '.join(others)}: what is finished, of the "
                "same settings, networks and images, is kept as it was made; force=true makes all "
                "of it again"
            )
        )
    write_record(record, facts)


def _own_command() -> list[str]:
    """The command of this run alone: within a sweep, that of its point."""
    if sweeping():
        return ["python", "run.py", *this_command()]
    return ["python", *sys.argv]


def _last_error(directory: Path) -> str:
    try:
        lines = read_text(directory / "error.txt", largest=2**20).strip().splitlines()
    except ValueError:
        return "its error.txt cannot be read"
    return printable(lines[-1]) if lines else "no reason was left"


def _keep_curves(logs: Path) -> None:
    """Numbers the curves of an earlier session: Lightning's CSV logger would delete them."""
    if (logs / "metrics.csv").is_file():
        number = 1 + len(list(logs.glob("metrics-*.csv")))
        (logs / "metrics.csv").rename(logs / f"metrics-{number}.csv")


def _quieten() -> None:
    """Keeps Lightning's advice, which is meant for weight training, off the user's screen."""
    # A warning of this package is a sentence to the user; the line that raised it says nothing.
    warnings.formatwarning = lambda message, category, *_: (
        f"{category.__name__}: {printable(message, chr(10))}\n"
    )
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*configure_optimizers.*returned.*None.*",
        ".*treespec, LeafSpec.*",
        ".*across ranks is zero.*",
        ".*IterableDataset.*has.*__len__.*",
        ".*module.s. in eval mode.*",
        ".*does not have many workers.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*checkpoint directory.*exists.*",
        ".*Checkpoint directory.*exists.*",
        ".*Using ModelCheckpoint with manual optimization.*",
        ".*logs directory.*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _explained(error: Exception, directory: Path) -> str:
    if is_full_disk(error):
        return (
            f"error: no space left on the disk of {directory}, or a limit is reached (ulimit -f); "
            "free some and start the same command again: it continues, and no morph is half-written"
        )
    return f"error: {_message(error)}"


def _message(error: Exception) -> str:
    # Hydra wraps the errors of what it instantiates; the cause is what the user can mend.
    while error.__cause__ is not None and isinstance(error, HydraException):
        error = error.__cause__  # type: ignore[assignment]
    if isinstance(error, OmegaConfBaseException):
        # Key and type come on lines of their own.
        return " ".join(str(error).split())
    return str(error) or type(error).__name__


def _close_wandb(exit_code: int) -> None:
    if "wandb" in sys.modules and (run := sys.modules["wandb"].run) is not None:
        run.finish(exit_code=exit_code)


def _announce(directory: Path) -> None:
    report = directory / "report.md"
    if report.is_file():
        print(report.read_text(encoding="utf-8"))
    print(f"Written to {directory}")
