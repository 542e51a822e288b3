"""One layer's low-rank additions: what is added to which of its rows, with the parameters, as its forward hook.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from unveil.errors import ShapeError


@dataclass(frozen=True)
class LoraDelta:
    """Addition to rows of one layer's weight: alpha / r times up @ down.

    Attributes:
        layer: its path in the network.
        down: A, (rank, in) of a linear layer, (rank, in, *kernel) of a convolution.
        up: B, (rows, rank).
        start: the first of the layer's rows (outputs) that it is added to.

    Raises:
        ShapeError: matrices that do not belong together.
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
        """Rows of A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank

    @property
    def stop(self) -> int:
        """Behind its last row."""
        return self.start + self.up.shape[0]

    def delta(self) -> Tensor:
        """The change of the rows (rows, in, ...), in float32 or better."""
        dtype = torch.promote_types(self.up.dtype, torch.float32)
        return self.scale * (self.up.to(dtype) @ self.down.to(dtype).flatten(1)).unflatten(1, self.down.shape[1:])


class LoraParams(nn.Module):
    """One addition with its parameters; in no state dict."""

    def __init__(self, name: str, delta: LoraDelta, like: Tensor) -> None:
        super().__init__()
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        self.name, self.layer, self.alpha, self.start = name, delta.layer, delta.alpha, delta.start
        self.down = nn.Parameter(delta.down.detach().to(like.device, dtype, copy=True), requires_grad=False)
        self.up = nn.Parameter(delta.up.detach().to(like.device, dtype, copy=True), requires_grad=False)

    def addition(self) -> LoraDelta:
        """The addition, with the tensors that are trained."""
        return LoraDelta(self.layer, self.down, self.up, self.alpha, self.start)

    def forward(self, layer: nn.Module, x: Tensor, weight: float) -> Tensor:
        """Addition to the rows' output for the layer's input, times `weight`; channels in the layer's own axis."""
        scale = weight * self.alpha / self.down.shape[0]
        x = x.to(self.down.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.down) * scale, self.up)
        convolution = cast(nn.Conv2d, layer)
        convolve = {2: F.conv1d, 3: F.conv2d, 4: F.conv3d}[self.down.ndim - 1]
        low = convolve(x, self.down, None, convolution.stride, convolution.padding, convolution.dilation)
        return convolve(low * scale, self.up[(...,) + (None,) * (self.down.ndim - 2)])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: the base's files stay its own."""

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
        """Nothing is taken, and nothing is missing."""


class LoraLayer(nn.Module):
    """Everything that is added to one layer; its forward hook while some of it is on.

    Attributes:
        weights: of each LoRA by name, 0 for one that is off.
        silent: nothing is added for the moment, whatever the weights.
        original: the weight before the additions were merged into it, None while they are not.
    """

    original: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.lows = nn.ModuleList()
        self.weights: dict[str, float] = {}
        self.silent = False
        self.register_buffer("original", None, persistent=False)
        self._handle: RemovableHandle | None = None

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
        """The hook: the layer's result with what is added to it."""
        axis = -1 if isinstance(layer, nn.Linear) else inputs[0].ndim - cast(Tensor, layer.weight).ndim + 1
        rows = result.shape[axis]
        for low in self.on():
            gained = low(layer, inputs[0], self.weights[low.name]).to(result.dtype)
            behind = rows - low.start - low.up.shape[0]
            if low.start or behind:  # the other rows gain nothing
                inner = (0, 0) * (0 if axis == -1 else result.ndim - axis - 1)
                gained = F.pad(gained, (*inner, low.start, behind))
            result = result + gained
        return result

    def on(self) -> list[LoraParams]:
        """Those that are added now, in the order in which they came."""
        every = cast(list[LoraParams], list(self.lows))
        return [] if self.silent else [low for low in every if self.weights[low.name] != 0]

    def attend(self, layer: nn.Module) -> None:
        """Hooks itself to its layer while there is something to add at a call, and off it otherwise."""
        wanted = bool(self.on()) and self.original is None
        if wanted and self._handle is None:
            self._handle = layer.register_forward_hook(self)
        elif not wanted and self._handle is not None:
            self._handle.remove()
            self._handle = None
