r"""Fine-tuning of weights on several processes: shares of a batch, one reduced gradient.

With R processes, process r samples rows r, r + R, ... of every batch, and

.. math:: \theta \gets \theta - \eta\,\frac1R \sum_r \nabla_\theta
          \frac{R}{B} \sum_{b \equiv r} L\big(x_0^{(b)}(\theta)\big)

is the update of one process with the whole batch: the weights are inside the all-reduce. The
gradient methods hand theta's gradient to the weights once per backward pass, whatever they
recompute in it, so that distributed data parallel needs nothing of its own.
"""

from collections.abc import Callable, Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.fine_tuning import FineTuning, clip
from adjointdeis.guidance.implicit_diffusion import Fresh


class WeightDescent(L.LightningModule):
    """One step: sample this process's share, descend its mean loss over the weights.

    Args:
        tuning: Denoiser, objective, sampler, gradient method and optimiser.
    """

    def __init__(self, tuning: FineTuning) -> None:
        super().__init__()
        # Registered, so that Lightning moves, wraps and saves it.
        self.denoiser = tuning.denoiser
        self.tuning = tuning
        self.cost = Cost()

    def training_step(self, batch: Fresh, index: int) -> Tensor:
        rollout, losses = self.tuning.evaluate(batch.x_T, batch.z, batch.noise)
        # The same object that the backward pass adds to.
        self.cost = rollout.cost
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(losses))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # After the reduction: every process finds the same, and none is left waiting.
        clip(self.tuning.parameters, self.tuning.clip_norm, f"step {self.global_step}: ")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.tuning.optimizer


class Draws(L.LightningDataModule):
    """The batches of steps 0, 1, ..., each process with its share; a continued run goes on.

    Args:
        draw: ``step -> Fresh``, the same in every process.
        steps: How many there are.
    """

    def __init__(self, draw: Callable[[int], Fresh], steps: int) -> None:
        super().__init__()
        self.draw, self.steps = draw, steps

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        trainer = self.trainer
        return DataLoader(
            _Steps(
                self.draw, trainer.global_step, self.steps, trainer.global_rank, trainer.world_size
            ),
            batch_size=None,
        )

    def transfer_batch_to_device(self, batch: Fresh, device: torch.device, index: int) -> Fresh:
        noise = batch.noise
        if isinstance(noise, (list, tuple)):
            noise = [one.to(device) for one in noise]
        z = None if batch.z is None else batch.z.to(device)
        return Fresh(batch.x_T.to(device), z, noise)


class _Steps(IterableDataset):
    def __init__(
        self, draw: Callable[[int], Fresh], first: int, end: int, rank: int, world: int
    ) -> None:
        self.draw, self.first, self.end, self.rank, self.world = draw, first, end, rank, world

    def __iter__(self) -> Iterator[Fresh]:
        for step in range(self.first, self.end):
            yield share(self.draw(step), self.rank, self.world)


def share(fresh: Fresh, rank: int, world: int) -> Fresh:
    """Rows rank, rank + world, ... of a batch.

    Raises:
        ValueError: the batch is not a multiple of the number of processes, whose mean gradient
            would weigh samples unequally; or the noise is no list of recorded ones.
    """
    if world == 1:
        return fresh
    samples = len(fresh.x_T)
    if samples % world:
        raise ValueError(
            f"samples={samples}: expected a multiple of the {world} processes, which share every "
            "batch equally"
        )
    if fresh.noise is not None and not isinstance(fresh.noise, (list, tuple)):
        raise ValueError(
            f"noise of type {type(fresh.noise).__name__} cannot be shared between processes; give "
            "a list of N recorded noises"
        )
    rows = slice(rank, None, world)
    noise = None if fresh.noise is None else [one[rows] for one in fresh.noise]
    return Fresh(fresh.x_T[rows], None if fresh.z is None else fresh.z[rows], noise)
