"""Models of diffusers' folders of images whose text encoder is T5 or a language model.

Facts: defaults of diffusers' `PixArtSigmaPipeline`, `ChromaPipeline`, `SanaPipeline`, `ZImagePipeline`,
`QwenImagePipeline`, `Lumina2Pipeline` and `Flux2KleinPipeline`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from unveil.checkpoints.hf.components import (
    assemble_model,
    encoder_of,
    image_codec,
    image_shape,
    network_of,
    scheduler_of,
)
from unveil.checkpoints.hf.dit_adapters import DIT_NETWORKS, Chroma, Flux2, Lumina2, PixArt, QwenImage, Sana, ZImage
from unveil.checkpoints.hf.family import IMAGE_TASKS, PipelineFamily
from unveil.checkpoints.hf.image_vaes import DeepCompression, Flux2Codec, QwenCodec
from unveil.checkpoints.hf.language_models import (
    flux2_prompts,
    language_model_of,
    lumina2_prompts,
    qwen_prompts,
    sana_prompts,
    z_image_prompts,
)
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.conditioning.prompt_embeds import LongPromptEncoder
from unveil.core.flow import TokenFlow
from unveil.errors import UnsupportedFormat
from unveil.io.optional_deps import import_extra
from unveil.model import Model

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
    instruction = default_of(folder, "SanaPipeline", "complex_human_instruction")
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


def qwen_image(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `QwenImagePipeline`, whose instruction to its language model is diffusers'."""
    network, codec = network_of(folder, "transformer", QwenImage, dtype), QwenCodec(folder)
    theirs = pipeline_of(folder, "QwenImagePipeline", "scheduler", "vae", "text_encoder", "tokenizer", "transformer")
    read = qwen_prompts(str(theirs.prompt_template_encode), int(theirs.prompt_template_encode_start_idx))
    sample = {"steps": 50, "guidance": {"scale": 4.0, "kind": "cfg-token-norm"}}
    shape, prompt = (3, LATENTS * codec.factor, LATENTS * codec.factor), language_model_of(folder, read, dtype)
    return assemble_model(folder, network, scheduler_of(folder), codec, shape, (prompt,), sample)


def lumina2(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `Lumina2Pipeline`, whose instruction to its language model is diffusers'.

    Raises:
        UnsupportedFormat: A scheduler whose shift follows the size; published ones have one shift.
    """
    network, codec, scheduler = (
        network_of(folder, "transformer", Lumina2, dtype),
        image_codec(folder),
        scheduler_of(folder),
    )
    if scheduler.size_shift is not None:
        raise UnsupportedFormat(f"{folder.path / 'scheduler'}: use_dynamic_shifting = True: only False is supported")
    theirs = pipeline_of(folder, "Lumina2Pipeline", "scheduler", "vae", "text_encoder", "tokenizer", "transformer")
    prompt = language_model_of(folder, lumina2_prompts(str(theirs.system_prompt)), dtype)
    sample = {"steps": 30, "guidance": {"scale": 4.0, "kind": "cfg-row-norm"}, "schedule": "uniform"}
    side = int(folder.settings("transformer", DIT_NETWORKS).get("sample_size", LATENTS))
    return assemble_model(folder, network, scheduler, codec, image_shape(codec, side), (prompt,), sample)


def flux2_klein(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `Flux2KleinPipeline`, distilled to few steps or not.

    Raises:
        UnsupportedFormat: A scheduler whose shift does not follow the size.
    """
    network, codec, scheduler = (
        network_of(folder, "transformer", Flux2, dtype),
        Flux2Codec(folder),
        scheduler_of(folder),
    )
    if scheduler.size_shift is None or not scheduler.size_shift["exponential"]:
        raise UnsupportedFormat(f"{folder.path / 'scheduler'}: needs use_dynamic_shifting, with exponential shifts")
    layers = default_of(folder, "Flux2KleinPipeline", "text_encoder_out_layers")
    prompt = language_model_of(folder, flux2_prompts(tuple(layers)), dtype)
    distilled = bool(folder.index.get("is_distilled"))
    sample = {"steps": 4 if distilled else 50, "schedule": "size-and-steps"}
    sample |= {} if distilled else {"guidance": {"scale": 4.0}}
    shape = (3, LATENTS * codec.factor // 2, LATENTS * codec.factor // 2)
    model = assemble_model(folder, network, scheduler, codec, shape, (prompt,), sample)
    model.denoiser = model.denoiser.with_process(TokenFlow().resized(codec.latent_shape(shape)))
    return model


def pipeline_of(folder: PipelineFolder, kind: str, *parts: str) -> Any:
    """A pipeline of diffusers without its parts, for texts that its constructor states."""
    return getattr(import_extra("diffusers", f"a {folder.kind}"), kind)(**dict.fromkeys(parts))


def default_of(folder: PipelineFolder, kind: str, argument: str) -> Any:
    """The default of an argument of a pipeline's call."""
    library: Any = import_extra("diffusers", f"a {folder.kind}")
    return inspect.signature(getattr(library, kind).__call__).parameters[argument].default


def _lowered(text: str) -> str:
    return text.lower().strip()


FAMILIES = (
    PipelineFamily(name="PixArt-Sigma", pipelines=("PixArtSigmaPipeline",), load=pixart, tasks=IMAGE_TASKS),
    PipelineFamily(
        name="Chroma",
        pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
        load=chroma,
        tasks=IMAGE_TASKS,
    ),
    PipelineFamily(name="Sana", pipelines=("SanaPipeline", "SanaControlNetPipeline"), load=sana, tasks=IMAGE_TASKS),
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
        tasks=IMAGE_TASKS,
    ),
    PipelineFamily(
        name="Qwen-Image",
        pipelines=(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
            "QwenImageControlNetInpaintPipeline",
        ),
        load=qwen_image,
        tasks=IMAGE_TASKS,
    ),
    PipelineFamily(name="Lumina 2", pipelines=("Lumina2Pipeline",), load=lumina2, tasks=IMAGE_TASKS),
    PipelineFamily(
        name="FLUX.2 klein",
        pipelines=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        load=flux2_klein,
        tasks=IMAGE_TASKS,
    ),
)
