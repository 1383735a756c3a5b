r"""How each diffusers model is called: its time, the sign and the channels of its output.

Read from the denoising loop of every pipeline of diffusers 0.42. Two models with the same
argument names may want different times (FLUX.1 takes t / 1000, Stable Diffusion 3 takes t), and a
wrong time gives an image and a gradient without an error; a class that is not here is refused. A
``forward(sample, timestep, ...)`` is the interface of ``UNet2DModel``; whoever has those names is
called like one: every model of diffusers whose latents are called ``sample`` takes the timestep as
it is.

Left out on purpose, because their pipelines do more to the latents than call the model (joint
audio, reference tokens, preconditioning, two networks): AceStep, AnyFlow, Cosmos, Flux3, Helios,
Ideogram4, JoyImage, Kandinsky6, LTX2, MiniMax, RFD4, SanaWM, WanAnimate2, DreamLite, SanaSprint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

#: What ``time=`` may say, by the expression that a pipeline writes.
TIMES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "timestep": lambda timestep, model: timestep,
    "timestep / 1000": lambda timestep, model: timestep / 1000,
    "1 - timestep / 1000": lambda timestep, model: 1 - timestep / 1000,
    "(1000 - timestep) / 1000": lambda timestep, model: (1000 - timestep) / 1000,
    "timestep - 1": lambda timestep, model: timestep - 1,
    "timestep * timestep_scale": lambda timestep, model: timestep * model.config.timestep_scale,
}
#: What ``output=`` may say.
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as is": lambda output: output,
    "negated": lambda output: -output,
}


@dataclass(frozen=True)
class Convention:
    """How a model is called with a scheduler's timestep, and what its output means.

    Args:
        time: one of ``TIMES``, or a function of the timesteps, shape (B,).
        output: one of ``OUTPUTS``, or a function of the model's output.
        cast: when the timestep takes the dtype of the latents, as pipelines in half precision
            do: "before" the expression, "after" it, or "never" (then it stays float32 or int64).
        float_output: whether the output is brought to float32 before the scheduler's step.
        guidance_scale: factor of a guidance embedding given as a number.
        listed: whether the model takes and gives a list of samples (Z-Image).
        channel_dim: dimension of the latents' channels; None is 1 for images and videos, and the
            last one for latents packed to tokens, shape (B, L, C).
        rounded_state: whether the pipeline brings the latents back to their own dtype after each
            step; otherwise they have the one that the scheduler gives them.
        last_tokens: whether the output has the prompt's tokens before the image's.
    """

    time: str | Callable[[Tensor], Tensor] = "timestep"
    output: str | Callable[[Tensor], Tensor] = "as is"
    cast: str = "never"
    float_output: bool = False
    guidance_scale: float = 1.0
    listed: bool = False
    channel_dim: int | None = None
    last_tokens: bool = False
    rounded_state: bool = False

    def __post_init__(self) -> None:
        for key, known in (("time", TIMES), ("output", OUTPUTS)):
            value = getattr(self, key)
            if not callable(value) and value not in known:
                raise ValueError(
                    f"{key}={value!r} is unknown; say one of {', '.join(map(repr, known))}, or "
                    f"give a function, such as {key}=lambda value: value"
                )
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale={self.guidance_scale}: expected a finite number")

    def timestep(self, timestep: Tensor, x: Tensor, model: Any) -> Tensor:
        """What the model gets for a timestep of the scheduler, shape (B,)."""
        if self.cast == "before":
            timestep = timestep.to(x.dtype)
        called = self.time if callable(self.time) else None
        out = called(timestep) if called else TIMES[str(self.time)](timestep, model)
        return out.to(x.dtype) if self.cast == "after" else out

    def channels(self, x: Tensor) -> int:
        """The dimension of the channels in latents x."""
        if self.channel_dim is None:
            return 1 if x.ndim > 3 else x.ndim - 1
        return self.channel_dim % x.ndim

    def prediction(self, output: Tensor) -> Tensor:
        """The model's output as the scheduler expects it."""
        called = self.output if callable(self.output) else OUTPUTS[self.output]
        out = called(output)
        # float64 stays: the cast of a pipeline is one up from half precision.
        return out.float() if self.float_output and out.element_size() < 4 else out


_PLAIN = Convention()
_CAST = Convention(cast="before")
_FRACTION = Convention("timestep / 1000", cast="before")
_FRACTION_THEN_CAST = Convention("timestep / 1000", cast="after")
_FLOAT = Convention(float_output=True)

_GROUPS: dict[Convention, tuple[str, ...]] = {
    _PLAIN: (
        "UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel", "UNetMotionModel",
        "I2VGenXLUNet", "Kandinsky3UNet", "AudioLDM2UNet2DConditionModel",
        "AllegroTransformer3DModel", "BriaTransformer2DModel", "ChronoEditTransformer3DModel",
        "CogView4Transformer2DModel", "DiTTransformer2DModel", "LatteTransformer3DModel",
        "MotifVideoTransformer3DModel", "OmniGenTransformer2DModel", "PixArtTransformer2DModel",
        "PriorTransformer", "SD3Transformer2DModel", "SkyReelsV2Transformer3DModel",
        "WanAnimateTransformer3DModel", "WanTransformer3DModel", "WanVACETransformer3DModel",
    ),
    replace(_PLAIN, channel_dim=1): ("StableAudio3DiTModel", "StableAudioDiTModel"),
    replace(_PLAIN, channel_dim=2): ("UNetSpatioTemporalConditionModel",),
    _FLOAT: ("LTXVideoTransformer3DModel", "SanaVideoTransformer3DModel"),
    replace(_FLOAT, rounded_state=True): ("CogView3PlusTransformer2DModel",),
    replace(_FLOAT, rounded_state=True, channel_dim=2): (
        "CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel",
    ),
    replace(_FLOAT, guidance_scale=1000.0): ("HunyuanVideoFramepackTransformer3DModel",),
    _CAST: (
        "BriaFiboTransformer2DModel", "EasyAnimateTransformer3DModel",
        "ErnieImageTransformer2DModel", "HunyuanDiT2DModel", "HunyuanVideo15Transformer3DModel",
        "StableCascadeUNet",
    ),
    replace(_CAST, channel_dim=1): ("UNet1DModel",),
    replace(_CAST, channel_dim=-1): ("Kandinsky5Transformer3DModel",),
    replace(_CAST, float_output=True, rounded_state=True): ("MochiTransformer3DModel",),
    replace(_CAST, guidance_scale=1000.0): (
        "HunyuanImageTransformer2DModel", "HunyuanVideoTransformer3DModel",
    ),
    _FRACTION: (
        "ChromaTransformer2DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel",
        "LongCatImageTransformer2DModel", "OvisImageTransformer2DModel",
        "QwenImageTransformer2DModel",
    ),
    replace(_FRACTION, last_tokens=True): ("QwenImage21Transformer2DModel",),
    _FRACTION_THEN_CAST: (
        "AuraFlowTransformer2DModel", "Krea2Transformer2DModel", "LongCatAudioDiTTransformer",
    ),
    Convention("timestep / 1000"): ("PRXTransformer2DModel",),
    Convention("timestep / 1000", float_output=True): ("BriaFibo2Transformer2DModel",),
    replace(_FRACTION, output="negated"): ("NucleusMoEImageTransformer2DModel",),
    Convention("1 - timestep / 1000", "negated"): (
        "Lumina2Transformer2DModel", "LuminaNextDiT2DModel",
    ),
    Convention(
        "(1000 - timestep) / 1000", "negated", float_output=True, listed=True
    ): ("ZImageTransformer2DModel",),
    Convention("timestep", "negated"): ("HiDreamImageTransformer2DModel",),
    Convention("timestep - 1", float_output=True): ("GlmImageTransformer2DModel",),
    Convention("timestep * timestep_scale", float_output=True): ("SanaTransformer2DModel",),
}  # fmt: skip
CONVENTIONS: dict[str, Convention] = {
    name: convention for convention, names in _GROUPS.items() for name in names
}


# These pipelines divide by the scheduler's num_train_timesteps and not by 1000.
_BY_TRAINING = (
    "Krea2Transformer2DModel", "LongCatAudioDiTTransformer", "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel", "NucleusMoEImageTransformer2DModel", "PRXTransformer2DModel",
)  # fmt: skip


def check_scheduler(model: nn.Module, convention: Convention, scheduler: Any) -> None:
    """Refuse a scheduler under which the table's time would be another than the pipeline's.

    Raises:
        ValueError: a number of training timesteps that is not the 1000 of every released
            checkpoint, or another scheduler than Stable Cascade's, and no time was said.
    """
    if not isinstance(convention.time, str):
        return
    name, timesteps = type(model).__name__, scheduler.config.get("num_train_timesteps", 1000)
    classes = [c.__name__ for c in type(model).__mro__]
    if timesteps != 1000 and any(known in classes for known in _BY_TRAINING):
        raise ValueError(
            f"the pipeline of {name} divides the timestep by the scheduler's "
            f"num_train_timesteps, {timesteps} here and 1000 in the table: say "
            f"from_diffusers(model, scheduler, time=lambda timestep: timestep / {timesteps}), "
            "reversed where the table reverses it"
        )
    if "StableCascadeUNet" in classes and type(scheduler).__name__ != "DDPMWuerstchenScheduler":
        raise ValueError(
            f"{name} takes the timestep of DDPMWuerstchenScheduler, which lies in [0, 1], and this "
            f"is {type(scheduler).__name__}: say from_diffusers(model, DDPMWuerstchenScheduler()), "
            "or time=, a function of the timesteps"
        )


def convention_of(
    model: nn.Module, time: Any = None, output: Any = None, like_unet: bool = False
) -> Convention:
    """The convention of a model: its class's, or a base class's, or the one that was said.

    Args:
        model: without wrappers.
        like_unet: whether it has the argument names of a UNet.
        time, output: what the caller says; both, for a class that is not in the table.

    Raises:
        ValueError: an unknown class and not both said. The message shows the call.
    """
    classes = [c.__name__ for c in type(model).__mro__]
    known = next((CONVENTIONS[name] for name in classes if name in CONVENTIONS), None)
    known = _PLAIN if known is None and like_unet else known
    if known is None and (time is None or output is None):
        raise UnknownModelError(
            f"{type(model).__name__} is no model whose convention is known here, and a wrong time "
            "or sign gives a wrong gradient without an error. Read its pipeline and say both: "
            "from_diffusers(model, scheduler, time='timestep', output='as is'), with time one of "
            f"{', '.join(map(repr, TIMES))} or a function of the timesteps, and output one of "
            f"{', '.join(map(repr, OUTPUTS))} or a function of the model's output"
        )
    convention = known or Convention()
    if time is not None:
        cast = "never" if convention.cast == "never" else "after"
        convention = replace(convention, time=time, cast=cast)
    return convention if output is None else replace(convention, output=output)


class UnknownModelError(ValueError):
    """A model of which it is not known what time it takes and what its output means."""
