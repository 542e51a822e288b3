"""Captioning network: a transformer over spatio-temporal patches encodes a video, a decoder predicts its caption.

    x -> frames -> patches -> tokens + positions -> blocks -> encoder states of the decoder -> words

Letters of shapes: B videos, T frames, N patches of all frames, C the width of a token, L words, V of the vocabulary.

Sources: patches of all frames in one sequence: Arnab et al. 2021, section 3.3, model 1 (arXiv:2103.15691); the decoder:
Vaswani et al. 2017 (arXiv:1706.03762); a captioner for what a generative model is trained on: Betker et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import grid_coordinates, sin_cos_positions
from unveil.nn.layers import check_multiple
from unveil.nn.transformer import (
    BlockConfig,
    DecoderState,
    EncoderStates,
    TransformerDecoder,
    TransformerStack,
    xavier_,
)
from unveil.nn.vit import Stem, check_stem, stem
from unveil.types import Ge, checked

RATE = 8.0  # frames a second of clips that say nothing else; a step of time is one of them


@dataclass(frozen=True)
class CaptionerConfig:
    """Configuration of a captioner.

    Args:
        vocab_size: Size of the vocabulary, special tokens included.
        channels: Number of channels of an image.
        patch: Side of the squares of a frame that become tokens.
        stem: Conversion of a square to a token; see `vit.ViTConfig`.
        depth, decoder_depth: Number of blocks of the encoder and of the decoder.
        hidden_size, heads: Width of a token, number of attention heads.
        mlp_ratio: Width of the MLPs, in multiples of `hidden_size`.
        max_length: Maximum number of words of a caption, begin and end included.
        dropout: Dropout probability in training.

    Raises:
        RecipeError: The settings are inconsistent.
    """

    vocab_size: Annotated[int, Ge(1)]
    channels: Annotated[int, Ge(1)] = 3
    patch: Annotated[int, Ge(1)] = 8
    stem: Stem = "convolutions"
    depth: Annotated[int, Ge(1)] = 4
    decoder_depth: Annotated[int, Ge(1)] = 2
    hidden_size: Annotated[int, Ge(1)] = 144
    heads: Annotated[int, Ge(1)] = 4
    mlp_ratio: float = 4.0
    max_length: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checked(self)
        if self.max_length < 3 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"max_length = {self.max_length}, dropout = {self.dropout}: must be at least 3, and in [0, 1)"
            )
        if self.hidden_size % 6 or self.hidden_size % self.heads:
            raise RecipeError(
                f"hidden_size = {self.hidden_size}: must be a multiple of 6, for three axes, and of the heads"
            )
        check_stem(self)

    @property
    def block(self) -> BlockConfig:
        """Configuration of the blocks of encoder and decoder."""
        return BlockConfig(self.hidden_size, self.heads, int(self.mlp_ratio * self.hidden_size), dropout=self.dropout)


class Captioner(nn.Module):
    """Encoder-decoder for captions of videos (B, channels, T, H, W) of any length and size."""

    kind: Literal["captioner"] = "captioner"

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = stem(config)
        self.encoder = TransformerStack(config.depth, config.block)
        xavier_(self.encoder)
        self.decoder = TransformerDecoder(
            config.vocab_size,
            config.decoder_depth,
            config.block,
            limit=config.max_length,
            context_width=config.hidden_size,
        )

    def forward(self, x: Tensor, words: Tensor, rate: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of the word after each of words (B, L), given videos and frame rates; see `encode`."""
        return self.decoder.logits(self.decoder(words, context=self.encode(x, rate)))

    def encode(self, x: Tensor, rate: Tensor | None = None) -> EncoderStates:
        """Encoder states (B, N, C) that the decoder attends to.

        Args:
            x: Videos in [-1, 1]; an image is a video of one frame.
            rate: Frame rate (B,) in frames per second; None: `RATE`.

        Raises:
            ShapeError: The number of channels is wrong, or a side is not a multiple of the patch.
        """
        if x.ndim != 5 or x.shape[1] != self.config.channels:
            raise ShapeError(f"x {tuple(x.shape)}: this network reads clips (B, {self.config.channels}, T, H, W)")
        check_multiple(x, self.config.patch)
        frames = x.transpose(1, 2).flatten(0, 1)  # (B T, channels, H, W)
        h = self.patches(frames)  # (B T, C, H / patch, W / patch)
        size = (x.shape[2], *h.shape[2:])
        tokens = h.flatten(2).transpose(1, 2).reshape(len(x), -1, self.config.hidden_size)  # (B, N, C)
        return EncoderStates(self.encoder(tokens + self._places(size, len(x), rate).to(tokens)))

    def start(self, x: Tensor, rate: Tensor | None = None) -> DecoderState:
        """Decoder state at the start of captions of videos, for `decoding`."""
        return self.decoder.start(self.encode(x, rate))

    def _places(self, size: tuple[int, int, int], batch: int, rate: Tensor | None) -> Tensor:
        """Sinusoids of the time and position of each token, (1 or B, N, C); time is counted in frames at `RATE`."""
        grid = grid_coordinates(size)  # (N, 3)
        if rate is None:
            return sin_cos_positions(grid, self.config.hidden_size, "sin-cos")[None]
        steps = (RATE / rate.cpu().double()).tolist()
        positions = {step: _at(grid, step, self.config.hidden_size) for step in set(steps)}
        return torch.stack([positions[step] for step in steps]).view(batch, len(grid), -1)


def _at(grid: Tensor, step: float, width: int) -> Tensor:
    scaled = grid * torch.tensor([step, 1.0, 1.0], dtype=grid.dtype)
    return sin_cos_positions(scaled, width, "sin-cos")
