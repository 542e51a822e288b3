"""Size and cost of a published architecture such as dit-xl-2, computed without its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from unveil.io.console import size
from unveil.nn import dit, vit
from unveil.nn.dit import DiT
from unveil.nn.flops import activations, multiply_adds
from unveil.nn.layers import meta_device
from unveil.tasks.task import TaskResult
from unveil.types import Condition

KINDS = ("dit", "vit")
FLOAT = 4  # bytes; weights, gradients, moments and averages are float32
CLASSES = 1000  # of the published networks


def is_name(text: str) -> bool:
    """Return True if the text is the name of an architecture, such as dit-xl-2 or vit-b-16."""
    return text.partition("-")[0] in KINDS and "/" not in text


def describe(name: str, side: int | None, batch: int) -> TaskResult:
    """Return parameters, multiply-adds, tokens and memory of an architecture.

    Args:
        name: Name of the architecture.
        side: Side of the input; None for the published one: 32 latents for DiT, 224 pixels for ViT.
        batch: Batch size for which memory is estimated.

    Raises:
        RecipeError: The architecture is unknown, or its patch size does not divide the side.
    """
    facts = _dit(name, side or 32, batch) if name.startswith("dit") else _vit(name, side or 224, batch)
    return TaskResult(facts, _text(facts))


def _dit(name: str, side: int, batch: int) -> dict[str, Any]:
    config = dit.get_preset(name, size=side)
    costs: dict[str, int] = {}
    for design in get_args(dit.Design):
        model = _on_meta(replace(config, block_type=design))
        costs[design] = multiply_adds(model, _inputs(model, 1))
    model = _on_meta(config)
    labels = (CLASSES + 1) * config.vector_dim
    trained = sum(parameter.numel() for parameter in model.parameters()) + labels
    facts = {
        "network": name,
        "input": [config.in_channels, side, side],
        "shape": {"depth": config.depth, "width": config.hidden_size, "heads": config.heads, "patch": config.patch},
        "parameters": sum(tensor.numel() for tensor in model.state_dict().values()) + labels,
        "trained": trained,
        "multiply_adds": costs[config.block_type],
        "tokens": config.side**2,
        "designs": costs,
    }
    return facts | _memory(trained, activations(model, _inputs(model, batch)), batch, facts)


def _vit(name: str, side: int, batch: int) -> dict[str, Any]:
    config = vit.get_preset(name, size=side, head="hidden")
    with meta_device():
        model = vit.ViT(config)
        image, images = torch.empty(1, 3, side, side), torch.empty(batch, 3, side, side)
    trained = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "network": name,
        "input": [config.channels, side, side],
        "shape": {"depth": config.depth, "width": config.hidden_size, "heads": config.heads, "patch": config.patch},
        "parameters": trained,
        "trained": trained,
        "multiply_adds": multiply_adds(model, [image]),
        "tokens": config.side**2 + 1,
    }
    return facts | _memory(trained, activations(model, [images]), batch, facts)


def _memory(trained: int, activation_bytes: int, batch: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "flops": 2 * facts["multiply_adds"],
        "batch": batch,
        "weights_bytes": FLOAT * facts["parameters"],
        # weights, gradients, two moments and the average
        "training_bytes": 5 * FLOAT * trained + activation_bytes,
        "activations_bytes": activation_bytes,
    }


def _on_meta(config: dit.DiTConfig) -> DiT:
    with meta_device():
        return DiT(config)


def _inputs(model: DiT, batch: int) -> tuple[Tensor, Tensor, Condition]:
    config = model.config
    with meta_device():
        x = torch.empty(batch, config.in_channels, config.size, config.size)
        return x, torch.empty(batch), Condition(vector=torch.empty(batch, config.vector_dim))


def _text(facts: dict[str, Any]) -> str:
    shape = facts["shape"]
    lines = [
        f"{facts['network']}: {shape['depth']} blocks of width {shape['width']}, {shape['heads']} heads, "
        f"patch {shape['patch']}, for an input of {' x '.join(map(str, facts['input']))}",
        f"parameters    {facts['parameters']:,}, of which {facts['trained']:,} are trained",
        f'multiply-adds {facts["multiply_adds"] / 1e9:.3f} G for one input (papers\' "Gflops")',
        f"FLOPs         {facts['flops'] / 1e9:.3f} G, a product and a sum counted as two",
        f"tokens        {facts['tokens']}",
        f"memory        {size(facts['weights_bytes'])} of float32 weights",
        f"training      about {size(facts['training_bytes'])} for a batch of {facts['batch']}, of which "
        f"{size(facts['activations_bytes'])} for activations",
    ]
    for design, cost in facts.get("designs", {}).items():
        more = 100 * (cost / facts["multiply_adds"] - 1)
        lines.append(f"{'with ' + design:<21} {cost / 1e9:.3f} G multiply-adds ({more:+.1f} %)")
    return "\n".join(lines)
