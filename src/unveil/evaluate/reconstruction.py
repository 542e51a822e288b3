"""How much of held-out pictures or clips an autoencoder keeps, and of what is seen in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.autoencoders.autoencoder import channels_last
from unveil.autoencoders.perceptual import LPIPS
from unveil.autoencoders.vq import usage
from unveil.evaluate.features import FeatureNetwork
from unveil.evaluate.frechet import fid
from unveil.evaluate.image_set import Pictured, Pictures, gather, spread
from unveil.evaluate.metrics import bootstrap, mean, share
from unveil.evaluate.perceptual import fingerprint
from unveil.evaluate.psnr_ssim import BATCH, WINDOW, decibels, in_parts, squared_errors, ssim
from unveil.evaluate.report import Report
from unveil.io import images as pictures
from unveil.playground.detector import read
from unveil.types import Item, ShapeError

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
COLUMNS, SHOWN = 10, 40  # of the page's sheet of pictures
CLIPS = 8  # shown on it, a row of frames each
SEEN = ("colour", "shape", "motion")  # of an object, that the detector reads


class Networks(NamedTuple):
    """What compares pictures; None leaves its metric out.

    Attributes:
        features: of the Frechet distance.
        perceptual: by its name.
    """

    features: FeatureNetwork | None = None
    perceptual: tuple[str, LPIPS] | None = None


class Kept(NamedTuple):
    """What came through a codec.

    pixels: uint8 (N, C, H, W), or clips (N, C, T, H, W). latents: (N, C', h, w) or (N, C', t, h, w), scaled. indices:
        (N, h, w) of a codebook's entries.
    """

    pixels: Tensor
    latents: Tensor
    indices: Tensor | None


def evaluate_autoencoder(
    codec: AutoencoderKL | VQModel,
    held_out: Pictured,
    networks: Networks,
    *,
    count: int | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """A report on held-out pictures, or clips, and what the codec's likeliest latents of them are decoded to, as bytes.

    Args:
        count: pictures, spread evenly; None: all.
        seed: of the bootstrap behind the intervals.
        about: for the record only: command, commit, CPU-minutes.
        on_progress: told what is being measured.

    Raises:
        ShapeError: pictures that the codec does not take.
        MediaError: no pictures.
    """
    tell = on_progress or (lambda _: None)
    real = gather(held_out, count)
    clips = real.pixels.ndim == 5
    networks = networks._replace(features=None) if clips else networks
    tell("pictures through the codec")
    kept = through(codec, real.pixels)
    results: dict[str, Any] = {"psnr": _psnr(real.pixels, kept.pixels, seed), "latents": _latents(kept.latents, real)}
    missing: dict[str, str] = {}
    _compare(real, kept, networks, seed, results, missing, tell)
    if clips:
        missing["rfid"] = "no feature network is of clips"
    elif networks.features is None or len(real.pixels) <= networks.features.dim:
        missing["rfid"] = "no feature network was given, or it has more features than there are pictures"
    else:
        tell("FID of the rebuilt pictures")
        sides = (networks.features.features(side) for side in (kept.pixels, real.pixels))
        results["rfid"] = {"value": fid(*sides), "count": len(real.pixels), "features": networks.features.name}
    if kept.indices is not None and isinstance(codec, VQModel):
        results["codebook"] = {
            **usage(kept.indices, codec.config.codebook_size)._asdict(),
            "codes": codec.config.codebook_size,
        }
    else:
        missing["codebook"] = "this codec has none"
    if clips:
        tell("what is seen in the rebuilt clips")
        told = _truths(held_out, len(real.pixels))
        results |= {"things": things(told, real.pixels, kept.pixels)} if told else {}
        missing |= {} if told else {"things": "these clips do not say what is in them"}
    protocol = _protocol(real, networks, seed, codec)
    images = {"rebuilt": _sheet(real.pixels, kept.pixels)} if real.pixels.shape[1] in (1, 3) else {}
    return Report(protocol, results, missing, {"unveil": __version__, **(about or {})}, images)


def _compare(
    real: Pictures,
    kept: Kept,
    networks: Networks,
    seed: int,
    results: dict[str, Any],
    missing: dict[str, str],
    tell: Callable[[str], None],
) -> None:
    """Adds how alike each picture and what became of it are."""
    if min(real.pixels.shape[-2:]) < WINDOW:
        missing["ssim"] = f"pictures of fewer than {WINDOW} pixels a side are smaller than its window"
    else:
        tell("SSIM")
        results["ssim"] = mean(in_parts(ssim, real.pixels, kept.pixels), seed)
    if networks.perceptual is None:
        missing["perceptual"] = "no perceptual network was given"
    else:
        tell("perceptual distance")
        name, distance = networks.perceptual
        compared = in_parts(lambda x, y: distance(*map(pictures.to_unit, (x, y))), real.pixels, kept.pixels)
        results["perceptual"] = mean(compared, seed) | {"network": name}


@torch.inference_mode()
def through(codec: AutoencoderKL | VQModel, pixels: Tensor) -> Kept:
    """Pictures uint8 (N, C, H, W), or clips (N, C, T, H, W), by the codec, at its likeliest latents, in float32.

    Raises:
        ShapeError: pictures that the codec does not take.
    """
    device = next(codec.parameters()).device
    made: list[Tensor] = []
    latents: list[Tensor] = []
    indices: list[Tensor] = []
    for part in pixels.split(BATCH if pixels.ndim == 4 else max(BATCH // pixels.shape[2], 1)):
        z = codec.encode(channels_last(pictures.to_unit(part).to(device)))
        made.append(pictures.to_pixels(codec.decode(z)))
        latents.append(z.float().cpu())
        if isinstance(codec, VQModel):
            indices.append(codec.indices(z).cpu())
    if made[0].shape[1:] != pixels.shape[1:]:
        raise ShapeError(f"pictures {tuple(pixels.shape[1:])} came back as {tuple(made[0].shape[1:])}")
    return Kept(torch.cat(made), torch.cat(latents), torch.cat(indices) if indices else None)


def _truths(held_out: Pictured, count: int) -> list[Item]:
    """Of each clip that is measured its rate and what is true of its objects; none where the data do not say it."""
    items = [{key: item[key] for key in ("attributes", "fps") if key in item} for item in spread(held_out, count)]
    return items if all(len(item) == 2 and item["attributes"].get("objects") for item in items) else []


def things(told: Sequence[Item], real: Tensor, made: Tensor) -> dict[str, Any]:
    """How often the detector finds the first object's colour, shape and motion in clips, real ones beside it.

    Args:
        told: of each clip "fps", and "attributes" with its objects.
        real, made: uint8 (N, 3, T, H, W), before the codec and after it.

    Returns:
        of each attribute, and of all `together`, the share with its interval, and `real`, that of the real clips.
    """
    hits: dict[str, list[Tensor]] = {}
    for which, clips in (("made", made), ("real", real)):
        rows = []
        for item, clip in zip(told, clips, strict=True):
            truth, seen = (
                item["attributes"]["objects"],
                read(clip, fps=item["fps"], most=len(item["attributes"]["objects"])),
            )
            one = next((thing for thing in seen if thing.colour == truth[0]["colour"]), seen[0] if seen else None)
            found = (None, None, None) if one is None else (one.colour, one.shape, one.does)
            rows.append([said == truth[0][name] for said, name in zip(found, SEEN, strict=True)])
        table = torch.tensor(rows)
        hits[which] = [*table.T, table.all(1)]
    names = (*SEEN, "together")
    return {
        name: {**share(mine)._asdict(), "real": theirs.double().mean().item()}
        for name, mine, theirs in zip(names, hits["made"], hits["real"], strict=True)
    }


def _psnr(real: Tensor, made: Tensor, seed: int) -> dict[str, Any]:
    """Decibels of the mean squared error over all pictures, and the mean of the decibels of each."""
    errors = torch.cat([squared_errors(x, y) for x, y in zip(real.split(BATCH), made.split(BATCH), strict=True)])
    pooled = bootstrap(lambda rows: decibels(errors[rows].mean()).item(), len(errors), seed=seed)
    return {**pooled._asdict(), "per_picture": mean(decibels(errors), seed), "count": len(errors)}


def _latents(latents: Tensor, real: Any) -> dict[str, Any]:
    """How many numbers a picture becomes, and whether they are scaled as a diffusion model wants them."""
    values = math.prod(latents.shape[1:])
    return {
        "shape": list(latents.shape[1:]),
        "values": values,
        "share": values / math.prod(real.pixels.shape[1:]),
        "mean": latents.double().mean().item(),
        "deviation": latents.double().std().item(),
    }


def _protocol(real: Any, networks: Networks, seed: int, codec: AutoencoderKL | VQModel) -> dict[str, Any]:
    features, judge = networks.features, networks.perceptual
    return {
        "version": VERSION,
        "codec": type(codec).__name__,
        "weights": "ema",
        "latents": "the likeliest",
        "count": len(real.pixels),
        "shape": list(real.pixels.shape[1:]),
        "held_out_sha256": real.sha256(),
        "features": None if features is None else {"name": features.name, "sha256": features.sha256},
        "perceptual": None if judge is None else {"name": judge[0], "sha256": fingerprint(judge[1])},
        "seed": seed,
    }


def _sheet(real: Tensor, made: Tensor) -> bytes:
    if real.ndim == 5:
        rows = torch.arange(min(CLIPS, len(real))) * len(real) // min(CLIPS, len(real))
        return pictures.png(pictures.strips(pictures.above(real[rows], made[rows], 1)))
    count = min(SHOWN, len(real)) // COLUMNS * COLUMNS or min(SHOWN, len(real))
    rows = torch.arange(count) * len(real) // count
    columns = min(COLUMNS, count)
    return pictures.png(pictures.sheet(pictures.above(real[rows], made[rows], columns), columns))
