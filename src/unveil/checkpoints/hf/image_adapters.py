"""Diffusers' networks as ours: forward(x, t, condition), with their own classes inside.

A prompt's tokens are `condition.tokens`; its pooled text is the beginning of `condition.vector`, and numbers that a
network takes besides it (sizes, a guidance scale) are its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition

NET = "net"  # where an adapter has its network
SIZES = 6  # size conditioning of SDXL: two sizes and a position


class DiffusersUNet(nn.Module):
    """SDXL's U-Net: text across, pooled text and six numbers of the image's size added to the time embedding.

    A network that was trained to inpaint takes the condition's `concat` beside x.

    Args:
        net: A `UNet2DConditionModel` with `addition_embed_type` "text_time".
        extra_dims: Numbers after the pooled text: six, or the refiner's five.

    Source: Podell et al. 2023, section 2.2 (arXiv:2307.01952).
    """

    def __init__(self, net: nn.Module, extra_dims: int = SIZES) -> None:
        super().__init__()
        self.net, self.extra_dims = net, extra_dims
        self.settings: Any = net.config
        self.shown = int(self.settings.in_channels) - int(self.settings.out_channels)

    @property
    def vector_dim(self) -> int:
        """Width of the condition's vector."""
        settings, count = self.settings, self.extra_dims
        return int(settings.projection_class_embeddings_input_dim - count * settings.addition_time_embed_dim + count)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The prediction at latents (B, C, H, W) and indices (B,)."""
        vector, tokens = pooled_and_tokens(condition, self.vector_dim)
        added = {"text_embeds": vector[:, : -self.extra_dims], "time_ids": vector[:, -self.extra_dims :]}
        mask = None if condition is None else condition.mask
        if condition is not None and condition.concat is not None:
            x = torch.cat([x, condition.concat.to(x)], dim=1)
        return self.net(
            x, t, encoder_hidden_states=tokens, encoder_attention_mask=mask, added_cond_kwargs=added, return_dict=False
        )[0]


class MMDiT(nn.Module):
    """Stable Diffusion 3's transformer, where text and latents are one sequence.

    Args:
        net: An `SD3Transformer2DModel`.

    Source: Esser et al. 2024, section 4 (arXiv:2403.03206).
    """

    extra_dims = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        settings: Any = net.config
        self.vector_dim, self.patch = int(settings.pooled_projection_dim), int(settings.patch_size)
        self.multiple = self.patch  # of latents, what both sides are multiples of

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        vector, tokens = pooled_and_tokens(condition, self.vector_dim, masked=False)
        check_size(x, self.patch)
        return self.net(
            hidden_states=x, timestep=t, encoder_hidden_states=tokens, pooled_projections=vector, return_dict=False
        )[0]


class Flux(nn.Module):
    """FLUX.1's transformer: squares of 2 x 2 latents are tokens, at the place of their row and column.

    Args:
        net: A `FluxTransformer2DModel`; one with `guidance_embeds` is conditioned on the scale of the guidance that it
            was distilled from, the last number of the vector.

    Source: FLUX.1's published inference code (github.com/black-forest-labs/flux).
    """

    patch = multiple = 2

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        settings: Any = net.config
        self.extra_dims = 1 if settings.guidance_embeds else 0
        self.pooled = int(settings.pooled_projection_dim)
        self.vector_dim = self.pooled + self.extra_dims

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        vector, tokens = pooled_and_tokens(condition, self.vector_dim, masked=False)
        check_size(x, self.patch)
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        places = grid_places(rows, columns, 3, x.device)
        y = self.net(
            hidden_states=to_tokens(x, self.patch),
            timestep=t / 1000,  # which it multiplies again
            guidance=vector[:, -1] if self.extra_dims else None,
            pooled_projections=vector[:, : self.pooled],
            encoder_hidden_states=tokens,
            txt_ids=places.new_zeros(tokens.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return from_tokens(y, (rows, columns), self.patch)


def to_tokens(x: Tensor, patch: int) -> Tensor:
    """Squares of `patch` x `patch` latents (B, C, H, W) as tokens (B, N, C * patch**2), row by row."""
    return functional.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Latents of tokens, the inverse of `to_tokens`; `size` is the number of rows and columns of tokens."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, size), patch)


def grid_places(rows: int, columns: int, numbers: int, device: torch.device) -> Tensor:
    """Places (rows * columns, numbers) of the tokens of an image: row and column as the second and third number."""
    places = torch.zeros(rows, columns, numbers, device=device)
    places[..., 1] += torch.arange(rows, device=device)[:, None]
    places[..., 2] += torch.arange(columns, device=device)
    return places.flatten(0, 1)


# Classes that make clips, whose adapters are in `video_adapters`; the first one may be shown an image besides
CLIPS = (
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
)
# class -> adapter
NETWORKS: dict[str, type[nn.Module]] = {
    "UNet2DConditionModel": DiffusersUNet,
    "SD3Transformer2DModel": MMDiT,
    "FluxTransformer2DModel": Flux,
}


# Settings of a network that are supported with one value only, which is also what they are when left out, and why
ONLY: dict[str, dict[str, tuple[Any, str]]] = {
    "UNet2DConditionModel": {
        "addition_embed_type": ("text_time", "SDXL's U-Net has 'text_time'"),
        "class_embed_type": (None, "SDXL's U-Net has None"),
        "time_cond_proj_dim": (None, "networks that are conditioned on the guidance scale are not supported"),
    },
    "CogVideoXTransformer3DModel": {
        "ofs_embed_dim": (None, "networks that continue an image's latents are not supported; take the text one"),
    },
    "HunyuanVideoTransformer3DModel": {
        "image_condition_type": (
            None,
            "networks that continue an image's latents are not supported; take the text one",
        ),
    },
}


def check_settings(kind: str, settings: Mapping[str, Any], where: str) -> None:
    """Refuses settings of a network that its adapter does not serve.

    Raises:
        RecipeError: Names the setting and what it may be.
    """
    for name, (allowed, why) in ONLY.get(kind, {}).items():
        if settings.get(name) != allowed:
            raise RecipeError(f"{where}: {name} = {settings.get(name)!r}: {why}")
    inside, outside = settings.get("in_channels"), settings.get("out_channels")
    if kind in CLIPS[1:] and outside is not None and inside != outside:
        raise RecipeError(
            f"{where}: in_channels = {inside}, out_channels = {outside}: networks that are shown more than the clip "
            "they make are not supported; take one of text to video"
        )


def prompt_tokens(condition: Condition | None, *, masked: bool) -> Tensor:
    """The tokens of a condition, checked.

    Args:
        masked: True if the network looks at a mask.

    Raises:
        RecipeError: There is none.
        ShapeError: A mask that would not be looked at.
    """
    if condition is None or condition.tokens is None:
        raise RecipeError("this network needs a prompt in every call: give one, such as prompt='a cat'")
    if condition.mask is not None and not masked and not bool(condition.mask.all()):
        raise ShapeError("condition.mask: this network sees every token; give tokens of one length, without a mask")
    return condition.tokens


def pooled_and_tokens(condition: Condition | None, width: int, *, masked: bool = True) -> tuple[Tensor, Tensor]:
    """Vector and tokens of a condition, checked; errors are those of `prompt_tokens`, and a vector of another width."""
    tokens = prompt_tokens(condition, masked=masked)
    if condition is None or condition.vector is None:
        raise RecipeError("this network needs a prompt in every call: give one, such as prompt='a cat'")
    if condition.vector.shape[1] != width:
        raise ShapeError(f"condition.vector {tuple(condition.vector.shape)}: this network takes (B, {width})")
    return condition.vector, tokens


def check_size(x: Tensor, patch: int) -> None:
    """Raises ShapeError unless both sides of the latents are multiples of the patch."""
    if x.shape[-2] % patch or x.shape[-1] % patch:
        raise ShapeError(f"latents {tuple(x.shape)}: height and width must be multiples of {patch}")
