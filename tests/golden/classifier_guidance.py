"""Golden kind of ADM's classifier guidance, in its ancestral and its DDIM form, by a formula or a noisy classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.golden import published_order
from tests.golden.case import Case, Comparison, Unsupported, separately
from tests.golden.diffusion import OPENAI, Formula, Setup, drawn, expanded, keywords, variance_of
from tests.golden.networks import loaded_classifier
from unveil.checkpoints import openai_keys
from unveil.conditioning.class_label import Label
from unveil.core import guidance, schedules
from unveil.core import prediction as predictions
from unveil.core.denoiser import DenoiseFn, Denoiser
from unveil.core.prediction import is_learned
from unveil.core.samplers import SamplerState, ancestral, ddim, run
from unveil.core.samplers.ancestral import Shift
from unveil.nn.classifier import NoisyClassifier
from unveil.nn.unet import UNet
from unveil.types import Condition, NoiseLevel, like

Clip = Callable[[Denoiser, Condition | None], DenoiseFn]


class Guided:
    """The case's diffusion object: its step (clipped, as published), its variance, and the gradient that guides it."""

    def __init__(self, case: Case) -> None:
        self.case, call = case, keywords(case.meta["constructor"], OPENAI)
        self.setup = Setup(
            call["noise_schedule"], call["steps"], call["timestep_respacing"], rescale=call["rescale_timesteps"],
            timesteps=case.meta["timestep_map"],
        )  # fmt: skip
        self.variance = variance_of(call)
        self.classes = case.io["input.y"]
        self.prediction = predictions.x0 if call["predict_xstart"] else predictions.eps
        self.network, self.classifier = cache(self._network), cache(self._classifier)  # one of each dtype

    def step(
        self, rows: slice = slice(None), dtype: torch.dtype = torch.float32, clip: Clip | None = None
    ) -> DenoiseFn:
        """The clipped estimate of some of the samples."""
        network, label = self.network(dtype)
        condition = None if label is None else label.encode(self.classes[rows])
        denoiser = Denoiser(
            network, self.setup.process, prediction=self.prediction, learns_variance=is_learned(self.variance)
        ).eval()
        if clip is not None:
            return clip(denoiser, condition)
        return guidance.clip_static(lambda x, level: denoiser(x, level, condition))

    def _network(self, dtype: torch.dtype) -> tuple[nn.Module, Label | None]:
        """The network of the case, and the table of its classes."""
        settings = self.case.meta["model"]
        if "cls" not in settings:
            return Formula(settings, is_learned(self.variance)), None
        if settings["cls"] != "UNetModel":
            raise Unsupported(f"model {settings['cls']!r}")
        config = openai_keys.config_from_arguments(settings["constructor"])
        parts = openai_keys.convert_state_dict(self.weights(settings["weights"]), config)
        network = UNet(config)
        network.load_state_dict(parts.network)
        if parts.label is None:
            return network.to(dtype), None
        label = Label(*parts.label["table.weight"].shape)
        label.load_state_dict(parts.label)
        return network.to(dtype), label.to(dtype)

    def shift(self, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Shift:
        """The recorded `cond_fn`, of some of the samples."""
        classes = self.classes[rows]
        if "classifier" not in self.case.meta:
            cond = self.case.meta["settings"]["cond"]
            scale, a, b, c = (cond[name] for name in ("scale", "a", "b", "c"))
            return lambda x, level: scale * (like(a * classes - b, x) - x) * (1 + c * self.network_input(level, x))
        network = self.classifier(dtype)
        score = guidance.log_probability(lambda x, level: network(x, self.network_input(level, x).flatten()), classes)
        return guidance.gradient(score, self.case.meta["classifier"]["scale"])

    def _classifier(self, dtype: torch.dtype) -> NoisyClassifier:
        """The noisy classifier of the case."""
        settings = self.case.meta["classifier"]
        if settings["cls"] != "EncoderUNetModel":
            raise Unsupported(f"classifier {settings['cls']!r}")
        config = openai_keys.classifier_config_from_arguments(settings["constructor"])
        return loaded_classifier(config, self.weights(settings["weights"])).to(dtype)

    def weights(self, name: str) -> dict[str, Tensor]:
        """A file of the case in float32; one that is not there is that of the case that it has its weights from."""
        path = self.case.folder / name
        theirs = load_file(path) if path.exists() else self.case.weights()
        return {key: value.float() for key, value in theirs.items()}

    def network_input(self, level: NoiseLevel, x: Tensor) -> Tensor:
        """The index of the whole schedule, for each sample, of x's rank."""
        index = torch.as_tensor(self.setup.process.timestep(level), dtype=torch.float32)
        return like(index.expand(len(x)), x)  # type: ignore[return-value]


def classifier_guidance(case: Case) -> Iterator[Comparison]:
    """guided-diffusion/guidance: single steps at given places of the chain, then whole runs."""
    guided, io = Guided(case), case.io
    x, level = io["input.x_t"], guided.setup.levels(io["input.t"])
    move, step, shift = guided.setup.chain.of(level), guided.step(), guided.shift()
    estimate, push = step(x, level), shift(x, level)
    spread = guided.variance(move, estimate.extra)
    mean, shifted = move.mean(estimate.x0, x), guidance.shift_eps(step, shift)(x, level)
    got = {
        "p_mean_variance.mean": mean,
        "p_mean_variance.variance": expanded(spread.value, x),
        "p_mean_variance.log_variance": expanded(spread.log, x),
        "p_mean_variance.pred_xstart": estimate.x0,
        "cond_fn_grad_at_mapped_t": push,
        "condition_mean": mean + like(spread.value, x) * push,
        "condition_score.pred_xstart": shifted.x0,
        "condition_score.mean": move.mean(shifted.x0, x),
        "p_sample": placed(guided, x, io["input.t"], io["output.p_sample.noise"]),
    }
    for name, value in got.items():
        if f"output.{name}" in io:
            yield case.compare(f"output.{name}", value)
    pair = schedules.Schedule(guided.setup.process, [level, guided.setup.below(io["input.t"])])
    for key in io:
        if key.startswith("output.ddim_sample.eta"):
            plan = ddim(pair, float(key.removeprefix("output.ddim_sample.eta")))
            drawn_once = lambda number, draw=0: io["output.p_sample.noise"]  # noqa: E731
            yield case.compare(key, run(plan, guidance.shift_eps(step, shift), x, noise=drawn_once))
    yield from loops(case, guided)


def placed(guided: Guided, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """One ancestral step of each sample at its own place in the chain."""
    out = []
    for b, index in enumerate(t.tolist()):
        rows = slice(b, b + 1)
        plan = ancestral(guided.setup.schedule, guided.variance, shift=guided.shift(rows))
        one = SamplerState(x[rows].clone(), (), len(guided.setup.kept) - 1 - index)
        with torch.no_grad():
            moved = plan.advance(one, guided.step(rows), lambda k, draw=0, r=rows: noise[r], torch.empty_like(one.x))
        out.append(moved.state.x)
    return torch.cat(out)


def loops(case: Case, guided: Guided) -> Iterator[Comparison]:
    """Whole runs: the ancestral sampler's mean is shifted, DDIM's eps by the same gradient."""
    chaotic = "cls" in case.meta["model"]  # see `published_order`
    for key in case.io:
        if key.endswith(".noises"):
            name = key.removesuffix(".noises")
            yield from separately(name, loop(case, guided, name, chaotic=chaotic))


def loop(case: Case, guided: Guided, name: str, *, chaotic: bool) -> Iterator[Comparison]:
    """One whole run."""
    noises = case.io[f"{name}.noises"]
    if not chaotic:
        yield case.compare(f"{name}.sample", as_library(guided, name, noises))
        return
    sample, nudged = (as_published(guided, name, start) for start in (noises, last_digit(noises)))
    yield case.compare(f"{name}.sample", sample, least=10 * (sample - nudged).abs().max().double())
    own, theirs = (order(guided, name, noises.double()) for order in (as_library, as_published))
    yield case.compare(f"{name}.library", own.float(), want=theirs.float())


def last_digit(noises: Tensor) -> Tensor:
    """The noises with other last digits, every second one above and below."""
    towards = torch.where(torch.arange(noises[0].numel()).view_as(noises[0]) % 2 == 0, torch.inf, -torch.inf)
    return torch.nextafter(noises, towards.to(noises).expand_as(noises))


def as_library(guided: Guided, name: str, noises: Tensor) -> Tensor:
    """A whole run."""
    schedule, step, shift = guided.setup.schedule, guided.step(dtype=noises.dtype), guided.shift(dtype=noises.dtype)
    if "p_sample" in name:
        plan, used = ancestral(schedule, guided.variance, shift=shift), step
    else:
        plan, used = ddim(schedule, eta_of(name)), guidance.shift_eps(step, shift)
    return run(plan, used, noises[0].clone(), noise=drawn(noises[1:]))


def as_published(guided: Guided, name: str, noises: Tensor) -> Tensor:
    """The same in the published order of operations."""
    schedule, shift = guided.setup.schedule, guided.shift(dtype=noises.dtype)
    step = guided.step(dtype=noises.dtype, clip=published_order.clipped)
    if "p_sample" in name:
        plan, used = ancestral(schedule, guided.variance, shift=shift), step
    else:
        plan, used = published_order.Ddim(schedule, eta_of(name)), published_order.shift_eps(step, shift)
    with published_order.networks():
        return run(plan, used, noises[0].clone(), noise=drawn(noises[1:]))


def eta_of(name: str) -> float:
    """The eta in loop.ddim_loop_eta1."""
    return float(name.partition("_eta")[2] or 0)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"guided-diffusion/guidance": classifier_guidance}
