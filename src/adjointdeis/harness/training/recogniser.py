"""Training of a small face recogniser with an angular margin."""

from collections.abc import Callable

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn

from adjointdeis.faces.networks import IResNet, IResNetConfig
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.harness.training.autoencoder import descent
from adjointdeis.harness.training.data import augment_identity


class RecogniserTraining(L.LightningModule):
    """One step: augment a batch, crop the face, classify identities under the head's margin.

    Args:
        network: Numbers of the backbone.
        crop: Face crop that the recogniser applies to aligned images.
        head: Factory of the margin head, called with the embedding length and the identities.
        identities: Number of training identities.
        max_steps: Length of the learning-rate schedule.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of AdamW.
        warmup: Steps.
    """

    def __init__(
        self,
        network: IResNetConfig,
        crop: FaceCrop,
        head: Callable[[int, int], nn.Module],
        identities: int,
        max_steps: int,
        learning_rate: float = 2e-3,
        weight_decay: float = 5e-2,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        self.network = IResNet(network)
        self.crop = crop
        self.head = head(network.embedding_dim, identities)
        self.max_steps, self.warmup = max_steps, warmup
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        embeddings = self.network(self.crop(augment_identity(images)))
        logits = self.head(embeddings, labels)
        loss = F.cross_entropy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return descent(trained, self.learning_rate, self.weight_decay, self.warmup, self.max_steps)
