"""Models of diffusers' folders: each pipeline's network, prompt, codec, process and way of sampling.

Facts: defaults of diffusers' `StableDiffusionXLPipeline`, `StableDiffusion3Pipeline` and `FluxPipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints.hf import image_pipelines, older_pipelines, stable_diffusion, unconditional, video_pipelines
from unveil.checkpoints.hf.components import (
    assemble_model,
    empty_adapter,
    encoder_of,
    image_codec,
    image_shape,
    network_of,
    scheduler_of,
    weights_of,
)
from unveil.checkpoints.hf.family import IMAGE_TASKS, PipelineFamily
from unveil.checkpoints.hf.image_adapters import NETWORKS, SIZES, DiffusersUNet, Flux, MMDiT
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.weights import KeyMatchReport, compare
from unveil.checkpoints.overrides import shapes_of
from unveil.conditioning import text_encoder
from unveil.conditioning.image import ConcatCondition
from unveil.conditioning.micro_conditioning import ScalarCondition, ScoredPrompt, SizeCondition
from unveil.conditioning.text_encoder import CombineEncoders, EncoderOutput, MultiTextEncoder
from unveil.errors import UnsupportedFormat, did_you_mean
from unveil.io.files import read_header
from unveil.model import Model, model_folder

FLUX_LATENTS = 128  # default side of its pipeline
SD3_TOKENS = 256  # of T5
FLUX_TOKENS = {"distilled": 512, "few-step": 256}  # of T5, for networks with and without a guidance embedding
GUIDANCE = 3.5  # default of FLUX's guidance embedding


# -- the three pipelines ------------------------------------------------------------------------------------------


def sdxl(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `StableDiffusionXLPipeline`; sizes are given as "size", see `SizeCondition`.

    A refiner has the second text encoder alone, and a score. A network that was trained to inpaint takes a mask and
    the latents of the masked image.
    """
    network, codec, scheduler = (
        network_of(folder, "unet", DiffusersUNet, dtype),
        image_codec(folder),
        scheduler_of(folder),
    )
    assert isinstance(network, DiffusersUNet)
    shape = image_shape(codec, folder.settings("unet", NETWORKS).get("sample_size", 128))
    scored = bool(folder.index.get("requires_aesthetics_score", False))
    network.extra_dims = SIZES - 1 if scored else SIZES
    gives: dict[int, EncoderOutput] = {1: "tokens", 2: "both"} if folder.has("text_encoder") else {2: "both"}
    prompt = _prompt(folder, text_encoder.sdxl_concat, gives, dtype, extra_dims=network.extra_dims)
    prompt.zero_uncond = bool(folder.index.get("force_zeros_for_empty_prompt", True))
    size = SizeCondition(shape, network.vector_dim - network.extra_dims, scored=scored)
    channels = codec.latent_shape(shape)[0]
    masks = (ConcatCondition(1, key="mask"), ConcatCondition(channels, key="masked")) if network.shown else ()
    if network.shown not in (0, 1 + channels):
        raise UnsupportedFormat(
            f"{folder.path / 'unet'}: takes {network.shown} channels more than latents; only a mask and the latents of "
            "an image are supported"
        )
    sample = {"steps": 50, "guidance": {"scale": 5.0}}
    first = ScoredPrompt(prompt) if scored else prompt
    return assemble_model(folder, network, scheduler, codec, shape, (first, size, *masks), sample)


def sd3(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `StableDiffusion3Pipeline`, with its third text encoder or without."""
    network, codec, scheduler = (
        network_of(folder, "transformer", MMDiT, dtype),
        image_codec(folder),
        scheduler_of(folder),
    )
    settings = folder.settings("transformer", NETWORKS)
    rule = text_encoder.sd3_concat(int(settings["joint_attention_dim"]), SD3_TOKENS)
    gives: dict[int, EncoderOutput] = {1: "both", 2: "both"}
    gives |= {3: "tokens"} if folder.has("text_encoder_3") else {}
    prompt = _prompt(folder, rule, gives, dtype, length=SD3_TOKENS)
    shape = image_shape(codec, settings.get("sample_size", 128))
    sample = {"steps": 28, "guidance": {"scale": 7.0}}
    return assemble_model(folder, network, scheduler, codec, shape, (prompt,), sample)


def flux(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `FluxPipeline`; the scale of distilled guidance is given as "guidance"."""
    network, codec, scheduler = (
        network_of(folder, "transformer", Flux, dtype),
        image_codec(folder),
        scheduler_of(folder),
    )
    assert isinstance(network, Flux)
    length = FLUX_TOKENS["distilled" if network.extra_dims else "few-step"]
    prompt = _prompt(
        folder,
        text_encoder.flux_concat,
        {1: "vector", 2: "tokens"},
        dtype,
        extra_dims=network.extra_dims,
        length=length,
    )
    guidance = [ScalarCondition((GUIDANCE,), network.pooled, key="guidance")] if network.extra_dims else []
    sample: dict[str, Any] = {"steps": 28 if network.extra_dims else 4}
    if scheduler.size_shift is None:  # its pipeline spaces the levels evenly itself, whatever the scheduler would do
        sample["schedule"] = "uniform"
    return assemble_model(
        folder, network, scheduler, codec, image_shape(codec, FLUX_LATENTS), (prompt, *guidance), sample
    )


def load_components(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a pipeline of Stable Diffusion 1 or 2, which is one of our own parts and can be saved."""
    return stable_diffusion.read_stable_diffusion(folder).model.to_inference_dtype(dtype)


def load_unconditional(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a pipeline without conditions, which is one of our own parts and can be saved."""
    return unconditional.read_unconditional(folder).model.to_inference_dtype(dtype)


FAMILIES: tuple[PipelineFamily, ...] = (
    PipelineFamily(
        name="Stable Diffusion 1 and 2",
        pipelines=stable_diffusion.CLASSES,
        load=load_components,
        tasks=(*IMAGE_TASKS, "train"),
        networks=("unet",),
        native=True,
        report=stable_diffusion.report,
    ),
    PipelineFamily(
        name="DDPM, DDIM, and LDM without conditions",
        pipelines=unconditional.CLASSES,
        load=load_unconditional,
        tasks=("sample", "img2img", "inpaint", "train"),
        networks=("unet",),
        native=True,
        report=unconditional.report,
    ),
    PipelineFamily(
        name="Stable Diffusion XL",
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
        ),
        load=sdxl,
        tasks=IMAGE_TASKS,
        networks=("unet",),
    ),
    PipelineFamily(
        name="Stable Diffusion 3",
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
        ),
        load=sd3,
        tasks=IMAGE_TASKS,
    ),
    PipelineFamily(
        name="FLUX.1",
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
        ),
        load=flux,
        tasks=IMAGE_TASKS,
    ),
    *older_pipelines.FAMILIES,
    *image_pipelines.FAMILIES,
    *video_pipelines.FAMILIES,
)
PIPELINES = {kind: family for family in FAMILIES for kind in family.pipelines}  # by the name of the class


def load(path: Path, dtype: torch.dtype = torch.float32) -> Model:
    """The model of a folder of diffusers, in evaluation mode.

    Weights that the files hold in the requested type are mapped into memory and not copied: matrices in `dtype`,
    everything else in float32.

    Args:
        path: The folder with the model_index.json.
        dtype: Number format of its computation.

    Raises:
        UnsupportedFormat: A pipeline that is not known.
        WeightsError: A component that is missing or damaged, settings that are not
            supported, or anything in the folder that would have to be run.
        RecipeError: Diffusers or transformers is not installed.
    """
    folder = PipelineFolder(path)
    require_known(folder.kind, path)
    model = PIPELINES[folder.kind].load(folder, dtype)
    if model.config is None:
        model.source_folder = path
    return model.to_inference_dtype(dtype).eval()


def unsupported(kind: str) -> str:
    """Why a pipeline of a class is not read; empty: it is."""
    if kind in PIPELINES:
        return ""
    return (
        f"{kind} is not a pipeline that can be read; those are "
        f"{', '.join(family.pipelines[0] for family in FAMILIES)}{did_you_mean(kind, list(PIPELINES))}"
    )


def require_known(kind: str, where: object) -> None:
    """Check that a pipeline is one that is read.

    Args:
        kind: Its class.
        where: Folder or repository, for the error.

    Raises:
        UnsupportedFormat: It is not; names those that are.
    """
    if why := unsupported(kind):
        raise UnsupportedFormat(f"{where}: {why}")


def report(path: Path) -> dict[str, KeyMatchReport]:
    """Compare the weights of a folder with its settings, by component, from the headers.

    Raises:
        WeightsError: As `load`, except for weights that do not fit.
    """
    folder = PipelineFolder(path)
    if (compared := PIPELINES[folder.kind].report) is not None:
        return compared(folder)
    names = [name for name in PIPELINES[folder.kind].networks if folder.has(name)]
    nets = {name: empty_adapter(folder, name).net for name in names}
    return {name: compare(shapes_of(weights_of(folder, name, net)), net) for name, net in nets.items()}


def inspect(path: Path) -> dict[str, Any]:
    """Facts of a folder, from headers and settings only: those of `inspection.inspect`, and how its network fits.

    Raises:
        WeightsError: As `report`.
    """
    folder = PipelineFolder(path)
    headers = {file.relative_to(path).as_posix(): read_header(file) for file in folder.weight_files()}
    family = PIPELINES.get(folder.kind)
    more = f": {video_pipelines.describe(folder, family)}" if family is not None and family.video else ""
    facts: dict[str, Any] = {"path": str(path), "what": f"a folder of diffusers, {folder.kind}{more}"}
    if why := unsupported(folder.kind):
        return facts | model_folder.summary(headers) | {"problem": why, "supported": False}
    fits = {name: match.text() for name, match in report(path).items()}
    return facts | model_folder.summary(headers) | {"fits": fits}


# -- parts of images -----------------------------------------------------------------------------------------------


def _prompt(
    folder: PipelineFolder,
    together: CombineEncoders,
    gives: Mapping[int, EncoderOutput],
    dtype: torch.dtype,
    *,
    extra_dims: int = 0,
    length: int = 0,
) -> MultiTextEncoder:
    """The prompt's text encoders, the first one first.

    Args:
        gives: Output of each encoder, by its number in the folder.
        extra_dims: See `MultiTextEncoder`.
        length: Tokens of T5.
    """
    each = [encoder_of(folder, number, output, dtype, length) for number, output in gives.items()]
    return MultiTextEncoder(
        [output for output, _ in each], together, extra_dims=extra_dims, precisions=[precision for _, precision in each]
    )
