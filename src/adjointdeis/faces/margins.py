r"""Angular-margin classification heads that train face recognisers.

Each head holds one weight vector per training identity and returns the logits
:math:`s\,\cos\theta_j`, with a margin applied to the true identity :math:`y` only. It is thrown
away after training.

References:
    | ArcFace: Additive Angular Margin Loss for Deep Face Recognition
    | https://arxiv.org/abs/1801.07698
    | ElasticFace: Elastic Margin Loss for Deep Face Recognition
    | https://arxiv.org/abs/2109.09416
    | AdaFace: Quality Adaptive Margin for Face Recognition
    | https://arxiv.org/abs/2204.00964
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MarginHead(nn.Module):
    r"""Cosine classifier with the ArcFace margin :math:`\cos(\theta_y + m)`.

    Args:
        embedding_dim: Length of the embeddings.
        identities: Number of training identities.
        scale: :math:`s`, the radius of the hypersphere, positive.
        margin: :math:`m` in radians, in [0, pi / 2).
    """

    def __init__(
        self, embedding_dim: int, identities: int, scale: float = 32.0, margin: float = 0.4
    ) -> None:
        super().__init__()
        if not 0 <= margin < math.pi / 2:
            raise ValueError(f"margin={margin} must lie in [0, pi/2) radians")
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.randn(identities, embedding_dim) * 0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        r"""Logits with shape :math:`(B, K)` of embeddings :math:`(B, D)` and labels :math:`(B)`."""
        cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        # arccos has an infinite slope at +-1.
        cosines = cosines.clamp(-1 + 1e-6, 1 - 1e-6)
        angle, shift = self.margins(embeddings)
        true = cosines.gather(1, labels[:, None]).squeeze(1)
        # Beyond pi the cosine would rise again and reward the wrong direction.
        theta = (true.arccos() + angle).clamp(1e-6, math.pi - 1e-6)
        return self.scale * cosines.scatter(1, labels[:, None], (theta.cos() - shift)[:, None])

    def margins(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Angle added to theta_y and amount taken from its cosine, each with shape (B)."""
        batch = embeddings.new_zeros(embeddings.shape[0], dtype=torch.float32)
        return batch + self.margin, batch


class ElasticMarginHead(MarginHead):
    r"""ArcFace with a margin drawn anew for each sample, :math:`m \sim N(m, \sigma^2)`.

    Args:
        spread: :math:`\sigma` in radians.
    """

    def __init__(
        self,
        embedding_dim: int,
        identities: int,
        scale: float = 32.0,
        margin: float = 0.4,
        spread: float = 0.0125,
    ) -> None:
        super().__init__(embedding_dim, identities, scale, margin)
        self.spread = spread

    def margins(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        angle, shift = super().margins(embeddings)
        return angle + self.spread * torch.randn_like(angle), shift


class AdaMarginHead(MarginHead):
    r"""Margin that follows the embedding's norm, taken as a proxy of image quality.

    With :math:`\hat z = \mathrm{clip}((\lVert z\rVert - \mu) h / \sigma, -1, 1)`, where
    :math:`\mu, \sigma` are running statistics of the norms, the angle is
    :math:`-m\hat z` and the shift :math:`m\hat z + m`.

    Args:
        concentration: :math:`h`, the share of a standard deviation that saturates the proxy.
        momentum: Weight of a batch in the running statistics.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        embedding_dim: int,
        identities: int,
        scale: float = 32.0,
        margin: float = 0.4,
        concentration: float = 0.333,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(embedding_dim, identities, scale, margin)
        self.concentration, self.momentum = concentration, momentum
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def margins(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        norms = embeddings.detach().float().norm(dim=1).clamp(0.001, 100)
        if self.training and len(norms) > 1:
            self.mean.lerp_(norms.mean(), self.momentum)
            self.deviation.lerp_(norms.std(), self.momentum)
        quality = (norms - self.mean) / (self.deviation + 1e-3) * self.concentration
        quality = quality.clamp(-1, 1)
        return -self.margin * quality, self.margin * (1 + quality)
