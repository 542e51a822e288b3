"""A captioner that learns in a second: videos of one colour with the caption of the colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unveil.model.captioner_folder import CaptionModel
from unveil.model.config import CaptionerRecipe, parse_recipe
from unveil.train.captioner import fit_captioner, initial_captioner

COLOURS = {"red": (200, 30, 30), "green": (20, 160, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
NETWORK = {"kind": "captioner", "patch": 4, "depth": 1, "decoder_depth": 1, "hidden_size": 24, "heads": 2, "limit": 12}


class Grounds:
    """Videos uint8 (3, 4, 8, 8) of one colour, a little noisy, with the caption "a red ground" or a longer caption."""

    def __init__(self, count: int = 40, long: bool = False, frames: int = 4) -> None:
        self.count, self.long, self.frames = count, long, frames

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = list(COLOURS)[index % 4]
        noise = torch.randint(-9, 10, (3, self.frames, 8, 8), generator=torch.Generator().manual_seed(index))
        pixels = torch.tensor(COLOURS[name]).view(3, 1, 1, 1) + noise
        text = f"a {name} ground. nothing moves, camera static" if self.long else f"a {name} ground"
        return {"pixels": pixels.clamp(0, 255).to(torch.uint8), "text": text, "fps": 8}


def recipe(**changes: Any) -> CaptionerRecipe:
    """A recipe of a second."""
    train = {"batch": 8, "steps": 60, "lr": 1e-2, "warmup": 5, "decay": 0.5, "ema": 0.9, "precision": "float32"}
    train |= {"save_every": 0, "sample_every": 0, "validate_every": 0} | changes.pop("train", {})
    raw = {
        "kind": "captioner", "name": "tiny", "paper": "none", "data": {"kind": "playground"},
        "network": NETWORK | changes.pop("network", {}), "train": train, **changes,
    }  # fmt: skip
    found = parse_recipe(raw, "test")
    assert isinstance(found, CaptionerRecipe)
    return found


def trained(run: Path, data: Grounds | None = None, **changes: Any) -> CaptionModel:
    """A captioner of grounds, as the run's folder has it."""
    data, own = data or Grounds(), recipe(**changes)
    model = initial_captioner(own, data, torch.device("cpu"))
    fit_captioner(own, model, data, run=run, held_out=Grounds(8, data.long))
    return model
