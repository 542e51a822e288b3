"""A file of latents read once, before training: what it holds, and whether a diffusion process can use it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unveil.data.latents import open_latent_file
from unveil.data.report import escape_for_terminal

_CHUNK = 1024  # latents read at once
_NAMED = 20  # classes, and bad latents, that the text names
_LOW, _HIGH = 0.5, 2.0  # deviations of x0 that a process, made for about 1, bears


@dataclass(frozen=True)
class LatentsReport:
    """Result of checking a file of latents.

    Attributes:
        shape: Shape of one latent, (C, H, W), as the network gets it.
        classes: Number of latents by class name or number; empty without labels.
        mean, deviation: Mean and standard deviation of each channel, shifted and scaled.
        nonfinite: places of latents with NaN or infinite numbers, which are left out of both.
        others: tensors of the file that are not read.
    """

    path: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    classes: dict[str, int]
    mean: list[float]
    deviation: list[float]
    nonfinite: list[int]
    metadata: dict[str, str]
    others: list[str]

    @property
    def spread(self) -> float:
        """The deviation over all channels, about 1 where scale and shift fit; NaN where nothing is finite."""
        return math.sqrt(sum(deviation**2 for deviation in self.deviation) / len(self.deviation))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON; a value that is not finite is null."""
        numbers = {name: [_plain(number) for number in getattr(self, name)] for name in ("mean", "deviation")}
        return {**asdict(self), **numbers, "spread": _plain(self.spread)}

    def to_text(self) -> str:
        """For a person."""
        counted = [f"{escape_for_terminal(name)} {count}" for name, count in self.classes.items()]
        more = f", and {len(counted) - _NAMED} more" if len(counted) > _NAMED else ""
        lines = [
            f"{escape_for_terminal(self.path)}: {self.count} latents of shape {self.shape}, {self.dtype}",
            "classes      " + (", ".join(counted[:_NAMED]) + more if counted else "no labels"),
            "mean         " + ", ".join(f"{number:.3f}" for number in self.mean),
            "deviation    " + ", ".join(f"{number:.3f}" for number in self.deviation),
            *(
                f"metadata     {escape_for_terminal(key)}: {escape_for_terminal(text[:80])}"
                for key, text in self.metadata.items()
            ),
        ]
        if self.others:
            lines.append("not read     " + ", ".join(map(escape_for_terminal, self.others)))
        if self.nonfinite:
            places = ", ".join(map(str, self.nonfinite[:_NAMED]))
            lines.append(f"cannot be used: {len(self.nonfinite)} hold NaN or infinite numbers, such as {places}")
        if self.count > len(self.nonfinite) and not _LOW <= self.spread <= _HIGH:
            lines.append(f"deviation {self.spread:.3g}: a process is made for about 1; write the file with a scale")
        return "\n".join(lines)


def check_latents(path: Path, progress: Callable[[int, int], None] | None = None) -> LatentsReport:
    """Reads a file of latents from end to end. Changes nothing in it.

    Args:
        progress: called as progress(done, total), now and then.

    Raises:
        DataError: see `latents.open_latent_file`.
    """
    file = open_latent_file(path.expanduser())
    latents, labels = file.mapped(), file.mapped_labels()
    count, channels = len(latents), file.latent[0]
    bad: list[int] = []
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for begin in range(0, count, _CHUNK):
        x0 = file.x0(latents[begin : begin + _CHUNK]).double()
        finite = torch.isfinite(x0).flatten(1).all(1)
        bad += (begin + (~finite).nonzero().flatten()).tolist()
        sums += torch.stack([x0[finite].sum((0, 2, 3)), x0[finite].square().sum((0, 2, 3))])
        if progress:
            progress(min(begin + _CHUNK, count), count)
    used = (count - len(bad)) * math.prod(file.latent[1:])
    mean, square = sums / used if used else torch.full_like(sums, math.nan)
    names = file.classes or []
    counts = np.bincount(labels, minlength=len(names)) if labels is not None else np.zeros(0, np.int64)
    return LatentsReport(
        path=str(path),
        count=count,
        dtype=file.dtype,
        shape=file.latent,
        classes={names[i] if names else str(i): int(count_of_class) for i, count_of_class in enumerate(counts)},
        mean=mean.tolist(),
        deviation=(square - mean.square()).clamp(min=0).sqrt().tolist(),
        nonfinite=bad,
        metadata=file.metadata,
        others=file.others,
    )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
