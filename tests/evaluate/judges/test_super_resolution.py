"""Enlargements judged against the bicubic one, on models whose images are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unveil.data.tensor_dataset import ImageTensorDataset, area_downsample, bicubic_upsample
from unveil.evaluate.judges.super_resolution import evaluate_super_resolution
from unveil.evaluate.perceptual import perceptual
from unveil.evaluate.report import Report
from unveil.evaluate.report_page import summary, write_report
from unveil.evaluate.sampling import SamplingOptions
from unveil.io.images import to_unit
from unveil.model.config import SampleConfig

SIDE = 28


def smooth() -> Tensor:
    """Images with edges that their smaller forms do not tell."""
    noise = torch.randn(40, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    field = functional.interpolate(noise, (SIDE, SIDE), mode="bicubic", align_corners=False)
    return (field > 0).to(torch.uint8) * 200 + 20


HELD_OUT = ImageTensorDataset(smooth(), low=7)
TRUE = {tuple(area_downsample(one, 7).flatten().tolist()): to_unit(one) for one in HELD_OUT.pixels}


class Enlarges:
    """Gives the true image, the bicubic enlargement, or what lies between: (1 - share) bicubic + share true."""

    def __init__(self, share: float) -> None:
        self.share, self.conditioners, self.sampling = share, {"low": None}, SampleConfig()

    def generate(self, *, cond: dict[str, list[Tensor]], **_: Any) -> Tensor:
        true = torch.stack([TRUE[tuple(one.flatten().tolist())] for one in cond["low"]])
        plain = bicubic_upsample(torch.stack(cond["low"]), (SIDE, SIDE))
        return plain + self.share * (true - plain)


def judged(share: float, **more: Any) -> Report:
    return evaluate_super_resolution(Enlarges(share), HELD_OUT, SamplingOptions(batch=16), **more)  # type: ignore[arg-type]


def test_the_bicubic_enlargement_itself_gains_nothing():
    found = judged(0.0).results["enlarged"]
    assert found["psnr"]["value"] == found["psnr"]["low"] == found["psnr"]["high"] == 0
    assert found["psnr"]["model"] == found["psnr"]["bicubic"] > 10
    assert found["ssim"]["value"] == 0


def test_half_the_error_is_six_decibels_more():
    found = judged(0.5).results["enlarged"]
    assert found["psnr"]["value"] == pytest.approx(6.02, abs=0.1)
    assert found["ssim"]["low"] > 0


def test_the_true_image_gains_most_and_keeps_the_input():
    half, whole = (judged(share, perceptual=("fashion", perceptual("fashion"))) for share in (0.5, 1.0))
    assert whole.results["enlarged"]["kept"]["mean"] == pytest.approx(0, abs=1e-6)
    for name in ("psnr", "ssim", "perceptual"):
        assert whole.results["enlarged"][name]["low"] > half.results["enlarged"][name]["high"] > 0
    assert whole.results["enlarged"]["perceptual"]["model"] == pytest.approx(0, abs=1e-6)
    assert whole.protocol["perceptual"]["name"] == "fashion"


def test_a_worse_model_is_reported_as_worse():
    found = judged(-0.5).results["enlarged"]
    assert found["psnr"]["high"] < 0
    assert found["ssim"]["high"] < 0


def test_the_report_says_it_and_is_kept(tmp_path: Path):
    report = judged(0.5)
    assert report.missing == {"perceptual": "needs a perceptual network"}
    assert any(line.startswith("PSNR above bicubic: 6.") for line in summary(report))
    page = write_report(report, tmp_path).read_text("utf-8")
    assert "Upscaled images against real images" in page
    assert Report.load(tmp_path).results == report.results
