"""Losses and weights of classifiers and sequence models, which no change of the training loop may change.

`loop_numbers.json` was recorded when each of the two kinds had a loop without Lightning. `cases` runs through
`train_classifier` and `train_sequence` alone, so it ran at that commit as it is: `python -m tests.train.loop_numbers`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.former.environment import key
from unveil import data
from unveil.core.process import DiscreteVP, betas
from unveil.data import ImageTensorDataset
from unveil.model.config import SequenceRecipe, parse_recipe
from unveil.nn.classifier import NoisyClassifierConfig
from unveil.nn.cnn import CnnConfig
from unveil.nn.vit import ViTConfig
from unveil.train.classifier import ClassifierConfig, train_classifier
from unveil.train.seq2seq import train_sequence

FILE = Path(__file__).with_name("loop_numbers.json")
LOSSES = 50
SEQUENCE: dict[str, Any] = {
    "kind": "sequence",
    "name": "tiny",
    "reference": "none",
    "data": {"kind": "task", "tasks": ["copy", "sort"], "symbols": 5, "max_length": 6, "count": 150, "num_val": 12},
    "network": {"kind": "transformer", "width": 16, "heads": 2, "hidden": 32, "depth": 1, "max_length": 16},
    "train": {"steps": 60, "batch_size": 4, "warmup": 5, "lr": 5e-3, "grad_clip_norm": 0.5, "seed": 3},
    "decode": {"num_beams": 1},
}
CLASSIFIERS: dict[str, ClassifierConfig] = {
    "convolutions": ClassifierConfig(
        CnnConfig(1, 8, 10, (4, 8), features=12), 3, 64, translate=0.5, degrees=10, scale=0.2, label_smoothing=0.1
    ),
    "transformer with dropout, sizes and bf16": ClassifierConfig(
        ViTConfig(1, 8, 10, 2, 1, 16, 2, 2.0, pool="mean", dropout=0.1),
        3, 64, sizes=(6, 8, 10), random_flip=True, precision="bf16", seed=4,
    ),
    "noisy": ClassifierConfig(
        NoisyClassifierConfig(
            1, 10, 8, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention=(2,), head_channels=4, groups=4
        ),
        3, 64, 1e-3, random_flip=True, seed=5, process=DiscreteVP(betas("cosine", 50)),
    ),
}  # fmt: skip


def sequence_recipe(*, dropout: float = 0.1, **train: Any) -> SequenceRecipe:
    """The tiny recipe with changes of its training."""
    network = {**SEQUENCE["network"], "dropout": dropout}
    recipe = parse_recipe({**SEQUENCE, "network": network, "train": SEQUENCE["train"] | train}, "tiny")
    assert isinstance(recipe, SequenceRecipe)
    return recipe


def parts() -> tuple[ImageTensorDataset, ImageTensorDataset]:
    """Some digits to train on, and some that never train."""
    return tuple(ImageTensorDataset(d.pixels[:1100], d.labels[:1100], d.classes) for d in both())  # type: ignore[return-value]


def both() -> tuple[ImageTensorDataset, ImageTensorDataset]:
    """The digits."""
    return data.digits("train"), data.digits("held-out")


@contextmanager
def recorded() -> Iterator[list[float]]:
    """The numbers that are differentiated inside."""
    seen: list[float] = []
    plain = torch.Tensor.backward

    def backward(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen.append(float(self.detach()))
        return plain(self, *arguments, **named)

    torch.Tensor.backward = backward  # type: ignore[assignment, method-assign]
    try:
        yield seen
    finally:
        torch.Tensor.backward = plain  # type: ignore[method-assign]


def weights_sha256(network: torch.nn.Module) -> str:
    """A hash of a network's tensors."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def cases() -> dict[str, Callable[[], torch.nn.Module]]:
    """What is trained, by name."""
    trained: dict[str, Callable[[], torch.nn.Module]] = {
        name: lambda config=config: train_classifier(config, *parts()).network for name, config in CLASSIFIERS.items()
    }
    for decay in ("inverse-sqrt", "cosine"):
        trained[f"sequence, {decay}"] = lambda decay=decay: (
            train_sequence(sequence_recipe(lr_schedule=decay)).model.network
        )
    return trained


def measured(name: str) -> dict[str, Any]:
    """The first losses of a case, hexadecimal, and a hash of the weights at the end."""
    with recorded() as losses:
        network = cases()[name]()
    return {
        "losses": [loss.hex() for loss in losses[:LOSSES]],
        "steps": len(losses),
        "weights": weights_sha256(network),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {name: measured(name) for name in cases()}
    FILE.write_text(json.dumps({"key": key(), "cases": numbers}, separators=(",", ":")) + "\n")
