"""Recorded networks: the DDPM U-Net, Improved DDPM and ADM, with and without a smaller picture to enlarge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.checkpoints import ddpm, openai
from unveil.conditioning.label import Label
from unveil.nn.embed import sinusoid
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition


def unet(folder: Path) -> Iterator[Comparison]:
    """UNetModel of either repository."""
    case = Case(folder)
    yield from _openai(case, openai.from_arguments(case.meta["constructor"]))


def superres(folder: Path) -> Iterator[Comparison]:
    """SuperResModel of either repository."""
    case = Case(folder)
    yield from _openai(case, openai.upsampler(openai.from_arguments(case.meta["constructor"])))


def ddpm_unet(folder: Path) -> Iterator[Comparison]:
    """DDPM's own network in its PyTorch port."""
    case = Case(folder)
    config = ddpm.from_arguments(case.meta["arguments"])
    network = _loaded(config, ddpm.load(case.weights(), config))
    yield case.compare("out", _run(network, case.io["x"], case.io["t"], None))
    if "temb_sin" in case.io:
        yield case.compare("temb_sin", sinusoid(case.io["t"], config.channels, config.embedding))


def _openai(case: Case, config: UNetConfig) -> Iterator[Comparison]:
    parts = openai.load(case.weights(), config)
    network = _loaded(config, parts.network)
    condition = Condition(channels=case.io.get("input.low_res"))
    if parts.label is not None:
        classes, dim = parts.label["table.weight"].shape
        label = Label(classes, dim)
        label.load_state_dict(parts.label)
        condition = condition.join(label.encode(case.io["input.y"]))

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
        yield case.compare("output.timestep_embedding", sinusoid(t, config.channels, config.embedding))


def _recorded_features(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Names under which a case may hold results in between, and our module that gives each."""
    parts = {"input_blocks": "down", "output_blocks": "up"}
    for entry in openai.entries(config):
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


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {
    "improved-diffusion/unet": unet,
    "improved-diffusion/superres": superres,
    "guided-diffusion/unet": unet,
    "guided-diffusion/superres": superres,
    "ddim/unet": ddpm_unet,
}
