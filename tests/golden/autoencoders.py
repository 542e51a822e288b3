"""Recorded autoencoders of latent diffusion: with a Gaussian, with a codebook, and the codebook alone."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.settings import Settings
from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, Quantised, VQModel, VQModelConfig
from unveil.autoencoders.vq import Order, Quantiser, Remap, codebook_usage
from unveil.checkpoints.formats import autoencoder


@torch.no_grad()
def autoencoder_kl(case: Case) -> Iterator[Comparison]:
    """AutoencoderKL: moments, the Gaussian and what is decoded."""
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
def vqmodel(case: Case) -> Iterator[Comparison]:
    """VQModel, and VQModelInterface, which quantises when it decodes.

    What follows the encoder starts from the recorded `prequant`: the rounding of another z is near the tolerance
    of what is decoded.
    """
    io, settings, arguments = case.io, case.meta["settings"], case.meta["arguments"]
    config = autoencoder.config_from_arguments(arguments)
    assert isinstance(config, VQModelConfig)
    config = replace(config, beta=settings["beta"], order=_order(settings["legacy"]))
    codec = autoencoder.build_autoencoder(case.weights(), config)
    assert isinstance(codec, VQModel)
    z = codec.encoded(io["x"])
    quantised = codec.quantise(io["prequant"])
    rows = {
        "prequant": z,
        "quant": quantised.latents,
        "emb_loss": quantised.loss,
        "indices": _indices(quantised.indices, io, ChainMap(arguments, settings)),  # type: ignore[arg-type]
        "decode_quant": codec.decoded(quantised.latents),
        "nearest_margin_min": _margin(codec.quantiser, io["prequant"]),
        "entry": codec.entry(quantised.indices),
        "interface_encode": codec.encode(io["x"]),
        "interface_decode": codec.decode(io["prequant"]),
        "interface_decode_noquant": codec.decoded(io["prequant"]),
    }
    for name, value in rows.items():
        if name in io:
            yield case.compare(name, value)


@torch.no_grad()
def quantizer(case: Case) -> Iterator[Comparison]:
    """VectorQuantizer and VectorQuantizer2 in both orders of the loss, with entries renumbered."""
    io, settings = case.io, case.meta["settings"]
    sizes = torch.tensor([case.meta["n_e"], case.meta["e_dim"]])
    yield case.compare("sizes of the codebook", torch.tensor(io["embedding"].shape), want=sizes)
    for name, variant in settings["variants"].items():
        yield from separately(name, _variant(case, name, variant, variant.get("beta", settings["beta"])))
    if "entry" in io:
        batch, _, height, width = io["entry"].shape
        tokens = io["entry_idx"].reshape(batch, height, width)
        yield case.compare("entry", _quantiser(io["embedding"], "legacy", settings["beta"]).entry(tokens))


def _variant(case: Case, name: str, variant: Settings, beta: float) -> Iterator[Comparison]:
    """One configuration of the published classes."""
    io, kind = case.io, variant.get("class", "VectorQuantizer2")
    if kind not in ("VectorQuantizer", "VectorQuantizer2"):
        raise Unsupported(f"class {kind!r}")
    quantised: Quantised = _quantiser(io["embedding"], _order(variant.get("legacy", True)), beta)(io["z"])
    indices = _indices(quantised.indices, io, variant)
    rows = {
        "zq": quantised.latents,
        "loss": quantised.loss,
        "perplexity": torch.tensor(codebook_usage(quantised.indices, len(io["embedding"])).perplexity),
        "indices": indices.reshape(-1, 1) if kind == "VectorQuantizer" else indices,
    }
    for field, value in rows.items():
        if f"{name}.{field}" in io:
            yield case.compare(f"{name}.{field}", value)


def _quantiser(embedding: Tensor, order: Order, beta: float) -> Quantiser:
    codes, width = embedding.shape
    quantiser = Quantiser(width, VQModelConfig(3, 3, 32, (1,), 1, width, codebook_size=codes, beta=beta, order=order))
    quantiser.codebook.copy_(embedding)
    return quantiser


def _order(legacy: bool) -> Order:
    return "legacy" if legacy else "fixed"


def _indices(indices: Tensor, io: dict[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Indices (B, h, w) as VectorQuantizer2 returns them: renumbered where `unknown_index` is set, and in its shape."""
    unknown, keeps_shape = settings.get("unknown_index"), settings.get("sane_index_shape", False)
    if unknown is not None:
        indices = Remap(tuple(io["used"].tolist()), unknown).remap_to_used(indices)
    if keeps_shape:
        return indices
    return indices.reshape(-1) if unknown is None else indices.reshape(-1, 1)


def _margin(quantiser: Quantiser, z: Tensor) -> Tensor:
    """How much further the second nearest entry is than the nearest, squared, at the least certain place."""
    places = z.movedim(1, -1).reshape(-1, z.shape[1]).double()
    distances = torch.cdist(places, quantiser.codebook.double()).square().sort(dim=1).values
    return (distances[:, 1] - distances[:, 0]).min().float()


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "latent-diffusion/autoencoder_kl": autoencoder_kl,
    "latent-diffusion/vqmodel": vqmodel,
    "taming-transformers/quantizer": quantizer,
}
