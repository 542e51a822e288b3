"""Weights of a component of a diffusers folder: read, compared with its network, and put into it.

A component's folder may hold the file that was first published in place of diffusers' own. Diffusers' converters give
its tensors their names in its classes; nothing is downloaded. They read Wan's transformer and autoencoder,
LTX-Video's, of which one file may hold both, and HunyuanVideo's transformer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf.pipeline_folder import STEMS, PipelineFolder
from unveil.checkpoints.hf_files import weight_files
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import Shapes, shapes_of
from unveil.errors import WeightsError
from unveil.io.files import read_tensors
from unveil.io.optional_deps import import_extra
from unveil.nn.layers import low_precision_parameters

MODULE, TABLE = "diffusers.loaders.single_file_model", "SINGLE_FILE_LOADABLE_CLASSES"


@dataclass(frozen=True)
class KeyMatchReport:
    """Comparison of a file's tensors with those of a network.

    Attributes:
        matched: Keys of both, with one shape.
        missing: Keys of the network alone.
        unknown: Keys of the file alone.
        reshaped: Keys of both with another shape, and the two shapes.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Keys of one side alone, and those of another shape."""
        return self.missing + self.unknown + self.reshaped

    @property
    def fits(self) -> bool:
        """Return whether every tensor has its place and every place its tensor."""
        return not self.unmatched

    def text(self) -> str:
        """For a person, one line."""
        faults = {"missing": self.missing, "unknown": self.unknown, "of another shape": self.reshaped}
        lines = [f"{what}: {abbreviate(keys, 4)}" for what, keys in faults.items() if keys]
        return "; ".join([f"{len(self.matched)} matched", *lines])


def compare(theirs: Shapes, network: nn.Module) -> KeyMatchReport:
    """Compare tensors of these shapes with a network."""
    ours = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    both = [key for key in ours if key in theirs]
    same = [key for key in both if tuple(theirs[key]) == ours[key]]
    return KeyMatchReport(
        tuple(same),
        tuple(key for key in ours if key not in theirs),
        tuple(key for key in theirs if key not in ours),
        tuple(f"{key} {tuple(theirs[key])} for {ours[key]}" for key in both if key not in set(same)),
    )


def fill(network: nn.Module, theirs: Mapping[str, Tensor], dtype: torch.dtype, where: object) -> KeyMatchReport:
    """Gives a network its weights: matrices in `dtype`, everything else in float32; nothing is copied that is that.

    Raises:
        WeightsError: Weights of another network; names what is missing and what is unknown.
    """
    report = compare(shapes_of(theirs), network)
    if not report.fits:
        raise WeightsError(f"{where}: {report.text()}; the weights are not those of its config.json: copy both again")
    low = {key for key, _ in low_precision_parameters(network)}
    state = {key: tensor.to(dtype if key in low else torch.float32) for key, tensor in theirs.items()}
    network.load_state_dict(state, assign=True)
    return report


def tensors_of(folder: PipelineFolder, name: str, kind: str, wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights of a component, as diffusers writes them or out of a single file.

    Args:
        name: Name of the component.
        kind: Its class.
        wanted: Keys of its state dict.

    Raises:
        WeightsError: None there, damaged, or a file that diffusers does not read for this class.
    """
    place = folder.place(name)
    files = sorted(place.glob("*.safetensors"))
    if weight_files(place, STEMS["diffusers"]) or len(files) != 1:
        return folder.tensors(name)
    theirs = read_tensors(files[0])
    if set(wanted) <= set(theirs):
        return theirs
    converters = cast(dict[str, Any], getattr(import_extra(MODULE, f"a {kind}"), TABLE))
    if kind not in converters:
        raise WeightsError(f"{files[0]}: {kind} is not read out of single files; copy the folder that diffusers writes")
    try:
        converted: dict[str, Tensor] = converters[kind]["checkpoint_mapping_fn"](checkpoint=dict(theirs), config=None)
    except (KeyError, ValueError, IndexError, RuntimeError) as problem:
        shown = abbreviate(sorted(theirs), 3)
        raise WeightsError(f"{files[0]}: not {kind}'s weights as published ({problem!r}): {shown}") from problem
    return (
        {key: tensor for key, tensor in converted.items() if key in wanted}
        if set(wanted) <= set(converted)
        else converted
    )
