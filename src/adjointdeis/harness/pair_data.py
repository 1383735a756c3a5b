"""Pairs as a data set of steps: dealt to the processes, batched, repeated once per step."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from adjointdeis.faces.datasets.pairs import MorphPair


@dataclass(frozen=True)
class WorkItem:
    """One step of one batch of pairs; the one after the attack's last step finishes the batch.

    Without pairs it is a step of waiting, while other processes are still at work. Pairs of a batch
    that were finished before (``finished``, by morph id) are made for the others' sake and not
    written again.
    """

    pairs: tuple[MorphPair, ...]
    step: int
    finished: frozenset[str] = frozenset()

    @property
    def unfinished(self) -> int:
        """Pairs that this batch adds."""
        return sum(pair.morph_id not in self.finished for pair in self.pairs)


class PairSteps(IterableDataset):
    """Every batch with an unfinished pair, repeated once per step of the attack and once to finish.

    Batches are formed of the whole list, whatever is finished of it: rounding depends on the pairs
    that are computed together, and so a run that was stopped makes the morphs that it would have
    made undisturbed. They are dealt to the processes like cards, without padding: no pair is done
    twice and none is lost. Where the list is short, batches are smaller, so that every process has
    one. Every process makes the same number of steps, the last ones without pairs where its share
    is smaller: Lightning's processes meet at every step, and one that left early would leave the
    others waiting for it.

    Args:
        pairs: The whole list.
        batch_size: Pairs optimised together.
        steps: Steps of a batch, see :attr:`Attack.steps`.
        rank, world: This process and the number of processes.
        finished: Morph ids of the pairs that are finished.
    """

    def __init__(
        self,
        pairs: Sequence[MorphPair],
        batch_size: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        finished: Collection[str] = (),
    ) -> None:
        self.finished, self.steps = frozenset(finished), steps
        batch_size = max(1, min(batch_size, -(-len(pairs) // world)))
        whole = [
            tuple(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)
        ]
        unfinished = [batch for batch in whole if {p.morph_id for p in batch} - self.finished]
        self.batches = unfinished[rank::world]
        self.waiting = -(-len(unfinished) // world) - len(self.batches)

    def __len__(self) -> int:
        return (len(self.batches) + self.waiting) * (self.steps + 1)

    def __iter__(self) -> Iterator[WorkItem]:
        for pairs in [*self.batches, *[()] * self.waiting]:
            for step in range(self.steps + 1):
                yield WorkItem(pairs, step, self.finished)


class PairData(L.LightningDataModule):
    """The pairs of an attack, sharded over the processes; arguments as of :class:`PairSteps`."""

    def __init__(
        self,
        pairs: Sequence[MorphPair],
        batch_size: int,
        steps: int,
        finished: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.pairs, self.batch_size, self.steps = tuple(pairs), batch_size, steps
        self.finished = frozenset(finished)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        # On a network file system the processes may see different files finished, and a batch size
        # found by trying may differ: those of the first process hold.
        self.finished, self.batch_size = self.trainer.strategy.broadcast(
            (self.finished, self.batch_size)
        )
        dataset = PairSteps(
            self.pairs,
            self.batch_size,
            self.steps,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.finished,
        )
        return DataLoader(dataset, batch_size=None)
