"""The format `diffusers`: folders of pipelines. Those of Stable Diffusion 1 and 2, DDPM, DDIM and LDM are native.

Other pipelines run through diffusers' own networks, see `checkpoints.hf`. Nothing in a folder is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature
from unveil.checkpoints.formats import dit, text_encoder
from unveil.checkpoints.hf import pipelines, stable_diffusion, unconditional
from unveil.checkpoints.hf.pipeline_folder import INDEX, PipelineFolder, is_folder
from unveil.checkpoints.hf_files import read_json
from unveil.conditioning.text_encoder import TextEncoder
from unveil.io.files import staged
from unveil.model import Model, model_folder
from unveil.nn.unet import UNet

READERS: dict[str, Callable[[PipelineFolder], LoadedCheckpoint]] = {
    **dict.fromkeys(stable_diffusion.CLASSES, stable_diffusion.read_stable_diffusion),
    **dict.fromkeys(unconditional.CLASSES, unconditional.read_unconditional),
}


def is_native(path: Path) -> bool:
    """Return whether a folder is a pipeline whose model consists of native parts."""
    return is_folder(path) and str(read_json(path / INDEX).get("_class_name")) in READERS


def load_native(path: Path, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the model of a folder of native parts; the type is applied by the caller."""
    del dtype
    folder = PipelineFolder(path)
    return READERS[folder.kind](folder)


def load_pipeline(path: Path, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the model of a folder of another pipeline, its matrices in a type."""
    model = pipelines.load(path, dtype)
    return LoadedCheckpoint(model, len(model.state_dict()))


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write a folder that diffusers opens: of Stable Diffusion, of a model without conditions, or of a DiT."""
    if not isinstance(model.denoiser.network, UNet):
        with staged(path) as temporary:
            temporary.mkdir()
            return SavedCheckpoint(dit.write_folder(model, temporary))
    if not len(model.conditioners):
        return SavedCheckpoint(unconditional.write(model, path))
    notes = tuple(
        f"left out: {len(unused)} tensors of the text encoder's last block, which nothing reads and diffusers' folders "
        "do not hold; one file of such a folder has a copy of the block before in its place"
        for conditioner in model.conditioners.values()
        if isinstance(conditioner, TextEncoder) and (unused := text_encoder.left_out(conditioner))
    )
    return SavedCheckpoint(stable_diffusion.write(model, path), notes)


def unsupported(path: Path) -> str:
    """Return why a folder is not read; empty: it is."""
    return pipelines.unsupported(PipelineFolder(path).kind)


def describe(path: Path) -> str:
    """Return the title of a folder."""
    folder = PipelineFolder(path)
    return f"a folder of diffusers, {folder.kind}{', which is not read' if pipelines.unsupported(folder.kind) else ''}"


def inspect_folder(path: Path) -> dict[str, Any]:
    """Describe a folder, and how its weights fit its settings."""
    return pipelines.inspect(path)


def digest(path: Path) -> str:
    """Return one hash over the files that determine a folder's output."""
    return PipelineFolder(path).sha256()


FORMATS = (
    Format(
        name="diffusers",
        signatures=(
            Signature(
                "a U-Net of diffusers",
                {"its time embedding": "time_embedding.linear_1.weight", "its first convolution": "conv_in.weight"},
                model_folder.PART_ADVICE,
            ),
        ),
        is_folder=is_native,
        load_folder=load_native,
        save=save,
        describe=describe,
        inspect_folder=inspect_folder,
        digest=digest,
        converts_to=("diffusers", "ldm"),
        cannot_hold="a process other than a table of betas, samplers that diffusers does not have, or a codebook",
        priority=1,  # its first convolution has the key of DDPM's
    ),
    Format(
        name="diffusers-pipeline",
        is_folder=is_folder,
        load_folder=load_pipeline,
        unsupported=unsupported,
        describe=describe,
        inspect_folder=inspect_folder,
        digest=digest,
        in_native_parts=False,
        priority=-1,  # any other pipeline
    ),
)
