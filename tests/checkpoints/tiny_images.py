"""Folders of diffusers' pipelines of images with a language model or T5, with tiny networks and drawn weights."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from tests.checkpoints.tiny_hf import DISCRETE, T5_WIDTH, WORDS, drawn, t5, t5_tokenizer, vae

TEMPLATE = "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}{{ 'assistant' }}"
WIDTH = 32  # of language models


def words_tokenizer() -> Any:
    """A tokenizer of words, as transformers saves one."""
    pieces = ["<pad>", "<unk>", "<s>", "user", "assistant", *WORDS, *string.ascii_lowercase, *string.digits]
    words = tokenizers.Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", padding_side="right"
    )
    made.chat_template = TEMPLATE
    return made


def language(config: Any, kind: Any, seed: int) -> Any:
    return drawn(kind(config), seed)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


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


MAKERS = {"pixart": pixart, "chroma": chroma, "sana": sana, "z-image": z_image}
# further options of a pipeline, and what is added to its guidance scale to make ours
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
}
MORE_GUIDANCE = {"z-image": 1.0}
