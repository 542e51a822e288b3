"""Stable Diffusion 2's text tower and schedules of every kind between one file and diffusers' folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import unveil
from tests.checkpoints import tiny_sd
from unveil.checkpoints import registry
from unveil.checkpoints.formats import single_file
from unveil.checkpoints.hf import stable_diffusion
from unveil.checkpoints.overrides import ModelOverrides
from unveil.checkpoints.scheduler import SAMPLERS, scheduler_of, settings_of
from unveil.model.config import ModelConfig, validate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd") / "folder"
    tiny_sd.pipeline().save_pretrained(place)
    return place


# CogVideoX's stochastic solver is of clips, whose folders are not written
@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_a_scheduler_says_is_written_back(folder: Path, kind: str, prediction: str):
    config = unveil.load(folder).config
    assert config is not None
    scheduler = {"_class_name": kind, **tiny_sd.DDIM, "prediction_type": prediction, "timestep_spacing": "leading"}
    settings = scheduler_of(scheduler, Path("settings"))
    plain = config.model_dump(mode="json") | {"process": settings.process, "prediction": settings.prediction}
    made = validate(ModelConfig, plain | {"sample": {**settings.sample, "steps": 50}}, "test")
    assert scheduler_of(settings_of(made, stable_diffusion.SPACING), Path("again")) == settings


def test_the_tower_of_stable_diffusion_2_goes_into_a_folder_and_back(folder: Path, tmp_path: Path):
    """A folder has no block behind the one that is used; a file has one, which nobody runs."""
    theirs = single_file.tensors_of(unveil.load(folder))
    tower = {key: tensor for key, tensor in theirs.items() if key.startswith("cond_stage_model.")}
    rest = {key: tensor for key, tensor in theirs.items() if key not in tower}
    overrides = ModelOverrides(**tiny_sd.OVERRIDES | {"activation": "gelu"})
    model = single_file.read_checkpoint({**rest, **tower}, overrides).model  # with the exact GELU, as OpenCLIP has it
    second = single_file.tensors_of(model)
    assert "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight" in second  # of two blocks that are used
    found = registry.detect(second)
    assert found is not None
    assert found.signature.title == "Stable Diffusion 2 in one file"
    read = single_file.read_checkpoint(second, overrides)
    prompt = {"prompt": "a cat on the moon"}
    with torch.no_grad():
        want, got = (one.encode(prompt)[0].tokens for one in (model, read.model))
    # begin, five words, end; behind it OpenCLIP's rows are filled with token 0
    assert torch.allclose(want[:, :7], got[:, :7], atol=1e-6)
    stable_diffusion.write(read.model, tmp_path / "out")
    back = unveil.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(back.encode(prompt)[0].tokens, got, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "closest"),
    [
        (["unet.input_blocks.0.0.weight", "conv_in.weight"], "a U-Net of diffusers"),
        (["first_stage_model.encoder.conv_in.weight"], "a latent diffusion model in one file"),
        (["input_hint_block.0.weight"], "a ControlNet"),
    ],
)
def test_the_closest_layout_is_named(keys: list[str], closest: str):
    assert registry.detect(dict.fromkeys(keys)) is None
    assert f"the closest is {closest}, of which is missing" in registry.explain_unknown(dict.fromkeys(keys))
