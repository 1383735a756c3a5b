"""Morphing as a Lightning loop: one training step is one gradient step on the latents of a batch.

Latents belong to their batch of pairs, not to the module: they never enter the all-reduce of
distributed training, and every process optimises its own pairs. A pair is finished when its PNG
and its record are both on disk, written atomically and in that order, so that a killed run
continues where it stopped on any number of processes.
"""

import json
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adjointdeis.faces.datasets.pairs import Pair
from adjointdeis.faces.image_io import write_image
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.files import write_atomically
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.harness.attacks import Attack
from adjointdeis.harness.benchmark import (
    SOURCE,
    Benchmark,
    read_aligned,
    to_tensor,
    to_uint8,
)
from adjointdeis.harness.encodings import Encodings
from adjointdeis.harness.provenance import morph_text
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.dim import MorphLatents, morph_latents, sde_morph_latents
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.rollout import Rollout, sample


@dataclass(frozen=True)
class WorkItem:
    """One step of one batch of pairs; the step after the last gradient step finishes the batch."""

    pairs: tuple[Pair, ...]
    step: int


class PairSteps(IterableDataset):
    """Every batch of pairs, repeated once per gradient step and once to finish.

    Pairs are dealt to the processes like cards, without padding: no pair is done twice and none is
    lost, and the shares may differ by one pair.

    Arguments:
        pairs: The pairs that are not finished yet.
        batch_size: Pairs optimised together.
        steps: Gradient steps of a batch.
        rank, world: This process and the number of processes.
    """

    def __init__(
        self, pairs: Sequence[Pair], batch_size: int, steps: int, rank: int = 0, world: int = 1
    ) -> None:
        own = list(pairs)[rank::world]
        self.batches = [
            tuple(own[start : start + batch_size]) for start in range(0, len(own), batch_size)
        ]
        self.steps = steps

    def __len__(self) -> int:
        return len(self.batches) * (self.steps + 1)

    def __iter__(self) -> Iterator[WorkItem]:
        for pairs in self.batches:
            for step in range(self.steps + 1):
                yield WorkItem(pairs, step)


class PairData(L.LightningDataModule):
    """The unfinished pairs of an attack, sharded over the processes."""

    def __init__(self, pairs: Sequence[Pair], batch_size: int, steps: int) -> None:
        super().__init__()
        self.pairs, self.batch_size, self.steps = tuple(pairs), batch_size, steps

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        dataset = PairSteps(
            self.pairs,
            self.batch_size,
            self.steps,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(dataset, batch_size=None)


class LatentDDPStrategy(DDPStrategy):
    """Distributed data parallel that leaves a module without trainable weights alone.

    There is nothing to reduce when only latents are optimised, and torch refuses to wrap such a
    module. With trainable weights this is plain DDP.
    """

    strategy_name = "latent_ddp"

    def configure_ddp(self) -> None:
        if any(p.requires_grad for p in self.lightning_module.parameters()):  # type: ignore[union-attr]
            super().configure_ddp()


class LatentMorphing(L.LightningModule):
    """Runs one attack over batches of pairs.

    Arguments:
        attack: What to do.
        autoencoder: Generator.
        identity: Recogniser of the identity loss.
        benchmark: Faces.
        encodings: Encoder with its cache.
        directory: Where morphs and records go.
        config: Hash of all that determines a morph, for provenance and for resuming.
        seed: Seed of the SDE's noises; each pair derives its own from it.
        measure_gradient: Compare the attack's gradient with the exact one at the first step of
            every batch. Costs one exact gradient a batch, not counted as the attack's.
    """

    def __init__(
        self,
        attack: Attack,
        autoencoder: Autoencoder,
        identity: NetworkRecogniser,
        benchmark: Benchmark,
        encodings: Encodings,
        directory: Path,
        config: str,
        seed: int = 0,
        measure_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.attack, self.autoencoder, self.identity = attack, autoencoder, identity
        # Registered so that Lightning moves them to the device; frozen, so nothing is reduced.
        self.networks = torch.nn.ModuleList([autoencoder.network, identity.network])
        self.benchmark, self.encodings, self.directory = benchmark, encodings, directory
        self.config, self.seed, self.measure_gradient = config, seed, measure_gradient
        self.loss = IdentityLoss(identity.features)
        self.grid = attack.sampling_grid(autoencoder.schedule)
        self._batch: _Batch | None = None

    def configure_optimizers(self) -> None:
        """None: every batch of latents has an optimiser of its own."""

    def transfer_batch_to_device(
        self, batch: WorkItem, device: torch.device, index: int
    ) -> WorkItem:
        """Nothing to move: an item names pairs, and their images are read where they are needed."""
        return batch

    def training_step(self, item: WorkItem, index: int) -> None:
        if item.step == 0:
            self._batch = self._begin(item.pairs)
        batch = self._batch
        assert batch is not None
        if item.step < self.attack.optimisation_steps:
            if item.step == 0 and self.measure_gradient:
                batch.gradient_error = self._gradient_error(batch)
            step = batch.optimisation.step()
            batch.count(step.rollout)
            batch.losses.append(step.loss.cpu())
            batch.norms.append(step.gradient_norm.cpu())
            values = {"loss": step.loss.mean(), "gradient_norm": step.gradient_norm.mean()}
        else:
            values = {"loss": self._finish(batch)}
            self._batch = None
        self.log("loss", values["loss"], prog_bar=True, logger=False, batch_size=len(item.pairs))
        named = {f"{self.attack.name}/{key}": value for key, value in values.items()}
        self.log_dict(named, logger=True, prog_bar=False, batch_size=len(item.pairs))

    def _begin(self, pairs: tuple[Pair, ...]) -> "_Batch":
        size = self.autoencoder.network.config.image_size
        images = [
            read_aligned([self.benchmark.image(s, SOURCE) for s in side], size)
            for side in ([p.subject_a for p in pairs], [p.subject_b for p in pairs])
        ]
        latents = self._latents(pairs, images)
        sources = [to_tensor(side).to(self.device) for side in images]
        with torch.no_grad():
            v_a, v_b = (self.identity.features(side) for side in sources)

        def draw(x_T: Tensor, z: Tensor) -> Rollout:
            return self._sample(latents, x_T, z, self.attack.gradient)

        def objective(x_0: Tensor) -> Tensor:
            return self.loss(x_0, v_a, v_b).loss

        optimizer = self.attack.optimizer or (lambda groups: torch.optim.SGD(groups, lr=0.0))
        optimisation = LatentOptimisation(
            draw,
            objective,
            latents.x_T,
            latents.z,
            optimizer,
            self.attack.z_learning_rate,
            self.attack.keep,
        )
        return _Batch(pairs, latents, optimisation, v_a, v_b)

    def _latents(self, pairs: tuple[Pair, ...], images: Sequence[Any]) -> MorphLatents:
        if not self.attack.stochastic:
            return morph_latents(*(self.encodings(side, self.device) for side in images))
        seeds = [self.seed + zlib.crc32(pair.morph_id.encode()) for pair in pairs]
        x_a, x_b = (to_tensor(side).to(self.device) for side in images)
        with torch.no_grad():
            return sde_morph_latents(self.autoencoder, x_a, x_b, self.grid, seeds)

    def _sample(self, latents: MorphLatents, x_T: Tensor, z: Tensor, gradient: Any) -> Rollout:
        return sample(
            self.autoencoder.denoiser,
            x_T,
            z,
            solver=self.attack.solver,
            grid=self.grid,
            noise=latents.noise,
            gradient=gradient,
        )

    def _gradient_error(self, batch: "_Batch") -> list[dict[str, float]]:
        """Error of the attack's gradient over (x_T, z) against the exact one, per pair."""
        flat = []
        for method in (self.attack.gradient, DiscreteAdjoint()):
            x_T = batch.latents.x_T.detach().clone().requires_grad_()
            z = batch.latents.z.detach().clone().requires_grad_()
            with torch.enable_grad():
                rollout = self._sample(batch.latents, x_T, z, method)
                loss = self.loss(rollout.x_0, batch.v_a, batch.v_b).loss.sum()
                gradients = torch.autograd.grad(loss, (x_T, z))
            flat.append(torch.cat([g.flatten(1) for g in gradients], 1).double())
        approximate, exact = flat
        length = exact.norm(dim=1)
        relative = (approximate - exact).norm(dim=1) / length
        cosine = torch.nn.functional.cosine_similarity(approximate, exact, dim=1)
        ratio = approximate.norm(dim=1) / length
        return [
            {"relative": r, "cosine": c, "norm_ratio": n}
            for r, c, n in zip(relative.tolist(), cosine.tolist(), ratio.tolist(), strict=True)
        ]

    def _finish(self, batch: "_Batch") -> Tensor:
        rollout, losses = batch.optimisation.evaluate()
        batch.forward += rollout.cost.nfe_forward
        if self.attack.keep == "best":
            batch.forward += rollout.cost.nfe_forward  # the last iterate was evaluated too
        with torch.no_grad():
            distances = self.loss(rollout.x_0, batch.v_a, batch.v_b)
        images = to_uint8(rollout.x_0)
        seconds = (time.time() - batch.started) / len(batch.pairs)
        for k, pair in enumerate(batch.pairs):
            sources = self.benchmark.source_hashes(pair)
            failure = batch.optimisation.failed.get(k)
            if not torch.isfinite(rollout.x_0[k]).all():
                failure = failure or "the sampler's result is not finite"
            record = {
                "pair": pair.morph_id,
                "attack": self.attack.name,
                "config_hash": self.config,
                "sources": sources,
                "failed": failure,
                "loss": [float(x[k]) for x in batch.losses] + [float(losses[k])],
                "gradient_norm": [float(x[k]) for x in batch.norms],
                "distance_a": float(distances.a[k]),
                "distance_b": float(distances.b[k]),
                "nfe": {
                    "encode": self.attack.encoding_steps
                    if not self.attack.stochastic
                    else batch.latents.nfe,
                    "forward": batch.forward,
                    "backward": batch.backward,
                    "vjps": batch.vjps,
                },
                "gradient_error": batch.gradient_error[k] if batch.gradient_error else None,
                "seconds": round(seconds, 3),
            }
            if failure is None:
                path = self.directory / f"{pair.morph_id}.png"
                text = morph_text(self.attack.name, self.config, sources)
                write_image(path, images[k], text)
            write_record(self.directory / f"{pair.morph_id}.json", record)
        return losses.mean()


@dataclass(eq=False)
class _Batch:
    """A batch of pairs under way."""

    pairs: tuple[Pair, ...]
    latents: MorphLatents
    optimisation: LatentOptimisation
    v_a: Tensor
    v_b: Tensor

    def __post_init__(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.gradient_error: list[dict[str, float]] | None = None
        self.forward = self.backward = self.vjps = 0
        self.started = time.time()

    def count(self, rollout: Rollout) -> None:
        """Adds a gradient step's evaluations; every pair of the batch spends the same."""
        self.forward += rollout.cost.nfe_forward
        self.backward += rollout.cost.nfe_backward
        self.vjps += rollout.cost.vjps


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON record atomically."""
    text = json.dumps(record, indent=1)
    write_atomically(path, lambda file: file.write(text))


def read_records(directory: Path, benchmark: Benchmark, config: str) -> dict[str, dict[str, Any]]:
    """Records of the finished pairs of an attack, by pair.

    A record of another configuration or of other source images, without its morph, or damaged,
    does not count: its pair is done again.
    """
    records = {}
    for pair in benchmark.pairs:
        path = directory / f"{pair.morph_id}.json"
        try:
            record = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue
        same = (record.get("config_hash"), record.get("sources")) == (
            config,
            benchmark.source_hashes(pair),
        )
        has_morph = (directory / f"{pair.morph_id}.png").is_file()
        if same and (has_morph or record.get("failed")):
            records[pair.morph_id] = record
    return records
