"""`unveil analyze inverse`: restoration with an exactly known model, the page, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.test_inverse import Field
from tests.needs import needs_fashion
from unveil.analysis import inverse_problems as study
from unveil.analysis import task_run
from unveil.analysis.inverse_problems import (
    BEST,
    MEAN,
    PROBLEM_TYPES,
    InverseSettings,
    InverseStudy,
    psnr,
    study_inverse,
)
from unveil.cli.commands import run
from unveil.core import inverse, prediction
from unveil.core.denoiser import Denoiser
from unveil.core.process import LinearVP, Process
from unveil.core.ve import EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import NonFinite, RecipeError
from unveil.model import Model

COUNT = 12


def waves(*shape: int) -> Field:
    """Images that are sums of six smooth waves of different colours, with little noise."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape
    down, across = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 3, width)
    turns = torch.randn(6, 3, 1, 1, 1, generator=generator)
    colours = torch.rand(6, channels, 1, 1, generator=generator)
    parts = (colours * torch.sin(turns[:, 0] * down + turns[:, 1] * across + turns[:, 2])).double().flatten(1)
    return Field(torch.zeros(shape, dtype=torch.float64), 0.15 * parts.T @ parts + 1e-6 * torch.eye(parts.shape[1]))


class Known(nn.Module):
    """The exact denoiser of a distribution of images; timesteps are indices of noise levels, `last` is pure noise."""

    def __init__(self, process: Process, known: Field | Mixture, last: float) -> None:
        super().__init__()
        self.process, self.known, self.last = process, known, last

    def forward(self, x: Tensor, index: Tensor, condition: object = None) -> Tensor:
        return self.known(x, self.process.at(index[0].item() / self.last)).x0


def model(known: Field | Mixture, process: Process | None = None, last: float = 1000) -> Model:
    process = process or LinearVP()
    return Model(Denoiser(Known(process, known, last), process, prediction=prediction.x0), known.shape)


def solved(of: Model, known: Field, **settings: Any) -> InverseStudy:
    images = known.sample(COUNT, seed=1).float().clamp(-1, 1)
    return study_inverse(of, images, InverseSettings(**{"count": COUNT, **settings}))


COLOURED = waves(3, 8, 8)
GREY = waves(1, 8, 8)


@pytest.fixture(scope="module")
def found() -> InverseStudy:
    return solved(model(COLOURED), COLOURED)


def rows(found: InverseStudy) -> dict[tuple[str, str, float], study.InverseRow]:
    return {(row.problem, row.method, row.noise): row for row in found.rows}


def test_every_problem_is_solved_by_its_methods(found: InverseStudy):
    noisy = [("deblurring", method, noise) for noise in (0.01, 0.05) for method in ("DDRM", "DPS")]
    masks = [("mask", method, 0.0) for method in ("DDRM", MEAN, "replacement", "RePaint")]
    names = ("super-resolution", "deblurring", "colourisation")
    others = [(name, method, 0.0) for name in names for method in ("DDRM", MEAN)] + [("colourisation", BEST, 0.0)]
    assert list(rows(found)) == [*masks, *others, *noisy]
    assert found.skipped == {}
    calls = {method: {row.calls for row in found.rows if row.method == method} for method in study.METHODS}
    assert calls == {
        "DDRM": {20},
        MEAN: {160},
        BEST: {320},
        "replacement": {20},
        "RePaint": {20 + 4 * 4 * 2},
        "DPS": {100},
    }


def test_a_model_that_knows_the_truth_meets_every_bar(found: InverseStudy):
    for row in found.rows:
        assert row.gain.mean == pytest.approx(row.psnr.mean - row.baseline.mean)
        assert row.gain.low < row.gain.mean < row.gain.high
        if row.noise:
            assert row.met is None
            assert row.gain.mean > 0
        else:
            assert row.met, row.text
            assert row.gain.low > PROBLEM_TYPES[row.problem].bar
            assert row.residual <= 1e-4
            assert row.known is (True if row.problem == "mask" else None)
        assert row.seconds > 0


def test_the_mean_of_several_is_nearer_to_the_truth():
    """A sample of the posterior is as far from its mean as the truth is, so at most 3 dB can be gained."""
    rough = Field(torch.zeros(1, 8, 8, dtype=torch.float64), 0.1 * torch.eye(64, dtype=torch.float64))
    made = rows(solved(model(rough), rough, noises=()))
    for name in ("mask", "super-resolution"):
        one, several = made[name, "DDRM", 0.0], made[name, MEAN, 0.0]
        assert 0.5 < several.psnr.mean - one.psnr.mean < 3
        assert several.residual <= 1e-5
    assert made["mask", MEAN, 0.0].known


def test_the_best_of_several_is_found_without_the_truth():
    """Two colours with nearly the same grey: DDRM mostly decides before it can distinguish them."""
    colours = torch.tensor([[0.6, -0.5, 0.2], [-0.7, 0.6, 0.2]])  # grey values 0.1 and 0.03
    images = colours[:, :, None, None].expand(2, 3, 4, 4)
    known = Mixture([1.0, 1.0], images, [0.02, 0.02])
    truth = known.sample(24, torch.Generator().manual_seed(1)).float()
    made = rows(study_inverse(model(known), truth, InverseSettings(24, noises=())))
    right = {
        method: (made["colourisation", method, 0.0].images - truth).flatten(1).norm(dim=1) < 1
        for method in ("DDRM", BEST)
    }
    assert right["DDRM"].float().mean() < 0.9
    assert right[BEST].all()
    assert made["colourisation", BEST, 0.0].residual < 1e-5


def test_noise_in_the_measurement_costs(found: InverseStudy):
    made = rows(found)
    assert made["deblurring", "DDRM", 0.01].psnr.mean > made["deblurring", "DDRM", 0.05].psnr.mean


def test_baselines_are_what_they_are_called(found: InverseStudy):
    named = {problem.name: problem for problem in found.problems if not problem.noise}
    mask = named["mask"]
    assert mask.keep is not None
    assert mask.keep.float().mean().item() == pytest.approx(0.5, abs=0.1)
    gaps, known = ~mask.keep[0, 0], found.images[0, 2][mask.keep[0, 0]]
    torch.testing.assert_close(mask.baseline[0, 2][gaps], known.mean().expand(int(gaps.sum())))
    small = named["super-resolution"]
    assert small.y.shape == (COUNT, 3, 2, 2)
    torch.testing.assert_close(small.y[0, 1, 0, 1], found.images[0, 1, :4, 4:].mean())
    torch.testing.assert_close(named["colourisation"].baseline[:, 2:], found.images.mean(1, keepdim=True))
    assert named["deblurring"].baseline is named["deblurring"].y


def test_unsuitable_problems_are_skipped_with_the_reason():
    known = waves(1, 6, 8)
    found = solved(model(known), known, steps=3, noises=())
    assert found.skipped == {
        "super-resolution": "images of 8 x 6 do not consist of blocks of 4 x 4 pixels",
        "colourisation": "the model's images are grey",
    }
    assert {row.problem for row in found.rows} == {"mask", "deblurring"}


def test_a_method_that_ignores_the_measurement_misses_the_bars(monkeypatch: pytest.MonkeyPatch):
    """The control: images of the model that do not depend on y."""
    whole = inverse.ddrm

    def blind(schedule, operator, y, **rest):
        return whole(schedule, operator, y.flip(0), **rest)  # the measurement of another image

    monkeypatch.setattr(inverse, "ddrm", blind)
    found = solved(model(COLOURED), COLOURED, noises=())
    made = [row for row in found.rows if row.method in ("DDRM", MEAN, BEST)]
    assert len(made) == 9
    for row in made:
        assert row.residual > study.MAX_RESIDUAL
        assert not row.met
        assert row.gain.mean < PROBLEM_TYPES[row.problem].bar
        assert row.known is (False if row.problem == "mask" else None)


def test_unscaled_images_are_restored_with_a_karras_schedule():
    found = solved(model(GREY, EDMProcess(), last=80), GREY, noises=())
    assert found.schedule == "karras"
    assert all(row.met for row in found.rows), [row.text for row in found.rows]


def test_a_restoration_does_not_depend_on_the_batch():
    images = GREY.sample(4).float()
    four, two = (study_inverse(model(GREY), images[:n], InverseSettings(n, 5, noises=(0.05,))) for n in (4, 2))
    for one, other in zip(four.rows, two.rows, strict=True):
        torch.testing.assert_close(one.images[:2], other.images, rtol=1e-4, atol=1e-4)


def test_psnr_of_a_known_error():
    truth = torch.zeros(2, 1, 4, 4)
    assert psnr(truth + torch.tensor([0.2, 0.02])[:, None, None, None], truth) == pytest.approx([20, 40])
    assert psnr(truth + 9, truth + 1) == pytest.approx([58.92, 58.92], abs=0.01)  # cut to 1, and no more than bytes


def test_steps_are_counted_to_the_end():
    progress: list[tuple[int, int]] = []
    study_inverse(
        model(GREY), GREY.sample(2).float(), InverseSettings(2, 6, noises=()), lambda *made: progress.append(made)
    )
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] == 4 * (6 + 8 * 6) - 54 + 6 + (6 + 8 + 2)  # RePaint's jumps count


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"count": 1}, "at least 2 images"), ({"steps": 0}, "steps = 0: at least 1")],
)
def test_invalid_settings_are_refused(settings: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        InverseSettings(**settings)


def test_images_of_another_shape_are_refused():
    with pytest.raises(RecipeError, match=r"3 of the model's shape \(1, 8, 8\) are needed"):
        study_inverse(model(GREY), torch.zeros(3, 3, 8, 8))


def test_a_restoration_that_leaves_the_finite_numbers_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "run", lambda plan, step, x, **rest: x * float("nan"))
    with pytest.raises(NonFinite, match="mask by DDRM: values are not finite"):
        solved(model(GREY), GREY, steps=2)


# ---------------------------------------------------------------------- the command


def test_a_bundled_model_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["analyze", "inverse", "ddpm-digits", "-n", "3", "--steps", "3", "--out", str(tmp_path)]
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "inverse.json").read_text())
    assert stored == {key: value for key, value in record.items() if key != "page"}
    assert stored["data"]["part"] == "held-out"
    assert [row["known"] for row in stored["rows"][:5]] == [True, True, True, True, None]
    assert all(row["residual"] < 1e-3 for row in stored["rows"] if not row["noise"])
    page = (tmp_path / "inverse.html").read_text()
    for words in ("bicubic enlargement", "bit-equal", "5 dB", "images are grey", "with noise of 0.05"):
        assert words in page
    # original, measured and what was made of it, and the baseline where it is not what was measured
    assert page.count("data:image/png;base64,") == (3 + 4) + (3 + 2) + (2 + 2) + 2 * (2 + 2)
    assert 'src="http' not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inverse.html", "inverse.json"]
    assert run(command) == 2
    assert "not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps = 0: must be greater than or equal to 1"),
        (["-n", "1"], "num_images = 1: must be greater than or equal to 2"),
        (["-n", "2000"], "the held-out split of digits has 450 images"),
        (["--split", "heldout"], "nearest: 'held-out'"),
        pytest.param(["--recipe", "ddpm-fashion"], "of the model's shape (1, 8, 8) are needed", marks=needs_fashion),
        (["--recipe", "masks-picture"], "generates state; only images can be restored"),
    ],
)
def test_invalid_options_are_one_message_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["analyze", "inverse", "ddpm-digits", *words, "--out", str(tmp_path / "pages")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "pages").exists()


def test_an_interrupted_study_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task_run, "study_inverse", interrupted)
    assert run(["analyze", "inverse", "ddpm-digits", "--out", str(tmp_path / "pages")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()
