"""Reconstruction quality of an autoencoder on held-out images or videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.autoencoders.autoencoder import channels_last
from unveil.autoencoders.losses import LPIPS
from unveil.autoencoders.video_kl import VideoAutoencoderKL
from unveil.autoencoders.vq import codebook_usage
from unveil.errors import ShapeError
from unveil.evaluate.features import FeatureNetwork
from unveil.evaluate.findings import Finding, interval_of
from unveil.evaluate.frechet import fid
from unveil.evaluate.image_set import ImageDataset, ImageSet, collect_images, evenly_spaced
from unveil.evaluate.judge import Judge, Results
from unveil.evaluate.metrics import bootstrap, mean_interval, proportion
from unveil.evaluate.perceptual import fingerprint
from unveil.evaluate.psnr_ssim import BATCH, WINDOW, chunked, mse, psnr, ssim
from unveil.evaluate.report import Report
from unveil.io import images as pictures
from unveil.playground.detector import detect_objects
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
COLUMNS, SHOWN = 10, 40  # of the page's sheet of images
CLIPS = 8  # shown on it, a row of frames each
_SEEN_TOGETHER = "colour, shape and motion seen"
SEEN = ("colour", "shape", "motion")  # of an object, that the detector reads
# The names of the classes in protocols; reports are compared by a hash of these, so they never change.
_STORED_NAMES: dict[type[Any], str] = {AutoencoderKL: "KL", VQModel: "VQ", VideoAutoencoderKL: "Video"}


class MetricNetworks(NamedTuple):
    """Networks of the metrics; None leaves the metric out.

    Attributes:
        features: Feature network of the Frechet distance.
        perceptual: Name and network of the perceptual distance.
    """

    features: FeatureNetwork | None = None
    perceptual: tuple[str, LPIPS] | None = None


class ReconstructedSet(NamedTuple):
    """Reconstructions of an autoencoder with their latents.

    pixels: uint8 (N, C, H, W), or videos (N, C, T, H, W). latents: (N, C', h, w) or (N, C', t, h, w), scaled. indices:
        (N, h, w) of a codebook's entries.
    """

    pixels: Tensor
    latents: Tensor
    indices: Tensor | None


def evaluate_autoencoder(
    codec: AutoencoderKL | VQModel,
    held_out: ImageDataset,
    networks: MetricNetworks,
    *,
    count: int | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """A report on held-out images, or videos, and what the codec's likeliest latents of them are decoded to, as bytes.

    Args:
        count: images, spread evenly; None: all.
        seed: Seed of the bootstrap intervals.
        about: additional metadata, not part of the protocol: command, commit, CPU-minutes.
        on_progress: called with the name of the current measurement.

    Raises:
        ShapeError: images that the codec does not take.
        DataError: no images.
    """
    log = on_progress or (lambda _: None)
    real = collect_images(held_out, count)
    clips = real.pixels.ndim == 5
    networks = networks._replace(features=None) if clips else networks
    log("reconstructions")
    rebuilt = reconstruct(codec, real.pixels)
    results: dict[str, Any] = {
        "psnr": _psnr(real.pixels, rebuilt.pixels, seed),
        "latents": _latents(rebuilt.latents, real),
    }
    missing: dict[str, str] = {}
    _compare(real, rebuilt, networks, seed, results, missing, log)
    if clips:
        missing["rfid"] = "no feature network is of clips"
    elif networks.features is None or len(real.pixels) <= networks.features.dim:
        missing["rfid"] = "needs a feature network, and more images than it has features"
    else:
        log("FID of the reconstructions")
        sides = (networks.features.features(side) for side in (rebuilt.pixels, real.pixels))
        results["rfid"] = {"value": fid(*sides), "count": len(real.pixels), "features": networks.features.name}
    if rebuilt.indices is not None and isinstance(codec, VQModel):
        results["codebook"] = {
            **codebook_usage(rebuilt.indices, codec.config.codebook_size)._asdict(),
            "codes": codec.config.codebook_size,
        }
    else:
        missing["codebook"] = "this autoencoder has none"
    if clips:
        log("what is seen in the rebuilt clips")
        truths = _truths(held_out, len(real.pixels))
        results |= {"things": detection_rate(truths, real.pixels, rebuilt.pixels)} if truths else {}
        missing |= {} if truths else {"things": "these clips do not say what is in them"}
    protocol = _protocol(real, networks, seed, codec)
    images = {"rebuilt": _sheet(real.pixels, rebuilt.pixels)} if real.pixels.shape[1] in (1, 3) else {}
    return Report(protocol, results, missing, {"unveil": __version__, **(about or {})}, images)


def _compare(
    real: ImageSet,
    rebuilt: ReconstructedSet,
    networks: MetricNetworks,
    seed: int,
    results: dict[str, Any],
    missing: dict[str, str],
    log: Callable[[str], None],
) -> None:
    """Adds how alike each image and what became of it are."""
    if min(real.pixels.shape[-2:]) < WINDOW:
        missing["ssim"] = f"images of fewer than {WINDOW} pixels a side are smaller than its window"
    else:
        log("SSIM")
        results["ssim"] = mean_interval(chunked(ssim, real.pixels, rebuilt.pixels), seed)
    if networks.perceptual is None:
        missing["perceptual"] = "no perceptual network was given"
    else:
        log("perceptual distance")
        name, distance = networks.perceptual
        compared = chunked(lambda x, y: distance(*map(pictures.to_unit, (x, y))), real.pixels, rebuilt.pixels)
        results["perceptual"] = mean_interval(compared, seed) | {"network": name}


@torch.inference_mode()
def reconstruct(codec: AutoencoderKL | VQModel, pixels: Tensor) -> ReconstructedSet:
    """Images uint8 (N, C, H, W), or videos (N, C, T, H, W), by the codec, at its likeliest latents, in float32.

    Raises:
        ShapeError: images that the codec does not take.
    """
    device = next(codec.parameters()).device
    decoded: list[Tensor] = []
    latents: list[Tensor] = []
    indices: list[Tensor] = []
    for part in pixels.split(BATCH if pixels.ndim == 4 else max(BATCH // pixels.shape[2], 1)):
        z = codec.encode(channels_last(pictures.to_unit(part).to(device)))
        decoded.append(pictures.to_pixels(codec.decode(z)))
        latents.append(z.float().cpu())
        if isinstance(codec, VQModel):
            indices.append(codec.indices(z).cpu())
    if decoded[0].shape[1:] != pixels.shape[1:]:
        raise ShapeError(f"images {tuple(pixels.shape[1:])} came back as {tuple(decoded[0].shape[1:])}")
    return ReconstructedSet(torch.cat(decoded), torch.cat(latents), torch.cat(indices) if indices else None)


def _truths(held_out: ImageDataset, count: int) -> list[Item]:
    """Return the frame rate and the true attributes of each measured video; empty if the data have none."""
    items = [
        {key: item[key] for key in ("attributes", "fps") if key in item} for item in evenly_spaced(held_out, count)
    ]
    return items if all(len(item) == 2 and item["attributes"].get("objects") for item in items) else []


def detection_rate(truths: Sequence[Item], real: Tensor, rebuilt: Tensor) -> dict[str, Any]:
    """Return how often the detector finds the first object's true colour, shape and motion, before and after coding.

    Args:
        truths: Items with "fps", and "attributes" with the true objects.
        real, rebuilt: Videos before and after the autoencoder, uint8 (N, 3, T, H, W).

    Returns:
        of each attribute, and of all `together`, the share with its interval, and `real`, that of the real videos.
    """
    hits: dict[str, list[Tensor]] = {}
    for which, clips in (("made", rebuilt), ("real", real)):
        rows = []
        for item, clip in zip(truths, clips, strict=True):
            truth, seen = (
                item["attributes"]["objects"],
                detect_objects(clip, fps=item["fps"], max_objects=len(item["attributes"]["objects"])),
            )
            match = next((thing for thing in seen if thing.colour == truth[0]["colour"]), seen[0] if seen else None)
            detected = (None, None, None) if match is None else (match.colour, match.shape, match.motion_name)
            rows.append([value == truth[0][name] for value, name in zip(detected, SEEN, strict=True)])
        table = torch.tensor(rows)
        hits[which] = [*table.T, table.all(1)]
    names = (*SEEN, "together")
    return {
        name: {**proportion(mine)._asdict(), "real": theirs.double().mean().item()}
        for name, mine, theirs in zip(names, hits["made"], hits["real"], strict=True)
    }


def _psnr(real: Tensor, rebuilt: Tensor, seed: int) -> dict[str, Any]:
    """Decibels of the mean squared error over all images, and the mean of the decibels of each."""
    errors = torch.cat([mse(x, y) for x, y in zip(real.split(BATCH), rebuilt.split(BATCH), strict=True)])
    pooled = bootstrap(lambda rows: psnr(errors[rows].mean()).item(), len(errors), seed=seed)
    return {**pooled._asdict(), "per_picture": mean_interval(psnr(errors), seed), "count": len(errors)}


def _latents(latents: Tensor, real: Any) -> dict[str, Any]:
    """Return the size of the latents relative to the pixels, and their mean and standard deviation."""
    values = math.prod(latents.shape[1:])
    return {
        "shape": list(latents.shape[1:]),
        "values": values,
        "share": values / math.prod(real.pixels.shape[1:]),
        "mean": latents.double().mean().item(),
        "deviation": latents.double().std().item(),
    }


def _protocol(real: Any, networks: MetricNetworks, seed: int, codec: AutoencoderKL | VQModel) -> dict[str, Any]:
    features, judge = networks.features, networks.perceptual
    return {
        "version": VERSION,
        "codec": _STORED_NAMES.get(type(codec), type(codec).__name__),
        "weights": "ema",
        "latents": "the likeliest",
        "count": len(real.pixels),
        "shape": list(real.pixels.shape[1:]),
        "held_out_sha256": real.sha256(),
        "features": None if features is None else {"name": features.name, "sha256": features.sha256},
        "perceptual": None if judge is None else {"name": judge[0], "sha256": fingerprint(judge[1])},
        "seed": seed,
    }


def _sheet(real: Tensor, rebuilt: Tensor) -> bytes:
    if real.ndim == 5:
        rows = torch.arange(min(CLIPS, len(real))) * len(real) // min(CLIPS, len(real))
        return pictures.png(pictures.frame_rows(pictures.stack_rows(real[rows], rebuilt[rows], 1)))
    count = min(SHOWN, len(real)) // COLUMNS * COLUMNS or min(SHOWN, len(real))
    rows = torch.arange(count) * len(real) // count
    columns = min(COLUMNS, count)
    return pictures.png(pictures.make_grid(pictures.stack_rows(real[rows], rebuilt[rows], columns), columns))


def _findings(results: Results) -> list[Finding]:
    if not (psnr_results := results.get("psnr")):
        return []
    each = Finding("", *interval_of(psnr_results["per_picture"]), unit="dB").text
    remark = f"of the mean squared error over all {psnr_results['count']} images; mean over images: {each}"
    findings = [Finding("PSNR", *interval_of(psnr_results), unit="dB", remark=remark)]
    if ssim_results := results.get("ssim"):
        findings.append(Finding("SSIM", *interval_of(ssim_results), form=".4f", remark="1 for equal images"))
    if distance := results.get("perceptual"):
        remark = f"by {distance['network']}; 0 for equal images"
        findings.append(Finding("perceptual distance", *interval_of(distance), form=".4f", remark=remark))
    if rfid := results.get("rfid"):
        remark = f"reconstructions against their {rfid['count']} originals, by {rfid['features']}"
        findings.append(Finding("rFID", rfid["value"], form=".3f", remark=remark))
    if codebook := results.get("codebook"):
        note, remark = f" of {codebook['codes']} entries used", f"perplexity {codebook['perplexity']:.0f}"
        findings.append(Finding("codebook", codebook["used"], unit="%", note=note, remark=remark))
    if seen := results.get("things"):
        shares = ", ".join(f"{name} {rate['value']:.1%}" for name, rate in seen.items() if name != "together")
        real = seen["together"]["real"]
        remark = f"{shares}; in the original videos all three {real:.1%}"
        findings.append(Finding(_SEEN_TOGETHER, *interval_of(seen["together"]), unit="%", ceiling=real, remark=remark))
    if latents := results.get("latents"):
        note = f" values, {latents['share']:.3g} of the image's"
        remark = f"of shape {tuple(latents['shape'])}; mean {latents['mean']:.3f}, deviation {latents['deviation']:.3f}"
        findings.append(Finding("latents", latents["values"], form="d", note=note, remark=remark))
    return findings


JUDGE = Judge(
    key="psnr",
    title="Reconstructions",
    findings=_findings,
    metrics=lambda results: {
        "PSNR": "psnr.value",
        "SSIM": "ssim.value",
        "perceptual distance": "perceptual.value",
        "rFID": "rfid.value",
        "codebook used": "codebook.used",
        _SEEN_TOGETHER: "things.together.value",
    },
    figures={"rebuilt": "Held-out images, spaced evenly, each above its reconstruction."},
)
