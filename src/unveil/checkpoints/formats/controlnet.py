"""ControlNets: the published file (`ldm`), diffusers' folder (`diffusers`), and those that were trained here.

A ControlNet is used from any of these as it is. It is converted for other programs, or out of a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unveil.checkpoints import controlnet_keys, controlnet_loader, diffusers_unet, ldm_unet
from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, save_file
from unveil.checkpoints.formats import native
from unveil.checkpoints.overrides import ModelOverrides
from unveil.io.files import staged
from unveil.model.model_folder import CONTROLNET_ADVICE
from unveil.nn.controlnet import ControlNet

TITLE = "a ControlNet"
PREFIX = controlnet_keys.PREFIX
_HINT, _ZERO = "the network of the hint", "zero convolutions"


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the ControlNet of a file, which may hold its base model too.

    Raises:
        WeightsError: It is incomplete, its heads have to be given, or it is in diffusers' layout.
    """
    heads = {name: value for name in ("heads", "head_channels") if (value := getattr(overrides, name)) is not None}
    network = controlnet_loader.of_published(theirs, heads=heads or None)
    part = ldm_unet.strip_prefix(theirs, PREFIX)
    alone = theirs.keys() == part.keys()
    unused = () if alone else tuple(sorted(key for key in theirs if not key.startswith(PREFIX)))
    return LoadedCheckpoint(network, len(part), unused)


def load_folder(path: Path, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the ControlNet of a folder, in float32."""
    del dtype
    network = controlnet_loader.read(path).network
    return LoadedCheckpoint(network, len(network.state_dict()))


def save(network: ControlNet, path: Path) -> SavedCheckpoint:
    """Write a ControlNet as one file of the published layout."""
    return save_file(path, ldm_unet.add_prefix(controlnet_keys.dump(network), PREFIX))


def save_folder(network: ControlNet, path: Path) -> SavedCheckpoint:
    """Write a ControlNet as a folder of diffusers."""
    with staged(path) as temporary:
        diffusers_unet.write(network, temporary)
    return SavedCheckpoint(len(network.state_dict()))


def is_trained_here(path: Path) -> bool:
    """Return whether a folder holds a ControlNet of a run."""
    return controlnet_loader.is_folder(path) and not controlnet_loader.is_theirs(path)


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
                {_HINT: controlnet_loader.THEIRS, _ZERO: "controlnet_down_blocks."},
                CONTROLNET_ADVICE,
            ),
        ),
        is_folder=controlnet_loader.is_theirs,
        load=load,
        load_folder=load_folder,
        save=save_folder,
        describe=lambda path: TITLE,
        inspect_folder=controlnet_loader.inspect,
        digest=controlnet_loader.digest,
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
        digest=controlnet_loader.digest,
        converts_to=CONVERTS_TO,
        read_only="a ControlNet is written as one file, whose name ends in .safetensors, or with --format diffusers as "
        "a folder; to use it, give it as it is: unveil sample MODEL --controlnet FILE=IMAGE",
        priority=20,
    ),
)
