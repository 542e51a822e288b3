"""The U-Nets of Improved DDPM, ADM, consistency models and DDPM, and DiT, under settings that no record has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import reference_ddpm, reference_dit, reference_unet
from tests.golden.invented import Record, check, normal, spread
from tests.golden.reference_layers import Weights, waves
from tests.golden.reference_unet import Family

Made = dict[str, Any]
Places = dict[tuple[str | int, ...], Any]

# ---------------------------------------------------------------------- the family of Improved DDPM

# the first with weights that halve, two blocks a level and attention at the first level
CONVOLVED: Made = {
    "image_size": 8, "in_channels": 2, "model_channels": 64, "out_channels": 2, "num_res_blocks": 2,
    "attention_resolutions": [1], "channel_mult": [1, 1], "num_heads": 4, "dropout": 0.2, "use_checkpoint": False,
}  # fmt: skip
POOLED: Made = {
    "image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
    "attention_resolutions": [4], "channel_mult": [1, 2, 3], "num_heads": 2, "conv_resample": False,
    "use_scale_shift_norm": True, "num_classes": 5,
}  # fmt: skip
# ADM's blocks that halve and double, without scale and shift, and a width per head that is not the number of heads
UPDOWN: Made = {
    "image_size": 8, "in_channels": 4, "model_channels": 64, "out_channels": 4, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 3, "num_head_channels": 32,
    "num_heads_upsample": -1, "resblock_updown": True, "use_new_attention_order": True, "dims": 2, "use_fp16": False,
}  # fmt: skip
ORDERED: Made = {
    "image_size": 16, "in_channels": 3, "model_channels": 64, "out_channels": 6, "num_res_blocks": 2,
    "attention_resolutions": [1, 4], "channel_mult": [1.5, 0.5, 1], "num_heads": 2, "num_heads_upsample": 1,
    "num_classes": 3, "use_new_attention_order": True, "use_scale_shift_norm": True, "conv_resample": False,
}  # fmt: skip


def openai(kind: str, made: Made, size: tuple[int, int], *, smaller: bool = False) -> Record:
    """A network, its results on the way, and fractions and integers as times."""
    families: dict[str, Family] = {"improved-diffusion": "improved", "guided-diffusion": "guided",
                                   "consistency_models": "consistency"}  # fmt: skip
    w = Weights(len(made))
    network = reference_unet.UNet(w, made, families[kind.split("/")[0]])
    x, t, t_int = normal(1, 2, made["in_channels"], *size), torch.tensor([3.25, 812.5]), torch.tensor([0, 999])
    io = {"input.x": x, "input.t": t, "input.t_int": t_int}
    if smaller:
        io["input.low_res"] = normal(2, 2, made["in_channels"], size[0] // 2, size[1] // 4)
        x = reference_unet.with_smaller(x.double(), io["input.low_res"].double())
    if made.get("num_classes"):
        io["input.y"] = torch.tensor([made["num_classes"] - 1, 0])
    y = io.get("input.y")
    got = {"forward_t_int": network(x.double(), t_int, y=y), "forward": network(x.double(), t, y=y)}
    got |= {f"features.{name}": value for name, value in network.features.items()}
    got |= {"middle": network.features["middle"], "timestep_embedding": waves(t, made["model_channels"])}
    io |= {f"output.{name}": value.float() for name, value in got.items()}
    return Record({"kind": kind, "constructor": made}, io, w.tensors)


def changes_of(made: Made) -> Places:
    """Other values of the settings that change numbers without changing shapes, where the network has them."""
    places: Places = {("constructor", "num_res_blocks"): 3, ("constructor", "strange"): 1}
    if made.get("num_head_channels", -1) == -1:
        places["constructor", "num_heads"] = 2 * made["num_heads"]
        places["constructor", "num_heads_upsample"] = 8
    return places


@pytest.mark.parametrize(("made", "size"), [
    (CONVOLVED, (8, 12)), (CONVOLVED | {"num_heads_upsample": 1, "channel_mult": [1]}, (6, 4)), (POOLED, (8, 8)),
])  # fmt: skip
@torch.no_grad()
def test_unets_of_improved_ddpm(tmp_path, made, size):
    check(tmp_path, openai("improved-diffusion/unet", made, size), changes_of(made))


@pytest.mark.parametrize(("made", "size"), [(CONVOLVED, (8, 16)), (POOLED, (16, 8))])
@torch.no_grad()
def test_upsamplers_of_improved_ddpm(tmp_path, made, size):
    check(tmp_path, openai("improved-diffusion/superres", made, size, smaller=True), changes_of(made))


@pytest.mark.parametrize(("made", "size"), [
    (UPDOWN, (8, 8)), (ORDERED, (8, 12)), (CONVOLVED | {"num_head_channels": 8}, (4, 6)),
])  # fmt: skip
@torch.no_grad()
def test_unets_of_adm(tmp_path, made, size):
    order = not made.get("use_new_attention_order", False)
    places = changes_of(made) | {("constructor", "use_new_attention_order"): order}
    if "num_head_channels" in made:
        places["constructor", "num_head_channels"] = 2 * made["num_head_channels"]
    check(tmp_path, openai("guided-diffusion/unet", made, size), places)


@pytest.mark.parametrize(("made", "size"), [(UPDOWN, (8, 16)), (ORDERED, (8, 8))])
@torch.no_grad()
def test_upsamplers_of_adm(tmp_path, made, size):
    places: Places = {("constructor", "use_new_attention_order"): False}
    check(tmp_path, openai("guided-diffusion/superres", made, size, smaller=True), places)


# ---------------------------------------------------------------------- ADM's classifiers

CLASSIFIERS: dict[str, Made] = {
    "attention": {
        "image_size": 6, "num_res_blocks": 1, "out_channels": 4, "attention_resolutions": [1], "channel_mult": [1, 1],
        "num_head_channels": 32, "resblock_updown": False, "use_new_attention_order": True, "pool": "attention",
    },
    "adaptive": {
        "image_size": 8, "num_res_blocks": 2, "out_channels": 3, "attention_resolutions": [2], "channel_mult": [0.5, 1],
        "num_heads": 4, "use_scale_shift_norm": True, "conv_resample": False,
    },
    "spatial": {
        "image_size": 4, "num_res_blocks": 1, "out_channels": 2, "attention_resolutions": [1, 4],
        "channel_mult": [1, 1, 2], "num_head_channels": 16, "resblock_updown": True, "pool": "spatial",
    },
    "spatial_v2": {
        "image_size": 4, "num_res_blocks": 1, "out_channels": 5, "attention_resolutions": [], "channel_mult": [1],
        "num_heads": 8, "use_new_attention_order": True, "pool": "spatial_v2",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_noisy_classifiers(tmp_path, name):
    made, w = {"in_channels": 2, "model_channels": 64, **CLASSIFIERS[name]}, Weights(3)
    x = normal(1, 3, 2, made["image_size"], made["image_size"])
    t, y = torch.tensor([0.0, 41.5, 998.0]), torch.tensor([1, 0, made["out_channels"] - 1])
    inside = x.double().requires_grad_()
    logits = reference_unet.classifier(w, made, inside, t)
    score = logits.log_softmax(1).gather(1, y[:, None]).sum()
    (slope,) = torch.autograd.grad(score, inside)
    io = {"input.x": x, "input.t": t, "input.y": y, "output.logits": logits.detach().float()}
    io["output.grad_logprob_y"] = slope.float()
    heads = "num_heads" if "num_heads" in made else "num_head_channels"
    places: Places = {("constructor", heads): made[heads] // 2, ("constructor", "strange"): 1}
    places["constructor", "use_new_attention_order"] = not made.get("use_new_attention_order", False)
    check(tmp_path, Record({"kind": "guided-diffusion/classifier", "constructor": made}, io, w.tensors), places)


# ---------------------------------------------------------------------- consistency models


@pytest.mark.parametrize("made", [
    CONVOLVED | {"in_channels": 3, "out_channels": 3, "num_head_channels": 16, "use_new_attention_order": False},
    POOLED | {"in_channels": 2, "num_head_channels": 32, "attention_resolutions": [2, 4]},
])  # fmt: skip
@torch.no_grad()
def test_unets_of_consistency_models(tmp_path, made):
    record = openai("consistency_models/unet", made, (8, 12))
    network = reference_unet.UNet(Weights(stored=record.weights), made, "consistency")
    sigma, data = torch.tensor([0.03, 21.0]), 0.5
    x = record.io["input.x"].double() * spread(sigma, record.io["input.x"])
    results = {}
    for distilled, low in ((0, 0.0), (1, 0.002)):
        level = spread(sigma.double(), x)
        width = (level**2 + data**2).sqrt()
        skip, out = data**2 / ((level - low) ** 2 + data**2), (level - low) * data / width
        # the time is that of the level in float32
        raw = network(x / width, 250 * (sigma + 1e-44).log(), y=record.io.get("input.y"))
        results[f"output.denoise.distillation{distilled}"] = (skip * x + out * raw).float()
    record = record._replace(io=record.io | {"input.sigma": sigma} | results)
    check(tmp_path, record, {("constructor", "num_head_channels"): 64, ("constructor", "strange"): 1})


# ---------------------------------------------------------------------- DDPM's own


@pytest.mark.parametrize(("model", "side"), [
    (
        {"in_channels": 1, "out_ch": 2, "dropout": 0.0, "resamp_with_conv": False, "ch": 64, "ch_mult": [1, 2],
         "num_res_blocks": 2, "attn_resolutions": [4]}, 8,
    ),
    (
        {"type": "simple", "in_channels": 3, "out_ch": 3, "dropout": 0.4, "resamp_with_conv": True, "ch": 64,
         "ch_mult": [2, 1, 2], "num_res_blocks": 1, "attn_resolutions": [12, 3]}, 12,
    ),
])  # fmt: skip
@torch.no_grad()
def test_ddpms_own_unet(tmp_path, model, side):
    arguments, w = {"model": model, "data": {"image_size": side}}, Weights(1)
    x, t = normal(1, 2, model["in_channels"], side, side), torch.tensor([0.0, 771.0])
    io = {"x": x, "t": t, "temb_sin": waves(t, model["ch"], last=1, sines_first=True).float()}
    io["out"] = reference_ddpm.network(w, arguments, x.double(), t).float()
    places: Places = {
        ("arguments", "model", "resamp_with_conv"): not model["resamp_with_conv"],
        ("arguments", "model", "attn_resolutions"): [side], ("arguments", "data", "image_size"): 4 * side,
        ("arguments", "model", "strange"): 1,
    }  # fmt: skip
    if model["attn_resolutions"][0] == side:
        places["arguments", "model", "attn_resolutions"] = [6]
    check(tmp_path, Record({"kind": "ddim/unet", "arguments": arguments}, io, w.tensors), places)


# ---------------------------------------------------------------------- DiT


DITS: list[tuple[Made, list[float]]] = [
    ({"input_size": 6, "patch_size": 1, "in_channels": 5, "hidden_size": 32, "depth": 1, "num_heads": 8,
      "mlp_ratio": 3.0, "class_dropout_prob": 0.3, "num_classes": 4, "learn_sigma": True}, [0.5, 2.25]),
    ({"input_size": 12, "patch_size": 4, "in_channels": 4, "hidden_size": 16, "depth": 3, "num_heads": 1,
      "mlp_ratio": 1.5, "class_dropout_prob": 0.5, "num_classes": 7, "learn_sigma": False}, [7.0]),
    ({"input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 24, "depth": 2, "num_heads": 3,
      "class_dropout_prob": 0.1, "num_classes": 3}, [1.5]),
]  # fmt: skip
DEFAULTS: Made = {"mlp_ratio": 4.0, "learn_sigma": True}


@pytest.mark.parametrize(("made", "scales"), DITS)
@torch.no_grad()
def test_dits(tmp_path, made, scales):
    w, full = Weights(2), DEFAULTS | made
    x, t = normal(1, 3, made["in_channels"], made["input_size"], made["input_size"]), torch.tensor([0, 4, 998])
    y = torch.tensor([1, made["num_classes"], 0])
    io: dict[str, Tensor] = {"input.x": x, "input.t": t, "input.y": y, "input.t_fractional": t + 0.375}
    got = reference_dit.forward(w, full, x.double(), t, y)
    got["forward_t_fractional"] = reference_dit.forward(w, full, x.double(), io["input.t_fractional"], y)["forward"]
    half = normal(2, 2, *x.shape[1:])
    cfg = (torch.cat([half, half]), torch.tensor([5, 700, 5, 700]), torch.tensor([1, 0, *[made["num_classes"]] * 2]))
    io |= dict(zip(("input.cfg_x", "input.cfg_t", "input.cfg_y"), cfg, strict=True))
    inputs = cfg[0].double(), cfg[1], cfg[2]
    got["forward_null_class"] = reference_dit.forward(w, full, *inputs)["forward"]
    got |= {f"forward_with_cfg_{scale}": reference_dit.guided(w, full, inputs, scale) for scale in scales}
    io |= {f"output.{name}": value.float() for name, value in got.items()}
    meta = {"kind": "DiT/model", "constructor": made, "cfg_scales": scales}
    places: Places = {
        ("constructor", "num_heads"): 2, ("constructor", "patch_size"): 3, ("constructor", "class_dropout_prob"): 0.0,
        ("constructor", "mlp_ratio"): 2.0, ("constructor", "learn_sigma"): not full["learn_sigma"],
        ("cfg_scales", 0): 3.5, ("constructor", "strange"): 1,
    }  # fmt: skip
    check(tmp_path, Record(meta, io, w.tensors), places)


def test_a_dit_whose_labels_are_never_dropped(tmp_path):
    made, w = DITS[0][0] | {"class_dropout_prob": 0.0}, Weights(4)
    x, t, y = normal(1, 2, 5, 6, 6), torch.tensor([9, 10]), torch.tensor([3, 0])
    got = reference_dit.forward(w, made, x.double(), t, y)
    io = {"input.x": x, "input.t": t, "input.y": y} | {f"output.{name}": part.float() for name, part in got.items()}
    check(tmp_path, Record({"kind": "DiT/model", "constructor": made}, io, w.tensors),
          {("constructor", "class_dropout_prob"): 0.5, ("constructor", "num_classes"): 3})  # fmt: skip
