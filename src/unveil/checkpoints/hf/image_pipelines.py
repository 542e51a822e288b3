"""Models of diffusers' folders of images whose text encoder is T5 or a language model.

Facts: defaults of diffusers' `PixArtSigmaPipeline`, `ChromaPipeline`, `SanaPipeline` and `ZImagePipeline`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf.components import (
    assemble_model,
    build_module,
    encoder_of,
    image_codec,
    image_shape,
    network_of,
    scheduler_of,
)
from unveil.checkpoints.hf.dit_adapters import DIT_NETWORKS, Chroma, PixArt, Sana, ZImage
from unveil.checkpoints.hf.family import PipelineFamily
from unveil.checkpoints.hf.language_models import language_model_of, sana_prompts, z_image_prompts
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.weights import fill
from unveil.conditioning.prompt_embeds import LongPromptEncoder
from unveil.errors import ShapeError
from unveil.io.optional_deps import import_extra
from unveil.model import Model
from unveil.types import format_size

PIXART_TOKENS, CHROMA_TOKENS = 300, 512
LATENTS = 128  # default side of the latents


def pixart(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `PixArtSigmaPipeline`."""
    network, codec = network_of(folder, "transformer", PixArt, dtype), image_codec(folder)
    text, precision = encoder_of(folder, 1, "tokens", dtype, PIXART_TOKENS, "tokens")
    prompt = LongPromptEncoder(text, "hidden", precision=precision, cleaned=_lowered)
    side = int(folder.settings("transformer", DIT_NETWORKS)["sample_size"])
    sample = {"steps": 20, "guidance": {"scale": 4.5}}
    return assemble_model(folder, network, scheduler_of(folder), codec, image_shape(codec, side), (prompt,), sample)


def chroma(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `ChromaPipeline`."""
    network, codec = network_of(folder, "transformer", Chroma, dtype), image_codec(folder)
    text, precision = encoder_of(folder, 1, "tokens", dtype, CHROMA_TOKENS, "tokens")
    prompt = LongPromptEncoder(text, "hidden", precision=precision)
    sample = {"steps": 35, "guidance": {"scale": 5.0}, "schedule": "uniform"}
    return assemble_model(folder, network, scheduler_of(folder), codec, image_shape(codec, LATENTS), (prompt,), sample)


def sana(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `SanaPipeline`, whose instruction to its language model is diffusers'."""
    network = network_of(folder, "transformer", Sana, dtype)
    codec = DeepCompression(folder)
    library: Any = import_extra("diffusers", f"a {folder.kind}")
    instruction = inspect.signature(library.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    prompt = language_model_of(folder, sana_prompts("\n".join(instruction)), dtype)
    side = int(folder.settings("transformer", DIT_NETWORKS)["sample_size"]) * codec.factor
    sample = {"steps": 20, "guidance": {"scale": 4.5}}
    return assemble_model(folder, network, scheduler_of(folder), codec, (3, side, side), (prompt,), sample)


def z_image(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `ZImagePipeline`; its guidance scale plus one is ours."""
    network, codec = network_of(folder, "transformer", ZImage, dtype), image_codec(folder)
    prompt = language_model_of(folder, z_image_prompts, dtype)
    sample = {"steps": 50, "guidance": {"scale": 6.0}, "schedule": "uniform"}
    return assemble_model(folder, network, scheduler_of(folder), codec, image_shape(codec, LATENTS), (prompt,), sample)


class DeepCompression(nn.Module):
    """The autoencoder of Sana, an `AutoencoderDC`, as a codec: latents times a scale.

    Source: Chen et al. 2024 (arXiv:2410.10733).
    """

    stochastic = False

    def __init__(self, folder: PipelineFolder) -> None:
        super().__init__()
        self.vae = build_module(folder, "AutoencoderDC", folder.settings("vae", ["AutoencoderDC"]))
        fill(self.vae, folder.tensors("vae"), torch.float32, folder.path / "vae")
        self.scale, self.channels = float(self.vae.config.scaling_factor), int(self.vae.config.latent_channels)
        self.factor = int(self.vae.spatial_compression_ratio)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latents (B, Z, H / factor, W / factor) of images (B, 3, H, W); errors are those of `latent_shape`."""
        del noise
        self.latent_shape(tuple(pixels.shape[1:]))
        return self.vae.encode(pixels, return_dict=False)[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, both (B, ...)."""
        return self.vae.decode(latents / self.scale, return_dict=False)[0]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(Z, H / factor, W / factor) of (3, H, W).

        Raises:
            ShapeError: A side that is not a multiple of the factor; names the nearest.
        """
        sides, unit = shape[-2:], self.factor
        if any(side < unit or side % unit for side in sides):
            near = format_size([max(unit, round(side / unit) * unit) for side in sides])
            raise ShapeError(
                f"size {format_size(sides)} (width x height): both sides must be multiples of {unit} px; nearest {near}"
            )
        return self.channels, sides[0] // unit, sides[1] // unit


def _lowered(text: str) -> str:
    return text.lower().strip()


FAMILIES = (
    PipelineFamily(name="PixArt-Sigma", pipelines=("PixArtSigmaPipeline",), load=pixart, tasks=("sample",)),
    PipelineFamily(
        name="Chroma",
        pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
        load=chroma,
        tasks=("sample",),
    ),
    PipelineFamily(name="Sana", pipelines=("SanaPipeline", "SanaControlNetPipeline"), load=sana, tasks=("sample",)),
    PipelineFamily(
        name="Z-Image",
        pipelines=(
            "ZImagePipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
            "ZImageControlNetInpaintPipeline",
        ),
        load=z_image,
        tasks=("sample",),
    ),
)
