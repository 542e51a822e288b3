"""Latent diffusion's autoencoders under settings that no record has, by a functional reference of the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.golden import reference_ddpm
from tests.golden.invented import Record, changed, check, failures, normal
from tests.golden.reference_layers import Weights

KL: dict[str, dict[str, Any]] = {
    # three levels, attention at two of them, a latent of another width than z
    "levels": {
        "double_z": True, "z_channels": 2, "resolution": 12, "in_channels": 1, "out_ch": 2, "ch": 32,
        "ch_mult": [1, 2, 1], "num_res_blocks": 2, "attn_resolutions": [12, 3], "dropout": 0.3,
    },
    # none of the attention, which has the resolution of a level here
    "without attention": {
        "z_channels": 5, "resolution": 8, "in_channels": 4, "out_ch": 3, "ch": 64, "ch_mult": [2, 1],
        "num_res_blocks": 1, "attn_resolutions": [8], "attn_type": "none",
    },
    "one level": {
        "z_channels": 3, "resolution": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [2],
        "num_res_blocks": 1, "attn_resolutions": [4],
    },
}  # fmt: skip


def gaussian(ddconfig: dict[str, Any], embed_dim: int, *, narrow: float) -> Record:
    """AutoencoderKL; `narrow` is taken from one channel's log-variance."""
    arguments = {"ddconfig": ddconfig, "embed_dim": embed_dim, "lossconfig": {"target": "torch.nn.Identity"}}
    w, rate = Weights(5), 2 ** (len(ddconfig["ch_mult"]) - 1)
    x = normal(1, 2, ddconfig["in_channels"], ddconfig["resolution"], 2 * ddconfig["resolution"])
    size = (2, embed_dim, x.shape[2] // rate, x.shape[3] // rate)
    reference_ddpm.before(w, arguments, x.double())
    w.tensors["quant_conv.bias"][embed_dim] -= narrow
    moments = reference_ddpm.before(w, arguments, x.double())
    mean, log = moments.chunk(2, 1)
    log = log.clamp(-30, 20)
    noise, z = normal(2, *size), normal(3, *size)
    sample = mean + (log / 2).exp() * noise
    got = {
        "moments": moments, "mean": mean, "logvar": log, "std": (log / 2).exp(), "mode": mean, "sample": sample,
        "kl": 0.5 * (mean**2 + log.exp() - 1 - log).flatten(1).sum(1),
        "decode_of_mode": reference_ddpm.after(w, arguments, mean),
        "decode_z": reference_ddpm.after(w, arguments, z.double()),
    }  # fmt: skip
    if not narrow:
        got["nll_of_sample"] = 0.5 * (math.log(2 * math.pi) + log + noise.double() ** 2).flatten(1).sum(1)
    io = {"x": x, "noise": noise, "z": z} | {name: value.float() for name, value in got.items()}
    return Record({"kind": "latent-diffusion/autoencoder_kl", "arguments": arguments}, io, w.tensors)


@pytest.mark.parametrize(("name", "embed_dim", "narrow"), [
    ("levels", 4, 0.0), ("without attention", 2, 60.0), ("one level", 3, -60.0),
])  # fmt: skip
@torch.no_grad()
def test_gaussian_autoencoders(tmp_path, name, embed_dim, narrow):
    changes: dict[tuple[str | int, ...], Any] = {
        ("arguments", "embed_dim"): embed_dim + 1, ("arguments", "ddconfig", "attn_resolutions"): [6],
        ("arguments", "ddconfig", "resolution"): 24, ("arguments", "ddconfig", "double_z"): False,
        ("arguments", "ddconfig", "resamp_with_conv"): False, ("arguments", "ddconfig", "tanh_out"): True,
    }  # fmt: skip
    record = gaussian(KL[name], embed_dim, narrow=narrow)
    if name == "levels":
        # what belongs to the training, and to files that are read before it
        others = {"monitor": "val/rec_loss", "image_key": "image", "ckpt_path": None, "ignore_keys": []}
        record = record._replace(meta=changed(record.meta, ("arguments",), {**record.meta["arguments"], **others}))
    if name == "without attention":
        del changes["arguments", "ddconfig", "attn_resolutions"], changes["arguments", "ddconfig", "resolution"]
        changes["arguments", "ddconfig", "attn_type"] = "vanilla"
    check(tmp_path, record, changes)


VQ: dict[str, dict[str, Any]] = {
    "levels": KL["levels"] | {"double_z": False, "attn_resolutions": [6]},
    "without attention": KL["without attention"] | {"double_z": False, "resolution": 16},
}


def codebook(
    ddconfig: dict[str, Any], sizes: tuple[int, int], settings: dict[str, Any], extra: dict[str, Any]
) -> Record:
    """VQModel and VQModelInterface with a codebook of some sizes."""
    entries, width = sizes
    arguments = {"ddconfig": ddconfig, "n_embed": entries, "embed_dim": width, **extra}
    w, shape = Weights(9), (2, ddconfig["in_channels"], 8, 12)
    x, used = normal(1, *shape), torch.arange(0, entries, 2)
    table = w("quantize.embedding.weight", entries, width)
    z = reference_ddpm.before(w, arguments, x.double()).float().double()
    flat = z.movedim(1, -1)
    distances = torch.cdist(flat.reshape(-1, width), table).square().sort(1)
    indices = distances.indices[:, 0]
    quant = table[indices].view(flat.shape).movedim(-1, 1)
    numbers = indices
    if (unknown := settings.get("unknown_index")) is not None:
        other = len(used) if unknown == "extra" else unknown
        numbers = torch.tensor([number // 2 if number % 2 == 0 else other for number in indices.tolist()])
    rows = (len(z), *z.shape[2:]) if extra.get("sane_index_shape") else (-1,) if unknown is None else (-1, 1)
    got = {
        "prequant": z, "quant": quant, "entry": quant, "emb_loss": (1 + settings["beta"]) * ((quant - z) ** 2).mean(),
        "nearest_margin_min": (distances.values[:, 1] - distances.values[:, 0]).min(), "interface_encode": z,
        "decode_quant": reference_ddpm.after(w, arguments, quant),
        "interface_decode_noquant": reference_ddpm.after(w, arguments, z),
    }  # fmt: skip
    io = {"x": x, "used": used, "indices": numbers.reshape(rows)} | {name: part.float() for name, part in got.items()}
    io["interface_decode"] = io["decode_quant"]
    return Record({"kind": "latent-diffusion/vqmodel", "arguments": arguments, "settings": settings}, io, w.tensors)


@pytest.mark.parametrize(("name", "sizes", "settings", "extra"), [
    ("levels", (7, 4), {"beta": 0.7, "legacy": False}, {"sane_index_shape": True}),
    ("levels", (40, 2), {"beta": 1.5, "legacy": True, "unknown_index": "extra"}, {}),
    ("without attention", (12, 3), {"beta": 0.1, "legacy": False, "unknown_index": 3}, {"sane_index_shape": True}),
])  # fmt: skip
@torch.no_grad()
def test_autoencoders_with_a_codebook(tmp_path, name, sizes, settings, extra):
    record = codebook(VQ[name], sizes, settings, extra)
    changes: dict[tuple[str | int, ...], Any] = {
        ("settings", "beta"): 0.25, ("arguments", "n_embed"): sizes[0] + 1, ("arguments", "embed_dim"): sizes[1] + 1,
        ("arguments", "sane_index_shape"): not extra, ("arguments", "ddconfig", "num_res_blocks"): 3,
    }  # fmt: skip
    if settings.get("unknown_index") is not None:
        changes["settings", "unknown_index"] = 1
    check(tmp_path, record, changes)


@torch.no_grad()
def test_the_order_of_the_loss_has_its_setting(tmp_path):
    """Both parts of the loss have one value, so that the order shows where a gradient is taken, and is read alone."""
    record = codebook(VQ["levels"], (7, 4), {"beta": 0.7, "legacy": True}, {})
    assert failures(tmp_path, record) == []
    del record.meta["settings"]["legacy"]
    assert any("KeyError: 'legacy'" in line for line in failures(tmp_path, record))
