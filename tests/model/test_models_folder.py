"""Models of the models folder are renamed and deleted, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unveil.cli.commands import run
from unveil.errors import OutputError, WeightsError
from unveil.io.files import write_tensors
from unveil.model import model_folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    for name in ("checkpoints/someone/small.safetensors", "loras/style.safetensors"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True)
        write_tensors(path, {"a": torch.ones(2)})
    (tmp_path / "models" / "checkpoints" / "folder").mkdir()
    (tmp_path / "models" / "checkpoints" / "folder" / "model_index.json").write_text("{}")
    return tmp_path / "models"


def names(models: Path) -> list[str]:
    return sorted(path.relative_to(models).as_posix() for path in models.rglob("*"))


def test_a_model_is_renamed_in_its_subfolder(models: Path, capsys):
    assert run(["rename", "someone/small", "tiny"]) == 0
    assert run(["rename", "style", "look"]) == 0
    assert names(models) == [
        "checkpoints", "checkpoints/folder", "checkpoints/folder/model_index.json", "checkpoints/tiny.safetensors",
        "loras", "loras/look.safetensors",
    ]  # fmt: skip
    with pytest.raises(OutputError, match="must be a name without folders"):
        model_folder.rename_model(model_folder.own_model("look"), "../out")


def test_a_model_is_deleted_after_a_question(models: Path, capsys):
    assert run(["delete", "folder"]) == 2
    assert "confirm with --yes" in capsys.readouterr().err
    assert (models / "checkpoints" / "folder").is_dir()
    assert run(["delete", "folder", "--yes"]) == 0
    assert run(["delete", "someone/small", "--yes"]) == 0
    assert names(models) == ["checkpoints", "loras", "loras/style.safetensors"]


def test_other_files_are_not_deleted(models: Path, tmp_path: Path, capsys):
    (tmp_path / "mine.safetensors").write_bytes((models / "loras" / "style.safetensors").read_bytes())
    for name in (str(tmp_path / "mine.safetensors"), "ddpm-digits", "nothing"):
        with pytest.raises(WeightsError, match="not a model of"):
            model_folder.own_model(name)
        assert run(["delete", name, "--yes"]) == 1
    (models / "checkpoints" / "folder" / "diary.doc").write_text("dear")
    assert run(["delete", "folder", "--yes"]) == 5
    assert "would be deleted, and holds diary.doc" in capsys.readouterr().err
    assert (models / "checkpoints" / "folder" / "diary.doc").is_file()
