"""Folders of small images, and a cache folder of each test's own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty at first; what lies in it was written by the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UNVEIL_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for images."""
    made = tmp_path / "images"
    made.mkdir()
    return made


@pytest.fixture
def paint(folder: Path) -> Paint:
    """Writes an image of smooth random colours: paint("cat/a.png", 20, 16, seed=3, mode="L")."""

    def write(name: str, width: int = 16, height: int = 16, *, seed: int | None = None, mode: str = "RGB") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(zlib.crc32(name.encode()) if seed is None else seed)
        small = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)
        return path

    return write
