"""Consistency models, DPM-Solver's wrapper and DDIM under settings that no record has."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, karras, normal, spread
from tests.golden.invented_dpm import Vp

# ---------------------------------------------------------------------- consistency models


def toy(x: Tensor, sigma: float, net: dict[str, float], trained: dict[str, float], distilled: bool) -> Tensor:
    """x0 of the toy network behind either preconditioning."""
    data, low = trained["sigma_data"], trained["sigma_min"] if distilled else 0.0
    width = math.sqrt(sigma**2 + data**2)
    skip, out = data**2 / ((sigma - low) ** 2 + data**2), (sigma - low) * data / width
    inside, t = x / width, 250 * math.log(sigma)
    raw = net["a"] * inside + net["b"] * math.sin(net["c"] * t) + net["d"] * torch.tanh(torch.roll(inside, 1, dims=-1))
    return skip * x + out * raw


@pytest.mark.parametrize(
    ("trained", "net"),
    [
        ({"sigma_data": 0.8, "sigma_min": 0.01, "sigma_max": 60.0, "rho": 5.0}, (0.4, 0.2, 0.01, 0.3)),
        ({"sigma_data": 0.3, "sigma_min": 0.004, "sigma_max": 90.0, "rho": 9.0}, (0.6, -0.3, 0.002, 0.1)),
    ],
)
def test_the_toy_of_consistency_models(tmp_path, trained, net):
    numbers = dict(zip("abcd", net, strict=True))
    runs: dict[str, dict[str, Any]] = {
        "one": {"steps": 5, "sampler": "euler", "distillation": False, "sigma_min": 0.02, "sigma_max": 70.0,
                "rho": 4.0},
        "two": {"steps": 9, "sampler": "multistep", "ts": [0, 3, 8], "distillation": True, "sigma_min": 0.02,
                "clip_denoised": False},
        "three": {"steps": 6, "sampler": "onestep", "distillation": True},
    }  # fmt: skip
    io = {}
    for number, (name, run) in enumerate(runs.items()):
        noises = normal(number, 3, 2, 1, 3, 3)
        low, high = run.get("sigma_min", 0.002), run.get("sigma_max", 80.0)
        levels = karras(run["steps"], low, high, run.get("rho", 7.0))

        def denoised(x: Tensor, sigma: float, run: dict[str, Any] = run) -> Tensor:
            x0 = toy(x, sigma, numbers, trained, run["distillation"])
            return x0.clamp(-1, 1) if run.get("clip_denoised", True) else x0

        x = high * noises[0].double()
        if run["sampler"] == "euler":
            for here, there in pairwise(levels):
                x = x + (x - denoised(x, here)) / here * (there - here)
        elif run["sampler"] == "onestep":
            x = denoised(x, levels[0])
        else:
            stops = karras(run["steps"], low, high, trained["rho"])
            for draw, (here, there) in enumerate(zip(run["ts"][:-1], run["ts"][1:], strict=True), 1):
                wide = math.sqrt(max(min(stops[there], high) ** 2 - low**2, 0))
                x = denoised(x, stops[here]) + noises[draw] * wide
        io |= {f"{name}.noises": noises, f"{name}.sample": x.clamp(-1, 1).float()}
    meta = {
        "kind": "consistency_models/karras_sample_toy_net", "arguments": runs, "network": numbers,
        "settings": {"denoiser": trained},
    }  # fmt: skip
    changes = {
        ("settings", "denoiser", "sigma_data"): 0.5, ("settings", "denoiser", "sigma_min"): 0.002,
        ("settings", "denoiser", "rho"): 7.0, ("network", "d"): 0.2, ("arguments", "one", "rho"): 7.0,
        ("arguments", "two", "strange"): 1,
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


# ---------------------------------------------------------------------- DPM-Solver's wrapper


def wrapped(schedule: dict[str, Any], settings: dict[str, Any], scale: float) -> Record:
    t, x = torch.tensor([0.2, 0.61]), normal(1, 2, 2, 3)
    cond, null = normal(2, 2, 4), normal(3, 2, 4)
    names = {"continuous_beta_0": "beta_min", "continuous_beta_1": "beta_max", "ls": "beta_start", "le": "beta_end",
             "T": "N"}  # fmt: skip
    numbers = {name: schedule[theirs] for name, theirs in names.items() if theirs in schedule}
    vp = Vp({"kind": schedule["kind"], "kwargs": numbers}, cut=True)
    log_alpha = torch.tensor([vp.log_alpha(time) for time in t.double().tolist()], dtype=torch.float64)
    alpha = spread(log_alpha.exp(), x)
    sigma = (1 - alpha**2).sqrt()
    model, clock, classifier = settings["model"], settings["model_time"], settings["classifier"]
    network_time = clock["scale"] * (t.double() - clock["shift"])

    def output(vector: Tensor | None) -> Tensor:
        extra = 0 if vector is None else spread(model["c"] * vector.mean(1), x)
        return torch.tanh(model["a"] * x) + spread(model["b"] * network_time, x) + extra

    to_eps = {
        "noise": lambda y: y,
        "x_start": lambda y: (x - alpha * y) / sigma,
        "v": lambda y: alpha * y + sigma * x,
        "score": lambda y: -sigma * y,
    }
    io = {"x": x, "t": t, "cond": cond, "uncond": null, "model_t_input": network_time.float()}
    slope = 2 * classifier["a"] * spread(cond.mean(1), x) * x
    for name, eps in to_eps.items():
        guided = eps(output(null)) + scale * (eps(output(cond)) - eps(output(null)))
        got = {"uncond": eps(output(None)), "cfg": guided, "classifier": eps(output(None)) - scale * sigma * slope}
        io |= {f"{kind}.{name}": value.float() for kind, value in got.items()}
    meta = {
        "kind": "dpm-solver/model_wrapper", "guidance_scale": scale, "schedule_settings": schedule,
        "settings": settings,
    }  # fmt: skip
    return Record(meta, io)


@pytest.mark.parametrize(
    ("schedule", "clock"),
    [
        ({"kind": "linear", "beta_min": 0.3, "beta_max": 14.0}, {"scale": 1.0, "shift": 0.0}),
        (
            {"kind": "discrete", "betas": "square-root-linear", "beta_start": 0.002, "beta_end": 0.03, "N": 250},
            {"scale": 1000.0, "shift": 0.004},
        ),
        (
            {"kind": "discrete", "betas": "square-root-linear", "beta_start": 0.0009, "beta_end": 0.045, "N": 1000},
            {"scale": 1000.0, "shift": 0.0012},
        ),
    ],
)
def test_the_wrapper_of_networks(tmp_path, schedule, clock):
    settings = {
        "model": {"a": 0.6, "b": 0.02, "c": 0.4}, "model_time": clock, "classifier": {"a": -0.03, "b": 0.01},
    }  # fmt: skip
    changes: dict[tuple[str | int, ...], Any] = {("settings", "model", name): 0.9 for name in "abc"} | {
        ("settings", "model_time", "scale"): 500.0, ("settings", "model_time", "shift"): 0.1,
        ("settings", "classifier", "a"): -0.01, ("guidance_scale",): 4.0,
    }  # fmt: skip
    last = "beta_max" if schedule["kind"] == "linear" else "beta_end"
    check(tmp_path, wrapped(schedule, settings, 2.5), changes | {("schedule_settings", last): 0.9})


# ---------------------------------------------------------------------- DDIM


@pytest.mark.parametrize(("start", "end", "steps"), [(2e-4, 0.03, 90), (1e-3, 0.01, 150)])
def test_ddim_on_either_sequence(tmp_path, start, end, steps):
    exact, x_t, noise = Analytic.of(1, 1, 2, 2), normal(2, 2, 1, 2, 2), normal(3, 6, 2, 1, 2, 2)
    beta = torch.linspace(start, end, steps, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    runs: dict[str, dict[str, Any]] = {
        "u": {"function": "generalized_steps", "timesteps": 4, "skip_type": "uniform", "eta": 0.4},
        "q": {"function": "generalized_steps", "timesteps": 5, "skip_type": "quad", "eta": 0.9},
    }
    io = exact.io | {"x_T": x_t, "noise": noise, "betas": beta.float()}
    for name, run in runs.items():
        count, eta = run["timesteps"], run["eta"]
        last = math.sqrt(steps * 0.8)
        quad = [int((last * i / (count - 1)) ** 2) for i in range(count)]
        indices = list(range(0, steps, steps // count)) if run["skip_type"] == "uniform" else quad
        x, rows = x_t.double(), []
        for step, place in enumerate(range(len(indices) - 1, -1, -1)):
            here, there = bar[indices[place]], bar[indices[place - 1]] if place else torch.ones(()).double()
            x0 = exact.denoised(x / here.sqrt(), ((1 - here) / here).sqrt().item())
            eps = (x - here.sqrt() * x0) / (1 - here).sqrt()
            wide = eta * ((1 - here / there) * (1 - there) / (1 - here)).sqrt()
            x = there.sqrt() * x0 + wide * noise[step].double() + (1 - there - wide**2).sqrt() * eps
            rows.append((x, x0))
        got = {"out": x, "x_after_1": rows[0][0], "x0_pred_0": rows[0][1]}
        io |= {f"{name}.f64.{field}": value for field, value in got.items()}
    meta = {
        "kind": "ddim/generalized_steps", "beta_schedule": "linear", "beta_start": start, "beta_end": end,
        "num_diffusion_timesteps": steps, "runs": runs,
    }  # fmt: skip
    changes = {
        ("runs", "u", "timesteps"): 3, ("runs", "q", "skip_type"): "uniform", ("runs", "q", "eta"): 0.8,
        ("beta_end",): 0.02, ("runs", "u", "seq"): [0, 1],
    }  # fmt: skip
    check(tmp_path, Record(meta, io), changes)


@pytest.mark.parametrize(("start", "end", "steps"), [(3e-4, 0.04, 20), (1e-3, 0.015, 33)])
def test_tables_of_ddim(tmp_path, start, end, steps):
    line = torch.linspace(start, end, steps, dtype=torch.float64)
    root = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    curve = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start
    io = {"linear": line, "quad": root, "const": torch.full_like(line, end), "sigmoid": curve}
    settings = {"num_diffusion_timesteps": steps, "beta_start": start, "beta_end": end}
    meta = {"kind": "ddim/beta_schedules", "settings": settings, "arguments": "a remark"}
    check(tmp_path, Record(meta, io), {("settings", name): value * 2 for name, value in settings.items()})
