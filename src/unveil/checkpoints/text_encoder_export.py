"""Text encoders as diffusers' folders: settings, weights and vocabulary that transformers opens.

Facts: `text_encoder` and `tokenizer` of diffusers' folders of Stable Diffusion 1 and 2 and XL.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints import text_encoder_keys
from unveil.conditioning import clip_tokenizer
from unveil.conditioning.text_encoder import FileTokenizer, TextEncoder
from unveil.errors import RecipeError
from unveil.io.files import write_tensors
from unveil.nn.text_encoders import ACTIVATIONS, CLIPEncoderConfig, T5EncoderConfig

FILES = text_encoder_keys.TextEncoderLocation("clip", "text_model.")


def write_folder(conditioner: TextEncoder, path: Path, *, number: int = 1) -> None:
    """Writes `text_encoder` and `tokenizer` into a folder of diffusers, which transformers' `from_pretrained` opens.

    An encoder whose earlier layer is used, normalised, is written without the layers behind it, as Stable Diffusion
    2's folders are: they say nothing of a layer.

    Args:
        path: the folder of the whole model.
        number: which of its encoders.

    Raises:
        RecipeError: a vocabulary that is not known.
    """
    end = "" if number == 1 else f"_{number}"
    home, words = path / f"text_encoder{end}", path / f"tokenizer{end}"
    config, state = conditioner.tower.config, conditioner.tower.state_dict()
    if isinstance(config, CLIPEncoderConfig):
        if without := left_out(conditioner):
            config = replace(config, depth=config.depth - config.skip, skip=0)
            state = {key: tensor for key, tensor in state.items() if key not in without}
        settings, tensors = _clip(config), text_encoder_keys.dump(state, config, FILES, {})
    else:
        settings, tensors = (
            _t5(config),
            text_encoder_keys.dump(state, config, text_encoder_keys.TextEncoderLocation("t5"), {}),
        )
    home.mkdir(parents=True, exist_ok=True)
    words.mkdir(parents=True, exist_ok=True)
    _write(home / "config.json", settings)
    with torch.no_grad():
        write_tensors(home / "model.safetensors", tensors)
    _write_tokenizer(conditioner, words)


def left_out(conditioner: TextEncoder) -> tuple[str, ...]:
    """Our keys of the layers behind the one that is used, which a folder does not hold; nobody reads them."""
    config = conditioner.tower.config
    if not isinstance(config, CLIPEncoderConfig) or not config.skip or config.norm != "final":
        return ()
    behind = tuple(f"model.encoder.layers.{layer}." for layer in range(config.depth - config.skip, config.depth))
    return tuple(key for key in conditioner.tower.state_dict() if key.startswith(behind))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _clip(config: CLIPEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": round(config.hidden_size * config.mlp_ratio),
        "projection_dim": config.projection or config.hidden_size,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_length,
        "hidden_act": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
        "bos_token_id": config.begin,
        "eos_token_id": config.end,
        "pad_token_id": config.padding,
    }


def _t5(config: T5EncoderConfig) -> dict[str, Any]:
    family = "T5" if config.positions == "shared" else "UMT5"
    return {
        "architectures": [f"{family}EncoderModel"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": config.feed,
        "is_encoder_decoder": False,
        "eos_token_id": config.end,
        "pad_token_id": config.padding,
    }


def _write_tokenizer(conditioner: TextEncoder, words: Path) -> None:
    config, tokenizer = conditioner.tower.config, conditioner.tokenizer
    if isinstance(tokenizer, FileTokenizer):
        (words / "tokenizer.json").write_text(tokenizer.content, "utf-8")
        _write(words / "tokenizer_config.json", {"model_max_length": config.max_length})
        return
    if not isinstance(tokenizer, clip_tokenizer.BPETokenizer):
        raise RecipeError(
            f"{conditioner.key}: a {type(tokenizer).__name__} is not a vocabulary that transformers reads"
        )
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    (words / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    _write(words / "vocab.json", {piece: number for number, piece in enumerate(tokenizer.pieces)})
    special = {"bos_token": clip_tokenizer.BEGIN, "eos_token": clip_tokenizer.END, "unk_token": clip_tokenizer.END}
    special["pad_token"] = tokenizer.pieces[config.padding]
    _write(words / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": config.max_length, "do_lower_case": True}
    _write(words / "tokenizer_config.json", settings | special)
