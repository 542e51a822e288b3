"""Recorded LoRAs: the files of four projects on diffusers' networks and a text encoder, at work and merged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported
from unveil.checkpoints import diffusers_unet, dit_keys, lora
from unveil.checkpoints.lora import LoraNetwork, denoiser, text_encoder
from unveil.conditioning.class_label import Label
from unveil.nn import lora as layers
from unveil.nn.dit import DiT
from unveil.nn.lora import LoraDelta
from unveil.types import Condition

PEFT = ("lora_peft.safetensors", "adapter_model.safetensors")  # these tell alpha, others take it for the rank
INPUTS = (("sample", "x"), ("timestep", "timesteps"), ("encoder_hidden_states", "context"))
OTHERS = ("lora_diffusers_old.safetensors", "lora_kohya.safetensors")
# Settings of DiTTransformer2DModel that the library has with one value alone
DIT_ONLY = {
    "attention_bias": True, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero",
    "upcast_attention": False, "norm_elementwise_affine": False,
}  # fmt: skip


class Base(NamedTuple):
    """The part that LoRAs are put on, what it computes in the case, and its weights by published key."""

    part: LoraNetwork
    output: Callable[[], Tensor]
    weights: Callable[[], Mapping[str, Tensor]]


def dit_base(case: Case) -> Base:
    """diffusers' DiTTransformer2DModel with a case's weights."""
    made, theirs = case.meta["arguments"], case.weights()
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    config = dit_keys.with_untied_embeddings(
        theirs, dit_keys.config_from_keys(shapes, made["num_attention_heads"], made["sample_size"])
    )
    sizes = {
        "in_channels": config.in_channels, "out_channels": config.out_channels, "num_layers": config.depth,
        "patch_size": config.patch, "attention_head_dim": config.hidden_size // config.heads,
    }  # fmt: skip
    if other := [name for name, size in sizes.items() if made.get(name, size) != size]:
        raise AssertionError(f"the weights have {sizes}, the case has another {other[0]}")
    for name, only in DIT_ONLY.items():
        if made.get(name, only) != only:
            raise Unsupported(f"{name} {made[name]!r}")
    config = replace(config, mlp_norm_eps=made.get("norm_eps", config.mlp_norm_eps))
    parts = dit_keys.convert_state_dict(theirs, config)
    network = DiT(config)
    network.load_state_dict(parts.network)
    label = Label(made["num_embeds_ada_norm"], config.vector_dim, 0.1)
    label.load_state_dict(parts.label)
    io = case.io
    condition = Condition(vector=label.table(io["class_labels"]).detach())
    return Base(
        denoiser(network.eval().requires_grad_(False)),
        lambda: network(io["hidden_states"], io["timestep"], condition),
        lambda: dit_keys.published_state_dict(network.state_dict(), config, label.state_dict(), "diffusers"),
    )


def unet_base(case: Case) -> Base:
    """diffusers' UNet2DConditionModel with a case's weights."""
    made = case.meta["base"]["unet_arguments"] if "base" in case.meta else case.meta["arguments"]
    theirs = {key.removeprefix("unet."): value for key, value in case.weights().items() if key.startswith("unet.")}
    network = diffusers_unet.convert_state_dict(
        theirs or case.weights(), diffusers_unet.config_from_settings(made)
    ).network
    network.requires_grad_(False)
    io = case.io
    x, t, tokens = (io[first] if first in io else io[second] for first, second in INPUTS)
    return Base(
        denoiser(network),
        lambda: network(x, t, Condition(tokens=tokens)),
        lambda: diffusers_unet.published_state_dict(network),
    )


def text_base(case: Case) -> Base:
    """transformers' CLIPTextModel with a case's weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    network = CLIPTextModel(CLIPTextConfig(**case.meta["base"]["text_arguments"])).eval().requires_grad_(False)
    mine = network.state_dict()
    theirs = {key.removeprefix("text_encoder."): value for key, value in case.weights().items()}
    short = {key.removeprefix("text_model."): value for key, value in theirs.items()}
    named = {key: short.get(key.removeprefix("text_model."), value) for key, value in mine.items()}
    assert all(key.removeprefix("text_model.") in short or "position_ids" in key for key in mine)
    network.load_state_dict(named)
    return Base(
        text_encoder(network),
        lambda: network(case.io["input_ids"]).last_hidden_state,
        network.state_dict,
    )


BASES: dict[str, Callable[[Case], Base]] = {
    "DiTTransformer2DModel": dit_base,
    "UNet2DConditionModel": unet_base,
    "diffusers UNet2DConditionModel": unet_base,
}


def base_of(case: Case, kind: str) -> Base:
    """The base of a case."""
    if kind not in BASES:
        raise Unsupported(f"a base {kind}")
    return BASES[kind](case)


def peft(case: Case) -> Iterator[Comparison]:
    """peft's adapter through diffusers: off, on, at half its weight, merged; and its two exports to other namings."""
    base = base_of(case, case.meta["klass"])
    lora_config = case.meta["lora_config"]
    root = lora_config["r"] ** 0.5 if lora_config.get("use_rslora") else 1.0
    scale = lora_config["lora_alpha"] * root / lora_config["r"]
    patterns = {name: dict(lora_config.get(f"{name}_pattern", {})) for name in ("rank", "alpha")}
    network, parts = base.part.network, {base.part.role: base.part}
    # one weight for a whole file cannot stand for alphas and ranks by layer
    for name in PEFT if any(patterns.values()) else (*PEFT, *OTHERS):
        if not (case.folder / name).exists():
            continue
        weight, file = 1.0 if name in PEFT else scale, lora.read_lora(case.folder / name)
        for entry in file.entries:
            rank = pattern_of(patterns["rank"], entry.path, lora_config["r"])
            alpha = pattern_of(patterns["alpha"], entry.path, lora_config["lora_alpha"])
            alpha *= rank**0.5 if lora_config.get("use_rslora") else 1
            if entry.rank != rank or (name in PEFT and entry.alpha not in (None, alpha)):
                raise AssertionError(f"{name}: {entry.path} has rank {entry.rank} and alpha {entry.alpha}")
        report = lora.attach(parts, name, file, weight)
        assert not report.unmatched, report.text()
        yield case.compare(f"{name} on", base.output(), "out_lora")
        layers.set_weights(network, {name: 0.5 * weight})
        yield case.compare(f"{name} at half", base.output(), "out_lora_half")
        layers.set_weights(network, {name: weight})
        yield from merged(case, network, name, base)
        layers.detach(network, name)
        yield case.compare(f"{name} off", base.output(), "out_base")


def pattern_of(patterns: Mapping[str, float], path: str, otherwise: float) -> float:
    """The value of the first of peft's patterns that the end of a path has."""
    fitting = (value for pattern, value in patterns.items() if re.search(rf"(^|\.)({pattern})$", path))
    return next(fitting, otherwise)


def merged(case: Case, network: nn.Module, name: str, base: Base) -> Iterator[Comparison]:
    """The merged weights, and what the network makes with them."""
    layers.fuse_lora(network)
    weights = base.weights()
    for key in case.io:
        if key.startswith("merged."):
            yield case.compare(f"{name} {key}", weights[key.removeprefix("merged.")].clone(), key)
    yield case.compare(f"{name} merged", base.output(), "out_lora")
    layers.unfuse_lora(network)


def kohya(case: Case) -> Iterator[Comparison]:
    """sd-scripts' network on a U-Net and a text encoder, at a multiplier."""
    arguments = case.meta["arguments"]
    convolution = arguments.get("conv_lora_dim"), arguments.get("conv_alpha")
    linear = arguments["lora_dim"], arguments["alpha"]
    written = load_file(case.folder / "lora.safetensors")
    for key, down in written.items():
        if key.endswith(".lora_down.weight"):
            rank, alpha = convolution if down.ndim == 4 and down.shape[-1] > 1 else linear
            alpha = alpha or rank  # none means a scale of 1
            stated = written[key.replace("lora_down.weight", "alpha")]
            if (down.shape[0], float(stated)) != (rank, alpha):
                raise AssertionError(f"{key}: rank {down.shape[0]} with alpha {float(stated)}")
    yield from at_work(case, "kohya", float(case.meta["arguments"]["multiplier"]))


def cloneofsimo(case: Case) -> Iterator[Comparison]:
    """The layers of some classes by their number, with the scale that tune_lora_scale was given."""
    ranks = {value.shape[0] for key, value in load_file(case.folder / "lora.safetensors").items() if "down" in key}
    yield case.compare("r", torch.tensor(sorted(ranks)), want=torch.tensor([case.meta["arguments"]["r"]]))
    yield from at_work(case, "simo", float(case.meta["arguments"]["scale"]))


def at_work(case: Case, name: str, weight: float) -> Iterator[Comparison]:
    """A file off, on and merged, on the networks that the case names; and which modules it was found to be on."""
    base = base_of(case, case.meta["base"]["unet"])
    kind = case.meta["base"].get("text_encoder")
    if kind not in (None, "transformers CLIPTextModel"):
        raise Unsupported(f"a base {kind}")
    text = None if kind is None else text_base(case)
    used = [(prefix, one) for prefix, one in (("out", base), ("te", text)) if one is not None]
    for prefix, one in used:
        yield case.compare(f"{prefix} off", one.output(), f"{prefix}_base")
    file = lora.read_lora(case.folder / "lora.safetensors")
    report = lora.attach({one.part.role: one.part for _, one in used}, name, file, weight)
    assert not report.unmatched, report.text()
    if "n_lora_modules" in case.meta:
        yield case.compare("modules", len(report.matched), want=sum(case.meta["n_lora_modules"].values()))
    if order := case.meta.get("module_order_named_modules"):
        found = dict(zip((entry.path for entry in file.entries), report.matched, strict=True))
        same = [found[f"unet:{number}"] == path for number, path in enumerate(order)]
        yield case.compare("order", torch.tensor(same).long(), want=torch.ones(len(order), dtype=torch.long))
    for prefix, one in used:
        yield case.compare(f"{prefix} on", one.output(), f"{prefix}_lora")
    if text is not None:
        layers.fuse_lora(text.part.network)
        yield case.compare("te merged", text.output(), "te_lora")
    yield from merged(case, base.part.network, name, base)


def worked_merge(case: Case) -> Iterator[Comparison]:
    """One linear layer and one 3x3 convolution, merged by hand."""
    io = case.io
    for prefix, layer in (("", nn.Linear(1, 1)), ("conv_", nn.Conv2d(1, 1, 1))):
        if f"{prefix}W" not in io:
            continue
        down, up = io[f"{prefix}down"], io[f"{prefix}up"].flatten(1)
        layer.weight = nn.Parameter(io[f"{prefix}W"], requires_grad=False)
        network = nn.ModuleDict({"layer": layer})
        made = LoraDelta("layer", down, up, float(io.get(f"{prefix}alpha", io["alpha"])))
        layers.attach(network, "worked", [made], float(io.get(f"{prefix}multiplier", io["multiplier"])))
        layers.fuse_lora(network)
        yield case.compare(f"{prefix}merged", layer.weight.clone())


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "lora/cloneofsimo": cloneofsimo,
    "lora/kohya": kohya,
    "lora/peft": peft,
    "lora/worked_merge": worked_merge,
}
