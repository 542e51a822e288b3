"""The references that invented cases are computed with give the outputs of the recorded cases."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import reference_ddpm, reference_dit, reference_song, reference_unet
from tests.golden.case import Case
from tests.golden.reference_layers import Weights
from tests.golden.reference_unet import Family

ROOT = os.environ.get("UNVEIL_GOLDEN")
WHOLE = re.compile("(first_stage_model|model.diffusion_model)[.]")  # of keys in a file of several parts
Outputs = dict[str, Tensor]


def autoencoder_kl(case: Case, w: Weights) -> Outputs:
    io, arguments = case.io, case.meta["arguments"]
    return {
        "moments": reference_ddpm.before(w, arguments, io["x"].double()),
        "decode_z": reference_ddpm.after(w, arguments, io["z"].double()),
    }


def vqmodel(case: Case, w: Weights) -> Outputs:
    io, arguments = case.io, case.meta["arguments"]
    w("quantize.embedding.weight", arguments["n_embed"], arguments["embed_dim"])
    return {
        "prequant": reference_ddpm.before(w, arguments, io["x"].double()),
        "decode_quant": reference_ddpm.after(w, arguments, io["quant"].double()),
    }


def ddpm(case: Case, w: Weights) -> Outputs:
    return {"out": reference_ddpm.network(w, case.meta["arguments"], case.io["x"].double(), case.io["t"])}


def dit(case: Case, w: Weights) -> Outputs:
    io, made = case.io, case.meta["constructor"]
    got = reference_dit.forward(w, made, io["input.x"].double(), io["input.t"], io["input.y"])
    if "input.cfg_x" in io:
        inputs = io["input.cfg_x"].double(), io["input.cfg_t"], io["input.cfg_y"]
        got |= {f"forward_with_cfg_{scale}": reference_dit.guided(w, made, inputs, scale) for scale in (1.5, 4.0)}
    return {f"output.{name}": value for name, value in got.items()}


def unet(family: Family) -> Callable[[Case, Weights], Outputs]:
    def outputs(case: Case, w: Weights) -> Outputs:
        io = {name.removeprefix("input."): value for name, value in case.io.items()}
        network = reference_unet.UNet(w, case.meta["constructor"], family)
        x = io["x"].double()
        x = reference_unet.with_smaller(x, io["low_res"].double()) if "low_res" in io else x
        got = {"output.forward": network(x, io["t"], y=io.get("y"))}
        return got | {f"output.features.{name}": value for name, value in network.features.items()}

    return outputs


def latent(case: Case, w: Weights) -> Outputs:
    io, network = case.io, reference_unet.UNet(w, case.meta["arguments"], "latent")
    context = io["context"].double() if "context" in io else None
    return {"out": network(io["x"].double(), io["timesteps"], y=io.get("y"), context=context)}


def cldm(case: Case, w: Weights) -> Outputs:
    io, arguments = case.io, case.meta["arguments"]
    network = reference_unet.UNet(w, arguments["unet"], "latent")
    x, t, context, hint = io["x"].double(), io["timesteps"], io["context"].double(), io["hint"].double()
    controlnet = reference_unet.ControlNet(w, arguments["controlnet"], "latent", "control_model.")
    parts = controlnet.residuals(x, t, hint, context)
    scaled = [part * scale for part, scale in zip(parts, io["control_scales"].double(), strict=True)]
    got = {"hint_embedding": controlnet.hinted(hint), "eps": network(x, t, context=context, control=scaled)}
    return got | {f"control.{number:02}": part for number, part in enumerate(parts)}


def classifier(case: Case, w: Weights) -> Outputs:
    io = case.io
    logits = reference_unet.classifier(w, case.meta["constructor"], io["input.x"].double(), io["input.t"])
    return {"output.logits": logits}


def edm(case: Case, w: Weights) -> Outputs:
    io, network = case.io, reference_song.Published(w, case.meta["klass"], case.meta["arguments"])
    classes, augment = (io[name].double() if name in io else None for name in ("class_labels", "augment_labels"))
    return {"out": network(io["x"].double(), io["noise_labels"], classes, augment)}


def ncsnpp(case: Case, w: Weights) -> Outputs:
    return {"out": reference_song.Numbered(w, case.meta["arguments"])(case.io["x"].double(), case.io["labels"])}


REFERENCES: dict[str, Callable[[Case, Weights], Outputs]] = {
    "latent-diffusion/autoencoder_kl": autoencoder_kl,
    "latent-diffusion/vqmodel": vqmodel,
    "ddim/unet": ddpm,
    "DiT/model": dit,
    "improved-diffusion/unet": unet("improved"),
    "improved-diffusion/superres": unet("improved"),
    "guided-diffusion/unet": unet("guided"),
    "guided-diffusion/superres": unet("guided"),
    "guided-diffusion/classifier": classifier,
    "consistency_models/unet": unet("consistency"),
    "latent-diffusion/unet": latent,
    "ControlNet/unet": latent,
    "ControlNet/cldm": cldm,
    "edm/network": edm,
    "score_sde_pytorch/ncsnpp": ncsnpp,
}


def folders() -> list[Path]:
    metas = sorted(Path(ROOT).glob("*/*/meta.json")) if ROOT else []
    return [meta.parent for meta in metas if Case(meta.parent).kind in REFERENCES]


@pytest.mark.skipif(not ROOT, reason="UNVEIL_GOLDEN names no folder of recorded cases")
@pytest.mark.parametrize("folder", folders(), ids=lambda path: f"{path.parent.name}/{path.name}")
@torch.no_grad()
def test_the_reference_gives_the_recorded_outputs(folder):
    case = Case(folder)
    weights = Weights(stored={WHOLE.sub("", key): value for key, value in case.weights().items()})
    outputs = REFERENCES[case.kind](case, weights)
    assert outputs.keys() & case.io.keys()
    for name, value in ((name, value) for name, value in outputs.items() if name in case.io):
        assert case.compare(name, value.to(case.io[name].dtype)).judge(case.rules).ok, name
    assert weights.used == weights.tensors.keys()
