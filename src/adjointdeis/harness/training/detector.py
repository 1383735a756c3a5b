"""Training of a small convolutional detector of morphs, as a Lightning run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from adjointdeis.detection.degradation import Degradation
from adjointdeis.detection.detector import (
    DetectorError,
    Examples,
    Kind,
    TrainerFactory,
)
from adjointdeis.detection.plugged import TorchDetector
from adjointdeis.faces.image_io import sha256_of
from adjointdeis.faces.networks import MorphNet, MorphNetConfig
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.faces.weights import load_network, read_header
from adjointdeis.harness.training.autoencoder import descent
from adjointdeis.harness.training.data import ImageBatches


@dataclass(frozen=True, kw_only=True)
class ConvolutionalDetection:
    """Trains a :class:`~adjointdeis.faces.networks.MorphNet` on single images.

    Batches hold as many morphs as bona fide images on average, whatever the examples do. Images
    are mirrored, and moved by whole pixels, at random.

    Args:
        name: Of the detector.
        network: Numbers of the network.
        steps: Gradient steps.
        batch_size: Images a step.
        learning_rate: Peak rate of AdamW, after a tenth of the steps; a cosine takes it to zero.
        weight_decay: Of AdamW.
        smoothing: Share of the other label in each label: it keeps scores of what is certain from
            growing without end.
        shift: Largest move in pixels.
        degradations: What copies of the examples go through, by any name: a copy of all of them
            each. Empty trains on them as they are.

    Raises:
        DetectorError: A number of which there cannot be so few.
    """

    name: str
    network: MorphNetConfig = field(default_factory=MorphNetConfig)
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.02
    shift: int = 2
    degradations: Sequence[Degradation] = ()
    kind: ClassVar[Kind] = "s_mad"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.shift < 0:
            raise DetectorError(
                f"detector {self.name}: steps={self.steps}, batch_size={self.batch_size}, "
                f"learning_rate={self.learning_rate}, shift={self.shift}: expected at least 1 "
                "step, batches of 2 or more, a rate above 0 and a shift of 0 or more"
            )

    def train(self, examples: Examples, seed: int, trainer: TrainerFactory) -> TorchDetector:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = DetectorTraining(self)
            images, labels = self.shown(examples)
            data = _loader(images, labels, self.steps, self.batch_size, seed)
            trainer(
                max_steps=self.steps,
                logger=False,
                enable_checkpointing=False,
                gradient_clip_val=1.0,
            ).fit(module, data)
        network = module.network.eval().cpu()
        return self.detector(network, examples.description)

    def load(self, path: str) -> TorchDetector:
        """The detector of a weight file that a training left.

        Raises:
            WeightsError: No such file, or another network.
        """
        network = load_network(Path(path), remedy="name the .safetensors file of a detector")
        if not isinstance(network, MorphNet):
            raise DetectorError(f"{path} holds a {type(network).__name__}, not a MorphNet")
        said = read_header(path).get("training", {})
        return self.detector(network, said.get("examples", f"{path} does not say"))

    def detector(self, network: MorphNet, training: str) -> TorchDetector:
        """The detector of a trained network."""
        weights = [sha256_of(value.detach().numpy()) for value in network.state_dict().values()]
        return TorchDetector(
            name=self.name,
            network=network,
            higher_is="morph",
            training=training,
            fingerprint=sha256_of("\n".join(weights).encode()),
        )

    def shown(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] with their degraded copies, and labels, as the network learns them."""
        suspects = examples.suspects
        copies = [suspects.images]
        copies += [change(suspects.images, suspects.names) for change in self.degradations]
        labels = torch.as_tensor(examples.morph, dtype=torch.float32).repeat(len(copies))
        return torch.cat([to_tensor(images) for images in copies]), labels


class DetectorTraining(L.LightningModule):
    """One step: the binary cross-entropy of a batch.

    Args:
        recipe: Its settings.
    """

    def __init__(self, recipe: ConvolutionalDetection) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = MorphNet(recipe.network)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        if torch.rand(()) < 0.5:
            images = images.flip(-1)
        shift = self.recipe.shift
        if shift:
            moves = torch.randint(-shift, shift + 1, (2,)).tolist()
            images = F.pad(images, (shift,) * 4, mode="replicate")
            size = images.shape[-2] - 2 * shift, images.shape[-1] - 2 * shift
            top, left = (shift + move for move in moves)
            images = images[..., top : top + size[0], left : left + size[1]]
        targets = labels * (1 - self.recipe.smoothing) + (1 - labels) * self.recipe.smoothing
        loss = F.binary_cross_entropy_with_logits(self.network(images), targets)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        r = self.recipe
        warmup = max(1, r.steps // 10)
        return descent(self.parameters(), r.learning_rate, r.weight_decay, warmup, r.steps)


def _loader(images: Tensor, labels: Tensor, steps: int, batch_size: int, seed: int) -> DataLoader:
    """``steps`` batches, each label as often as the other on average."""
    share = labels.mean()
    weights = torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    drawn = WeightedRandomSampler(
        weights.tolist(), steps * batch_size, generator=torch.Generator().manual_seed(seed)
    )
    order = torch.tensor(list(drawn)).reshape(steps, batch_size).tolist()
    return DataLoader(ImageBatches(images, labels), sampler=order, batch_size=None)
