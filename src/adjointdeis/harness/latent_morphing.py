"""Morphing as a Lightning loop: one training step is one step of an attack on a batch of pairs.

For guided attacks that is one gradient step on the latents of the batch. Latents belong to their
batch, not to the module: they never enter the all-reduce of distributed training, and every process
optimises its own pairs. A pair is finished when its PNG and its record are both on disk, written
atomically and in that order, so that a killed run continues where it stopped on any number of
processes.
"""

import shlex
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adjointdeis.faces.datasets.pairs import MorphPair, write_pairs
from adjointdeis.faces.image_io import write_image
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.harness.batch_size import FreeMemory, best_batch_size
from adjointdeis.harness.benchmark import Benchmark, file_hash, read_aligned
from adjointdeis.harness.command_line import setting
from adjointdeis.harness.provenance import morph_text
from adjointdeis.harness.records import SCHEMA, write_record
from adjointdeis.harness.resources import modules_of
from adjointdeis.morphing.attack import Attack, Morphs, Progress, Sources, Workbench


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


class LatentMorphing(L.LightningModule):
    """Runs one attack over batches of pairs.

    Args:
        attack: What to do.
        bench: What it works with; its device is that of the trainer.
        benchmark: Faces.
        directory: Where morphs and records go.
        config: Hash of all that determines a morph, for provenance and for resuming.
        overrides: Command line of the run, for the command that repeats a pair that failed.
    """

    def __init__(
        self,
        attack: Attack,
        bench: Workbench,
        benchmark: Benchmark,
        directory: Path,
        config: str,
        overrides: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.overrides = overrides
        self.automatic_optimization = False
        self.attack, self.bench, self.benchmark = attack, bench, benchmark
        self.directory, self.config = directory, config
        # Registered so that Lightning moves them to the device; frozen, so nothing is reduced.
        self.networks = torch.nn.ModuleList([*modules_of(bench), *attack.modules()])
        self._batch: _Batch | None = None

    def configure_optimizers(self) -> None:
        """None: every batch of latents has an optimiser of its own."""

    def find_batch_size(self, pairs: Sequence[MorphPair], device: torch.device) -> int:
        """Tries steps of several sizes; returns the one that takes the least time per pair.

        The tried steps change no morph. What they leave is the encodings of their faces, which the
        run reads again.

        Args:
            pairs: Pairs of the run, of which the first ones are tried.
            device: Where the run computes.
        """
        self.networks.to(device)
        memory = FreeMemory(device)

        def step(size: int) -> None:
            batch = self._begin(tuple(pairs[:size]), device)
            if self.attack.steps:
                batch.work.step()
            else:
                batch.work.finish()

        return best_batch_size(step, len(pairs), memory.fits)

    def transfer_batch_to_device(
        self, batch: WorkItem, device: torch.device, index: int
    ) -> WorkItem:
        """Nothing to move: an item names pairs, and their images are read where they are needed."""
        return batch

    def training_step(self, item: WorkItem, index: int) -> None:
        if not item.pairs:
            return
        if item.step == 0:
            self._batch = self._begin(item.pairs)
        batch = self._batch
        assert batch is not None
        if item.step < self.attack.steps:
            progress = batch.work.step()
            batch.progress.append(progress)
            values = {"loss": progress.loss.mean()}
            if progress.gradient_norm is not None:
                values["gradient_norm"] = progress.gradient_norm.mean()
        else:
            values = self._finish(batch, item.finished)
            self._batch = None
        if "loss" in values:
            size = len(item.pairs)
            self.log("loss", values["loss"], prog_bar=True, logger=False, batch_size=size)
        if self.loggers:
            named = {f"{self.attack.name}/{key}": value for key, value in values.items()}
            self.log_dict(named, logger=True, prog_bar=False, batch_size=len(item.pairs))

    def _begin(self, pairs: tuple[MorphPair, ...], device: torch.device | None = None) -> "_Batch":
        size = self.attack.image_size(self.bench)
        paths_a, paths_b = (
            tuple(self.benchmark.image(*side) for side in sides)
            for sides in zip(*(pair.sides for pair in pairs), strict=True)
        )
        images_a, images_b = read_aligned(paths_a, size), read_aligned(paths_b, size)
        sources = Sources(pairs, images_a, images_b, paths_a, paths_b)
        bench = replace(self.bench, device=device or self.device)
        return _Batch(sources, bench, self.attack)

    def _finish(self, batch: "_Batch", finished: frozenset[str]) -> dict[str, Tensor]:
        morphs = batch.work.finish()
        distances = None
        if "identity" in self.bench.resources:
            with torch.no_grad():
                distances = batch.bench.against(batch.sources)(morphs.images)
        images = to_uint8(morphs.images)
        seconds = (time.monotonic() - batch.started) / len(batch.sources)
        for k, pair in enumerate(batch.sources.pairs):
            if pair.morph_id in finished:
                continue
            failure = morphs.failed.get(k)
            if not torch.isfinite(morphs.images[k]).all():
                failure = failure or "the sampler's result is not finite"
            record = self._record(batch, morphs, k) | {
                "failed": failure,
                "seconds": round(seconds, 3),
                "sha256": None,
            }
            if distances is not None:
                record["loss"].append(float(distances.loss[k]))
                record |= {
                    "distance_a": float(distances.mean[0][k]),
                    "distance_b": float(distances.mean[1][k]),
                }
            if failure is not None:
                record["reproduce"] = self._reproduction(pair)
                print(
                    f"{self.attack.label}, pair {pair.morph_id} stopped at {failure}; the others "
                    f"go on. To see it alone: {record['reproduce']}",
                    file=sys.stderr,
                )
            else:
                path = self.directory / f"{pair.morph_id}.png"
                text = morph_text(self.attack.name, self.config, record["sources"])
                write_image(path, images[k], text)
                record["sha256"] = file_hash(path)
            write_record(self.directory / f"{pair.morph_id}.json", record)
        return {} if distances is None else {"loss": distances.loss.mean()}

    def _reproduction(self, pair: MorphPair) -> str:
        """Command that makes one pair's morph alone, under the same configuration and seed."""
        alone = self.directory / "failed" / f"{pair.morph_id}.csv"
        alone.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(alone, [pair])
        dropped = ("data.pairs=", "data.limit=", "paths.run=")
        kept = [entry for entry in self.overrides if not entry.startswith(dropped)]
        own = [setting("data.pairs", alone), "data.limit=null"]
        own.append(setting("paths.run", alone.with_suffix("")))
        return shlex.join(["python", "run.py", *kept, *own])

    def _record(self, batch: "_Batch", morphs: Morphs, k: int) -> dict[str, Any]:
        norms = [p.gradient_norm for p in batch.progress if p.gradient_norm is not None]
        return {
            "schema": SCHEMA,
            "pair": batch.sources.pairs[k].morph_id,
            "attack": self.attack.name,
            "config_hash": self.config,
            "sources": self.benchmark.source_hashes(batch.sources.pairs[k]),
            "loss": [float(p.loss[k]) for p in batch.progress],
            "gradient_norm": [float(norm[k]) for norm in norms],
            "nfe": morphs.cost.counters(),
            "gradient_error": None,
            **(morphs.details[k] if morphs.details else {}),
        }


class _Batch:
    """A batch of pairs under way."""

    def __init__(self, sources: Sources, bench: Workbench, attack: Attack) -> None:
        self.started = time.monotonic()
        self.sources, self.bench = sources, bench
        self.work = attack.begin(sources, bench)
        self.progress: list[Progress] = []
