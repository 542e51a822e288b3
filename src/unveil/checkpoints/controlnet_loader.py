"""ControlNets from wherever they are: a published file, diffusers' folder, a run or a saved folder of ours."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from unveil.checkpoints import controlnet_keys, diffusers_unet, hf_files, ldm_unet
from unveil.checkpoints.hf_files import read_json
from unveil.checkpoints.overrides import shapes_of
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_header, read_state, read_tensors, sha256
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import ModelConfig, read_yaml, validate
from unveil.model.lora_state import CONTROL
from unveil.nn.controlnet import ControlNet
from unveil.nn.unet_config import UNetConfig
from unveil.types import BaseModel

CONFIG = "config.json"
THEIRS = "controlnet_cond_embedding."  # begins keys of diffusers' layout


class LoadedControlNet(NamedTuple):
    """A ControlNet, the hash of its weights, and the model that it was trained on, where its folder says so."""

    network: ControlNet
    sha256: str
    base: BaseModel | None = None


def read(path: Path, base: UNetConfig | None = None) -> LoadedControlNet:
    """The ControlNet of a file or a folder, in evaluation mode, its weights in float32.

    Args:
        path: of a file with the published keys (also beside those of Stable Diffusion), a folder of diffusers, or a
            run, a checkpoint or a saved folder of ours.
        base: of the U-Net that it is for, whose heads and groups it has: a published file does not show them.

    Raises:
        WeightsError: there is none, or it is damaged.
        RecipeError: settings that are not supported.
    """
    if not path.exists():
        raise WeightsError(model_folder.not_found_message(path, "controlnets"))
    if path.is_file():
        loaded = LoadedControlNet(_published(path, base), digest(path))
    elif (path / CONFIG).is_file():
        loaded = LoadedControlNet(diffusers_unet.read_controlnet(path), digest(path))
    else:
        loaded = _ours(path)
    loaded.network.float().requires_grad_(False)
    return loaded


def of_published(tensors: Mapping[str, Tensor], heads: Mapping[str, int] | None = None) -> ControlNet:
    """The ControlNet of a published file's tensors, in evaluation mode; those of other parts are not looked at.

    Args:
        heads: {"heads": 8} or {"head_channels": 64}, where it is none of the released ones.

    Raises:
        WeightsError: There is none, it is incomplete, or heads have to be given.
        RecipeError: settings that are not supported.
    """
    shapes = shapes_of(tensors)
    if any(key.startswith(THEIRS) for key in shapes):
        raise WeightsError("a ControlNet of diffusers, whose settings lie beside it; give its whole folder")
    config = controlnet_keys.infer_config(shapes, heads)
    # 32 groups in every released one; a smaller one of another base is read as far as telling its widths
    return controlnet_keys.load(tensors, replace(config, groups=math.gcd(32, *config.widths)))


def is_folder(path: Path) -> bool:
    """Return whether a folder holds a ControlNet: diffusers', or one that was trained here."""
    if (path / CONFIG).is_file():
        return is_theirs(path)
    return any(weights_of(folder).is_file() for folder in (path, *path.glob("checkpoints/*")))


def is_theirs(path: Path) -> bool:
    """Return whether a folder holds a ControlNet as diffusers writes it."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("_class_name") == diffusers_unet.CONTROLNET


def inspect(path: Path) -> dict[str, Any]:
    """What a ControlNet's folder of diffusers holds, from headers alone: the facts of `checkpoints.inspection.inspect`.

    Raises:
        WeightsError: a file that is damaged or not there.
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
        WeightsError: there is none.
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


def _ours(path: Path) -> LoadedControlNet:
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
    controlnet = controlnet_keys.controlnet_from_shapes(network, ordered)
    model_folder.check_keys(file, controlnet, tensors)
    controlnet.load_state_dict(tensors, assign=True)
    return LoadedControlNet(controlnet.eval(), sha256(file), checkpoint_store.base_of(folder))


def _published(path: Path, base: UNetConfig | None) -> ControlNet:
    tensors = read_state(path)
    try:
        if base is not None and (copied := _copy_of(base, tensors, shapes_of(tensors))) is not None:
            return copied
        return of_published(tensors, None if base is None else _heads(base))
    except (WeightsError, RecipeError) as problem:
        raise WeightsError(f"{path}: {problem}") from problem


def _copy_of(
    base: UNetConfig, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> ControlNet | None:
    """The ControlNet of this U-Net, if the tensors are those of one; x may lack the U-Net's concatenated images."""
    enter = ldm_unet.strip_prefix(shapes, controlnet_keys.PREFIX).get("input_blocks.0.0.weight")
    if enter is None:
        return None
    try:
        return controlnet_keys.load(tensors, replace(base, concat_channels=max(enter[1] - base.in_channels, 0)))
    except (WeightsError, RecipeError):  # of another base, which its shapes will tell
        return None


def _heads(base: UNetConfig) -> Mapping[str, int]:
    return {"heads": base.heads} if base.head_channels is None else {"head_channels": base.head_channels}
