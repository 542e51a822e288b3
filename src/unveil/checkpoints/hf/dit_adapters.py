"""Diffusers' transformers of images whose prompt is tokens with a mask, as ours: forward(x, t, condition)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf.image_adapters import check_size, from_tokens, grid_places, prompt_tokens, to_tokens
from unveil.errors import RecipeError
from unveil.types import Condition


class PixArt(nn.Module):
    """PixArt-Sigma's transformer: text by cross-attention, without sizes.

    Args:
        net: A `PixArtTransformer2DModel`; of its output the first half is taken, without the variance.

    Raises:
        RecipeError: The network is conditioned on sizes, as PixArt-alpha's of 1024 pixels is.

    Source: Chen et al. 2024, section 3 (arXiv:2403.04692).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        if net.use_additional_conditions:
            raise RecipeError("use_additional_conditions = True: networks that take sizes are not supported")
        self.net = net
        self.patch = self.multiple = int(net.config.patch_size)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The noise at latents (B, C, H, W) and indices (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        y = self.net(
            x,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask.to(tokens.dtype),
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return y[:, : x.shape[1]]


class Sana(nn.Module):
    """Sana's transformer: linear attention between latents, text by cross-attention.

    Args:
        net: A `SanaTransformer2DModel`.

    Source: Xie et al. 2024, section 2 (arXiv:2410.10629).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.patch = self.multiple = int(net.config.patch_size)
        if net.config.guidance_embeds:
            raise RecipeError("guidance_embeds = True: distilled networks of Sana are not supported")

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        return self.net(
            x,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask.long(),
            timestep=t * float(self.net.config.timestep_scale),
            return_dict=False,
        )[0]


class Chroma(nn.Module):
    """Chroma's transformer: FLUX.1's without pooled text; of the tokens after a prompt the first one is seen.

    Args:
        net: A `ChromaTransformer2DModel`.

    Source: Chroma's model card (huggingface.co/lodestones/Chroma).
    """

    patch = multiple = 2

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        seen = mask.clone()
        seen[:, 1:] |= mask[:, :-1]
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        places, packed = grid_places(rows, columns, 3, x.device), to_tokens(x, self.patch)
        y = self.net(
            hidden_states=packed,
            timestep=t / 1000,  # which it multiplies again
            encoder_hidden_states=tokens,
            txt_ids=places.new_zeros(tokens.shape[1], 3),
            img_ids=places,
            attention_mask=torch.cat([seen, seen.new_ones(packed.shape[:2])], dim=1).to(x.dtype),
            return_dict=False,
        )[0]
        return from_tokens(y, (rows, columns), self.patch)


class ZImage(nn.Module):
    """Z-Image's transformer: text and latents are one sequence; its time runs from noise to data.

    Args:
        net: A `ZImageTransformer2DModel`.

    Source: Z-Image team 2025 (arXiv:2511.22699).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.patch = self.multiple = int(net.config.all_patch_size[0])

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        texts = [row[used] for row, used in zip(tokens, mask, strict=True)]
        y = self.net(list(x.unsqueeze(2).unbind(0)), (1000 - t) / 1000, texts, return_dict=False)[0]
        return -torch.stack(list(y)).squeeze(2)


class Lumina2(nn.Module):
    """Lumina-Image 2's transformer: text and latents are one sequence; its time runs from noise to data.

    Args:
        net: A `Lumina2Transformer2DModel`.

    Source: Qin et al. 2025, section 3 (arXiv:2503.21758).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.patch = self.multiple = int(net.config.patch_size)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        return -self.net(
            hidden_states=x,
            timestep=(1000 - t) / 1000,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]


class QwenImage(nn.Module):
    """Qwen-Image's transformer: text and latents are one sequence, squares of 2 x 2 latents are tokens.

    Args:
        net: A `QwenImageTransformer2DModel`.

    Raises:
        RecipeError: The network of another pipeline, for editing, layers or distilled guidance.

    Source: Qwen team 2025, section 2.4 (arXiv:2508.02324).
    """

    patch = multiple = 2

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if net.config.get(name):
                raise RecipeError(f"{name} = True: only False is supported, Qwen-Image's from text")
        self.net = net

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens, mask = _masked(condition)
        check_size(x, self.patch)
        size = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        y = self.net(
            hidden_states=to_tokens(x, self.patch),
            timestep=t / 1000,
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=mask.long(),
            img_shapes=[[(1, *size)]] * len(x),
            return_dict=False,
        )[0]
        return from_tokens(y, size, self.patch)


class Flux2(nn.Module):
    """FLUX.2's transformer: each latent is a token, at the place of its row and column; text has its own places.

    Args:
        net: A `Flux2Transformer2DModel` without a guidance embedding.

    Raises:
        RecipeError: The network is conditioned on a guidance scale.

    Source: FLUX.2's published inference code (github.com/black-forest-labs/flux2).
    """

    patch = multiple = 1

    def __init__(self, net: Any) -> None:
        super().__init__()
        if net.config.guidance_embeds:
            raise RecipeError("guidance_embeds = True: only networks of FLUX.2 klein are supported, which have False")
        self.net = net

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, H, W) and times in thousandths (B,)."""
        tokens = prompt_tokens(condition, masked=False)
        rows, columns = x.shape[-2:]
        words = torch.zeros(tokens.shape[1], 4, device=x.device)
        words[:, 3] = torch.arange(len(words), device=x.device)
        places = grid_places(rows, columns, 4, x.device)
        y = self.net(
            hidden_states=x.flatten(2).transpose(1, 2),
            timestep=t / 1000,  # which it multiplies again
            guidance=None,
            encoder_hidden_states=tokens,
            txt_ids=words,
            img_ids=places,
            return_dict=False,
        )[0]
        return y.transpose(1, 2).unflatten(2, (rows, columns))


# class -> adapter
DIT_NETWORKS: dict[str, type[nn.Module]] = {
    "PixArtTransformer2DModel": PixArt,
    "SanaTransformer2DModel": Sana,
    "ChromaTransformer2DModel": Chroma,
    "ZImageTransformer2DModel": ZImage,
    "QwenImageTransformer2DModel": QwenImage,
    "Lumina2Transformer2DModel": Lumina2,
    "Flux2Transformer2DModel": Flux2,
}


def _masked(condition: Condition | None) -> tuple[Tensor, Tensor]:
    """The tokens of a condition, and which of them are used."""
    tokens = prompt_tokens(condition, masked=True)
    mask = None if condition is None else condition.mask
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
