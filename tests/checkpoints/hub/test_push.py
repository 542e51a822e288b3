"""Uploads to a hub: a model with its card, which can be downloaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

import unveil
from tests.checkpoints.hub.conftest import TOKEN, files_of
from tests.checkpoints.hub.server import Hub, Repo
from unveil.checkpoints import lora, lora_export
from unveil.cli.commands import run
from unveil.model import model_folder
from unveil.nn.lora import LoraConfig, init_lora

NAME = "me/digits"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the client's own requests


def test_a_run_becomes_a_repository_that_can_be_downloaded(hub: Hub, tiny: Path, tmp_path: Path, capfd):
    folder = tmp_path / "runs" / "mine" / "checkpoints" / "step_000003"
    unveil.load(str(tiny)).save(folder)
    (tmp_path / "runs" / "mine" / "card.md").write_text("# My digits\n\nTrained on digits.\n")
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("{}")
    assert run(["push", str(tmp_path / "runs" / "mine"), NAME, "--license", "cc-by-4.0"]) == 0
    written = "".join(capfd.readouterr())
    assert f"unveil get {NAME}" in written
    assert TOKEN not in written
    repo = hub.repos[NAME]
    assert repo.private
    assert set(repo.files) == {*files_of(tiny), "README.md"}
    _, front, card = repo.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0", "library_name": "unveil", "pipeline_tag": "unconditional-image-generation",
        "tags": ["unveil", "diffusion"],
    }  # fmt: skip
    assert "Trained on digits." in card
    assert not [name for name, content in repo.files.items() if str(tmp_path).encode() in content]
    assert not [one for one in hub.seen if one.storage and TOKEN in str(one.headers)]
    repo.card = yaml.safe_load(front)
    assert run(["get", NAME]) == 0
    first, again = unveil.load(str(tiny)).state_dict(), unveil.load(NAME).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_weights_of_a_repository_are_not_replaced_unless_forced(hub: Hub, tiny: Path, capsys):
    hub.repos[NAME] = Repo({"model.safetensors": b"theirs"})
    assert run(["push", str(tiny), NAME]) == 2
    assert "has model.safetensors already" in capsys.readouterr().err
    assert set(hub.repos[NAME].files) == {"model.safetensors"}
    assert run(["push", str(tiny), NAME, "--force", "--json"]) == 0
    assert hub.repos[NAME].files["model.safetensors"] == b"theirs"
    assert "denoiser.safetensors" in hub.repos[NAME].files


def test_a_lora_is_uploaded_without_the_path_of_its_base(hub: Hub, tiny: Path, tmp_path: Path, monkeypatch):
    parts = lora.parts_of(unveil.load(str(tiny)))
    deltas = init_lora(parts["denoiser"].network, LoraConfig(("*",), rank=2))
    lora_export.write(
        tmp_path / "style.safetensors", lora_export.to_lora_file({"denoiser": deltas}, parts, "diffusers")
    )
    assert run(["push", str(tmp_path / "style.safetensors"), "me/style", "--public", "--quiet"]) == 0
    assert set(hub.repos["me/style"].files) == {"style.safetensors", "README.md"}
    assert not hub.repos["me/style"].private
    assert run(["get", "me/style", "--accept-license"]) == 0
    assert (model_folder.models_dir() / "loras" / "me" / "style" / "style.safetensors").is_file()
    assert model_folder.resolve_name("me/style", "loras").name == "style.safetensors"


def test_who_may_not_write_gets_the_remedy(hub: Hub, tiny: Path, tmp_path: Path, monkeypatch, capsys):
    assert run(["push", str(tiny), "digits"]) == 2
    assert "must be OWNER/NAME" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert run(["push", str(tiny), NAME, "--debug"]) == 1
    assert f"{NAME}: access was refused (HTTP 401); run `hf auth login`" in capsys.readouterr().err
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    assert run(["push", str(tmp_path / "old.pt"), NAME]) == 2
    assert "only safetensors are uploaded" in capsys.readouterr().err
    assert not hub.repos
