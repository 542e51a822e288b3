"""A long training, and many changes of models and LoRAs: memory, open files and threads do not grow."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import unveil
from tests.train import tiny
from unveil.checkpoints import lora, lora_export
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.generation.model_loading import LoraOption, ModelOptions
from unveil.io.console import Console
from unveil.nn.lora import LoraConfig, LoraDelta, init_lora
from unveil.server.jobs.task_job import ModelCache

pytestmark = [pytest.mark.release, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")]
STEPS, CHANGES = 20_000, 100
GROWTH = 50 << 20  # bytes


class Held(NamedTuple):
    """Memory, open files and threads of this process."""

    bytes: int
    files: int
    threads: int


def held() -> Held:
    gc.collect()
    with suppress(OSError, AttributeError):  # pages that malloc keeps do not count
        ctypes.CDLL(None).malloc_trim(0)
    process = Path("/proc/self")
    lines = (process / "status").read_text().splitlines()
    size = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
    return Held(size, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())))


def assert_constant(seen: list[Held]) -> None:
    """Compare all measurements with the first one."""
    first, rest = seen[0], seen[1:]
    assert max(now.bytes for now in rest) - first.bytes <= GROWTH, seen
    assert {now.files for now in rest} == {first.files}, seen
    assert {now.threads for now in rest} == {first.threads}, seen


class Watched(DiffusionLoss):
    """The objective, which measures the process at intervals."""

    every: int = 1

    def __call__(self, denoiser: Any, x0: Any, condition: Any, streams: Any, step: int) -> LossOutput:
        if step and step % self.every == 0:
            measured.append(held())
        return super().__call__(denoiser, x0, condition, streams, step)


measured: list[Held] = []


def test_a_long_training_does_not_grow(tmp_path):
    objective = Watched()
    object.__setattr__(objective, "every", STEPS // 20)
    measured.clear()
    tiny.fit(
        tmp_path / "run", objective=objective, steps=STEPS, save_every=STEPS // 20, sample_every=STEPS // 10,
        grad_accum_steps=1,
    )  # fmt: skip
    assert len(measured) == 19
    assert_constant(measured[3:])


def styles(folder: Path, name: str, count: int) -> list[Path]:
    """LoRAs of a bundled model."""
    parts = lora.parts_of(unveil.load(name))
    paths = [folder / f"style{number}.safetensors" for number in range(count)]
    for path in paths:
        made = [
            LoraDelta(one.layer, one.down, torch.randn_like(one.up), one.alpha)
            for one in init_lora(parts["denoiser"].network, LoraConfig(("*",), rank=2))
        ]
        lora_export.write(path, lora_export.to_lora_file({"denoiser": made}, parts, "kohya"))
    return paths


def test_changes_of_models_and_loras_do_not_grow(tmp_path):
    cache, seen = ModelCache(most=1, bytes=0), []
    loras = styles(tmp_path, "ddpm-digits", 3)
    for number in range(CHANGES):
        name = "playground-world" if number % 10 == 9 else "ddpm-digits"
        chosen = (LoraOption(loras[number % 3], 0.1 * (1 + number % 7)),) if name == "ddpm-digits" else ()
        model, _ = cache.open(ModelOptions(name, device="cpu", loras=chosen), Console())
        if chosen:
            model.generate(cond={"label": [number % 10]}, count=1, seed=number, steps=2)
        del model
        seen.append(held())
    assert_constant(seen[CHANGES // 2 :])
