"""The Lightning trainer that the configuration describes, the same for every task."""

from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from adjointdeis.harness.processes import OwnSigterm


def make_trainer(cfg: DictConfig, **options: Any) -> L.Trainer:
    """A trainer on the devices, nodes and strategy of `cfg.trainer`.

    Every process is to see every batch: tasks deal out pairs and samples by themselves, since a
    sampler that pads would make a morph twice.

    Args:
        cfg: The whole configuration.
        options: Further arguments of `lightning.Trainer`; they win over the configuration's.
    """
    chosen, strategy = cfg.trainer, cfg.trainer.strategy
    callbacks = [*options.pop("callbacks", ()), OwnSigterm()]
    return L.Trainer(
        **{
            "accelerator": chosen.accelerator,
            "devices": chosen.devices,
            "num_nodes": chosen.num_nodes,
            "strategy": instantiate(strategy) if isinstance(strategy, DictConfig) else strategy,
            "plugins": None if chosen.plugins is None else list(instantiate(chosen.plugins)),
            "precision": chosen.precision,
            "enable_model_summary": False,
            "enable_progress_bar": False,  # its word for a run is "Epoch 0": see ProgressLine
            "use_distributed_sampler": False,
            "callbacks": callbacks,
            **options,
        }
    )
