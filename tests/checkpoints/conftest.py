"""Folders that several files of tests read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def clip_folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A name in `tiny_video.MAKERS` to its pipeline and the folder of it, which no test may change."""
    from tests.checkpoints import tiny_hf, tiny_video

    place = tmp_path_factory.mktemp("clip-folders")

    @cache
    def made(name: str) -> tuple[Any, Path]:
        pipeline = tiny_video.MAKERS[name]()
        return pipeline, tiny_hf.saved(pipeline, place / name)

    return made
