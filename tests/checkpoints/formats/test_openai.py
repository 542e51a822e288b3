"""Released files: exact keys and shapes, the configuration that they do not hold, and questions about unknown ones."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.checkpoints import loader, openai_keys
from unveil.checkpoints.formats import openai
from unveil.checkpoints.formats.openai import FILES, classifier_from_flags, release_from_flags
from unveil.checkpoints.overrides import ModelOverrides
from unveil.core import preconditioning
from unveil.core.process import DiscreteVP
from unveil.errors import RecipeError, WeightsError
from unveil.model.config import ModelConfig, dump, read_yaml, validate
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition

ROOT = os.environ.get("UNVEIL_GOLDEN")
needs_facts = pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded facts")
FAMILIES = ("improved-", "guided-", "consistency_")
TINY = {
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
OVERRIDES = ModelOverrides(
    size=16, head_channels=16, attention_order="heads-first", beta_schedule="cosine", timesteps=50,
    rescale_timesteps=None,
    variance="learned-range",
)  # fmt: skip
CLASSIFIER_OVERRIDES = ModelOverrides(
    head_channels=16,
    attention_order="heads-first",
    beta_schedule="cosine",
    timesteps=50,
    rescale_timesteps=None,
    num_res_blocks=1,
)


@cache
def facts(name: str) -> dict[str, Any]:
    return json.loads((Path(ROOT or "") / "published_keys" / f"{name}.json").read_text())


def names() -> list[str]:
    files = (Path(ROOT) / "published_keys").glob("*.json") if ROOT else ()
    found = sorted(f.stem for f in files if f.name.startswith(FAMILIES))
    return [name for name in found if "README" not in name]  # flags without a file


def flags_of(name: str) -> dict[str, Any]:
    config = facts(name)["config"]
    return config.get("resolved", config)


def on_meta(config: UNetConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return UNet(config).state_dict()


@needs_facts
def test_all_released_networks_were_found():
    assert len(names()) == 21
    listed = {file for files in FILES for file in files}
    known = {name.split("__")[1].split("_and_")[0] for name in names() if not name.startswith("consistency")}
    assert known <= listed


@needs_facts
@pytest.mark.parametrize("name", names())
def test_a_released_network_has_its_keys_shapes_and_count(name):
    fact, flags = facts(name), flags_of(name)
    if "classifier_depth" in flags:
        config = classifier_from_flags(flags)
        with torch.device("meta"):
            theirs = openai_keys.published_classifier_state_dict(NoisyClassifier(config).state_dict(), config)
    else:
        config = release_from_flags(flags)
        rows = torch.empty(1000, config.vector_dim, device="meta")
        label = {"table.weight": rows} if flags["class_cond"] else None
        theirs = openai_keys.published_state_dict(on_meta(config), config, label, ones=2 if "sigma_max" in flags else 1)
    assert {key: list(tensor.shape) for key, tensor in theirs.items()} == fact["keys"]
    assert sum(tensor.numel() for tensor in theirs.values()) == fact["params"]


@needs_facts
@pytest.mark.parametrize("name", names())
def test_a_released_file_is_known_by_its_keys_and_shapes(name):
    flags, found = flags_of(name), openai.match_release(facts(name)["keys"])
    if not name.startswith("consistency"):
        assert name.split("__")[1].split("_and_")[0] in found.files
    assert found.size == flags.get("large_size", flags.get("image_size"))
    if "classifier_depth" in flags:
        assert found.network == classifier_from_flags(flags)
        assert found.classes == 1000
        # a classifier gets the index of the diffusion model of its size
        assert found.process["beta_schedule"] == ("cosine" if found.size == 64 else "linear-scaled")
        return
    heads = ("heads", "heads_up", "head_channels", "attention_order", "time_scale_shift", "resample")
    for field in heads:
        assert getattr(found.network, field) == getattr(release_from_flags(flags), field)
    assert found.classes == (1000 if flags["class_cond"] else None)
    model = found.model_config()
    if name.startswith("consistency"):
        ends = (flags["sigma_min"], flags["sigma_max"])
        assert (model.process.build().sigma_min, model.process.build().sigma_max) == ends
        assert model.build_prediction(model.process.build()) == preconditioning.ConsistencyPreconditioning(
            0.5, flags["sigma_min"]
        )
        return
    process = model.process.build()
    assert isinstance(process, DiscreteVP)
    assert process.steps == flags["diffusion_steps"]
    ends = {"cosine": (None, 0.999), "linear": (0.1 / process.steps, 20 / process.steps)}[flags["noise_schedule"]]
    assert process.betas[-1].item() == pytest.approx(ends[1])
    assert ends[0] is None or process.betas[0].item() == pytest.approx(ends[0])
    assert process.timestep(process.at(1.0)) == (process.steps - 1) * (
        1000 / process.steps if flags["rescale_timesteps"] else 1
    )
    assert (model.variance, model.prediction) == ("learned-range", "eps")


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "schedule"),
    [
        ("64x64_diffusion", "ancestral", 250, "250"),
        ("128_512_upsampler", "ancestral", 250, "250"),
        ("cifar10_uncond_50M_500K", "ancestral", 4000, "4000"),
        ("lsun_uncond_100M_1200K_bs128", "ancestral", 1000, "1000"),
        ("cd_imagenet64_lpips", "consistency", 1, "uniform-log-snr"),
    ],
)
def test_a_released_file_is_sampled_as_its_authors_do(name, sampler, steps, schedule):
    sample = next(openai.release(files) for files in FILES if name in files).model_config().sample
    assert (sample.sampler, sample.steps, sample.schedule, sample.threshold) == (sampler, steps, schedule, "static")
    fewer = sample.changed({"steps": 2})
    process = next(openai.release(files) for files in FILES if name in files).model_config().process.build()
    assert len(fewer.levels(process)) == 3


@needs_facts
def test_what_a_released_file_says_can_be_read_back_as_a_recipe():
    for name in ("guided-diffusion__64_256_upsampler", "guided-diffusion__512x512_diffusion"):
        config = openai.match_release(facts(name)["keys"]).model_config()
        assert validate(ModelConfig, read_yaml(dump(config), "it"), "it") == config
    upsampler = openai.match_release(facts("guided-diffusion__64_256_upsampler")["keys"]).model_config()
    assert [one.kind for one in upsampler.condition] == ["class-label", "concat"]
    assert upsampler.concat_channels == 3


@needs_facts
def test_one_tensor_of_another_shape_is_no_released_file():
    keys = dict(facts("guided-diffusion__64x64_classifier")["keys"])
    assert openai.released(keys) is not None
    keys["out.2.c_proj.bias"] = [999]
    assert openai.released(keys) is None
    del keys["out.2.c_proj.bias"]
    assert openai.released(keys) is None


@needs_facts
def test_overrides_go_before_the_table():
    keys = facts("consistency_models__imagenet64")["keys"]
    overrides = validate(ModelOverrides, {"prediction": {"kind": "edm", "index_scale": 1000}, "heads": 6}, "overrides")
    teacher = openai.match_release(keys, overrides)
    model = teacher.model_config()
    assert model.build_prediction(model.process.build()) == preconditioning.EDMPreconditioning(index_scale=1000)
    assert (model.sample.sampler, model.sample.steps, model.sample.schedule) == ("heun", 40, "karras")
    assert isinstance(teacher.network, UNetConfig)
    assert (teacher.network.heads, teacher.network.head_channels) == (6, None)


# ---------------------------------------------------------------------- files that are not in the table


def tiny() -> tuple[dict[str, Tensor], UNetConfig]:
    config = openai_keys.config_from_arguments(TINY)
    torch.manual_seed(0)
    network = {key: 0.1 * torch.randn_like(value) for key, value in UNet(config).state_dict().items()}
    return openai_keys.published_state_dict(
        network, config, {"table.weight": torch.randn(5, config.vector_dim)}
    ), config


def tiny_classifier(pool: str = "attention") -> tuple[dict[str, Tensor], NoisyClassifierConfig]:
    config = openai_keys.classifier_config_from_arguments(TINY | {"image_size": 16, "pool": pool})
    torch.manual_seed(0)
    network = {key: 0.1 * torch.randn_like(value) for key, value in NoisyClassifier(config).state_dict().items()}
    return openai_keys.published_classifier_state_dict(network, config), config


def shapes(theirs: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in theirs.items()}


def test_an_unknown_file_asks_for_each_field_by_name():
    theirs, _ = tiny()
    message = (
        "give size, heads or head_channels, attention_order, beta_schedule, timesteps, rescale_timesteps, variance,"
    )
    with pytest.raises(WeightsError, match=message):
        openai.match_release(shapes(theirs))
    for name in ("size", "attention_order", "beta_schedule", "timesteps", "rescale_timesteps", "variance"):
        overrides = ModelOverrides(**{key: getattr(OVERRIDES, key) for key in OVERRIDES.model_fields_set - {name}})
        with pytest.raises(WeightsError, match=rf"do not say everything: give {name}, "):
            openai.match_release(shapes(theirs), overrides)
    with pytest.raises(RecipeError, match=r"variance = 'learnt-range': must be one of .*; nearest: 'learned-range'"):
        validate(ModelOverrides, {"variance": "learnt-range"}, "overrides")


def test_an_unknown_classifier_asks_for_its_own():
    for pool, size in {"attention": "", "spatial": "size, "}.items():
        theirs, _ = tiny_classifier(pool)
        message = f"give {size}heads or head_channels, attention_order, beta_schedule, timesteps, "
        message += "rescale_timesteps, num_res_blocks,"
        with pytest.raises(WeightsError, match=message):
            openai.match_release(shapes(theirs))


def test_a_file_of_another_family_needs_no_hints():
    with pytest.raises(
        WeightsError,
        match=r"the closest is a U-Net of diffusers, of which is missing: its time",
    ):
        loader.load_state({"conv_in.weight": torch.zeros(64, 3, 3, 3)})


def test_a_model_of_an_unknown_file_computes_what_its_network_does():
    theirs, config = tiny()
    model = openai.load({key: value.half() for key, value in theirs.items()}, OVERRIDES).model
    assert model.config is not None
    assert model.shape == (3, 16, 16)
    network = UNet(config).eval()
    network.load_state_dict(openai_keys.convert_state_dict(theirs, config).network)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 40.0])
    condition, _ = model.encode({"label": [4, 1]})
    assert isinstance(condition, Condition)
    vector = theirs["label_emb.weight"][[4, 1]]
    with torch.no_grad():
        got, want = model.denoiser.network(x, t, condition), network(x, t, Condition(vector=vector))
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    sample = model.generate(count=1, seed=0, steps=2, cond={"label": 3})
    assert sample.shape == (1, 3, 16, 16)
    assert torch.isfinite(sample).all()


def test_an_unknown_file_is_sampled_in_250_calls_or_the_whole_chain():
    shaped = shapes(tiny()[0])
    short = openai.match_release(shaped, OVERRIDES.model_copy(update={"timesteps": 40})).model_config()
    assert (short.sample.sampler, short.sample.steps) == ("ancestral", 40)
    long = openai.match_release(shaped, OVERRIDES.model_copy(update={"timesteps": 4000})).model_config()
    assert long.sample.steps == 250
    overrides = validate(
        ModelOverrides, OVERRIDES.model_dump(exclude_unset=True) | {"process": {"kind": "cosine-vp"}}, "overrides"
    )
    assert openai.match_release(shaped, overrides).model_config().process.kind == "cosine-vp"


def test_an_upsampler_takes_the_small_image():
    config = openai_keys.upsampler(openai_keys.config_from_arguments(TINY))
    torch.manual_seed(0)
    model = openai.load(openai_keys.published_state_dict(UNet(config).state_dict(), config), OVERRIDES).model
    low = torch.rand(1, 3, 4, 4)
    assert model.generate(count=1, seed=0, steps=1, cond={openai.LOW_RES_KEY: low}).shape == (1, 3, 16, 16)


def test_a_classifier_of_an_unknown_file_computes_what_its_network_does():
    theirs, config = tiny_classifier()
    classifier = openai.classifier_of(theirs, CLASSIFIER_OVERRIDES)
    network = NoisyClassifier(config).eval()
    network.load_state_dict(openai_keys.convert_classifier_state_dict(theirs, config))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 40.0])
    with torch.no_grad():
        assert torch.equal(classifier(x, t), network(x, t))


def test_the_one_is_not_taken_for_the_other():
    with pytest.raises(WeightsError, match="is a noisy classifier, which guides a model"):
        openai.load(tiny_classifier()[0], CLASSIFIER_OVERRIDES)
    with pytest.raises(WeightsError, match="is a diffusion model, not a noisy classifier"):
        openai.classifier_of(tiny()[0], OVERRIDES)


def test_flags_of_a_size_without_multipliers_are_refused():
    with pytest.raises(RecipeError, match="image_size 48: must be one of 512, 256, 128, 64, 32"):
        release_from_flags({"image_size": 48})
    with pytest.raises(RecipeError, match="image_size 48: must be one of"):
        classifier_from_flags({"image_size": 48})
