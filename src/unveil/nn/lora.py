"""LoRA: low-rank additions to the linear layers and convolutions of any network, whose weights stay unchanged.

    W' = W + w (alpha / r) B A,   A: (r, in, kernel), B: (rows, r)

Several LoRAs share a network, each with its own weight w. An addition may cover only some rows of a layer, because
attention computes queries, keys and values in one layer where published files have three.

A layer keeps its class, its weight and its name. Its additions are a child module `lora`, which moves and is copied
with the layer, and is not a part of any state dict: a network with LoRAs saves and loads the files of the base. The
additions are computed in the layer's forward hook, which exists only while a LoRA is active. Without one, the layer
computes the same bits through the same kernels as before. Replacing the layer, or torch's parametrisations, would
rename the weight; the latter would also multiply B A out at every call.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; scale by the root of the rank: Kalajdzievski 2023
(arXiv:2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from unveil.errors import RecipeError, ShapeError, did_you_mean


@dataclass(frozen=True)
class LoraDelta:
    """Addition to rows of one layer's weight: alpha / r times up @ down.

    Attributes:
        layer: Path of the layer in the network.
        down: Matrix A, (rank, in) of a linear layer, (rank, in, *kernel) of a convolution.
        up: Matrix B, (rows, rank).
        start: Index of the first of the layer's rows (outputs) to which it is added.

    Raises:
        ShapeError: The shapes of the matrices do not fit each other, or `start` is negative.
    """

    layer: str
    down: Tensor
    up: Tensor
    alpha: float
    start: int = 0

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim < 2 or self.up.shape[1] != self.down.shape[0] or self.start < 0:
            raise ShapeError(
                f"{self.layer}: up {tuple(self.up.shape)} and down {tuple(self.down.shape)} from row {self.start}: "
                "must be (rows, rank) and (rank, in, ...)"
            )

    @property
    def rank(self) -> int:
        """Rank r, the number of rows of A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Factor alpha / r of B A."""
        return self.alpha / self.rank

    @property
    def stop(self) -> int:
        """Index after its last row."""
        return self.start + self.up.shape[0]

    def delta(self) -> Tensor:
        """Change of the rows (rows, in, ...), in float32 or better."""
        dtype = torch.promote_types(self.up.dtype, torch.float32)
        return self.scale * (self.up.to(dtype) @ self.down.to(dtype).flatten(1)).unflatten(1, self.down.shape[1:])


class LoraParams(nn.Module):
    """Parameters of one addition, which are in no state dict."""

    def __init__(self, name: str, delta: LoraDelta, like: Tensor) -> None:
        super().__init__()
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        self.name, self.layer, self.alpha, self.start = name, delta.layer, delta.alpha, delta.start
        self.down = nn.Parameter(delta.down.detach().to(like.device, dtype, copy=True), requires_grad=False)
        self.up = nn.Parameter(delta.up.detach().to(like.device, dtype, copy=True), requires_grad=False)

    def to_delta(self) -> LoraDelta:
        """Return the addition, with the tensors that are trained."""
        return LoraDelta(self.layer, self.down, self.up, self.alpha, self.start)

    def forward(self, layer: nn.Module, x: Tensor, weight: float) -> Tensor:
        """Addition to the rows' output for the layer's input, times `weight`; the channel axis is that of the layer."""
        scale = weight * self.alpha / self.down.shape[0]
        x = x.to(self.down.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.down) * scale, self.up)
        convolution = cast(nn.Conv2d, layer)
        convolve = {2: F.conv1d, 3: F.conv2d, 4: F.conv3d}[self.down.ndim - 1]
        low = convolve(x, self.down, None, convolution.stride, convolution.padding, convolution.dilation)
        return convolve(low * scale, self.up[(...,) + (None,) * (self.down.ndim - 2)])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save nothing, so that the base's files do not change."""

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        """Load nothing, and report nothing as missing."""


class LoraLayer(nn.Module):
    """All additions to one layer; the module is the layer's forward hook while one of them is active.

    Attributes:
        weights: Weights of each LoRA by name; 0: the LoRA is off.
        disabled: True while nothing is added, whatever the weights.
        original: Weight before the additions were fused into it; None: they are not fused.
    """

    original: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.lows = nn.ModuleList()
        self.weights: dict[str, float] = {}
        self.disabled = False
        self.register_buffer("original", None, persistent=False)
        self._handle: RemovableHandle | None = None

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
        """Return the layer's result with all active additions (the forward hook)."""
        axis = -1 if isinstance(layer, nn.Linear) else inputs[0].ndim - cast(Tensor, layer.weight).ndim + 1
        rows = result.shape[axis]
        for low in self.active():
            gained = low(layer, inputs[0], self.weights[low.name]).to(result.dtype)
            behind = rows - low.start - low.up.shape[0]
            if low.start or behind:  # the other rows gain nothing
                inner = (0, 0) * (0 if axis == -1 else result.ndim - axis - 1)
                gained = F.pad(gained, (*inner, low.start, behind))
            result = result + gained
        return result

    def active(self) -> list[LoraParams]:
        """Active additions, in the order in which they were attached."""
        every = cast(list[LoraParams], list(self.lows))
        return [] if self.disabled else [low for low in every if self.weights[low.name] != 0]

    def update_hook(self, layer: nn.Module) -> None:
        """Register the hook if there is something to add at a call, and remove it otherwise."""
        wanted = bool(self.active()) and self.original is None
        if wanted and self._handle is None:
            self._handle = layer.register_forward_hook(self)
        elif not wanted and self._handle is not None:
            self._handle.remove()
            self._handle = None


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHILD = "lora"  # the name of the module that holds a layer's additions
Scaling = Literal["rank", "root"]


@dataclass(frozen=True)
class LoraConfig:
    """Configuration of new additions to a network.

    Args:
        targets: Names of layers as a whole, their last parts such as "attention.qkv", or patterns such as
            "blocks.*.mlp.*"; "*" is every linear layer and convolution.
        rank: Rank r.
        alpha: Numerator of the scale; None: the rank, so that the scale of `rank` is 1.
        scaling: Scale of B A: "rank" is alpha / r as published; "root" is alpha / sqrt(r) (rsLoRA).

    Raises:
        RecipeError: A number is out of range, there is no target, or the scaling is unknown.
    """

    targets: tuple[str, ...]
    rank: int = 4
    alpha: float | None = None
    scaling: Scaling = "rank"

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets or self.scaling not in ("rank", "root"):
            raise RecipeError(
                f"lora: rank = {self.rank}, targets = {list(self.targets)}, scaling = {self.scaling!r}: needs a rank "
                "of at least 1, one target or more, and scaling rank or root"
            )
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise RecipeError(f"lora: alpha = {self.alpha}: must be above 0")


# -- of a network -------------------------------------------------------------------------------------------------


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer and convolution by its path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, LAYERS)}


def init_lora(network: nn.Module, config: LoraConfig) -> list[LoraDelta]:
    """Create additions that change nothing yet: A is Kaiming-uniform from torch's generator, B is zero.

    Raises:
        RecipeError: A target matches no layer (the message names the nearest), or matches one that takes no LoRA.

    Source: Hu et al. 2021, section 4.1; A is drawn as in the authors' library.
    """
    layers, chosen = layers_of(network), dict[str, nn.Module]()
    for target in config.targets:
        matches = {p: m for p, m in layers.items() if fnmatchcase(p, target) or fnmatchcase(p, f"*.{target}")}
        if not matches:
            ends = sorted({".".join(path.split(".")[-2:]) for path in layers})
            raise RecipeError(
                f"lora target {target!r}: matches no layer of this network{did_you_mean(target, [*layers, *ends])}; "
                f"layers end in {', '.join(ends[:8])}"
            )
        chosen |= matches
    alpha = float(config.rank if config.alpha is None else config.alpha)
    if config.scaling == "root":
        alpha *= math.sqrt(config.rank)
    deltas = []
    for path in (path for path in layers if path in chosen):
        weight = _weight(layers[path], path)
        down = torch.empty(config.rank, *weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        deltas.append(LoraDelta(path, down, torch.zeros(len(weight), config.rank), alpha))
    return deltas


def attach(network: nn.Module, name: str, additions: Sequence[LoraDelta], weight: float = 1.0) -> None:
    """Attach a LoRA to a network.

    Args:
        weight: Weight w of the LoRA; 0: it is off.

    Raises:
        RecipeError: The name is taken, there is no addition, a layer is missing or takes none, or LoRAs are fused.
        ShapeError: An addition does not fit the layer's weight; the network is then unchanged.
    """
    if not additions or name in adapter_weights(network):
        raise RecipeError(
            f"LoRA {name!r}: " + ("is on this network already; detach it first" if additions else "adds nothing")
        )
    _not_merged(network)
    layers = layers_of(network)
    for delta in additions:
        if delta.layer not in layers:
            raise RecipeError(
                f"LoRA {name!r}: {delta.layer!r} is not a layer here{did_you_mean(delta.layer, list(layers))}"
            )
        kernel = _weight(layers[delta.layer], delta.layer)
        if delta.down.shape[1:] != kernel.shape[1:] or delta.stop > len(kernel):
            raise ShapeError(
                f"LoRA {name!r}, {delta.layer}: adds {(delta.up.shape[0], *delta.down.shape[1:])} from row "
                f"{delta.start} to a weight {tuple(kernel.shape)}"
            )
    for delta in additions:
        layer = layers[delta.layer]
        held = getattr(layer, CHILD, None)
        if held is None:
            layer.add_module(CHILD, held := LoraLayer())
        held.lows.append(LoraParams(name, delta, cast(Tensor, layer.weight)))
        held.weights[name] = weight
        held.update_hook(layer)


def detach(network: nn.Module, name: str) -> None:
    """Remove a LoRA from a network.

    Raises:
        RecipeError: The network has no LoRA of this name, or LoRAs are fused.
    """
    _check_names(network, [name])
    _not_merged(network)
    for layer, held in list(_held(network)):
        held.lows = nn.ModuleList(low for low in held.lows if low.name != name)
        held.weights.pop(name, None)
        held.update_hook(layer)
        if not held.lows:
            delattr(layer, CHILD)


def adapter_weights(network: nn.Module) -> dict[str, float]:
    """Weights of all LoRAs of a network, by name."""
    return {name: weight for _, held in _held(network) for name, weight in held.weights.items()}


def fingerprint(network: nn.Module) -> Hashable:
    """State that a network's result depends on: identity and version of its tensors, and the active LoRAs."""
    tensors = [*network.parameters(), *network.buffers()]
    # a tensor of inference mode counts no versions, and cannot be written into outside of it
    numbers = tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype) for tensor in tensors
    )
    return numbers, tuple(tuple(held.weights.items()) for _, held in _held(network) if not held.disabled)


def set_weights(network: nn.Module, changed: Mapping[str, float]) -> None:
    """Set the weights of LoRAs; 0: off.

    Raises:
        RecipeError: The network has no LoRA of a name (the message names the nearest), or LoRAs are fused.
    """
    _check_names(network, changed)
    _not_merged(network)
    for layer, held in _held(network):
        held.weights |= {name: weight for name, weight in changed.items() if name in held.weights}
        held.update_hook(layer)


@contextmanager
def disable_adapters(network: nn.Module) -> Iterator[None]:
    """Context in which the network is the base, bit for bit; fused LoRAs are removed and fused again afterwards.

    Contexts may be nested.
    """
    held = [(layer, additions) for layer, additions in _held(network) if not additions.disabled]
    were_merged = fused(network)
    if were_merged:
        unfuse_lora(network)
    try:
        for layer, additions in held:
            additions.disabled = True
            additions.update_hook(layer)
        yield
    finally:
        for layer, additions in held:
            additions.disabled = False
            additions.update_hook(layer)
        if were_merged:
            fuse_lora(network)


def fuse_lora(network: nn.Module) -> None:
    """Fuse all active LoRAs into the weights, so that calls cost nothing more; the original weights are kept.

    Raises:
        RecipeError: LoRAs are fused already.
    """
    _not_merged(network)
    for layer, held in _held(network):
        weight = cast(Tensor, layer.weight)
        changed = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for low in held.active():
            delta = low.to_delta()
            changed[delta.start : delta.stop] += held.weights[low.name] * delta.delta().detach()
        held.original = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(changed)
        held.update_hook(layer)


def unfuse_lora(network: nn.Module) -> None:
    """Restore the original weights, bit for bit; LoRAs are again added at each call.

    Raises:
        RecipeError: No LoRA is fused.
    """
    if not fused(network):
        raise RecipeError("no LoRA is merged into these weights, so there is nothing to take out")
    for layer, held in _held(network):
        assert held.original is not None
        with torch.no_grad():
            cast(Tensor, layer.weight).copy_(held.original)
        held.original = None
        held.update_hook(layer)


def fused(network: nn.Module) -> bool:
    """Return True if LoRAs are fused into the weights."""
    return any(held.original is not None for _, held in _held(network))


def lora_state(network: nn.Module, name: str) -> list[LoraDelta]:
    """Additions of a LoRA, in the order of the network's layers, with the tensors that are trained.

    Raises:
        RecipeError: The network has no LoRA of this name.
    """
    _check_names(network, [name])
    return [
        low.to_delta() for _, held in _held(network) for low in cast(list[LoraParams], held.lows) if low.name == name
    ]


def freeze_except(network: nn.Module, name: str) -> None:
    """Freeze all parameters of the network except those of this LoRA.

    Raises:
        RecipeError: The network has no LoRA of this name.
    """
    network.requires_grad_(False)
    for delta in lora_state(network, name):
        delta.down.requires_grad_(True)
        delta.up.requires_grad_(True)


# -- details ------------------------------------------------------------------------------------------------------


def _held(network: nn.Module) -> Iterator[tuple[nn.Module, LoraLayer]]:
    for layer in network.modules():
        held = getattr(layer, CHILD, None)
        if isinstance(held, LoraLayer):
            yield layer, held


def _weight(layer: nn.Module, path: str) -> Tensor:
    if getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise RecipeError(f"{path}: a convolution in groups, or padded with more than zeros, takes no LoRA")
    return cast(Tensor, layer.weight)


def _check_names(network: nn.Module, names: Sequence[str] | Mapping[str, float]) -> None:
    there = list(adapter_weights(network))
    for name in names:
        if name not in there:
            raise RecipeError(
                f"LoRA {name!r}: is not on this network{did_you_mean(name, there)}; on it: {', '.join(there) or 'none'}"
            )


def _not_merged(network: nn.Module) -> None:
    if fused(network):
        raise RecipeError("LoRAs are merged into these weights; unmerge them first")
