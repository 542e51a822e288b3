"""ControlNets: the published file (`ldm`), diffusers' folder (`diffusers`), and those of runs of this library (`ours`).

A ControlNet is used from any of these as it is. It is converted for other programs, or out of a pickle.

Facts: key lists and constructor arguments of github.com/lllyasviel/ControlNet.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints import diffusers_unet, hf_files, ldm_unet, openai_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, save_file
from unveil.checkpoints.formats import native
from unveil.checkpoints.hf_files import read_json
from unveil.checkpoints.key_mapping import KeyMap, layer_key, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.errors import RecipeError, WeightsError
from unveil.io import staging
from unveil.io.files import read_header, read_state, read_tensors, sha256, staged
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import ModelConfig, read_yaml, validate
from unveil.model.lora_state import CONTROL
from unveil.model.model_folder import CONTROLNET_ADVICE
from unveil.nn.controlnet import ControlNet
from unveil.nn.layers import meta_device
from unveil.nn.unet import UNetConfig
from unveil.types import BaseModel

PREFIX = "control_model."  # of its keys in a file that holds Stable Diffusion too
HINT = "input_hint_block"


def key_map(network: ControlNet) -> KeyMap:
    """Our keys of a ControlNet and the published ones, without prefix."""
    mapping = openai_keys.module_key_map(network, openai_keys.first_half(network.config))
    mapping |= layer_keys("hint", HINT, {f"layers.{i}": f"{2 * i}" for i in range(len(network.hint.layers))})
    mapping |= layer_keys("zero", "zero_convs", {f"{i}": f"{i}.0" for i in range(len(network.zero))})
    return mapping | layer_key("zero_middle", "middle_block_out.0")


def build_controlnet(theirs: Mapping[str, Tensor], config: UNetConfig) -> ControlNet:
    """The ControlNet of a published state dict, with or without its prefix, other parts left out; it is not copied.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    theirs = ldm_unet.strip_prefix(theirs, PREFIX)
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    network = meta_controlnet(config, shapes)
    state = to_ours(theirs, key_map(network), {key: value.shape for key, value in network.state_dict().items()})
    network.load_state_dict(state, assign=True)
    return network.eval()


def published_state_dict(network: ControlNet) -> dict[str, Tensor]:
    """The published state dict of ours, without a prefix (`ldm_unet.add_prefix(..., PREFIX)` adds it)."""
    return to_theirs(network.state_dict(), key_map(network))


def meta_controlnet(config: UNetConfig, shapes: Mapping[str, Sequence[int]]) -> ControlNet:
    """A ControlNet without memory, its hint network as published shapes show it.

    Raises:
        WeightsError: They contain no hint network.
    """
    places = sorted({int(key.split(".")[1]) for key in shapes if key.startswith(f"{HINT}.")})
    layers = [shapes[f"{HINT}.{place}.weight"] for place in places]
    if len(layers) < 2 or len(layers) % 2:
        raise WeightsError(f"not a ControlNet: {len(layers)} layers under {HINT}, which are an even number, mostly 8")
    return controlnet_from_shapes(config, layers)


def controlnet_from_shapes(config: UNetConfig, layers: Sequence[Sequence[int]]) -> ControlNet:
    """A ControlNet without memory, of whose hint network these are the shapes of the weights; there are at least 2."""
    widths = [layers[0][0], *(shape[0] for shape in layers[2:-1:2])]
    with meta_device():
        return ControlNet(config, hint_channels=layers[0][1], hint_widths=widths)


def config_from_arguments(arguments: Mapping[str, Any]) -> tuple[UNetConfig, int]:
    """The U-Net's configuration and the channels of the hint, of `ControlNet(**arguments)`.

    Raises:
        RecipeError: As `ldm_unet.config_from_arguments`.
    """
    settings = dict(arguments)
    if "hint_channels" not in settings:
        raise RecipeError("argument 'hint_channels' is missing")
    channels = settings.pop("hint_channels")
    return ldm_unet.config_from_arguments({"out_channels": settings.get("in_channels"), **settings}), channels


def config_from_keys(shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int] | None = None) -> UNetConfig:
    """The configuration that a ControlNet's tensors show, as `ldm_unet.config_from_keys` reads a U-Net's."""
    bare = dict(ldm_unet.strip_prefix(shapes, PREFIX))
    if not any(key.startswith(f"{HINT}.") for key in bare):
        raise WeightsError(f"not a ControlNet: there is nothing under {HINT}")
    bare["out.2.weight"] = (bare["input_blocks.0.0.weight"][1], 0, 0, 0)  # x's channels: it has no way out
    return ldm_unet.config_from_keys(bare, heads)


CONFIG = "config.json"
THEIRS = "controlnet_cond_embedding."  # begins keys of diffusers' layout


class LoadedControlNet(NamedTuple):
    """A ControlNet, the hash of its weights, and the model that it was trained on, where its folder says so."""

    network: ControlNet
    sha256: str
    base: BaseModel | None = None


def read_controlnet(path: Path, base: UNetConfig | None = None) -> LoadedControlNet:
    """The ControlNet of a file or a folder, in evaluation mode, its weights in float32.

    Args:
        path: Path of a file with the published keys (also beside those of Stable Diffusion), a folder of diffusers, or
            a run, a checkpoint or a saved folder of ours.
        base: Base model of the U-Net that it is for, whose heads and groups it has: a published file does not show
            them.

    Raises:
        WeightsError: There is none, or it is damaged.
        RecipeError: Settings that are not supported.
    """
    staging.recover(path)
    if not path.exists():
        raise WeightsError(model_folder.not_found_message(path, "controlnets"))
    if path.is_file():
        loaded = LoadedControlNet(_published(path, base), digest(path))
    elif (path / CONFIG).is_file():
        loaded = LoadedControlNet(diffusers_unet.read_controlnet(path), digest(path))
    else:
        loaded = _read_trained(path)
    loaded.network.float().requires_grad_(False)
    return loaded


def controlnet_from_published(tensors: Mapping[str, Tensor], heads: Mapping[str, int] | None = None) -> ControlNet:
    """The ControlNet of a published file's tensors, in evaluation mode; those of other parts are not looked at.

    Args:
        heads: {"heads": 8} or {"head_channels": 64}, where it is none of the released ones.

    Raises:
        WeightsError: There is none, it is incomplete, or heads have to be given.
        RecipeError: Settings that are not supported.
    """
    shapes = shapes_of(tensors)
    if any(key.startswith(THEIRS) for key in shapes):
        raise WeightsError("a ControlNet of diffusers, whose settings lie beside it; give its whole folder")
    config = config_from_keys(shapes, heads)
    # 32 groups in every released one; a smaller one of another base is read as far as telling its widths
    return build_controlnet(tensors, replace(config, groups=math.gcd(32, *config.widths)))


def is_folder(path: Path) -> bool:
    """Return whether a folder holds a ControlNet: diffusers', or one that was trained here."""
    if (path / CONFIG).is_file():
        return is_diffusers_folder(path)
    return any(weights_of(folder).is_file() for folder in (path, *path.glob("checkpoints/*")))


def is_diffusers_folder(path: Path) -> bool:
    """Return whether a folder holds a ControlNet as diffusers writes it."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("_class_name") == diffusers_unet.CONTROLNET


def inspect_folder(path: Path) -> dict[str, Any]:
    """Describe a ControlNet folder of diffusers from its headers; see `checkpoints.inspection.inspect`.

    Raises:
        WeightsError: A file that is damaged or not there.
    """
    headers = {file.name: read_header(file) for file in hf_files.weight_files(path, diffusers_unet.WEIGHTS)}
    what = f"a folder of diffusers, {diffusers_unet.CONTROLNET}"
    return {
        "path": str(path),
        "what": what,
        **model_folder.summary(headers),
        "problem": f"a ControlNet: {model_folder.CONTROLNET_ADVICE}",
    }


def digest(path: Path) -> str:
    """The hash of a ControlNet's weights; nothing of them is read into memory.

    Raises:
        WeightsError: There is none.
    """
    files = [path]
    if (path / CONFIG).is_file():
        files = hf_files.weight_files(path, diffusers_unet.WEIGHTS)
    elif path.is_dir():
        files = [weights_of(_folder(path))]
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256(" ".join(sha256(file) for file in files).encode()).hexdigest()


def weights_of(folder: Path) -> Path:
    """The file of a ControlNet that was trained here: that of the averaged weights, where there is one."""
    averaged = folder / "ema" / CONTROL
    return averaged if averaged.is_file() else folder / CONTROL


def _folder(path: Path) -> Path:
    """Our folder with a ControlNet that a path stands for."""
    if path.is_dir() and not is_folder(path):
        raise WeightsError(
            f"{path}: holds no ControlNet; one that was trained here has {CONTROL}, one of diffusers a "
            f"{CONFIG} of {diffusers_unet.CONTROLNET}"
        )
    folder = model_folder.resolve_checkpoint(path)
    if not weights_of(folder).is_file():
        raise WeightsError(f"{path}: holds no ControlNet; one that was trained here has {CONTROL}")
    return folder


def _read_trained(path: Path) -> LoadedControlNet:
    folder = _folder(path)
    checkpoint_store.verify(folder)
    described = folder / "model.yaml"
    config = validate(ModelConfig, read_yaml(described.read_text("utf-8"), str(described)), str(described))
    network = config.network_config()
    if not isinstance(network, UNetConfig):
        raise WeightsError(f"{described}: a ControlNet is for a U-Net, not for {config.network.kind}; copy it again")
    file = weights_of(folder)
    tensors = read_tensors(file)
    layers = [value.shape for key, value in tensors.items() if re.fullmatch(r"hint\.layers\.\d+\.weight", key)]
    if len(layers) < 2:
        raise WeightsError(f"{file}: not a ControlNet, which has hint.layers; copy it again")
    ordered = [tensors[f"hint.layers.{i}.weight"].shape for i in range(len(layers))]
    controlnet = controlnet_from_shapes(network, ordered)
    model_folder.check_keys(file, controlnet, tensors)
    controlnet.load_state_dict(tensors, assign=True)
    return LoadedControlNet(controlnet.eval(), sha256(file), checkpoint_store.base_of(folder))


def _published(path: Path, base: UNetConfig | None) -> ControlNet:
    tensors = read_state(path)
    try:
        if base is not None and (copied := _copy_of(base, tensors, shapes_of(tensors))) is not None:
            return copied
        return controlnet_from_published(tensors, None if base is None else _heads(base))
    except (WeightsError, RecipeError) as problem:
        raise WeightsError(f"{path}: {problem}") from problem


def _copy_of(
    base: UNetConfig, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> ControlNet | None:
    """The ControlNet of this U-Net, if the tensors are those of one; x may lack the U-Net's concatenated images."""
    enter = ldm_unet.strip_prefix(shapes, PREFIX).get("input_blocks.0.0.weight")
    if enter is None:
        return None
    try:
        return build_controlnet(tensors, replace(base, concat_channels=max(enter[1] - base.in_channels, 0)))
    except (WeightsError, RecipeError):  # of another base, which its shapes will tell
        return None


def _heads(base: UNetConfig) -> Mapping[str, int]:
    return {"heads": base.heads} if base.head_channels is None else {"head_channels": base.head_channels}


TITLE = "a ControlNet"
_HINT, _ZERO = "the network of the hint", "zero convolutions"


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the ControlNet of a file, which may hold its base model too.

    Raises:
        WeightsError: It is incomplete, its heads have to be given, or it is in diffusers' layout.
    """
    heads = {name: value for name in ("heads", "head_channels") if (value := getattr(overrides, name)) is not None}
    network = controlnet_from_published(theirs, heads=heads or None)
    part = ldm_unet.strip_prefix(theirs, PREFIX)
    alone = theirs.keys() == part.keys()
    unused = () if alone else tuple(sorted(key for key in theirs if not key.startswith(PREFIX)))
    return LoadedCheckpoint(network, len(part), unused)


def load_folder(path: Path, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the ControlNet of a folder, in float32."""
    del dtype
    network = read_controlnet(path).network
    return LoadedCheckpoint(network, len(network.state_dict()))


def save(network: ControlNet, path: Path) -> SavedCheckpoint:
    """Write a ControlNet as one file of the published layout."""
    return save_file(path, ldm_unet.add_prefix(published_state_dict(network), PREFIX))


def save_folder(network: ControlNet, path: Path) -> SavedCheckpoint:
    """Write a ControlNet as a folder of diffusers."""
    with staged(path) as temporary:
        diffusers_unet.write(network, temporary)
    return SavedCheckpoint(len(network.state_dict()))


def is_trained_here(path: Path) -> bool:
    """Return whether a folder holds a ControlNet of a run."""
    return is_folder(path) and not is_diffusers_folder(path)


CONVERTS_TO = ("diffusers", "ldm")
FORMATS = (
    Format(
        name="ldm",
        kind="ControlNet",
        signatures=(
            Signature(TITLE, {_HINT: "input_hint_block.", _ZERO: "zero_convs."}, CONTROLNET_ADVICE),
            Signature(TITLE, {_HINT: f"{PREFIX}input_hint_block.", _ZERO: f"{PREFIX}zero_convs."}, CONTROLNET_ADVICE),
        ),
        load=load,
        save=save,
        endings=(".safetensors",),
        overrides=frozenset({"heads", "head_channels"}),
        converts_to=CONVERTS_TO,
        cannot_hold="the model that it was trained on",
        priority=20,  # a file may hold its base model too
    ),
    Format(
        name="diffusers",
        kind="ControlNet",
        signatures=(
            Signature(
                "a ControlNet of diffusers",
                {_HINT: THEIRS, _ZERO: "controlnet_down_blocks."},
                CONTROLNET_ADVICE,
            ),
        ),
        is_folder=is_diffusers_folder,
        load=load,
        load_folder=load_folder,
        save=save_folder,
        describe=lambda path: TITLE,
        inspect_folder=inspect_folder,
        digest=digest,
        overrides=frozenset({"heads", "head_channels"}),
        converts_to=CONVERTS_TO,
        cannot_hold="the model that it was trained on",
        priority=20,
    ),
    Format(
        name="ours",
        kind="ControlNet",
        is_folder=is_trained_here,
        load_folder=load_folder,
        describe=lambda path: TITLE,
        inspect_folder=native.inspect_folder,
        digest=digest,
        converts_to=CONVERTS_TO,
        read_only="a ControlNet is written as one file, whose name ends in .safetensors, or with --format diffusers as "
        "a folder; to use it, give it as it is: unveil sample MODEL --controlnet FILE=IMAGE",
        priority=20,
    ),
)
