r"""Training of a small diffusion autoencoder.

The network predicts :math:`v = \alpha\epsilon - \sigma x_0` and is used as a noise prediction
through :math:`\epsilon = \alpha v + \sigma x_t`. At the budgets of the embedded model this trained
much better than a plain noise prediction: at high noise the target is :math:`-x_0`, so the code z
is asked for the whole face, while a noise prediction may simply copy its input.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.faces.networks import DiffAE, DiffAEConfig


class AutoencoderTraining(L.LightningModule):
    """One step: noise a batch at random timesteps, predict v, descend the mean squared error.

    Args:
        network: Numbers of the autoencoder.
        max_steps: Length of the learning-rate schedule.
        learning_rate: Peak rate of AdamW, reached after ``warmup`` steps; a cosine then takes it
            to zero.
        weight_decay: Of AdamW.
        warmup: Steps.
    """

    def __init__(
        self,
        network: DiffAEConfig,
        max_steps: int,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-3,
        warmup: int = 300,
    ) -> None:
        super().__init__()
        self.network = DiffAE(network)
        self.max_steps, self.warmup = max_steps, warmup
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        schedule = DDPM()
        t = schedule.t_of_timestep(torch.arange(schedule.timesteps))
        self.alphas: Tensor
        self.sigmas: Tensor
        self.register_buffer("alphas", schedule.alpha(t).float(), persistent=False)
        self.register_buffer("sigmas", schedule.sigma(t).float(), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x_0, _ = batch
        if torch.rand(()) < 0.5:
            x_0 = x_0.flip(-1)
        timesteps = torch.randint(0, len(self.alphas), (len(x_0),), device=x_0.device)
        alpha = self.alphas[timesteps][:, None, None, None]
        sigma = self.sigmas[timesteps][:, None, None, None]
        eps = torch.randn_like(x_0)
        z = self.network.encode(x_0)
        v = self.network(alpha * x_0 + sigma * eps, timesteps, z)
        loss = F.mse_loss(v.float(), alpha * eps - sigma * x_0)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        schedule = warmup_cosine(optimizer, self.warmup, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero at ``steps``."""
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])
