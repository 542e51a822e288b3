"""Recorded DiTs: the network in all its parts, its guided form, and what its sampling loops call."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.case import Case, Comparison
from unveil.checkpoints import dit_keys
from unveil.conditioning.class_label import Label
from unveil.core import guidance
from unveil.core.denoiser import Denoiser
from unveil.core.process import DiscreteVP, betas
from unveil.nn.dit import WAVES, DiT, DiTConfig
from unveil.nn.embeddings import sinusoid
from unveil.types import Condition

# Of the published constructor, for what a case leaves out
DEFAULTS: Mapping[str, Any] = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16,
    "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": True,
}  # fmt: skip
GUIDED = 3  # channels that the published guidance touches, of however many there are


def with_defaults(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """Published constructor arguments, complete."""
    return ChainMap(made, DEFAULTS)  # type: ignore[arg-type]


def config_of(made: Mapping[str, Any]) -> DiTConfig:
    """The configuration of published constructor arguments."""
    made = with_defaults(made)
    return DiTConfig(
        in_channels=made["in_channels"],
        out_channels=made["in_channels"] * (2 if made["learn_sigma"] else 1),
        size=made["input_size"],
        patch=made["patch_size"],
        depth=made["depth"],
        hidden_size=made["hidden_size"],
        heads=made["num_heads"],
        mlp_ratio=made["mlp_ratio"],
    )


def built(case: Case, made: Mapping[str, Any]) -> tuple[DiT, Label]:
    """The network with the case's weights, and its table of labels."""
    made = with_defaults(made)
    config, theirs = config_of(made), case.weights()
    seen = dit_keys.config_from_keys({key: tensor.shape for key, tensor in theirs.items()}, heads=made["num_heads"])
    assert seen == config, "keys and shapes show another configuration than the case's"
    parts = dit_keys.convert_state_dict(theirs, config)
    network = DiT(config)
    network.load_state_dict(parts.network)
    label = Label(made["num_classes"], config.vector_dim, made["class_dropout_prob"])
    label.load_state_dict(parts.label)
    return network.eval().requires_grad_(False), label.requires_grad_(False)


def conditioned(label: Label, classes: Tensor) -> Condition:
    """The rows of classes, of which the one behind the last is "none"."""
    return Condition(vector=label.table(classes))


def model(case: Case) -> Iterator[Comparison]:
    """DiT: forward, every part on the way, and forward_with_cfg."""
    network, label = built(case, case.meta["constructor"])
    io = case.io
    x, t, condition = io["input.x"], io["input.t"], conditioned(label, io["input.y"])
    parts = {"output.x_embedder": network.patches, "output.t_embedder": network.time[0]}
    parts |= {f"output.block{n}": block for n, block in enumerate(network.blocks)}
    parts |= {"output.final_layer_tokens": network.leave}
    results: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, result, key=key: results.update({key: result.clone()}))
        for key, part in parts.items()
        if key in io
    ]
    yield case.compare("output.forward", network(x, t, condition))
    for hook in hooks:
        hook.remove()
    for key, result in results.items():
        yield case.compare(key, result.flatten(2).transpose(1, 2) if key == "output.x_embedder" else result)
    yield case.compare("output.pos_embed", network.get_buffer("positions")[None])
    yield case.compare("output.timestep_embedding_256", sinusoid(t, WAVES, network.config.embedding))
    if "input.t_fractional" in io:
        fractional = network(x, io["input.t_fractional"], condition)
        yield case.compare("output.forward_t_fractional", fractional)
    scales = case.meta.get("cfg_scales", [])
    if "input.cfg_x" in io:
        yield from guided(case, network, label, scales)
    theirs = dit_keys.published_state_dict(network.state_dict(), network.config, label.state_dict())
    same = {key: torch.equal(theirs[key], tensor) for key, tensor in case.weights().items()}
    yield case.compare("written back", torch.tensor([*same.values(), theirs.keys() == same.keys()]).long(),
                       want=torch.ones(len(same) + 1, dtype=torch.long))  # fmt: skip


def guided(case: Case, network: DiT, label: Label, scales: Sequence[float]) -> Iterator[Comparison]:
    """forward_with_cfg as guidance of the first channels: its first half of rows is the sample, the second its null."""
    io = case.io
    x, t, classes = io["input.cfg_x"], io["input.cfg_t"], io["input.cfg_y"]
    half = len(x) // 2
    if "output.forward_null_class" in io:
        yield case.compare("output.forward_null_class", network(x, t, conditioned(label, classes)))
    process = DiscreteVP(betas("linear", 1000))
    learns = network.config.out_channels == 2 * network.config.in_channels
    denoiser = Denoiser(network, process, learns_variance=learns)
    level = process.at((t[:half].double() + 1) / 1000)
    with_class, without = (
        lambda x, level, rows=rows: denoiser(x, level, conditioned(label, classes[rows]))
        for rows in (slice(half), slice(half, None))
    )
    for scale in scales:
        name = f"output.forward_with_cfg_{scale}"
        found = guidance.cfg(with_class, without, scale, channels=GUIDED)(x[:half], level)
        null = without(x[:half], level)
        second = torch.cat([found.eps[:, :GUIDED], null.eps[:, GUIDED:]], dim=1)
        rows = [torch.cat([eps, extra], dim=1) if extra is not None else eps
                for eps, extra in ((found.eps, found.extra), (second, null.extra))]  # fmt: skip
        yield case.compare(name, torch.cat(rows))


class ForwardWithCfg(nn.Module):
    """The published guided network: both halves of a batch are the first half of x, with classes and with "none"."""

    def __init__(self, network: DiT, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        half = x[: len(x) // 2]
        result = self.network(torch.cat([half, half]), t, condition)
        with_class, without = result[:, :GUIDED].chunk(2)
        eps = torch.lerp(without, with_class, self.scale)
        return torch.cat([torch.cat([eps, eps]), result[:, GUIDED:]], dim=1)


class Conditioned(nn.Module):
    """A network with its condition bound."""

    def __init__(self, network: nn.Module, condition: Condition) -> None:
        super().__init__()
        self.network, self.condition = network, condition

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return self.network(x, t, self.condition)


def looped(case: Case) -> nn.Module:
    """What a recorded sampling loop calls: the case's DiT, guided where it names a scale, with its classes bound."""
    network, label = built(case, case.meta["network"]["constructor"])
    classes = torch.tensor(case.meta["y"]) if "y" in case.meta else case.io["input.y"]
    scale = case.meta.get("cfg_scale")
    called = network if scale is None else ForwardWithCfg(network, scale)
    return Conditioned(called, conditioned(label, classes))


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"DiT/model": model}
