"""Loading a U-Net of Stable Diffusion's shape, 500 MB of safetensors in a folder, against diffusers' from_pretrained.

`loaded_mb` is the peak of resident memory until it is loaded, above what Python and the imports hold; `above_mb` is the
same until every weight was touched, which is when pages of a mapped file are read.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import harness
import torch

from unveil.checkpoints import diffusers_unet
from unveil.nn.unet import UNet, UNetConfig

FOLDER = "UNVEIL_BENCH_UNET"  # where the parent process put it


def written(folder: Path) -> Path:
    """A U-Net of 126 million weights in diffusers' layout; of 32 million in a short run."""
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=64 if harness.short() else 128,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention=(1, 2, 4),
        heads=8,
        cross_attention_dim=768,
        transformer_depth=(1,),
    )
    diffusers_unet.write(UNet(config), folder)
    return folder


def unveil() -> dict[str, float]:
    """Ours: the network alone."""
    return harness.measure_load(lambda: diffusers_unet.read_unet(Path(os.environ[FOLDER])).network)


def diffusers() -> dict[str, float]:
    """As its documentation says, the class imported before."""
    from diffusers import UNet2DConditionModel

    return harness.measure_load(lambda: UNet2DConditionModel.from_pretrained(os.environ[FOLDER]))


def size() -> dict[str, float]:
    """Of the file."""
    return {"above_mb": sum(path.stat().st_size for path in Path(os.environ[FOLDER]).iterdir()) / 2**20}


if __name__ == "__main__":
    torch.set_num_threads(1)
    bars = [
        harness.Ratio("time, diffusers / unveil", "diffusers", "unveil", at_least=1.0),
        harness.Ratio("peak above the imports / size", "unveil", "size", "above_mb", at_most=1.05),
        harness.Ratio("peak, unveil / diffusers", "unveil", "diffusers", "above_mb"),
    ]
    with tempfile.TemporaryDirectory() as parent:
        if "--only" not in sys.argv:
            os.environ[harness.SHORT] = "1" if "--short" in sys.argv else "0"  # the network's size depends on it
            os.environ[FOLDER] = str(written(Path(parent) / "unet"))
        harness.main("load_unet", {"size": size, "diffusers": diffusers, "unveil": unveil}, bars)
