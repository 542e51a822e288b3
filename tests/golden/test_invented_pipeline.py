"""Stable Diffusion as one file under settings that no record has: token numbers to images, by functional references."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import reference_ddpm
from tests.golden.invented import Record, check, normal
from tests.golden.reference_layers import Weights, heads_of, layer_norm, linear
from tests.golden.reference_unet import UNet

Made = dict[str, Any]
STAGE, TEXT, NET = "first_stage_model.", "cond_stage_model.transformer.text_model.", "model.diffusion_model."
SCALE = 0.18215


def encoded(w: Weights, made: Made, ids: Tensor) -> Tensor:
    """CLIP's text transformer: the last hidden state, normalised (Radford et al. 2021, section 2.4)."""
    width, length = made["hidden_size"], ids.shape[1]
    places = w(f"{TEXT}embeddings.position_embedding.weight", made["max_position_embeddings"], width)
    x = w(f"{TEXT}embeddings.token_embedding.weight", made["vocab_size"], width)[ids] + places[:length]
    later = torch.ones(length, length).triu(1) > 0
    for number in range(made["num_hidden_layers"]):
        key = f"{TEXT}encoder.layers.{number}"
        h = layer_norm(w, f"{key}.layer_norm1", x)
        query, keys, values = (
            heads_of(linear(w, f"{key}.self_attn.{part}_proj", h, width), made["num_attention_heads"]) for part in "qkv"
        )
        scores = (query @ keys.mT / query.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
        x = x + linear(w, f"{key}.self_attn.out_proj", (scores @ values).transpose(1, 2).flatten(2), width)
        h = linear(w, f"{key}.mlp.fc1", layer_norm(w, f"{key}.layer_norm2", x), made["intermediate_size"])
        h = h * torch.sigmoid(1.702 * h)  # what published files have
        x = x + linear(w, f"{key}.mlp.fc2", h, width)
    return layer_norm(w, f"{TEXT}final_layer_norm", x)


def pipeline(text: Made, net: Made, vae: Made, run: Made) -> Record:
    w, first = Weights(5), Weights(6)
    beta = torch.linspace(run["start"] ** 0.5, run["end"] ** 0.5, run["N"], dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - beta, 0)
    io = {
        "input_ids": torch.tensor([[2, 7, 3, 1, 0], [4, 4, 9, 2, 1]]),
        "uncond_ids": torch.tensor([[1, 0, 0, 0, 0]] * 2),
    }
    cond, null = encoded(w, text, io["input_ids"]), encoded(w, text, io["uncond_ids"])
    io |= {"cond": cond.float(), "uncond": null.float(), "x_T": normal(1, 2, net["in_channels"], 4, 4)}
    network, x = UNet(w, net, "latent", NET), io["x_T"].double()
    indices = [i + 1 for i in range(0, run["N"], run["N"] // run["steps"])][::-1]
    for here, there in pairwise([*indices, 0]):
        t = torch.full((2,), here)
        eps = network(x, t, context=null)
        eps = eps + run["scale"] * (network(x, t, context=cond) - eps)
        x0 = (x - (1 - bar[here]).sqrt() * eps) / bar[here].sqrt()
        x = bar[there].sqrt() * x0 + (1 - bar[there]).sqrt() * eps
    images = reference_ddpm.after(first, vae, x / SCALE)
    reference_ddpm.before(first, vae, images)
    io |= {"latents": x.float(), "decoded": images.float(), "image01": ((images + 1) / 2).clamp(0, 1).float()}
    weights = w.tensors | {f"{STAGE}{key}": value for key, value in first.tensors.items()}
    weights[f"{TEXT}embeddings.position_ids"] = torch.arange(text["max_position_embeddings"])[None]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    weights |= {"betas": beta.float(), "alphas_cumprod": bar.float(), "alphas_cumprod_prev": before.float()}
    meta = {
        "kind": "latent-diffusion/sd1_tiny_pipeline", "text_arguments": text, "unet_arguments": net,
        "vae_arguments": vae, "flags": f"Steps: DDIM {run['steps']} steps eta 0 CFG {run['scale']} from x_T",
    }  # fmt: skip
    return Record(meta, io, weights)


TEXTS: Made = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4,
    "projection_dim": 16, "max_position_embeddings": 5, "vocab_size": 11, "bos_token_id": 9, "eos_token_id": 10,
    "hidden_act": "quick_gelu",
}  # fmt: skip
NETS: Made = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "attention_resolutions": [1],
    "num_res_blocks": 1, "channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "transformer_depth": 1,
    "context_dim": 16, "use_checkpoint": False, "legacy": False,
}  # fmt: skip
VAES: Made = {
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    "lossconfig": {"target": "torch.nn.Identity"}, "embed_dim": 4,
}  # fmt: skip
CASES: list[tuple[Made, Made, Made, Made, dict[tuple[str | int, ...], Any]]] = [
    (
        TEXTS, NETS, VAES, {"N": 1000, "start": 0.001, "end": 0.02, "steps": 5, "scale": 3.25},
        {("text_arguments", "hidden_act"): "gelu", ("text_arguments", "num_attention_heads"): 8,
         ("vae_arguments", "ddconfig", "num_res_blocks"): 2},
    ),
    (
        TEXTS | {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 6},
        NETS | {"num_heads": -1, "num_head_channels": 16, "transformer_depth": 2, "in_channels": 3, "out_channels": 3,
                "channel_mult": [1, 2], "attention_resolutions": [2], "use_scale_shift_norm": True},
        VAES | {"embed_dim": 3, "ddconfig": VAES["ddconfig"] | {
            "attn_resolutions": [4], "ch_mult": [2, 1], "resolution": 8, "z_channels": 2,
        }},
        {"N": 1000, "start": 0.00085, "end": 0.012, "steps": 4, "scale": 1.0},
        {("unet_arguments", "num_head_channels"): 32, ("text_arguments", "num_hidden_layers"): 3,
         ("text_arguments", "strange"): 1},
    ),
    (
        TEXTS, NETS, VAES | {"ddconfig": VAES["ddconfig"] | {"ch_mult": [1], "resolution": 4}},
        {"N": 200, "start": 0.004, "end": 0.06, "steps": 2, "scale": -0.5},
        {("text_arguments", "vocab_size"): 12, ("unet_arguments", "num_heads"): 4,
         ("flags",): "Steps: DDIM 2 steps eta 0 CFG 0.5 from x_T"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "net", "vae", "run", "changes"), CASES)
@torch.no_grad()
def test_stable_diffusion_as_one_file(tmp_path, text, net, vae, run, changes):
    check(tmp_path, pipeline(text, net, vae, run), changes)
