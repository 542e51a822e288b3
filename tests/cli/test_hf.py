"""Folders of diffusers from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image

from tests.checkpoints import tiny_hf
from unveil.cli.commands import run


def read(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as image:
        return image.size, image.tobytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_folder_is_sampled_edited_repeated_and_inspected(tmp_path, capsys):
    folder = str(tiny_hf.saved(tiny_hf.sdxl(), tmp_path / "sdxl"))
    first, again, edited = (tmp_path / f"{name}.png" for name in ("first", "again", "edited"))
    sized = ["--size", "24x16", "--steps", "3"]
    assert run(["sample", folder, "a cat on the moon", *sized, "--out", str(first)]) == 0
    assert read(first)[0] == (24, 16)
    assert run(["sample", folder, "--from-metadata", str(first), "--out", str(again)]) == 0
    assert read(again) == read(first)
    assert run(["img2img", folder, str(first), "red dog", "--steps", "4", "--out", str(edited)]) == 0
    assert read(edited) != read(first)
    capsys.readouterr()
    assert run(["inspect", "model", folder]) == 0
    output = capsys.readouterr().out
    assert "StableDiffusionXLPipeline" in output
    assert "212 matched" in output
