r"""How two encoded faces become the latents of one: linear and spherical interpolation."""

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, weight: float = 0.5) -> Tensor:
    r"""Spherical interpolation of each sample, flattened whole.

    .. math:: \frac{\sin((1-w)\theta)\,a + \sin(w\theta)\,b}{\sin\theta},\quad
        \theta = \arccos\frac{\langle a, b\rangle}{\lVert a\rVert\,\lVert b\rVert}

    Noise of two images keeps its norm this way, while their mean would be :math:`\sqrt 2` too
    short for a sampler that expects a standard normal.

    Args:
        a: First tensors, with shape (B, *).
        b: Second tensors, with shape (B, *).
        weight: 0 gives ``a``, 1 gives ``b``.
    """
    dims = tuple(range(1, a.ndim))
    # The angle is found in float64: near-parallel vectors have a cosine that rounds to 1.
    x, y = a.double(), b.double()
    norms = x.square().sum(dims, keepdim=True).sqrt() * y.square().sum(dims, keepdim=True).sqrt()
    cosine = (x * y).sum(dims, keepdim=True) / norms.clamp_min(torch.finfo(torch.float64).tiny)
    theta = cosine.clamp(-1, 1).arccos()
    sine = theta.sin()
    parallel = sine < 1e-6
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    left = torch.where(
        parallel, torch.full_like(sine, 1 - weight), ((1 - weight) * theta).sin() / safe
    )
    right = torch.where(parallel, torch.full_like(sine, weight), (weight * theta).sin() / safe)
    return (left * x + right * y).to(a.dtype)


def lerp(a: Tensor, b: Tensor, weight: float = 0.5) -> Tensor:
    """Linear interpolation: ``weight`` 0 gives ``a``, 1 gives ``b``.

    Args:
        a, b: Tensors of one shape.
        weight: Share of b, in [0, 1].
    """
    return torch.lerp(a, b, weight)
