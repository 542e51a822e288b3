"""Memory and time to load a saved model of nearly 500 MB, with sha256: memory-mapped, or read and copied.

`above_mb` is the peak of resident memory above that of the start, with every weight touched after loading.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import harness
import torch

from unveil.checkpoints import inspection
from unveil.model import build, checkpoint_store, model_folder
from unveil.model.config import ModelConfig, validate

FOLDER = "UNVEIL_BENCH_MODEL"  # where the parent process put the model


def described() -> ModelConfig:
    """A U-Net of 124 million weights; 38 million in a short run."""
    raw = {
        "shape": [3, 32, 32],
        "network": {
            "kind": "unet",
            "model_channels": 160 if harness.short() else 288,
            "channel_mult": [1, 2, 2],
            "num_res_blocks": 2,
        },
        "process": {"kind": "discrete-vp"},
    }
    return validate(ModelConfig, raw, "benchmark")


def mapped() -> dict[str, float]:
    return harness.measure_load(lambda: model_folder.load_model(os.environ[FOLDER]))


def copied() -> dict[str, float]:
    return harness.measure_load(lambda: model_folder.load_weights(build(described()), os.environ[FOLDER]))


def size() -> dict[str, float]:
    return {"above_mb": inspection.inspect(os.environ[FOLDER])["bytes"] / 2**20}


if __name__ == "__main__":
    torch.set_num_threads(1)
    bars = [
        harness.Ratio("peak above the start / size", "mapped", "size", "above_mb", at_most=1.05),
        harness.Ratio("peak, copied / mapped", "copied", "mapped", "above_mb", at_least=1.5),
        harness.Ratio("time, copied / mapped", "copied", "mapped", "cpu_s", at_least=1.0),
    ]
    with tempfile.TemporaryDirectory() as parent:
        if "--only" not in sys.argv:
            os.environ[harness.SHORT] = "1" if "--short" in sys.argv else "0"  # the model's size depends on it
            os.environ[FOLDER] = str(checkpoint_store.save_model(build(described()), Path(parent) / "model"))
        harness.main("load_model", {"size": size, "copied": copied, "mapped": mapped}, bars)
