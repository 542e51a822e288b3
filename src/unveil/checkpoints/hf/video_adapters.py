"""Diffusers' networks of clips as ours: forward(x, t, condition), x being latents (B, C, T, H, W).

A network with `takes_token_levels` takes a level for each of its tokens; the others take one for each clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.checkpoints.hf.image_adapters import check_size, pooled_and_tokens, prompt_tokens
from unveil.checkpoints.hf.language_models import GLYPHS
from unveil.checkpoints.hf.wan_cache import CachedWan
from unveil.errors import RecipeError, ShapeError
from unveil.io.optional_deps import import_extra
from unveil.types import Condition

FRAME_RATE = 25.0  # default of LTX-Video


class Wan(nn.Module):
    """Wan's transformer: text by cross-attention, and a level for each token where levels differ.

    A network that continues an image is shown the latents of its frame besides x, and has one level for a clip. Where
    it attends to the image too, the tokens of its frame are the condition's vector.

    Args:
        net: A `WanTransformer3DModel`.

    Source: Wan team 2025, sections 4.2 and 5.1 (arXiv:2503.20314); levels of tokens: Wan 2.2's TI2V network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        settings: Any = net.config
        self.patch: tuple[int, int, int] = tuple(settings.patch_size)
        self.multiple = self.patch[-1]
        self.shown, self.image_dim = int(settings.in_channels) - int(settings.out_channels), settings.image_dim
        self.attends_to_image = self.image_dim is not None
        self.takes_token_levels = self.shown == 0
        self._run: CachedWan | None = None

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents and times in thousandths, (B,) or broadcastable to x.

        Where levels differ within a token, the noisiest counts.

        Raises:
            RecipeError: No prompt.
            ShapeError: A size or a mask that the network does not take.
        """
        tokens = prompt_tokens(condition, masked=False)
        check_size(x, self.multiple)
        levels, image = of_tokens(t, x, self.patch), None
        if self.shown:
            if condition is None or condition.concat is None:
                raise RecipeError("this network continues an image: give it as the first frame")
            x = torch.cat([x, condition.concat.to(x)], dim=1)
            if self.image_dim is not None and condition.vector is not None:
                image = condition.vector.unflatten(1, (-1, int(self.image_dim)))
        if self._run is not None and image is None:
            return self._run(x, levels, tokens)
        return self.net(
            hidden_states=x,
            timestep=levels if levels.ndim == 1 else levels.flatten(1),
            encoder_hidden_states=tokens,
            encoder_hidden_states_image=image,
            return_dict=False,
        )[0]

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Inside, what follows from a text, a level or a size alone is computed once; see `wan_cache.CachedWan`.

        A compiled network is called as it is: a compiler would make a variant of it for each text and level.
        """
        before = self._run
        if not getattr(self, "_compiled_call_impl", None):
            self._run = CachedWan(self.net, torch.as_tensor(indices, dtype=torch.float32))
        try:
            yield
        finally:
            self._run = before


class WanTwoExperts(nn.Module):
    """Wan 2.2's two networks: one for levels from a boundary on, one for those below.

    Args:
        noisy, clean: The two.
        boundary: In thousandths.

    Source: Wan 2.2's published inference code (github.com/Wan-Video/Wan2.2).
    """

    takes_token_levels = False

    def __init__(self, noisy: Wan, clean: Wan, boundary: float) -> None:
        super().__init__()
        self.noisy, self.clean, self.boundary = noisy, clean, boundary
        self.shown, self.attends_to_image = noisy.shown, noisy.attends_to_image
        self.patch, self.multiple = noisy.patch, noisy.multiple

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents and times in thousandths (B,); errors are `Wan`'s."""
        above = t >= self.boundary
        if bool(above.all()):
            return self.noisy(x, t, condition)
        if not bool(above.any()):
            return self.clean(x, t, condition)
        result = torch.empty_like(x)
        for rows, network in ((above, self.noisy), (~above, self.clean)):
            selected = (
                None if condition is None else condition.map(lambda tensor, rows=rows: tensor[rows.to(tensor.device)])
            )
            result[rows] = network(x[rows], t[rows], selected).to(result)
        return result

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Inside, both work out once what they can."""
        with ExitStack() as inside:
            for network in (self.noisy, self.clean):
                inside.enter_context(network.precompute(indices))
            yield


class LTX(nn.Module):
    """LTX-Video's transformer: a level for each token, whose position is given in seconds and pixels.

    Args:
        net: An `LTXVideoTransformer3DModel`.
        rates: Frames and pixels that one latent stands for.

    Source: HaCohen et al. 2024, section 3 (arXiv:2501.00103).
    """

    takes_token_levels = True
    vector_dim = 1  # frames per second

    def __init__(self, net: nn.Module, rates: tuple[int, int] = (8, 32)) -> None:
        super().__init__()
        self.net, self.rates = net, rates
        settings: Any = net.config
        if (settings.patch_size, settings.patch_size_t) != (1, 1):
            raise ShapeError(
                f"patches of {settings.patch_size_t} x {settings.patch_size}: LTX-Video's have one latent each"
            )
        self.patch = self.multiple = 1

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents and times in thousandths, (B,) or broadcastable to x.

        The condition's vector is the frames per second (B, 1); its places, in latents, say where clips lie.

        Raises:
            RecipeError: No prompt.
            ShapeError: A vector of another width.
        """
        vector, tokens = pooled_and_tokens(condition, self.vector_dim)
        assert condition is not None  # as checked
        mask = condition.mask if condition.mask is not None else tokens.new_ones(tokens.shape[:2])
        levels = of_tokens(t, x, (1, 1, 1))
        y = self.net(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=tokens,
            timestep=levels.flatten(1) if levels.ndim > 1 else levels,
            encoder_attention_mask=mask,
            video_coords=self._coordinates(x, vector[:, 0], condition.positions),
            return_dict=False,
        )[0]
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    def _coordinates(self, x: Tensor, rate: Tensor, places: Tensor | None) -> Tensor:
        """Seconds, rows and columns of each token, (B, 3, N)."""
        axes = [torch.arange(length, dtype=torch.float32, device=x.device) for length in x.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).expand(len(x), 3, -1)  # (B, 3, N)
        if places is not None:
            first, step = places.to(grid).unbind(1)
            grid = first[..., None] + step[..., None] * grid
        frames, pixels = self.rates
        seconds = frames / rate.to(grid)  # (B,)
        return grid * torch.stack([seconds, *(torch.full_like(seconds, float(pixels)),) * 2], dim=1)[..., None]


class CogVideoX(nn.Module):
    """CogVideoX's transformer: text and latents are one sequence, and a clip has one level.

    Args:
        net: A `CogVideoXTransformer3DModel` of text to video.

    Source: Yang et al. 2024, section 2.2 (arXiv:2408.06072).
    """

    takes_token_levels = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.settings: Any = net.config
        self.patch = self.multiple = int(self.settings.patch_size)
        self.frames_per_token = int(self.settings.patch_size_t or 1)  # latent frames of a token
        self._tables: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Output of the transformer at latents and indices (B,).

        Raises:
            RecipeError: No prompt.
            ShapeError: A size or a mask that the network does not take.
        """
        tokens = prompt_tokens(condition, masked=False)
        check_size(x, self.patch)
        if x.shape[2] % self.frames_per_token:
            raise ShapeError(f"latents {tuple(x.shape)}: their frames must be a multiple of {self.frames_per_token}")
        y = self.net(
            hidden_states=x.transpose(1, 2),
            encoder_hidden_states=tokens,
            timestep=t,
            image_rotary_emb=self._rotary(x),
            return_dict=False,
        )[0]
        return y.transpose(1, 2)

    def _rotary(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The table of places of this size, of networks that have one."""
        settings, size = self.settings, tuple(x.shape[2:])
        if not settings.use_rotary_positional_embeddings:
            return None
        if size not in self._tables:
            grid = (size[1] // self.patch, size[2] // self.patch)
            base = (settings.sample_height // self.patch, settings.sample_width // self.patch)
            table = cast(Any, import_extra("diffusers.models.embeddings", "CogVideoX")).get_3d_rotary_pos_embed
            if settings.patch_size_t is None:
                where: dict[str, Any] = {"crops_coords": _centred(grid, base)}
            else:
                where = {"crops_coords": None, "grid_type": "slice", "max_size": base}
            frames = size[0] // self.frames_per_token
            self._tables[size] = table(
                embed_dim=settings.attention_head_dim, grid_size=grid, temporal_size=frames, device=x.device, **where
            )
        cos, sin = self._tables[size]
        return cos.to(x.device), sin.to(x.device)


class Hunyuan(nn.Module):
    """HunyuanVideo's transformer: text and latents side by side, pooled text and a guidance beside the time.

    Args:
        net: A `HunyuanVideoTransformer3DModel` of text to video; one with `guidance_embeds` is conditioned on the scale
            of the guidance that it was distilled from, the last number of the vector.

    Source: Kong et al. 2024, section 4.2 (arXiv:2412.03603).
    """

    takes_token_levels = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        settings: Any = net.config
        self.patch = self.multiple = int(settings.patch_size)
        self.extra_dims = 1 if settings.guidance_embeds else 0
        self.pooled = int(settings.pooled_projection_dim)
        self.vector_dim = self.pooled + self.extra_dims

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents and times in thousandths (B,).

        Raises:
            RecipeError: No prompt.
            ShapeError: A size or a vector that the network does not take.
        """
        vector, tokens = pooled_and_tokens(condition, self.vector_dim)
        check_size(x, self.patch)
        mask = None if condition is None else condition.mask
        return self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=tokens,
            encoder_attention_mask=tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype),
            pooled_projections=vector[:, : self.pooled],
            guidance=1000 * vector[:, -1] if self.extra_dims else None,
            return_dict=False,
        )[0]


class Hunyuan15(nn.Module):
    """HunyuanVideo 1.5's transformer from text: shown no image, with the letters of a prompt beside its text.

    Args:
        net: A `HunyuanVideo15Transformer3DModel`.

    Source: HunyuanVideo 1.5's published inference code (github.com/Tencent-Hunyuan/HunyuanVideo-1.5).
    """

    takes_token_levels = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.settings: Any = net.config
        if self.settings.use_meanflow:
            raise RecipeError("use_meanflow = True: networks of few steps are not supported")
        self.patch = self.multiple = int(self.settings.patch_size)
        self.shown = int(self.settings.in_channels) - int(self.settings.out_channels)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity at latents (B, C, T, H, W) and times in thousandths (B,); tokens are those of `GLYPHS` first.

        Raises:
            RecipeError: No prompt.
            ShapeError: A size that the network does not take.
        """
        tokens = prompt_tokens(condition, masked=True)
        check_size(x, self.patch)
        mask = None if condition is None else condition.mask
        mask = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
        return self.net(
            hidden_states=torch.cat([x, x.new_zeros(len(x), self.shown, *x.shape[2:])], dim=1),
            timestep=t,
            encoder_hidden_states=tokens[:, GLYPHS:, : self.settings.text_embed_dim],
            encoder_attention_mask=mask[:, GLYPHS:],
            encoder_hidden_states_2=tokens[:, :GLYPHS, : self.settings.text_embed_2_dim],
            encoder_attention_mask_2=mask[:, :GLYPHS],
            image_embeds=x.new_zeros(len(x), 1, self.settings.image_embed_dim),  # all zeros: none is seen
            return_dict=False,
        )[0]


# class -> adapter
CLIP_NETWORKS: dict[str, type[nn.Module]] = {
    "WanTransformer3DModel": Wan,
    "LTXVideoTransformer3DModel": LTX,
    "CogVideoXTransformer3DModel": CogVideoX,
    "HunyuanVideoTransformer3DModel": Hunyuan,
    "HunyuanVideo15Transformer3DModel": Hunyuan15,
}


def of_tokens(t: Tensor, x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """The level of each token, (B, T', H', W'), the noisiest within one; (B,) where there is one for each clip.

    Args:
        t: (B,), or broadcastable to x.
        x: (B, C, T, H, W).
        patch: Latents of a token.
    """
    if t.ndim == 1:
        return t
    if t.shape[1:].numel() == 1:
        return t.reshape(-1).expand(len(x))
    each = t.amax(1, keepdim=True).expand(len(x), 1, *x.shape[2:])
    return functional.max_pool3d(each, patch, patch)[:, 0]


def _centred(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Position of a grid that is scaled to fit into the training grid: its first and last row and column."""
    rows, columns = grid
    if rows / columns > base[0] / base[1]:
        height, width = base[0], round(base[0] / rows * columns)
    else:
        height, width = round(base[1] / columns * rows), base[1]
    top, left = round((base[0] - height) / 2.0), round((base[1] - width) / 2.0)
    return (top, left), (top + height, left + width)
