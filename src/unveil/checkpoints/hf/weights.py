"""Weights into a network that was built without any, and a report of what fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import Shapes, shapes_of
from unveil.errors import WeightsError
from unveil.nn.mixed_precision import low_precision_parameters


@dataclass(frozen=True)
class KeyMatchReport:
    """How a file's tensors fit a network.

    Attributes:
        matched: keys of both, with one shape.
        missing: keys of the network alone.
        unknown: keys of the file alone.
        reshaped: keys of both with another shape, and the two shapes.
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
    """How tensors of these shapes fit a network."""
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
        WeightsError: weights of another network; names what is missing and what is unknown.
    """
    report = compare(shapes_of(theirs), network)
    if not report.fits:
        raise WeightsError(f"{where}: {report.text()}; the weights are not those of its config.json: copy both again")
    low = {key for key, _ in low_precision_parameters(network)}
    state = {key: tensor.to(dtype if key in low else torch.float32) for key, tensor in theirs.items()}
    network.load_state_dict(state, assign=True)
    return report
