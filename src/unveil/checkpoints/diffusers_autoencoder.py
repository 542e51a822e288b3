"""Folders of diffusers' `AutoencoderKL` and `VQModel`: config.json and diffusion_pytorch_model.safetensors.

Facts: configuration files of diffusers' autoencoders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.autoencoders.autoencoder import PerChannel
from unveil.autoencoders.vq import VQModelConfig
from unveil.checkpoints import autoencoder_keys
from unveil.checkpoints.hf_files import read_json, read_weights
from unveil.checkpoints.overrides import shapes_of
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_state, staged, write_tensors

WEIGHTS = "diffusion_pytorch_model"
CLASSES = ("AutoencoderKL", "VQModel")
PLACES = ("vae", "vqvae", "first_stage_model", "")  # in a pipeline's folder, or itself
SCALE = 0.18215  # what settings that leave the factor away mean: the first ones, Stable Diffusion 1.4's among them
# Settings that are supported with one value only
FIXED = {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False}
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def place_of(path: Path) -> Path | None:
    """The folder of the autoencoder in a pipeline's folder, or the folder itself; None: there is none."""
    for name in PLACES:
        place = path / name
        if (place / "config.json").is_file() and read_json(place / "config.json").get("_class_name") in CLASSES:
            return place
    return None


def read(path: Path) -> AutoencoderKL | VQModel:
    """The codec of a folder of diffusers, or of a file of tensors, in evaluation mode and frozen.

    Raises:
        WeightsError: no autoencoder there, damaged, or with settings that it does not have here.
    """
    if path.is_file():
        return autoencoder_keys.codec_of(read_state(path))
    place = place_of(path)
    if place is None:
        names = ", ".join(CLASSES)
        raise WeightsError(f"{path}: no folder of an autoencoder of diffusers, whose config.json names {names}")
    settings = read_json(place / "config.json")
    theirs = read_weights(place, WEIGHTS)
    scale, shift = _scale(settings, str(place / "config.json"))
    config = autoencoder_keys.infer_config(
        shapes_of(theirs), groups=int(settings.get("norm_num_groups", 32)), scale=scale, shift=shift
    )
    for name, value in [*FIXED.items(), *_expected(config).items()]:
        setting = settings.get(name, value)
        setting = tuple(setting) if isinstance(setting, list) else setting
        if setting is not None and setting != value:
            raise WeightsError(f"{place / 'config.json'}: {name} = {setting!r}: only {value!r} is supported here")
    return autoencoder_keys.codec_of(theirs, config)


def write(codec: AutoencoderKL | VQModel, path: Path) -> Path:
    """Writes a folder that diffusers opens with `from_pretrained`, whole or not at all; returns it.

    Raises:
        RecipeError: a codec that diffusers' layout does not have.
        OutputError: something is there already, or the place cannot be written.
    """
    settings = _settings(codec)
    tensors = autoencoder_keys.dump(codec, "diffusers")
    with staged(path) as temporary, torch.no_grad():
        temporary.mkdir()
        (temporary / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        write_tensors(temporary / f"{WEIGHTS}.safetensors", tensors)
    return path


def _scale(settings: Mapping[str, Any], where: str) -> tuple[PerChannel, PerChannel]:
    """Scale and shift of the latents: diffusers' factors, or with them means and deviations per channel."""
    factor, shift = settings.get("scaling_factor", SCALE), settings.get("shift_factor")
    means, deviations = settings.get("latents_mean"), settings.get("latents_std")
    scale = 1.0 if factor is None else float(factor)
    if means is None and deviations is None:
        return scale, float(shift or 0.0)
    if means is None or deviations is None or shift:
        raise WeightsError(
            f"{where}: latents_mean and latents_std go together, and without shift_factor; copy it again"
        )
    return tuple(scale / float(number) for number in deviations), tuple(float(number) for number in means)


def _settings(codec: AutoencoderKL | VQModel) -> dict[str, Any]:
    config = codec.config
    if isinstance(codec, VQModel) and config.latent_channels is None:
        raise RecipeError("latent_channels = None: diffusers' VQModel has 1x1 convolutions")
    scale, shift = codec.scale.tolist(), codec.shift.tolist()
    plain = len(set(scale)) == 1 and len(set(shift)) == 1
    if isinstance(codec, VQModel) and (not plain or shift[0]):
        raise RecipeError("shift, or a scale per channel: diffusers' VQModel has one scaling_factor alone")
    numbers: dict[str, Any] = {"scaling_factor": scale[0], "shift_factor": shift[0] or None}
    if not plain:
        numbers = {"scaling_factor": 1.0, "latents_mean": shift, "latents_std": [1 / number for number in scale]}
    if isinstance(codec, VQModel):
        numbers = {"scaling_factor": scale[0], "norm_type": "group"}
    return {
        "_class_name": "VQModel" if isinstance(codec, VQModel) else "AutoencoderKL",
        "act_fn": "silu",
        "norm_num_groups": config.groups,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in _expected(config).items()},
        **numbers,
    }


def _expected(config: Any) -> dict[str, Any]:
    """The settings that the shapes of the tensors show too."""
    attended = [rate in config.attention for rate in config.rates]
    expected = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "down_block_types": tuple(DOWN[attends] for attends in attended),
        "up_block_types": tuple(UP[attends] for attends in reversed(attended)),
        "mid_block_add_attention": config.middle == "attention",
    }
    if isinstance(config, VQModelConfig):
        return expected | {"num_vq_embeddings": config.codebook_size, "vq_embed_dim": config.width}
    projected = config.latent_channels is not None
    if projected and config.latent_channels != config.z_channels:
        raise RecipeError(
            f"latent_channels = {config.latent_channels}: diffusers' AutoencoderKL has as many as z_channels, "
            f"{config.z_channels}"
        )
    return expected | {"use_quant_conv": projected, "use_post_quant_conv": projected}
