"""EDM's networks and score SDE's under settings that no record has, by a functional reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.golden import reference_song
from tests.golden.invented import Record, check, normal, uniform
from tests.golden.reference_layers import Weights

Made = dict[str, Any]
Places = dict[tuple[str | int, ...], Any]

SONG: Made = {
    "img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 16, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip
SONGS: dict[str, tuple[Made, Places]] = {
    # both pyramids, one of sums of the input, through another filter
    "skip and residual": (
        {"encoder_type": "residual", "decoder_type": "skip", "resample_filter": [1, 2, 2, 1], "label_dim": 3,
         "channel_mult_emb": 2, "in_channels": 2, "out_channels": 5, "embedding_type": "fourier"},
        {("arguments", "decoder_type"): "standard", ("arguments", "resample_filter"): [1, 3, 3, 1]},
    ),
    "averages": (
        {"encoder_type": "skip", "resample_filter": [1, 1], "channel_mult_noise": 3, "channel_mult": [2, 1, 2],
         "augment_dim": 4, "label_dim": 2, "dropout": 0.4, "label_dropout": 0.1, "attn_resolutions": [2, 4],
         "num_blocks": 2},
        {("arguments", "encoder_type"): "residual", ("arguments", "channel_mult_noise"): 2},
    ),
    "fused averages": (
        {"encoder_type": "residual", "resample_filter": [1, 1], "channel_mult": [1, 1, 1], "attn_resolutions": []},
        {("arguments", "encoder_type"): "skip"},
    ),
    "six taps": (
        {"decoder_type": "skip", "resample_filter": [1, 5, 10, 10, 5, 1], "img_resolution": 12, "label_dim": 4,
         "attn_resolutions": [12, 6]},
        {("arguments", "resample_filter"): [1, 1], ("arguments", "attn_resolutions"): [6]},
    ),
    "one level": ({"channel_mult": [3], "model_channels": 8, "augment_dim": 2}, {("arguments", "label_dim"): 3}),
}  # fmt: skip
DHARIWAL: Made = {
    "img_resolution": 8, "in_channels": 1, "out_channels": 2, "model_channels": 32, "channel_mult": [2, 4],
    "num_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip
DHARIWALS: dict[str, tuple[Made, Places]] = {
    "labels alone": (
        {"label_dim": 3, "channel_mult_emb": 3, "dropout": 0.3, "label_dropout": 0.2},
        {("arguments", "channel_mult_emb"): 4},
    ),
    "augmented": (
        {"augment_dim": 5, "model_channels": 64, "channel_mult": [1, 1, 1], "attn_resolutions": [4, 2],
         "num_blocks": 2},
        {("arguments", "augment_dim"): 4, ("arguments", "num_blocks"): 1},
    ),
    "one level": ({"channel_mult": [2], "attn_resolutions": []}, {("arguments", "channel_mult"): [4]}),
}  # fmt: skip


def edm(klass: str, made: Made, *, augments: bool = True) -> Record:
    w, side = Weights(6), made["img_resolution"]
    network = reference_song.Published(w, klass, made)
    x, labels = normal(1, 3, made["in_channels"], side, 2 * side), torch.tensor([-1.2, 0.3, 0.9])
    io = {"x": x, "noise_labels": labels}
    if made.get("label_dim"):
        # no class, one, and parts of several
        io["class_labels"] = uniform(2, 3, made["label_dim"]) * torch.tensor([[0.0], [1.0], [0.5]])
    if made.get("augment_dim") and augments:
        io["augment_labels"] = normal(3, 3, made["augment_dim"])
    classes, augment = (io[name].double() if name in io else None for name in ("class_labels", "augment_labels"))
    io["out"] = network(x.double(), labels, classes, augment).float()
    return Record({"kind": "edm/network", "klass": klass, "arguments": made}, io, w.tensors)


@pytest.mark.parametrize("name", SONGS)
@torch.no_grad()
def test_song_unets(tmp_path, name):
    made, places = SONGS[name]
    places = places | {("klass",): "DhariwalUNet", ("arguments", "strange"): 1}
    check(tmp_path, edm("SongUNet", SONG | made, augments=name != "one level"), places)


@pytest.mark.parametrize("name", DHARIWALS)
@torch.no_grad()
def test_dhariwal_unets(tmp_path, name):
    made, places = DHARIWALS[name]
    check(tmp_path, edm("DhariwalUNet", DHARIWAL | made), places | {("klass",): "SongUNet"})


@pytest.mark.parametrize("klass", ["SongUNet", "DhariwalUNet"])
@torch.no_grad()
def test_defaults_of_edms_networks(tmp_path, klass):
    """What a case leaves out: levels, blocks and where attention is."""
    made = {
        "img_resolution": 16,
        "in_channels": 1,
        "out_channels": 1,
        "model_channels": 8 if klass == "SongUNet" else 64,
    }
    record = edm(klass, made if klass == "SongUNet" else made | {"channel_mult": [1, 1], "num_blocks": 1})
    check(tmp_path, record, {("arguments", "num_blocks"): 2, ("arguments", "attn_resolutions"): [4]})


# ---------------------------------------------------------------------- score SDE

MODEL: Made = {
    "sigma_min": 0.02, "sigma_max": 30.0, "num_scales": 50, "beta_min": 0.1, "beta_max": 20.0, "dropout": 0.2,
    "normalization": "GroupNorm", "nonlinearity": "swish", "resamp_with_conv": False, "conditional": True,
    "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan", "progressive": "none",
    "progressive_input": "none", "progressive_combine": "sum", "attention_type": "ddpm", "init_scale": 0.0,
    "fourier_scale": 16, "conv_size": 3, "scale_by_sigma": False, "fir": True, "embedding_type": "positional",
    "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "name": "ncsnpp", "ema_rate": 0.999,
}  # fmt: skip
SCORES: dict[str, tuple[Made, Made]] = {
    # pyramids on both ways, not rescaled, and images in [0, 1]
    "pyramids": (
        {"progressive": "output_skip", "progressive_input": "input_skip", "skip_rescale": False, "scale_by_sigma": True,
         "embedding_type": "fourier", "fir_kernel": [1, 2, 2, 1], "attn_resolutions": [4]},
        {"centered": False, "num_channels": 2},
    ),
    # the sigma of an index, and the pyramid's features beside the others
    "joined": (
        {"progressive_input": "input_skip", "progressive_combine": "cat", "scale_by_sigma": True, "fir": False,
         "num_res_blocks": 2, "ch_mult": [2, 1, 2], "attn_resolutions": [2, 4]},
        {"num_channels": 1},
    ),
    # blocks that do not resample
    "ddpm": (
        {"resblock_type": "ddpm", "progressive": "output_skip", "progressive_input": "residual", "nf": 24,
         "num_res_blocks": 2, "dropout": 0.0},
        {"num_channels": 3},
    ),
    "residual averages": (
        {"progressive_input": "residual", "fir": False, "skip_rescale": False, "resamp_with_conv": True,
         "ch_mult": [1, 1, 2], "attn_resolutions": []},
        {"num_channels": 3, "centered": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_networks_of_score_sde(tmp_path, name):
    model, data = SCORES[name]
    model = MODEL | model
    data = {"image_size": 8, "centered": True, "dataset": "CIFAR10", "random_flip": True, **data}
    arguments, w = {"model": model, "data": data, "training": {"continuous": True}}, Weights(11)
    x = normal(1, 2, data["num_channels"], 8, 8)
    labels = torch.tensor([0.05, 11.0]) if model["embedding_type"] == "fourier" else torch.tensor([3.7, 41.2])
    io = {"x": x, "labels": labels, "out": reference_song.Numbered(w, arguments)(x.double(), labels).float()}
    places: Places = {
        ("arguments", "model", "skip_rescale"): not model["skip_rescale"],
        ("arguments", "model", "scale_by_sigma"): not model["scale_by_sigma"],
        ("arguments", "data", "centered"): not data["centered"], ("arguments", "model", "conv_size"): 5,
        ("arguments", "model", "attn_resolutions"): [16, 1], ("arguments", "model", "fir"): not model["fir"],
        ("arguments", "model", "strange"): 1,
    }  # fmt: skip
    if not model["attn_resolutions"]:
        places["arguments", "model", "attn_resolutions"] = [8]
    check(tmp_path, Record({"kind": "score_sde_pytorch/ncsnpp", "arguments": arguments}, io, w.tensors), places)
