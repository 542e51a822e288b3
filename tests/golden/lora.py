"""Recorded LoRAs: the files of four projects on diffusers' networks and a text encoder, at work and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from tests.golden.case import Case, Comparison, Unsupported
from unveil.checkpoints import dit, lora
from unveil.checkpoints.lora_sites import Part, denoiser
from unveil.conditioning.label import Label
from unveil.nn import lora as layers
from unveil.nn.dit import DiT
from unveil.nn.low_rank import Addition
from unveil.types import Condition

PEFT = ("lora_peft.safetensors", "adapter_model.safetensors")  # these tell alpha, others take it for the rank
OTHERS = ("lora_diffusers_old.safetensors", "lora_kohya.safetensors")


class Base(NamedTuple):
    """The part that LoRAs are put on, what it computes in the case, and its weights by published key."""

    part: Part
    output: Callable[[], Tensor]
    weights: Callable[[], Mapping[str, Tensor]]


def dit_base(case: Case) -> Base:
    """diffusers' DiTTransformer2DModel with a case's weights."""
    made, theirs = case.meta["arguments"], case.weights()
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    config = dit.untied(theirs, dit.config_of(shapes, made["num_attention_heads"], made["sample_size"]))
    parts = dit.load(theirs, config)
    network = DiT(config)
    network.load_state_dict(parts.network)
    label = Label(made["num_embeds_ada_norm"], config.vector_dim, 0.1)
    label.load_state_dict(parts.label)
    io = case.io
    condition = Condition(vector=label.table(io["class_labels"]).detach())
    return Base(
        denoiser(network.eval().requires_grad_(False)),
        lambda: network(io["hidden_states"], io["timestep"], condition),
        lambda: dit.dump(network.state_dict(), config, label.state_dict(), "diffusers"),
    )


BASES: dict[str, Callable[[Case], Base]] = {"DiTTransformer2DModel": dit_base}


def base_of(case: Case, kind: str) -> Base:
    """The base of a case."""
    if kind not in BASES:
        raise Unsupported(f"a base {kind}")
    return BASES[kind](case)


def peft(folder: Path) -> Iterator[Comparison]:
    """peft's adapter through diffusers: off, on, at half its weight, merged; and its two exports to other namings."""
    case = Case(folder)
    base = base_of(case, case.meta["klass"])
    said = case.meta["lora_config"]
    scale = said["lora_alpha"] / (said["r"] ** 0.5 if said.get("use_rslora") else said["r"])
    network, parts = base.part.network, {base.part.role: base.part}
    for name in (*PEFT, *OTHERS):
        if not (folder / name).exists():
            continue
        weight = 1.0 if name in PEFT else scale
        report = lora.attach(parts, name, lora.read(folder / name), weight)
        assert not report.unmatched, report.text()
        yield case.compare(f"{name} on", base.output(), "out_lora")
        layers.reweigh(network, {name: 0.5 * weight})
        yield case.compare(f"{name} at half", base.output(), "out_lora_half")
        layers.reweigh(network, {name: weight})
        yield from merged(case, network, name, base)
        layers.detach(network, name)
        yield case.compare(f"{name} off", base.output(), "out_base")


def merged(case: Case, network: nn.Module, name: str, base: Base) -> Iterator[Comparison]:
    """The merged weights, and what the network makes with them."""
    layers.merge(network)
    weights = base.weights()
    for key in case.io:
        if key.startswith("merged."):
            yield case.compare(f"{name} {key}", weights[key.removeprefix("merged.")], key)
    yield case.compare(f"{name} merged", base.output(), "out_lora")
    layers.unmerge(network)


def worked_merge(folder: Path) -> Iterator[Comparison]:
    """One linear layer and one 3x3 convolution, merged by hand."""
    case = Case(folder)
    io = case.io
    for prefix, layer in (("", nn.Linear(1, 1)), ("conv_", nn.Conv2d(1, 1, 1))):
        down, up = io[f"{prefix}down"], io[f"{prefix}up"].flatten(1)
        layer.weight = nn.Parameter(io[f"{prefix}W"], requires_grad=False)
        network = nn.ModuleDict({"layer": layer})
        made = Addition("layer", down, up, float(io.get(f"{prefix}alpha", io["alpha"])))
        layers.attach(network, "worked", [made], float(io.get(f"{prefix}multiplier", io["multiplier"])))
        layers.merge(network)
        yield case.compare(f"{prefix}merged", layer.weight)


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {
    "lora/peft": peft,
    "lora/worked_merge": worked_merge,
}
