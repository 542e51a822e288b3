"""A network, images and settings that train in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil import train
from unveil.conditioning.class_label import Label
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, betas
from unveil.core.timestep_sampling import SecondMoment
from unveil.model import Model
from unveil.model.config import TrainConfig
from unveil.types import Condition

STEPS = 20  # of the process


class Net(nn.Module):
    """Two convolutions with dropout between them; takes a vector, and counts its calls in a buffer."""

    vector_dim = 8

    def __init__(self, channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.dropout = nn.Dropout(0.2)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The prediction, of x's shape."""
        if self.training:
            self.calls += 1
        vector = self.time(t[:, None] / STEPS)
        if condition is not None and condition.vector is not None:
            vector = vector + condition.vector
        return self.leave(self.dropout(torch.tanh(self.enter(x) + vector[:, :, None, None])))


class Images:
    """`count` images uint8 (1, 4, 4) with labels 0 to 2; `spoiled` ones are NaN."""

    def __init__(self, count: int = 30, spoiled: tuple[int, ...] = ()) -> None:
        chosen = torch.Generator().manual_seed(1)
        self.pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=chosen, dtype=torch.uint8)
        self.spoiled = spoiled
        self.classes = ["a", "b", "c"]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.pixels[index]
        if self.spoiled:  # float, so that it can hold a NaN
            pixels = torch.full((1, 4, 4), float("nan")) if index in self.spoiled else pixels / 127.5 - 1
        return {"pixels": pixels, "label": index % 3}


def model(seed: int = 0) -> Model:
    """A model round `Net`, conditioned on labels that are dropped at random."""
    torch.manual_seed(seed)
    denoiser = Denoiser(Net(), DiscreteVP(betas("cosine", STEPS)))
    return Model(denoiser, (1, 4, 4), conditioners=[Label(3, 8, 0.3)])


def config(**changes: Any) -> TrainConfig:
    """Settings with everything random switched on; no images, a checkpoint at the end."""
    settings: dict[str, Any] = {
        "batch_size": 8, "steps": 12, "lr": 1e-2, "warmup": 3, "lr_decay_ratio": 0.5, "ema_decay": 0.9,
        "grad_accum_steps": 2, "random_flip": True,
        "precision": "float32", "save_every": 0, "sample_every": 0, "validate_every": 0,
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


def fit(run: Path, *, objective: Any = None, dataset: Any = None, **changes: Any) -> Path:
    """A run of the tiny model on the tiny images."""
    objective = objective or DiffusionLoss(time=SecondMoment(STEPS, history=1))
    return train.fit(
        model(), Images() if dataset is None else dataset, objective=objective, config=config(**changes), run=run
    )
