"""Image pools as Lightning data: whole pools in memory, augmented a batch at a time."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adjointdeis.faces.datasets.folder import FaceDataset
from adjointdeis.harness.benchmark import file_hash, read_aligned
from synthetic_faces.pool import open_pool


class ImageBatches(Dataset):
    """Images in memory and their labels, a batch by its indices.

    One fancy index a batch: a loader that collates single images spends more time copying than a
    small network spends training.

    Args:
        images: (N, 3, S, S), in [-1, 1] or bytes, which are brought there.
        labels: (N).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if not images.is_floating_point():
            images = images.float() / 127.5 - 1
        return images, self.labels[chosen]


class PoolDataset(ImageBatches):
    """Batches of a rendered pool: images in [-1, 1] with shape (B, 3, S, S), and labels (B).

    Args:
        directory: Folder that a data task has filled.
        studio_only: Leave out the images taken under wild conditions.
    """

    def __init__(self, directory: Path, studio_only: bool = False) -> None:
        pool = open_pool(Path(directory))
        keep = np.ones(len(pool.labels), bool)
        if studio_only:
            keep = np.asarray(pool.meta["capture"]) == "studio"
        images = torch.from_numpy(np.array(pool.images)[keep]).permute(0, 3, 1, 2).contiguous()
        super().__init__(images, torch.from_numpy(np.array(pool.labels)[keep]).long())
        self.identities = int(self.labels.max()) + 1
        self.fingerprint = pool.spec.fingerprint


class FaceFolder(ImageBatches):
    """Batches of a folder of aligned faces, without the people of one fold.

    Args:
        dataset: Faces named ``<subject>_<capture>``, all of one size.
        size: That size, in pixels.
        fold: Part of the people that is left out, 0 .. folds - 1; None leaves nobody out.
        folds: Number of parts, see :func:`held_out`.

    Attributes:
        held_out: Ids of the people that are left out.
        fingerprint: SHA-256 of the names and bytes of the images that are served.

    Raises:
        ValueError: A fold that does not exist, nobody left to train on, or an image of another
            size.
    """

    def __init__(self, dataset: FaceDataset, size: int, fold: int | None, folds: int) -> None:
        self.held_out = () if fold is None else held_out(dataset.ids, fold, folds)
        trained = [s for s in dataset.subjects if s.id not in set(self.held_out)]
        paths = [s.images[capture] for s in trained for capture in sorted(s.images)]
        if not paths:
            raise ValueError(
                f"task.fold={fold} of {folds} leaves nobody of the {len(dataset.ids)} people of "
                f"{dataset.root} to train on; choose more folds"
            )
        images = torch.from_numpy(read_aligned(paths, size)).permute(0, 3, 1, 2).contiguous()
        people = {s.id: k for k, s in enumerate(trained)}
        super().__init__(images, torch.tensor([people[s.id] for s in trained for _ in s.images]))
        self.identities = len(people)
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{path.name} {file_hash(path)}\n".encode())
        self.fingerprint = digest.hexdigest()


def held_out(ids: Sequence[str], fold: int, folds: int) -> tuple[str, ...]:
    """People of one fold: every ``folds``-th of the sorted ids, from the ``fold``-th on.

    The folds are disjoint and cover everybody; neighbours in the numbering, who may be siblings or
    have been photographed on one day, are spread over them.

    Args:
        ids: Subject ids, in any order.
        fold: 0 .. folds - 1.
        folds: At least 2.

    Raises:
        ValueError: No such fold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(
            f"task.fold={fold}, task.folds={folds}: expected at least 2 folds and one of "
            "0 .. folds - 1 (null trains on everybody)"
        )
    return tuple(sorted(ids)[fold::folds])


class EndlessBatches(Sampler[list[int]]):
    """Shuffled batches for ever; the batch at step k depends on the seed and k only.

    A run that resumes at step k therefore sees the batches it would have seen.

    Args:
        size: Number of images.
        batch: Images per batch.
        seed: Seed of the order.
        first: First step to serve.
    """

    def __init__(self, size: int, batch: int, seed: int, first: int = 0) -> None:
        self.size, self.batch, self.seed, self.first = size, batch, seed, first

    def __iter__(self):
        per_epoch = max(1, self.size // self.batch)
        step = self.first
        while True:
            epoch, position = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.size, generator=generator)
            for k in range(position, per_epoch):
                yield order[k * self.batch : (k + 1) * self.batch].tolist()
                step += 1


class PoolData(L.LightningDataModule):
    """Training batches from a pool or a folder, in an endless order that a continued run keeps.

    Args:
        dataset: A pool or a folder.
        batch_size: Images per step and process.
        seed: Seed of the order.
    """

    def __init__(self, dataset: PoolDataset | FaceFolder, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, first = (trainer.global_rank, trainer.global_step) if trainer else (0, 0)
        # Every rank draws its own order; the seed keeps them apart.
        batches = EndlessBatches(len(self.dataset), self.batch_size, self.seed + 7919 * rank, first)
        return DataLoader(self.dataset, sampler=batches, batch_size=None)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of aligned faces that keep them plausible photographs, for small data sets.

    Every image of a batch is changed by draws of its own: mirrored or not; rotated, scaled and
    moved by a similarity; its colours multiplied and shifted. Ranges are uniform about no change.

    Args:
        rotation: Largest rotation, in degrees.
        scale: Largest relative change of size.
        shift: Largest move, as a share of the side.
        channels: Largest relative change of a colour channel's gain.
        gain: Largest relative change of the gain of all channels.
        brightness: Largest added brightness, in images of range [-1, 1].

    Raises:
        ValueError: A negative range, or one that could turn an image inside out.
    """

    rotation: float = 4.0
    scale: float = 0.08
    shift: float = 0.03
    channels: float = 0.06
    gain: float = 0.125
    brightness: float = 0.06

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            largest = 180 if name == "rotation" else 1
            if not 0 <= value < largest:
                raise ValueError(f"task.augmentation.{name}={value}: expected 0 to {largest}")

    def __call__(self, images: Tensor) -> Tensor:
        """Changed images, in [-1, 1], with the shape (B, 3, S, S) of ``images``."""
        batch = len(images)

        def around(width: float, *shape: int) -> Tensor:
            return width * (2 * torch.rand(batch, *shape, device=images.device) - 1)

        mirror = (torch.rand(batch, device=images.device) < 0.5).float() * -2 + 1
        # In the grid's coordinates the side is 2.
        moved = similarity(
            images,
            1 + around(self.scale),
            around(math.radians(self.rotation)),
            around(2 * self.shift, 2),
            mirror,
            mode="bicubic",
        )
        gain = 1 + around(self.channels, 3, 1, 1) + around(self.gain, 1, 1, 1)
        return ((moved + 1) * gain - 1 + around(self.brightness, 1, 1, 1)).clamp(-1, 1)


def similarity(
    images: Tensor,
    scale: Tensor,
    angle: Tensor,
    shift: Tensor,
    mirror: Tensor,
    mode: str = "bilinear",
) -> Tensor:
    """Images looked up at a similarity of their coordinates; the border is reflected.

    Args:
        images: (B, C, S, S).
        scale: Of the coordinates, (B): above 1 shows the image smaller.
        angle: Radians, (B).
        shift: Of the coordinates, in half sides, (B, 2).
        mirror: -1 mirrors left and right, 1 does not; (B).
        mode: Interpolation.
    """
    theta = torch.stack(
        [
            torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
            torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode, padding_mode="reflection", align_corners=False)


def augment_identity(images: Tensor) -> Tensor:
    """Changes what is not identity: colour, light, blur, noise, position, mirror.

    A small recogniser otherwise learns hair, shirt and skin colour, which tell training identities
    apart more easily than bones do. Real recognisers read geometry, so this one must.

    Args:
        images: Faces in [-1, 1], with shape (B, 3, S, S).
    """
    batch = images.shape[0]
    if torch.rand(()) < 0.5:
        images = images.flip(-1)
    # Random similarity: up to +-6% in scale, +-4% of the side in position, +-4 degrees.
    scale = 1 + 0.06 * (2 * torch.rand(batch) - 1)
    angle = 0.07 * (2 * torch.rand(batch) - 1)
    shift = 0.08 * (2 * torch.rand(batch, 2) - 1)
    images = similarity(images, scale, angle, shift, torch.ones(batch))
    grey = images.mean(1, keepdim=True)
    mix = (torch.rand(batch, 1, 1, 1) < 0.35).float()
    images = torch.lerp(images, grey.expand_as(images), mix)
    gain = torch.exp(0.18 * torch.randn(batch, 3, 1, 1) + 0.2 * torch.randn(batch, 1, 1, 1))
    images = ((images + 1) / 2 * gain).clamp(0, 1) * 2 - 1
    blurred = F.interpolate(
        F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False
    )
    soft = (torch.rand(batch, 1, 1, 1) < 0.25).float() * torch.rand(batch, 1, 1, 1)
    images = torch.lerp(images, blurred, soft)
    noise = 0.03 * torch.rand(batch, 1, 1, 1) * torch.randn_like(images)
    return (images + noise).clamp(-1, 1)
