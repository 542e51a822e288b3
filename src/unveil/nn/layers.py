"""Layers that several networks share, and contexts that create networks without allocating memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import scaled_dot_product_attention
from unveil.nn.transformer import EncoderStates
from unveil.types import Condition

# In which order the rows of a joint query-key-value projection stand
AttentionOrder = Literal["heads-first", "qkv-first"]
# The size of the image that a network is given beside x
ContextSize = Literal["same", "smaller"]
# Number of tensors that a Memo holds: the condition's, the null's, and both in one batch, of a few runs
REMEMBERED = 8
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def zeroed(module: M) -> M:
    """Set all parameters of a module to 0 and return it; a residual branch then starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, groups: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Create a group normalisation.

    Raises:
        RecipeError: The number of channels is not a multiple of the number of groups.
    """
    if channels < 1 or channels % groups:
        raise RecipeError(f"{channels} channels: must be a multiple of the {groups} groups of the normalisation")
    return nn.GroupNorm(groups, channels, eps)


class PixelNorm(nn.LayerNorm):
    """Normalisation over the channels of each position (B, C, H, W), so that positions do not affect each other."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise x (B, C, H, W); the result is in memory with the channels last."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class PixelRMS(nn.Module):
    """RMS normalisation over the channels of each position, so that positions and frames do not affect each other.

    Source: Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...); the mean square is computed in float32."""
        square = x.square().mean(1, keepdim=True, dtype=torch.float32)
        weight = self.weight.view(-1, *(1,) * (x.ndim - 2))
        return x * torch.rsqrt(square + self.eps).to(x.dtype) * weight.to(x.dtype)


def check_multiple(x: Tensor | Sequence[int], factor: int) -> None:
    """Raise ShapeError unless height and width of x, or of a shape that ends in them, are multiples of `factor`."""
    height, width = (x.shape if isinstance(x, Tensor) else x)[-2:]
    for side, size in (("height", height), ("width", width)):
        if size % factor:
            below, above = size // factor * factor, -(-size // factor) * factor
            near = f"{below} or {above}" if below else f"{above}"
            raise ShapeError(f"{side} {size} px: must be a multiple of {factor}; nearest {near}")


def condition_vector(condition: Condition, batch: int, dim: int) -> Tensor | None:
    """Return the condition's vector (B, dim), or None; raise ShapeError for another shape."""
    vector = condition.vector
    if vector is not None and vector.shape != (batch, dim):
        raise ShapeError(f"condition.vector {tuple(vector.shape)}: must be ({batch}, {dim})")
    return vector


def concat_condition(x: Tensor, condition: Condition, channels: int, size: ContextSize = "same") -> Tensor:
    """Concatenate the condition's channels to x (B, C, H, W).

    A context of one pixel is expanded to the size of x; other sizes are upsampled if `size` is `smaller`.

    Raises:
        ShapeError: The number of channels or the size does not fit the network.
    """
    context = condition.concat
    context_width = 0 if context is None else context.shape[1]
    if context_width != channels:
        raise ShapeError(f"condition.concat: {context_width} given, the network takes {channels}")
    if context is None:
        return x
    context = context.to(x)
    if context.shape[-2:] == (1, 1):  # one colour, which conditioners may give for "none"
        context = context.expand(-1, -1, *x.shape[-2:])
    elif size == "smaller":
        context = F.interpolate(context, x.shape[-2:], mode="bilinear", align_corners=False)
    elif context.shape[-2:] != x.shape[-2:]:
        sizes = f"{tuple(context.shape[-2:])}, x is {tuple(x.shape[-2:])}"
        raise ShapeError(f"condition.concat of size {sizes}: resize it, or build with context_size `smaller`")
    return torch.cat([x, context], dim=1)


def condition_tokens(condition: Condition, width: int | None, batch: int) -> EncoderStates | None:
    """Return the tokens for a network whose cross-attention takes this width; None: it has no cross-attention.

    Raises:
        ShapeError: Tokens are missing, do not fit x or the width, or are given to a network without cross-attention.
    """
    tokens, mask = condition.tokens, condition.mask
    if width is None:
        if tokens is not None:
            raise ShapeError("condition.tokens: this network has no cross-attention; pass a vector or channels")
        return None
    if tokens is None:
        raise ShapeError(f"condition.tokens: missing; this network reads tokens (B, L, {width})")
    if tokens.ndim != 3 or tokens.shape[2] != width:
        raise ShapeError(
            f"condition.tokens {tuple(tokens.shape)}: of width {tokens.shape[-1]}, this network reads width {width}; "
            "take the text encoder that it was trained with"
        )
    if len(tokens) != batch:
        raise ShapeError(f"condition.tokens {tuple(tokens.shape)}: {len(tokens)} rows for {batch} of x")
    if mask is not None and mask.shape != tokens.shape[:2]:
        raise ShapeError(f"condition.mask {tuple(mask.shape)}: must be {tuple(tokens.shape[:2])}, one for each token")
    return EncoderStates(tokens, mask)


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of an image (B, C, H, W).

    Source: Ho et al. 2020, appendix B (one head); Dhariwal & Nichol 2021, section 3.1 (several).
    """

    def __init__(self, channels: int, heads: int, *, norm: nn.Module, order: AttentionOrder = "qkv-first") -> None:
        super().__init__()
        if channels % heads:
            raise RecipeError(f"{channels} channels: must be a multiple of the {heads} attention heads")
        self.heads = heads
        self.order: AttentionOrder = order
        self.norm = norm
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what each position gathers from all others."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, N, C)
        shape, axis = ((3, self.heads), 2) if self.order == "qkv-first" else ((self.heads, 3), 3)
        qkv = self.qkv(tokens).view(batch, height * width, *shape, channels // self.heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(axis))  # each (B, heads, N, D)
        gathered = scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (B, N, heads, D)
        tokens = self.out(gathered.reshape(batch, height * width, channels))
        return x + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Fir(nn.Module):
    """Resampling by a factor of two through a small low-pass filter, each channel separately, without weights.

    Args:
        taps: Taps of the separable filter, an even number, symmetric; (1, 1) averages pixels or repeats them.
        way: Direction; `down` halves, `up` doubles.
        padding: Zeros added around x (down), or pixels cut off the result (up); None: what gives exactly half or
            double.

    Raises:
        RecipeError: The number of taps is odd, or the taps are not symmetric.

    Source: Zhang 2019 (arXiv:1904.11486); Song et al. 2021, appendix H.1 (arXiv:2011.13456).
    """

    def __init__(self, taps: Sequence[float], way: Literal["down", "up"], *, padding: int | None = None) -> None:
        super().__init__()
        if not taps or len(taps) % 2 or list(taps) != list(taps)[::-1]:
            raise RecipeError(
                f"taps {list(taps)}: must be an even number and symmetric, such as [1, 1] or [1, 3, 3, 1]"
            )
        self.up = way == "up"
        self.padding = (len(taps) - 1) // 2 if padding is None else padding
        size = sum(taps) / (2 if self.up else 1)  # three of four pixels in are zeros on the way up
        self.kernel = [[a * b / size**2 for b in taps] for a in taps]

    def forward(self, x: Tensor) -> Tensor:
        """Resample x (B, C, H, W) to (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        if len(self.kernel) == 2 and self.padding == 0:
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        kernel = x.new_tensor(self.kernel).expand(x.shape[1], 1, -1, -1)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])


class FirConv(nn.Module):
    """3x3 convolution followed by the filter that halves, as one linear step whose edges are padded once."""

    def __init__(self, width: int, out: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.fir = Fir(taps, "down", padding=0)
        self.conv = nn.Conv2d(width, out, 3, padding=1 + (len(taps) - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, width, H, W) to (B, out, H/2, W/2)."""
        return self.fir(self.conv(x))


class Memo(Generic[T]):
    """Cache of values that depend on one tensor only, computed without gradients at the first call with that tensor.

    A tensor is recognised by its identity, its version counter, and the autocast type. A cached tensor is kept alive,
    so that no other one can take its identity. The oldest of `REMEMBERED` entries is dropped.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Tensor, tuple[Any, ...], T]] = []

    def get(self, tensor: Tensor, make: Callable[[], T]) -> T:
        """Cached result of `make` for this tensor."""
        state = _state(tensor)
        for past, at, value in self._entries:
            if past is tensor and at == state:
                return value
        with torch.no_grad():
            value = make()
        self._entries = [*self._entries[1 - REMEMBERED :], (tensor, state, value)]
        return value


def _state(tensor: Tensor) -> tuple[Any, ...]:
    return (0 if tensor.is_inference() else tensor._version, autocast_dtype(tensor.device))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type in which autocast computes products on a device; None: it is off."""
    kind = device.type  # torch knows no autocast on meta
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


# Layers whose products autocast computes in the lower precision
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Its kernel wants its weight in the type of its input, and sums in float32 all the same
NORMALISATIONS = (nn.RMSNorm,)


def low_precision_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of `MATRICES` and `NORMALISATIONS`, with their keys in the state dict; others stay in float32."""
    for name, layer in network.named_modules():
        if isinstance(layer, (*MATRICES, *NORMALISATIONS)):
            yield from layer.named_parameters(prefix=name, recurse=False)


class SkipInit(TorchFunctionMode):
    """Context in which initial values are not drawn into tensors of the meta device.

    Drawing there has no effect, but it imports all of torch's compiler, which takes a second and 70 MB.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__module__", None) == "torch.nn.init" and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


class EmptyParameters(SkipInit):
    """Context in which new parameters have a shape but no memory; computed tables and buffers are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Context in which all new tensors have a shape but no memory, tables and buffers included."""
    with torch.device("meta"), SkipInit():
        yield


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Context in which Python's garbage collection is disabled.

    Thousands of new modules and tensors trigger collections, which take as long as creating them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
