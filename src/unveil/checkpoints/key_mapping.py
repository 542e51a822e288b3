"""Name maps as data: which published tensors make which of ours, applied in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.errors import WeightsError
from unveil.io.console import one_line


class SourceKeys(NamedTuple):
    """The published keys of one of our tensors; several are stacked along the first axis.

    `ones` trailing axes of size 1 are theirs alone (a linear layer stored as a convolution).
    """

    keys: tuple[str, ...]
    ones: int = 0


# Our key -> theirs
KeyMap = dict[str, SourceKeys]


def layer_keys(ours: str, theirs: str, layers: Mapping[str, str]) -> KeyMap:
    """Names of the weights and biases of the layers of one block, given the block's two prefixes."""
    mapping: KeyMap = {}
    for our, their in layers.items():
        mapping |= layer_key(f"{ours}.{our}", f"{theirs}.{their}")
    return mapping


def layer_key(ours: str, theirs: str) -> KeyMap:
    """Names of the weight and bias of one layer."""
    return {f"{ours}.{kind}": SourceKeys((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}


def fused_keys(names: KeyMap) -> list[str]:
    """The published keys of which several make one of our tensors, so that they are copied and not kept."""
    return [key for published in names.values() if len(published.keys) > 1 for key in published.keys]


def to_ours(theirs: Mapping[str, Tensor], names: KeyMap, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Our state dict; tensors are views where a single one makes ours.

    Args:
        theirs: Their state dict.
        names: The map.
        shapes: Shapes of our tensors, by our keys.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape; all are listed.
    """
    wanted = {key for published in names.values() for key in published.keys}
    check_keys(theirs, wanted)
    ours, wrong = {}, []
    for key, (keys, ones) in names.items():
        parts = [theirs[k] for k in keys]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        expected = (*shapes[key], *(1,) * ones)
        if tuple(tensor.shape) != expected:
            wrong.append(f"{' + '.join(keys)}: {tuple(tensor.shape)}, expected {expected}")
        else:
            ours[key] = tensor.reshape(tuple(shapes[key]))
    if wrong:
        raise WeightsError("tensors of another shape: " + abbreviate(wrong))
    return ours


def to_theirs(ours: Mapping[str, Tensor], names: KeyMap) -> dict[str, Tensor]:
    """Their state dict.

    Raises:
        WeightsError: Missing or extra keys of ours.
    """
    check_keys(ours, names)
    theirs = {}
    for key, (keys, ones) in names.items():
        tensor = ours[key].reshape(*ours[key].shape, *(1,) * ones)
        theirs |= dict(zip(keys, tensor.chunk(len(keys)), strict=True))
    return theirs


def check_keys(actual: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises WeightsError that lists the missing and the extra keys, if there are any."""
    actual, wanted = set(actual), set(wanted)
    faults = []
    if missing := sorted(wanted - actual):
        faults.append("missing keys: " + abbreviate(missing))
    if extra := sorted(actual - wanted):
        faults.append("extra keys: " + abbreviate(extra))
    if faults:
        raise WeightsError("; ".join(faults) + "; check that the configuration is that of the checkpoint")


def abbreviate(lines: Sequence[str], limit: int = 8) -> str:
    """The first few of them and how many there are."""
    rest = f" and {len(lines) - limit} more" if len(lines) > limit else ""
    return f"{len(lines)} ({', '.join(map(one_line, lines[:limit]))}{rest})"
