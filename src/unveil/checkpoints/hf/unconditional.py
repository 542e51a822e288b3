"""Folders of unconditional pipelines as models of native parts, read and written: DDPM, DDIM, and LDM over latents.

Facts: names and settings of diffusers' `UNet2DModel`; components and defaults of its `DDPMPipeline`, `DDIMPipeline` and
`LDMPipeline`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.checkpoints.diffusers_unet import ENDS, OUT, RES_BLOCK, SHAPES, WEIGHTS
from unveil.checkpoints.format import LoadedCheckpoint
from unveil.checkpoints.formats import autoencoder
from unveil.checkpoints.hf.pipeline_folder import INDEX, PipelineFolder
from unveil.checkpoints.hf.stable_diffusion import CONFIG, SPACING
from unveil.checkpoints.hf.weights import KeyMatchReport
from unveil.checkpoints.hf_files import read_json
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_key, layer_keys, to_ours, to_theirs
from unveil.checkpoints.scheduler import read_scheduler, settings_of
from unveil.checkpoints.unet_model import build_model, network_section
from unveil.errors import RecipeError, UnsupportedFormat
from unveil.io.files import staged, write_tensors
from unveil.model import Model
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import section_of
from unveil.nn.layers import SelfAttention, meta_device
from unveil.nn.unet import ResBlock, UNet, UNetConfig, UNetLevel

UNET = "UNet2DModel"
DDPM, DDIM, LDM = CLASSES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline")
STEPS = {DDPM: 1000, DDIM: 50, LDM: 50}  # defaults of the pipelines
# Settings with one value that is supported, which is also what they are when left out
FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
}
ATTENDS = {"DownBlock2D": False, "AttnDownBlock2D": True}
EMBEDDINGS = {(True, 0): "cos-sin", (False, 1): "sin-cos"}  # (flip_sin_to_cos, freq_shift) -> ours
RESAMPLE = {0: "conv-asymmetric", 1: "conv"}  # padding of the convolutions that halve
VARIANCES = {"fixed_small": "fixed-small", "fixed_small_log": "fixed-small", "fixed_large": "fixed-large"}
OLDER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_unconditional(folder: PipelineFolder) -> LoadedCheckpoint:
    """The model of a folder, in evaluation mode and float32.

    Raises:
        UnsupportedFormat: Settings that the native U-Net does not have.
        WeightsError: A component that is missing, damaged or of another kind.
    """
    settings = folder.settings("unet", [UNET])
    network = config_from_settings(settings, str(folder.path / "unet" / "config.json"))
    weights = {_present(key): tensor for key, tensor in folder.tensors("unet").items()}
    codec = autoencoder.read_folder(folder.place("vqvae")) if folder.kind == LDM else None
    place = folder.place("scheduler") / CONFIG
    scheduler, raw = read_scheduler(place), read_json(place)
    variance = str(raw.get("variance_type") or "fixed_small")
    if variance not in VARIANCES:
        raise UnsupportedFormat(f"{place}: variance_type = {variance!r}: {', '.join(VARIANCES)} are supported")
    side = settings.get("sample_size") or 32
    height, width = (side, side) if isinstance(side, int) else side
    factor, channels = (1, network.in_channels) if codec is None else (codec.config.factor, codec.config.in_channels)
    sample = dict(scheduler.sample)
    if folder.kind == DDIM:
        sample |= {"eta": 0.0} if sample["sampler"] == "ddim" else {}
    config = validate(
        ModelConfig,
        {
            "shape": (channels, factor * height, factor * width),
            "network": network_section(network),
            "process": dict(scheduler.process),
            "prediction": scheduler.prediction,
            "variance": VARIANCES[variance],
            **({} if codec is None else {"autoencoder": section_of(codec)}),
            "sample": {**sample, "steps": STEPS[folder.kind]},
        },
        str(folder.path),
    )
    model = build_model(config, to_ours(weights, key_map(_meta_network(network)), _shapes(network)), None)
    if codec is not None:
        model.autoencoder = codec
    total = len(weights) + (0 if codec is None else len(folder.tensors("vqvae")))
    return LoadedCheckpoint(model.eval(), total)


def report(folder: PipelineFolder) -> dict[str, KeyMatchReport]:
    """Compare the weights of each component with its settings; errors are those of `read_unconditional`."""
    read_unconditional(folder)
    parts = ["unet", *(["vqvae"] if folder.kind == LDM else [])]
    return {name: KeyMatchReport(tuple(folder.tensors(name))) for name in parts}


def write(model: Model, path: Path) -> int:
    """Write a folder that diffusers opens with `from_pretrained`, whole or not at all; return its tensors' number.

    Raises:
        RecipeError: A model that such a folder cannot hold.
        OutputError: Something is there already, or the place cannot be written.
    """
    network, config, codec = model.denoiser.network, model.config, model.autoencoder
    if not isinstance(network, UNet) or config is None or len(model.conditioners) or config.learns_variance:
        raise RecipeError(
            f"a folder of {DDPM} holds a U-Net without conditions and with a fixed variance; this model is a "
            f"{type(network).__name__} with {', '.join(model.conditioners) or 'no conditions'}"
        )
    settings = published_settings(network.config, model.autoencoder.latent_shape(model.shape)[-2:])
    scheduler = settings_of(config, SPACING)
    named = {ours: theirs for theirs, ours in VARIANCES.items() if theirs != "fixed_small_log"}
    if scheduler["_class_name"] == "DDPMScheduler":
        scheduler["variance_type"] = named[config.variance]
    latent = codec if isinstance(codec, AutoencoderKL | VQModel) else None
    kind = LDM if latent is not None else DDIM if scheduler["_class_name"] == "DDIMScheduler" else DDPM
    coder = {} if latent is None else {"vqvae": ["diffusers", autoencoder.class_of(latent)]}
    index = {"_class_name": kind, "scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", UNET]}
    with staged(path) as temporary, torch.no_grad():
        (temporary / "unet").mkdir(parents=True)
        (temporary / "scheduler").mkdir()
        write_tensors(temporary / "unet" / f"{WEIGHTS}.safetensors", to_theirs(network.state_dict(), key_map(network)))
        if latent is not None:
            autoencoder.write_folder(latent, temporary / "vqvae")
        for name, content in (
            ("unet/config.json", settings),
            (f"scheduler/{CONFIG}", scheduler),
            (INDEX, index | coder),
        ):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        written = PipelineFolder(temporary)
        return sum(len(written.tensors(name)) for name in ("unet", *coder))


def config_from_settings(settings: Mapping[str, Any], where: str) -> UNetConfig:
    """The configuration that the settings of a `UNet2DModel` mean.

    Raises:
        UnsupportedFormat: A setting that the native U-Net does not have.
    """
    for name, only in FIXED.items():
        if settings.get(name, only) != only:
            raise UnsupportedFormat(f"{where}: {name} = {settings[name]!r}: only {only!r} is supported")
    values = {**DEFAULTS, **{name: value for name, value in settings.items() if name in DEFAULTS}}
    widths, types = tuple(values["block_out_channels"]), list(values["down_block_types"])
    ups = settings.get("up_block_types")
    mirrored = [name.replace("Down", "Up") for name in reversed(types)]
    embedding = EMBEDDINGS.get((values["flip_sin_to_cos"], values["freq_shift"]))
    checks = {
        "down_block_types": all(name in ATTENDS for name in types),
        "up_block_types": ups is None or list(ups) == mirrored,
        "freq_shift": embedding is not None,
        "downsample_padding": values["downsample_padding"] in RESAMPLE,
        "resnet_time_scale_shift": values["resnet_time_scale_shift"] in SHAPES,
    }
    if wrong := [name for name, fits in checks.items() if not fits]:
        raise UnsupportedFormat(f"{where}: {wrong[0]} = {settings.get(wrong[0])!r}: is not supported")
    head: dict[str, Any] = {"head_channels": values["attention_head_dim"]} if values["attention_head_dim"] else {}
    return UNetConfig(
        in_channels=values["in_channels"],
        out_channels=values["out_channels"],
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        num_res_blocks=values["layers_per_block"],
        attention=tuple(2**level for level, name in enumerate(types) if ATTENDS[name]),
        time_scale_shift=SHAPES[values["resnet_time_scale_shift"]],  # type: ignore[arg-type]
        resample=RESAMPLE[values["downsample_padding"]],  # type: ignore[arg-type]
        embedding=embedding,  # type: ignore[arg-type]
        norm_eps=values["norm_eps"],
        groups=values["norm_num_groups"],
        dropout=values["dropout"],
        **head,
    )


def published_settings(config: UNetConfig, size: tuple[int, ...]) -> dict[str, Any]:
    """The settings of a `UNet2DModel` of a native configuration; `size` is height and width of x.

    Raises:
        RecipeError: Diffusers' class cannot be this network.
    """
    plain = {"patch": 1, "transformer_depth": (), "heads_up": None, "concat_channels": 0, "stem_channels": None}
    different = [name for name, usual in plain.items() if getattr(config, name) != usual]
    if config.resample not in RESAMPLE.values():
        different.append("resample")
    if config.head_channels is None and config.heads != 1:
        different.append("heads")
    if different:
        name = different[0]
        raise RecipeError(f"network.{name} = {getattr(config, name)!r}: {UNET} of diffusers has no such setting")
    types = [{yes: name for name, yes in ATTENDS.items()}[rate in config.attention] for rate in config.rates]
    flip, shift = {ours: theirs for theirs, ours in EMBEDDINGS.items()}[config.embedding]
    return {
        "_class_name": UNET,
        "sample_size": size[0] if len(set(size)) == 1 else list(size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "down_block_types": types,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(types)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "downsample_padding": {ours: theirs for theirs, ours in RESAMPLE.items()}[config.resample],
        "dropout": config.dropout,
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in SHAPES.items()}[config.time_scale_shift],
    }


def key_map(network: UNet) -> KeyMap:
    """Our keys of a U-Net and those of a `UNet2DModel`."""
    mapping: KeyMap = {}
    for ours, theirs in (ENDS | OUT).items():
        mapping |= layer_key(ours, theirs)
    levels = {f"down.{number}": f"down_blocks.{number}" for number in range(len(network.down))}
    levels |= {f"up.{number}": f"up_blocks.{number}" for number in range(len(network.up))} | {"middle": "mid_block"}
    for ours, theirs in levels.items():
        level = network.get_submodule(ours)
        assert isinstance(level, UNetLevel)
        for place, (block, attention) in enumerate(zip(level.blocks, level.attention, strict=True)):
            assert isinstance(block, ResBlock)
            skip = {} if isinstance(block.skip, nn.Identity) else {"skip": "conv_shortcut"}
            mapping |= layer_keys(f"{ours}.blocks.{place}", f"{theirs}.resnets.{place}", RES_BLOCK | skip)
            if isinstance(attention, SelfAttention):
                mapping |= _attention_keys(f"{ours}.attention.{place}", f"{theirs}.attentions.{place}")
        if level.resample is not None:
            end = "downsamplers" if ours.startswith("down") else "upsamplers"
            mapping |= layer_key(f"{ours}.resample.conv", f"{theirs}.{end}.0.conv")
    return mapping


def _attention_keys(ours: str, theirs: str) -> KeyMap:
    mapping = layer_keys(ours, theirs, {"norm": "group_norm", "out": "to_out.0"})
    for kind in ("weight", "bias"):
        mapping[f"{ours}.qkv.{kind}"] = SourceKeys(tuple(f"{theirs}.to_{part}.{kind}" for part in "qkv"))
    return mapping


def _present(key: str) -> str:
    """The present name of a tensor; attention had other names before version 0.17."""
    for old, new in OLDER.items() if ".attentions." in key else ():
        key = key.replace(old, new)
    return key


def _meta_network(config: UNetConfig) -> UNet:
    with meta_device():
        return UNet(config)


def _shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    state: Mapping[str, Tensor] = _meta_network(config).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
