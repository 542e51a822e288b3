"""EDM's preconditioning and losses under settings that no record has, computed here from the published formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden.invented import Record, check, normal, spread, uniform
from unveil.checkpoints.formats import edm
from unveil.nn.edm_unet import DhariwalUNet, SongUNet, SongUNetConfig

NETWORK = {
    "img_resolution": 4, "img_channels": 2, "label_dim": 0, "model_channels": 16, "channel_mult": [1], "num_blocks": 1,
    "attn_resolutions": [], "augment_dim": 0,
}  # fmt: skip
SIGMA = torch.tensor([0.004, 0.5, 9.0])


def network(kind: str, arguments: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small network of random weights, and the weights by published key."""
    _, config = edm.preconditioning_from_arguments(kind, arguments)
    inner = (SongUNet if isinstance(config, SongUNetConfig) else DhariwalUNet)(config).eval().requires_grad_(False)
    for number, parameter in enumerate(inner.parameters()):
        parameter += 0.1 * normal(number, *parameter.shape)
    weights = edm.published_state_dict(inner.state_dict(), config, arguments["img_resolution"])
    return inner, {f"model.{key}": value for key, value in weights.items()}


def table(count: int, least: float, offset: float) -> Tensor:
    """u of Improved DDPM's class, in float32."""
    bar = (0.5 * math.pi * torch.arange(count + 1) / count / (offset + 1)).sin() ** 2
    u = torch.zeros(count + 1)
    for j in range(count, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=least) - 1).sqrt()
    return u


class Shell:
    """The published class: its scalings in float32."""

    def __init__(self, kind: str, arguments: dict[str, Any]) -> None:
        self.kind, self.arguments = kind, arguments
        self.network, self.weights = network(kind, arguments)
        if kind == "iDDPMPrecond":
            self.u = table(arguments["M"], arguments["C_1"], arguments["C_2"])

    def rounded(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries of u, and their numbers."""
        place = (sigma[:, None] - self.u).abs().argmin(1)
        return self.u[place], place

    def noise_input(self, sigma: Tensor) -> Tensor:
        if self.kind == "VPPrecond":
            low, rise = self.arguments["beta_min"], self.arguments["beta_d"]
            t = ((low**2 + 2 * rise * (1 + sigma**2).log()).sqrt() - low) / rise
            return (self.arguments["M"] - 1) * t
        if self.kind == "iDDPMPrecond":
            return (self.arguments["M"] - 1 - self.rounded(sigma)[1]).float()
        return sigma.log() / 4

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind == "EDMPrecond":
            data = self.arguments["sigma_data"]
            width = (sigma**2 + data**2).sqrt()
            return data**2 / width**2, sigma * data / width, 1 / width
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt()

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        skip, out, inside = (spread(part, x) for part in self.scalings(sigma))
        raw = self.network(inside * x, self.noise_input(sigma), None, None)[:, : x.shape[1]]
        return skip * x + out * raw


def record(kind: str, extra: dict[str, Any], loss: dict[str, Any] | None) -> Record:
    arguments = {**NETWORK, **extra}
    shell, x = Shell(kind, arguments), normal(50, 3, 2, 4, 4)
    io = {"x": x, "sigma": SIGMA, "D_x": shell.denoised(x, SIGMA), "c_noise": shell.noise_input(SIGMA)}
    io["c_in_x"] = spread(shell.scalings(SIGMA)[2], x) * x
    ends = {"VPPrecond": lambda: vp_ends(arguments), "iDDPMPrecond": lambda: (shell.u[-2].item(), shell.u[0].item()),
            "EDMPrecond": lambda: (arguments["sigma_min"], arguments["sigma_max"])}[kind]()  # fmt: skip
    least, most = (torch.tensor(end, dtype=torch.float64) for end in ends)
    io |= {"sigma_min": least, "sigma_max": most}
    io |= {"round_sigma.in": SIGMA, "round_sigma.out": SIGMA.clone()}
    if kind == "iDDPMPrecond":
        io |= {"round_sigma.out": shell.rounded(SIGMA)[0], "u_first5": shell.u[:5], "u_last5": shell.u[-5:]}
    if loss is not None:
        io |= losses(shell, loss)
    return Record({"kind": "edm/precond", "klass": kind, "arguments": arguments, "settings": {"loss": loss}}, io,
                  shell.weights)  # fmt: skip


def vp_ends(arguments: dict[str, Any]) -> tuple[float, float]:
    t = torch.tensor([arguments["epsilon_t"], 1.0])
    sigma = ((0.5 * arguments["beta_d"] * t**2 + arguments["beta_min"] * t).exp() - 1).sqrt()
    return sigma[0].item(), sigma[1].item()


def losses(shell: Shell, loss: dict[str, Any]) -> dict[str, Tensor]:
    images, noise = normal(60, 2, 2, 4, 4), normal(61, 2, 2, 4, 4)
    u, z = uniform(62, 2, 1, 1, 1), normal(63, 2, 1, 1, 1)
    weight = lambda s: 1 / s**2  # noqa: E731
    if loss["function"] == "VPLoss":
        t = 1 + u * (loss["epsilon_t"] - 1)
        sigma = ((0.5 * loss["beta_d"] * t**2 + loss["beta_min"] * t).exp() - 1).sqrt()
    elif loss["function"] == "VELoss":
        sigma = loss["sigma_min"] * (loss["sigma_max"] / loss["sigma_min"]) ** u
    else:
        sigma, data = (z * loss["P_std"] + loss["P_mean"]).exp(), loss["sigma_data"]
        weight = lambda s: (s**2 + data**2) / (s * data) ** 2  # noqa: E731
    error = (shell.denoised(images + sigma * noise, sigma.flatten()) - images) ** 2
    return {
        "loss_images": images, "loss_noise": noise, "loss_uniform": u, "loss_normal": z, "loss": weight(sigma) * error,
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
]  # fmt: skip


@pytest.mark.parametrize(("kind", "extra", "loss", "changes"), CASES)
def test_preconditioning_and_its_loss_have_settings_of_either(tmp_path, kind, extra, loss, changes):
    check(tmp_path, record(kind, extra, loss), changes)
