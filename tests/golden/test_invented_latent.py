"""Latent diffusion and quantizers under settings that no record has, computed here from the published formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.invented import Record, changed, check, failures, normal, spread
from tests.golden.reference_layers import Weights
from tests.golden.reference_unet import UNet

# ---------------------------------------------------------------------- tables, losses and a step


def table(run: dict[str, Any]) -> Tensor:
    """The betas of `register_schedule`."""
    steps, low, high = run.get("timesteps", 1000), run.get("linear_start", 1e-4), run.get("linear_end", 2e-2)
    match run.get("beta_schedule", "linear"):
        case "linear":
            return torch.linspace(math.sqrt(low), math.sqrt(high), steps, dtype=torch.float64) ** 2
        case "cosine":
            offset = run.get("cosine_s", 8e-3)
            angles = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * math.pi / 2
            curve = angles.cos() ** 2
            return (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
        case "sqrt":
            return torch.linspace(low, high, steps, dtype=torch.float64) ** 0.5
        case _:
            return torch.linspace(low, high, steps, dtype=torch.float64)


def ddpm_schedule(runs: dict[str, dict[str, Any]], inner: dict[str, float], clips: bool) -> Record:
    x0, noise = normal(1, 3, 2, 3, 3), normal(2, 3, 2, 3, 3)
    io = {"x_start": x0, "noise": noise}
    for name, run in runs.items():
        beta = table(run)
        steps, bar = len(beta), torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        share = run.get("v_posterior", 0.0)
        variance = (1 - share) * beta * (1 - before) / (1 - bar) + share * beta
        t = torch.tensor([0, steps // 2, steps - 3])
        a, s = bar.sqrt(), (1 - bar).sqrt()
        x = spread(a[t], x0) * x0 + spread(s[t], x0) * noise
        output = torch.tanh(inner["a"] * x) + inner["b"] * spread(t, x)
        of_noise = run.get("parameterization", "eps") == "eps"
        difference = output - (noise if of_noise else x0)
        error = (difference.abs() if run.get("loss_type") == "l1" else difference**2).flatten(1).mean(1)
        weights = beta**2 / (2 * variance * (1 - beta) * (1 - bar)) if of_noise else 0.5 * a / (2 * 1 - bar)
        weights[0] = weights[1]
        simple, bound = error.mean(), (weights[t] * error).mean()
        loss = run.get("l_simple_weight", 1.0) * simple + run.get("original_elbo_weight", 0.0) * bound
        estimate = (x - spread(s[t], x) * output) / spread(a[t], x) if of_noise else output
        estimate = estimate.clamp(-1, 1) if clips else estimate
        first = beta * before.sqrt() / (1 - bar)
        second = (1 - before) * (1 - beta).sqrt() / (1 - bar)
        deviation = variance.clamp(min=1e-20).sqrt()[t] * (t > 0)
        mean = lambda x0, x, first=first, second=second, t=t: spread(first[t], x) * x0 + spread(second[t], x) * x  # noqa: E731
        got = {
            "betas": beta, "alphas_cumprod": bar, "posterior_variance": variance, "lvlb_weights": weights,
            "logvar": torch.full((steps,), run.get("logvar_init", 0.0)),
            "q_sample": x, "x0_from_eps": (x - spread(s[t], x) * noise) / spread(a[t], x), "q_post_mean": mean(x0, x),
            "val/loss_simple": simple, "val/loss_vlb": bound, "val/loss": loss, "loss": loss,
            "p_sample": mean(estimate, x) + spread(deviation, x) * noise,
        }  # fmt: skip
        io |= {f"{name}.{field}": value.float() for field, value in got.items()} | {f"{name}.t": t}
    settings = {"inner": {"formula": "tanh(a*x) + b*t", **inner}, "clip_denoised": clips}
    return Record({"kind": "latent-diffusion/ddpm_schedule", "runs": runs, "settings": settings}, io)


def test_tables_and_losses_of_latent_diffusion(tmp_path):
    runs = {
        "c": {"beta_schedule": "cosine", "timesteps": 30, "cosine_s": 0.05, "original_elbo_weight": 0.3},
        "l": {
            "linear_start": 0.002, "linear_end": 0.03, "timesteps": 40, "v_posterior": 0.4, "l_simple_weight": 0.6,
            "loss_type": "l1", "parameterization": "x0", "original_elbo_weight": 0.1,
        },
    }  # fmt: skip
    record = ddpm_schedule(runs, {"a": 0.7, "b": 0.003}, clips=False)
    changes = {
        ("runs", "c", "cosine_s"): 0.008, ("runs", "c", "timesteps"): 31, ("runs", "l", "v_posterior"): 0.3,
        ("runs", "l", "loss_type"): "l2", ("runs", "l", "l_simple_weight"): 0.7, ("settings", "inner", "a"): 0.8,
        ("settings", "inner", "b"): 0.002, ("settings", "clip_denoised"): True, ("runs", "l", "strange"): 1,
    }  # fmt: skip
    check(tmp_path, record, changes)


def test_the_other_tables_of_latent_diffusion(tmp_path):
    runs = {
        "linear": {"beta_schedule": "sqrt_linear", "timesteps": 7, "linear_start": 0.01, "linear_end": 0.2,
                   "parameterization": "x0", "loss_type": "l2", "logvar_init": 0.4, "v_posterior": 1.0},
        "sqrt": {"beta_schedule": "sqrt", "timesteps": 90, "linear_start": 1e-6, "linear_end": 4e-4,
                 "l_simple_weight": 0.0, "original_elbo_weight": 1.0, "loss_type": "l1"},
        "cosine": {"beta_schedule": "cosine", "timesteps": 12, "parameterization": "x0", "linear_end": 0.5},
    }  # fmt: skip
    record = ddpm_schedule(runs, {"a": -1.3, "b": 0.02}, clips=True)
    changes = {
        ("runs", "linear", "beta_schedule"): "linear", ("runs", "linear", "logvar_init"): 0.0,
        ("runs", "linear", "v_posterior"): 0.9, ("runs", "sqrt", "linear_start"): 1e-4,
        ("runs", "sqrt", "beta_schedule"): "sqrt_linear", ("runs", "sqrt", "l_simple_weight"): 1.0,
        ("runs", "cosine", "parameterization"): "eps", ("settings", "clip_denoised"): False,
    }  # fmt: skip
    check(tmp_path, record, changes)


def test_an_error_in_one_run_hides_no_other(tmp_path):
    runs = {"a": {"timesteps": 10}, "b": {"timesteps": 12}}
    record = ddpm_schedule(runs, {"a": 1.1, "b": 0.1}, clips=True)
    assert failures(tmp_path, record) == []
    lines = failures(tmp_path, record._replace(meta=changed(record.meta, ("runs", "a", "beta_schedule"), "none")))
    assert any("REPO/case  a  " in line and "FAIL (KeyError" in line for line in lines)
    assert not any("  b" in line for line in lines)


# ---------------------------------------------------------------------- samplers

UNET = {
    "image_size": 32, "in_channels": 2, "out_channels": 2, "model_channels": 32, "attention_resolutions": [1],
    "num_res_blocks": 1, "channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "transformer_depth": 1,
    "context_dim": 6, "legacy": False,
}  # fmt: skip


def network() -> tuple[UNet, dict[str, Tensor]]:
    """A small network of random weights, and the weights by published key once it has run."""
    weights = Weights(2)
    return UNet(weights, UNET, "latent"), weights.tensors


class Published:
    """The samplers' loops as published, in float64."""

    def __init__(self, settings: dict[str, Any], io: dict[str, Tensor], unet: UNet) -> None:
        self.settings, self.io, self.unet = settings, io, unet
        self.bar = torch.cumprod(1 - table(settings["schedule"]), 0)

    def indices(self, run: dict[str, Any]) -> list[int]:
        total, count = len(self.bar), run["S"]
        if run.get("discretize") == "quad":
            return [int(i) + 1 for i in np.linspace(0, math.sqrt(total * self.settings["quad_share"]), count) ** 2]
        return [i + 1 for i in range(0, total, total // count)]

    def eps(self, x: Tensor, t: int, scale: float) -> Tensor:
        time = torch.full((len(x),), float(t))
        cond, null = (self.unet(x, time, context=self.io[name].double()) for name in ("cond", "uncond"))
        return null + scale * (cond - null)

    def moved(self, x: Tensor, eps: Tensor, t: int, before: float, deviation: float, noise: Tensor) -> Any:
        """x_prev and x0."""
        here = self.bar[t].item()
        x0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        there = math.sqrt(before) * x0 + math.sqrt(1 - before - deviation**2) * eps
        return there + deviation * noise.double(), x0

    def masked(self, run: dict[str, Any], x: Tensor, t: int, step: int) -> Tensor:
        if not run.get("use_mask"):
            return x
        mask, here = self.io["mask"].double(), self.bar[t].item()
        noised = math.sqrt(here) * self.io["x0"] + math.sqrt(1 - here) * self.io["q_noise"][step]
        return noised * mask + (1 - mask) * x

    def run(self, run: dict[str, Any]) -> dict[str, Tensor]:
        indices, scale = self.indices(run), run.get("unconditional_guidance_scale", run.get("scale", 1.0))
        before = [self.bar[0].item(), *(self.bar[i].item() for i in indices[:-1])]
        eta = run.get("eta", 0.0)
        deviations = [
            eta * math.sqrt((1 - b) / (1 - self.bar[i].item()) * (1 - self.bar[i].item() / b))
            for i, b in zip(indices, before, strict=True)
        ]
        got = {
            "ddim_timesteps": torch.tensor(indices), "ddim_alphas": self.bar[indices].float(),
            "ddim_alphas_prev": torch.tensor(before, dtype=torch.float64),
            "ddim_sigmas": torch.tensor(deviations, dtype=torch.float64),
        }  # fmt: skip
        x, steps = self.io["x_T"].double(), len(indices)
        if run["sampler"] == "img2img":
            steps = run["t_enc"]
            here, noise = self.bar[indices[steps]].item(), self.io["noise"][self.settings["img2img_noise"]]
            x = math.sqrt(here) * self.io["x0"].double() + math.sqrt(1 - here) * noise
            got["encoded"] = x.float()
        old: list[Tensor] = []
        for step in range(steps):
            place = steps - 1 - step
            t, below = indices[place], before[place]
            x = self.masked(run, x, t, step)
            eps = self.eps(x, t, scale)
            noise = run.get("temperature", 1.0) * self.io["noise"][step]
            if run["sampler"] == "plms":
                mean = self.multistep(run, x, eps, old, (t, below, indices[max(place - 1, 0)]), scale)
                old = [eps, *old][:3]
                x, x0 = self.moved(x, mean, t, below, 0.0, noise)
            else:
                x, x0 = self.moved(x, eps, t, below, deviations[place], noise)
            if step == 0 and run["sampler"] != "img2img":
                got |= {"x_first": x.float(), "pred_x0_first": x0.float()}
        return got | {"out": x.float()}

    def multistep(
        self,
        run: dict[str, Any],
        x: Tensor,
        eps: Tensor,
        old: list[Tensor],
        where: tuple[int, float, int],
        scale: float,
    ) -> Tensor:
        t, below, after = where
        match len(old):
            case 0:
                ahead, _ = self.moved(x, eps, t, below, 0.0, torch.zeros(()))
                return (eps + self.eps(ahead, after, scale)) / 2
            case 1:
                return (3 * eps - old[0]) / 2
            case 2:
                return (23 * eps - 16 * old[0] + 5 * old[1]) / 12
            case _:
                return (55 * eps - 59 * old[0] + 37 * old[1] - 9 * old[2]) / 24


SAMPLED: list[tuple[dict[str, Any], dict[str, dict[str, Any]], dict[tuple[str | int, ...], Any]]] = [
    (
        {"schedule": {"timesteps": 60, "beta_schedule": "cosine", "cosine_s": 0.03}, "quad_share": 0.7,
         "img2img_noise": 3, "mask_before": "step"},
        {
            "quad": {"sampler": "ddim", "S": 3, "eta": 0.6, "temperature": 0.8, "discretize": "quad", "scale": 2.0},
            "mask": {"sampler": "ddim", "S": 2, "eta": 0.4, "use_mask": True, "unconditional_guidance_scale": 1.5},
            "plms": {"sampler": "plms", "S": 5, "use_mask": True, "unconditional_guidance_scale": 3.0},
            "img2img": {"sampler": "img2img", "S": 4, "t_enc": 2, "scale": 1.5, "eta": 0.5},
        },
        {("settings", "schedule", "cosine_s"): 0.1, ("settings", "quad_share"): 0.8, ("settings", "img2img_noise"): 4,
         ("runs", "quad", "temperature"): 1.0, ("runs", "plms", "use_mask"): False},
    ),
    (
        {"schedule": {"timesteps": 50, "linear_start": 0.003, "linear_end": 0.2}, "quad_share": 0.5,
         "img2img_noise": 1, "mask_before": "step"},
        {
            # 50 // 4 makes five steps
            "ddim": {"sampler": "ddim", "S": 4, "eta": 0.0, "temperature": 2.0},
            "ddpm": {"sampler": "ddim", "S": 3, "eta": 1.0, "scale": 0.0},
            "quad": {"sampler": "plms", "S": 3, "discretize": "quad", "unconditional_guidance_scale": -1.0},
            "img2img": {"sampler": "img2img", "S": 3, "t_enc": 1, "use_mask": True, "temperature": 0.5, "eta": 1.0},
        },
        {("settings", "schedule", "linear_end"): 0.1, ("runs", "ddpm", "eta"): 0.9, ("runs", "ddpm", "scale"): 1.0,
         ("runs", "quad", "discretize"): "uniform", ("runs", "img2img", "t_enc"): 2,
         ("runs", "ddim", "sampler"): "plms", ("settings", "mask_before"): "call"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "runs", "changes"), SAMPLED)
def test_samplers_of_latent_diffusion(tmp_path, settings, runs, changes):
    unet, weights = network()
    shape = (2, 2, 4, 4)
    io = {
        "x_T": normal(1, *shape), "noise": normal(2, 8, *shape), "cond": normal(3, 2, 3, 6),
        "uncond": normal(4, 2, 3, 6),
        "x0": normal(5, *shape), "mask": (normal(6, 2, 1, 4, 4) > 0).float(), "q_noise": normal(7, 8, *shape),
    }  # fmt: skip
    published = Published(settings, io, unet)
    for name, run in runs.items():
        io |= {f"{name}.{field}": value for field, value in published.run(run).items()}
    meta = {"kind": "latent-diffusion/samplers", "runs": runs, "unet_arguments": UNET, "settings": settings}
    compare = {kind: {"rtol": 1e-3, "atol": 1e-5, "atol_of_max": 1e-3} for kind in ("float32", "float64")}
    check(tmp_path, Record({**meta, "compare": compare}, io, weights), changes)


# ---------------------------------------------------------------------- quantizers


def quantised(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest entries and their numbers, flattened b h w."""
    flat = z.movedim(1, -1).reshape(-1, z.shape[1])
    indices = torch.cdist(flat.double(), codebook.double()).argmin(1)
    return codebook[indices].view(*z.movedim(1, -1).shape).movedim(-1, 1), indices


@pytest.mark.parametrize(("beta", "unknown"), [(0.6, 2), (1.7, "extra")])
def test_quantizers(tmp_path, beta, unknown):
    z, codebook, used = normal(1, 2, 3, 2, 4), normal(2, 9, 3), torch.tensor([1, 4, 5, 7])
    entries, indices = quantised(z, codebook)
    other = len(used) if unknown == "extra" else unknown
    numbers = torch.tensor([used.tolist().index(i) if i in used else other for i in indices.tolist()])
    loss = (1 + beta) * ((entries - z) ** 2).mean()
    share = torch.bincount(indices, minlength=9) / len(indices)
    perplexity = (-(share * (share + 1e-10).log()).sum()).exp()
    variants: dict[str, dict[str, Any]] = {
        "v1": {"class": "VectorQuantizer"}, "sane": {"sane_index_shape": True}, "fixed": {"legacy": False},
        "remap_any": {"unknown_index": unknown}, "both": {"unknown_index": unknown, "sane_index_shape": True},
    }  # fmt: skip
    shapes = {"v1": (-1, 1), "sane": (2, 2, 4), "fixed": (-1,), "remap_any": (-1, 1), "both": (2, 2, 4)}
    io = {"z": z, "embedding": codebook, "used": used, "v1.perplexity": perplexity}
    io |= {
        "entry_idx": torch.tensor([[3, 1], [0, 8]]),
        "entry": codebook[torch.tensor([[[3, 1]], [[0, 8]]])].movedim(-1, 1),
    }
    for name, shape in shapes.items():
        renumbered = numbers if "unknown_index" in variants[name] else indices
        rows = {"zq": entries, "loss": loss, "indices": renumbered.reshape(shape)}
        io |= {f"{name}.{field}": value.clone() for field, value in rows.items()}
    meta = {
        "kind": "taming-transformers/quantizer", "n_e": 9, "e_dim": 3,
        "settings": {"beta": beta, "variants": variants},
    }  # fmt: skip
    changes = {
        ("settings", "beta"): 0.25, ("settings", "variants", "sane", "sane_index_shape"): False, ("n_e",): 8,
        ("settings", "variants", "remap_any", "unknown_index"): 1, ("settings", "variants", "both", "strange"): 1,
        ("settings", "variants", "v1", "class"): "VectorQuantizer2",
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)
