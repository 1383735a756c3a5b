"""Classifier-free guidance: two predictions under two conditions, one extrapolated from them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


class Guidance(nn.Module):
    r"""Extrapolation from a negative to a positive condition.

    .. math:: \epsilon = \epsilon(x, n) + s \, (\epsilon(x, z) - \epsilon(x, n))

    s = 1 is the conditional model. Pipelines that write (1 + g) for the factor of the difference
    (Kandinsky 3, Krea 2) have s = 1 + g. It works on whatever the network predicts: wrapped around
    ``sampler.denoiser`` it is the pipeline's own, ``rescale`` included.

    Args:
        denoiser: ``(x, t, z)``.
        negative: the condition of the other branch: a tensor, or a dictionary or tuple like z. Of
            a dictionary, what it leaves out is shared with z. A batch of 1, or no batch
            dimension at all, serves every sample. Lengths may differ from those of z.
        scale: s, a number, a 0-d tensor, or one for each sample, shape (B,).
        batched: evaluate both branches as one batch where their shapes agree; otherwise, where
            they do not, and around another guidance, one after the other. The result is the same.
        rescale: phi in [0, 1], share of the result that is brought to the standard deviation of
            the conditional prediction.
        interval: (low, high): times at which to guide, both included; elsewhere the conditional
            model alone is evaluated. For a scheduler's sampler t is the share of steps that is
            left, so that (0.2, 0.8) leaves out the first and the last fifth.
        keep_norm: bring the result to the norm of the conditional prediction along the last
            dimension, as the pipelines of Qwen-Image and Nucleus do.

    ``negative`` and ``scale`` receive a gradient if they require one: as ``nn.Parameter``, or as
    plain tensors, which :meth:`parameters` names too.

    Raises:
        ValueError: a rescale outside [0, 1], an empty interval, no z, or a negative of another
            structure than z.

    References:
        Classifier-free diffusion guidance, https://arxiv.org/abs/2207.12598
        Common diffusion noise schedules and sample steps are flawed (rescale, section 3.4),
        https://arxiv.org/abs/2305.08891
        Applying guidance in a limited interval, https://arxiv.org/abs/2404.07724
    """

    evaluations = 2

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        negative: Any,
        scale: float | Tensor,
        batched: bool = True,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
        keep_norm: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        if interval is not None and not 0.0 <= interval[0] <= interval[1] <= 1.0:
            raise ValueError(f"interval must be (low, high) in [0, 1], got {interval}")
        self.denoiser = denoiser
        # What a guidance inside holds for each sample is for one batch, not for two of them.
        inside = denoiser.modules() if isinstance(denoiser, nn.Module) else ()
        batched = batched and not any(isinstance(module, Guidance) for module in inside)
        self.batched, self.rescale = batched, rescale
        self.interval, self.keep_norm = interval, keep_norm
        # Tensors with a gradient of their own are held as they are: a Parameter would cut the
        # graph of a text encoder's output.
        self._held: dict[str, Any] = {}
        leaves, self._structure = tree_flatten(negative)
        self._names = [self._hold(f"negative_{k}", leaf) for k, leaf in enumerate(leaves)]
        self._hold("scale", scale)

    def _hold(self, name: str, value: Any) -> str:
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Tensor) and not value.requires_grad:
            self.register_buffer(name, value)
        else:
            self._held[name] = value
        return name

    def _value(self, name: str) -> Any:
        return self._held[name] if name in self._held else getattr(self, name)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Weights, and the plain tensors among ``negative`` and ``scale`` that want a gradient."""
        yield from super().parameters(recurse)
        for module in self.modules():  # of a guidance inside this one, too
            if isinstance(module, Guidance):
                held = module._held.values()
                yield from (v for v in held if isinstance(v, Tensor))  # type: ignore[misc]

    def of_rows(
        self, batch: int, rows: slice | list[int]
    ) -> tuple["Guidance", list[tuple[Tensor, Tensor]]]:
        """This guidance for some samples of a batch.

        Returns:
            A guidance with their rows of what is held for each sample; and each tensor that was
            divided, with its rows.
        """
        found, divided = copy.copy(self), []
        for name in ("_held", "_parameters", "_buffers", "_modules"):
            found.__dict__[name] = dict(getattr(self, name))
        for name in ("scale", *self._names):
            value = self._value(name)
            each = isinstance(value, Tensor) and value.ndim > (name != "scale")
            if each and value.shape[0] == batch:
                for held in (found._parameters, found._buffers):
                    held.pop(name, None)
                found._held[name] = own = value[rows]
                divided.append((value, own))
        if isinstance(self.denoiser, Guidance):
            found.denoiser, inside = self.denoiser.of_rows(batch, rows)
            divided += inside
        return found, divided

    def evaluations_at(self, t: Tensor) -> int:
        """Network evaluations of one call at time t."""
        return 2 if self.guides(t) else 1

    def guides(self, t: Tensor) -> bool:
        """Whether t lies in the interval."""
        return self.interval is None or self.interval[0] <= float(t) <= self.interval[1]

    def negative(self, z: Any, x: Tensor) -> Any:
        """The other branch's condition, completed from z and as wide as the batch."""
        found = tree_unflatten([self._value(name) for name in self._names], self._structure)
        if isinstance(z, Mapping) and isinstance(found, Mapping):
            unknown = sorted(found.keys() - z.keys())
            if unknown:
                raise ValueError(
                    f"negative has {', '.join(map(repr, unknown))}, which z, with "
                    f"{', '.join(map(repr, z))}, has not"
                )
            found = {**z, **found}
        wanted, given = tree_flatten(z), tree_flatten(found)
        if wanted[1] != given[1]:
            raise ValueError(
                f"negative has the structure {given[1]}, z has {wanted[1]}; give both alike, or a "
                "dictionary of what differs"
            )
        filled = [_as_wide(a, b, x) for a, b in zip(given[0], wanted[0], strict=True)]
        return tree_unflatten(filled, wanted[1])

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        return self._guided(self.denoiser, x, t, z)

    def data(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        """The guided data prediction of a network that has one where alpha = 0.

        Raises:
            AttributeError: it predicts eps.
        """
        return self._guided(self.denoiser.data, x, t, z)  # type: ignore[attr-defined]

    def _guided(self, predict: Callable[..., Tensor], x: Tensor, t: Tensor, z: Any) -> Tensor:
        if z is None:
            raise ValueError("classifier-free guidance needs a condition z")
        if not self.guides(t):
            return predict(x, t, z)
        negative = self.negative(z, x)
        if self.batched and _alike(z, negative):
            both = tree_map(_joined, negative, z)
            without, given = predict(torch.cat([x, x]), t, both).chunk(2)
        else:
            without, given = predict(x, t, negative), predict(x, t, z)
        return self.combined(without, given, x)

    def combined(self, without: Tensor, given: Tensor, x: Tensor) -> Tensor:
        """The guided prediction; a learned variance is that of the conditional one.

        Args:
            without, given: Predictions (B, ...) without and with the condition.
            x: Latents (B, ...) that they are of.
        """
        variance = None
        if given.ndim == x.ndim > 3 and given.shape[1] == 2 * x.shape[1]:
            without = without[:, : x.shape[1]]
            given, variance = given.split(x.shape[1], dim=1)
        scale = self._value("scale")
        if isinstance(scale, Tensor):
            if scale.ndim:
                if scale.numel() != len(scale) or len(scale) not in (1, len(given)):
                    raise _other_batch("scale", scale, len(given))
                scale = scale.reshape(-1, *[1] * (given.ndim - 1))
            scale = scale.to(given)
        guided = without + scale * (given - without)
        if self.keep_norm:
            norms = [v.norm(dim=-1, keepdim=True) for v in (given, guided)]
            guided = guided * (norms[0] / norms[1])
        if self.rescale:
            dims = list(range(1, given.ndim))
            spread = given.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
            guided = self.rescale * (guided * spread) + (1.0 - self.rescale) * guided
        return guided if variance is None else torch.cat([guided, variance], dim=1)


def of_rows(
    denoiser: Any, parameters: Any, batch: int, rows: slice | list[int]
) -> tuple[Any, list[Tensor] | None]:
    """A denoiser and its parameters for some samples of a batch; see :meth:`Guidance.of_rows`."""
    if not isinstance(denoiser, Guidance):
        return denoiser, parameters
    found, divided = denoiser.of_rows(batch, rows)
    if parameters is not None:
        own = {id(whole): part for whole, part in divided}
        parameters = [own.get(id(parameter), parameter) for parameter in parameters]
    return found, parameters


class ClassifierFreeGuidance(Guidance):
    """:class:`Guidance` under the name of its paper, one branch after the other.

    Args:
        denoiser: conditional noise prediction.
        z_null: the condition that stands for "none", broadcast to the shape of z.
        scale: guidance scale.
    """

    def __init__(self, denoiser: Callable[..., Tensor], z_null: Tensor, scale: float) -> None:
        super().__init__(denoiser, z_null, scale, batched=False)


def _as_wide(negative: Any, positive: Any, x: Tensor) -> Any:
    """A leaf of the negative condition for every sample of the batch."""
    if not isinstance(negative, Tensor) or not isinstance(positive, Tensor):
        return negative
    if negative.is_floating_point():
        negative = negative.to(positive)
    negative = negative.to(x.device)
    if negative.ndim == positive.ndim - 1:  # without a batch dimension
        negative = negative[None]
    if negative.ndim and negative.shape[0] == 1 != positive.shape[0]:
        negative = negative.expand(positive.shape[0], *negative.shape[1:])
    batch = len(x)
    if negative.ndim == positive.ndim > 0 and len(positive) == batch != len(negative):
        raise _other_batch("negative", negative, batch)
    return negative


def _other_batch(name: str, value: Tensor, batch: int) -> ValueError:
    return ValueError(
        f"{name} has shape {tuple(value.shape)} for a batch of {batch}: give it once for all "
        f"samples or once for each, {batch} in its first dimension alone; with microbatch=, whose "
        "parts have fewer samples, let the guidance be the outermost module or give it once for all"
    )


def _alike(z: Any, negative: Any) -> bool:
    pairs = zip(tree_flatten(z)[0], tree_flatten(negative)[0], strict=True)
    return all(
        a.shape == b.shape and a.dtype == b.dtype and a.ndim > 0
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else a is b or (not isinstance(a, Tensor) and bool(a == b))
        for a, b in pairs
    )


def _joined(negative: Any, positive: Any) -> Any:
    return torch.cat([negative, positive]) if isinstance(positive, Tensor) else positive
