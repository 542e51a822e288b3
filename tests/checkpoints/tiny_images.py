"""Folders of diffusers' pipelines of images with a language model or T5, with tiny networks and drawn weights."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.checkpoints.tiny_hf import DISCRETE, LEVELS, T5_WIDTH, drawn, t5, t5_tokenizer, vae
from tests.checkpoints.tiny_language import SMALL, WIDTH, language, words_tokenizer
from tests.checkpoints.tiny_video import MEAN, STD, calm

TERMINAL = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}


def pixart() -> Any:
    words = t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        caption_channels=T5_WIDTH,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=t5(words, 5),
        vae=vae(4, 1),
        transformer=drawn(transformer, 4),
        scheduler=diffusers.DDIMScheduler(**DISCRETE | {"set_alpha_to_one": False, "clip_sample": False}),
    )


def chroma() -> Any:
    words = t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, 1, shift=0.1159),
        text_encoder=t5(words, 5),
        tokenizer=words,
        transformer=drawn(transformer, 4),
    )


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
    )
    coder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    )
    drawn(coder, 1)
    for name, parameter in coder.named_parameters():
        if "decoder.conv_out" in name:
            parameter.data *= 0.2 if parameter.ndim > 1 else 0.0
    return diffusers.SanaPipeline(
        tokenizer=words_tokenizer(),
        text_encoder=language(transformers.Gemma2Config(**SMALL), transformers.Gemma2Model, 5),
        vae=coder,
        transformer=drawn(transformer, 4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
    )
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, 1, shift=0.1159),
        text_encoder=language(transformers.Qwen3Config(**SMALL), transformers.Qwen3Model, 5),
        tokenizer=words_tokenizer(),
        transformer=drawn(transformer, 4),
    )


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=MEAN,
        latents_std=STD,
    )
    encoder = transformers.Qwen2_5_VLConfig(
        text_config={
            **{key: value for key, value in SMALL.items() if key != "head_dim"},
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**TERMINAL),
        vae=calm(coder, 1),
        text_encoder=language(encoder, transformers.Qwen2_5_VLForConditionalGeneration, 5),
        tokenizer=words_tokenizer(signs=True),
        transformer=drawn(transformer, 4),
    )


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=drawn(transformer, 4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(4, 1, shift=0.1159),
        text_encoder=language(transformers.Gemma2Config(**SMALL), transformers.Gemma2Model, 5),
        tokenizer=words_tokenizer(),
    )


def flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    coder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **LEVELS,
    )
    calm(coder, 1)
    coder.bn.running_mean.copy_(torch.linspace(-0.3, 0.3, 16))
    coder.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    encoder = transformers.Qwen3Config(**SMALL | {"num_hidden_layers": 28})
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=coder,
        text_encoder=language(encoder, transformers.Qwen3Model, 5),
        tokenizer=words_tokenizer(),
        transformer=drawn(transformer, 4),
    )


MAKERS = {"pixart": pixart, "chroma": chroma, "sana": sana, "z-image": z_image}
MAKERS |= {"qwen-image": qwen_image, "lumina2": lumina2, "flux2-klein": flux2_klein}
KINDS = {  # classes of the pipelines
    "pixart": "PixArtSigmaPipeline",
    "chroma": "ChromaPipeline",
    "sana": "SanaPipeline",
    "z-image": "ZImagePipeline",
    "qwen-image": "QwenImagePipeline",
    "lumina2": "Lumina2Pipeline",
    "flux2-klein": "Flux2KleinPipeline",
}
# further options of a pipeline, and what is added to its guidance scale to make ours
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "qwen-image": {"negative_prompt": ["", ""]},
}
SCALE_NAMES = {"qwen-image": "true_cfg_scale"}  # of the option for the guidance scale
MORE_GUIDANCE = {"z-image": 1.0}
