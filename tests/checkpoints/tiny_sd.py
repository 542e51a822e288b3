"""Stable Diffusion 1 with tiny networks and drawn weights, as diffusers' pipeline, and its ControlNet and LoRA."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.checkpoints.tiny_hf import DISCRETE, drawn
from unveil.conditioning import clip_tokenizer

WIDTH, HEADS, TEXT_HEADS, SIZE = 32, 4, 2, 32
# What neither keys nor shapes of the single file hold
OVERRIDES: dict[str, Any] = {"heads": HEADS, "size": SIZE, "text_heads": TEXT_HEADS, "activation": "quick-gelu"}
DDIM: dict[str, Any] = DISCRETE | {"set_alpha_to_one": False, "clip_sample": False}
BLOCKS: dict[str, Any] = {"block_out_channels": (64, 128), "layers_per_block": 1, "norm_num_groups": 32}
UNET: dict[str, Any] = BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": HEADS,
}


def tokenizer() -> Any:
    """CLIP's own."""
    words = clip_tokenizer.clip_tokenizer()
    vocabulary = {piece: number for number, piece in enumerate(words.pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(words.merges), model_max_length=77)


def text_encoder(seed: int = 2) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return drawn(transformers.CLIPTextModel(config), seed)


def vae(seed: int = 1) -> Any:
    made = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=SIZE,
        scaling_factor=0.18215,
    )
    drawn(made, seed)
    made.decoder.conv_out.weight.data *= 0.3  # few pixels leave [-1, 1], where they would be cut off
    made.decoder.conv_out.bias.data.zero_()
    return made


def unet(in_channels: int = 4, seed: int = 4) -> Any:
    return drawn(
        diffusers.UNet2DConditionModel(
            in_channels=in_channels,
            out_channels=4,
            sample_size=SIZE // 2,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **UNET,
        ),
        seed,
    )


def pipeline(kind: str = "StableDiffusionPipeline") -> Any:
    made = getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(9 if "Inpaint" in kind else 4),
        scheduler=diffusers.DDIMScheduler(**DDIM),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def controlnet(seed: int = 9) -> Any:
    return drawn(diffusers.ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(16, 32), **UNET), seed)


def lora(seed: int = 5) -> dict[str, torch.Tensor]:
    """A LoRA of the U-Net and of the text encoder in kohya's naming, of rank 4 and alpha 2."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for prefix, network, chosen in (
        ("lora_unet", unet(), ("to_q", "to_k", "to_v", "to_out.0")),
        ("lora_te_text_model", text_encoder(), ("q_proj", "v_proj")),
    ):
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(chosen):
                path = f"{prefix}_{name.replace('.', '_')}"
                found[f"{path}.lora_down.weight"] = torch.randn(4, module.in_features, generator=generator) * 0.2
                found[f"{path}.lora_up.weight"] = torch.randn(module.out_features, 4, generator=generator) * 0.2
                found[f"{path}.alpha"] = torch.tensor(2.0)
    return found
