"""Tiny random networks of diffusers, one per model class, and what their pipelines need to run.

A row: the pipeline, the class and its sizes, the scheduler, the shapes of latents and embeddings,
and what else ``__call__`` wants. Pipelines are made without encoders and decoders.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(*shape, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """One model class with its pipeline.

    Where the pipeline wants encoders before its loop, ``loop`` has the loop's own variables, and
    the loop is taken out of the source of ``__call__``: constants in ``loop``, tensors in
    ``embeds``, what it asks of the pipeline in ``owner``.

    Args:
        condition: argument of the model that the prompt becomes, where it has no usual name.
        drawn: whether the pipeline takes no latents and draws its own.
        first_half: whether the pipeline always guides, and binds both branches.
        frames_apart: whether a step gets the frames (F, C, W, H) of latents (1, C, F, H, W).
        rounded: whether the pipeline casts what a step gave back to the dtype of its latents.
        guidance: number that a user says for a guidance embedding.
        edits: replacements in the source of the loop.
        setting: arguments of ``set_timesteps`` before it.
        dtype: float32 for a model that casts to it inside.
    """

    pipeline: str
    model: str
    config: dict[str, Any]
    latents: tuple[int, ...]
    prompt: tuple[int, ...] = (1, 5, 12)
    scheduler: tuple[str, dict[str, Any]] = (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0},
    )
    embeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    part: str = "transformer"
    prompt_name: str = "prompt_embeds"
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    bfloat16: bool = True
    loop: dict[str, Any] | None = None
    owner: dict[str, Any] = field(default_factory=dict)
    edits: dict[str, str] = field(default_factory=dict)
    condition: str | None = None
    drawn: bool = False
    first_half: bool = False
    guidance: float | None = None
    rounded: bool = False
    frames_apart: bool = False
    setting: dict[str, Any] = field(default_factory=dict)

    def network(self, dtype: torch.dtype) -> nn.Module:
        """The network, every weight random: blocks that start at zero would hide the time."""
        model = self.found(self.model)(**self.config).to(dtype).eval()
        kept = getattr(model, "_keep_in_fp32_modules", None) or []
        for name, part in model.named_modules() if dtype.itemsize < 4 else ():
            if name.rpartition(".")[2] in kept:
                part.float()
        with torch.no_grad():
            for k, parameter in enumerate(model.parameters()):
                parameter.copy_(0.2 * normal(*parameter.shape, seed=100 + k, dtype=dtype))
        return model

    def found(self, name: str) -> Any:
        """A class of diffusers, or one that only the module of the pipeline knows."""
        import diffusers

        module = inspect.getmodule(getattr(diffusers, self.pipeline))
        return getattr(diffusers, name, None) or getattr(module, name)

    def made_scheduler(self) -> Any:
        import diffusers

        name, config = self.scheduler
        return getattr(diffusers, name)(**config)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of the pipeline's call; every floating embedding requires a gradient."""
        shapes = {self.prompt_name: self.prompt, "latents": self.latents, **self.embeds}
        shapes = {name: shape for name, shape in shapes.items() if name}
        tensors: dict[str, Any] = {
            name: normal(*shape, seed=k, dtype=dtype).requires_grad_()
            for k, (name, shape) in enumerate(shapes.items())
        }
        if self.model == "ZImageTransformer2DModel":
            tensors[self.prompt_name] = [tensors[self.prompt_name]]
        return {"guidance_scale": 1.0, **tensors, **self.more}

    def made_pipeline(self, model: nn.Module, scheduler: Any) -> Any:
        import diffusers

        kind = getattr(diffusers, self.pipeline)
        wanted = inspect.signature(kind.__init__).parameters
        empty = inspect.Parameter.empty
        given = {
            name: None if parameter.default is empty else parameter.default
            for name, parameter in wanted.items()
            if name != "self"
        }
        parts = {name: Stub(value) for name, value in self.parts.items()}
        return kind(**{**given, self.part: model, "scheduler": scheduler, **parts})


class Stub(nn.Module):
    """A part of a pipeline that is asked for sizes only."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, attributes: dict[str, Any]) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, type("Config", (), value) if isinstance(value, dict) else value)


UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
    "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": 4,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 30,
}  # fmt: skip
# Flux and its relatives.
ROPE = {
    "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
WAN = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 12, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 32,
}  # fmt: skip
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "in_channels": 4}
UNIPC = (
    "UniPCMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
)
DPM_FLOW = ("DPMSolverMultistepScheduler", UNIPC[1])
DDIM = ("DDIMScheduler", {"clip_sample": False})
COG = ("CogVideoXDDIMScheduler", {"clip_sample": False})
VIDEO = {"height": 32, "width": 32, "num_frames": 5}
IMAGE = {"height": 32, "width": 32}
LARGE = {"height": 64, "width": 64}
PACKED = (1, 4, 4)
NO_NEGATIVE = {"negative_prompt": None}
BOOL, LONG = torch.bool, torch.long

CASES = {
    "stable diffusion": Case(
        "StableDiffusionPipeline", "UNet2DConditionModel", UNET, (1, 4, 8, 8), part="unet",
        scheduler=("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
        more={"height": 16, "width": 16},
    ),
    "stable diffusion xl": Case(
        "StableDiffusionXLPipeline", "UNet2DConditionModel", {**UNET, **XL}, (1, 4, 8, 8),
        scheduler=DDIM, part="unet", embeds={"pooled_prompt_embeds": (1, 6)},
        more={"height": 16, "width": 16},
    ),
    "flux": Case(
        "FluxPipeline", "FluxTransformer2DModel",
        {**ROPE, "guidance_embeds": True, "pooled_projection_dim": 8}, PACKED, (1, 3, 12),
        embeds={"pooled_prompt_embeds": (1, 8)}, more={**IMAGE, "guidance_scale": 2.5},
        guidance=2.5,
    ),
    "flux 2": Case(
        "Flux2KleinPipeline", "Flux2Transformer2DModel",
        {**ROPE, "timestep_guidance_channels": 8, "axes_dims_rope": (4, 4, 4, 4),
         "guidance_embeds": False}, (1, 4, 2, 2), (1, 3, 12), more=IMAGE,
    ),
    "chroma": Case(
        "ChromaPipeline", "ChromaTransformer2DModel",
        {**ROPE, "approximator_num_channels": 8, "approximator_hidden_dim": 16,
         "approximator_layers": 1}, PACKED, (1, 3, 12),
        embeds={"negative_prompt_embeds": (1, 3, 12)},
        more={**IMAGE, "prompt_attention_mask": ones(1, 3),
              "negative_prompt_attention_mask": ones(1, 3)},
    ),
    "ovis": Case(
        "OvisImagePipeline", "OvisImageTransformer2DModel", {**ROPE, "out_channels": 4}, PACKED,
        (1, 3, 12), more=IMAGE,
    ),
    "bria": Case(
        "BriaPipeline", "BriaTransformer2DModel",
        {**ROPE, "in_channels": 16, "axes_dims_rope": [4, 4, 8]}, (1, 4, 16), (1, 3, 12),
        more=IMAGE,
        parts={"vae": {"config": {"block_out_channels": [1] * 4, "shift_factor": 0}}},
    ),
    "qwen": Case(
        "QwenImagePipeline", "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1,
         "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 12,
         "axes_dims_rope": (4, 4, 8)}, (1, 4, 16), (1, 3, 12),
        more={**IMAGE, "true_cfg_scale": 1.0, "prompt_embeds_mask": ones(1, 3, dtype=LONG)},
    ),
    "nucleus": Case(
        "NucleusMoEImagePipeline", "NucleusMoEImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 4, 8),
         "moe_enabled": False, "capacity_factors": [8.0]}, (1, 4, 16), (1, 3, 12),
        more={**IMAGE, "prompt_embeds_mask": ones(1, 3, dtype=LONG)},
    ),
    "krea 2": Case(
        "Krea2Pipeline", "Krea2Transformer2DModel",
        {"in_channels": 16, "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 16, "timestep_embed_dim": 8,
         "text_hidden_dim": 16, "num_text_layers": 2, "text_num_attention_heads": 2,
         "text_num_key_value_heads": 2, "text_intermediate_size": 16,
         "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
         "axes_dims_rope": (4, 6, 6)}, (1, 4, 16), (1, 3, 2, 16),
        more={**IMAGE, "guidance_scale": 0.0, "prompt_embeds_mask": ones(1, 3, dtype=BOOL)},
    ),
    "stable diffusion 3": Case(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        {**SMALL, "sample_size": 8, "out_channels": 4, "joint_attention_dim": 12,
         "caption_projection_dim": 16, "pooled_projection_dim": 6}, (1, 4, 8, 8),
        embeds={"pooled_prompt_embeds": (1, 6)}, more=LARGE,
    ),
    "aura flow": Case(
        "AuraFlowPipeline", "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
         "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12,
         "caption_projection_dim": 16, "pos_embed_max_size": 16}, (1, 4, 8, 8),
        embeds={"negative_prompt_embeds": (1, 5, 12)},
        more={**LARGE, "prompt_attention_mask": ones(1, 5),
              "negative_prompt_attention_mask": ones(1, 5)},
    ),
    "lumina 2": Case(
        "Lumina2Pipeline", "Lumina2Transformer2DModel",
        {"sample_size": 4, "in_channels": 4, "hidden_size": 24, "num_layers": 1,
         "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8,
         "axes_dim_rope": (4, 4, 4), "axes_lens": (32, 8, 8), "cap_feat_dim": 12}, (1, 4, 4, 4),
        more={**IMAGE, "prompt_attention_mask": ones(1, 5, dtype=BOOL)},
    ),
    "lumina": Case(
        "LuminaPipeline", "LuminaNextDiT2DModel",
        {"sample_size": 4, "in_channels": 4, "hidden_size": 24, "num_layers": 1,
         "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8,
         "cross_attention_dim": 12}, (1, 4, 4, 4), embeds={"negative_prompt_embeds": (1, 5, 12)},
        more={**IMAGE, "prompt_attention_mask": ones(1, 5, dtype=BOOL),
              "negative_prompt_attention_mask": ones(1, 5, dtype=BOOL)},
    ),
    "z-image": Case(
        "ZImagePipeline", "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 24, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
         "n_kv_heads": 2, "cap_feat_dim": 12, "axes_dims": [4, 4, 4], "axes_lens": [64, 32, 32]},
        (1, 4, 8, 8), (5, 12), more={**LARGE, "guidance_scale": 0.0}, tolerance=1e-6,
    ),
    "prx": Case(
        "PRXPipeline", "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2, "depth": 1,
         "axes_dim": [8, 8]}, (1, 4, 8, 8),
        more={**LARGE, "prompt_attention_mask": ones(1, 5, dtype=BOOL),
              "use_resolution_binning": False},
    ),
    "wan": Case(
        "WanPipeline", "WanTransformer3DModel", WAN, (1, 4, 2, 4, 4), scheduler=UNIPC, more=VIDEO,
    ),
    "skyreels": Case(
        "SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel", WAN, (1, 4, 2, 4, 4),
        scheduler=UNIPC, more=VIDEO,
    ),
    "ltx": Case(
        "LTXPipeline", "LTXVideoTransformer3DModel",
        {**SMALL, "in_channels": 8, "out_channels": 8, "attention_head_dim": 12,
         "cross_attention_dim": 24, "caption_channels": 12}, (1, 8, 8), tolerance=1e-6,
        more={**LARGE, "num_frames": 9, "prompt_attention_mask": ones(1, 5)},
    ),
    "mochi": Case(
        "MochiPipeline", "MochiTransformer3DModel",
        {**SMALL, "num_layers": 2, "pooled_projection_dim": 24, "text_embed_dim": 16,
         "time_embed_dim": 8, "max_sequence_length": 5}, (1, 4, 2, 4, 4), (1, 5, 16),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}), tolerance=1e-6, rounded=True,
        more={**VIDEO, "num_frames": 7, "prompt_attention_mask": ones(1, 5, dtype=BOOL)},
    ),
    "cogvideox": Case(
        "CogVideoXPipeline", "CogVideoXTransformer3DModel",
        {**SMALL, "out_channels": 4, "time_embed_dim": 4, "text_embed_dim": 12,
         "sample_width": 4, "sample_height": 4, "sample_frames": 9, "max_text_seq_length": 5},
        (1, 3, 4, 4, 4), scheduler=("CogVideoXDDIMScheduler", {
            "clip_sample": False, "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        more={**VIDEO, "num_frames": 9}, tolerance=1e-6, rounded=True,
    ),
    "cogview 3": Case(
        "CogView3PlusPipeline", "CogView3PlusTransformer2DModel",
        {**SMALL, "out_channels": 4, "text_embed_dim": 12, "time_embed_dim": 8,
         "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8}, (1, 4, 4, 4),
        scheduler=COG, embeds={"negative_prompt_embeds": (1, 5, 12)}, more=IMAGE, tolerance=1e-6,
        rounded=True,
    ),
    "cogview 4": Case(
        "CogView4Pipeline", "CogView4Transformer2DModel",
        {**SMALL, "out_channels": 4, "text_embed_dim": 12, "time_embed_dim": 8,
         "condition_dim": 4, "sample_size": 8, "rope_axes_dim": (8, 8)}, (1, 4, 4, 4), more=IMAGE,
    ),
    "hunyuan dit": Case(
        "HunyuanDiTPipeline", "HunyuanDiT2DModel",
        {**SMALL, "patch_size": 2, "sample_size": 4, "hidden_size": 16, "num_layers": 2,
         "cross_attention_dim": 12, "cross_attention_dim_t5": 16, "pooled_projection_dim": 4,
         "text_len": 5, "text_len_t5": 3, "use_style_cond_and_image_meta_size": False},
        (1, 4, 4, 4), embeds={"prompt_embeds_2": (1, 3, 16)},
        scheduler=("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}),
        more={**IMAGE, "use_resolution_binning": False,
              "prompt_attention_mask": ones(1, 5, dtype=LONG),
              "prompt_attention_mask_2": ones(1, 3, dtype=LONG)},
    ),
    "hunyuan video": Case(
        "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel",
        {**SMALL, "attention_head_dim": 12, "out_channels": 4, "num_single_layers": 1,
         "num_refiner_layers": 1, "patch_size": 1, "text_embed_dim": 12,
         "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4)}, (1, 4, 2, 2, 2),
        embeds={"pooled_prompt_embeds": (1, 8)}, guidance=2.0,
        more={**VIDEO, "height": 16, "width": 16, "guidance_scale": 2.0,
              "prompt_attention_mask": ones(1, 5, dtype=LONG)},
    ),
    "pixart": Case(
        "PixArtSigmaPipeline", "PixArtTransformer2DModel",
        {**SMALL, "norm_num_groups": 1, "cross_attention_dim": 16, "sample_size": 8,
         "caption_channels": 12}, (1, 4, 8, 8), scheduler=("DPMSolverMultistepScheduler", {}),
        more={**LARGE, **NO_NEGATIVE, "use_resolution_binning": False,
              "prompt_attention_mask": ones(1, 5)},
    ),
    "sana": Case(
        "SanaPipeline", "SanaTransformer2DModel",
        {**SMALL, "out_channels": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12,
         "sample_size": 8, "timestep_scale": 0.7}, (1, 4, 8, 8), scheduler=DPM_FLOW,
        more={"height": 256, "width": 256, **NO_NEGATIVE, "use_resolution_binning": False,
              "prompt_attention_mask": ones(1, 5)}, tolerance=1e-6,
    ),
    "latte": Case(
        "LattePipeline", "LatteTransformer3DModel",
        {**SMALL, "out_channels": 8, "cross_attention_dim": 16, "attention_bias": True,
         "sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 1000,
         "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
         "caption_channels": 12, "video_length": 2, "activation_fn": "gelu-approximate"},
        (1, 4, 2, 4, 4), scheduler=DDIM, embeds={"negative_prompt_embeds": (1, 5, 12)},
        more={**IMAGE, **NO_NEGATIVE, "video_length": 2, "mask_feature": False},
    ),
    "allegro": Case(
        "AllegroPipeline", "AllegroTransformer3DModel",
        {**SMALL, "attention_head_dim": 24, "out_channels": 4, "cross_attention_dim": 48,
         "sample_height": 4, "sample_width": 4, "sample_frames": 2, "caption_channels": 12},
        (1, 4, 2, 4, 4), scheduler=DDIM,
        more={**VIDEO, **NO_NEGATIVE, "num_frames": 8, "prompt_attention_mask": ones(1, 5)},
    ),
    "easy animate": Case(
        "EasyAnimatePipeline", "EasyAnimateTransformer3DModel",
        {**SMALL, "attention_head_dim": 16, "out_channels": 4, "patch_size": 2,
         "sample_width": 8, "sample_height": 8, "mmdit_layers": 1, "time_embed_dim": 4,
         "text_embed_dim": 12}, (1, 4, 1, 8, 8),
        more={**LARGE, "num_frames": 1, "prompt_attention_mask": ones(1, 5)},
        parts={"vae": {"config": {"latent_channels": 4}, "spatial_compression_ratio": 8,
                       "temporal_compression_ratio": 4}},
    ),
}  # fmt: skip
