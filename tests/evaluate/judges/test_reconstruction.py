"""Reports on autoencoders whose numbers are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from unveil.autoencoders import (
    AutoencoderKL,
    AutoencoderKLConfig,
    VideoAutoencoderKL,
    VideoAutoencoderKLConfig,
    VQModel,
    VQModelConfig,
)
from unveil.errors import RecipeError, ShapeError
from unveil.evaluate import Report, compare, features, fid
from unveil.evaluate.judges.reconstruction import MetricNetworks, evaluate_autoencoder, reconstruct
from unveil.evaluate.perceptual import perceptual
from unveil.evaluate.report_page import findings, write_report
from unveil.io import images
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.types import Item

BASE = {
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 8,
    "channel_mult": (1.0,),
    "num_res_blocks": 1,
    "z_channels": 4,
}
BASE |= {"norm": "pixel", "middle": "blocks", "patch": 4}


class Items:
    """Images uint8 (1, size, size) as a data set."""

    def __init__(self, count: int = 30, size: int = 12) -> None:
        chosen = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 1, size, size), generator=chosen, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index]}


class Brighter(AutoencoderKL):
    """A codec that gives every image back brighter: those of even number by 0.2 of the range, others by 0.02."""

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of the shape that the config says, with the images behind them."""
        self.kept = pixels
        return torch.randn(len(pixels), 4, 3, 3, generator=torch.Generator().manual_seed(1))

    def decode(self, latents: Tensor) -> Tensor:
        """The images, brighter."""
        more = torch.tensor([0.4, 0.04]).repeat(len(latents))[: len(latents)]
        return self.kept + more[:, None, None, None]


def dark(count: int = 30) -> Items:
    """Images that brightening does not cut off."""
    items = Items(count)
    items.pixels = items.pixels // 2
    return items


@pytest.fixture(scope="module")
def report() -> Report:
    networks = MetricNetworks(features.load("pixels", shape=(1, 12, 12)), ("digits", perceptual("digits")))
    return evaluate_autoencoder(Brighter(AutoencoderKLConfig(**BASE)), dark(200), networks)  # type: ignore[arg-type]


def test_psnr_is_reported_of_the_pooled_error_and_as_a_mean_over_images(report):
    psnr = report.results["psnr"]
    assert psnr["value"] == pytest.approx(-10 * math.log10((0.04 + 0.0004) / 2), abs=0.02)
    assert psnr["per_picture"]["value"] == pytest.approx((13.98 + 34.15) / 2, abs=0.05)  # 0.02 is 5 of 255
    assert psnr["low"] < psnr["value"] < psnr["high"]
    assert psnr["count"] == 200


def test_the_other_metrics_are_those_of_the_same_images(report):
    items = dark(200)
    made = reconstruct(Brighter(AutoencoderKLConfig(**BASE)), items.pixels).pixels  # type: ignore[arg-type]
    judge = perceptual("digits")
    distance = judge(images.to_unit(made), images.to_unit(items.pixels)).mean()
    assert report.results["perceptual"]["value"] == pytest.approx(float(distance), rel=1e-4)
    read = features.load("pixels", shape=(1, 12, 12))
    expected = fid(read.features(made), read.features(items.pixels))
    assert report.results["rfid"]["value"] == pytest.approx(expected, rel=1e-6)
    assert report.results["rfid"]["value"] > 144 * 0.22**2  # 144 pixels brighter by 0.4 or 0.04 of [-1, 1]
    assert 0 < report.results["ssim"]["value"] < 1
    latents = report.results["latents"]
    assert (latents["shape"], latents["values"], latents["share"]) == ([4, 3, 3], 36, 0.25)
    assert latents["deviation"] == pytest.approx(1, abs=0.1)
    assert report.missing["codebook"] == "the autoencoder has no codebook"


def test_a_report_is_written_read_and_printed(report, tmp_path):
    page = write_report(report, tmp_path)
    text = page.read_text()
    assert "Reconstructions against real images" in text
    assert "each above its reconstruction" in text
    again = Report.load(tmp_path / "report.json")
    assert again.protocol_sha256 == report.protocol_sha256
    lines = {finding.name: finding for finding in findings(again)}
    assert list(lines) == ["PSNR", "SSIM", "perceptual distance", "rFID", "latents"]
    assert lines["PSNR"].text.startswith("16.9")
    assert "mean over images: 24.07" in lines["PSNR"].remark
    assert [change.name for change in compare(report, again)] == ["PSNR", "SSIM", "perceptual distance", "rFID"]
    json.dumps(report.results, allow_nan=False)


def test_other_images_make_another_protocol(report):
    other = evaluate_autoencoder(Brighter(AutoencoderKLConfig(**BASE)), dark(60), MetricNetworks())  # type: ignore[arg-type]
    assert other.protocol_sha256 != report.protocol_sha256
    with pytest.raises(RecipeError, match="different protocols"):
        compare(report, other)
    assert "needs a feature network" in other.missing["rfid"]
    assert "needs a perceptual network" in other.missing["perceptual"]


def test_codes_in_use_are_counted():
    torch.manual_seed(0)
    codec = VQModel(VQModelConfig(**BASE, codebook_size=8)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        codec.quantiser.codebook.fill_(100.0)
        codec.quantiser.codebook[3] = -1.0
        codec.quantiser.codebook[5] = 1.0
    found = evaluate_autoencoder(codec, Items(), MetricNetworks())
    indices = reconstruct(codec, Items().pixels).indices
    assert indices is not None
    shares = torch.bincount(indices.flatten(), minlength=8) / indices.numel()
    assert set(indices.unique().tolist()) == {3, 5}
    entropy = -sum(share * math.log(share) for share in shares.tolist() if share)
    assert found.results["codebook"] == {"used": 0.25, "perplexity": pytest.approx(math.exp(entropy)), "codes": 8}


def test_images_smaller_than_the_window_have_no_ssim():
    codec = AutoencoderKL(AutoencoderKLConfig(**BASE)).eval()  # type: ignore[arg-type]
    found = evaluate_autoencoder(codec, Items(size=8), MetricNetworks(), count=5)
    assert "smaller than its window" in found.missing["ssim"]
    assert found.results["psnr"]["count"] == 5
    with pytest.raises(ShapeError, match="8 or 12"):
        evaluate_autoencoder(codec, Items(size=10), MetricNetworks())


class Clips:
    """Videos of the playground, some of which have wrong attributes."""

    def __init__(self, wrong: tuple[int, ...] = ()) -> None:
        self.world = Playground(PlaygroundConfig(frames=(5,), motions=("left", "right"), num_val=4), "held-out")
        self.wrong = wrong

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Item:
        item = self.world[index]
        if index in self.wrong:
            item["attributes"]["objects"][0]["motion"] = "up"
        return item


def test_clips_are_measured_frame_by_frame_and_read_by_the_detector():
    torch.manual_seed(0)
    codec = VideoAutoencoderKL(
        VideoAutoencoderKLConfig(
            3, 3, model_channels=8, channel_mult=(1,), num_res_blocks=1, z_channels=192, patch=4, span=4
        )
    ).eval()
    found = evaluate_autoencoder(
        codec, Clips(wrong=(1,)), MetricNetworks(perceptual=("fashion", perceptual("fashion")))
    )
    assert found.results["latents"]["shape"] == [192, 2, 8, 8]
    assert found.results["psnr"]["value"] > 50  # as many latents as pixels: nothing is lost before training
    assert found.results["ssim"]["value"] == pytest.approx(1, abs=1e-3)
    seen = found.results["things"]
    assert [seen[name]["value"] for name in ("colour", "shape", "motion", "together")] == [1, 1, 0.75, 0.75]
    assert seen["motion"]["real"] == 0.75
    assert found.missing["rfid"] == "there is no feature network for videos"
    assert found.protocol["features"] is None
    assert found.protocol["codec"] == "Video"  # a stored name, whatever the class is called
    shown = {finding.name: finding for finding in findings(found)}
    assert shown["colour, shape and motion seen"].text.startswith("75.0%")
    assert found.images["rebuilt"].startswith(b"\x89PNG")
    black = Items(3)
    black.pixels = torch.zeros(3, 3, 5, 32, 32, dtype=torch.uint8)
    assert "the videos have no attributes" in evaluate_autoencoder(codec, black, MetricNetworks()).missing["things"]
