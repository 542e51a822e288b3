"""Import of weight files: they are recognised by their content, and a failed import leaves nothing."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

from tests.studio.conftest import LEFT
from tests.studio.test_tabs import Laid, client, laid
from unveil.errors import Error, OutOfResources, OutputError
from unveil.io.files import write_tensors
from unveil.model import model_folder
from unveil.studio.tabs.models import ModelsTab

__all__ = ["client", "laid"]
pytestmark = LEFT
LORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def weights(path: Path, *keys: str) -> str:
    write_tensors(path, {key: torch.ones(2, 2) for key in keys})
    return str(path)


def lora(path: Path) -> str:
    return weights(path, f"{LORA}.lora_down.weight", f"{LORA}.lora_up.weight")


def left() -> list[str]:
    """All that lies in the models folder."""
    return sorted(path.name for path in model_folder.models_dir().rglob("*") if path.is_file())


def test_an_imported_file_is_recognised_by_its_content(laid: Laid, tmp_path: Path):
    models = laid(ModelsTab)
    table, file, _, message = models._brought("", lora(tmp_path / "style.pt"), "loras")
    assert "style.pt was imported: a LoRA." in message
    assert "<td>style</td>" in table
    assert file is None
    assert (model_folder.models_dir() / "loras" / "style.pt").read_bytes() == (tmp_path / "style.pt").read_bytes()
    *_, message = models._brought("", weights(tmp_path / "odd.safetensors", "a"), "checkpoints")
    assert "odd.safetensors was imported: tensors in an unknown format." in message
    torch.save({"a": torch.ones(2)}, tmp_path / "old.ckpt")
    *_, message = laid(ModelsTab, "zh")._brought("", str(tmp_path / "old.ckpt"), "checkpoints")
    assert "old.ckpt 已导入" in message
    with pytest.raises(OutputError, match=r"old\.ckpt already exists"):
        models._brought("", str(tmp_path / "old.ckpt"), "checkpoints")


def test_other_files_are_not_imported_under_any_name(laid: Laid, tmp_path: Path):
    models = laid(ModelsTab)
    page, empty, cut = (tmp_path / f"{name}.safetensors" for name in ("page", "empty", "cut"))
    page.write_text("<html>not found</html>")
    empty.write_bytes(b"")
    whole = Path(lora(tmp_path / "whole.safetensors")).read_bytes()
    cut.write_bytes(whole[:-4])
    for path, why in ((page, "not a safetensors file"), (empty, "an empty file"), (cut, "damaged or was cut short")):
        with pytest.raises(Error, match=why) as caught:
            models._brought("", str(path), "loras")
        assert str(caught.value).startswith(f"{path.name} was not imported: ")
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(Error, match=r"whole\.safetensors was not imported: its content is of type LoRA\."):
        models._brought("", str(tmp_path / "whole.safetensors"), "checkpoints")
    with pytest.raises(Error, match="没有导入"):
        laid(ModelsTab, "zh")._brought("", str(page), "loras")
    assert left() == []


def test_a_full_disk_keeps_no_part_of_an_imported_file(laid: Laid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models, real = laid(ModelsTab), shutil.copyfile

    def full(source: Any, target: Any) -> None:
        Path(target).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutOfResources, match="the disk is full"):
        models._brought("", lora(tmp_path / "style.safetensors"), "loras")
    assert left() == []
    monkeypatch.setattr(shutil, "copyfile", real)
    models._brought("", str(tmp_path / "style.safetensors"), "loras")
    assert left() == ["style.safetensors"]


def test_a_published_model_is_offered_for_download(laid: Laid):
    models = laid(ModelsTab)
    assert "sd-turbo" in [value for _, value in models.published.choices]
    assert "the fastest choice without a GPU" in models._published_models()
    assert "没有 GPU 时最快的选择" in laid(ModelsTab, "zh")._published_models()
    job, _ = models._shown("", "sd-turbo")
    assert (job.kind, job.request) == ("get", {"repository": "sd-turbo", "dry_run": True})
    job, _ = models._downloaded("", "someone/thing", True)
    assert job.request == {"repository": "someone/thing", "accept_license": True}
    with pytest.raises(Error, match="repository"):
        models._downloaded("", None, False)
