r"""Training of a small diffusion autoencoder.

The network predicts m, the clean image up to a white residual of standard deviation s, or
:math:`v = \alpha\epsilon - \sigma x_0`. A narrow network cannot carry noise: predicting v, let
alone the noise, it draws grain; predicting the clean image it need not carry any.

References:
    | Back to Basics: Let Denoising Generative Models Denoise
    | https://arxiv.org/abs/2511.13720
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor

from adjointdeis.diffusion.prediction import Level
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.faces.networks import DiffAE

Trained = Literal["x0", "v"]


def v_error(
    output: Tensor, x_0: Tensor, eps: Tensor, alpha: Level, sigma: Level, spread: float | None
) -> Tensor:
    r"""Error of v that a network's output makes, :math:`v = \alpha\epsilon - \sigma x_0`.

    For a data prediction m with spread s, :math:`\hat\epsilon = \sigma(x - \alpha m)/(\sigma^2 +
    \alpha^2 s^2)` and :math:`\hat v - v = (\hat\epsilon - \epsilon)/\alpha` at
    :math:`\alpha^2 + \sigma^2 = 1`, which is

    .. math:: \hat v - v = \frac{\sigma (x_0 - m) - \alpha s^2 \epsilon}{\sigma^2 + \alpha^2 s^2}

    without a division by alpha: nothing has to be treated apart at high noise.

    Args:
        output: m or v, with the shape of ``x_0``.
        x_0: Clean images.
        eps: The noise in :math:`x = \alpha x_0 + \sigma\epsilon`.
        alpha, sigma: Of each image, broadcast to it.
        spread: s of a data prediction; None where the output is v.
    """
    if spread is None:
        return output - (alpha * eps - sigma * x_0)
    variance = sigma**2 + (alpha * spread) ** 2
    return (sigma * (x_0 - output) - alpha * spread**2 * eps) / variance


class AutoencoderTraining(L.LightningModule):
    """One step: noise a batch at random timesteps, predict, descend the mean squared error of v.

    Args:
        network: The autoencoder; it is trained in place.
        max_steps: Length of the learning-rate schedule.
        learning_rate: Peak rate of AdamW, reached after ``warmup`` steps; a cosine then takes it
            to zero.
        weight_decay: Of AdamW.
        warmup: Steps.
        prediction: What the network shall predict, "x0" or "v".
        spread: s, what an "x0" prediction leaves out of the image, in the units of images in
            [-1, 1]; 0 with "v". Encoded noise has the standard deviation of what is really left
            out divided by s: choose s so that it is about 1.
        train_encoder: Train the encoder too; otherwise codes stay what they are.
        augmentation: Change of a batch of images before each step, the same for the encoder and
            the decoder; None mirrors half of the batches.

    Raises:
        ValueError: An unknown prediction, or a spread that does not belong to it.
    """

    def __init__(
        self,
        network: DiffAE,
        max_steps: int,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-3,
        warmup: int = 300,
        prediction: Trained = "x0",
        spread: float = 0.06,
        train_encoder: bool = True,
        augmentation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Trained):
            raise ValueError(
                f"task.prediction={prediction!r} must be one of {', '.join(get_args(Trained))}"
            )
        if (spread > 0) != (prediction == "x0"):
            wanted = "above 0 (try 0.06)" if prediction == "x0" else "0"
            raise ValueError(f"task.spread={spread} must be {wanted} with {prediction=}")
        # Convolutions on a CPU are a little faster with the channels last.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.encoder.requires_grad_(train_encoder)
        self.spread = spread if prediction == "x0" else None
        self.augmentation = augmentation or _mirrored
        self.max_steps, self.warmup = max_steps, warmup
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        schedule = DDPM()
        t = schedule.t_of_timestep(torch.arange(schedule.timesteps))
        self.alphas: Tensor
        self.sigmas: Tensor
        self.register_buffer("alphas", schedule.alpha(t).float(), persistent=False)
        self.register_buffer("sigmas", schedule.sigma(t).float(), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x_0 = self.augmentation(batch[0])
        timesteps = torch.randint(0, len(self.alphas), (len(x_0),), device=x_0.device)
        alpha = self.alphas[timesteps][:, None, None, None]
        sigma = self.sigmas[timesteps][:, None, None, None]
        eps = torch.randn_like(x_0)
        z = self.network.encode(x_0)
        output = self.network(alpha * x_0 + sigma * eps, timesteps, z)
        loss = v_error(output.float(), x_0, eps, alpha, sigma, self.spread).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return descent(groups, self.learning_rate, self.weight_decay, self.warmup, self.max_steps)


def _mirrored(images: Tensor) -> Tensor:
    """The batch as it is, or every image of it mirrored."""
    return images.flip(-1) if torch.rand(()) < 0.5 else images


def descent(
    parameters: Iterable[Any], rate: float, decay: float, warmup: int, steps: int
) -> dict[str, Any]:
    """AdamW and its learning rate, as `configure_optimizers` returns them.

    The rate rises linearly from 2% over `warmup` steps, then half a cosine takes it down to zero at
    `steps`. A checkpoint holds the step only, not these lengths: a training that is continued with
    more or fewer steps follows the cosine of its new length from there on.

    Args:
        parameters: Parameters, or groups of them with options of their own.
        rate: Peak learning rate.
        decay: Weight decay.
        warmup, steps: Lengths.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return 0.02 + 0.98 * step / warmup
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * share))

    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
