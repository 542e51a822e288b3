"""The vector-quantised autoencoder: each position of z is replaced by the nearest entry of a codebook.

Sources: van den Oord et al. 2017 (arXiv:1711.00937); Esser et al. 2021 (arXiv:2012.09841); Rombach et al. 2022,
section 3.1 (arXiv:2112.10752), whose diffusion models use z before quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.autoencoders.autoencoder import Autoencoder, LatentConfig
from unveil.errors import RecipeError, ShapeError
from unveil.types import Ge

# Which of the loss' two terms beta weighs: the one that moves the codebook, as first published, or the one that commits
# the encoder, as in the paper
Order = Literal["legacy", "fixed"]
# Update rule of the codebook: the gradient of the loss, or running means of the vectors of each entry
Learned = Literal["gradient", "ema"]
CHUNK = 1 << 24  # distances that are held at a time


@dataclass(frozen=True)
class VQModelConfig(LatentConfig):
    """Configuration of an autoencoder with a codebook; the other settings are those of `LatentConfig`.

    Args:
        codebook_size: Number of entries of the codebook.
        beta: Weight of one term of the loss, see `order`.
        order: Term that `beta` weights: `legacy` the codebook's (released models), `fixed` the encoder's (the paper).
        learned: Update rule of the codebook: `gradient`, or `ema`, with which the loss is only the encoder's term times
            beta.
        ema_decay: Decay of the moving averages of counts and sums.
        restart_dead: Minimum moving count of an entry; an entry below it is replaced by a position of the batch. 0:
            never.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    moments: int = field(default=1, init=False)
    codebook_size: Annotated[int, Ge(2)] = 512
    beta: float = 0.25
    order: Order = "legacy"
    learned: Learned = "gradient"
    ema_decay: float = 0.99
    restart_dead: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema_decay < 1 or self.restart_dead < 0 or self.beta < 0:
            raise RecipeError(
                f"ema_decay = {self.ema_decay}, restart_dead = {self.restart_dead}, beta = {self.beta}: "
                "ema_decay must lie in [0, 1), the others must not be negative"
            )


class Quantised(NamedTuple):
    """Quantised z.

    Attributes:
        latents: Nearest entries (B, C, h, w), whose gradient is passed to z unchanged.
        indices: Indices of the entries, (B, h, w).
        loss: Loss that keeps codebook and encoder together, a scalar.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor


class CodebookUsage(NamedTuple):
    """Usage of a codebook.

    Attributes:
        used: Share of entries that occur.
        perplexity: Number of equally frequent entries with the same entropy.
    """

    used: float
    perplexity: float


class Quantiser(nn.Module):
    """Codebook with nearest-entry quantisation and its losses.

    Attributes:
        codebook: Entries (codes, C).
        count, total: Moving averages, with `ema` or restarts, of how often each entry is used and of the sum of its z.
    """

    count: Tensor
    total: Tensor

    def __init__(self, width: int, config: VQModelConfig) -> None:
        super().__init__()
        self.config = config
        # Uniform in +-1/codes, as published: no entry is far from the others, so that each may be taken.
        start = nn.init.uniform_(
            torch.empty(config.codebook_size, width), -1 / config.codebook_size, 1 / config.codebook_size
        )
        self.codebook = nn.Parameter(start, requires_grad=config.learned == "gradient")
        if config.learned == "ema" or config.restart_dead > 0:
            self.register_buffer("count", torch.ones(config.codebook_size))
        if config.learned == "ema":
            self.register_buffer("total", start.clone())

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (B, C, h, w).

        Raises:
            ShapeError: The number of channels is not that of the codebook.
        """
        if z.ndim != 4 or z.shape[1] != self.codebook.shape[1]:
            raise ShapeError(f"z {tuple(z.shape)}: must be (B, {self.codebook.shape[1]}, H, W)")
        indices = self.nearest(z)
        entries = self.entry(indices).to(z.dtype)
        # van den Oord et al. 2017, eq. 3; sg[.] passes no gradient
        commits = F.mse_loss(z, entries.detach())
        if self.config.learned == "ema":
            loss = self.config.beta * commits
        else:
            moves = F.mse_loss(entries, z.detach())
            first, second = (1.0, self.config.beta) if self.config.order == "legacy" else (self.config.beta, 1.0)
            loss = first * commits + second * moves
        return Quantised(z + (entries - z).detach(), indices, loss)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Index (B, h, w) of the entry nearest to each position of z (B, C, h, w)."""
        codes = self.codebook.float()
        places = z.float().movedim(1, -1)
        squares = codes.square().sum(1)
        rows = max(1, CHUNK // len(codes))
        # |z - e|^2 without |z|^2, which is the same for all entries
        parts = [
            torch.addmm(squares, part, codes.T, alpha=-2).argmin(1)
            for part in places.reshape(-1, places.shape[-1]).split(rows)
        ]
        return torch.cat(parts).view(places.shape[:-1])

    def entry(self, indices: Tensor) -> Tensor:
        """Entries (B, C, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def observe(self, z: Tensor, indices: Tensor, generator: torch.Generator | None = None) -> int:
        """Update the moving averages in training, and return the number of entries that were replaced.

        Args:
            z: Latents of the batch, (B, C, h, w).
            indices: Indices of their entries, (B, h, w).
            generator: Generator on the CPU that chooses positions for replaced entries.

        Source: van den Oord et al. 2017, appendix A.1.
        """
        config = self.config
        if config.learned != "ema" and config.restart_dead == 0:
            return 0
        places = z.detach().float().movedim(1, -1).reshape(-1, z.shape[1])
        flat = indices.reshape(-1)
        counted = torch.bincount(flat, minlength=config.codebook_size).to(self.count)
        self.count.lerp_(counted, 1 - config.ema_decay)
        if config.learned == "ema":
            self.total.lerp_(torch.zeros_like(self.total).index_add_(0, flat, places), 1 - config.ema_decay)
            taken = self.count > 1e-5
            self.codebook[taken] = self.total[taken] / self.count[taken, None]
        dead = (self.count < config.restart_dead).nonzero()[: len(places), 0]
        if len(dead):
            chosen = torch.randperm(len(places), generator=generator)[: len(dead)].to(places.device)
            self.codebook[dead] = places[chosen].to(self.codebook)
            self.count[dead] = max(1.0, config.restart_dead)
            if config.learned == "ema":
                self.total[dead] = self.codebook[dead] * self.count[dead, None]
        return len(dead)


class VQModel(Autoencoder):
    """Autoencoder with a codebook: `encode` returns z before quantisation, `decode` quantises first."""

    config: VQModelConfig

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__(config)
        self.quantiser = Quantiser(config.width, config)

    def quantise(self, z: Tensor) -> Quantised:
        """Quantise z (B, C, h, w)."""
        return self.quantiser(z)

    def entry(self, indices: Tensor) -> Tensor:
        """Entries (B, C, h, w) of indices (B, h, w), which `to_latents` converts to latents."""
        return self.quantiser.entry(indices)

    def indices(self, latents: Tensor) -> Tensor:
        """Indices (B, h, w) of the entries that latents are decoded as."""
        return self.quantiser.nearest(self.from_latents(latents))

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents from the encoder's output, before quantisation; `noise` has no effect."""
        return self.to_latents(encoded)

    def z_of(self, latents: Tensor) -> Tensor:
        """Input of the decoder: the nearest entries of the codebook."""
        return self.quantise(self.from_latents(latents)).latents


@dataclass(frozen=True)
class Remap:
    """Renumbering of the entries of a codebook that are in use.

    Args:
        used: Entries in use; their positions here are their new numbers.
        unknown: New number of all others; `extra` is one above the last.

    Raises:
        RecipeError: `used` is empty, negative or not unique, or `unknown` is not one of the new numbers.

    Source: github.com/CompVis/taming-transformers, whose transformers use the used part of a codebook.
    """

    used: tuple[int, ...]
    unknown: Literal["extra"] | int = "extra"

    def __post_init__(self) -> None:
        object.__setattr__(self, "used", tuple(int(code) for code in self.used))
        if not self.used or len(set(self.used)) < len(self.used) or min(self.used) < 0:
            raise RecipeError(f"used: {len(self.used)} entries given; give at least one, each once")
        if self.unknown != "extra" and not 0 <= self.unknown <= len(self.used):
            raise RecipeError(f"unknown = {self.unknown}: must be 'extra' or 0 to {len(self.used)}")

    def remap_to_used(self, indices: Tensor) -> Tensor:
        """New numbers of the codebook's indices, in the same shape."""
        used = torch.tensor(self.used, device=indices.device)
        same = indices[..., None] == used
        unknown = len(used) if self.unknown == "extra" else self.unknown
        return torch.where(same.any(-1), same.int().argmax(-1), unknown)

    def unmap_to_all(self, numbers: Tensor) -> Tensor:
        """Indices of the codebook for new numbers, in the same shape; the extra number is the first entry in use."""
        used = torch.tensor(self.used, device=numbers.device)
        return used[torch.where(numbers < len(used), numbers, 0)]


def codebook_usage(indices: Tensor, codes: int) -> CodebookUsage:
    """Usage of a codebook of `codes` entries by indices of any shape.

    Raises:
        ShapeError: `indices` is empty.
    """
    if not indices.numel():
        raise ShapeError("usage: no indices; encode at least one image")
    shares = torch.bincount(indices.reshape(-1), minlength=codes).double() / indices.numel()
    entropy = torch.special.entr(shares).sum()
    return CodebookUsage((shares > 0).double().mean().item(), entropy.exp().item())
