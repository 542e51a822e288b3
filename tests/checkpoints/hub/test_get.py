"""Downloads from a hub: verified, whole or not at all, into the models folder without a second copy."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import unveil
from tests.checkpoints.hub.conftest import TOKEN, files_of
from tests.checkpoints.hub.server import Hub, Repo
from unveil.checkpoints.hub import client, get, table
from unveil.errors import AlreadyExists, OutOfResources, RecipeError, UnsupportedFormat, WeightsError
from unveil.io.console import Console
from unveil.io.files import tensor_bytes
from unveil.model import model_folder

NAME = "someone/digits"
WEIGHTS = "denoiser.safetensors"


def take(name: str = NAME, *patterns: str, force: bool = False) -> get.Downloaded:
    return get.fetch(get.plan(name, patterns), Console(quiet=True), force=force)


def nothing_is_there() -> bool:
    """No model in the models folder, nor a part of one."""
    return not [path for path in model_folder.models_dir().rglob("*") if path.is_file()]


def tensors(size: int = 4) -> bytes:
    import torch

    return tensor_bytes({"weight": torch.arange(size, dtype=torch.float32)})


def test_a_model_is_there_under_its_name_without_a_second_copy(hub: Hub, published: Repo, tiny: Path):
    planned = get.plan(NAME)
    assert (planned.license, planned.needs_acceptance, planned.repository.commit) == (
        "apache-2.0", False, published.commit,
    )  # fmt: skip
    assert f"{len(planned.selection.files)} files, 19" in planned.text()
    model = get.fetch(planned, Console(quiet=True))
    assert files_of(model.path) == files_of(tiny)  # no image, no code, no pickle
    assert model.path == model_folder.models_dir() / "checkpoints" / NAME
    for name in files_of(model.path):
        cached = huggingface_hub.try_to_load_from_cache(NAME, name, revision=published.commit)
        assert os.path.samefile(model.path / name, str(cached))
    assert (model.copied, model.makes, model.name) == (0, "images of 8 x 8", NAME)
    assert unveil.load(NAME).shape == unveil.load(str(tiny)).shape
    assert unveil.load("digits").shape == (1, 8, 8)


def test_the_same_commit_is_not_downloaded_twice_and_another_one_replaces_nothing_unasked(hub: Hub, published: Repo):
    take()
    requested = len(hub.requested("/resolve/"))
    assert take().was_there
    assert len(hub.requested("/resolve/")) == requested
    published.files |= {"manifest.json": published.files["manifest.json"] + b"\n"}
    with pytest.raises(AlreadyExists, match="--force"):
        take()
    assert (take(force=True).path / "manifest.json").read_bytes() == published.files["manifest.json"]


def test_a_cut_download_resumes_where_it_was(hub: Hub, published: Repo, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # bytes that are kept of a cut connection
    published.cut[WEIGHTS] = [1000]
    model = take()
    assert (model.path / WEIGHTS).read_bytes() == published.files[WEIGHTS]
    ranges = [one.headers.get("range") for one in hub.requested(WEIGHTS) if one.storage]
    assert ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("name", [WEIGHTS, "card.md"])  # by sha256, and by git's hash
def test_a_wrong_hash_keeps_nothing(hub: Hub, published: Repo, name: str):
    true = published.files[name]
    published.sent[name] = true[:-1] + bytes([true[-1] ^ 1])
    with pytest.raises(WeightsError, match=f"{name} has the hash .*was deleted"):
        take()
    assert nothing_is_there()
    assert huggingface_hub.try_to_load_from_cache(NAME, name, revision=published.commit) is None
    published.sent.clear()
    assert (take().path / name).read_bytes() == true  # control: the next download gets the true one


def test_a_file_that_changed_in_the_cache_is_noticed(hub: Hub, published: Repo):
    cached = client.download(client.listing(NAME), client.HubFile("card.md", 1, "", client.git_blob(_write(published))))
    cached.resolve().write_bytes(b"another card")
    with pytest.raises(WeightsError, match=r"card\.md has the hash"):
        take()
    assert nothing_is_there()


def _write(repo: Repo) -> Path:
    place = Path(constants.HF_HUB_CACHE).parent / "card.md"
    place.write_bytes(repo.files["card.md"])
    return place


def test_ctrl_c_keeps_nothing_and_the_finished_files_of_the_cache(hub: Hub, published: Repo, monkeypatch):
    whole = client.download

    def interrupted(repository, file, advance=None):
        if file.name == WEIGHTS:
            raise KeyboardInterrupt
        return whole(repository, file, advance)

    monkeypatch.setattr(client, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take()
    assert nothing_is_there()
    monkeypatch.setattr(client, "download", whole)
    requested = len(hub.requested("card.md"))
    take()
    assert len(hub.requested("card.md")) == requested


def test_ctrl_c_while_it_is_linked_keeps_nothing(hub: Hub, published: Repo, monkeypatch):
    linked: list[str] = []

    def link(source: object, target: object) -> None:
        if linked:
            raise KeyboardInterrupt
        linked.append(str(target))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        take()
    assert nothing_is_there()


def test_the_disk_is_checked_first(hub: Hub, published: Repo, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 1 << 30, 1000))
    with pytest.raises(OutOfResources, match=r"needs 1\d\d KiB in .*1000 B free.*set HF_HOME"):
        get.plan(NAME)
    assert not hub.requested(WEIGHTS, "HEAD")


def test_a_disk_that_fills_up_keeps_nothing(hub: Hub, published: Repo, monkeypatch):
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(OutOfResources, match="the disk is full"):
        take()
    assert nothing_is_there()


def test_where_the_disk_has_no_links_a_copy_is_made_and_stated(hub: Hub, published: Repo, monkeypatch):
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    model = take()
    assert model.copied == sum(map(len, files_of(model.path).values()))


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, published: Repo, caplog, capfd):
    published.moved = ("card.md",)
    with caplog.at_level(logging.DEBUG):
        model = take()
    assert all(
        one.headers["authorization"] == f"Bearer {TOKEN}"
        for one in hub.seen
        if "/someone/" in one.path and not one.storage
    )
    stored = [one for one in hub.seen if one.storage]
    assert {"/someone/digits/card.md", f"/someone/digits/{WEIGHTS}"} <= {one.path for one in stored}
    assert not [one for one in stored if TOKEN in str(one.headers)]
    written = "".join(capfd.readouterr()) + caplog.text + table.record_file(NAME).read_text()
    assert TOKEN not in written
    assert not [path for path in (*model.path.rglob("*"), *Path(constants.HF_HUB_CACHE).rglob("*"))
                if path.is_file() and TOKEN.encode() in path.read_bytes()]  # fmt: skip


def test_a_gated_model_says_where_to_accept(hub: Hub, published: Repo, monkeypatch):
    published.gated = True
    with pytest.raises(WeightsError, match=rf"gated \(HTTP 403\): open {hub.address}/{NAME}.*hf auth login") as refused:
        take()
    assert TOKEN not in str(refused.value) + repr(refused.value.__cause__)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(WeightsError, match=rf"gated \(HTTP 401\): open {hub.address}/{NAME}"):
        take()
    published.gated, published.private = False, True
    with pytest.raises(WeightsError, match=rf"access was refused \(HTTP 401\).*open {hub.address}/{NAME}"):
        take()
    assert nothing_is_there()


def test_a_repository_revision_or_hub_that_is_not_there(hub: Hub, published: Repo, monkeypatch):
    with pytest.raises(WeightsError, match=r"nobody/nothing: access was refused \(HTTP 401\): the name is wrong"):
        get.plan("nobody/nothing")
    with pytest.raises(WeightsError, match="someone/digits: has no revision 'older'"):
        get.plan(f"{NAME}@older")
    with pytest.raises(RecipeError, match=r"'sd-turbos': must be OWNER/REPO, or one of .*; nearest: 'sd-turbo'"):
        get.plan("sd-turbos")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutOfResources, match=r"cannot be reached; check the connection, set HF_ENDPOINT"):
        get.plan(NAME)


def test_pickles_are_refused_with_the_way_out_which_works(hub: Hub, tmp_path: Path):
    import torch

    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.ckpt")
    content = (tmp_path / "old.ckpt").read_bytes()
    hub.repos["someone/old"] = Repo({"config.json": b"{}", "old.ckpt": content, "pytorch_model.bin": content})
    with pytest.raises(
        WeightsError, match=r"pickles, which can run code.*get someone/old --file old.ckpt.*unveil conv"
    ) as no:
        get.plan("someone/old")
    assert "@REVISION" in str(no.value)
    assert not hub.requested(".ckpt")
    model = take("someone/old", "old.ckpt")
    assert (model.path.name, model.tasks) == ("old.ckpt", ("convert",))
    assert model.use().startswith(f"unveil convert {model.path} ")


def test_a_folder_of_diffusers_is_taken_by_its_parts_in_one_variant(hub: Hub):
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "text_encoder": ["transformers", "CLIPTextModel"], "safety_checker": [None, None]}  # fmt: skip
    weights = tensors()
    files = {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b'{"sample_size": 64}',
        "unet/diffusion_pytorch_model.safetensors": weights,
        "unet/diffusion_pytorch_model.fp16.safetensors": weights,
        "unet/diffusion_pytorch_model.non_ema.safetensors": weights,
        "unet/diffusion_pytorch_model.bin": b"\x80\x02",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.fp16.safetensors": weights,
        "safety_checker/model.safetensors": weights,
        "v1-5-pruned.safetensors": weights,
        "vae_approx/model.safetensors": weights,
    }
    hub.repos["someone/sd"] = Repo(files)
    planned = get.plan("someone/sd")
    assert {file.name for file in planned.selection.files} == {
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
    }  # fmt: skip
    assert planned.pipeline == "StableDiffusionPipeline"
    del files["text_encoder/model.fp16.safetensors"]
    files["text_encoder/pytorch_model.bin"] = b"\x80\x02"
    with pytest.raises(WeightsError, match=r"text_encoder/pytorch_model\.bin .*pickles"):
        get.plan("someone/sd")
    files["model_index.json"] = b'{"_class_name": "KandinskyPipeline"}'
    with pytest.raises(UnsupportedFormat, match="someone/sd: KandinskyPipeline is not a pipeline that can be read"):
        get.plan("someone/sd")
    assert not hub.requested("unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(("kind", "makes"), [("LTXConditionPipeline", "videos"), ("DDPMPipeline", "images of 32 x 32")])
def test_settings_say_what_a_model_makes(tmp_path: Path, kind: str, makes: str):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, "unet": ["diffusers", "UNet2DModel"]}))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"sample_size": 32}))
    assert get.makes_of(tmp_path) == makes


def test_one_of_several_files_is_chosen_and_lands_alone(hub: Hub):
    files = {"first.safetensors": tensors(3), "second.safetensors": tensors(5), "README.md": b"#"}
    hub.repos["someone/files"] = Repo(files)
    with pytest.raises(
        RecipeError, match=r"holds 2 files of weights.*--file NAME: first.safetensors \(\d+ B\), second"
    ):
        get.plan("someone/files")
    with pytest.raises(
        RecipeError, match=r"--file firts.safetensors: no file of this name; nearest: 'first.safetensors'"
    ):
        get.plan("someone/files", ["firts.safetensors"])
    with pytest.raises(RecipeError, match=r"someone/files: README\.md: no file of weights is among them"):
        get.plan("someone/files", ["README.md"])
    model = take("someone/files", "sec*")
    assert model.path == model_folder.models_dir() / "checkpoints" / "someone" / "files" / "second.safetensors"
    assert model.path.read_bytes() == files["second.safetensors"]
    assert take("someone/files", "first.safetensors").path.name == "first.safetensors"  # beside the second one


def test_shards_that_are_missing_keep_nothing(hub: Hub):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    hub.repos["someone/half"] = Repo(files | {"model-00001-of-00002.safetensors": tensors()})
    with pytest.raises(WeightsError, match=r"names the shard 'model-00002-of-00002\.safetensors'"):
        take("someone/half")
    assert nothing_is_there()


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "/etc/x.safetensors", "a/../../b.json", "a\\b.json", ".git/x.json"]
)
def test_a_path_that_leads_outside_is_refused(hub: Hub, path: str):
    hub.repos["someone/bad"] = Repo({path: tensors()})
    with pytest.raises(WeightsError, match="is not a path inside of it"):
        get.plan("someone/bad")


def test_offline_the_cache_and_the_record_are_enough(hub: Hub, published: Repo, monkeypatch):
    take()
    shutil.rmtree(model_folder.models_dir() / "checkpoints")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.seen.clear()
    planned = get.plan(NAME)
    assert planned.license == "apache-2.0"  # of the record
    assert (planned.missing, get.fetch(planned, Console(quiet=True)).path.is_dir()) == (0, True)
    shutil.rmtree(model_folder.models_dir())  # the cache of another program, without a record
    assert (take().path / WEIGHTS).read_bytes() == published.files[WEIGHTS]
    assert hub.seen == []
    with pytest.raises(OutOfResources, match=r"someone/other@main: is not in the cache, and HF_HUB_OFFLINE is set"):
        get.plan("someone/other")


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ({"license": "creativeml-openrail-m"}, "creativeml-openrail-m"),
        ({"license": "other", "license_name": "own-terms", "license_link": "https://example.org/terms"}, "own-terms"),
        ({}, "unknown conditions: no license"),
    ],
)
def test_a_license_with_conditions_is_accepted_first(hub: Hub, published: Repo, card, named, monkeypatch):
    published.card = card
    planned = get.plan(NAME)
    with pytest.raises(RecipeError, match=f"{named}.*--accept-license") as refused:
        get.accept(planned, Console(), accepted=False)  # no terminal to ask on
    assert (card.get("license_link") or f"{hub.address}/{NAME}") in str(refused.value)
    get.accept(planned, Console(), accepted=True)
    requested: list[str] = []
    monkeypatch.setattr(Console, "ask", lambda self, question: bool(requested.append(question)) or True)
    get.accept(planned, Console(), accepted=False)
    assert "Do you accept it?" in requested[0]
