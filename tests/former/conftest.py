"""A copy of the fixtures that tests may write into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.former.command import FILES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("former") / "files"
    shutil.copytree(FILES, folder)
    return folder
