r"""Training of a small StyleGAN2 for a budget at which adversarial training alone gives no faces.

Every training face comes with a latent: its code by the diffusion autoencoder, whitened over the
pool, so that a standard normal stands for an unseen face. The generator first learns to draw the
faces of their latents,

.. math::
    \lambda_1 \overline{|G(z_x) - x|} + \lambda_2 \sum_i \tfrac{1}{N_i}
        \lVert F_i(G(z_x)) - F_i(x) \rVert^2,

with the feature maps :math:`F_i` of a recogniser; from a stated step on it also plays StyleGAN2's
game, on faces of latents of both kinds. The discriminator :math:`D` then descends
:math:`\operatorname{softplus}(D(G(z))) + \operatorname{softplus}(-D(x))` and, every sixteenth step,
the gradient penalty :math:`\tfrac{\gamma}{2}\lVert\nabla_x D(x)\rVert^2` times sixteen; the
generator adds the non-saturating :math:`\operatorname{softplus}(-D(G(z)))`. With no reconstruction
and the game from step 0 this is the training of the paper, without path-length regularisation,
which costs a double backward pass through the generator and buys smoothness that a model of this
size does not reach.

References:
    | Analyzing and Improving the Image Quality of StyleGAN
    | https://arxiv.org/abs/1912.04958
    | Which Training Methods for GANs do actually Converge?
    | https://arxiv.org/abs/1801.04406
    | Autoencoding beyond pixels using a learned similarity metric
    | https://arxiv.org/abs/1512.09300
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.networks import IResNet, StyleGAN2, StyleGAN2Config
from adjointdeis.harness.training.discriminator import Discriminator
from adjointdeis.morphing.perceptual import TrunkMaps, perceptual_distance


class GeneratorTraining(L.LightningModule):
    """One step: the discriminator learns from a batch, then the generator from it and the faces.

    Args:
        network: Numbers of the generator; the discriminator has the same widths.
        trunk: Recogniser whose features the reconstruction compares, frozen.
        learning_rate: Of both Adams (beta 0 and 0.99).
        pixel: Weight lambda_1 of the absolute difference.
        perceptual: Weight lambda_2 of the difference of features.
        adversarial_from: First step with a discriminator.
        penalty: Weight gamma of the gradient penalty.
        penalty_every: Steps between two penalties.
        style_mixing: Share of images of normal latents whose fine layers get another's style.
        w_avg_decay: Of the running average of the styles.
    """

    def __init__(
        self,
        network: StyleGAN2Config,
        trunk: IResNet,
        learning_rate: float = 2.5e-3,
        pixel: float = 10.0,
        perceptual: float = 1.0,
        adversarial_from: int = 0,
        penalty: float = 0.5,
        penalty_every: int = 16,
        style_mixing: float = 0.5,
        w_avg_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = StyleGAN2(network)
        self.discriminator = Discriminator(network)
        # In a list: neither trained nor averaged, and not in the checkpoints.
        self._maps = [TrunkMaps(trunk.eval().requires_grad_(False), stages=2)]
        self.learning_rate = learning_rate
        self.pixel, self.perceptual = pixel, perceptual
        self.adversarial_from = adversarial_from
        self.penalty, self.penalty_every = penalty, penalty_every
        self.style_mixing, self.w_avg_decay = style_mixing, w_avg_decay

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        real, codes = batch
        adversarial = self.trainer.global_step >= self.adversarial_from
        if adversarial:
            # Half of the generated faces are of normal latents: those are what a user draws.
            codes = codes[: len(codes) // 2]
            self.train_discriminator(real, codes)
        normal = len(real) - len(codes)
        fake = self.network.synthesise(self.styles(codes, normal), noise="random")
        loss = self.reconstruction(fake[: len(codes)], real[: len(codes)])
        self.log("train/reconstruction", loss.detach())
        if adversarial:
            self.discriminator.requires_grad_(False)
            game = F.softplus(-self.discriminator(fake)).mean()
            self.log("train/game", game.detach())
            loss = loss + game
        self.log("train/loss", loss.detach(), prog_bar=True)
        optimizer = self.optimizers()[0]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def train_discriminator(self, real: Tensor, codes: Tensor) -> None:
        """One step of the discriminator."""
        # Unwrapped: Lightning counts the steps of wrapped optimisers, and the step of a run is the
        # generator's.
        optimizer = self.optimizers()[1].optimizer  # type: ignore[index]
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            styles = self.styles(codes, len(real) - len(codes))
            fake = self.network.synthesise(styles, noise="random")
        loss = F.softplus(self.discriminator(fake)).mean()
        loss = loss + F.softplus(-self.discriminator(real)).mean()
        self.log("train/discriminator", loss.detach())
        if self.trainer.global_step % self.penalty_every == 0:
            slope = self.slope(real)
            loss = loss + self.penalty_every * self.penalty / 2 * slope
            self.log("train/slope", slope.detach())
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def reconstruction(self, drawn: Tensor, faces: Tensor) -> Tensor:
        """Mean difference of drawn faces from the ones they should be."""
        (maps,) = self._maps
        with torch.no_grad():
            wanted = maps(faces)
        features = perceptual_distance(maps(drawn), wanted).mean()
        return self.pixel * (drawn - faces).abs().mean() + self.perceptual * features

    def styles(self, codes: Tensor, normal: int) -> Tensor:
        """Styles of latents of faces, and after them of normal ones, some of which are mixed."""
        config, mapping = self.network.config, self.network.mapping
        z = torch.cat([codes, torch.randn(2 * normal, config.z_dim, device=codes.device).to(codes)])
        # Styles decide everything downstream: they are kept out of half precision.
        with torch.autocast(self.device.type, enabled=False):
            w = mapping(z)
        with torch.no_grad():
            mapping.w_avg.lerp_(w.detach().mean(0), 1 - self.w_avg_decay)
        of_faces, first, second = w.split([len(codes), normal, normal])
        layers = torch.arange(config.styles, device=w.device)
        cut = torch.randint(1, config.styles, (normal, 1), device=w.device)
        cut[torch.rand(normal, 1, device=w.device) >= self.style_mixing] = config.styles
        mixed = torch.where((layers < cut)[..., None], first[:, None], second[:, None])
        return torch.cat([of_faces[:, None].expand(-1, config.styles, -1), mixed])

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
