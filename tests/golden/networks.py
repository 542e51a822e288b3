"""Recorded networks: the U-Nets of DDPM, Improved DDPM, ADM and consistency models, and ADM's noisy classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.checkpoints import openai_keys
from unveil.checkpoints.formats import ddpm
from unveil.conditioning.class_label import Label
from unveil.core import guidance, preconditioning
from unveil.core.denoiser import Denoiser
from unveil.core.ve import EDMProcess
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.embeddings import sinusoid
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition


def unet(case: Case) -> Iterator[Comparison]:
    """UNetModel of either repository."""
    yield from _openai(case, openai_config(case, case.meta["constructor"]))


def superres(case: Case) -> Iterator[Comparison]:
    """SuperResModel of either repository."""
    yield from _openai(case, openai_keys.upsampler(openai_config(case, case.meta["constructor"])))


def openai_config(case: Case, made: Mapping[str, Any]) -> UNetConfig:
    """The configuration of constructor arguments; Improved DDPM's first convolution has `model_channels`."""
    config = openai_keys.config_from_arguments(made)
    improved = case.kind.startswith("improved-diffusion/") and config.widths[0] != config.model_channels
    return replace(config, stem_channels=config.model_channels) if improved else config


def ddpm_unet(case: Case) -> Iterator[Comparison]:
    """DDPM's own network in its PyTorch port."""
    config = ddpm.config_from_arguments(case.meta["arguments"])
    network = _loaded(config, ddpm.convert_state_dict(case.weights(), config))
    yield case.compare("out", _run(network, case.io["x"], case.io["t"], None))
    if "temb_sin" in case.io:
        yield case.compare("temb_sin", sinusoid(case.io["t"], config.model_channels, config.embedding))


def consistency_unet(case: Case) -> Iterator[Comparison]:
    """UNetModel of consistency models, alone and behind both of its preconditionings."""
    config = openai_keys.consistency(openai_keys.config_from_arguments(case.meta["constructor"]))
    yield from _openai(case, config)
    parts = openai_keys.convert_state_dict(case.weights(), config)
    network, condition = _loaded(config, parts.network), _condition(case, parts)
    sigma = case.io["input.sigma"]
    level = EDMProcess().at(sigma.double() / EDMProcess().sigma_max)
    shells = {0: preconditioning.EDMPreconditioning(index_scale=1000), 1: preconditioning.ConsistencyPreconditioning()}
    for distilled, shell in shells.items():
        if f"output.denoise.distillation{distilled}" in case.io:
            x = case.io["input.x"] * sigma.reshape(-1, 1, 1, 1)
            with torch.no_grad():
                estimate = Denoiser(network, EDMProcess(), prediction=shell)(x, level, condition)
            yield case.compare(f"output.denoise.distillation{distilled}", estimate.x0)


def classifier(case: Case) -> Iterator[Comparison]:
    """EncoderUNetModel: its logits, and the gradient of the log-probability of a class."""
    config = openai_keys.classifier_config_from_arguments(case.meta["constructor"])
    network = loaded_classifier(config, case.weights())
    x, t = case.io["input.x"], case.io["input.t"]
    with torch.no_grad():
        yield case.compare("output.logits", network(x, t))
    if "output.grad_logprob_y" in case.io:
        score = guidance.log_probability(lambda x, level: network(x, t), case.io["input.y"])
        yield case.compare("output.grad_logprob_y", guidance.gradient(score)(x, EDMProcess().at(1.0)))


def loaded_classifier(config: NoisyClassifierConfig, theirs: dict[str, Tensor]) -> NoisyClassifier:
    """The classifier with published weights."""
    network = NoisyClassifier(config)
    network.load_state_dict(openai_keys.convert_classifier_state_dict(theirs, config))
    return network.eval()


def _condition(case: Case, parts: openai_keys.OpenAIWeights) -> Condition:
    condition = Condition(concat=case.io.get("input.low_res"))
    if parts.label is None:
        return condition
    classes, dim = parts.label["table.weight"].shape
    label = Label(classes, dim)
    label.load_state_dict(parts.label)
    return condition.join(label.encode(case.io["input.y"]))


def _openai(case: Case, config: UNetConfig) -> Iterator[Comparison]:
    parts = openai_keys.convert_state_dict(case.weights(), config)
    network, condition = _loaded(config, parts.network), _condition(case, parts)

    x, t = case.io["input.x"], case.io["input.t"]
    results, hooks = {}, []
    for key, module in _recorded_features(config):
        if key in case.io:
            keep = lambda _module, _inputs, result, key=key: results.update({key: result.clone()})  # noqa: E731
            hooks.append(network.get_submodule(module).register_forward_hook(keep))
    yield case.compare("output.forward", _run(network, x, t, condition))
    for hook in hooks:
        hook.remove()
    for key, result in results.items():
        yield case.compare(key, result)
    if "output.forward_t_int" in case.io:
        yield case.compare("output.forward_t_int", _run(network, x, case.io["input.t_int"], condition))
    if "output.timestep_embedding" in case.io:
        yield case.compare("output.timestep_embedding", sinusoid(t, config.model_channels, config.embedding))


def _recorded_features(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Names under which a case may hold results in between, and our module that gives each."""
    parts = {"input_blocks": "down", "output_blocks": "up"}
    for entry in openai_keys.entries(config):
        part, _, number = entry.theirs.partition(".")
        if part == "middle_block":
            yield "output.middle", entry.ours[-1]
            yield "output.features.middle", entry.ours[-1]
        else:
            yield f"output.features.{parts[part]}{number}", entry.ours[-1]


def _loaded(config: UNetConfig, state: dict[str, Tensor]) -> UNet:
    network = UNet(config)
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def _run(network: UNet, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
    return network(x, t, condition)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "improved-diffusion/unet": unet,
    "improved-diffusion/superres": superres,
    "guided-diffusion/unet": unet,
    "guided-diffusion/superres": superres,
    "guided-diffusion/classifier": classifier,
    "consistency_models/unet": consistency_unet,
    "ddim/unet": ddpm_unet,
}
