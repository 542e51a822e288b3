"""Quality of super-resolution, relative to bicubic upsampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unveil import __version__
from unveil.autoencoders.losses import LPIPS
from unveil.data.tensor_dataset import LOW, area_downsample, bicubic_upsample
from unveil.evaluate import plots
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.image_set import ImageDataset, digest_of, evenly_spaced
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import mean_interval
from unveil.evaluate.perceptual import bundled_perceptual, fingerprint
from unveil.evaluate.psnr_ssim import WINDOW, chunked, mse, psnr, ssim
from unveil.evaluate.report import Report
from unveil.evaluate.sampling import SamplingOptions, generate_for
from unveil.io import images as pictures
from unveil.model import Model
from unveil.model.config import Recipe

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 12  # images on the page, a column each


def evaluate_super_resolution(
    model: Model,
    held_out: ImageDataset,
    how: SamplingOptions,
    *,
    perceptual: tuple[str, LPIPS] | None = None,
    count: int = 1000,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Evaluate one upscaled image for each held-out image against the bicubic enlargement.

    Every metric is the mean over images of the gain over the bicubic enlargement: more PSNR, more SSIM, and less
    perceptual distance.

    Args:
        model: Model with a condition `low`.
        held_out: Items with "pixels", "low" and the model's other conditions.
        how: Options of sampling; the seed is also that of the intervals.
        perceptual: Name and network of a perceptual distance; None leaves it out.
        count: Number of images, which are spread evenly.
        about: Metadata outside of the protocol: command, commit, CPU minutes.
    """
    items = evenly_spaced(held_out, count)
    real, low = (torch.stack([item[key] for item in items]) for key in ("pixels", LOW))
    upscaled = pictures.to_pixels(generate_for(model, items, how))
    plain = pictures.to_pixels(bicubic_upsample(low, (real.shape[2], real.shape[3])))
    scores = {"psnr": [psnr(mse(candidate, real)) for candidate in (upscaled, plain)]}
    missing: dict[str, str] = {}
    if min(real.shape[2:]) >= WINDOW:
        scores["ssim"] = [chunked(ssim, candidate, real) for candidate in (upscaled, plain)]
    else:
        missing["ssim"] = f"images of fewer than {WINDOW} pixels a side are smaller than its window"
    if perceptual is not None:
        distance = perceptual[1]
        scores["perceptual"] = [
            -chunked(lambda x, y: distance(*map(pictures.to_unit, (x, y))), candidate, real)
            for candidate in (upscaled, plain)
        ]
    else:
        missing["perceptual"] = "needs a perceptual network"
    results = {name: _gain(candidate, other, how.seed) for name, (candidate, other) in scores.items()}
    downsampled = torch.stack([area_downsample(candidate, low.shape[-1]) for candidate in upscaled])
    results["kept"] = {"mean": float((downsampled - low).abs().mean()) / 2, "rule": "of the range of pixels"}
    protocol = {
        "version": VERSION,
        "compared": "paired with the bicubic enlargement",
        "images": len(items),
        "shape": list(real.shape[1:]),
        "low": list(low.shape[1:]),
        "seed": how.seed,
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "perceptual": None if perceptual is None else {"name": perceptual[0], "sha256": fingerprint(perceptual[1])},
        "held_out_sha256": digest_of(items, ("pixels", LOW)),
    }
    images = {"enlarged": _sheet(low, plain, upscaled, real)} if real.shape[1] in (1, 3) else {}
    return Report(protocol, {"enlarged": results}, missing, {"unveil": __version__, **(about or {})}, images)


def _gain(upscaled: Tensor, plain: Tensor, seed: int) -> dict[str, Any]:
    """Return the mean difference with its interval, and both means, of scores of which more is better."""
    return {
        **mean_interval(upscaled - plain, seed),
        "model": abs(upscaled.mean().item()),
        "bicubic": abs(plain.mean().item()),
    }


def _sheet(low: Tensor, plain: Tensor, upscaled: Tensor, real: Tensor) -> bytes:
    """Return columns of four: the small image, its bicubic enlargement, the upscaled image, and the real one."""
    count = min(SHOWN, len(real))
    rows = torch.arange(count) * len(real) // count
    rate = real.shape[2] // low.shape[2]
    blocks = pictures.to_pixels(low[rows]).repeat_interleave(rate, 2).repeat_interleave(rate, 3)
    return plots.make_grid(torch.cat([blocks, plain[rows], upscaled[rows], real[rows]]), count)


def _findings(results: Results) -> list[Finding]:
    gains, findings = results.get("enlarged", {}), list[Finding]()
    for key, name, unit, form in (
        ("psnr", "PSNR above bicubic", "dB", ".2f"),
        ("ssim", "SSIM above bicubic", "", ".4f"),
        ("perceptual", "perceptual distance below bicubic", "", ".4f"),
    ):
        if gain := gains.get(key):
            finding = Finding(name, *interval_of(gain), unit=unit, form=form, baselines={"bicubic": gain["bicubic"]})
            remark = f"mean over images; {finding.number(gain['model'])}, bicubic {finding.number(gain['bicubic'])}"
            findings.append(replace(finding, remark=remark))
    if consistency := gains.get("kept"):
        remark = "mean difference from the input image"
        findings.append(
            Finding("downsampled again", consistency["mean"], form=".4f", note=f" {consistency['rule']}", remark=remark)
        )
    return findings


def _applies(recipe: Recipe) -> bool:
    return recipe.key == "pixels" and LOW in [condition.key for condition in recipe.condition]


def _run(recipe: Recipe, model: Model, held_out: ImageDataset, options: SamplingOptions) -> Report:
    network, count = bundled_perceptual(recipe.data.kind), recipe.evaluate.samples
    report = evaluate_super_resolution(model, held_out, options, perceptual=network, count=count)
    return replace(report, about={"data": recipe.data.kind, **report.about})


JUDGE = Judge(
    key="enlarged",
    title="Upscaled images",
    findings=_findings,
    metrics=lambda results: {
        "PSNR above bicubic": "enlarged.psnr.value",
        "SSIM above bicubic": "enlarged.ssim.value",
        "perceptual distance below bicubic": "enlarged.perceptual.value",
    },
    figures={"enlarged": "From above: the input, its bicubic upsampling, the model's output, the true image."},
    applies=_applies,
    run=_run,
)
