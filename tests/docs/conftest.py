"""The folders that the pages speak of: photos, and flowers in a sub-folder per class."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from unveil import data, playground
from unveil.io.images import png

COUNT = 40


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images of shapes, made once."""
    home = tmp_path_factory.mktemp("images")
    scenes = data.open(playground.ScenesConfig(size=40, count=COUNT, num_val=1))
    for place in ("photos", "flowers/daisy", "flowers/rose"):
        (home / place).mkdir(parents=True)
    for number in range(COUNT):
        image = png(torch.as_tensor(scenes[number]["pixels"])[:, : 40 - number % 5])
        (home / "photos" / f"{number:03d}.png").write_bytes(image)
        (home / "flowers" / ("daisy" if number % 2 else "rose") / f"{number:03d}.png").write_bytes(image)
    return home


@pytest.fixture
def reader(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader of a page works."""
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
