"""DiT's files: the thirteen published key lists, both layouts there and back, and what another file is called."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.checkpoints import dit_keys
from unveil.checkpoints.formats import dit
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_state, write_tensors
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.nn.dit import DiT, DiTConfig, get_preset
from unveil.types import Condition

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
SMALL = DiTConfig(4, 8, size=8, patch=2, depth=2, hidden_size=32, heads=4)
DIFFUSERS = replace(SMALL, embedding="sin-cos", mlp_norm_eps=1e-5)


@cache
def facts(name: str) -> dict[str, Any]:
    return json.loads((Path(ROOT or "") / "published_keys" / f"{name}.json").read_text())


def published() -> list[str]:
    files = (Path(ROOT) / "published_keys").glob("DiT__*.json") if ROOT else ()
    return sorted(file.stem for file in files)


def state(config: DiTConfig, classes: int = 10) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    network = {key: 0.1 * torch.randn(tensor.shape) for key, tensor in DiT(config).state_dict().items()}
    network["positions"] = DiT(config).state_dict()["positions"]
    return network, {dit_keys.OUR_LABEL: torch.randn(classes + 1, config.vector_dim)}


def shapes_of(theirs: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in theirs.items()}


def model_of(config: DiTConfig, prediction: str = "eps") -> Model:
    kept = ("patch", "depth", "hidden_size", "heads", "embedding", "embedders", "mlp_norm_eps")
    network = {name: getattr(config, name) for name in kept}
    plain = {
        "shape": (4, 8, 8),
        "network": {"kind": "dit", **network},
        "process": {"kind": "discrete-vp", "beta_schedule": "linear", "timesteps": 1000},
        "prediction": prediction,
        "variance": "learned-range",
        "condition": [{"kind": "class-label", "num_classes": 10, "drop_prob": 0.1, "std": 0.02}],
    }
    model = build(validate(ModelConfig, plain, "test"))
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


# -- the published files ------------------------------------------------------------------------------------------


@needs_facts
def test_all_thirteen_were_found():
    assert len(published()) == 13


@needs_facts
@pytest.mark.parametrize("file", published())
def test_a_published_file_has_its_keys_shapes_and_count(file):
    fact = facts(file)
    made = fact["config"]
    config = get_preset(made["factory"].lower().replace("/", "-"), size=made["input_size"])
    theirs = dit_keys.published_shapes(config, "dit", made["num_classes"] + 1)
    assert {key: list(tensor.shape) for key, tensor in theirs.items()} == fact["keys"]
    counted = json.loads((Path(ROOT or "") / "param_counts.json").read_text())[fact["name"]]
    assert sum(tensor.numel() for tensor in theirs.values()) == fact["params"] == counted["state_dict_elements"]
    assert dit_keys.detect_layout(fact["keys"]) == "dit"
    assert dit_keys.config_from_keys(fact["keys"]) == config
    assert dit_keys.compare(fact["keys"], config).fits
    assert dit_keys.closest_named_config(fact["keys"]) == f"{config.name} for latents of {config.size}"


# -- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (SMALL, "dit"),
        (replace(SMALL, out_channels=4, patch=4, mlp_ratio=2.0), "dit"),
        (DIFFUSERS, "diffusers"),
        (replace(DIFFUSERS, embedders="per-block"), "diffusers"),
    ],
    ids=["dit", "plain", "diffusers", "untied"],
)
def test_weights_survive_the_way_there_and_back(config, layout):
    network, label = state(config)
    theirs = dit_keys.published_state_dict(network, config, label, layout)
    shapes = shapes_of(theirs)
    assert dit_keys.detect_layout(shapes) == layout
    assert dit_keys.with_untied_embeddings(theirs, dit_keys.config_from_keys(shapes, heads=4, size=8)) == config
    parts = dit_keys.convert_state_dict(theirs, config)
    assert parts.network.keys() == network.keys()
    assert all(torch.equal(parts.network[key], tensor) for key, tensor in network.items())
    assert torch.equal(parts.label[dit_keys.OUR_LABEL], label[dit_keys.OUR_LABEL])


def test_from_one_layout_to_the_other_the_numbers_stay():
    network, label = state(SMALL)
    published_file = dit_keys.published_state_dict(network, SMALL, label, "dit")
    parts = dit_keys.convert_state_dict(published_file, SMALL)
    folder = dit_keys.published_state_dict(parts.network, SMALL, parts.label, "diffusers")
    assert torch.equal(
        folder["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight"],
        published_file["t_embedder.mlp.0.weight"],
    )
    back = dit_keys.convert_state_dict(folder, DIFFUSERS)
    plain = replace(DIFFUSERS, mlp_norm_eps=1e-6)
    again = dit_keys.published_state_dict(back.network, plain, back.label, "dit")
    assert all(torch.equal(again[key], tensor) for key, tensor in published_file.items())


def test_what_a_layout_cannot_hold_is_refused():
    for changes in ({"block_type": "adaln"}, {"skips": "long"}, {"qk_norm": "rms"}):
        with pytest.raises(RecipeError, match="the layout 'diffusers' has"):
            dit_keys.key_map(replace(DIFFUSERS, **changes), "diffusers")
    with pytest.raises(RecipeError, match="the layout 'dit' has 'shared' only"):
        dit_keys.key_map(replace(DIFFUSERS, embedders="per-block"), "dit")


# -- other files --------------------------------------------------------------------------------------------------


def test_a_file_of_another_size_is_named_with_the_first_tensors_that_differ():
    with torch.device("meta"):
        large = dit_keys.published_shapes(get_preset("dit-b-4"), "dit", 1001)
    with pytest.raises(WeightsError) as caught:
        dit_keys.convert_state_dict(large, get_preset("dit-s-2"))
    text = str(caught.value)
    assert "the file is a DiT, dit-b-4 for latents of 32; the network is dit-s-2 for latents of 32" in text
    assert "blocks.0.attn.qkv.weight: (2304, 768) in the file, (1152, 384) in the network" in text
    with pytest.raises(WeightsError, match=r"extra: .*blocks\.12"):
        dit_keys.convert_state_dict(
            dit_keys.published_shapes(get_preset("dit-l-4"), "dit", 1001), get_preset("dit-b-4")
        )
    with pytest.raises(WeightsError, match="dit-xl-2 for latents of 64; the network is dit-xl-2 for latents of 32"):
        dit_keys.convert_state_dict(
            dit_keys.published_shapes(get_preset("dit-xl-2", size=64), "dit", 1001), get_preset("dit-xl-2")
        )
    tiny = shapes_of(dit_keys.published_shapes(SMALL, "dit", 11))
    assert dit_keys.closest_named_config(tiny) == "nearest to dit-s-2 for latents of 8"


def test_settings_that_keys_do_not_show_are_required():
    theirs = dit_keys.published_state_dict(*_of(SMALL), "dit")
    with pytest.raises(WeightsError, match=r"2 blocks of width 32, .* file\.heads=6"):
        dit.load(theirs)
    with pytest.raises(WeightsError, match="by its keys"):
        dit_keys.config_from_keys({"weight": (1,)})
    with pytest.raises(WeightsError, match="classes = 5: the file's table of labels has 11 rows"):
        dit.load(theirs, ModelOverrides(heads=4, classes=5))


def _of(config: DiTConfig) -> tuple[dict[str, Tensor], DiTConfig, dict[str, Tensor]]:
    network, label = state(config)
    return network, config, label


# -- models -------------------------------------------------------------------------------------------------------


def test_a_pt_file_becomes_a_model_that_is_sampled_as_published(tmp_path):
    network, config, label = _of(SMALL)
    torch.save(dit_keys.published_state_dict(network, config, label, "dit"), tmp_path / "dit.pt")
    model = dit.load(read_state(tmp_path / "dit.pt"), ModelOverrides(heads=4)).model
    assert model.config is not None
    assert model.config.network_config() == SMALL
    assert (model.sampling.sampler, model.sampling.schedule, model.sampling.guidance.channels) == (
        "ancestral",
        "250",
        3,
    )
    drawn = model.generate(cond={"label": 3}, sampling={"schedule": "2", "steps": 2}, count=2)
    assert drawn.shape == (2, 4, 8, 8)
    with pytest.raises(RecipeError, match="label 10: must be 0 to 9; nearest: 9"):
        model.generate(cond={"label": 10}, steps=2)
    assert all(torch.equal(tensor, dit.tensors_of(model)[key]) for key, tensor in read_state(
        tmp_path / "dit.pt").items())  # fmt: skip
    other = model_of(SMALL)
    dit.fill_model(other, dit.tensors_of(model))
    assert torch.equal(other.conditioners["label"].state_dict()["table.weight"], label["table.weight"])


def test_both_rows_of_labels_without_a_null():
    network, config, label = _of(SMALL)
    model = dit.load(
        dit_keys.published_state_dict(network, config, label, "dit"), ModelOverrides(heads=4, classes=11)
    ).model
    assert model.encode({"label": 10})[1] is None
    assert model.sampling.guidance.scale == 1.0


@pytest.mark.parametrize("embedders", ["shared", "per-block"])
def test_a_folder_there_and_back(tmp_path, embedders):
    model = model_of(replace(DIFFUSERS, embedders=embedders))
    dit.write_folder(model, tmp_path)
    assert dit.is_folder(tmp_path)
    back = dit.read_folder(tmp_path)
    assert back.config is not None
    assert back.config.network == model.config.network  # type: ignore[union-attr]
    assert back.config.process == model.config.process  # type: ignore[union-attr]
    mine, theirs = model.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in mine.items())
    assert dit.is_folder(tmp_path / "transformer")
    assert dit.digest(tmp_path) != dit.digest(tmp_path / "transformer")


def test_a_folder_in_parts(tmp_path):
    model = model_of(DIFFUSERS)
    dit.write_folder(model, tmp_path)
    place = tmp_path / "transformer"
    whole = read_state(place / "diffusion_pytorch_model.safetensors")
    (place / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no diffusion_pytorch_model"):
        dit.read_folder(tmp_path)
    keys = sorted(whole)
    parts = {"a.safetensors": keys[:5], "b.safetensors": keys[5:]}
    for name, some in parts.items():
        write_tensors(place / name, {key: whole[key] for key in some})
    index = {"weight_map": {key: name for name, some in parts.items() for key in some}}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    back = dit.read_folder(tmp_path)
    assert torch.equal(back.state_dict()["denoiser.network.leave.weight"], whole["proj_out_2.weight"])


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("transformer/config.json", {"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "exp"}, "known are linear, scaled_linear"),
        ("scheduler/scheduler_config.json", {"steps_offset": 2}, "with steps_offset 2"),
    ],
)
def test_settings_of_a_folder_that_ours_lacks(tmp_path, file, change, words):
    dit.write_folder(model_of(DIFFUSERS), tmp_path)
    settings = json.loads((tmp_path / file).read_text()) | change
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=words):
        dit.read_folder(tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        dit.read_folder(tmp_path)


def test_other_models_are_not_written():
    with pytest.raises(RecipeError, match="the layout 'diffusers' has"):
        dit.tensors_of(model_of_block_type("adaln"), "diffusers")


def model_of_block_type(block_type: str) -> Model:
    config = model_of(SMALL).config
    assert config is not None
    plain = config.model_dump(mode="json")
    plain["network"]["block_type"] = block_type
    return build(validate(ModelConfig, plain, "test"))


# -- diffusers itself ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_diffusers_pipeline_with_random_weights_gives_equal_latents(tmp_path):
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    from unveil.core import samplers

    torch.manual_seed(0)
    theirs: Any = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae: Any = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipeline: Any = DiTPipeline(theirs.eval(), vae, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    model = dit.read_folder(tmp_path).requires_grad_(False)

    x, t, label = torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 999]), torch.tensor([1, 5, 1000])
    table: Any = model.conditioners["label"]
    with torch.no_grad():
        found = model.denoiser.network(x, t.float(), Condition(vector=table.table(label)))
        assert (theirs(x, t, label).sample - found).abs().max() < 1e-5

    images = pipeline(
        [3, 7], generator=torch.Generator().manual_seed(1), num_inference_steps=10, output_type="pt", return_dict=False
    )[0]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    how = model.sampling.changed({"steps": 10})
    with torch.no_grad():
        step = how.guidance.guide(
            *(model.denoise_fn(one) for one in model.encode({"label": [3, 7]}) if one is not None)
        )
        latents = samplers.run(how.plan(how.levels(model.process), model.variance), step, noise)
        ours = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert -10 * torch.log10((ours - images).square().mean()) > 60

    written = dit.tensors_of(model, "diffusers")
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())
    dit.write_folder(model, tmp_path / "again")
    reopened: Any = DiTPipeline.from_pretrained(tmp_path / "again", vae=vae)
    assert torch.equal(reopened.transformer(x, t, label).sample, theirs(x, t, label).sample)
