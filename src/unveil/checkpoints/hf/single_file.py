"""A component's weights as they were first published: one file in the component's folder, beside its config.json.

Diffusers' own converters give the tensors their names in its classes; nothing is fetched. They read Wan's transformer
and autoencoder, LTX-Video's, of which one file may hold both, and HunyuanVideo's transformer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from torch import Tensor

from unveil.checkpoints.hf.pipeline_folder import STEMS, PipelineFolder
from unveil.checkpoints.hf_files import weight_files
from unveil.checkpoints.key_mapping import abbreviate
from unveil.errors import WeightsError
from unveil.io.optional_deps import import_extra
from unveil.io.safetensors_io import read_tensors

MODULE, TABLE = "diffusers.loaders.single_file_model", "SINGLE_FILE_LOADABLE_CLASSES"


def tensors_of(folder: PipelineFolder, name: str, kind: str, wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights of a component, as diffusers writes them or out of a single file.

    Args:
        name: of the component.
        kind: its class.
        wanted: keys of its state dict.

    Raises:
        WeightsError: none there, damaged, or a file that diffusers does not read for this class.
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
