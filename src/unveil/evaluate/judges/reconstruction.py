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
COLUMNS, MAX_IMAGES = 10, 40  # columns and number of images on the page
MAX_VIDEOS = 8  # on the page, a row of frames each
_SEEN_TOGETHER = "colour, shape and motion seen"
SEEN = ("colour", "shape", "motion")  # attributes of an object that the detector reads
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

    Attributes:
        pixels: Images uint8 (N, C, H, W) or videos (N, C, T, H, W).
        latents: Scaled latents (N, C', h, w) or (N, C', t, h, w).
        indices: Indices (N, h, w) of codebook entries; None without a codebook.
    """

    pixels: Tensor
    latents: Tensor
    indices: Tensor | None


def evaluate_autoencoder(
    autoencoder: AutoencoderKL | VQModel,
    held_out: ImageDataset,
    networks: MetricNetworks,
    *,
    count: int | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Evaluate the reconstructions of held-out images or videos from the most likely latents.

    Args:
        codec: Autoencoder.
        held_out: Held-out images or videos.
        networks: Networks of the metrics.
        count: Number of images, which are spread evenly; None: all.
        seed: Seed of the bootstrap intervals.
        about: Metadata outside of the protocol: command, commit, CPU minutes.
        on_progress: Function of the name of the current measurement, called before each.

    Raises:
        ShapeError: The autoencoder does not support the size of the images.
        DataError: The data set is empty.
    """
    log = on_progress or (lambda _: None)
    real = collect_images(held_out, count)
    is_video = real.pixels.ndim == 5
    networks = networks._replace(features=None) if is_video else networks
    log("reconstructions")
    rebuilt = reconstruct(autoencoder, real.pixels)
    results: dict[str, Any] = {
        "psnr": _psnr(real.pixels, rebuilt.pixels, seed),
        "latents": _latents(rebuilt.latents, real),
    }
    missing: dict[str, str] = {}
    _compare(real, rebuilt, networks, seed, results, missing, log)
    if is_video:
        missing["rfid"] = "there is no feature network for videos"
    elif networks.features is None or len(real.pixels) <= networks.features.dim:
        missing["rfid"] = "needs a feature network, and more images than it has features"
    else:
        log("FID of the reconstructions")
        sides = (networks.features.features(side) for side in (rebuilt.pixels, real.pixels))
        results["rfid"] = {"value": fid(*sides), "count": len(real.pixels), "features": networks.features.name}
    if rebuilt.indices is not None and isinstance(autoencoder, VQModel):
        results["codebook"] = {
            **codebook_usage(rebuilt.indices, autoencoder.config.codebook_size)._asdict(),
            "codes": autoencoder.config.codebook_size,
        }
    else:
        missing["codebook"] = "the autoencoder has no codebook"
    if is_video:
        log("objects in the reconstructed videos")
        truths = _truths(held_out, len(real.pixels))
        results |= {"things": detection_rate(truths, real.pixels, rebuilt.pixels)} if truths else {}
        missing |= {} if truths else {"things": "the videos have no attributes"}
    protocol = _protocol(real, networks, seed, autoencoder)
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
    """Add the similarity of each image and its reconstruction."""
    if min(real.pixels.shape[-2:]) < WINDOW:
        missing["ssim"] = f"images of fewer than {WINDOW} pixels a side are smaller than its window"
    else:
        log("SSIM")
        results["ssim"] = mean_interval(chunked(ssim, real.pixels, rebuilt.pixels), seed)
    if networks.perceptual is None:
        missing["perceptual"] = "needs a perceptual network"
    else:
        log("perceptual distance")
        name, distance = networks.perceptual
        compared = chunked(lambda x, y: distance(*map(pictures.to_unit, (x, y))), real.pixels, rebuilt.pixels)
        results["perceptual"] = mean_interval(compared, seed) | {"network": name}


@torch.inference_mode()
def reconstruct(autoencoder: AutoencoderKL | VQModel, pixels: Tensor) -> ReconstructedSet:
    """Return the reconstructions of images uint8 (N, C, H, W) or videos (N, C, T, H, W) in float32.

    Raises:
        ShapeError: The autoencoder does not support the size of the images.
    """
    device = next(autoencoder.parameters()).device
    decoded: list[Tensor] = []
    latents: list[Tensor] = []
    indices: list[Tensor] = []
    for part in pixels.split(BATCH if pixels.ndim == 4 else max(BATCH // pixels.shape[2], 1)):
        z = autoencoder.encode(channels_last(pictures.to_unit(part).to(device)))
        decoded.append(pictures.to_pixels(autoencoder.decode(z)))
        latents.append(z.float().cpu())
        if isinstance(autoencoder, VQModel):
            indices.append(autoencoder.indices(z).cpu())
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
        The share of each attribute, and of all of them as `together`, with its interval, and the share of the real
        videos as `real`.
    """
    hits: dict[str, list[Tensor]] = {}
    for which, videos in (("rebuilt", rebuilt), ("real", real)):
        rows = []
        for item, frames in zip(truths, videos, strict=True):
            truth = item["attributes"]["objects"]
            objects = detect_objects(frames, fps=item["fps"], max_objects=len(truth))
            same_colour = (detected for detected in objects if detected.colour == truth[0]["colour"])
            match = next(same_colour, objects[0] if objects else None)
            detected = (None, None, None) if match is None else (match.colour, match.shape, match.motion_name)
            rows.append([value == truth[0][name] for value, name in zip(detected, SEEN, strict=True)])
        table = torch.tensor(rows)
        hits[which] = [*table.T, table.all(1)]
    names = (*SEEN, "together")
    return {
        name: {**proportion(outcomes)._asdict(), "real": real_outcomes.double().mean().item()}
        for name, outcomes, real_outcomes in zip(names, hits["rebuilt"], hits["real"], strict=True)
    }


def _psnr(real: Tensor, rebuilt: Tensor, seed: int) -> dict[str, Any]:
    """Return the PSNR of the mean squared error over all images, and the mean PSNR of the images."""
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


def _protocol(real: Any, networks: MetricNetworks, seed: int, autoencoder: AutoencoderKL | VQModel) -> dict[str, Any]:
    features, judge = networks.features, networks.perceptual
    return {
        "version": VERSION,
        "codec": _STORED_NAMES.get(type(autoencoder), type(autoencoder).__name__),
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
        rows = torch.arange(min(MAX_VIDEOS, len(real))) * len(real) // min(MAX_VIDEOS, len(real))
        return pictures.png(pictures.frame_rows(pictures.stack_rows(real[rows], rebuilt[rows], 1)))
    count = min(MAX_IMAGES, len(real)) // COLUMNS * COLUMNS or min(MAX_IMAGES, len(real))
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
