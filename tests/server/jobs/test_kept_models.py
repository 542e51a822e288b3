"""A model in memory is reloaded if one of its files has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.generation.model_loading import ControlNetOption, LoraOption, ModelOptions
from unveil.io.console import Console
from unveil.server.jobs import task_job
from unveil.server.jobs.task_job import ModelCache


def placed(path: Path, content: str, second: int) -> Path:
    """A file with this modification time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (second, second))
    return path


@pytest.mark.parametrize("what", ["model", "lora", "control", "folder"])
def test_a_file_that_is_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    monkeypatch.chdir(tmp_path)
    opened = list[str]()

    def open(options: ModelOptions, *_: Any, **__: Any) -> Any:
        opened.append(options.name)
        return torch.nn.Linear(1, 1), None

    monkeypatch.setattr(task_job, "open_for_generation", open)
    files = {
        "model": placed(tmp_path / "model.safetensors", "one", 1000),
        "lora": placed(tmp_path / "loras" / "style:2.safetensors", "one", 1000),
        "control": placed(tmp_path / "edges.safetensors", "one", 1000),
        "folder": placed(tmp_path / "lines" / "diffusion_pytorch_model.safetensors", "one", 1000),
    }
    control_image = placed(tmp_path / "hint.png", "", 1000)
    controlnets = tuple(ControlNetOption(one, control_image) for one in (files["control"], files["folder"].parent))
    options = ModelOptions(str(files["model"]), loras=(LoraOption(files["lora"], 0.5),), controlnets=controlnets)
    kept = ModelCache()

    for _ in range(2):
        kept.open(options, Console())
    assert len(opened) == 1
    placed(files[what], "two", 2000)
    for _ in range(2):
        kept.open(options, Console())
    assert len(opened) == 2
