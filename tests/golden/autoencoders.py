"""Recorded autoencoders of latent diffusion: with a Gaussian, with a codebook, and the codebook alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, Quantised, VQModel, VQModelConfig
from unveil.autoencoders.vq import Order, Quantiser, Remap, codebook_usage
from unveil.checkpoints.formats import autoencoder


@torch.no_grad()
def autoencoder_kl(folder: Path) -> Iterator[Comparison]:
    """AutoencoderKL: moments, the Gaussian and what is decoded."""
    case = Case(folder)
    codec = autoencoder.build_autoencoder(case.weights(), autoencoder.config_from_arguments(case.meta["arguments"]))
    assert isinstance(codec, AutoencoderKL)
    assert isinstance(codec.config, AutoencoderKLConfig)
    io = case.io
    posterior = codec.posterior(io["x"])
    sample = posterior.sample(io["noise"])
    nll = 0.5 * (
        torch.log(torch.tensor(2 * torch.pi)) + posterior.logvar + (sample - posterior.mean) ** 2 / posterior.std**2
    )
    found = {
        "moments": codec.encoded(io["x"]),
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "std": posterior.std,
        "kl": posterior.kl(),
        "sample": sample,
        "mode": posterior.mode,
        "decode_of_mode": codec.decode(codec.encode(io["x"])),
        "decode_z": codec.decode(io["z"]) if "z" in io else None,
        "nll_of_sample": nll.flatten(1).sum(1),
    }
    for name, value in found.items():
        if name in io and value is not None:
            yield case.compare(name, value)


@torch.no_grad()
def vqmodel(folder: Path) -> Iterator[Comparison]:
    """VQModel, and VQModelInterface, which quantises when it decodes."""
    case = Case(folder)
    codec = autoencoder.build_autoencoder(case.weights(), autoencoder.config_from_arguments(case.meta["arguments"]))
    assert isinstance(codec, VQModel)
    z = codec.encoded(case.io["x"])
    found = codec.quantise(z)
    rows = {
        "prequant": z,
        "quant": found.latents,
        "emb_loss": found.loss,
        "indices": _shaped_as(case, "indices", _counted_anew(case.io, "indices", found.indices)),
        "decode_quant": codec.decoded(found.latents),
        "nearest_margin_min": _margin(codec.quantiser, case.io["prequant"]),
        "entry": codec.entry(found.indices),
        "interface_encode": codec.encode(case.io["x"]),
        "interface_decode": codec.decode(codec.encode(case.io["x"])),
        "interface_decode_noquant": codec.decoded(codec.encode(case.io["x"])),
    }
    for name, value in rows.items():
        if name in case.io:
            yield case.compare(name, value)


@torch.no_grad()
def quantizer(folder: Path) -> Iterator[Comparison]:
    """VectorQuantizer and VectorQuantizer2 in both orders of the loss, with entries counted again."""
    case = Case(folder)
    io, meta = case.io, case.meta
    for variant in sorted({name.partition(".")[0] for name in io if "." in name}):
        order: Order = "fixed" if variant == "fixed" else "legacy"
        quantiser = _quantiser(io["embedding"], order, float(meta.get("beta", 0.25)))
        found: Quantised = quantiser(io["z"])
        indices = found.indices
        if variant.startswith("remap"):
            indices = _counted_anew(io, f"{variant}.indices", indices)
        rows = {
            "zq": found.latents,
            "loss": found.loss,
            "perplexity": torch.tensor(codebook_usage(indices, len(io["embedding"])).perplexity),
            "indices": _shaped_as(case, f"{variant}.indices", indices),
        }
        for name, value in rows.items():
            if f"{variant}.{name}" in io:
                yield case.compare(f"{variant}.{name}", value)
    if "entry" in io:
        batch, _, height, width = io["entry"].shape
        tokens = io["entry_idx"].reshape(batch, height, width)
        yield case.compare("entry", _quantiser(io["embedding"], "legacy", 0.25).entry(tokens))


def _quantiser(embedding: Tensor, order: Order, beta: float) -> Quantiser:
    codes, width = embedding.shape
    quantiser = Quantiser(width, VQModelConfig(3, 3, 32, (1,), 1, width, codebook_size=codes, beta=beta, order=order))
    quantiser.codebook.copy_(embedding)
    return quantiser


def _shaped_as(case: Case, name: str, indices: Tensor) -> Tensor:
    """Indices (B, h, w) in the shape that was recorded, which depends on the caller's settings."""
    return indices.reshape(case.io[name].shape) if name in case.io else indices


def _counted_anew(io: dict[str, Tensor], name: str, indices: Tensor) -> Tensor:
    """Indices among those of `used`, where there is such a tensor.

    What stands for all others is in no setting: it is read off the first of them.
    """
    if "used" not in io:
        return indices
    used = io["used"]
    others = io[name].flatten()[~torch.isin(indices.flatten(), used)]
    unknown = int(others[0]) if len(others) else len(used)
    return Remap(tuple(used.tolist()), "extra" if unknown == len(used) else unknown).remap_to_used(indices)


def _margin(quantiser: Quantiser, z: Tensor) -> Tensor:
    """How much further the second nearest entry is than the nearest, squared, at the least certain place."""
    places = z.movedim(1, -1).reshape(-1, z.shape[1]).double()
    distances = torch.cdist(places, quantiser.codebook.double()).square().sort(dim=1).values
    return (distances[:, 1] - distances[:, 0]).min().float()


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {
    "latent-diffusion/autoencoder_kl": autoencoder_kl,
    "latent-diffusion/vqmodel": vqmodel,
    "taming-transformers/quantizer": quantizer,
}
