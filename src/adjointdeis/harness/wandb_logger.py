"""Weights & Biases: curves while a run is under way, its result and its morphs' records at the end.

Nothing is sent anywhere unless `logger.wandb.offline=false`; the files of an offline run lie in the
run directory and `wandb sync` sends them. The run's id is the hash of its configuration, so a run
that is continued is the same run on the dashboard.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import numpy as np
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from adjointdeis.harness.benchmark import file_hash

KEPT = ("result.json", "scores.csv", "scores.csv.json")
"""Files of a run directory that the run on the dashboard keeps; `task=report` reads them there."""
# The server writes a config.yaml of its own among the run's files, so ours goes to the artifact.
_ARTIFACT = (*KEPT, "config.yaml")
_COSTS = ("nfe_paper", "seconds_per_pair")


class RunLogger(WandbLogger):
    """Lightning's logger, which also keeps configuration, images, result and records of morphs.

    Args:
        images: How many pairs' morphs are shown, the same pairs in every run of a benchmark; 0
            shows none.
        photographs: Whether the source images and all morphs are kept too. False keeps the records
            of the morphs alone, and of the images only those few: a face cannot be unpublished.
        kwargs: Of :class:`lightning.pytorch.loggers.WandbLogger`.

    Raises:
        ValueError: `images` below zero.
    """

    def __init__(self, *, images: int = 4, photographs: bool = False, **kwargs: Any) -> None:
        if images < 0:
            raise ValueError(f"logger.wandb.images={images}: expected 0 or more pairs")
        super().__init__(**kwargs)
        # Lightning still passes it, and wandb warns of it in every run.
        self._wandb_init.pop("anonymous", None)
        self.images, self.photographs = images, photographs

    @rank_zero_only
    def log_outcome(self, directory: Path, result: Mapping[str, Any]) -> None:
        """Adds what a finished run found: table, images, summary, files and an artifact.

        Args:
            directory: Run directory, with `result.json` and the files it names.
            result: Its content.
        """
        import wandb

        run = self.experiment
        shown = fixed_pairs(result["pairs"], self.images)
        run.log(
            {
                "result": wandb.Table(**_columns(result["rows"]), allow_mixed_types=True),
                **{
                    f"morphs/{name}": [
                        wandb.Image(str(directory / pair["morphs"][name]), caption=pair["pair_id"])
                        for pair in shown
                        if name in pair["morphs"]
                    ]
                    for name in result["attacks"]
                    if shown
                },
            }
        )
        run.summary.update(summary(result))
        for path in (directory / name for name in KEPT):
            if path.is_file():
                copyfile(path, Path(run.dir) / path.name)
        run.log_artifact(self._artifact(directory, result, f"morphs-{run.id}"))

    def _artifact(self, directory: Path, result: Mapping[str, Any], name: str) -> Any:
        import wandb

        found = list(_morph_records(directory, result))
        artifact = wandb.Artifact(
            name,
            type="morph-records",
            description="What every morph was made of and by; synthetic morphs, research use",
            metadata={
                "experiment": result["experiment"],
                "config_hash": result["run"]["config_hash"],
                "morphs": len(found),
                "photographs": self.photographs,
            },
        )
        with artifact.new_file("morphs.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in found)
        for path in (directory / name for name in _ARTIFACT):
            if path.is_file():
                artifact.add_file(str(path))
        if self.photographs:
            for folder in ("morphs", "sources"):
                artifact.add_dir(str(directory / folder), name=folder)
        return artifact


def wandb_mode(offline: bool) -> Literal["online", "offline", "disabled"]:
    """What becomes of a run on W&B; the environment can ask for less than the configuration.

    Args:
        offline: What the configuration says, `logger.wandb.offline`.

    Raises:
        ValueError: `WANDB_MODE` is none that W&B knows.
    """
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode not in ("", "online", "run", "shared", "offline", "dryrun", "disabled"):
        raise ValueError(f"WANDB_MODE={mode}: expected online, offline or disabled")
    if mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    if mode in ("offline", "dryrun"):
        return "offline"
    if offline and mode:
        message = f"WANDB_MODE={mode} alone sends nothing; say logger.wandb.offline=false too"
        warnings.warn(message, stacklevel=2)
    return "offline" if offline else "online"


def _require_writable(key: str, folder: str | None) -> None:
    """Refuses a folder that W&B would leave for the system's temporary one, in a log line alone."""
    place = Path(folder or os.environ.get("WANDB_DIR") or ".")
    try:
        place.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(place, os.W_OK) else "it is read-only"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise ValueError(f"{key}={place}: W&B cannot write there ({why}); name another folder")


def loggers(cfg: DictConfig) -> list[Logger]:
    """The loggers that the configuration names, each told the whole configuration.

    One of W&B is left out where `WANDB_MODE=disabled` or `WANDB_DISABLED=true`.
    """
    chosen: list[Logger] = []
    for key, entry in (cfg.logger or {}).items():
        own = {}
        if issubclass(get_class(entry._target_), WandbLogger):
            mode = wandb_mode(bool(entry.get("offline")))
            if mode == "disabled":
                if not rank_zero_only.rank:
                    print("the environment disables W&B: no run is written", file=sys.stderr)
                continue
            own = {"offline": mode == "offline"}
            _require_writable(f"logger.{key}.save_dir", entry.get("save_dir"))
        chosen.append(instantiate(entry, **own))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    # Where a run lies says nothing about what it computes, and a folder may name its user.
    stated = {str(key): value for key, value in plain.items() if key not in ("paths", "logger")}
    for logger in chosen:
        if isinstance(logger, RunLogger):
            logger.log_hyperparams(stated)
    return chosen


def conclude(chosen: Sequence[Logger], directory: Path, result: Mapping[str, Any]) -> None:
    """Hands a finished run to the loggers that keep more than curves.

    Args:
        chosen: The loggers of the run.
        directory: Of the run.
        result: What is in its `result.json`.
    """
    for logger in chosen:
        if isinstance(logger, RunLogger):
            logger.log_outcome(directory, result)


def download(project: str, destination: Path) -> list[Path]:
    """Results of the finished runs of a project on the server, each in a folder named by its id.

    Args:
        project: `entity/project`.
        destination: Folder; made if absent.

    Raises:
        ValueError: The project cannot be read, or has no run with a result.
    """
    import wandb
    from wandb.errors import Error

    found = []
    try:
        for run in wandb.Api().runs(project, filters={"state": "finished"}):
            names = {file.name for file in run.files()} & set(KEPT)
            if "result.json" not in names:
                continue
            for name in names:
                run.file(name).download(root=str(destination / run.id), replace=True)
            found.append(destination / run.id)
    except (Error, ValueError) as error:
        raise ValueError(
            f"task.wandb={project}: {str(error).splitlines()[0]}; expected entity/project, a login "
            "(wandb login) and logger.wandb.offline=false or `wandb sync` of the runs"
        ) from error
    if not found:
        raise ValueError(f"task.wandb={project}: no finished run with a result.json in it")
    return found


def fixed_pairs(pairs: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Pairs spread evenly over the list, which is the same list in every run of a benchmark."""
    if not count or not pairs:
        return []
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    return [pairs[i] for i in chosen]


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers for the dashboard's columns: `<variant>/<attack>/<system>/<probe>`, costs, errors.

    Rates are those of the impostor policy `all`, or of the only one there is; keys of other target
    FMRs than the first end in the target.
    """
    rows = result["rows"]
    policies = {row["impostor_policy"] for row in rows}
    chosen = "all" if "all" in policies else min(policies, default="")
    targets = list(dict.fromkeys(row["fmr_target"] for row in rows))
    found: dict[str, float] = {}
    for row in rows:
        if row["impostor_policy"] != chosen or row["value"] is None:
            continue
        key = "/".join(row[k] for k in ("variant", "attack", "system", "probe_policy"))
        found[key if row["fmr_target"] == targets[0] else f"{key}/{row['fmr_target']:g}"] = row[
            "value"
        ]
    for name, attack in result["attacks"].items():
        found |= {f"{key}/{name}": attack[key] for key in _COSTS if attack.get(key) is not None}
        nfe, error = attack.get("nfe") or {}, attack.get("gradient_error") or {}
        if nfe:
            found[f"nfe_counted/{name}"] = nfe["encode"] + nfe["forward"] + nfe["vjps"]
        found |= {f"gradient_{k}/{name}": error[k] for k in ("relative", "cosine") if k in error}
    return found


def _morph_records(directory: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record per written morph: its pair, attack, SHA-256, and what its own record states."""
    found = []
    for pair in result["pairs"]:
        for attack, relative in pair["morphs"].items():
            path = directory / relative
            beside = path.with_suffix(".json")
            stated = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
            own = {"pair": pair["pair_id"], "attack": attack, "file": relative}
            found.append({**stated, **own, "sha256": file_hash(path)})
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = list(rows[0]) if rows else []
    return {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}
