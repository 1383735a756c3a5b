"""The Lightning trainer that the configuration describes, and the checkpoint it goes on from."""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from adjointdeis.files import read_json
from adjointdeis.harness.interruption import one_process
from adjointdeis.harness.processes import OwnSigterm
from adjointdeis.harness.records import write_record
from adjointdeis.harness.validation import ConfigError

RECIPE = "recipe.json"
"""Beside the checkpoints of a training: the settings that they are a training with."""


class OtherTraining(ValueError):
    """A folder holds a training with other settings than those that are asked for."""


def make_trainer(cfg: DictConfig, **options: Any) -> L.Trainer:
    """A trainer on the devices, nodes and strategy of `cfg.trainer`.

    Every process is to see every batch: tasks deal out pairs and samples by themselves, since a
    sampler that pads would make a morph twice.

    Args:
        cfg: The whole configuration.
        options: Further arguments of `lightning.Trainer`; they win over the configuration's.
    """
    chosen, strategy = cfg.trainer, cfg.trainer.strategy
    plugins = None if chosen.plugins is None else list(instantiate(chosen.plugins))
    if plugins is None and one_process(chosen):
        # Else Lightning finds the tasks of a SLURM allocation around it and refuses their number.
        plugins = [LightningEnvironment()]
    callbacks = [*options.pop("callbacks", ()), OwnSigterm()]
    with _named(chosen):
        return L.Trainer(
            **{
                "accelerator": chosen.accelerator,
                "devices": chosen.devices,
                "num_nodes": chosen.num_nodes,
                "strategy": instantiate(strategy) if isinstance(strategy, DictConfig) else strategy,
                "plugins": plugins,
                "precision": chosen.precision,
                "enable_model_summary": False,
                "enable_progress_bar": False,  # its word for a run is "Epoch 0": see ProgressLine
                "use_distributed_sampler": False,
                "callbacks": callbacks,
                **options,
            }
        )


def checkpoints(directory: Path, every: int) -> ModelCheckpoint:
    """Keeps ``last.ckpt`` of a training, as :func:`checkpoint_of` finds it again."""
    return ModelCheckpoint(
        directory,
        filename="{step}",
        save_last=True,
        every_n_train_steps=every,
        enable_version_counter=False,  # a step made again after a kill takes its file's place
    )


class RandomnessOfStep(L.Callback):
    """Noise, dropout and augmentation of a step depend on the seed, the process and the step only.

    A training that was stopped and continued therefore makes the steps of one that was not.

    Args:
        seed: Of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        here = f"{self.seed} {trainer.global_rank} {trainer.global_step}".encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(here).digest()[:8]) >> 1)


def checkpoint_of(
    directory: Path, made_of: Mapping[str, Any], free: Collection[str] = ()
) -> Path | None:
    """The newest checkpoint of a training, to go on from; None where it is to start.

    A checkpoint holds weights and the state of the optimiser, its learning rate among it: continued
    with other settings it would be a training of neither.

    Args:
        directory: Where the training leaves its checkpoints, ``last*.ckpt``.
        made_of: What decides the weights, as JSON: ``recipe`` (the task's settings), seed, data.
        free: Settings of the recipe that may change on the way.

    Raises:
        OtherTraining: Its checkpoints are of other settings; the message names one.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(made_of))
    # Earlier versions wrote last-v1.ckpt beside last.ckpt where checkpoint_every had changed.
    found = directory.glob("last*.ckpt")
    last = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is not None:
        try:
            before = _flat(read_json(directory / RECIPE))
        except (ValueError, AttributeError):
            raise OtherTraining(
                f"{last} may be of other settings: {RECIPE}, which tells, is not beside it or is "
                "damaged; force=true starts over"
            ) from None
        now, left_out = _flat(wanted), {f"recipe.{name}" for name in free}
        for key in sorted((before.keys() | now.keys()) - left_out):
            if before.get(key) != now.get(key):
                name = key.replace("recipe.", "task.")
                raise OtherTraining(
                    f"{directory} holds a training with {name}={before.get(key)}, and "
                    f"{name}={now.get(key)} is asked for: the old value goes on with it, "
                    "force=true starts over"
                )
    if not rank_zero_only.rank:
        write_record(directory / RECIPE, wanted)
    return last


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Entries of nested dictionaries by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        below = isinstance(value, dict) and value
        found |= _flat(value, f"{above}{key}.") if below else {above + key: value}
    return found


@contextlib.contextmanager
def _named(chosen: DictConfig) -> Iterator[None]:
    """What Lightning or torch refuses of a device or a precision is told of by its keys.

    Raises:
        ConfigError: In the place of their error.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        keys = ("accelerator", "devices", "num_nodes", "precision", "strategy")
        said = ", ".join(f"trainer.{key}={chosen[key]}" for key in keys)
        raise ConfigError(f"{said}: {' '.join(str(error).split())}") from error


def own_device(chosen: DictConfig) -> torch.device:
    """The device that Lightning will give to this process.

    Args:
        chosen: The group `trainer` of the configuration.
    """
    if chosen.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = 0 if one_process(chosen) else int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", chosen.devices[rank] if OmegaConf.is_list(chosen.devices) else rank)


def precision(choice: str) -> str:
    """Lightning's precision for "auto": bfloat16 where the processor multiplies it fast.

    A CPU without AMX emulates bfloat16 and is slower with it than with float32.
    """
    if choice != "auto":
        return choice
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if amx else "32-true"
