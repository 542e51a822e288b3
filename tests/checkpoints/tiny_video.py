"""Folders of diffusers' pipelines that make clips, with tiny networks and drawn weights."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.checkpoints.tiny_hf import T5_WIDTH, drawn, t5, t5_tokenizer
from tests.checkpoints.tiny_language import SMALL, WIDTH, words_tokenizer

MEAN, STD = [0.3, -0.2, 0.1, 0.0], [1.2, 0.8, 1.0, 0.9]  # of Wan's latents
SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
V_PREDICTION = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 3.0,
}
DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 16,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def umt5(tokenizer: Any, seed: int) -> Any:
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer) + 3, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return drawn(transformers.UMT5EncoderModel(config), seed)


def calm(vae: Any, seed: int) -> Any:
    """Drawn, and few pixels leave [-1, 1]."""
    drawn(vae, seed)
    for name, parameter in vae.named_parameters():
        if "decoder.conv_out" in name:
            parameter.data *= 0.3 if parameter.ndim > 1 else 0.0
    return vae


def wan_vae(seed: int = 1) -> Any:
    return calm(
        diffusers.AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=MEAN, latents_std=STD
        ),
        seed,
    )


def wan_transformer(seed: int = 4, **more: Any) -> Any:
    made = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=4,
        text_dim=T5_WIDTH,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        **{"in_channels": 4, **more},
    )
    return drawn(made, seed)


def wan(scheduler: Any = None, *, second: bool = False, **more: Any) -> Any:
    words = t5_tokenizer()
    return diffusers.WanPipeline(
        tokenizer=words,
        text_encoder=umt5(words, 5),
        vae=wan_vae(),
        transformer=wan_transformer(),
        transformer_2=wan_transformer(6) if second else None,
        scheduler=scheduler or diffusers.UniPCMultistepScheduler(**SOLVER),
        **more,
    )


def wan_continuing(*, second: bool = False) -> Any:
    """Wan 2.1's image to video, whose network attends to the image too; or Wan 2.2's pair of networks."""
    words = t5_tokenizer()
    if second:
        networks = [wan_transformer(seed, in_channels=12) for seed in (4, 6)]
        shown: dict[str, Any] = {"transformer_2": networks[1], "boundary_ratio": 0.8}
    else:
        networks = [wan_transformer(4, in_channels=12, image_dim=16, added_kv_proj_dim=32)]
        config = transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        size = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
        shown = {
            "image_encoder": drawn(transformers.CLIPVisionModel(config), 7),
            "image_processor": transformers.CLIPImageProcessor(**size),
        }
    return diffusers.WanImageToVideoPipeline(
        tokenizer=words,
        text_encoder=umt5(words, 5),
        vae=wan_vae(),
        transformer=networks[0],
        scheduler=diffusers.UniPCMultistepScheduler(**SOLVER),
        **shown,
    )


def ltx(**vae: Any) -> Any:
    words = t5_tokenizer()
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
        **vae,
    )
    calm(coder, 1)
    coder.latents_mean += 0.2
    coder.latents_std *= 1.5
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=T5_WIDTH,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=coder,
        text_encoder=t5(words, 5),
        tokenizer=words,
        transformer=drawn(transformer, 4),
    )


def cogvideox(**transformer: Any) -> Any:
    words = t5_tokenizer()
    coder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    made = diffusers.CogVideoXTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": T5_WIDTH,
            "num_layers": 2,
            "sample_width": 6,
            "sample_height": 4,
            "sample_frames": 9,
            "max_text_seq_length": 16,
            **transformer,
        }
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=words,
        text_encoder=t5(words, 5),
        vae=calm(coder, 1),
        transformer=drawn(made, 4),
        scheduler=diffusers.CogVideoXDDIMScheduler(**V_PREDICTION),
    )


def hunyuan() -> Any:
    """Without text encoders, whose place a file of prompts takes."""
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=12,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    coder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=drawn(transformer, 4),
        vae=calm(coder, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )


def hunyuan15() -> Any:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=T5_WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    coder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    language = {key: value for key, value in SMALL.items() if key != "head_dim"}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    coder.enable_slicing()
    encoder = transformers.Qwen2_5_VLTextConfig(**language, rope_parameters=rope)
    letters = transformers.ByT5Tokenizer()
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=drawn(transformers.Qwen2_5_VLTextModel(encoder), 5),
        tokenizer=words_tokenizer(before=110),
        transformer=drawn(transformer, 4),
        vae=calm(coder, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=t5(letters, 6),
        tokenizer_2=letters,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )


MAKERS = {
    "wan": wan,
    "wan-euler": lambda: wan(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "wan-ti2v": lambda: wan(expand_timesteps=True),
    "wan-pair": lambda: wan(second=True, boundary_ratio=0.8),
    "ltx": ltx,
    "ltx-timed": lambda: ltx(timestep_conditioning=True),
    "cogvideox": cogvideox,
    "hunyuan15": hunyuan15,
    "cogvideox-rotary": lambda: cogvideox(use_rotary_positional_embeddings=True),
    "cogvideox-1.5": lambda: cogvideox(use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False),
}
CONTINUING = {"wan-2.1": wan_continuing, "wan-2.2": lambda: wan_continuing(second=True)}
SIZES = {
    "hunyuan15": (5, 16, 24),
    "ltx": (9, 32, 64),
    "cogvideox": (9, 32, 48),
    "hunyuan": (5, 32, 32),
    "wan": (9, 32, 48),
}


def size_of(name: str) -> tuple[int, int, int]:
    """Frames, height and width of clips that a maker's model makes in a test."""
    return SIZES[name.split("-")[0]]
