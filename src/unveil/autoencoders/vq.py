"""The discrete codec: each place of z becomes the nearest of a codebook's entries.

Sources: van den Oord et al. 2017 (arXiv:1711.00937); Esser et al. 2021 (arXiv:2012.09841); Rombach et al. 2022,
section 3.1 (arXiv:2112.10752), whose diffusion models use z before it is quantised.
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
    """An autoencoder with a codebook; the other settings are those of `LatentConfig`.

    Args:
        codebook_size: Entries of the codebook.
        beta: Weight of one term of the loss, see `order`.
        order: `legacy` weighs the codebook's term (released models), `fixed` the encoder's (the paper).
        learned: Update rule of the codebook: `gradient`, or `ema`; the loss is then the encoder's term
            times beta.
        ema_decay: Decay of the running counts and means.
        restart_dead: An entry whose running count falls below this is put on a place of the batch; 0: never.

    Raises:
        RecipeError: Settings that do not fit together.
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
    """Z on the codebook.

    latents: (B, C, h, w), to which gradients pass as if nothing had been done. indices: (B, h, w). loss: a scalar,
    what keeps codebook and encoder together.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor


class CodebookUsage(NamedTuple):
    """Usage of a codebook.

    used: the share of entries that occur. perplexity: the number of equally frequent entries with this entropy.
    """

    used: float
    perplexity: float


class Quantiser(nn.Module):
    """A codebook: the nearest entry for each place, and what keeps the entries near what they stand for.

    Attributes:
        codebook: (codes, C).
        count, total: With running means or restarts, how often each entry was taken and the sum of what took it.
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
        """Z (B, C, h, w) on the codebook.

        Raises:
            ShapeError: Another number of channels than the codebook's.
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
        """The number of the entry nearest to each place of z (B, C, h, w): (B, h, w)."""
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
        """Z (B, C, h, w) of the numbers of entries (B, h, w)."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def observe(self, z: Tensor, indices: Tensor, generator: torch.Generator | None = None) -> int:
        """One step of the running counts and means in training; returns how many entries were put on new places.

        Args:
            z: Latents of the batch, (B, C, h, w).
            indices: Indices of its entries, (B, h, w).
            generator: Chooses the places (on the CPU); the same one gives the same places.

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
    """The codec with a codebook: `encode` gives z before it is quantised, `decode` quantises first."""

    config: VQModelConfig

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__(config)
        self.quantiser = Quantiser(config.width, config)

    def quantise(self, z: Tensor) -> Quantised:
        """Z (B, C, h, w) on the codebook."""
        return self.quantiser(z)

    def entry(self, indices: Tensor) -> Tensor:
        """Z (B, C, h, w) of the numbers of entries (B, h, w); `scaled` makes latents of it."""
        return self.quantiser.entry(indices)

    def indices(self, latents: Tensor) -> Tensor:
        """The numbers of the entries (B, h, w) that latents are decoded as."""
        return self.quantiser.nearest(self.from_latents(latents))

    def latents_of(self, encoded: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of the encoder's output, before they are quantised; `noise` has no effect."""
        return self.to_latents(encoded)

    def z_of(self, latents: Tensor) -> Tensor:
        """Input of the decoder for latents: the nearest entries of the codebook."""
        return self.quantise(self.from_latents(latents)).latents


@dataclass(frozen=True)
class Remap:
    """Numbers of entries, counted among those in use only.

    Args:
        used: The entries in use; their places here are their new numbers.
        unknown: The new number of all others: `extra` is one above the last.

    Raises:
        RecipeError: No entry, one named twice, or an unknown number that is none of the new ones.

    Source: github.com/CompVis/taming-transformers, whose transformers see the used part of a codebook.
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
        """New numbers of a codebook's, in the same shape."""
        used = torch.tensor(self.used, device=indices.device)
        same = indices[..., None] == used
        unknown = len(used) if self.unknown == "extra" else self.unknown
        return torch.where(same.any(-1), same.int().argmax(-1), unknown)

    def unmap_to_all(self, numbers: Tensor) -> Tensor:
        """The codebook's numbers of new ones, in the same shape; the extra one stands for the first entry in use."""
        used = torch.tensor(self.used, device=numbers.device)
        return used[torch.where(numbers < len(used), numbers, 0)]


def codebook_usage(indices: Tensor, codes: int) -> CodebookUsage:
    """Share of a codebook of `codes` entries that occurs among indices of any shape.

    Raises:
        ShapeError: No indices.
    """
    if not indices.numel():
        raise ShapeError("usage: no indices; encode at least one image")
    shares = torch.bincount(indices.reshape(-1), minlength=codes).double() / indices.numel()
    entropy = torch.special.entr(shares).sum()
    return CodebookUsage((shares > 0).double().mean().item(), entropy.exp().item())
