"""A saved model is loaded unchanged, or an error names the cause."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import unveil
from unveil.checkpoints import inspection
from unveil.core.denoiser import Denoiser
from unveil.core.process import CosineVP
from unveil.errors import NonFinite, OutputError, RecipeError, WeightsError
from unveil.io import files
from unveil.model import Model, checkpoint_store, model_folder
from unveil.model.config import ModelConfig, validate

torch.set_num_threads(1)


def model(channels: int = 8, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    raw = {
        "shape": [1, 4, 4],
        "network": {
            "kind": "unet",
            "model_channels": channels,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "groups": 4,
        },
        "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 20},
        "condition": [
            {"kind": "class-label", "num_classes": 3, "names": ["cat", "dog", "cow"], "drop_prob": 0.2},
            {"kind": "concat", "key": "image", "channels": 2},
        ],
        "sample": {"steps": 4},
    }
    made = unveil.build(validate(ModelConfig, raw, "test"))
    with torch.no_grad():  # so that zero-initialised layers say something
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def saved(tmp_path) -> Path:
    return model().save(tmp_path / "model")


def test_a_loaded_model_is_bit_identical_and_generates_the_same_samples(saved):
    before, after = model(), unveil.load(saved)
    assert after.config == before.config
    assert not after.training
    assert all(
        torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )
    raw = {"label": ["dog", "cat"], "image": torch.zeros(2, 2, 4, 4)}
    assert torch.equal(*(m.generate(cond=raw, count=2, seed=3) for m in (before, after)))


def test_a_loaded_model_can_be_trained_and_its_file_stays_as_it_was(saved):
    before = (saved / "denoiser.safetensors").read_bytes()
    loaded = unveil.load(saved).train()
    assert all(p.requires_grad for p in loaded.parameters())
    assert not any(p.is_meta for p in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert (saved / "denoiser.safetensors").read_bytes() == before
    loaded.save(saved, force=True)  # over the very files that its weights are mapped from
    again = unveil.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_the_folder_has_one_file_per_component_and_no_pickle(saved):
    names = {p.name for p in saved.iterdir()}
    assert names >= {"model.yaml", "denoiser.safetensors", "label.safetensors", "card.md", "manifest.json"}
    assert {Path(name).suffix for name in names} == {".yaml", ".safetensors", ".md", ".json"}
    assert (saved / "model.yaml").read_text().startswith("key: pixels")
    assert "unveil.load" in (saved / "card.md").read_text()


def test_half_precision_files_load_as_float32_or_as_they_are(tmp_path):
    model().half().save(tmp_path / "half")
    assert {p.dtype for p in model_folder.load_model(tmp_path / "half").parameters()} == {torch.float32}
    assert {p.dtype for p in model_folder.load_model(tmp_path / "half", dtype=None).parameters()} == {torch.float16}


def test_inspect_reads_only_headers(saved, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(files, "read_tensors", refuse)
    monkeypatch.setattr(model_folder, "read_tensors", refuse)
    facts = inspection.inspect(saved)
    assert facts["what"] == "a saved model"
    assert facts["parameters"] == sum(value.numel() for value in model().state_dict().values())
    assert facts["bytes"] == 4 * facts["parameters"]
    assert facts["model"]["network"]["kind"] == "unet"
    assert facts["files"]["label.safetensors"]["tensors"] == {"table.weight": {"dtype": "F32", "shape": [4, 32]}}
    one = inspection.inspect(saved / "denoiser.safetensors")
    assert one["what"] == "a part of a model that unveil saved"
    json.dumps(facts)


def test_inspect_names_foreign_files(tmp_path):
    files.write_tensors(
        tmp_path / "a", {"time_embed.0.weight": torch.ones(1), "input_blocks.0.0.weight": torch.ones(1)}
    )
    assert inspection.inspect(tmp_path / "a")["what"] == "a U-Net of Improved DDPM or ADM"
    files.write_tensors(tmp_path / "b", {"w": torch.ones(1)})
    assert inspection.inspect(tmp_path / "b")["what"] in (
        "tensors of an unknown model",
        "a part of a model that unveil saved",
    )


def test_a_flipped_bit_is_detected_when_loading(saved):
    path = saved / "denoiser.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 4
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"denoiser.safetensors: sha256"):
        unveil.load(saved)


def test_weights_of_another_size_list_their_keys(tmp_path):
    folder = model().save(tmp_path / "model")
    other = model(channels=16).save(tmp_path / "other")
    described = (other / "model.yaml").read_text()
    (folder / "model.yaml").write_text(described)
    raw = json.loads((folder / checkpoint_store.MANIFEST).read_text())
    raw["files"]["model.yaml"] = json.loads((other / checkpoint_store.MANIFEST).read_text())["files"]["model.yaml"]
    (folder / checkpoint_store.MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(
        WeightsError, match=r"(?s)keys do not fit the network:\n  .*in the file.*in the network.*and \d+ more"
    ):
        unveil.load(folder)


def test_existing_files_stay_without_force(saved):
    before = (saved / "denoiser.safetensors").read_bytes()
    with pytest.raises(OutputError, match="not overwritten"):
        model(seed=1).save(saved)
    assert (saved / "denoiser.safetensors").read_bytes() == before
    model(seed=1).save(saved, force=True)
    assert (saved / "denoiser.safetensors").read_bytes() != before


def test_nan_is_not_saved(tmp_path):
    broken = model()
    with torch.no_grad():
        next(broken.denoiser.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(NonFinite, match="not finite"):
        broken.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_without_a_config_is_not_saved(tmp_path):
    class Own(nn.Module):
        def forward(self, x, t, condition):
            return x

    with pytest.raises(RecipeError, match="not built from a recipe"):
        Model(Denoiser(Own(), CosineVP()), (2,)).save(tmp_path / "model")
    assert not os.listdir(tmp_path)


def test_paths_without_a_model_are_reported(tmp_path):
    with pytest.raises(WeightsError, match="no such folder or bundled model"):
        unveil.load(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="neither a saved model nor a run with a valid checkpoint"):
        unveil.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="a pickle"):
        unveil.load(tmp_path / "weights.safetensors")


def test_a_condition_cannot_take_the_name_of_another_file(tmp_path):
    made = model()
    made.conditioners["train_state"] = made.conditioners["label"]
    with pytest.raises(RecipeError, match="'train_state': names a file"):
        made.save(tmp_path / "model")


def test_int8_weights_are_close_and_half_as_large_as_float16(tmp_path):
    made = model(channels=64)
    small = unveil.load(checkpoint_store.save_model(made, tmp_path / "small", small=True))
    half = made.to(torch.bfloat16).save(tmp_path / "half")
    sizes = [sum(file.stat().st_size for file in (tmp_path / one).glob("*.safetensors")) for one in ("small", "half")]
    assert sizes[0] < 0.6 * sizes[1]
    made = model(channels=64)
    for (name, own), other in zip(made.named_parameters(), small.parameters(), strict=True):
        rows = own.flatten(1) if own.ndim > 1 else own[:, None]
        off = (own - other).abs().view(rows.shape).amax(dim=1)
        assert other.dtype == torch.float32
        assert torch.all(off <= 0.5001 * rows.abs().amax(dim=1) / 127), name
    assert inspection.inspect(tmp_path / "small")["parameters"] == inspection.inspect(half)["parameters"]
    torch.testing.assert_close(
        model_folder.load_weights(model(channels=64), tmp_path / "small").state_dict(), small.state_dict()
    )


def test_scales_of_another_number_of_rows_are_refused(tmp_path):
    path = checkpoint_store.save_model(model(channels=64), tmp_path / "small", small=True)
    file = path / "denoiser.safetensors"
    found = dict(files.read_tensors(file))
    key = next(key for key in found if key.endswith(checkpoint_store.SCALE_SUFFIX))
    found = {name: value.clone() for name, value in found.items()} | {key: found[key][:-1].clone()}
    files.write_tensors(file, found)
    (path / checkpoint_store.MANIFEST).unlink()
    content = {one.name: files.read_tensors(one) for one in path.glob("*.safetensors")}
    texts = {"model.yaml": (path / "model.yaml").read_text()}
    checkpoint_store.save(tmp_path / "again", {**content, **texts})
    with pytest.raises(WeightsError, match="do not fit the network"):
        unveil.load(tmp_path / "again")
