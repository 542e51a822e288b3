"""k-diffusion's samplers under settings that no record has, with the analytic model."""

from __future__ import annotations

import pytest
import torch

from tests.golden.invented import Analytic, Record, check, normal
from tests.golden.invented_k_samplers import Sampler, Settings, sigmas_of

ENDS: Settings = {"sigma_min": 0.15, "sigma_max": 7.0}
# by case: a function of each name, its keywords, and what is changed of them
RUNS: dict[str, dict[str, tuple[str, Settings, Settings]]] = {
    "churned": {
        "e": ("euler", {"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 6.0, "s_noise": 1.01},
              {"s_churn": 0.9, "s_tmin": 0.9, "s_tmax": 0.9, "s_noise": 0.9, "strange": 1}),
        "h": ("heun", {"s_churn": 40.0, "s_tmin": 0.5}, {"s_churn": 1.0, "s_tmin": 3.0, "s_noise": 1.1}),
        "d": ("dpm_2", {"s_churn": 1.1, "s_tmax": 3.0, "s_noise": 0.95},
              {"s_churn": 2.0, "s_tmax": 8.0, "s_noise": 1.0}),
        "e0": ("euler", {"s_noise": 1.2}, {"s_churn": 1.0}),
    },
    "ancestral": {
        "e": ("euler_ancestral", {"eta": 0.3, "s_noise": 0.9}, {"eta": 1.0, "s_noise": 1.0, "strange": 1}),
        "e2": ("euler_ancestral", {"eta": 1.4}, {"eta": 1.0}),
        "d": ("dpm_2_ancestral", {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.5, "s_noise": 1.0}),
        "d0": ("dpm_2_ancestral", {"eta": 0.0}, {"eta": 0.1}),
        "s": ("dpmpp_2s_ancestral", {"eta": 0.7, "s_noise": 1.2}, {"eta": 1.0, "s_noise": 1.0}),
        "r": ("dpmpp_sde", {"eta": 0.4, "s_noise": 0.8, "r": 0.4}, {"eta": 1.0, "s_noise": 1.0, "r": 0.5}),
        "r0": ("dpmpp_sde", {"eta": 0.0, "r": 0.75}, {"eta": 0.2, "r": 0.5}),
    },
    "multistep": {
        **{f"l{order}": ("lms", {"order": order}, {"order": order + 1}) for order in (1, 3)},
        "l": ("lms", {}, {"order": 3}),
        "m": ("dpmpp_2m", {}, {"strange": 1}),
        "s": ("dpmpp_2m_sde", {"eta": 0.35, "s_noise": 1.1, "solver_type": "heun"},
              {"eta": 1.0, "s_noise": 1.0, "solver_type": "midpoint"}),
        "s0": ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, {"eta": 0.1, "solver_type": "midpoint"}),
        "s2": ("dpmpp_2m_sde", {"eta": 0.8}, {"solver_type": "heun"}),
        "t": ("dpmpp_3m_sde", {"eta": 0.45, "s_noise": 0.9}, {"eta": 0.0, "s_noise": 1.0}),
    },
    "fast": {
        f"n{n}": ("dpm_fast", {**ENDS, "n": n, **extra}, {"sigma_min": 0.2, "sigma_max": 8.0, "n": n + 1, "eta": 0.8})
        for n, extra in ((3, {"eta": 0.5}), (4, {}), (5, {"eta": 0.9, "s_noise": 1.3}), (6, {"s_noise": 1.2}), (7, {}))
    },
    "adaptive": {
        "a": ("dpm_adaptive", {**ENDS, "order": 3, "rtol": 0.02, "atol": 0.003, "h_init": 0.3},
              {"order": 2, "rtol": 0.03, "atol": 0.3, "h_init": 0.05, "strange": 1}),
        "b": ("dpm_adaptive", {**ENDS, "order": 2, "pcoeff": 0.2, "icoeff": 0.7, "dcoeff": 0.1, "accept_safety": 0.9},
              {"pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0, "order": 3}),
        "c": ("dpm_adaptive", {**ENDS, "eta": 0.6, "s_noise": 1.1, "h_init": 1.5, "return_info": True},
              {"eta": 0.0, "s_noise": 1.0, "accept_safety": 0.3}),
    },
}  # fmt: skip
SCHEDULES: dict[str, tuple[Settings, Settings]] = {
    "karras": ({"function": "get_sigmas_karras", "n": 5, "sigma_min": 0.08, "sigma_max": 9.0, "rho": 4.0},
               {"rho": 7.0, "sigma_max": 8.0}),
    "vp": ({"function": "get_sigmas_vp", "n": 6, "beta_d": 9.0, "eps_s": 0.02}, {"beta_d": 8.0, "n": 5}),
    "polyexponential": (
        {"function": "get_sigmas_polyexponential", "n": 7, "sigma_min": 0.05, "sigma_max": 12.0, "rho": 1.5},
        {"rho": 1.0, "function": "get_sigmas_exponential"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", RUNS)
def test_samplers(tmp_path, name, schedule):
    call, changes = SCHEDULES[schedule]
    exact, shape = Analytic.of(1, 1, 2, 2), (3, 1, 2, 2)
    sigmas = sigmas_of(schedule, call)
    noise, start = normal(3, 40, *shape), normal(2, *shape)
    start = start * (ENDS["sigma_max"] if name in ("fast", "adaptive") else sigmas[0])
    io = exact.io | {"x_T": start, "noise": noise, "sigmas_f64": torch.tensor(sigmas, dtype=torch.float64)}
    io["sigmas"] = io["sigmas_f64"].float()
    samplers, places = {}, {("sigmas", option): value for option, value in changes.items()}
    for run, (function, kwargs, others) in RUNS[name].items():
        sampler = Sampler(exact.denoised, noise, kwargs)
        io[f"{run}.f64.out"] = sampler.run(f"sample_{function}", start, sigmas)
        io[f"{run}.out"] = io[f"{run}.f64.out"].float()
        io[f"{run}.model_sigmas"] = torch.tensor(sampler.called, dtype=torch.float64)
        if name in ("ancestral", "multistep", "fast") and sampler.drawn:
            io[f"{run}.noise_args"] = torch.tensor(sampler.drawn, dtype=torch.float64)
        samplers[run] = {"function": f"sample_{function}", "kwargs": kwargs}
        if schedule == "karras":
            places |= {("samplers", run, "kwargs", option): value for option, value in others.items()}
    check(tmp_path, Record({"kind": "k-diffusion/samplers", "samplers": samplers, "sigmas": call}, io), places)
