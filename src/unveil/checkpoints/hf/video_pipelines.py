"""Models of diffusers' folders that make clips: Wan 2.1 and 2.2, LTX-Video, CogVideoX, HunyuanVideo.

Facts: defaults of diffusers' `WanPipeline`, `LTXPipeline`, `CogVideoXPipeline` and `HunyuanVideoPipeline`. Frame rates:
Wan team 2025 (arXiv:2503.20314) and the card of Wan2.2-TI2V-5B; the cards of CogVideoX and CogVideoX1.5; Kong et al.
2024 (arXiv:2412.03603).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from unveil.checkpoints.hf.components import (
    assemble_model,
    build_module,
    encoder_of,
    network_of,
    scheduler_of,
    weights_of,
)
from unveil.checkpoints.hf.family import PipelineFamily
from unveil.checkpoints.hf.first_frame import FirstFrame, image_reader
from unveil.checkpoints.hf.hunyuan_prompts import hunyuan_prompts_of
from unveil.checkpoints.hf.language_models import hunyuan_prompts, two_models_of
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf.video_adapters import FRAME_RATE, LTX, CogVideoX, Hunyuan, Hunyuan15, Wan, WanTwoExperts
from unveil.checkpoints.hf.video_vaes import VideoVAE, video_vae
from unveil.checkpoints.hf.weights import fill
from unveil.checkpoints.hf_files import read_json
from unveil.conditioning.micro_conditioning import ScalarCondition
from unveil.conditioning.prompt_embeds import LongPromptEncoder, Padding, PrecomputedPrompts, clean_prompt
from unveil.errors import UnsupportedFormat, WeightsError
from unveil.io.files import read_header, read_tensors, staged, write_tensors
from unveil.io.optional_deps import import_extra
from unveil.model import Model
from unveil.model.model import FPS
from unveil.types import Condition

PROMPTS = "prompts.safetensors"  # in a folder: prompts' tokens, in the place of the text encoder
CONTINUES = "WanImageToVideoPipeline"
ROUTES = ("tokens", "mask", "vector")
WAN_TOKENS, LTX_TOKENS, COG_TOKENS = 512, 128, 226
GUIDANCE = 6.0  # default of HunyuanVideo's guidance embedding
# frames per second of the videos of training; LTX-Video's is `FRAME_RATE`, and its network takes others, too
WAN_FPS, WAN_5B_FPS, COG_FPS, COG_15_FPS, HUNYUAN_FPS = 16.0, 24.0, 8.0, 16.0, 24.0
# default frames, height and width of a video
WAN_SIZE, LTX_SIZE, HUNYUAN_SIZE = (81, 480, 832), (161, 512, 704), (129, 720, 1280)
HUNYUAN_15_SIZE = (121, 480, 848)


def wan(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `WanPipeline`, with one transformer or with two that share the levels.

    That of a `WanImageToVideoPipeline` takes the first frame as "image", unless its network has levels of tokens.
    """
    network: Any = network_of(folder, "transformer", Wan, dtype)
    if folder.has("transformer_2"):
        boundary, other = folder.index.get("boundary_ratio"), network_of(folder, "transformer_2", Wan, dtype)
        if boundary is None:
            raise WeightsError(
                f"{folder.path}: two transformers and no boundary_ratio in model_index.json; copy it again"
            )
        assert isinstance(other, Wan)
        network = WanTwoExperts(network, other, 1000 * float(boundary))
    prompt = _prompt(folder, dtype, "zeros", WAN_TOKENS, attend="tokens", cleaned=clean_prompt)
    codec = _codec(folder, "AutoencoderKLWan", network)
    sample = {"steps": 50, "guidance": {"scale": 5.0}}
    fps = WAN_5B_FPS if folder.index.get("expand_timesteps") else WAN_FPS  # text and image to video, 5B
    shape = (3, *WAN_SIZE)
    first: tuple[nn.Module, ...] = ()
    if network.shown:
        first = (FirstFrame(codec, shape, image_reader(folder, dtype) if network.attends_to_image else None),)
    return assemble_model(folder, network, scheduler_of(folder), codec, shape, (prompt, *first), sample, fps)


def ltx(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of an `LTXPipeline`; its frame rate is given as "fps"."""
    network = network_of(folder, "transformer", LTX, dtype)
    assert isinstance(network, LTX)
    codec = _codec(folder, "AutoencoderKLLTXVideo", network)
    network.rates = codec.rates
    prompt = _prompt(folder, dtype, "hidden", LTX_TOKENS)
    rate = ScalarCondition((FRAME_RATE,), 0, key=FPS)
    sample = {"steps": 50, "guidance": {"scale": 3.0}}
    scheduler, shape = scheduler_of(folder), (3, *LTX_SIZE)
    return assemble_model(folder, network, scheduler, codec, shape, (prompt, rate), sample, FRAME_RATE)


def cogvideox(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `CogVideoXPipeline`."""
    network = network_of(folder, "transformer", CogVideoX, dtype)
    assert isinstance(network, CogVideoX)
    codec = _codec(folder, "AutoencoderKLCogVideoX", network)
    codec.front = network.frames_per_token - 1
    settings, unit = network.settings, codec.rates[1]
    frames = 1 + -(-(int(settings.sample_frames) - 1) // codec.step) * codec.step
    shape = (3, frames, int(settings.sample_height) * unit, int(settings.sample_width) * unit)
    prompt = _prompt(folder, dtype, "text", int(settings.max_text_seq_length or COG_TOKENS))
    sample = {"steps": 50, "guidance": {"scale": 6.0}, "threshold": "none"}
    fps = COG_FPS if settings.patch_size_t is None else COG_15_FPS
    return assemble_model(folder, network, scheduler_of(folder), codec, shape, (prompt,), sample, fps)


def hunyuan(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `HunyuanVideoPipeline`; the scale of distilled guidance is given as "guidance".

    Prompts are read by its two text encoders, or come from `PROMPTS`.
    """
    network = network_of(folder, "transformer", Hunyuan, dtype)
    assert isinstance(network, Hunyuan)
    codec = _codec(folder, "AutoencoderKLHunyuanVideo", network)
    guidance = [ScalarCondition((GUIDANCE,), network.pooled, key="guidance")] if network.extra_dims else []
    if (folder.path / PROMPTS).is_file():
        prompt: nn.Module = read_prompts(folder.path / PROMPTS, extra_dims=network.extra_dims)
    else:
        for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
            _require(folder, name)
        prompt = hunyuan_prompts_of(folder, dtype, network.extra_dims)
    # its pipeline spaces the levels evenly itself
    sample = {"steps": 50, "schedule": "uniform"}
    scheduler, shape = scheduler_of(folder), (3, *HUNYUAN_SIZE)
    return assemble_model(folder, network, scheduler, codec, shape, (prompt, *guidance), sample, HUNYUAN_FPS)


def hunyuan15(folder: PipelineFolder, dtype: torch.dtype) -> Model:
    """The model of a `HunyuanVideo15Pipeline`, whose instruction to its language model is diffusers'.

    Raises:
        UnsupportedFormat: A guider that is not plain classifier-free guidance.
    """
    network = network_of(folder, "transformer", Hunyuan15, dtype)
    codec = _codec(folder, "AutoencoderKLHunyuanVideo15", network)
    guider = read_json(folder.place("guider") / "guider_config.json")
    fixed = {"guidance_rescale": 0.0, "use_original_formulation": False, "start": 0.0, "stop": 1.0}
    if changed := [name for name, value in fixed.items() if guider.get(name, value) != value]:
        raise UnsupportedFormat(f"{folder.path / 'guider'}: {changed[0]} = {guider[changed[0]]!r}: is not supported")
    library: Any = import_extra("diffusers", f"a {folder.kind}")
    theirs = inspect.signature(library.HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    read = hunyuan_prompts(str(theirs["system_message"].default), int(theirs["crop_start"].default))
    prompt = two_models_of(folder, read, dtype)
    # its pipeline spaces the levels evenly itself
    sample = {"steps": 50, "schedule": "uniform", "guidance": {"scale": float(guider.get("guidance_scale", 6.0))}}
    scheduler, shape = scheduler_of(folder), (3, *HUNYUAN_15_SIZE)
    return assemble_model(folder, network, scheduler, codec, shape, (prompt,), sample, HUNYUAN_FPS)


FAMILIES = (
    PipelineFamily(
        name="Wan",
        pipelines=("WanPipeline", "WanVideoToVideoPipeline", CONTINUES),
        load=wan,
        tasks=("sample", "img2img", "inpaint"),
        networks=("transformer", "transformer_2"),
        video=True,
    ),
    PipelineFamily(
        name="LTX-Video",
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        load=ltx,
        tasks=("sample", "img2img", "inpaint"),
        video=True,
    ),
    PipelineFamily(
        name="CogVideoX",
        pipelines=("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
        load=cogvideox,
        tasks=("sample", "img2img", "inpaint"),
        video=True,
    ),
    PipelineFamily(
        name="HunyuanVideo", pipelines=("HunyuanVideoPipeline",), load=hunyuan, tasks=("sample",), video=True
    ),
    PipelineFamily(
        name="HunyuanVideo 1.5",
        pipelines=("HunyuanVideo15Pipeline",),
        load=hunyuan15,
        tasks=("sample", "img2img", "inpaint"),
        video=True,
    ),
)


def describe(folder: PipelineFolder, family: PipelineFamily) -> str:
    """Describe the model of a folder of videos, its noise levels and its prompts, for a person."""
    two = folder.has("transformer_2")
    each = family.load in (wan, ltx) and not two
    return ", ".join(
        [
            f"clips by {family.name}",
            *(["one network for much noise and one for little"] if two else []),
            f"a level for each {'token' if each else 'clip'}",
            *([f"prompts from {PROMPTS}"] if (folder.path / PROMPTS).is_file() else []),
        ]
    )


def write_prompts(model: Model, prompts: Sequence[str], path: Path) -> None:
    """Writes the tokens of prompts, and of the empty one, to a file that replaces the text encoder.

    In the folder as `prompts.safetensors` it lets the model be loaded without the encoder, for these prompts.

    Raises:
        RecipeError: Not a list of texts.
        OutputError: The place cannot be written.
    """
    each = list(dict.fromkeys(["", *prompts]))
    condition: Condition = model.conditioners["prompt"].encode(each)  # pyright: ignore[reportCallIssue]
    tensors = {name: value for name, value in condition.routes().items() if value is not None}
    if extra_dims := int(getattr(model.conditioners["prompt"], "extra_dims", 0)):  # zeros that `read_prompts` adds
        tensors["vector"] = tensors["vector"][:, :-extra_dims]
    with staged(path) as temporary:
        write_tensors(temporary, tensors, {"prompts": json.dumps(each)})


def read_prompts(path: Path, *, extra_dims: int = 0) -> PrecomputedPrompts:
    """The prompts of a file, see `write_prompts`.

    Args:
        extra_dims: Numbers at the end of the vector that are left zero, for others to fill.

    Raises:
        WeightsError: Damaged, or without the list of prompts.
    """
    tensors, listed = read_tensors(path), read_header(path).metadata.get("prompts")
    try:
        prompts = json.loads(listed or "")
    except ValueError:
        prompts = None
    if not isinstance(prompts, list) or "tokens" not in tensors or set(tensors) - set(ROUTES):
        raise WeightsError(
            f"{path}: holds {', '.join(sorted(tensors)) or 'nothing'}; must be {', '.join(ROUTES)}, with the prompts "
            'as a list in the header\'s "prompts"'
        )
    routes: dict[str, Any] = {
        name: tensor.bool() if name == "mask" else tensor.float() for name, tensor in tensors.items()
    }
    if "vector" in routes:
        routes["vector"] = nn.functional.pad(routes["vector"], (0, extra_dims))
    return PrecomputedPrompts([str(prompt) for prompt in prompts], Condition(**routes), where=str(path))


def _prompt(
    folder: PipelineFolder,
    dtype: torch.dtype,
    padding: Padding,
    length: int,
    *,
    attend: Literal["tokens", "all"] = "all",
    cleaned: Callable[[str], str] | None = None,
) -> nn.Module:
    """The prompt's encoder, or what is written down in its place."""
    if (folder.path / PROMPTS).is_file():
        return read_prompts(folder.path / PROMPTS)
    _require(folder, "text_encoder")
    text, precision = encoder_of(folder, 1, "tokens", dtype, length, attend)
    return LongPromptEncoder(text, padding, precision=precision, cleaned=cleaned)


def _require(folder: PipelineFolder, name: str) -> None:
    """Raise WeightsError if a folder does not contain a part of the text encoders."""
    if not folder.has(name) or not (folder.path / name).is_dir():
        raise WeightsError(
            f"{folder.path}: no {name}, which {folder.kind} needs; copy the whole folder, or put the prompts' "
            f"tokens there as {PROMPTS}"
        )


def _codec(folder: PipelineFolder, kind: str, network: Any) -> VideoVAE:
    """The autoencoder, in float32."""
    vae = build_module(folder, kind, folder.settings("vae", [kind]))
    fill(vae, weights_of(folder, "vae", vae), torch.float32, folder.path / "vae")
    codec = video_vae(vae)
    net: Any = (network.noisy if isinstance(network, WanTwoExperts) else network).net
    inside = net.config.in_channels
    continues = folder.kind == CONTINUES and getattr(network, "shown", 0)
    wanted = 2 * codec.channels + codec.rates[0] if continues else codec.channels
    if isinstance(network, Hunyuan15):
        wanted = 2 * codec.channels + 1
    if inside != wanted:
        raise WeightsError(
            f"{folder.path}: the transformer takes {inside} channels, and {wanted} go with the autoencoder; they are "
            "of different models, or the transformer is conditioned on more, which is not supported"
        )
    return codec
