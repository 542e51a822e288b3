"""Sums, sheets and lines."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from unveil.errors import ShapeError
from unveil.train.metrics_logger import MetricsLogger, RunningMean, UsualNorm, duration
from unveil.train.sample_images import image_sheet, plot_run


def test_a_window_averages_steps_and_sorts_losses_by_noise_level():
    window = RunningMean()
    window.add(1.0, 2.0, torch.tensor([0.05, 0.06, 1.0]), torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64))
    window.add(3.0, 4.0, torch.tensor([0.5]), torch.tensor([7.0], dtype=torch.float64))
    means = window.means()
    assert means["loss"] == 2
    assert means["grad_norm"] == 3
    assert means["loss_by_t"] == [2, None, None, None, None, 7, None, None, None, 5]


def test_a_window_goes_through_json_to_the_bit():
    window = RunningMean()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        t, losses = torch.rand(2, 50, generator=generator, dtype=torch.float64)
        window.add(losses.mean().item(), 1 / 3, t, losses)
    other = RunningMean()
    other.load(json.loads(json.dumps(window.state())))
    assert other.state() == window.state()


def test_a_spike_is_a_norm_far_above_those_before_until_it_is_usual():
    norms = UsualNorm()
    assert [norms.add(norm) for norm in (1.0, 100.0, *[1.0, 4.0] * 10)] == [None] * 22
    usual = norms.add(1e4)
    assert usual == pytest.approx((4**10 * 100) ** (1 / 22))
    other = UsualNorm()
    other.load(json.loads(json.dumps(norms.state())))
    assert other.add(1e4) == norms.add(1e4)
    flags = [norms.add(1e4) for _ in range(1000)]
    assert flags[0] is not None
    assert flags[-1] is None


def test_an_empty_window_has_no_mean():
    assert RunningMean().means()["loss"] is None


def test_a_journal_drops_what_came_after_its_checkpoint(tmp_path):
    first = MetricsLogger(tmp_path, 0)
    for step in range(1, 6):
        first.write({"step": step, "loss": 1 / step})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    again = MetricsLogger(tmp_path, 3)
    again.write({"step": 4, "loss": 0.5})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == 0.5


def test_a_sheet_enlarges_small_samples_pixel_by_pixel():
    samples = torch.linspace(-1, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    with Image.open(io.BytesIO(image_sheet(samples, columns=3))) as page:
        side, margin = 96, 12
        assert page.size == (3 * (side + margin) + margin, 2 * (side + margin) + margin)
        assert page.getpixel((0, 0)) == (255, 255, 255)
        assert page.getpixel((margin, margin)) == tuple(round((v.item() + 1) * 127.5) for v in samples[0, :, 0, 0])
        assert page.getpixel((margin + 23, margin + 23)) == page.getpixel((margin, margin))


def test_large_samples_keep_their_size():
    with Image.open(io.BytesIO(image_sheet(torch.zeros(1, 1, 128, 128)))) as page:
        assert page.size == (136, 136)
    with pytest.raises(ShapeError, match="a sheet needs"):
        image_sheet(torch.zeros(2, 5))


def test_plots_take_gaps_and_zeros(tmp_path):
    lines = [
        {"step": 1, "loss": 0.0, "loss_by_t": [None] * 10},
        {"step": 2, "validation": 1.0, "validation_by_t": [1.0] * 10},
    ]
    written = plot_run(lines, tmp_path)
    assert [path.name for path in written] == ["loss.png", "loss_by_t.png", "validation.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.size[0] > 300


def test_plots_pass_over_the_lines_of_faults(tmp_path):
    fault = {"step": 2, "event": "non-finite", "loss": "nan", "grad_norm": "inf", "examples": [1]}
    assert [path.name for path in plot_run([{"step": 1, "loss": 0.5}, fault], tmp_path)] == ["loss.png"]
    assert plot_run([fault], tmp_path) == []


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (190, "3 min 10 s"), (7500, "2 h 5 min"), (0, "0 s")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text
