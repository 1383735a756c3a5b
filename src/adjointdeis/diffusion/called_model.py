"""A diffusers model as a callable of (x, timestep, z), whatever it is wrapped in."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.conventions import convention_of

# Names that models of diffusers give to the same thing, in order of preference.
_LATENTS = ("sample", "hidden_states", "x")
_TIMES = ("timestep", "timesteps", "timestep_ratio", "t")
_PROMPTS = ("encoder_hidden_states", "cap_feats", "text_bth", "clip_text_pooled")
_POOLED = ("pooled_projections", "pooled_embeds", "global_hidden_states")
# Joined to the latents: the image of an inpainting or image-to-video model, a mask.
_EXTRA = "extra_channels"
# Positions in an image or a text, which have no batch dimension to repeat.
_UNBATCHED = (
    "img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding", "padding_mask", "position_ids",
    "visual_rope_pos", "text_rope_pos",
)  # fmt: skip


class CalledModel(nn.Module):
    """A model of diffusers, called with the scheduler's timestep by the convention of its class.

    z is None, or the prompt's embedding, or a dictionary: of the model's own argument names, and
    of "prompt", "pooled" and "mask", which stand for whatever the model calls them (for SDXL
    "pooled" is ``added_cond_kwargs["text_embeds"]``). "extra_channels" is joined to the latents:
    the mask and the image of an inpainting model, the first frame of an image-to-video model.

    Args:
        model: in any of peft, DistributedDataParallel, DataParallel, torch.compile.
        bound: arguments of every call. A number for ``guidance`` becomes the embedding's input.
        time, output: see :func:`~adjointdeis.diffusion.conventions.convention_of`.
        keeps_variance: whether the scheduler wants a learned variance beside the prediction.

    Raises:
        ValueError: not called like a model of diffusers, or of unknown convention.
        TypeError: an argument that the model does not take.
    """

    def __init__(
        self,
        model: nn.Module,
        bound: dict[str, Any],
        time: Any = None,
        output: Any = None,
        keeps_variance: bool = False,
    ) -> None:
        super().__init__()
        bare = unwrapped(model)
        self.model, self.bound, self.keeps_variance = model, bound, keeps_variance
        # In a tuple, so that it is no second entry for the same weights.
        self._bare = (bare,)
        self.names = list(inspect.signature(bare.forward).parameters)
        latents, clock = self._first(_LATENTS), self._first(_TIMES)
        if latents is None or clock is None:
            raise ValueError(
                f"{type(bare).__name__}.forward takes ({', '.join(self.names)}); expected sample "
                "or hidden_states, and timestep. Put it into a module whose forward(self, "
                "hidden_states, timestep, encoder_hidden_states=None) calls it, and say "
                "from_diffusers(module, scheduler, time='timestep', output='as is')"
            )
        self.latents, self.clock, self.prompt = latents, clock, self._first(_PROMPTS)
        self.convention = convention_of(bare, time, output, latents == "sample")
        for name in bound:
            self._check_name(name)

    def forward(self, x: Tensor, timestep: Tensor, z: Any) -> Tensor:
        convention, bare = self.convention, self._bare[0]
        dtype = getattr(bare, "dtype", x.dtype)
        latents = x.to(dtype)
        times = timestep.to(x.device).expand(x.shape[0])
        called = self._conditions(x, z)
        called[self.clock] = convention.timestep(times, x, bare)
        latents = self._widened(latents, called.pop(_EXTRA, None))
        called[self.latents] = latents
        if convention.listed:
            called[self.latents] = list(latents.unsqueeze(2))
            prompt = self.prompt
            if prompt is not None and isinstance(called.get(prompt), Tensor):
                called[prompt] = list(called[prompt])
        if "return_dict" in self.names:
            called["return_dict"] = False
        out = self.model(**called)
        out = out if isinstance(out, Tensor) else out[0]
        if convention.listed:
            out = torch.stack(list(out)).squeeze(2)
        if convention.last_tokens:
            out = out[:, -x.shape[1] :]
        return convention.prediction(out if self.keeps_variance else without_variance(out, x))

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.names), None)

    def _widened(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """The latents with the channels that the model wants beside them."""
        if extra is None:
            return x
        channels = self.convention.channels(x)
        if extra.ndim == x.ndim and extra.shape[0] == 1 != x.shape[0]:
            extra = extra.expand(x.shape[0], *extra.shape[1:])
        wanted = [*x.shape[:channels], extra.shape[min(channels, extra.ndim - 1)]]
        wanted += x.shape[channels + 1 :]
        if list(extra.shape) != wanted:
            raise ValueError(
                f"extra_channels has shape {tuple(extra.shape)}; beside latents of shape "
                f"{tuple(x.shape)} it must have shape {tuple(wanted)}, joined along dimension "
                f"{channels}"
            )
        return torch.cat([x, extra.to(x)], dim=channels)

    def _check_name(self, name: str) -> None:
        if name == _EXTRA:
            return
        if name not in self.names or name in (self.latents, self.clock, "return_dict"):
            free = [n for n in self.names if n not in (self.latents, self.clock, "return_dict")]
            guided = "; classifier-free guidance is Guidance(denoiser, negative=..., scale=...)"
            raise TypeError(
                f"{type(self._bare[0]).__name__} takes no {name!r} beside its input and time; it "
                f"takes {', '.join(free) or 'nothing more'}{guided * ('guidance' in name)}"
            )

    def _conditions(self, x: Tensor, z: Any) -> dict[str, Any]:
        """Every argument beside the latents and the time."""
        given = dict(self._named(z))
        both = sorted(
            name
            for name in given.keys() & self.bound.keys()
            if not isinstance(self.bound[name], Mapping)
        )
        if both:
            raise ValueError(f"{', '.join(both)} is both in z and bound by from_diffusers")
        for name, value in self.bound.items():
            value = value if name in _UNBATCHED else _repeated(value, x)
            if name in given:  # a dictionary such as added_cond_kwargs, a part from either side
                given[name] = {**value, **given[name]}
            else:
                given[name] = _moved(value, x.device)
        return self._with_guidance(given, x)

    def _named(self, z: Any) -> Mapping[str, Any]:
        """z by the names of the model's arguments."""
        if z is None:
            return {}
        name = type(self._bare[0]).__name__
        if isinstance(z, Tensor):
            if self.prompt is None:
                raise ValueError(
                    f"{name} takes no condition: pass z=None, and class labels as "
                    "from_diffusers(..., class_labels=...) or z={'class_labels': ...}"
                )
            return {self.prompt: z}
        if not isinstance(z, Mapping):
            raise ValueError(
                f"z is a {type(z).__name__}; {name} is conditioned by a tensor, or by a dictionary "
                "such as {'prompt': embeddings, 'pooled': pooled}"
            )
        found: dict[str, Any] = {}
        for key, value in z.items():
            target, inside = self._target(key)
            if inside is None:
                found[target] = value
            else:
                found.setdefault(target, {})[inside] = value
        return found

    def _target(self, key: str) -> tuple[str, str | None]:
        """The argument that a key of z stands for, and the key inside it, if it is a dictionary."""
        if key in self.names or key == _EXTRA:
            self._check_name(key)
            return key, None
        added = "added_cond_kwargs" in self.names
        pooled = self._first(_POOLED)
        if key == "prompt" and self.prompt is not None:
            return self.prompt, None
        if key == "pooled" and pooled is not None:
            return pooled, None
        if key == "mask" and "encoder_attention_mask" in self.names:
            return "encoder_attention_mask", None
        if added and key in ("pooled", "text_embeds", "time_ids", "image_embeds"):
            return "added_cond_kwargs", "text_embeds" if key == "pooled" else key
        self._check_name(key)
        return key, None

    def _with_guidance(self, given: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """A guidance embedding's input made from a number, and refused where it is left out."""
        bare = self._bare[0]
        config = getattr(bare, "config", {})
        guidance = given.get("guidance")
        if isinstance(guidance, float | int):
            value = guidance * self.convention.guidance_scale
            given["guidance"] = torch.full((x.shape[0],), value, device=x.device)
        elif guidance is None and _of(config, "guidance_embeds"):
            raise ValueError(
                f"this {type(bare).__name__} was distilled with a guidance embedding: say "
                "from_diffusers(model, scheduler, guidance=3.5)"
            )
        if _of(config, "use_meanflow") and given.get("timestep_r") is None:
            raise ValueError(
                f"this {type(bare).__name__} also takes the time at which a step ends: say "
                "z=PerStep([{'prompt': prompt, 'timestep_r': t.expand(len(prompt))} for t in "
                "(*sampler.solver.scheduler.timesteps[1:], torch.zeros(()))])"
            )
        if _of(config, "time_cond_proj_dim") and given.get("timestep_cond") is None:
            raise ValueError(
                f"this {type(bare).__name__} was distilled with a guidance embedding: say "
                "from_diffusers(model, scheduler, timestep_cond=pipe.get_guidance_scale_embedding("
                "torch.tensor([scale - 1.0]), embedding_dim=model.config.time_cond_proj_dim))"
            )
        return given


def without_variance(out: Tensor, x: Tensor) -> Tensor:
    """The first half of an output with twice the channels of the latents."""
    learned = out.ndim == x.ndim > 3 and out.shape[1] == 2 * x.shape[1]
    return out[:, : x.shape[1]] if learned else out


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and peft."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        else:
            return inner


def _of(config: Any, key: str) -> Any:
    return config.get(key) if hasattr(config, "get") else getattr(config, key, None)


def _tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A change of every tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _tensors(change, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_tensors(change, entry) for entry in value)
    return value


def _moved(value: Any, device: torch.device) -> Any:
    return _tensors(lambda tensor: tensor.to(device), value)


def _repeated(value: Any, x: Tensor) -> Any:
    """Bound tensors for a batch that guidance doubled."""

    def repeat(tensor: Tensor) -> Tensor:
        batch = tensor.shape[0] if tensor.ndim else 0
        if batch == 0 or batch >= x.shape[0] or x.shape[0] % batch:
            return tensor
        return tensor.repeat(x.shape[0] // batch, *[1] * (tensor.ndim - 1))

    return _tensors(repeat, value)
