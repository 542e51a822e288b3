"""Former names of recipe keys are read, and keys of other libraries are answered."""

from __future__ import annotations

import logging

import pytest
import yaml

from unveil.errors import RecipeError
from unveil.model import checkpoint_store, migration
from unveil.model.config import ModelConfig, SampleConfig, load_recipe, override, read_yaml, recipe_text, validate

FORMER = """
paper: a paper
data: {kind: digits}
shape: [1, 8, 8]
network: {kind: unet, channels: 16, multipliers: [1, 2], blocks: 1, modulation: add, groups: 4}
process: {kind: discrete-vp, betas: cosine, steps: 50}
train: {batch: 8, steps: 4, decay: 0.5, ema: 0.9, clip: 2.0, latents: encode}
sample: {grid: karras, clip: none, steps: 3}
small: {train.batch: 4, network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}}
"""


def test_a_recipe_with_former_names_is_read_with_one_line(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text(FORMER)
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe(path)
    assert (recipe.reference, recipe.train.batch_size, recipe.train.lr_decay_ratio) == ("a paper", 8, 0.5)
    assert (recipe.sample.schedule, recipe.sample.threshold, recipe.train.cache_latents) == ("karras", "none", False)
    assert recipe.smoke_test["train.batch_size"] == 4
    assert recipe.smoke_test["network"]["model_channels"] == 8
    (line,) = [record.getMessage() for record in caplog.records]
    assert "train.batch is now train.batch_size" in line
    assert "network.channels is now network.model_channels" in line


def test_a_run_folder_with_former_names_is_read_in_silence(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text(FORMER)
    with caplog.at_level(logging.WARNING):
        assert load_recipe(tmp_path).train.batch_size == 8
    assert not caplog.records


def test_an_override_with_a_former_name_takes_the_place_of_the_new_key(caplog):
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe("ddpm-digits", ["train.batch=16", "sample.grid=karras", "network.channels=16"])
    assert (recipe.train.batch_size, recipe.sample.schedule, recipe.network.model_channels) == (16, "karras", 16)
    assert len(caplog.records) == 3


def test_a_key_by_both_names_is_refused():
    with pytest.raises(RecipeError, match=r"train\.batch is the former name of batch_size, and both are given"):
        migration.migrate({"train": {"batch": 1, "batch_size": 2}})


def test_what_is_new_stays_as_it_is():
    for name in ("ddpm-digits", "playground-video", "transformer-tasks", "ae-fashion", "classifier-fashion"):
        raw = read_yaml(recipe_text(name), name)
        assert migration.migrate(raw) == raw


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate: unknown key; here it is lr"),
        ("train.num_epochs=3", "here it is train.steps, which counts optimiser steps"),
        ("train.gradient_accumulation_steps=2", "here it is grad_accum_steps"),
        ("train.mixed_precision=bf16", "here it is precision"),
        ("process.num_train_timesteps=1000", "here it is timesteps"),
        ("learning_rate=1e-3", "learning_rate: unknown key; here it is train.lr"),
        ("image_size=64", "here it is data.size"),
        ("sample.timestep_respacing=250", "here it is schedule"),
    ],
)
def test_keys_of_other_libraries_are_answered(given: str, message: str):
    with pytest.raises(RecipeError) as found:
        load_recipe("ddpm-digits", [given])
    assert message in str(found.value)


def test_a_recipe_of_ones_own_needs_no_reference(tmp_path):
    raw = yaml.safe_load(recipe_text("ddpm-digits"))
    del raw["reference"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    assert load_recipe(tmp_path / "mine.yaml").reference == ""


def test_flat_settings_of_sampling_have_former_names():
    before = {"grid": "karras", "clip": "none", "scale": 3.0, "schedule": "linear", "interval": [0.1, 0.9]}
    now = SampleConfig().changed(before)
    assert (now.schedule, now.threshold, now.guidance.scale, now.guidance.schedule) == ("karras", "none", 3.0, "linear")
    assert SampleConfig().changed(now.flat()) == now
    assert migration.migrate_settings(now.flat()) == now.flat()


def test_a_model_description_with_former_names_is_read():
    raw = yaml.safe_load(FORMER)
    described = {name: raw[name] for name in ("shape", "network", "process", "sample")}
    config = validate(ModelConfig, described, "model.yaml")
    assert config.network_config().model_channels == 16
    assert config.process.timesteps == 50


def test_an_override_reaches_into_lists():
    raw = {"condition": [{"kind": "label", "classes": 3}]}
    override(raw, "condition.0.std=0.5")
    assert raw["condition"][0]["std"] == 0.5


def test_a_former_identity_of_a_bundled_model_is_known():
    folders = checkpoint_store._former_identities()
    assert folders
    for own, former in folders.items():
        assert checkpoint_store.is_same(own, own)
        assert all(checkpoint_store.is_same(one, own) and not checkpoint_store.is_same(own, one) for one in former)
