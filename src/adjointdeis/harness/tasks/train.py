"""Training tasks: a network from a rendered pool, budgeted by steps, resumable.

`python run.py task=train/autoencoder` and `task=train/recogniser task.role=arcface` leave
`last.ckpt`, `weights.safetensors`, what is said of them in `training.json`, and the loss curve in
the run directory.
"""

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.networks import DiffAE
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.faces.weights import fingerprint, load_network, read_header, save_network
from adjointdeis.files import read_record
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import read_aligned
from adjointdeis.harness.progress import ProgressLine
from adjointdeis.harness.records import write_record
from adjointdeis.harness.trainer import (
    RandomnessOfStep,
    checkpoint_of,
    checkpoints,
    make_trainer,
    precision,
)
from adjointdeis.harness.training.autoencoder import AutoencoderTraining
from adjointdeis.harness.training.data import FaceFolder, PoolData, PoolDataset
from adjointdeis.harness.training.quality import autoencoder_quality
from adjointdeis.harness.training.recogniser import RecogniserTraining
from adjointdeis.harness.wandb_logger import loggers
from adjointdeis.morphing.autoencoder import Autoencoder
from synthetic_faces.pool import render_pool
from synthetic_faces.pool_spec import PoolSpec

RECORD, QUALITY = "training.json", "quality.json"
NO_EFFECT = ("name", "render_workers", "checkpoint_every", "quality_faces")
"""Settings of a training that its weights do not depend on."""
LENGTH = ("steps", "learning_rate_steps")
"""Settings that a training under way may be given anew: it follows the new cosine from there."""


def autoencoder(cfg: DictConfig, free: Collection[str] = (*NO_EFFECT, *LENGTH)) -> dict[str, Any]:
    """Trains the diffusion autoencoder that `cfg.task` describes, where that is not done yet.

    Args:
        cfg: The whole configuration.
        free: Settings in which a training under way may differ from the one that is asked for.

    Raises:
        OtherTraining: The folder holds a training that differs in more.
    """
    _seed(cfg)
    task, config = cfg.task, instantiate(cfg.task.network)
    if task.faces is None and (task.fold is not None or task.augmentation is not None):
        raise ValueError(
            "task.fold and task.augmentation change nothing without task.faces=<folder of aligned "
            "faces>; name the folder, or leave them null"
        )
    if task.faces is None:
        data = _data(cfg, studio_only=True)
    else:
        folder = FaceFolder(load_folder(task.faces), config.image_size, task.fold, task.folds)
        data = PoolData(folder, task.batch_size, cfg.seed or 0)
    network, initial = _initial(cfg)
    module = AutoencoderTraining(
        network,
        task.learning_rate_steps or task.steps,
        task.learning_rate,
        task.weight_decay,
        task.warmup,
        task.prediction,
        task.spread,
        task.train_encoder,
        None if task.augmentation is None else instantiate(task.augmentation),
    )
    people: list[str] = list(getattr(data.dataset, "held_out", ()))
    record = _fit(cfg, module, data, {"initial": initial, "held_out": people}, free)
    if rank_zero_only.rank or not task.quality_faces:
        return record
    if (quality := read_record(Path(cfg.paths.run) / QUALITY)) is not None:
        return record | {"quality": quality}
    faces = _unseen(cfg, people, config.image_size)
    if faces is None:
        return record
    trained = Autoencoder(
        network.eval().requires_grad_(False),
        task.prediction,
        record["sha256"],
        "that of the images it was trained on",
        spread=task.spread,
    )
    quality = autoencoder_quality(trained, faces, Path(cfg.paths.run))
    write_record(Path(cfg.paths.run) / QUALITY, quality)
    return record | {"quality": quality}


def _unseen(cfg: DictConfig, people: list[str], size: int) -> Tensor | None:
    """Faces that the training did not see; None where there are none of the network's size."""
    task = cfg.task
    if task.faces is None:
        dataset = load_folder(assets.MINI / "faces", "mini")
    else:
        dataset = load_folder(task.faces)
    chosen = dataset.ids if task.faces is None else people
    paths = [min(dataset.subject(i).images.items())[1] for i in chosen[: task.quality_faces]]
    if len(paths) < 2 or read_image(paths[0]).shape[0] != size:
        return None
    return to_tensor(read_aligned(paths, size))


def _initial(cfg: DictConfig) -> tuple[DiffAE, dict[str, Any] | None]:
    """The autoencoder that a training starts from, and where its weights come from."""
    task, config = cfg.task, instantiate(cfg.task.network)
    if task.initial is None:
        return DiffAE(config), None
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    listed = profile.lists(task.initial)
    path = profile.path(task.initial) if listed else Path(task.initial)
    network = load_network(path, remedy="name a file of the profile or a path in task.initial")
    if not isinstance(network, DiffAE) or network.config != config:
        raise ValueError(
            f"task.initial={task.initial} holds {getattr(network, 'config', network)}, and "
            f"task.network asks for {config}: make task.network the same"
        )
    training = read_header(path).get("training", {})
    # Records made before there was a choice do not name it: all predicted v.
    before = training.get("recipe", {}).get("prediction", "v")
    if listed:
        before = profile.entry(task.initial)["prediction"]
    if before == "eps" or (before, task.prediction) == ("x0", "v"):
        raise ValueError(
            f"task.initial={task.initial} predicts {before}: no start for a prediction of "
            f"{task.prediction}; use weights that predict v or x0, or task.initial=null"
        )
    if before == "v" and task.prediction == "x0":
        # At high noise, where a network knows the image from its code alone, v is -x_0.
        with torch.no_grad():
            for value in network.out[-1].parameters():
                value.neg_()
    return network.train(), {"sha256": fingerprint(path), "prediction": before, **training}


def recogniser(cfg: DictConfig) -> dict[str, Any]:
    """Trains the recogniser that `cfg.task` describes."""
    _seed(cfg)
    task, data = cfg.task, _data(cfg)
    module = RecogniserTraining(
        instantiate(task.network),
        instantiate(task.crop),
        instantiate(task.head),
        data.dataset.identities,
        task.learning_rate_steps or task.steps,
        task.learning_rate,
        task.weight_decay,
        task.warmup,
    )
    return _fit(cfg, module, data)


def _seed(cfg: DictConfig) -> None:
    """Starts a training that is a part of a run as one by itself, whatever was drawn before it."""
    if cfg.seed is not None:
        torch.manual_seed(cfg.seed)


def _data(cfg: DictConfig, studio_only: bool = False) -> PoolData:
    return PoolData(PoolDataset(_pool(cfg), studio_only), cfg.task.batch_size, cfg.seed or 0)


def _pool(cfg: DictConfig) -> Path:
    """Folder of the task's pool, rendered if it is not there."""
    spec = PoolSpec(**OmegaConf.to_container(cfg.task.pool, resolve=True))  # type: ignore[arg-type]
    directory = Path(cfg.paths.data) / "pools" / spec.role
    render_pool(spec, directory, workers=cfg.task.render_workers)
    return directory


def _fit(
    cfg: DictConfig,
    module: AutoencoderTraining | RecogniserTraining,
    data: PoolData,
    more: dict[str, Any] | None = None,
    free: Collection[str] = (*NO_EFFECT, *LENGTH),
) -> dict[str, Any]:
    task, run = cfg.task, Path(cfg.paths.run)
    made_of = {
        "recipe": OmegaConf.to_container(task, resolve=True),
        "seed": cfg.seed,
        "data_fingerprint": data.dataset.fingerprint,
        **(more or {}),
    }
    ready = whole_record(run)
    if ready is not None and json.loads(json.dumps(made_of)).items() <= ready.items():
        return ready
    last = checkpoint_of(run, made_of, free)
    # Of weights that are now made anew.
    (run / QUALITY).unlink(missing_ok=True)
    trainer = make_trainer(
        cfg,
        max_steps=task.steps,
        precision=precision(cfg.task.precision),
        callbacks=[
            checkpoints(run, task.checkpoint_every),
            EMAWeightAveraging(decay=task.ema_decay),
            RandomnessOfStep(torch.initial_seed()),
            ProgressLine(task.name),
        ],
        logger=loggers(cfg),
        default_root_dir=run,
        log_every_n_steps=20,
        gradient_clip_val=1.0,
    )
    start = time.monotonic()
    trainer.fit(module, data, ckpt_path=None if last is None else str(last))
    seconds = time.monotonic() - start
    # EMAWeightAveraging leaves the averaged weights in the module when training ends.
    record = made_of | {"steps": trainer.global_step, "processes": trainer.world_size}
    path = run / "weights.safetensors"
    # No clock in the header: a training that was killed and continued leaves the same file.
    record["sha256"] = save_network(module.network, path, {"training": record})
    # A training that was complete before, and whose weights were lost, makes no step now.
    loss = trainer.callback_metrics.get("train/loss")
    record |= {
        "final_loss": None if loss is None else float(loss),
        "seconds_of_last_session": round(seconds, 1),
    }
    if not rank_zero_only.rank:
        write_record(run / RECORD, record)
    return record


def whole_record(directory: Path) -> dict[str, Any] | None:
    """What a training says of the weights in its directory; None unless they are what it wrote."""
    record, path = read_record(directory / RECORD), directory / "weights.safetensors"
    if record is None or not path.is_file():
        return None
    return record if fingerprint(path) == record.get("sha256") else None
