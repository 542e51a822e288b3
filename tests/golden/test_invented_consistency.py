"""Schedules, samplers, scalings and edits of consistency models under settings that no record has."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, karras, normal
from tests.golden.invented_k_samplers import ancestral

Settings = dict[str, Any]
Places = dict[tuple[str | int, ...], Any]

# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    "specs",
    [
        [{"n": 7, "sigma_min": 0.03, "sigma_max": 20.0, "rho": 4.5}, {"n": 1, "sigma_min": 0.1, "sigma_max": 3.0}],
        [{"n": 2, "sigma_min": 0.004, "sigma_max": 160.0, "rho": 1.0}, {"n": 12, "sigma_min": 0.5, "sigma_max": 0.6},
         {"n": 26, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 12.0}],
    ],
)  # fmt: skip
def test_schedules(tmp_path, specs):
    """Where a spec has no rho, it is the function's 7."""
    io = {}
    for k, spec in enumerate(specs):
        sigmas = karras(spec["n"], spec["sigma_min"], spec["sigma_max"], spec.get("rho", 7.0))
        down, up = zip(*(ancestral(*pair, 1.0) for pair in pairwise(sigmas)), strict=True)
        io[f"spec{k}.sigmas"] = torch.tensor(sigmas)
        io |= {f"spec{k}.ancestral.sigma_down": torch.tensor(down), f"spec{k}.ancestral.sigma_up": torch.tensor(up)}
    last = len(specs) - 1
    changes: Places = {
        ("specs", 0, "n"): 6, ("specs", 0, "sigma_min"): 0.02, ("specs", 0, "sigma_max"): 90.0,
        ("specs", last, "sigma_max"): 40.0, ("specs", last, "strange"): 1,
    }  # fmt: skip
    changes[("specs", last, "rho")] = 5.0
    if last == 1:
        del changes[("specs", last, "rho")]  # of one level
        changes[("specs", 0, "rho")] = 7.0
    check(tmp_path, Record({"kind": "consistency_models/karras_sigmas", "specs": specs}, io), changes)


# ---------------------------------------------------------------------- samplers

Denoise = Callable[[Tensor, float], Tensor]


def per_pixel(mixture: Settings) -> Denoise:
    """The denoiser of one mixture of numbers for every pixel."""
    exact = Analytic(
        torch.tensor(mixture["w"], dtype=torch.float64),
        torch.tensor(mixture["m"], dtype=torch.float64)[:, None],
        torch.tensor(mixture["s"], dtype=torch.float64),
    )
    return lambda x, sigma: exact.denoised(x.reshape(-1, 1), sigma).reshape(x.shape)


def churned(x: Tensor, sigma: float, noise: Tensor, count: int, options: Settings) -> tuple[Tensor, float]:
    """x with the noise that comes before a step, and its level."""
    inside = options.get("s_tmin", 0.0) <= sigma <= options.get("s_tmax", math.inf)
    gamma = min(options.get("s_churn", 0.0) / count, math.sqrt(2) - 1) if inside else 0.0
    hat = sigma * (1 + gamma)
    return x + options.get("s_noise", 1.0) * math.sqrt(hat**2 - sigma**2) * noise.double(), hat


def second_order(
    denoise: Denoise, x: Tensor, sigmas: list[float], noises: Tensor, options: Settings, *, heun: bool
) -> tuple[Tensor, list[Tensor]]:
    """`sample_heun` and `sample_dpm`; the sample, and x0 of the first call of each step."""
    shown = []
    for i, (sigma, there) in enumerate(pairwise(sigmas)):
        x, hat = churned(x, sigma, noises[i], len(sigmas) - 1, options)
        shown.append(denoise(x, hat))
        slope = (x - shown[-1]) / hat
        if heun and there == 0:
            x = x + (there - hat) * slope
        elif heun:
            ahead = x + (there - hat) * slope
            x = x + (there - hat) * 0.5 * (slope + (ahead - denoise(ahead, there)) / there)
        else:
            middle = ((hat ** (1 / 3) + there ** (1 / 3)) / 2) ** 3
            ahead = x + (middle - hat) * slope
            x = x + (there - hat) * (ahead - denoise(ahead, middle)) / middle
    return x, shown


def first_order(denoise: Denoise, x: Tensor, sigmas: list[float], noises: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """`sample_euler`, and with noises `sample_euler_ancestral`."""
    shown = []
    for i, (sigma, there) in enumerate(pairwise(sigmas)):
        low, up = (there, 0.0) if noises is None else ancestral(sigma, there, 1.0)
        shown.append(denoise(x, sigma))
        x = x + (low - sigma) * (x - shown[-1]) / sigma
        x = x if noises is None else x + up * noises[i].double()
    return x, shown


def stops(options: Settings) -> list[float]:
    """The levels of `stochastic_iterative_sampler`."""
    low, high = options.get("t_min", 0.002), options.get("t_max", 80.0)
    levels = karras(options.get("steps", 40), low, high, options.get("rho", 7.0))
    return [levels[number] for number in options["ts"]]


def multistep(
    denoise: Denoise, x: Tensor, noises: Tensor, options: Settings, change: Callable[[Tensor], Tensor] = lambda x0: x0
) -> Tensor:
    """`stochastic_iterative_sampler`, also with a changed x0."""
    low, high = options.get("t_min", 0.002), options.get("t_max", 80.0)
    for i, (here, there) in enumerate(pairwise(stops(options))):
        width = math.sqrt(max(min(max(there, low), high) ** 2 - low**2, 0.0))
        x = change(denoise(x, here)) + width * noises[i].double()
    return x


MIXTURES = [
    {"w": [0.25, 0.75], "m": [-0.5, 0.6], "s": [0.15, 0.3]},
    {"w": [0.1, 0.2, 0.3, 0.4], "m": [-0.9, -0.2, 0.4, 1.2], "s": [0.05, 0.2, 0.1, 0.4]},
]
RUNS: list[tuple[Settings, tuple[int, ...], dict[str, Settings]]] = [
    (
        {"n": 6, "sigma_min": 0.02, "sigma_max": 30.0, "rho": 5.0}, (3, 1, 2, 3),
        {"heun": {}, "heun_churn0": {"s_churn": 1.5}, "heun_churn1": {"s_churn": 9.0, "s_tmin": 0.3, "s_tmax": 12.0},
         "dpm": {}, "dpm_churn0": {"s_churn": 2.0, "s_noise": 1.02}, "euler": {}, "ancestral": {}, "onestep": {},
         "progdist": {}, "multistep0": {"ts": [0, 12, 30, 39]},
         # neither from the first level nor to the last
         "multistep1": {"ts": [3, 9, 14], "steps": 20, "t_min": 0.05, "t_max": 25.0, "rho": 3.0}},
    ),
    # the function's rho, one sample, two levels
    (
        {"n": 2, "sigma_min": 0.4, "sigma_max": 9.0}, (1, 2, 2, 2),
        {"heun": {"s_churn": 0.3, "s_tmax": 5.0}, "dpm1": {"s_churn": 8.0, "s_tmin": 1.0}, "euler": {}, "ancestral": {},
         "onestep": {}, "progdist": {}, "multistep2": {"ts": [0, 4], "steps": 9, "t_max": 60.0}},
    ),
]  # fmt: skip
CHANGES: list[dict[str, Settings]] = [
    {"heun": {"s_churn": 0.5}, "heun_churn1": {"s_churn": 0.0, "s_tmin": 4.0, "s_tmax": 0.35}, "dpm": {"s_churn": 1.0},
     "dpm_churn0": {"s_churn": 1.9, "s_noise": 1.0, "s_tmax": 10.0},
     "multistep0": {"ts": [0, 13, 30, 39], "t_max": 60.0},
     "multistep1": {"ts": [3, 9, 15], "steps": 21, "t_min": 0.04, "t_max": 20.0, "rho": 4.0}},
    {"heun": {"s_churn": 0.2, "s_tmax": 10.0}, "dpm1": {"s_churn": 0.1, "s_tmin": 10.0},
     "multistep2": {"ts": [0, 5], "steps": 10, "rho": 5.0, "t_min": 0.1}},
]  # fmt: skip


def sampled(name: str, options: Settings, denoise: Denoise, sigmas: list[float], x: Tensor) -> dict[str, Tensor]:
    """What a record has of one sampler."""
    kind = name.rstrip("0123456789").removesuffix("_churn")
    noises = normal(len(name), 8, *x.shape)
    drawn = {"noises": noises}
    match kind:
        case "heun" | "dpm":
            sample, shown = second_order(denoise, x, sigmas, noises, options, heun=kind == "heun")
        case "ancestral":
            sample, shown = first_order(denoise, x, sigmas, noises)
        case "euler" | "progdist":
            sample, shown = first_order(denoise, x, sigmas[:-1] if kind == "progdist" else sigmas, None)
            drawn = {}
        case "onestep":
            return {"sample": denoise(x, sigmas[0]).float()}
        case _:
            return {"sample": multistep(denoise, x, noises, options).float()} | drawn
    return {"sample": sample.float(), "denoised": torch.stack(shown).float()} | drawn


@pytest.mark.parametrize("number", [0, 1])
def test_samplers(tmp_path, number):
    spec, shape, runs = RUNS[number]
    mixture = MIXTURES[number]
    sigmas = karras(spec["n"], spec["sigma_min"], spec["sigma_max"], spec.get("rho", 7.0))
    x = spec["sigma_max"] * normal(9, *shape)
    io = {"x_T": x, "sigmas": torch.tensor(sigmas)}
    for name, options in runs.items():
        outputs = sampled(name, options, per_pixel(mixture), sigmas, x.double())
        io |= {f"{name}.{key}": value for key, value in outputs.items()}
    meta = {"kind": "consistency_models/samplers", "denoiser": mixture, "sigmas": spec, "arguments": runs}
    places: Places = {
        ("denoiser", "m", 0): 0.0, ("denoiser", "s", 1): 0.5, ("denoiser", "w", 0): 0.6, ("sigmas", "n"): 5,
        ("sigmas", "sigma_min"): 0.03, ("sigmas", "sigma_max"): 10.0, ("arguments", "euler", "strange"): 1,
    }  # fmt: skip
    if number == 0:
        places["sigmas", "rho"] = 6.0
    for name, options in CHANGES[number].items():
        places |= {("arguments", name, option): value for option, value in options.items()}
    check(tmp_path, Record(meta, io), places)


# ---------------------------------------------------------------------- scalings


@pytest.mark.parametrize(
    ("specs", "sigma"),
    [
        # one sigma on the boundary, one below
        ([{"sigma_data": 0.7, "sigma_min": 0.05, "sigma_max": 40.0, "rho": 3.0},
          {"sigma_data": 3.0, "sigma_min": 0.001}], [0.01, 0.05, 0.4, 2.5, 30.0]),
        ([{"sigma_data": 0.1, "sigma_min": 0.2, "sigma_max": 9.0}], [0.3, 1.0, 1e3]),
    ],
)  # fmt: skip
def test_scalings(tmp_path, specs, sigma):
    io = {"input.sigma": torch.tensor(sigma)}
    s = io["input.sigma"].double()
    for k, spec in enumerate(specs):
        data, low = spec["sigma_data"], spec["sigma_min"]
        width, snr = (s**2 + data**2).sqrt(), s**-2
        columns = {
            "edm.c_skip": data**2 / width**2, "edm.c_out": s * data / width, "edm.c_in": 1 / width,
            "consistency.c_skip": data**2 / ((s - low) ** 2 + data**2), "consistency.c_out": (s - low) * data / width,
            "consistency.c_in": 1 / width, "rescaled_t": 250 * s.log(), "snr": snr, "weight.snr": snr,
            "weight.snr+1": snr + 1, "weight.karras": snr + data**-2, "weight.truncated-snr": snr.clamp(min=1),
            "weight.uniform": torch.ones_like(s),
        }  # fmt: skip
        io |= {f"spec{k}.{name}": column.float() for name, column in columns.items()}
    changes: Places = {
        ("specs", 0, "sigma_data"): 0.5, ("specs", 0, "sigma_min"): 0.002, ("specs", len(specs) - 1, "sigma_data"): 2.0,
        ("specs", len(specs) - 1, "sigma_min"): 0.03, ("specs", 0, "strange"): 1,
    }  # fmt: skip
    check(tmp_path, Record({"kind": "consistency_models/scalings", "specs": specs}, io), changes)


# ---------------------------------------------------------------------- edits


def direction(vector: list[float]) -> Tensor:
    """The unit vector along numbers."""
    line = torch.tensor(vector, dtype=torch.float64)
    return line / line.norm()


def brightness(x: Tensor) -> Tensor:
    """The part of each pixel's colour along the weights of luminance."""
    weights = direction([0.2989, 0.5870, 0.1140])
    return torch.einsum("bchw,c,d->bdhw", x.double(), weights, weights)


def block_means(x: Tensor) -> Tensor:
    """The means of blocks of 8 x 8 pixels, at every pixel."""
    blocks = x.double().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


EDITS: list[tuple[Settings, tuple[int, ...], Places]] = [
    (
        {"ts": [0, 4, 11, 20], "steps": 24, "t_min": 0.01, "t_max": 30.0, "rho": 4.0}, (1, 3, 8, 8),
        {("ts",): [0, 5, 11, 20], ("steps",): 25, ("t_min",): 0.02, ("t_max",): 25.0, ("rho",): 3.0},
    ),
    # the defaults of the functions
    ({"ts": [2, 39]}, (2, 3, 32, 32), {("ts",): [3, 39], ("steps",): 30, ("t_max",): 20.0, ("rho",): 3.0}),
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_edits(tmp_path, number):
    """Both keep a projection of the images: with it replaced, the rest of x0 is the denoiser's."""
    options, shape, places = EDITS[number]
    denoise, images = per_pixel(MIXTURES[number]), normal(1, *shape).clamp(-1, 1)
    x = stops({**options, "ts": [0]})[0] * normal(2, *shape)
    io = {"input.images": images, "input.x_T": x}
    for name, project in (("colorization", brightness), ("superres", block_means)):
        noises, fixed = normal(len(name), len(options["ts"]) - 1, *shape), project(images)

        def replaced(x0: Tensor, project: Callable[[Tensor], Tensor] = project, fixed: Tensor = fixed) -> Tensor:
            x0 = x0.clamp(-1, 1)
            return fixed + x0 - project(x0)

        sample = multistep(denoise, x.double(), noises, options, replaced)
        io |= {f"{name}.noises": noises, f"{name}.sample": sample.float()}
        io[f"{name}.conditioning_images"] = fixed.float()
    meta = {"kind": "consistency_models/editing_samplers", "denoiser": MIXTURES[number], **options}
    changes = {
        ("denoiser", "m", 0): 0.3,
        ("denoiser", "w", 1): 0.5,
        ("denoiser", "s", 0): 0.5,
        ("strange",): 1,
        **places,
    }
    check(tmp_path, Record(meta, io), changes)
