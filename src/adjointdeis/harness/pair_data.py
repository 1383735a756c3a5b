"""Pairs as a data set of steps: dealt to the processes, batched, repeated once per step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from adjointdeis.faces.datasets.pairs import MorphPair


@dataclass(frozen=True)
class WorkItem:
    """One step of one batch of pairs; the one after the attack's last step finishes the batch.

    Without pairs it is a step of waiting, while other processes are still at work.
    """

    pairs: tuple[MorphPair, ...]
    step: int


class PairSteps(IterableDataset):
    """Every batch of pairs, repeated once per step of the attack and once to finish.

    Pairs are dealt to the processes like cards, without padding: no pair is done twice and none is
    lost, and the shares may differ by one pair. Every process makes the same number of steps, the
    last ones without pairs where its share is smaller: Lightning's processes meet at every step,
    and one that left early would leave the others waiting for it.

    Args:
        pairs: The pairs that are not finished yet.
        batch_size: Pairs optimised together.
        steps: Steps of a batch, see :attr:`Attack.steps`.
        rank, world: This process and the number of processes.
    """

    def __init__(
        self, pairs: Sequence[MorphPair], batch_size: int, steps: int, rank: int = 0, world: int = 1
    ) -> None:
        own = list(pairs)[rank::world]
        self.batches = [
            tuple(own[start : start + batch_size]) for start in range(0, len(own), batch_size)
        ]
        self.steps = steps
        largest_share = -(-len(pairs) // world)
        self.waiting = -(-largest_share // batch_size) - len(self.batches)

    def __len__(self) -> int:
        return (len(self.batches) + self.waiting) * (self.steps + 1)

    def __iter__(self) -> Iterator[WorkItem]:
        for pairs in [*self.batches, *[()] * self.waiting]:
            for step in range(self.steps + 1):
                yield WorkItem(pairs, step)


class PairData(L.LightningDataModule):
    """The unfinished pairs of an attack, sharded over the processes."""

    def __init__(self, pairs: Sequence[MorphPair], batch_size: int, steps: int) -> None:
        super().__init__()
        self.pairs, self.batch_size, self.steps = tuple(pairs), batch_size, steps

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        # On a network file system the processes may see different files finished, and a batch size
        # found by trying may differ: those of the first process hold.
        self.pairs, self.batch_size = self.trainer.strategy.broadcast((self.pairs, self.batch_size))
        dataset = PairSteps(
            self.pairs,
            self.batch_size,
            self.steps,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(dataset, batch_size=None)
