"""State dicts of published ControlNets: names, both directions, and configurations.

Facts: key lists and constructor arguments of github.com/lllyasviel/ControlNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unveil.checkpoints import ldm_unet, openai_keys
from unveil.checkpoints.key_mapping import Names, layer_key, layer_keys, to_ours, to_theirs
from unveil.errors import RecipeError, WeightsError
from unveil.nn.controlnet import ControlNet
from unveil.nn.meta_device import meta_device
from unveil.nn.unet_config import UNetConfig

PREFIX = "control_model."  # of its keys in a file that holds Stable Diffusion too
HINT = "input_hint_block"


def names(network: ControlNet) -> Names:
    """Our keys of a ControlNet and the published ones, without prefix."""
    mapping = openai_keys.names_of(network, openai_keys.first_half(network.config))
    mapping |= layer_keys("hint", HINT, {f"layers.{i}": f"{2 * i}" for i in range(len(network.hint.layers))})
    mapping |= layer_keys("zero", "zero_convs", {f"{i}": f"{i}.0" for i in range(len(network.zero))})
    return mapping | layer_key("zero_middle", "middle_block_out.0")


def load(theirs: Mapping[str, Tensor], config: UNetConfig) -> ControlNet:
    """The ControlNet of a published state dict, with or without its prefix, other parts left out; it is not copied.

    Raises:
        WeightsError: missing or extra keys, or tensors of another shape.
    """
    theirs = ldm_unet.strip_prefix(theirs, PREFIX)
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    network = meta_controlnet(config, shapes)
    state = to_ours(theirs, names(network), {key: value.shape for key, value in network.state_dict().items()})
    network.load_state_dict(state, assign=True)
    return network.eval()


def dump(network: ControlNet) -> dict[str, Tensor]:
    """The published state dict of ours, without a prefix (`ldm_unet.add_prefix(..., PREFIX)` adds it)."""
    return to_theirs(network.state_dict(), names(network))


def meta_controlnet(config: UNetConfig, shapes: Mapping[str, Sequence[int]]) -> ControlNet:
    """A ControlNet without memory, its hint network as published shapes show it.

    Raises:
        WeightsError: They contain no hint network.
    """
    places = sorted({int(key.split(".")[1]) for key in shapes if key.startswith(f"{HINT}.")})
    layers = [shapes[f"{HINT}.{place}.weight"] for place in places]
    if len(layers) < 2 or len(layers) % 2:
        raise WeightsError(f"not a ControlNet: {len(layers)} layers under {HINT}, which are an even number, mostly 8")
    return controlnet_from_shapes(config, layers)


def controlnet_from_shapes(config: UNetConfig, layers: Sequence[Sequence[int]]) -> ControlNet:
    """A ControlNet without memory, of whose hint network these are the shapes of the weights; there are at least 2."""
    widths = [layers[0][0], *(shape[0] for shape in layers[2:-1:2])]
    with meta_device():
        return ControlNet(config, hint_channels=layers[0][1], hint_widths=widths)


def from_arguments(arguments: Mapping[str, Any]) -> tuple[UNetConfig, int]:
    """The U-Net's configuration and the channels of the hint, of `ControlNet(**arguments)`.

    Raises:
        RecipeError: as `ldm_unet.from_arguments`.
    """
    settings = dict(arguments)
    if "hint_channels" not in settings:
        raise RecipeError("argument 'hint_channels' is missing")
    channels = settings.pop("hint_channels")
    return ldm_unet.from_arguments({"out_channels": settings.get("in_channels"), **settings}), channels


def infer_config(shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int] | None = None) -> UNetConfig:
    """The configuration that a ControlNet's tensors show, as `ldm_unet.infer_config` reads a U-Net's."""
    bare = dict(ldm_unet.strip_prefix(shapes, PREFIX))
    if not any(key.startswith(f"{HINT}.") for key in bare):
        raise WeightsError(f"not a ControlNet: there is nothing under {HINT}")
    bare["out.2.weight"] = (bare["input_blocks.0.0.weight"][1], 0, 0, 0)  # x's channels: it has no way out
    return ldm_unet.infer_config(bare, heads)
