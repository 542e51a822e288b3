"""k-diffusion under settings that no record has, computed here from the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Record, check, normal, spread, uniform

# ---------------------------------------------------------------------- wrappers of k-diffusion


def interpolated(table: Tensor, places: Tensor) -> Tensor:
    """Values of a table between its places."""
    below = places.floor().long().clamp(max=len(table) - 2)
    return table[below] + (places - below) * (table[below + 1] - table[below])


def index_of(logs: Tensor, sigma: Tensor, quantize: bool) -> Tensor:
    """`sigma_to_t`, cut off at both ends."""
    wanted = sigma.double().log()
    if quantize:
        return (wanted[:, None] - logs).abs().argmin(1)
    below = torch.searchsorted(logs, wanted).sub(1).clamp(0, len(logs) - 2)
    share = ((wanted - logs[below]) / (logs[below + 1] - logs[below])).clamp(0, 1)
    return below + share


def compvis(schedule: dict[str, Any], settings: dict[str, Any]) -> Record:
    ends = schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5
    bar = torch.cumprod(1 - torch.linspace(*ends, schedule["N"], dtype=torch.float64) ** 2, 0)
    sigmas = ((1 - bar) / bar).sqrt()
    logs = sigmas.log()
    # the first and the last sigma are outside the table
    sigma = torch.tensor([sigmas[0] / 3, 0.4, 1.7, sigmas[-1] * 1.5]).float()
    x, noise = normal(1, 4, 2, 3, 3), normal(2, 4, 2, 3, 3)
    t_query = torch.tensor([0.0, 2.5, schedule["N"] - 1.25])
    io = {"x": x, "noise": noise, "sigma": sigma, "t_query": t_query, "sigma_query": sigma.flip(0)}
    io |= {"alphas_cumprod": bar.float(), "vd.t_query": torch.tensor([0.1, 0.7])}
    wide = spread(sigma.double(), x)
    unit = (1 + wide**2).rsqrt()

    def network(inner: dict[str, float], scaled: Tensor, t: Tensor) -> Tensor:
        return torch.sin(inner["a"] * scaled) + inner["b"] * spread(t.double(), scaled)

    def v_output(y: Tensor, noised: Tensor) -> Tensor:
        return noised * unit**2 - wide * unit * y

    noised, given = x + noise * wide, x * wide
    for name in ("eps.q0", "v.q1"):
        kind, variant = name.split(".")
        quantize = settings["quantize"][variant]
        t = index_of(logs, sigma, quantize)
        y, raw = network(settings["inner"], given * unit, t), network(settings["inner"], noised * unit, t)
        target = noise if kind == "eps" else (noised * unit**2 - x) / (wide * unit)
        places = torch.linspace(schedule["N"] - 1, 0, 5, dtype=torch.float64)
        got = {
            "sigmas": sigmas.float(), "t_to_sigma": interpolated(logs, t_query.double()).exp().float(),
            "denoised": given - wide * y if kind == "eps" else v_output(y, given),
            "loss": (raw - target).square().flatten(1).mean(1),
            "get_sigmas_5": torch.cat([interpolated(logs, places).exp(), torch.zeros(1)]),
        }  # fmt: skip
        io |= {f"{name}.{field}": value.float() for field, value in got.items()}
        query = index_of(logs, io["sigma_query"], quantize)
        io[f"{name}.sigma_to_t"] = query if quantize else query.float()
    t = index_of(logs, sigma, settings["quantize"]["openai"])
    io["openai.denoised"] = (given - wide * network(settings["inner"], given * unit, t)).float()
    continuous = lambda s: s.double().atan() / math.pi * 2  # noqa: E731
    t = continuous(sigma)
    y, raw = network(settings["vd_inner"], given * unit, t), network(settings["vd_inner"], noised * unit, t)
    got = {
        "sigma_to_t": continuous(io["sigma_query"]), "t_to_sigma": (io["vd.t_query"] * math.pi / 2).tan(),
        "denoised": v_output(y, given),
        "loss": (raw - (noised * unit**2 - x) / (wide * unit)).square().flatten(1).mean(1),
    }  # fmt: skip
    io |= {f"vd.{field}": value.float() for field, value in got.items()}
    return Record({"kind": "k-diffusion/wrappers", "schedule_settings": schedule, "settings": settings}, io)


@pytest.mark.parametrize(("size", "ends", "openai"), [(300, (0.002, 0.03), False), (120, (0.0004, 0.05), True)])
def test_wrappers_keep_sigmas_outside_the_table(tmp_path, size, ends, openai):
    schedule = {
        "kind": "discrete", "betas": "square-root-linear", "beta_start": ends[0], "beta_end": ends[1], "N": size,
    }  # fmt: skip
    settings = {
        "inner": {"formula": "sin(a*x) + b*t", "a": 0.8, "b": 0.01}, "vd_inner": {"a": 0.9, "b": 0.7},
        "quantize": {"q0": False, "q1": True, "openai": openai}, "clamped_to_table": {"t": True, "sigma": False},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {
        ("settings", "inner", "a"): 1.3, ("settings", "inner", "b"): 0.02, ("settings", "vd_inner", "b"): 0.5,
        ("settings", "quantize", "q0"): True, ("settings", "quantize", "openai"): not openai,
        ("settings", "clamped_to_table", "sigma"): True, ("schedule_settings", "N"): size + 1,
    }  # fmt: skip
    check(tmp_path, compvis(schedule, settings), changes)


# ---------------------------------------------------------------------- densities


@pytest.mark.parametrize("data", [0.7, 1.4])
def test_densities_have_their_own_arguments(tmp_path, data):
    densities: dict[str, dict[str, Any]] = {
        "rand_log_normal": {"from": "u", "loc": -0.4, "scale": 0.9},
        "rand_log_logistic": {"from": "u", "loc": 0.3, "scale": 1.1, "min_value": 0.02},
        "rand_log_uniform": {"from": "u", "min_value": 0.03, "max_value": 50.0},
        "rand_v_diffusion": {"from": "u", "sigma_data": 0.6, "max_value": 90.0},
    }
    u, x, noise = uniform(1, 6), normal(2, 3, 2, 2), normal(3, 3, 2, 2)
    sigma = torch.tensor([0.1, 1.0, 30.0])
    wide, even = spread(sigma.double(), x), u.double()
    width = (wide**2 + data**2).sqrt()
    skip, out = data**2 / width**2, wide * data / width
    network = lambda noised: torch.sin(0.7 * noised / width) + 0.2 * wide  # noqa: E731
    noised = x + noise * wide
    error = (network(noised) - (x - skip * noised) / out).square().flatten(1).mean(1)
    flat = sigma.double()
    logistic, angle = densities["rand_log_logistic"], densities["rand_v_diffusion"]
    low = torch.tensor(logistic["min_value"]).double().log().sub(logistic["loc"]).div(logistic["scale"]).sigmoid()
    high = math.atan(angle["max_value"] / angle["sigma_data"]) * 2 / math.pi
    normal_of_u = torch.distributions.Normal(-0.4, 0.9).icdf(even * (1 - 2e-7) + 1e-7)
    io = {
        "x": x, "noise": noise, "sigma": sigma, "u": u, "z": normal(9, 6),
        "scalings": torch.stack([part.flatten() for part in (skip, out, 1 / width)]).float(),
        "denoised": (skip * noised + out * network(noised)).float(), "karras.loss": error.float(),
        "snr.loss": (error * data**2 / (flat**2 + data**2)).float(), "rand_log_normal": normal_of_u.exp().float(),
        "rand_log_logistic": (low + even * (1 - low)).logit().mul(1.1).add(0.3).exp().float(),
        "rand_log_uniform": (math.log(0.03) + even * math.log(50 / 0.03)).exp().float(),
        "rand_v_diffusion": (0.6 * (even * high * math.pi / 2).tan()).float(),
    }  # fmt: skip
    meta = {
        "kind": "k-diffusion/denoiser_densities", "sigma_data": data,
        "settings": {"inner": {"a": 0.7, "b": 0.2}, "densities": densities},
    }  # fmt: skip
    places = ("settings", "densities")
    changes = {
        (*places, "rand_log_normal", "loc"): 0.0, (*places, "rand_log_logistic", "min_value"): 0.1,
        (*places, "rand_log_uniform", "max_value"): 80.0, (*places, "rand_v_diffusion", "sigma_data"): data,
        ("settings", "inner", "b"): 0.1, ("sigma_data",): 0.5, (*places, "rand_log_normal", "strange"): 1,
        (*places, "rand_log_normal", "from"): "z",
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)
