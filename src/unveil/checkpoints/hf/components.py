"""Parts that models of diffusers' folders are put together of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from unveil.autoencoders import LatentAutoencoder
from unveil.autoencoders.autoencoder import AutoencoderKL
from unveil.checkpoints.formats import autoencoder, text_encoder
from unveil.checkpoints.hf.dit_adapters import DIT_NETWORKS
from unveil.checkpoints.hf.image_adapters import CLIPS, NETWORKS, check_settings
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.video_adapters import CLIP_NETWORKS
from unveil.checkpoints.hf.video_vaes import CLIP_CODECS
from unveil.checkpoints.hf.weights import fill, tensors_of
from unveil.checkpoints.overrides import shapes_of
from unveil.checkpoints.scheduler import SchedulerConfig, read_scheduler
from unveil.conditioning import clip_tokenizer
from unveil.conditioning.text_encoder import EncoderOutput, FileTokenizer, TextEncoder
from unveil.core.denoiser import Denoiser
from unveil.core.flow import DynamicShift
from unveil.core.prediction import PREDICTIONS, Prediction, rectified_flow
from unveil.core.process import Process
from unveil.errors import WeightsError
from unveil.io.optional_deps import import_extra
from unveil.model import Model
from unveil.model.config import SampleConfig, validate
from unveil.model.config.model import ProcessSection
from unveil.model.config.sections import Section
from unveil.nn import text_encoders
from unveil.nn.layers import EmptyParameters
from unveil.nn.text_encoders import T5EncoderConfig

KNOWN = {**NETWORKS, **DIT_NETWORKS, **CLIP_NETWORKS}  # class -> adapter


class ProcessSettings(Section):
    """A process, as a section of a recipe."""

    former: ClassVar[str] = "recipe"
    process: ProcessSection


def assemble_model(
    folder: PipelineFolder,
    network: nn.Module,
    scheduler: SchedulerConfig,
    codec: LatentAutoencoder,
    shape: tuple[int, ...],
    conditioners: Sequence[nn.Module],
    sample: Mapping[str, Any],
    fps: float | None = None,
) -> Model:
    """The model of these parts; `sample` goes before what the scheduler says of sampling."""
    process, prediction = process_of(folder, scheduler, codec.latent_shape(shape), network)
    how = validate(SampleConfig, {**scheduler.sample, **sample}, str(folder.path))
    denoiser = Denoiser(network, process, prediction=prediction)
    return Model(denoiser, shape, conditioners=conditioners, autoencoder=codec, sample=how, fps=fps)


def process_of(
    folder: PipelineFolder, scheduler: SchedulerConfig, latents: tuple[int, ...], network: nn.Module
) -> tuple[Process, Prediction]:
    """The process, for latents of this shape, and the prediction."""
    process = validate(ProcessSettings, {"process": scheduler.process}, str(folder.path)).process.build()
    prediction = rectified_flow if scheduler.prediction == "flow" else PREDICTIONS[scheduler.prediction]
    if scheduler.size_shift is not None:
        patch = int(getattr(network, "patch", 1))
        process = DynamicShift(process, 1.0, patch=patch, **scheduler.size_shift).resized(latents)
    return process, prediction


def scheduler_of(folder: PipelineFolder) -> SchedulerConfig:
    """Read the scheduler of the folder."""
    return read_scheduler(folder.place("scheduler") / "scheduler_config.json")


def network_of(folder: PipelineFolder, name: str, kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """The adapter of a component with its weights; `kind` is what the pipeline needs.

    Raises:
        WeightsError: The network of another pipeline, or weights that do not fit it.
    """
    adapter = empty_adapter(folder, name)
    if not isinstance(adapter, kind):
        raise WeightsError(f"{folder.path / name}: not the network of a {folder.kind}")
    fill(
        cast(nn.Module, adapter.net), weights_of(folder, name, cast(nn.Module, adapter.net)), dtype, folder.path / name
    )
    return adapter


def weights_of(folder: PipelineFolder, name: str, net: nn.Module) -> dict[str, Tensor]:
    """The weights of a component; those of a network or autoencoder of clips may lie in the file first published.

    Raises:
        WeightsError: None there, damaged, or of something else.
    """
    kind = type(net).__name__
    if kind not in (*CLIPS, *CLIP_CODECS):
        return folder.tensors(name)
    return tensors_of(folder, name, kind, net.state_dict().keys())


def empty_adapter(folder: PipelineFolder, name: str) -> Any:
    """The adapter of a component, without memory for its weights.

    Raises:
        WeightsError: A network that is not known.
        RecipeError: Settings that are not supported, or diffusers is not installed.
    """
    settings = folder.settings(name, KNOWN)
    kind = str(settings["_class_name"])
    check_settings(kind, settings, str(folder.path / name / "config.json"))
    return KNOWN[kind](build_module(folder, kind, settings))


def build_module(folder: PipelineFolder, kind: str, settings: Mapping[str, Any]) -> Any:
    """A module of diffusers by its settings, without memory for its weights.

    Raises:
        RecipeError: Diffusers is not installed.
        WeightsError: An installed version of it that does not know the class.
    """
    library = import_extra("diffusers", f"a {folder.kind}")
    if not hasattr(library, kind):
        raise WeightsError(f"{folder.path}: {kind} is not in diffusers {library.__version__}; install a newer one")
    with EmptyParameters(), silence_warnings():
        return getattr(library, kind).from_config(settings)


def image_codec(folder: PipelineFolder, name: str = "vae") -> AutoencoderKL:
    """The autoencoder of a folder of images, in float32; `name` is that of its component.

    Raises:
        WeightsError: A component that is missing, damaged, or has a codebook.
    """
    settings = folder.settings(name, ["AutoencoderKL"])
    theirs = folder.tensors(name)
    scale, shift = settings.get("scaling_factor", 0.18215), settings.get("shift_factor") or 0.0
    if settings.get("latents_std") is not None and settings.get("latents_mean") is not None:
        scale, shift = tuple(scale / std for std in settings["latents_std"]), tuple(settings["latents_mean"])
    groups = int(settings.get("norm_num_groups", 32))
    config = autoencoder.config_from_keys(
        shapes_of(autoencoder.first_stage(theirs)), groups=groups, scale=scale, shift=shift
    )
    codec = autoencoder.build_autoencoder(theirs, config)
    if not isinstance(codec, AutoencoderKL):
        raise WeightsError(
            f"{folder.path / name}: an autoencoder with a codebook; {folder.kind} needs an AutoencoderKL"
        )
    return codec


def image_shape(codec: AutoencoderKL, side: int | Sequence[int]) -> tuple[int, int, int]:
    """The shape of images whose latents have this side, or these two."""
    height, width = (side, side) if isinstance(side, int) else side
    return codec.config.in_channels, height * codec.config.factor, width * codec.config.factor


def encoder_of(
    folder: PipelineFolder,
    number: int,
    gives: EncoderOutput,
    dtype: torch.dtype,
    length: int,
    attend: Literal["tokens", "all"] = "all",
) -> tuple[TextEncoder, torch.dtype]:
    """A text encoder, and what it computes in.

    Args:
        number: Number of the one that is read, if there are several.
        length, attend: Length and attend of T5, see `T5EncoderConfig`.
    """
    end = "" if number == 1 else f"_{number}"
    for name in (f"text_encoder{end}", f"tokenizer{end}"):
        folder.place(name)
    loaded = text_encoder.read_folder(folder.path, number=number)
    config = loaded.config
    if isinstance(config, T5EncoderConfig):
        config = replace(config, max_length=length, attend=attend)
        if dtype == torch.float16:  # whose range T5 leaves
            dtype = torch.bfloat16
    elif gives != "vector":
        config = replace(config, skip=1, norm="none")
    with EmptyParameters(), silence_warnings():
        tower = text_encoders.build(config)
    fill(tower, loaded.state, dtype, folder.path / f"text_encoder{end}")
    tokenizer = clip_tokenizer.clip_tokenizer() if loaded.tokenizer is None else FileTokenizer(loaded.tokenizer)
    return TextEncoder(tower, tokenizer, output=gives), dtype


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Without the libraries' remarks on settings that they do not know."""
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
