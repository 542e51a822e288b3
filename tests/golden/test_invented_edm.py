"""EDM's preconditioning and losses under settings that no record has, computed here from the published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Record, check, normal, spread, uniform
from tests.golden.invented_edm import NETWORK, Shell, vp_sigma

SIGMA = torch.tensor([0.004, 0.5, 9.0])


def record(kind: str, extra: dict[str, Any], loss: dict[str, Any] | None) -> Record:
    arguments = {**NETWORK, **extra}
    shell, x = Shell(kind, arguments), normal(50, 3, 2, 4, 4)
    io = {"x": x, "sigma": SIGMA, "c_noise": shell.noise_input(SIGMA)}
    if arguments["label_dim"]:
        io["class_labels"] = uniform(51, 3, arguments["label_dim"])
    if arguments["augment_dim"]:
        io["augment_labels"] = normal(52, 3, arguments["augment_dim"])
    augment = io.get("augment_labels")
    io["D_x"] = shell.denoised(x, SIGMA, io.get("class_labels"), augment).float()
    if "class_labels" in io:
        io["D_x_nolabel"] = shell.denoised(x, SIGMA, None, augment).float()
    io["c_in_x"] = (spread(shell.scalings(SIGMA)[2], x) * x).float()
    for name, end in zip(("sigma_min", "sigma_max"), shell.ends, strict=True):
        io[name] = torch.tensor(min(end, 1e30), dtype=torch.float64)
    rounded = [shell.rounded(sigma) for sigma in SIGMA.double().tolist()]
    io |= {"round_sigma.in": SIGMA, "round_sigma.out": torch.tensor(rounded)}
    if kind == "iDDPMPrecond":
        io |= {"u_first5": shell.u[:5], "u_last5": shell.u[-5:]}
    if loss is not None:
        io |= losses(shell, loss, io)
    meta = {"kind": "edm/precond", "klass": kind, "arguments": arguments, "settings": {"loss": loss}}
    return Record(meta, io, shell.weights)


def losses(shell: Shell, loss: dict[str, Any], io: dict[str, Tensor]) -> dict[str, Tensor]:
    images, noise = normal(60, 3, 2, 4, 4), normal(61, 3, 2, 4, 4)
    u, z = uniform(62, 3, 1, 1, 1), normal(63, 3, 1, 1, 1)
    weight = lambda s: 1 / s**2  # noqa: E731
    if loss["function"] == "VPLoss":
        t = 1 + u * (loss["epsilon_t"] - 1)
        sigma = vp_sigma(loss["beta_d"], loss["beta_min"], t)
    elif loss["function"] == "VELoss":
        sigma = loss["sigma_min"] * (loss["sigma_max"] / loss["sigma_min"]) ** u
    else:
        sigma, data = (z * loss["P_std"] + loss["P_mean"]).exp(), loss["sigma_data"]
        weight = lambda s: (s**2 + data**2) / (s * data) ** 2  # noqa: E731
    x0 = shell.denoised(images + sigma * noise, sigma.flatten(), io.get("class_labels"), io.get("augment_labels"))
    loss_of_pixels = (weight(sigma) * (x0 - images) ** 2).float()
    return {
        "loss_images": images, "loss_noise": noise, "loss_uniform": u, "loss_normal": z, "loss": loss_of_pixels,
    }  # fmt: skip


CASES: list[tuple[str, dict[str, Any], dict[str, Any] | None, dict[tuple[str | int, ...], Any]]] = [
    (
        "VPPrecond",
        {"beta_d": 12.0, "beta_min": 0.3, "M": 300, "epsilon_t": 1e-3},
        {"function": "VPLoss", "beta_d": 8.0, "beta_min": 0.2, "epsilon_t": 0.01},
        {("arguments", "M"): 301, ("arguments", "epsilon_t"): 1e-2, ("settings", "loss", "beta_d"): 12.0},
    ),
    (
        "VPPrecond",
        {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
        {"function": "VELoss", "sigma_min": 0.05, "sigma_max": 30.0},
        {("arguments", "beta_min"): 0.2, ("settings", "loss", "sigma_min"): 0.02},
    ),
    (
        "EDMPrecond",
        {"sigma_data": 0.8, "sigma_min": 0.01, "sigma_max": 50.0, "model_type": "SongUNet"},
        {"function": "EDMLoss", "P_mean": -0.6, "P_std": 0.9, "sigma_data": 0.4},
        {("arguments", "sigma_data"): 0.5, ("arguments", "sigma_max"): 60.0, ("settings", "loss", "sigma_data"): 0.8,
         ("settings", "loss", "P_std"): 1.2},
    ),
    (
        "iDDPMPrecond", {"C_1": 0.05, "C_2": 0.03, "M": 40, "channel_mult": [4]}, None,
        {("arguments", "C_1"): 0.1, ("arguments", "C_2"): 0.008, ("arguments", "M"): 41},
    ),
    # a class of epsilon with a loss of EDM; the smallest beta alone is the class's default
    (
        "iDDPMPrecond", {"M": 12, "C_2": 0.1, "model_type": "SongUNet", "label_dim": 2},
        {"function": "EDMLoss", "P_mean": 0.2, "P_std": 0.7, "sigma_data": 1.5},
        {("arguments", "C_2"): 0.09, ("arguments", "M"): 13, ("arguments", "label_dim"): 3,
         ("settings", "loss", "P_mean"): 0.1},
    ),
    (
        "EDMPrecond",
        {"model_channels": 64, "label_dim": 3, "augment_dim": 4},
        {"function": "VPLoss", "beta_d": 10.0, "beta_min": 0.4, "epsilon_t": 0.05},
        {("arguments", "sigma_data"): 0.6, ("arguments", "sigma_min"): 0.1, ("arguments", "model_type"): "SongUNet",
         ("settings", "loss", "epsilon_t"): 0.01, ("settings", "loss", "beta_min"): 0.1},
    ),
    (
        "VEPrecond",
        {"sigma_min": 0.05, "sigma_max": 40.0, "label_dim": 2, "embedding_type": "fourier", "use_fp16": False,
         "encoder_type": "residual", "channel_mult": [1, 2], "resample_filter": [1, 3, 3, 1], "channel_mult_noise": 2},
        {"function": "VELoss", "sigma_min": 0.1, "sigma_max": 20.0},
        {("arguments", "sigma_min"): 0.02, ("arguments", "sigma_max"): 100.0, ("settings", "loss", "sigma_min"): 0.05,
         ("settings", "loss", "sigma_max"): 40.0, ("klass",): "EDMPrecond", ("arguments", "encoder_type"): "standard",
         ("arguments", "strange"): 1},
    ),
    # the ends of the class, another network, and no loss
    (
        "VEPrecond", {"model_type": "DhariwalUNet", "model_channels": 64, "augment_dim": 2}, None,
        {("arguments", "sigma_min"): 0.03, ("klass",): "VPPrecond", ("arguments", "model_type"): "SongUNet"},
    ),
    (
        "VEPrecond", {"sigma_max": 300.0}, {"function": "EDMLoss", "P_mean": -1.0, "P_std": 1.1, "sigma_data": 0.6},
        {("arguments", "sigma_max"): 100.0, ("settings", "loss", "P_std"): 1.2,
         ("settings", "loss", "function"): "VELoss"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "extra", "loss", "changes"), CASES)
@torch.no_grad()
def test_preconditioning_and_its_loss_have_settings_of_either(tmp_path, kind, extra, loss, changes):
    check(tmp_path, record(kind, extra, loss), changes)
