"""What every task makes of generation, in one form, so that batches, seeds, records and films are the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.core.sampling_run import SamplingRun
from unveil.data.preprocessors.segmentation import resize_control_image as fit
from unveil.errors import ShapeError
from unveil.io.images import to_unit
from unveil.model import Model, RunTransform

FORMAT = 2  # of metadata


class SourceFile(NamedTuple):
    """A file that a picture was made from: its name, the hash of its content, and the place in it of several."""

    name: str
    sha256: str
    row: int = 0


def identity(course: SamplingRun, rows: slice) -> SamplingRun:
    """The course as it is."""
    del rows
    return course


def _untouched(pixels: Tensor, rows: slice) -> Tensor:
    del rows
    return pixels


def _nothing(rows: slice) -> Mapping[str, Tensor]:
    del rows
    return {}


@dataclass(frozen=True)
class TaskSpec:
    """A task: how it changes generation. `rows` are those of a batch in the request, counted from 0.

    Attributes:
        verb: its name; none is plain generation.
        settings: what the command makes it of again, besides its inputs; plain enough for JSON.
        change: (course, rows) -> the course that is run.
        shown: rows -> conditions that are pictures, by key, (B, C, H, W) each.
        finish: (pixels, rows) -> the pixels that are written; both uint8 (B, C, H, W) or (B, C, T, H, W).
        size: height and width of what is made, of a clip its frames before them, where it is not the model's own.
        seen: the end of that size that the network is given at once, where that is a tile; see `Model.resized`.
        inputs: The files of every row, by the field that names them.
        record: Task for the metadata, as `tasks.task.Task.metadata` gives it.
        notes: Warnings for the user.
    """

    verb: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: RunTransform = identity
    shown: Callable[[slice], Mapping[str, Tensor]] = _nothing
    finish: Callable[[Tensor, slice], Tensor] = _untouched
    size: tuple[int, ...] | None = None
    seen: tuple[int, int] | None = None
    inputs: Mapping[str, Sequence[SourceFile]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether generation is not changed."""
        return not self.verb and self.change is identity and self.finish is _untouched and self.size is None

    def of_picture(self, row: int) -> dict[str, Any]:
        """What the metadata of one image say of the task."""
        files = {role: select_row(every, row)._asdict() for role, every in self.inputs.items()}
        if self.record:
            facts: dict[str, Any] = {"format": FORMAT, "task": dict(self.record)}
            facts |= {name: self.settings[name] for name in ("passes",) if name in self.settings}
            return facts | ({"inputs": files} if files else {})
        if not self.verb:
            return {}
        return {"task": {"verb": self.verb, **self.settings, **({"inputs": files} if files else {})}}

    def of_batch(self, rows: slice) -> dict[str, Any]:
        """The inputs of a whole batch, which are needed to draw it again."""
        if not self.inputs:
            return {}
        count = range(rows.start, rows.stop)
        return {"inputs": {role: [select_row(x, row)._asdict() for row in count] for role, x in self.inputs.items()}}


PLAIN = TaskSpec()


def select_row(every: Sequence[Any], row: int) -> Any:
    """The entry of a row, where one entry serves all rows or each has its own."""
    return every[0 if len(every) == 1 else row]


def select_rows(every: Tensor, rows: slice) -> Tensor:
    """The entries (B, ...) of a batch, where one entry (1, ...) serves all rows or each has its own."""
    return every.expand(rows.stop - rows.start, *every.shape[1:]) if len(every) == 1 else every[rows]


def select_list(values: Sequence[Any], rows: slice) -> list[Any]:
    """The values of a batch, where one serves all rows or each has its own."""
    return list(values) if len(values) == 1 else list(values)[rows]


def input_to_unit(pictures: Tensor, channels: int, form: str = "H, W") -> Tensor:
    """Pictures (N, C, H, W), or what `form` names, in [-1, 1], float32, given so or as uint8.

    Raises:
        ShapeError: another shape, or integers other than uint8.
    """
    if pictures.ndim != form.count(",") + 3 or pictures.shape[1] != channels:
        raise ShapeError(f"pictures {tuple(pictures.shape)}: must be (N, {channels}, {form})")
    if pictures.dtype == torch.uint8:
        return to_unit(pictures)
    if not pictures.is_floating_point():
        raise ShapeError(f"pictures {pictures.dtype}: must be uint8, or floating point in [-1, 1]")
    return pictures.float()


def hints(model: Model, count: int, size: Sequence[int] | None) -> dict[str, Tensor]:
    """The pictures that the model's controls read, uint8 (count, C, H, W) each, by the controls' keys.

    Args:
        size: height and width of the results; None: the model's own.
    """
    height, width = (size or model.shape)[-2:]
    networks = {} if model.controls is None else {one.key: one.network for one in model.controls.controls}
    fitted = {one.key: fit(one.pixels, height, width) for one in model.controlnet_infos if one.pixels is not None}
    return {key: pixels[: networks[key].hint_channels].expand(count, -1, -1, -1) for key, pixels in fitted.items()}


@torch.no_grad()
def latents_of(model: Model, pictures: Tensor) -> Tensor:
    """Latents of pictures or clips (B, C, ...) in [-1, 1], on the model's device; the same where there is no codec."""
    return model.autoencoder.encode(pictures.to(model.device))
