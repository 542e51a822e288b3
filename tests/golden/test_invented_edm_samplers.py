"""EDM's sampler and its ablation under settings that no record has, with the analytic model and with networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal, uniform
from tests.golden.invented_edm import NETWORK, Net, Settings, Shell, sampled

Places = dict[tuple[str | int, ...], object]

# ---------------------------------------------------------------------- with the analytic model

CHURN: Settings = {"S_churn": 2.1, "S_min": 0.1, "S_max": 15.0, "S_noise": 1.02}
# by case: the runs, the net's ends, and what is changed of each run
EXACT: dict[str, tuple[dict[str, Settings], tuple[float, float], dict[str, Settings]]] = {
    "edm": (
        {"plain": {"num_steps": 4, "rho": 3.0, "sigma_min": 0.01, "sigma_max": 25.0},
         "churned": {"num_steps": 5, **CHURN}, "all": {"S_churn": 60.0, "num_steps": 3}},
        (0.05, 18.0),
        {"plain": {"num_steps": 5, "rho": 4.0, "sigma_min": 0.2, "sigma_max": 10.0},
         "churned": {"S_churn": 1.9, "S_min": 1.0, "S_max": 5.0, "S_noise": 1.0}, "all": {"strange": 1}},
    ),
    "iddpm": (
        {"cosine": {"discretization": "iddpm", "num_steps": 4, "C_1": 0.05, "C_2": 0.03, "M": 60, "alpha": 0.6,
                    "sigma_min": 0.05, "sigma_max": 20.0, "S_churn": 0.9, "S_noise": 1.02, "rho": 5.0},
         "straight": {"discretization": "iddpm", "num_steps": 6, "C_1": 0.2, "C_2": 0.001, "M": 35, "solver": "euler",
                      "schedule": "ve", "scaling": "vp", **CHURN},
         "usual": {"discretization": "iddpm", "num_steps": 3, "schedule": "vp"}},
        (0.0, math.inf),
        {"cosine": {"C_1": 0.6, "C_2": 0.4, "M": 50, "alpha": 1.0, "sigma_max": 5.0, "S_noise": 1.0, "strange": 1},
         "straight": {"M": 36, "schedule": "linear", "scaling": "none", "solver": "heun", "S_churn": 1.0},
         "usual": {"schedule": "linear", "discretization": "edm"}},
    ),
    "vp": (
        {"late": {"discretization": "vp", "num_steps": 5, "epsilon_s": 0.02, "schedule": "vp", "scaling": "vp",
                  "alpha": 0.75, "sigma_min": 0.1, "sigma_max": 40.0},
         "ends": {"discretization": "vp", "num_steps": 4, "epsilon_s": 0.01, "schedule": "ve"},
         "straight": {"discretization": "vp", "num_steps": 7, "solver": "euler", "schedule": "vp", "S_churn": 1.5,
                      "S_noise": 0.9}},
        (0.06, 90.0),
        {"late": {"epsilon_s": 0.05, "alpha": 1.0, "scaling": "none", "sigma_min": 0.2},
         "ends": {"epsilon_s": 0.02, "discretization": "ve"}, "straight": {"S_churn": 1.0, "S_noise": 1.0}},
    ),
    "ve": (
        {"geometric": {"discretization": "ve", "num_steps": 4, "schedule": "ve", "alpha": 0.9, **CHURN},
         "other": {"discretization": "ve", "num_steps": 5, "schedule": "vp", "scaling": "vp", "epsilon_s": 0.1,
                   "sigma_max": 30.0},
         "even": {"num_steps": 5, "rho": 2.0, "scaling": "vp", "solver": "euler", "sigma_max": 12.0}},
        (0.0, math.inf),
        {"geometric": {"alpha": 1.0, "S_max": 2.0, "schedule": "linear"},
         "other": {"epsilon_s": 1e-3, "scaling": "none"},
         "even": {"rho": 7.0, "scaling": "none"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_samplers_with_the_analytic_model(tmp_path, name):
    runs, (least, most), changes = EXACT[name]
    exact, latents, noise = Analytic.of(1, 1, 2, 2), normal(2, 2, 1, 2, 2), normal(3, 8, 2, 1, 2, 2)
    io, meta, places = exact.io | {"latents": latents, "noise": noise}, {}, {}
    for run, call in runs.items():
        ablation = name != "edm"
        result = sampled(call, Net(exact.denoised, least, most), latents, noise, ablation=ablation)
        io |= {f"{run}.out": result.x, f"{run}.net_sigmas": torch.tensor(result.called, dtype=torch.float64)}
        function = "ablation_sampler" if ablation else "edm_sampler"
        meta[run] = {"function": function, "kwargs": call, "net_sigma_min": least, "net_sigma_max": most}
        places |= {("runs", run, "kwargs", option): value for option, value in changes[run].items()}
    if least:
        first = next(iter(runs))
        places |= {("runs", "ends" if "ends" in runs else "churned", "net_sigma_min"): 0.5}
        places |= {("runs", first, "net_sigma_max"): 11.0}
    check(tmp_path, Record({"kind": "edm/samplers", "runs": meta}, io), places)


# ---------------------------------------------------------------------- with networks

EDM, ABLATION = "edm_sampler", "ablation_sampler"
# by case: the class, its arguments, the runs, and what is changed
NETS: dict[str, tuple[str, Settings, dict[str, tuple[str, Settings]], Places]] = {
    "ve": (
        "VEPrecond", {"sigma_min": 0.1, "sigma_max": 12.0, "label_dim": 2, "embedding_type": "fourier"},
        {"churned": (EDM, {"num_steps": 3, **CHURN}),
         "straight": (ABLATION, {"num_steps": 4, "discretization": "ve", "schedule": "ve", "solver": "euler"})},
        {("arguments", "sigma_min"): 0.02, ("arguments", "sigma_max"): 100.0,
         ("runs", "churned", "kwargs", "S_min"): 2.0,
         ("runs", "straight", "kwargs", "solver"): "heun", ("arguments", "strange"): 1},
    ),
    "vp": (
        "VPPrecond", {"beta_d": 9.0, "beta_min": 0.5, "M": 200, "epsilon_t": 0.01},
        {"even": (EDM, {"num_steps": 4, "rho": 4.0}),
         "scaled": (ABLATION, {"num_steps": 3, "discretization": "vp", "schedule": "vp", "scaling": "vp",
                               "epsilon_s": 0.01, "alpha": 0.8})},
        {("arguments", "beta_d"): 12.0, ("arguments", "epsilon_t"): 1e-5, ("arguments", "M"): 1000,
         ("runs", "scaled", "kwargs", "alpha"): 1.0, ("runs", "even", "kwargs", "rho"): 7.0},
    ),
    "edm": (
        "EDMPrecond", {"sigma_data": 0.9, "model_channels": 64, "label_dim": 3, "augment_dim": 2},
        {"short": (EDM, {"num_steps": 2, "sigma_max": 7.0})},
        {("arguments", "sigma_data"): 0.5, ("runs", "short", "kwargs", "sigma_max"): 80.0,
         ("arguments", "sigma_max"): 5.0},
    ),
    # levels of a table
    "iddpm": (
        "iDDPMPrecond", {"M": 30, "C_1": 0.02, "C_2": 0.05, "model_type": "SongUNet", "label_dim": 2},
        {"churned": (EDM, {"num_steps": 4, "S_churn": 1.2, "S_noise": 1.1}),
         "table": (ABLATION, {"num_steps": 4, "discretization": "iddpm", "M": 20, "C_2": 0.01, "alpha": 0.5})},
        {("arguments", "M"): 31, ("arguments", "C_2"): 0.008, ("runs", "churned", "kwargs", "S_churn"): 0.0,
         ("runs", "table", "kwargs", "M"): 25},
    ),
    # more steps than levels
    "iddpm of few": (
        "iDDPMPrecond", {"M": 6, "model_type": "SongUNet"},
        {"plain": (EDM, {"num_steps": 9}), "churned": (EDM, {"num_steps": 17, "S_churn": 7.2, "S_noise": 1.05}),
         "scaled": (ABLATION, {"num_steps": 18, "S_churn": 9.0, "S_min": 0.5, "schedule": "ve",
                               "scaling": "vp", "alpha": 0.7})},
        {("arguments", "M"): 7, ("runs", "churned", "kwargs", "S_churn"): 0.0,
         ("runs", "plain", "kwargs", "sigma_max"): 2.0,
         ("runs", "scaled", "kwargs", "alpha"): 1.0, ("runs", "scaled", "kwargs", "S_max"): 1.01},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_samplers_with_networks(tmp_path, name):
    kind, extra, runs, places = NETS[name]
    arguments = NETWORK | extra
    shell, latents, noise = Shell(kind, arguments), normal(2, 2, 2, 4, 4), normal(3, 18, 2, 2, 4, 4)
    io = {"latents": latents, "noise": noise}
    if arguments["label_dim"]:
        io["class_labels"] = uniform(4, 2, arguments["label_dim"])

    def denoised(x: Tensor, sigma: float) -> Tensor:
        return shell.denoised(x, torch.full((2,), sigma, dtype=torch.float64), io.get("class_labels"))

    meta = {}
    for run, (function, call) in runs.items():
        net = Net(denoised, *shell.ends, shell.rounded)
        io[f"{run}.out"] = sampled(call, net, latents, noise, ablation=function == ABLATION).x.float()
        meta[run] = {"function": function, "kwargs": call}
    meta = {"kind": "edm/net_samplers", "klass": kind, "arguments": arguments, "runs": meta}
    check(tmp_path, Record(meta, io, shell.weights), places)
