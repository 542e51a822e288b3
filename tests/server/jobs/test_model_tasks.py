"""Jobs that inspect, merge, convert and use models: requests name entries of the catalog, and results are files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from tests.server.jobs.conftest import done
from unveil.checkpoints import lora as lora_files
from unveil.checkpoints import lora_export
from unveil.checkpoints.formats.lora import NAMINGS
from unveil.errors import RecipeError
from unveil.model import build
from unveil.model.config import Recipe, load_recipe
from unveil.model.seq2seq_folder import sequence_cards
from unveil.nn.lora import LoraConfig, LoraDelta, init_lora
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.outputs import LOG, RESULT
from unveil.server.jobs.task_job import parse_request
from unveil.tasks.lora import LoraConvert

CHANGES = ["network.model_channels=16", "network.groups=4", "process.timesteps=50", "sample.steps=4"]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with two models of one small network, `first` and `second`."""
    monkeypatch.setenv("UNVEIL_MODELS", str(tmp_path / "models"))
    recipe = load_recipe("ddpm-digits", CHANGES)
    assert isinstance(recipe, Recipe)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        build(recipe.model).save(tmp_path / "models" / "checkpoints" / name)
    return tmp_path / "models"


def result(results: Any, job: Any) -> dict[str, Any]:
    return json.loads(results.file(job.id, RESULT).read_text("utf-8"))


@pytest.mark.slow
def test_models_are_merged_under_a_new_name(queue, worker, models: Path):
    request = {"models": ["first", "second"], "merge_weights": [3, 1], "output": "mixed"}
    job = done(queue, worker, "merge", **request)
    assert job.error is None
    first, second, merged = (
        unveil.load(str(models / "checkpoints" / name)).state_dict() for name in ("first", "second", "mixed")
    )
    key = next(key for key, value in merged.items() if value.ndim == 4)
    torch.testing.assert_close(merged[key], 0.75 * first[key] + 0.25 * second[key])
    again = done(queue, worker, "merge", **request)
    assert "is in the models folder already" in again.error


@pytest.mark.slow
def test_a_lora_is_converted_inspected_and_merged(queue, results, worker, models: Path):
    parts = lora_files.parts_of(unveil.load(str(models / "checkpoints" / "first")))
    torch.manual_seed(3)
    deltas = [
        LoraDelta(delta.layer, delta.down, torch.randn_like(delta.up) * 0.2, delta.alpha)
        for delta in init_lora(parts["denoiser"].network, LoraConfig(("*",), rank=2))
    ]
    lora_export.write(
        models / "loras" / "style.safetensors", lora_export.to_lora_file({"denoiser": deltas}, parts, "diffusers")
    )
    converted = done(queue, worker, "lora-convert", model="first", lora="style", output="style-kohya", format="kohya")
    assert converted.error is None
    assert (models / "loras" / "style-kohya.safetensors").is_file()
    looked = done(queue, worker, "lora-inspect", lora="style-kohya", model="first")
    assert looked.error is None
    assert (result(results, looked)["naming"], result(results, looked)["unmatched"]) == ("kohya", [])
    merged = done(queue, worker, "lora-merge", model="first", lora=[{"file": "style", "weight": 0.5}], output="worn")
    assert merged.error is None
    assert (models / "checkpoints" / "worn" / "model.yaml").is_file()


def test_results_that_are_text_are_files_of_the_job(queue, results, worker, models: Path):
    job = done(queue, worker, "inspect-model", model="first")
    assert job.error is None
    assert job.outputs == (LOG, RESULT)
    assert result(results, job)["parameters"] > 0
    assert "parameters" in results.file(job.id, LOG).read_text("utf-8")
    job = done(queue, worker, "inspect-model", model="dit-xl-2", size=64)
    assert result(results, job)["input"] == [4, 64, 64]
    samplers = result(results, done(queue, worker, "inspect-samplers"))["samplers"]
    assert {"ddim", "euler"} <= {sampler["name"] for sampler in samplers}
    assert (
        "name: ddpm-digits"
        in results.file(done(queue, worker, "recipes-show", recipe="ddpm-digits").id, LOG).read_text()
    )


def test_a_schedule_and_training_data_are_images_of_the_job(queue, worker):
    job = done(queue, worker, "inspect-schedule", source="ddpm-digits", num_images=2)
    assert (job.error, job.outputs) == (None, ("schedule.png",))
    job = done(queue, worker, "data-show", recipe="ddpm-digits", num_images=4)
    assert (job.error, job.outputs) == (None, ("data.png",))


@pytest.mark.slow
def test_texts_are_translated_by_a_run(queue, results, worker):
    settings = {"train.steps": 2, "data.count": 60, "data.num_val": 8, "network.hidden_size": 16, "network.heads": 2}
    settings |= {"network.depth": 1, "network.max_length": 40, "train.batch_size": 8}
    job = done(queue, worker, "train", recipe="transformer-translate", run_name="translator", settings=settings)
    assert job.error is None
    catalog = Catalog(queue.folder / "runs")
    assert len(sequence_cards(catalog.sequence("translator").path)) == 1
    job = done(queue, worker, "translate", model="translator", texts=["a small red ring", "a pink ring"], num_beams=1)
    assert job.error is None
    assert [text["source"] for text in result(results, job)["texts"]] == ["a small red ring", "a pink ring"]
    assert any("no token for 'pink'" in message for message in job.messages)


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("merge", {"models": ["a", "b"], "output": "../c"}, "must be a name of letters"),
        ("lora-convert", {"model": "a", "lora": "b", "output": "/tmp/c"}, "must be a name of letters"),
        ("lora-convert", {"model": "a", "lora": "b", "output": "c", "format": "koyha"}, "nearest: 'kohya'"),
        ("translate", {"model": "a", "file": "/etc/passwd"}, "a path of the server's machine"),
        ("translate", {"model": "a", "texts": ["b"], "save_attention": "/tmp/maps"}, "a path of the server's machine"),
        ("data-show", {"recipe": "/etc/recipe.yaml"}, "not a bundled recipe"),
        ("inspect-schedule", {"source": "ddpm-digits", "settings": {"data.path": "x"}}, "may not be set here"),
    ],
)
def test_paths_of_the_machine_are_refused(kind: str, request_: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        parse_request(kind, request_)


@pytest.mark.parametrize("name", ["dit-secret", "../models/checkpoints/first", "/etc/passwd"])
def test_only_models_of_the_catalog_are_inspected(queue, worker, models: Path, monkeypatch, name: str):
    monkeypatch.chdir(models)
    (models / "dit-secret").write_text("secret")
    job = done(queue, worker, "inspect-model", model=name)
    assert job.state == "failed"
    assert "no model has this name" in job.error


def test_every_format_of_loras_can_be_requested():
    assert set(LoraConvert.model_json_schema()["properties"]["format"]["enum"]) == set(NAMINGS)
