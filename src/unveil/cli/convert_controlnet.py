"""`unveil convert` for ControlNets: the published file, diffusers' folder, and what was trained here, into the others'.

A ControlNet is used as it is, from any of these; it is converted for other programs, or out of a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.checkpoints import controlnet, controlnet_loader, diffusers_unet, formats, ldm_unet
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import RecipeError
from unveil.generation.generate import DTYPES
from unveil.io.files import staged
from unveil.io.safetensors_io import write_tensors
from unveil.nn.controlnet import ControlNet

ONE_FILE = ".safetensors"


def is_file(theirs: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a ControlNet, which may stand beside those of its base."""
    found = formats.detect_format(theirs)
    return found is not None and found.kind == "ControlNet"


def of_file(theirs: Mapping[str, Tensor], said: ModelOverrides, out: Path, layout: str, dtype: str) -> dict[str, Any]:
    """Writes the ControlNet of a published file in another layout; tells what of the file is in it.

    Args:
        theirs: the file's tensors.
        said: its heads, where the shapes do not show them.
        out: a folder, or a .safetensors file.
        layout: `diffusers` or `ldm`.
        dtype: of what is written.

    Raises:
        WeightsError: it is not whole, or its heads have to be said.
        RecipeError: another layout.
    """
    said.only({"heads", "head_channels"}, "files of a ControlNet")
    heads = {name: value for name in ("heads", "head_channels") if (value := getattr(said, name)) is not None}
    write(controlnet_loader.of_published(theirs, heads=heads or None), out, layout, dtype)
    own = ldm_unet.strip_prefix(theirs, controlnet.PREFIX)
    whole = theirs.keys() == own.keys()
    rest = [] if whole else sorted(key for key in theirs if not key.startswith(controlnet.PREFIX))
    return {"matched": len(own), "unmatched": len(rest), "unmatched_keys": rest}


def of_folder(source: Path, out: Path, layout: str, dtype: str) -> dict[str, Any]:
    """Writes the ControlNet of a folder, diffusers' or ours, in another layout.

    Raises:
        WeightsError, RecipeError: as `of_file`.
    """
    network = controlnet_loader.read(source).network
    write(network, out, layout, dtype)
    return {"part": str(source), "matched": len(network.state_dict()), "unmatched": 0}


def write(network: ControlNet, out: Path, layout: str, dtype: str) -> None:
    """Writes a ControlNet as diffusers' folder, or as one file of the published layout; whole or not at all.

    Raises:
        RecipeError: neither of the two is asked for, or a network that the layout cannot hold.
    """
    network.to(DTYPES[dtype])
    if layout == "diffusers":
        with staged(out) as temporary:
            diffusers_unet.write(network, temporary)
    elif out.suffix == ONE_FILE:
        theirs = ldm_unet.add_prefix(controlnet.dump(network), controlnet.PREFIX)
        with staged(out) as temporary:
            write_tensors(temporary, theirs)
    else:
        raise RecipeError(
            f"{out}: a ControlNet is written as one file, whose name ends in {ONE_FILE}, or with --format diffusers as "
            "a folder; to use it, give it as it is: unveil sample MODEL --controlnet FILE=IMAGE"
        )
