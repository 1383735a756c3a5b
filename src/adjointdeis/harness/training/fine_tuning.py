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
from adjointdeis.guidance.problem import Batch, WeightProblem


class WeightDescent(L.LightningModule):
    """One step: sample this process's share, descend its mean loss over the weights.

    Args:
        tuning: Gradient method, optimiser and bound of the norm.
        problem: Denoiser, loss and sampler.
    """

    def __init__(self, tuning: FineTuning, problem: WeightProblem) -> None:
        super().__init__()
        # Registered, so that Lightning moves, wraps and saves it.
        self.denoiser = problem.denoiser
        self.tuning, self.problem = tuning, problem
        self.cost = Cost()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        rollout, losses = self.problem.evaluate(batch, self.tuning.gradient)
        # The same object that the backward pass adds to.
        self.cost = rollout.cost
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(losses))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # After the reduction: every process finds the same, and none is left waiting.
        clip(self.problem.parameters, self.tuning.clip_norm, f"step {self.global_step}: ")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.tuning.optimizer(self.problem.parameters)


class Draws(L.LightningDataModule):
    """The batches of steps 0, 1, ..., each process with its share; a continued run goes on.

    Args:
        draw: ``step -> Batch``, the same in every process.
        steps: How many there are.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: int) -> None:
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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        noise = batch.noise
        if isinstance(noise, (list, tuple)):
            noise = [one.to(device) for one in noise]
        z = None if batch.z is None else batch.z.to(device)
        return Batch(batch.x_T.to(device), z, noise)


class _Steps(IterableDataset):
    def __init__(
        self, draw: Callable[[int], Batch], first: int, end: int, rank: int, world: int
    ) -> None:
        self.draw, self.first, self.end, self.rank, self.world = draw, first, end, rank, world

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first, self.end):
            yield share(self.draw(step), self.rank, self.world)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """Rows rank, rank + world, ... of a batch.

    Args:
        batch: The samples of one step.
        rank: Number of this process, from 0.
        world: How many processes there are.

    Raises:
        ValueError: the batch is not a multiple of the number of processes, whose mean gradient
            would weigh samples unequally; or the noise is no list of recorded ones.
    """
    if world == 1:
        return batch
    samples = len(batch.x_T)
    if samples % world:
        raise ValueError(
            f"samples={samples}: expected a multiple of the {world} processes, which share every "
            "batch equally"
        )
    if batch.noise is not None and not isinstance(batch.noise, (list, tuple)):
        raise ValueError(
            f"noise of type {type(batch.noise).__name__} cannot be shared between processes; give "
            "a list of N recorded noises"
        )
    rows = slice(rank, None, world)
    noise = None if batch.noise is None else [one[rows] for one in batch.noise]
    return Batch(batch.x_T[rows], None if batch.z is None else batch.z[rows], noise)
