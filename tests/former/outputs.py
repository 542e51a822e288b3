"""What the model folders of `files/` give for fixed inputs, as tensors and texts."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import unveil
from tests.former.command import unveil as command
from unveil.evaluate.features import read_classifier
from unveil.model.model_folder import load_latent_autoencoder

DRAWN: dict[str, dict[str, Any]] = {
    "digits": {"cond": {"label": [3, 7]}, "steps": 4},
    "latents": {"cond": {"label": [3, 7]}, "steps": 3, "guidance_scale": 2.0},
    "words": {"cond": {"prompt": ["a large red circle", "a ring"]}, "steps": 3, "guidance_scale": 2.0},
    "video": {"cond": {"prompt": ["a small red circle moves left", "a ring"]}, "steps": 2},
}
CODED = {"autoencoder-kl": (2, 1, 8, 8), "autoencoder-vq": (2, 1, 8, 8), "autoencoder-video": (1, 3, 5, 32, 32)}


@torch.no_grad()
def tensors(folder: Path) -> dict[str, Tensor]:
    """The outputs by the name of the model and its inputs."""
    found = {
        name: unveil.load(folder / "models" / name).generate(count=2, seed=5, **how) for name, how in DRAWN.items()
    }
    for name, shape in CODED.items():
        codec = load_latent_autoencoder(folder / "runs" / name).eval()
        pixels = torch.linspace(-1, 1, torch.Size(shape).numel()).sin().reshape(shape)
        found[f"{name}.latents"] = codec.encode(pixels)
        found[f"{name}.pixels"] = codec.decode(found[f"{name}.latents"])
    network, _ = read_classifier(folder / "runs/classifier/classifier-digits.yaml")
    found["classifier"] = network(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)).logits
    return {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}


def texts(folder: Path) -> dict[str, Any]:
    """Of the captioner and of the sequence model, by command."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "captions.jsonl"
        command("caption", "inputs", "--model", "runs/captioner", "--out", out, "--quiet", folder=folder)
        lines = out.read_text().splitlines()
    written = json.loads(command("translate", "runs/sequence", "sort d a c b", "copy a b", "--json", folder=folder))
    return {"captions": sorted(lines), "texts": written["texts"]}
