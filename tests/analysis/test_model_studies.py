"""`unveil analyze`: convergence orders on an exactly known model, pages, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unveil.analysis import samplers, task_run
from unveil.analysis.samplers import DISTANCES, SamplerStudySettings, fitted_order, study_samplers
from unveil.cli.commands import run
from unveil.core import prediction
from unveil.core.denoiser import Denoiser
from unveil.core.process import CosineVP, LinearVP, Process
from unveil.core.samplers import sampler_specs
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import RecipeError
from unveil.model import Model

SHAPE = (1, 4, 4)


class Known(nn.Module):
    """The exact denoiser of a mixture of two images; the timestep is the index of the noise level."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        means = torch.stack([torch.full(SHAPE, -0.1), torch.linspace(-0.2, 0.2, 16).reshape(SHAPE)])
        self.mixture = Mixture([0.4, 0.6], means, [0.3, 0.2])  # no gap, so that no path is near a watershed

    def forward(self, x: Tensor, index: Tensor, condition: object = None) -> Tensor:
        return self.mixture(x, self.process.at(index[0].item() / 1000)).x0


def model(process: Process) -> Model:
    return Model(Denoiser(Known(process), process, prediction=prediction.x0), SHAPE)


ONLY = ("ddim", "heun", "dpmpp-2m", "euler-ancestral", "pc-ancestral", "consistency")


@pytest.fixture(scope="module")
def found() -> samplers.SamplerStudy:
    stages: list[str] = []
    result = study_samplers(
        model(LinearVP()), SamplerStudySettings((16, 32, 64), count=8, only=ONLY, fine=6), stages.append
    )
    assert stages == ["fine solve", *ONLY]
    return result


def test_orders_are_met_on_a_known_model(found: samplers.SamplerStudy):
    order = {one.name: one.order for one in found.measurements}
    assert order["ddim"] == pytest.approx(1, abs=0.25)
    assert order["heun"] is not None
    assert order["heun"] > 1.6
    assert order["dpmpp-2m"] is not None
    assert order["dpmpp-2m"] > 1.6


def test_each_sampler_is_measured_as_it_can_be(found: samplers.SamplerStudy):
    kinds = {one.name: one.kind for one in found.measurements}
    assert kinds == {
        "ddim": "solution",
        "heun": "solution",
        "dpmpp-2m": "solution",
        "euler-ancestral": "path",
        "pc-ancestral": "distribution",
    }
    path = next(one for one in found.measurements if one.name == "euler-ancestral")
    errors = [point.error for point in path.points]
    assert errors[0] > errors[1] > errors[2]
    assert "consistency function" in found.refused["consistency"]


def test_no_sampler_exceeds_the_requested_calls(found: samplers.SamplerStudy):
    for one in found.measurements:
        for point in one.points:
            assert point.calls <= point.requested < point.calls + math.ceil(sampler_specs()[one.name].calls or 1)
        assert one.call_seconds > 0
        assert one.overhead_seconds >= 0


def test_what_a_process_does_not_allow_is_listed_with_its_error():
    only = ("ddim", "lms")
    study = study_samplers(model(CosineVP()), SamplerStudySettings((4, 8), count=2, only=only))
    assert study.schedule == "uniform"  # karras has no noisy end there
    assert [one.name for one in study.measurements] == ["ddim"]
    assert study.refused["lms"].startswith("RecipeError: ")
    assert "alpha" in study.refused["lms"]
    with pytest.raises(RecipeError, match="reaches alpha = 0"):
        study_samplers(model(CosineVP()), SamplerStudySettings((4, 8), count=2, schedule="karras", only=only))


def test_a_sampler_that_leaves_the_finite_numbers_is_listed(monkeypatch: pytest.MonkeyPatch):
    whole = samplers.run
    calls = iter(range(100))

    def broken(plan, step, x, **rest):
        # the two fine solves come first
        return whole(plan, step, x, **rest) * (float("nan") if next(calls) > 1 else 1.0)

    monkeypatch.setattr(samplers, "run", broken)
    study = study_samplers(model(LinearVP()), SamplerStudySettings((4,), count=2, only=("ddim",)))
    assert study.refused == {"ddim": "NonFinite: values are not finite after 4 function evaluations"}


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_fitted_order_of_a_known_error(power: int):
    points = [(n, 3.0 * n**-power) for n in (5, 10, 20, 40)]
    assert fitted_order(points) == pytest.approx(power)
    assert fitted_order([(5, 1.0)]) is None
    assert fitted_order([(5, 1e-7), (10, 1e-8), (20, 1.0)]) is None  # rounding says nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calls": (10, 5)}, "rising numbers"),
        ({"calls": (0, 5)}, "rising numbers"),
        ({"count": 1}, "at least 2 samples"),
        ({"only": ("heunn",)}, "nearest: 'heun'"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        SamplerStudySettings(**settings)


# ---------------------------------------------------------------------- commands


@pytest.mark.slow
def test_the_samplers_of_a_bundled_model_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    only = [word for name in ("ddim", "pc-ancestral", "consistency") for word in ("--only", name)]
    command = ["analyze", "samplers", "ddpm-digits", "--calls", "3,6", "-n", "2", *only, "--out", str(tmp_path)]
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "samplers.json").read_text())
    assert stored == {key: value for key, value in record.items() if key != "page"}
    assert [one["name"] for one in stored["samplers"]] == ["ddim", "pc-ancestral"]
    assert stored["settings"]["clip"] == "static"
    page = (tmp_path / "samplers.html").read_text()
    for words in ("Samples at 6 NFE", "consistency function", "fitted", DISTANCES["solution"][1:]):
        assert words in page
    assert page.count("data:image/png;base64,") == 2 + 3  # two charts, the fine solve and two samplers
    assert 'src="http' not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samplers.html", "samplers.json"]
    assert run(command) == 2
    assert "not overwritten" in capsys.readouterr().err


def test_the_guidance_scales_of_a_bundled_model_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sets = [w for change in ("evaluate.samples=70", "sample.steps=3") for w in ("--set", change)]
    assert run(["analyze", "guidance", "ddpm-digits", "--scales", "1,4", *sets, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "scale 4, read as their class" in output
    stored = json.loads((tmp_path / "guidance.json").read_text())
    assert [row["scale"] for row in stored["scales"]] == [1, 4]
    first, last = stored["scales"]
    assert first["recall"]["value"] > last["recall"]["value"]
    assert first["protocol_sha256"] != last["protocol_sha256"]  # the scale is a part of it
    page = (tmp_path / "guidance.html").read_text()
    assert "Fidelity against diversity" in page
    assert page.count("data:image/png;base64,") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samplers", "ddpm-digits", "--calls", "5;10"], "must be numbers separated by commas"),
        (["samplers", "ddpm-digits", "--only", "heunn"], "nearest: 'heun'"),
        (["samplers", "ddpm-digits", "--schedule", "karas", "--calls", "3", "-n", "2"], "nearest: 'karras'"),
        (["samplers", "ddpm-digits", "--calls", "5,2.5"], "calls.1 = 2.5: must be a valid integer"),
        (["samplers", "ddpm-digits", "--calls", "10,5"], "give rising numbers"),
        (["samplers", "ddpm-digits", "-n", "1"], "num_samples = 1: must be greater than or equal to 2"),
        (["samplers"], "analyze samplers needs a model: unveil analyze samplers ddpm-digits"),
        (["guidance", "ddpm-digits", "--scales", "3,1"], "write rising numbers"),
    ],
)
def test_invalid_options_are_one_message_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["analyze", *words, "--out", str(tmp_path / "pages")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "pages").exists()


def test_an_interrupted_study_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task_run, "study_samplers", interrupted)
    assert run(["analyze", "samplers", "ddpm-digits", "--out", str(tmp_path / "pages")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()
