"""Latent diffusion's U-Nets and ControlNets under settings that no record has, by a functional reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.golden import reference_unet
from tests.golden.invented import Record, check, normal
from tests.golden.reference_layers import Weights, waves

Made = dict[str, Any]
Places = dict[tuple[str | int, ...], Any]

PLAIN: Made = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": 1,
    "channel_mult": [1], "attention_resolutions": [1], "num_heads": 4,
}  # fmt: skip
TEXT: Made = PLAIN | {"use_spatial_transformer": True, "context_dim": 12, "legacy": False}
UNETS: dict[str, tuple[Made, Places]] = {
    # two levels with a transformer of two blocks at the first alone, ADM's blocks between them
    "depth 2": (
        TEXT | {"channel_mult": [1, 2], "transformer_depth": 2, "num_heads": -1, "num_head_channels": 16,
                "resblock_updown": True, "use_scale_shift_norm": True, "num_res_blocks": 2, "context_dim": [12],
                "dropout": 0.1, "use_fp16": False},
        {("arguments", "num_head_channels"): 32, ("arguments", "transformer_depth"): 1},
    ),
    # heads beside the width per head, which counts; the number of the decoder's heads does not
    "both heads": (
        TEXT | {"num_head_channels": 8, "num_heads_upsample": 2, "conv_resample": False, "channel_mult": [1, 1],
                "attention_resolutions": [2], "legacy": True},
        {("arguments", "num_head_channels"): 16, ("arguments", "conv_resample"): True},
    ),
    "classes": (
        PLAIN | {"num_classes": 3, "use_new_attention_order": True, "num_heads_upsample": 2, "channel_mult": [1, 1],
                 "attention_resolutions": [1, 2], "use_checkpoint": True},
        {("arguments", "use_new_attention_order"): False, ("arguments", "num_heads_upsample"): 4},
    ),
    # the heads of the decoder have no effect here, since the width per head is always counted
    "not legacy": (
        PLAIN | {"legacy": False, "num_heads_upsample": 2}, {("arguments", "legacy"): True},
    ),
    "beside x": (
        TEXT | {"in_channels": 9, "out_channels": 3, "num_heads": 2, "transformer_depth": 1,
                "use_scale_shift_norm": True},
        {("arguments", "num_heads"): 4, ("arguments", "use_scale_shift_norm"): False},
    ),
}  # fmt: skip


def unet(kind: str, made: Made, *, length: int = 5) -> Record:
    w = Weights(7)
    network, text = reference_unet.UNet(w, made, "latent"), made.get("use_spatial_transformer", False)
    x, t = normal(1, 2, made["in_channels"], 4, 8), torch.tensor([981, 0])
    io = {"x": x, "timesteps": t, "timestep_embedding": waves(t, made["model_channels"]).float()}
    context = normal(2, 2, length, 12) if text else None
    y = torch.tensor([2, 0]) if "num_classes" in made else None
    io |= {name: value for name, value in (("context", context), ("y", y)) if value is not None}
    inside = None if context is None else context.double()
    out = network(x.double(), t, y=y, context=inside).float()
    io["out"] = out
    if inside is not None:
        io["x_nonsquare"] = normal(3, 1, made["in_channels"], 8, 2)
        io["out_nonsquare"] = network(io["x_nonsquare"].double(), t[:1], context=inside[:1]).float()
        table, io["class_labels"] = normal(4, 3, 12), torch.tensor([2, 1])
        io |= {"cond_stage_model.embedding.weight": table, "class_embedding": table[io["class_labels"]][:, None]}
        io["out_class"] = network(x.double(), t, context=io["class_embedding"].double()).float()
    if made["in_channels"] != made["out_channels"]:
        io["out_hybrid" if text else "out_concat"] = out.clone()
    return Record({"kind": kind, "arguments": made}, io, w.tensors)


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unets_of_latent_diffusion(tmp_path, name):
    made, places = UNETS[name]
    check(tmp_path, unet("latent-diffusion/unet", made), places | {("arguments", "strange"): 1})


@torch.no_grad()
def test_an_image_beside_x_without_text(tmp_path):
    made = PLAIN | {"in_channels": 3, "out_channels": 1, "num_heads": 1, "channel_mult": [1, 2], "legacy": False}
    check(tmp_path, unet("latent-diffusion/unet", made), {("arguments", "num_heads"): 4})


@pytest.mark.parametrize("made", [
    TEXT | {"use_linear_in_transformer": True, "num_heads": 8, "transformer_depth": 2, "channel_mult": [1, 1],
            "num_res_blocks": [1, 1], "attention_resolutions": [1, 2]},
    TEXT | {"use_linear_in_transformer": False, "num_head_channels": 64, "num_res_blocks": 2, "num_classes": 4},
    PLAIN | {"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True, "channel_mult": [1, 1]},
])  # fmt: skip
@torch.no_grad()
def test_unets_of_controlnets_repository(tmp_path, made):
    heads = "num_head_channels" if "num_head_channels" in made else "num_heads"
    places: Places = {("arguments", heads): made[heads] // 2}
    if made.get("use_spatial_transformer"):
        places["arguments", "use_linear_in_transformer"] = not made["use_linear_in_transformer"]
    check(tmp_path, unet("ControlNet/unet", made), places)


# ---------------------------------------------------------------------- ControlNet


CONTROLS: list[tuple[Made, int]] = [
    (TEXT | {"channel_mult": [1, 2], "attention_resolutions": [1, 2], "num_heads": 2}, 1),
    (
        TEXT | {"channel_mult": [1, 1], "num_res_blocks": 2, "attention_resolutions": [2], "num_heads": -1,
                "num_head_channels": 32, "use_linear_in_transformer": True, "use_scale_shift_norm": True}, 4,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("made", "hint_channels"), CONTROLS)
@torch.no_grad()
def test_controlnets(tmp_path, made, hint_channels):
    own = {name: value for name, value in made.items() if name != "out_channels"} | {"hint_channels": hint_channels}
    w = Weights(8)
    network = reference_unet.UNet(w, made, "latent", "model.diffusion_model.")
    controlnet = reference_unet.ControlNet(w, own, "latent", "control_model.")
    x, t, context = normal(1, 2, 4, 2, 4), torch.tensor([3, 640]), normal(2, 2, 4, 12)
    hint = normal(3, 2, hint_channels, 16, 32).sigmoid()
    inputs = x.double(), t
    parts = controlnet.residuals(*inputs, hint.double(), context.double())
    scales = 0.3 + normal(4, len(parts)).abs()
    scaled = [part * scale for part, scale in zip(parts, scales.double(), strict=True)]
    middle = [*(torch.zeros_like(part) for part in scaled[:-1]), scaled[-1]]
    plain = network(*inputs, context=context.double())
    got = {
        "hint_embedding": controlnet.hinted(hint.double()), "eps_no_control": plain, "eps_cfg_guess_uncond": plain,
        "eps": network(*inputs, context=context.double(), control=scaled),
        "eps_only_mid": network(*inputs, context=context.double(), control=middle),
    } | {f"control.{number:02}": part for number, part in enumerate(parts)}  # fmt: skip
    io = {"x": x, "timesteps": t, "context": context, "hint": hint, "control_scales": scales}
    io |= {name: value.float() for name, value in got.items()}
    meta = {"kind": "ControlNet/cldm", "arguments": {"controlnet": own, "unet": made}, "n_controls": len(parts)}
    heads = "num_heads" if made["num_heads"] > 0 else "num_head_channels"
    places: Places = {
        ("arguments", "controlnet", "hint_channels"): 3, ("arguments", "controlnet", heads): 2 * made[heads],
        ("arguments", "unet", heads): 2 * made[heads], ("n_controls",): 2,
    }  # fmt: skip
    check(tmp_path, Record(meta, io, w.tensors), places)
