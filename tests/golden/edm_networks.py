"""Golden kinds of EDM's and score SDE's networks: alone, behind their preconditioning, and in EDM's samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.edm_samplers import Net, sampled
from unveil.checkpoints.formats import edm, score_sde
from unveil.core import loss_weights, preconditioning
from unveil.core.denoiser import DenoiseFn, Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.ve import EDMProcess
from unveil.nn.edm_unet import DhariwalUNet, SongUNet, SongUNetConfig
from unveil.types import Condition, NoiseLevel, like

SCALE = EDMProcess().sigma_max


class Bound(nn.Module):
    """A network in float32, as the original runs it in any sampler, with the recorded augmentation."""

    def __init__(self, network: nn.Module, augment: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.augment = augment

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return self.network(x.float(), t, condition, self.augment)


def built(config: edm.Config, parts: edm.EDMWeights) -> nn.Module:
    """The network with its weights."""
    network = SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)
    network.load_state_dict(parts.network)
    return network.eval()


def loaded_weights(case: Case, config: edm.Config) -> edm.EDMWeights:
    """The case's weights, which have as many classes as its arguments."""
    parts = edm.convert_state_dict(case.weights(), config)
    rows = 0 if parts.label is None else len(parts.label[edm.OUR_LABEL]) - isinstance(config, SongUNetConfig)
    count = case.meta["arguments"].get("label_dim", 0)
    if rows != count:
        raise AssertionError(f"label_dim {count}, but the weights have {rows} classes")
    return parts


def labelled(parts: edm.EDMWeights, config: edm.Config, classes: Tensor | None, batch: int) -> Condition | None:
    """The vector that the label table makes of class weights, which need not be one class; None: no label."""
    if parts.label is None:
        return None
    table = parts.label[edm.OUR_LABEL]
    song = isinstance(config, SongUNetConfig)
    rows, none = (table[:-1], table[-1]) if song else (table, torch.zeros(table.shape[1]))
    classes = torch.zeros(batch, len(rows)) if classes is None else classes
    return Condition(vector=classes @ (rows - none) + none)


def network(case: Case) -> Iterator[Comparison]:
    """edm/network: SongUNet or DhariwalUNet."""
    io, config = case.io, edm.config_from_arguments(case.meta["klass"], case.meta["arguments"])
    parts = loaded_weights(case, config)
    condition = labelled(parts, config, io.get("class_labels"), len(io["x"]))
    run = Bound(built(config, parts), io.get("augment_labels"))
    yield case.compare("out", run(io["x"], io["noise_labels"], condition))


def score_network(case: Case) -> Iterator[Comparison]:
    """score_sde_pytorch/ncsnpp: the published one takes the logarithm and divides by sigma itself."""
    model, io, state = case.meta["arguments"]["model"], case.io, case.weights()
    for name, only in {"attention_type": "ddpm", "conv_size": 3}.items():
        if model.get(name, only) != only:
            raise Unsupported(f"{name} {model[name]!r}")
    model.get("resamp_with_conv")  # blocks of the kind "biggan" do not use it
    config = score_sde.config_from_arguments(case.meta["arguments"])
    own = SongUNet(config).eval()
    own.load_state_dict(score_sde.convert_state_dict(state, config))
    labels, fourier = io["labels"], config.embedding == "fourier"
    x = io["x"] if case.meta["arguments"]["data"].get("centered", True) else 2 * io["x"] - 1
    out = Bound(own)(x, labels.log() if fourier else labels, None)
    if model["scale_by_sigma"]:
        sigma = labels if fourier else state[score_sde.SIGMAS][labels.long()]
        out = out / sigma.float().reshape(-1, 1, 1, 1)
    yield case.compare("out", out)


# ---------------------------------------------------------------------- preconditioning


class Shell:
    """The case's preconditioning class: its network, its levels, and denoisers of each condition."""

    def __init__(self, case: Case) -> None:
        self.case, self.kind, self.given = case, case.meta["klass"], case.meta["arguments"]
        self.prediction, self.config = edm.preconditioning_from_arguments(self.kind, self.given)
        if isinstance(self.prediction, preconditioning.IDDPMPreconditioning):
            self.prediction.__dict__["ratios"] = single_ratios(self.prediction)
        if isinstance(self.prediction, preconditioning.VPPreconditioning):
            self.prediction = SingleVP(**vars(self.prediction))
        self.parts = loaded_weights(case, self.config)
        self.network = built(self.config, self.parts)

    @property
    def ends(self) -> tuple[float, float]:
        """`sigma_min` and `sigma_max` of the published class."""
        if isinstance(self.prediction, preconditioning.VPPreconditioning):
            times = torch.tensor([self.given.get("epsilon_t", 1e-5), 1.0])  # in float32, as the original
            rise = self.prediction.beta_max - self.prediction.beta_min
            least, most = vp_sigma(rise, self.prediction.beta_min, times).tolist()
            return least, most
        if isinstance(self.prediction, preconditioning.IDDPMPreconditioning):
            return self.prediction.ratios[1].item(), self.prediction.ratios[-1].item()
        least, most = {"VEPrecond": (0.02, 100.0), "EDMPrecond": (0.0, math.inf)}[self.kind]
        return self.given.get("sigma_min", least), self.given.get("sigma_max", most)

    def rounded(self, sigma: float) -> float:
        """`round_sigma`."""
        return (
            float(self.prediction.rounded(sigma))
            if isinstance(self.prediction, preconditioning.IDDPMPreconditioning)
            else sigma
        )

    def denoiser(self, augment: Tensor | None = None) -> Denoiser:
        """D(x; sigma)."""
        learned = self.kind == "iDDPMPrecond"
        return Denoiser(Bound(self.network, augment), EDMProcess(), prediction=self.prediction, learns_variance=learned)

    def step(self, classes: Tensor | None, batch: int, augment: Tensor | None = None) -> DenoiseFn:
        """The same with its condition."""
        condition, denoiser = labelled(self.parts, self.config, classes, batch), self.denoiser(augment)
        return lambda x, level: denoiser(x, level, condition)


@dataclass(frozen=True)
class SingleVP(preconditioning.VPPreconditioning):
    """c_noise as `VPPrecond` works it out in float32: at small sigma, 1 + sigma^2 keeps few digits of sigma."""

    def timestep(self, level: NoiseLevel) -> Tensor:
        """The VP process's time in steps."""
        sigma, rise = (level.sigma / level.alpha).float(), self.beta_max - self.beta_min
        t = ((self.beta_min**2 + 2 * rise * (1 + sigma**2).log()).sqrt() - self.beta_min) / rise
        return ((self.timesteps - 1) * t).double()


def vp_sigma(rise: float, beta_min: float, t: Tensor) -> Tensor:
    """Sigma of the VP process at t, in t's precision."""
    return ((0.5 * rise * t**2 + beta_min * t).exp() - 1).sqrt()


def single_ratios(shell: preconditioning.IDDPMPreconditioning) -> Tensor:
    """The table u of `iDDPMPrecond` from its last entry, which the original works out in float32."""
    steps, least = shell.timesteps, 1 - shell.largest_beta
    numbers = torch.arange(steps + 1)
    alpha_bar = (0.5 * math.pi * numbers / steps / (shell.offset + 1)).sin() ** 2
    u = torch.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clip(min=least) - 1).sqrt()
    return u.flip(0).double()


def at(sigma: Tensor) -> NoiseLevel:
    """The levels (B,) of EDM's process."""
    return EDMProcess().at(sigma.flatten().double() / SCALE)


def precond(case: Case) -> Iterator[Comparison]:
    """edm/precond: the denoiser, what its network is given, its levels and its loss."""
    shell, io = Shell(case), case.io
    x, level = io["x"], at(io["sigma"])
    augment = io.get("augment_labels")
    for name, classes in {"D_x": io.get("class_labels"), "D_x_nolabel": None}.items():
        if name in io:
            yield case.compare(name, shell.step(classes, len(x), augment)(x, level).x0)
    denoiser = shell.denoiser()
    yield case.compare("c_in_x", like(denoiser.input_scale(level), x) * x)
    yield case.compare("c_noise", denoiser.timestep(level, x))
    rounded = [shell.rounded(sigma) for sigma in io["round_sigma.in"].tolist()]
    yield case.compare("round_sigma.out", torch.tensor(rounded, dtype=torch.float64))
    for name, end in zip(("sigma_min", "sigma_max"), shell.ends, strict=True):
        value = torch.tensor(min(end, 1e30), dtype=torch.float64)  # infinity was recorded so
        single = isinstance(
            shell.prediction, preconditioning.IDDPMPreconditioning
        )  # from a table in float32: to its last digit
        yield case.compare(name, value, least=torch.finfo(torch.float32).eps * value if single else None)
    if isinstance(shell.prediction, preconditioning.IDDPMPreconditioning):
        u = shell.prediction.ratios.flip(0)
        yield case.compare("u_first5", u[:5])
        yield case.compare("u_last5", u[-5:])
    if case.meta["settings"]["loss"] is not None:
        yield from separately("loss", loss(case, shell, case.meta["settings"]["loss"]))


def loss(case: Case, shell: Shell, settings: Mapping[str, Any]) -> Iterator[Comparison]:
    """The published loss of each pixel, and our objective's of each image.

    The loss has its own settings, which need not be those of the network's class.
    """
    io = case.io
    weight = loss_weights.snr
    match settings["function"]:
        case "VPLoss":
            t = 1 + io["loss_uniform"].double() * (settings["epsilon_t"] - 1)
            sigma = vp_sigma(settings["beta_d"], settings["beta_min"], t)
        case "VELoss":
            low, high = settings["sigma_min"], settings["sigma_max"]
            sigma = low * (high / low) ** io["loss_uniform"].double()
        case "EDMLoss":
            sigma = (io["loss_normal"].double() * settings["P_std"] + settings["P_mean"]).exp()
            weight = loss_weights.edm(settings["sigma_data"])
        case other:
            raise Unsupported(f"loss {other!r}")
    images, noise, level = io["loss_images"], io["loss_noise"], at(sigma)
    condition = labelled(shell.parts, shell.config, io.get("class_labels"), len(images))
    x = images + like(level.sigma, images) * noise
    denoiser = shell.denoiser(io.get("augment_labels"))
    error = (denoiser(x, level, condition).x0 - images).square()
    yield case.compare("loss", like(weight(level), images) * error)
    objective = DiffusionLoss(weight=weight).at(denoiser, images, condition, as_tensor(level.t), noise)
    yield case.compare("loss.per_sample", objective.per_sample, want=io["loss"].flatten(1).mean(1))


def as_tensor(value: Any) -> Tensor:
    """A level's field, which is a tensor here."""
    assert isinstance(value, Tensor)
    return value


def net_samplers(case: Case) -> Iterator[Comparison]:
    """edm/net_samplers: EDM's sampler and its ablation with a recorded network."""
    shell, io = Shell(case), case.io
    net = Net(shell.step(io.get("class_labels"), len(io["latents"])), *shell.ends, shell.rounded)
    for name, settings in case.meta["runs"].items():
        yield from separately(name, net_run(case, name, settings, net))


def net_run(case: Case, name: str, settings: Mapping[str, Any], net: Net) -> Iterator[Comparison]:
    """One run with the recorded network."""
    result = sampled(settings, net, case.io["latents"], case.io["noise"])
    yield case.compare(f"{name}.out", result.x, least=result.least)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "edm/network": network,
    "edm/precond": precond,
    "edm/net_samplers": net_samplers,
    "score_sde_pytorch/ncsnpp": score_network,
}
