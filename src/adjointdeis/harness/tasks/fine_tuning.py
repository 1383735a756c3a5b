"""Fine-tuning a diffusion model's weights to a loss on its samples, on one process or many.

`python run.py task=fine_tuning gradient=adjoint_deis trainer=ddp` leaves `weights.safetensors`,
`last.ckpt` and `result.json`; a stopped run continues, on as many processes as there are then.
"""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor, nn

from adjointdeis.faces.networks import DiffAE
from adjointdeis.faces.weights import save_network
from adjointdeis.files import write_atomically
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.problem import Instance, WeightProblem
from adjointdeis.harness.progress import ProgressLine
from adjointdeis.harness.provenance import git_revision
from adjointdeis.harness.records import write_record
from adjointdeis.harness.trainer import checkpoint_of, checkpoints, make_trainer
from adjointdeis.harness.training.fine_tuning import Draws, WeightDescent
from adjointdeis.harness.wandb_logger import loggers


def run(cfg: DictConfig) -> dict[str, Any]:
    """Fine-tunes the weights of the problem that `cfg.task` describes."""
    task, directory = cfg.task, Path(cfg.paths.run)
    instance: Instance = instantiate(task.problem, _convert_="all").instance(cfg.seed or 0)
    problem: WeightProblem = instance.problem
    before = _plain(instance.quality(None))
    gradient = DiscreteAdjoint() if cfg.gradient is None else instantiate(cfg.gradient)
    tuning = FineTuning(instantiate(task.optimizer), task.steps, gradient, task.clip_norm)
    module = WeightDescent(tuning, problem)
    trainer = make_trainer(
        cfg,
        max_steps=task.steps,
        # Steps end it: a continued run is in an epoch of its own.
        max_epochs=-1,
        callbacks=[
            checkpoints(directory, task.checkpoint_every),
            ProgressLine(task.name),
        ],
        logger=loggers(cfg),
        default_root_dir=directory,
        log_every_n_steps=1,
    )
    made_of = {
        "recipe": OmegaConf.to_container(task, resolve=True),
        "gradient": repr(gradient),
        "seed": cfg.seed,
    }
    last = checkpoint_of(directory, made_of, ("name", "steps", "checkpoint_every"))
    start = time.monotonic()
    trainer.fit(
        module, Draws(problem.draw, task.steps), ckpt_path=None if last is None else str(last)
    )
    result = {
        **made_of,
        "git": git_revision(),
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "cost_per_step": {f.name: getattr(module.cost, f.name) for f in fields(Cost) if f.repr},
        "before": before,
    }
    seconds = round(time.monotonic() - start, 1)
    if trainer.is_global_zero:
        problem.denoiser.to("cpu")
        result["after"] = _plain(instance.quality(None))
        # No clock in the weights: a training that was killed and continued leaves the same file.
        _save(problem.denoiser, directory / "weights.safetensors", result)
        result["seconds_of_last_session"] = seconds
        write_record(directory / "result.json", result)
    return result


def _plain(quality: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in quality.items()}


def _save(denoiser: nn.Module, path: Path, record: dict[str, Any]) -> None:
    """The embedded generator with its architecture, as every weight file of a profile; any other
    denoiser as its state dict."""
    for module in denoiser.modules():
        if isinstance(module, DiffAE):
            save_network(module, path, {"training": record})
            return
    tensors = {name: value.contiguous() for name, value in denoiser.state_dict().items()}
    write_atomically(path, save(tensors))
