"""Folders of Stable Diffusion 1 and 2 as diffusers writes them: models of parts of ours, read and written.

Facts: components and settings of diffusers' `StableDiffusionPipeline` and of those for images and inpainting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unveil.autoencoders.autoencoder import AutoencoderKL
from unveil.checkpoints import diffusers_unet
from unveil.checkpoints.format import LoadedCheckpoint
from unveil.checkpoints.formats import autoencoder, single_file, text_encoder
from unveil.checkpoints.hf.pipeline_folder import INDEX, PipelineFolder
from unveil.checkpoints.hf.weights import KeyMatchReport
from unveil.checkpoints.scheduler import read_scheduler, settings_of
from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import staged
from unveil.model import Model
from unveil.nn.unet import UNet

PLAIN, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
CLASSES = (
    PLAIN,
    "StableDiffusionImg2ImgPipeline",
    INPAINT,
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
)
PARTS = ("unet", "vae", "text_encoder")  # that have weights
# Components that the index may list and that generate nothing
BESIDE = ("safety_checker", "feature_extractor", "image_encoder", "controlnet")
# As Stable Diffusion's own folders space DDIM's levels
SPACING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
CONFIG = "scheduler_config.json"


def read_stable_diffusion(folder: PipelineFolder) -> LoadedCheckpoint:
    """The model of a folder, in evaluation mode and float32, and how the folder fitted it.

    Raises:
        WeightsError: A component that is missing, damaged or of another kind, or an autoencoder with a codebook.
        RecipeError: Settings that are not supported.
    """
    unet = diffusers_unet.read_unet(folder.place("unet"))
    if unet.label is not None:
        raise WeightsError(f"{folder.path / 'unet'}: knows classes, which Stable Diffusion's pipelines do not give it")
    codec = autoencoder.read_folder(folder.place("vae"))
    if not isinstance(codec, AutoencoderKL):
        raise WeightsError(f"{folder.path / 'vae'}: an autoencoder with a codebook; {folder.kind} has an AutoencoderKL")
    for name in ("text_encoder", "tokenizer"):
        folder.place(name)
    encoder = text_encoder.read_folder(folder.path)
    network = unet.network.config
    scheduler = read_scheduler(folder.place("scheduler") / CONFIG)
    config = single_file.infer_model_config(network, codec, encoder, scheduler, _size(folder, codec))
    model = single_file.assemble_model(config, unet.network.state_dict(), codec, encoder)
    unused = [f"text_encoder.{key}" for key in encoder.rest] + [name for name in BESIDE if folder.has(name)]
    total = sum(len(folder.tensors(name)) for name in PARTS)
    return LoadedCheckpoint(model, total - len(encoder.rest), tuple(unused))


def report(folder: PipelineFolder) -> dict[str, KeyMatchReport]:
    """Compare the weights of each component with its settings.

    Raises:
        WeightsError, RecipeError: As `read`, which lists keys that do not fit.
    """
    unused = {key for key in read_stable_diffusion(folder).unused}
    reports: dict[str, KeyMatchReport] = {}
    for name in PARTS:
        keys = list(folder.tensors(name))
        rest = tuple(key for key in keys if f"{name}.{key}" in unused)
        reports[name] = KeyMatchReport(tuple(key for key in keys if key not in rest), unknown=rest)
    return reports


def write(model: Model, path: Path) -> int:
    """Writes a folder that diffusers opens with `from_pretrained`, whole or not at all; returns its tensors' number.

    Raises:
        RecipeError: A model that such a folder cannot hold.
        OutputError: Something is there already, or the place cannot be written.
    """
    texts = [conditioner for conditioner in model.conditioners.values() if isinstance(conditioner, TextEncoder)]
    network, codec = model.denoiser.network, model.autoencoder
    if not isinstance(network, UNet) or not isinstance(codec, AutoencoderKL) or len(texts) != 1 or model.config is None:
        raise RecipeError(
            f"a folder of {PLAIN} holds a U-Net over a kl autoencoder's latents with one text encoder; this model is "
            f"a {type(network).__name__} over {type(codec).__name__} with {len(texts)}"
        )
    scheduler = settings_of(model.config, SPACING)
    kind = INPAINT if network.config.concat_channels else PLAIN
    index: dict[str, Any] = {
        "_class_name": kind,
        **{name: [None, None] for name in BESIDE[:2]},
        "requires_safety_checker": False,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", diffusers_unet.UNET],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with staged(path) as temporary:
        temporary.mkdir()
        diffusers_unet.write(network, temporary / "unet", size=codec.latent_shape(model.shape)[-1])
        autoencoder.write_folder(codec, temporary / "vae")
        text_encoder.write_folder(texts[0], temporary)
        (temporary / "scheduler").mkdir()
        for name, content in ((f"scheduler/{CONFIG}", scheduler), (INDEX, index)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        written = PipelineFolder(temporary)
        return sum(len(written.tensors(name)) for name in PARTS)


def _size(folder: PipelineFolder, codec: AutoencoderKL) -> tuple[int, int]:
    """Default height and width of the folder's images."""
    side = folder.settings("unet", [diffusers_unet.UNET]).get("sample_size") or 64
    height, width = (side, side) if isinstance(side, int) else side
    return height * codec.config.factor, width * codec.config.factor
