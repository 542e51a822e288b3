"""Files of the time before the renames are read, and give what they gave; see README.md."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.former import records
from tests.former.command import FILES, run_end, today, unveil
from tests.former.numbers import VIDEO_SAMPLING
from tests.former.outputs import tensors, texts
from tests.former.pixels import mean_difference, pixels_sha256
from unveil.evaluate import Report, compare
from unveil.model import migration
from unveil.tasks.task import TaskContext

OUTPUTS = json.loads((FILES / "outputs.json").read_text())
INDEX = json.loads((FILES / "index.json").read_text())
FIRST, HERE = records.first(), records.here()
PIXEL_TOLERANCE = 0.1  # mean of 255 levels; two processors differ by 0.003 where an encoder rounds otherwise
# A processor without instructions for bf16 rounds after other operations; two of them differ by 0.16.
BF16_TOLERANCE = 0.1 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.5
NOISE_TOLERANCE = 1e-5  # mean of noise that was found by inversion; two processors differ by 2e-7
RECIPES = sorted(str(path.relative_to(FILES)) for path in FILES.glob("recipes/*/*.yaml"))
BUNDLED = [path for path in RECIPES if "/shipped/" in path]
VIDEO_MODELS = ("playground-video", "playground-world")
GALLERY = sorted(str(path.relative_to(FILES)) for path in FILES.glob("service/made/*/seed*.png"))


@pytest.fixture(scope="module")
def given(files: Path) -> dict[str, torch.Tensor]:
    return tensors(files)


@pytest.mark.parametrize("name", sorted(records.first_outputs()))
def test_a_model_gives_the_numbers_that_it_gave(given, name):
    assert torch.allclose(given[name], records.first_outputs()[name], rtol=1e-5, atol=1e-5)
    assert HERE is None or torch.equal(given[name], records.outputs_here()[name])


def test_a_captioner_and_a_sequence_model_write_what_they_wrote(files):
    written = texts(files)
    assert len(written["captions"]) == len(OUTPUTS["captions"])
    assert HERE is None or written == HERE["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stopped", "stopped-captioner"])
def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(files, name):
    run = f"runs/{name}"
    shutil.copy(files / run / "recipe.yaml", files / f"{name}.yaml")
    unveil("train", run, "--quiet", folder=files)
    unveil("train", f"{name}.yaml", "--output-dir", f"whole/{name}", "--quiet", folder=files)
    resumed, whole = run_end(files / run), run_end(files / "whole" / name)
    former = losses_of(FIRST["ends"][name])
    assert losses_of(resumed) == pytest.approx(former, rel=1e-4)
    assert losses_of(whole) == pytest.approx(former, rel=1e-4)
    if HERE is not None:  # the first half of `resumed` is of another CPU, so the two ends differ in the last bits
        for end, recorded in ((resumed, HERE["resumed"][name]), (whole, HERE["ends"][name])):
            assert sorted(end["weights"].values()) == sorted(recorded["weights"].values())
            assert end["losses"] == recorded["losses"]


def losses_of(end: dict[str, Any]) -> list[float]:
    return [float.fromhex(loss) for _, loss in end["losses"]]


@pytest.fixture
def former_defaults(monkeypatch):
    """The bundled video models sample by default as they did then, where no metadata state how."""
    opened = TaskContext.open

    def as_then(self: TaskContext, options: Any, **how: Any) -> Any:
        model, source = opened(self, options, **how)
        if source.name in VIDEO_MODELS and not how.get("recorded"):
            model.sampling = model.sampling.changed(VIDEO_SAMPLING)
        return model, source

    monkeypatch.setattr(TaskContext, "open", as_then)


@pytest.mark.parametrize("entry", [one for one in INDEX if one["regenerates"]], ids=lambda one: one["file"])
def test_an_image_or_a_video_is_made_again(files, entry, former_defaults):
    assert HERE is None or pixels_sha256(files / entry["file"]) == entry["pixels"]
    again = files / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    unveil(*today(entry["again"]), folder=files)
    made = again / entry["file"].rsplit("/", 1)[1]
    tolerance = NOISE_TOLERANCE if made.suffix == ".safetensors" else PIXEL_TOLERANCE
    tolerance = BF16_TOLERANCE if made.stem == "bfloat16" else tolerance
    assert mean_difference(made, files / entry["file"]) < tolerance
    assert HERE is None or pixels_sha256(made) == HERE["pixels"][entry["file"]]


@pytest.mark.parametrize("file", GALLERY)
def test_an_image_of_the_gallery_is_made_again(files, file):
    out = files / "from-gallery" / Path(file).name
    out.parent.mkdir(exist_ok=True)
    unveil("sample", "--from-metadata", file, "--out", out, "--force", folder=files)
    assert mean_difference(out, files / file) < PIXEL_TOLERANCE
    assert HERE is None or pixels_sha256(out) == HERE["gallery"][file]


@pytest.mark.parametrize("model", sorted(path.name for path in (FILES / "models").iterdir()))
def test_a_model_folder_is_inspected(files, model):
    assert unveil("inspect", "model", f"models/{model}", "--json", folder=files)


@pytest.mark.parametrize("lora", ["additions/lora.safetensors", "additions/kohya.safetensors", "runs/lora"])
def test_a_lora_is_inspected(files, lora):
    assert unveil("lora", "inspect", lora, "--model", "models/digits", "--json", folder=files)


# ---------------------------------------------------------------------- recipes


def numbers(value: Any) -> Counter[float]:
    """How often each number occurs in nested lists and maps, whatever the keys are."""
    if isinstance(value, dict):
        return sum((numbers(one) for one in value.values()), Counter())
    if isinstance(value, list):
        return sum((numbers(one) for one in value), Counter())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Counter([float(value)] if is_number else [])


def resolved(files: Path, recipe: str) -> dict[str, Any]:
    return json.loads(unveil("train", recipe, "--print-config", "--json", folder=files))


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path not in BUNDLED])
def test_a_recipe_is_read_with_all_its_numbers(files, recipe):
    written = yaml.safe_load((files / recipe).read_text())
    missing = numbers(written) - numbers(resolved(files, recipe))
    assert not missing


@pytest.mark.parametrize("recipe", BUNDLED)
def test_a_copy_of_a_bundled_recipe_equals_the_bundled_recipe(files, recipe):
    copy, name = resolved(files, recipe), Path(recipe).stem
    bundled = resolved(files, migration.RECIPES.get(name, name))
    commands = copy.pop("command"), bundled.pop("command")  # texts, in the names of their time
    assert copy.pop("claim")  # likewise
    assert bundled.pop("claim")
    process = copy.get("process") or {}
    if process.get("kind") == "sqrt-size-shifted":  # its default sampler was chosen again, by measurement
        assert copy["sample"].pop("sampler") == "euler-time"
        assert bundled["sample"].pop("sampler") == "ddim"
    if name == "video-clips":  # its videos are used whole now, without a stride
        for part, key in (("data", "stride"), ("smoke_test", "data.stride")):
            assert copy[part].pop(key) in (8, 16)
            bundled[part].pop(key, None)
    if name in migration.RECIPES:
        assert copy.pop("name") != bundled.pop("name")
        assert commands[0] != commands[1]
    assert copy == bundled


# ---------------------------------------------------------------------- reports


def test_two_reports_compare_as_they_did(files):
    first, second = (Report.load(files / "reports" / name) for name in ("two-steps", "three-steps"))
    changes = compare(first, second, varying=["sampling.steps"])
    expected = json.loads((FILES / "reports/compared.json").read_text())
    assert [list(change)[1:] for change in changes] == [change[1:] for change in expected]


@pytest.mark.parametrize("name", ["two-steps", "three-steps", "autoencoder", "captioner", "video"])
def test_a_report_is_read(files, name):
    stored = json.loads((FILES / "reports" / name / "report.json").read_text())
    report = Report.load(files / "reports" / name)
    assert numbers(json.loads(json.dumps(report.results))) == numbers(stored["results"])
    assert report.protocol_sha256 == stored["protocol_sha256"]  # that of the stored text, whatever its keys are


@pytest.mark.slow
def test_a_report_of_today_compares_with_one_of_then(files):
    words = ("--recipe", "ddpm-digits", "-n", 20, "--set", "evaluate.floor_splits=2", "--set", "sample.steps=2")
    unveil("evaluate", "ddpm-digits", *words, "--out", "today", "--quiet", folder=files)
    changes = compare(Report.load(files / "reports" / "two-steps"), Report.load(files / "today"))
    values = [change.second for change in changes]
    assert values == pytest.approx(FIRST["report"], rel=1e-5)
    assert HERE is None or values == HERE["report"]
