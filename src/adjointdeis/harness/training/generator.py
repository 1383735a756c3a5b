r"""Adversarial training of a small StyleGAN2.

The discriminator :math:`D` descends
:math:`\operatorname{softplus}(D(G(z))) + \operatorname{softplus}(-D(x))` and, every sixteenth step,
the gradient penalty :math:`\tfrac{\gamma}{2}\lVert\nabla_x D(x)\rVert^2` times sixteen; the
generator the non-saturating :math:`\operatorname{softplus}(-D(G(z)))`. Path-length regularisation
is left out: it costs a double backward pass through the generator and buys smoothness that a model
of this size does not reach.

References:
    | Analyzing and Improving the Image Quality of StyleGAN
    | https://arxiv.org/abs/1912.04958
    | Which Training Methods for GANs do actually Converge?
    | https://arxiv.org/abs/1801.04406
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.networks.stylegan2 import StyleGAN2, StyleGAN2Config
from adjointdeis.harness.training.discriminator import Discriminator


class GeneratorTraining(L.LightningModule):
    """One step: the discriminator learns from a batch, then the generator from the discriminator.

    Arguments:
        network: Numbers of the generator; the discriminator has the same widths.
        learning_rate: Of both Adams (beta 0 and 0.99).
        penalty: Weight gamma of the gradient penalty.
        penalty_every: Steps between two penalties.
        style_mixing: Share of generated images whose fine layers get another latent's style.
        w_avg_decay: Of the running average of the styles.
    """

    def __init__(
        self,
        network: StyleGAN2Config,
        learning_rate: float = 2e-3,
        penalty: float = 0.3,
        penalty_every: int = 16,
        style_mixing: float = 0.5,
        w_avg_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = StyleGAN2(network)
        self.discriminator = Discriminator(network)
        self.learning_rate = learning_rate
        self.penalty, self.penalty_every = penalty, penalty_every
        self.style_mixing, self.w_avg_decay = style_mixing, w_avg_decay

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        real, _ = batch
        mirrored = torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5
        real = torch.where(mirrored, real.flip(-1), real)
        descend_generator, descend_discriminator = self.optimizers()  # type: ignore[misc]
        # Unwrapped: Lightning counts the steps of wrapped optimisers, and the step of a run is the
        # generator's.
        descend_discriminator = descend_discriminator.optimizer

        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self.generate(len(real))
        loss = F.softplus(self.discriminator(fake)).mean()
        loss = loss + F.softplus(-self.discriminator(real)).mean()
        self.log("train/discriminator", loss.detach())
        if self.trainer.global_step % self.penalty_every == 0:
            slope = self.slope(real)
            loss = loss + self.penalty_every * self.penalty / 2 * slope
            self.log("train/slope", slope.detach())
        descend_discriminator.zero_grad()
        self.manual_backward(loss)
        descend_discriminator.step()

        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self.discriminator(self.generate(len(real)))).mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        descend_generator.zero_grad()
        self.manual_backward(loss)
        descend_generator.step()

    def generate(self, count: int) -> Tensor:
        """Images of fresh latents, some of them of two latents."""
        config, mapping = self.network.config, self.network.mapping
        z = torch.randn(2 * count, config.z_dim, device=self.device)
        # Styles decide everything downstream: they are kept out of half precision.
        with torch.autocast(self.device.type, enabled=False):
            w = mapping(z)
        with torch.no_grad():
            mapping.w_avg.lerp_(w.detach().mean(0), 1 - self.w_avg_decay)
        first, second = w.chunk(2)
        layers = torch.arange(config.styles, device=self.device)
        cut = torch.randint(1, config.styles, (count, 1), device=self.device)
        cut[torch.rand(count, 1, device=self.device) >= self.style_mixing] = config.styles
        mixed = torch.where((layers < cut)[..., None], first[:, None], second[:, None])
        return self.network.synthesise(mixed, noise="random")

    def slope(self, images: Tensor) -> Tensor:
        """Mean squared norm of the discriminator's gradient, in single precision."""
        with torch.autocast(self.device.type, enabled=False):
            images = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.discriminator(images).sum(), images, create_graph=True
            )
            return gradient.square().sum([1, 2, 3]).mean()

    def configure_optimizers(self):
        generator = torch.optim.Adam(
            self.network.parameters(), lr=self.learning_rate, betas=(0.0, 0.99), eps=1e-8
        )
        # A penalty every k steps is k steps of loss and one of penalty: Adam's memory and rate are
        # stretched so that they mean the same number of images.
        stretch = self.penalty_every / (self.penalty_every + 1)
        discriminator = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=self.learning_rate * stretch,
            betas=(0.0, 0.99**stretch),
            eps=1e-8,
        )
        return [generator, discriminator]
