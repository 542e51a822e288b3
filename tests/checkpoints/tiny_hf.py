"""Folders of diffusers with tiny networks and drawn weights: SDXL, Stable Diffusion 3, FLUX.1."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

WORDS = ["cat", "dog", "red", "on", "the", "moon"]
ALPHABET = string.ascii_lowercase + string.digits
WIDTH, T5_WIDTH = 16, 48
LEVELS = {"block_out_channels": (32, 64), "norm_num_groups": 16, "layers_per_block": 1}
DISCRETE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
EULER = DISCRETE | {"timestep_spacing": "leading"}


# What brings a condition into a network: made loud, so that a wrong one is seen
LOUD = ("add_embedding", "text_embedder", "guidance_embedder", "context_embedder", "attn2", "time_emb_proj")


def drawn(module: Any, seed: int) -> Any:
    """In evaluation mode, every parameter drawn: nothing stays at its zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        width, mean = (parameter.shape[1:].numel() ** -0.5, 0.0) if parameter.ndim > 1 else (0.1, 0.0)
        if parameter.ndim == 1 and name.endswith("weight"):
            mean = 1.0
        loud = 2.5 if any(part in name for part in LOUD) else 1.0
        parameter.data = mean + loud * width * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def clip_tokenizer(length: int = 12) -> Any:
    pieces = [*ALPHABET, *(sign + "</w>" for sign in ALPHABET)]
    merges, known = [], set(pieces)
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            known.add(parts[0])
    merges = list(dict.fromkeys(merges))
    pieces += [a + b for a, b in merges]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", *("\u2581" + word for word in WORDS), *ALPHABET, "\u2581"]
    return transformers.T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=0)


def clip(tokenizer: Any, seed: int, *, width: int = WIDTH, projection: int = 0) -> Any:
    size = len(tokenizer)
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or width,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return drawn(kind(config), seed)


def t5(tokenizer: Any, seed: int) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer) + 3,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return drawn(transformers.T5EncoderModel(config), seed)


def vae(channels: int, seed: int, *, shift: float | None = None) -> Any:
    two = shift is None  # Stable Diffusion 3 and FLUX have no convolutions beside their latents
    made = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=16,
        scaling_factor=0.13025 if two else 1.5305,
        shift_factor=shift,
        use_quant_conv=two,
        use_post_quant_conv=two,
        **LEVELS,
    )
    drawn(made, seed)
    made.decoder.conv_out.weight.data *= 0.3  # few pixels leave [-1, 1], where they would be cut off
    made.decoder.conv_out.bias.data.zero_()
    return made


def sdxl_unet(**more: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
        "cross_attention_dim": WIDTH + 24,
    }
    return drawn(diffusers.UNet2DConditionModel(**LEVELS | settings | more), 4)


def refiner() -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(4, 1),
        text_encoder=None,
        text_encoder_2=clip(tokenizer, 3, width=24, projection=20),
        tokenizer=None,
        tokenizer_2=tokenizer,
        unet=sdxl_unet(projection_class_embeddings_input_dim=5 * 8 + 20, cross_attention_dim=24),
        scheduler=diffusers.EulerDiscreteScheduler(**EULER),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def sdxl_inpaint() -> Any:
    parts = dict(sdxl().components, unet=sdxl_unet(in_channels=9))
    return diffusers.StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)


def sdxl(scheduler: Any = None, **more: Any) -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4, 1),
        text_encoder=clip(tokenizer, 2),
        text_encoder_2=clip(tokenizer, 3, width=24, projection=20),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=sdxl_unet(),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**EULER),
        add_watermarker=False,
        **more,
    )


def sd3(*, with_t5: bool = True, **scheduler: Any) -> Any:
    tokenizer, words = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=12 + 20,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(4, 1, shift=0.0609),
        text_encoder=clip(tokenizer, 2, projection=12),
        text_encoder_2=clip(tokenizer, 3, width=24, projection=20),
        text_encoder_3=t5(words, 5) if with_t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=words if with_t5 else None,
        transformer=drawn(transformer, 4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    )


def flux(*, distilled: bool = True) -> Any:
    tokenizer, words = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=distilled,
    )
    return diffusers.FluxPipeline(
        vae=vae(4, 1, shift=0.1159),
        text_encoder=clip(tokenizer, 2),
        text_encoder_2=t5(words, 5),
        tokenizer=tokenizer,
        tokenizer_2=words,
        transformer=drawn(transformer, 4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled
        ),
    )


def saved(pipeline: Any, folder: Path, **how: Any) -> Path:
    """The folder, as the library writes it."""
    pipeline.save_pretrained(folder, **how)
    pipeline.set_progress_bar_config(disable=True)
    return folder


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
