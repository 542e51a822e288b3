"""What files of weights look like: told apart by keys, and what an unknown one comes closest to.

Facts: state-dict keys of the projects that are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from unveil.checkpoints import autoencoder_keys, controlnet_keys, ldm_unet
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.lora_formats import naming_of
from unveil.model.model_folder import STEERS, WHOLE_PART

Kind = Literal["model", "LoRA", "ControlNet", "autoencoder", "text encoder", "unknown"]
FOLDER = "give the folder that diffusers writes, which is read through its own networks"
CLIPS = "put it into transformer/ of a folder of diffusers, whose settings, autoencoder and text encoder it needs"


class FileFormat(NamedTuple):
    """A layout of files.

    Attributes:
        what: it is called.
        kind: what one does with such a file.
        signs: what every such file has, by what it is: a key, or the beginning of one where a dot stands at its end.
        instead: what to do with it where a model is wanted and it is none that can be read.
    """

    what: str
    kind: Kind
    signs: Mapping[str, str]
    instead: str = ""


_UNET = ldm_unet.PREFIX
_ADM = {"its time embedding": "time_embed.0.weight", "its first convolution": "input_blocks.0.0.weight"}
_WHOLE = {"the U-Net": f"{_UNET}input_blocks.0.0.weight", "the autoencoder": autoencoder_keys.PREFIX}
_HINT, _ZERO = "the network of the hint", "zero convolutions"
LAYOUTS = (
    FileFormat("a LoRA", "LoRA", {}, "give it beside the model that it is for: unveil sample MODEL --lora FILE"),
    FileFormat("a ControlNet", "ControlNet", {_HINT: "input_hint_block.", _ZERO: "zero_convs."}, STEERS),
    FileFormat(
        "a ControlNet",
        "ControlNet",
        {_HINT: f"{controlnet_keys.PREFIX}input_hint_block.", _ZERO: f"{controlnet_keys.PREFIX}zero_convs."},
        STEERS,
    ),
    FileFormat(
        "a ControlNet of diffusers",
        "ControlNet",
        {_HINT: "controlnet_cond_embedding.", _ZERO: "controlnet_down_blocks."},
        STEERS,
    ),
    FileFormat(
        "Stable Diffusion XL in one file", "model", {**_WHOLE, "the text encoders": "conditioner.embedders."}, FOLDER
    ),
    FileFormat("Stable Diffusion 3 in one file", "model", {"blocks": f"{_UNET}joint_blocks."}, FOLDER),
    FileFormat("HunyuanVideo's network", "model", {"its text": "txt_in.individual_token_refiner."}, CLIPS),
    FileFormat("FLUX in one file", "model", {"blocks": "double_blocks.", "more blocks": "single_blocks."}, FOLDER),
    FileFormat("Wan's network", "model", {"blocks": "blocks.0.self_attn.", "its head": "head.modulation"}, CLIPS),
    FileFormat("LTX-Video in one file", "model", {"first layer": "model.diffusion_model.patchify_proj.weight"}, CLIPS),
    FileFormat(
        "CogVideoX's network in SAT's layout",
        "model",
        {"blocks": "model.diffusion_model.transformer.layers.0.attention.query_key_value."},
        FOLDER,
    ),
    FileFormat(
        "Stable Diffusion 1 in one file", "model", {**_WHOLE, "the text encoder": "cond_stage_model.transformer."}
    ),
    FileFormat("Stable Diffusion 2 in one file", "model", {**_WHOLE, "the text encoder": "cond_stage_model.model."}),
    FileFormat("a latent diffusion model in one file", "model", _WHOLE),
    FileFormat(
        "a U-Net of latent diffusion", "model", {**_ADM, "text": "middle_block.1.transformer_blocks."}, WHOLE_PART
    ),
    FileFormat("a U-Net of Improved DDPM or ADM", "model", _ADM),
    FileFormat("a latent-diffusion or Stable Diffusion checkpoint", "model", {"a U-Net": f"{_UNET}time_embed."}),
    FileFormat(
        "a U-Net of diffusers",
        "model",
        {"its time embedding": "time_embedding.linear_1.weight", "its first convolution": "conv_in.weight"},
        WHOLE_PART,
    ),
    FileFormat(
        "DDPM's U-Net",
        "model",
        {"its time embedding": "temb.dense.0.weight", "its first convolution": "conv_in.weight"},
        "give its recipe: unveil convert FILE OUT --format ddpm --recipe NAME",
    ),
    FileFormat(
        "an autoencoder of latent diffusion",
        "autoencoder",
        {"the encoder": "encoder.mid.block_1.conv1.weight", "the decoder": "decoder.conv_in.weight"},
        "an autoencoder, which makes no pictures by itself; checkpoints.diffusers_autoencoder.read(path) opens it",
    ),
    FileFormat(
        "an autoencoder of diffusers",
        "autoencoder",
        {"the encoder": "encoder.mid_block.resnets.0.conv1.weight", "the decoder": "decoder.conv_in.weight"},
        "an autoencoder, which makes no pictures by itself; checkpoints.diffusers_autoencoder.read(path) opens it",
    ),
    FileFormat("a DiT", "model", {"patches": "x_embedder.proj.weight", "time embedding": "t_embedder.mlp.0.weight"}),
    FileFormat("a DiT of diffusers", "model", {"patches": "pos_embed.proj.weight", "blocks": "transformer_blocks.0."}),
    FileFormat("EDM's network", "model", {"time embedding": "model.map_layer0.weight", "its encoder": "model.enc."}),
    FileFormat("score SDE's network", "model", {"its layers": "module.all_modules.0."}),
    FileFormat(
        "a text encoder of transformers",
        "text encoder",
        {"its table": "text_model.embeddings.token_embedding.weight", "its blocks": "text_model.encoder.layers.0."},
        "a text encoder, which makes no pictures by itself; give the whole folder or file that it is from",
    ),
)  # fmt: skip
LORA = LAYOUTS[0]


def detect_format(keys: Mapping[str, Any]) -> FileFormat | None:
    """The layout that a file has, by its keys; None: none that is known."""
    if naming_of(keys) is not None:
        return LORA
    return next((one for one in LAYOUTS if one is not LORA and all(_has(keys, s) for s in one.signs.values())), None)


def explain_unknown_format(keys: Mapping[str, Any]) -> str:
    """What to say of a file without a known layout: what it comes closest to, and what it lacks of that."""
    shown = abbreviate(sorted(keys), 3)
    near = max(LAYOUTS[1:], key=lambda one: _resemblance(keys, one))
    if not any(_resemblance(keys, near)):
        known = ", ".join(dict.fromkeys(one.what for one in LAYOUTS))
        return f"no known layout, and none that its keys resemble: {shown}; known are {known}"
    lacking = [f"{what} ({_written(sign)})" for what, sign in near.signs.items() if not _has(keys, sign)]
    return (
        f"no known layout, by its keys: {shown}; the closest is {near.what}, of which is missing: {', '.join(lacking)}"
    )


def _has(keys: Iterable[str], sign: str) -> bool:
    return any(key.startswith(sign) for key in keys) if sign.endswith(".") else sign in keys


def _written(sign: str) -> str:
    return f"{sign}*" if sign.endswith(".") else sign


def _resemblance(keys: Iterable[str], layout: FileFormat) -> tuple[int, float]:
    """How many of the signs there are, and in [0, 1] how much of all: of each the words that some key begins with."""
    signs = layout.signs.values()
    whole = sum(_has(keys, sign) for sign in signs)
    return whole, sum(_share(keys, sign.rstrip(".").split(".")) for sign in signs) / len(signs)


def _share(keys: Iterable[str], words: list[str]) -> float:
    best = 0
    for key in keys:
        both = zip(words, key.split("."), strict=False)
        best = max(best, next((n for n, (a, b) in enumerate(both) if a != b), min(len(words), key.count(".") + 1)))
    return best / len(words)
