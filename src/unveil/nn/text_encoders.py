"""Text encoders: CLIP's and T5's transformers from rows of tokens to vectors.

The modules are those of the transformers library, built from a configuration and without its files; weights come
from `checkpoints.text_encoder_keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.io.optional_deps import import_extra
from unveil.nn.tokenizer import TokenLayout

TRANSFORMERS_USER = "a text encoder"
ACTIVATIONS = {"quick-gelu": "quick_gelu", "gelu": "gelu"}  # ours: transformers'

# Published towers: width, depth, heads and what else differs from the defaults
SIZES: Mapping[str, Mapping[str, Any]] = {
    "clip-l": {"hidden_size": 768, "depth": 12, "heads": 12},
    "openclip-h": {
        "hidden_size": 1024,
        "depth": 24,
        "heads": 16,
        "activation": "gelu",
        "projection": 1024,
        "padding": 0,
    },
    "openclip-g": {
        "hidden_size": 1280,
        "depth": 32,
        "heads": 20,
        "activation": "gelu",
        "projection": 1280,
        "padding": 0,
    },
}


class TextEncoderOutput(NamedTuple):
    """Output of a text encoder for rows of tokens: a vector per token (B, L, D), and one per row (B, P)."""

    tokens: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class CLIPEncoderConfig:
    """Configuration of CLIP's text encoder.

    Args:
        hidden_size, depth, heads: Width of a token, number of blocks, number of attention heads.
        mlp_ratio: Width of the MLPs, in multiples of `hidden_size`.
        vocab_size: Size of the vocabulary.
        max_length: Number of tokens of a row, its two special tokens included.
        activation: Activation of the MLPs: OpenAI's encoders have the quick GELU, x sigmoid(1.702 x), OpenCLIP's the
            exact one.
        projection: Width of the pooled vector after a linear layer; 0: no linear layer.
        skip: Number of last blocks that are not used for the tokens; 1 gives the penultimate layer's output.
        norm: Final normalisation of the tokens: applied ("final") or not ("none").
        norm_eps: Epsilon of the normalisations.
        begin, end, padding: Numbers of the special tokens. SD 1 fills rows with the end token, SD 2 with token 0.

    Source: Radford et al. 2021, section 2.4 (arXiv:2103.00020); the layer for SD 2: Stability-AI/stablediffusion,
    FrozenOpenCLIPEmbedder.
    """

    hidden_size: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    vocab_size: int = 49408
    max_length: int = 77
    activation: Literal["quick-gelu", "gelu"] = "quick-gelu"
    projection: int = 0
    skip: int = 0
    norm: Literal["final", "none"] = "final"
    norm_eps: float = 1e-5
    begin: int = 49406
    end: int = 49407
    padding: int = 49407

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.heads)
        if not 0 <= self.skip < self.depth:
            raise RecipeError(f"skip = {self.skip}: must be 0 to {self.depth - 1}, below the depth")
        _check_special(self.vocab_size, {"begin": self.begin, "end": self.end, "padding": self.padding})

    def frame(self, rows: int) -> TokenLayout:
        """Layout of `rows` rows."""
        return TokenLayout(self.max_length, rows, self.begin, self.end, self.padding)


@dataclass(frozen=True)
class T5EncoderConfig:
    """Configuration of T5's encoder.

    Args:
        hidden_size, depth, heads: Width of a token, number of blocks, number of attention heads.
        head_dim: Width of one attention head.
        intermediate_size: Width of the MLPs.
        vocab_size: Number of rows of the embedding table.
        max_length: Number of tokens of a row; any number is possible, because positions are relative.
        feed: Kind of the MLPs: `relu` in the first T5, `gated-gelu` in version 1.1.
        buckets, distance: Number of buckets and largest distance of the relative positions.
        norm_eps: Epsilon of the normalisations.
        attend: Tokens that are attended to: "tokens" hides padding, "all" treats it like any other text.
        positions: Relative positions of the blocks: those of the first block ("shared", T5), or their own ("each",
            umT5).
        end, padding: Numbers of the special tokens.

    Source: Raffel et al. 2020, section 2.1 (arXiv:1910.10683); its use: Saharia et al. 2022 (arXiv:2205.11487); umT5:
        Chung et al. 2023 (arXiv:2304.09151).
    """

    hidden_size: int
    depth: int
    heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int = 32128
    max_length: int = 77
    feed: Literal["relu", "gated-gelu"] = "gated-gelu"
    buckets: int = 32
    distance: int = 128
    norm_eps: float = 1e-6
    attend: Literal["tokens", "all"] = "tokens"
    positions: Literal["shared", "each"] = "shared"
    end: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        _check_special(self.vocab_size, {"end": self.end, "padding": self.padding})

    def frame(self, rows: int) -> TokenLayout:
        """Layout of its row.

        Raises:
            RecipeError: There is more than one row; a larger `max_length` gives a longer one.
        """
        if rows != 1:
            raise RecipeError(f"num_chunks = {rows}: T5 takes rows of any length; raise max_length instead")
        return TokenLayout(self.max_length, 1, None, self.end, self.padding)


TextEncoderConfig = CLIPEncoderConfig | T5EncoderConfig


class CLIPTextEncoder(nn.Module):
    """CLIP's text encoder.

    Raises:
        RecipeError: The package transformers is not installed.
    """

    def __init__(self, config: CLIPEncoderConfig) -> None:
        super().__init__()
        self.config = config
        library = import_extra("transformers", TRANSFORMERS_USER)
        library_config = library.CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=round(config.hidden_size * config.mlp_ratio),
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_length,
            hidden_act=ACTIVATIONS[config.activation],
            layer_norm_eps=config.norm_eps,
            bos_token_id=config.begin,
            eos_token_id=config.end,
            pad_token_id=config.padding,
        )
        self.model: Any = library.CLIPTextModel(library_config)
        self.projection = nn.Linear(config.hidden_size, config.projection, bias=False) if config.projection else None

    def forward(self, numbers: Tensor, used: Tensor) -> TextEncoderOutput:
        """Vectors of rows of tokens, (B, L) int64; padding takes part, as published, so `used` (B, L) has no effect."""
        check_numbers(numbers, self.config.vocab_size)
        earlier = bool(self.config.skip) or self.config.norm == "none"
        output = self.model(input_ids=numbers, output_hidden_states=earlier)
        tokens: Tensor = output.last_hidden_state
        if earlier:  # results of blocks, before the final normalisation
            tokens = output.hidden_states[-1 - self.config.skip]
            tokens = self.model.final_layer_norm(tokens) if self.config.norm == "final" else tokens
        pooled: Tensor = output.pooler_output
        return TextEncoderOutput(tokens, pooled if self.projection is None else self.projection(pooled))


class T5TextEncoder(nn.Module):
    """T5's encoder.

    Raises:
        RecipeError: The package transformers is not installed.
    """

    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.config = config
        library = import_extra("transformers", TRANSFORMERS_USER)
        family = "T5" if config.positions == "shared" else "UMT5"
        library_config = getattr(library, f"{family}Config")(
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            d_kv=config.head_dim,
            d_ff=config.intermediate_size,
            num_layers=config.depth,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.distance,
            layer_norm_epsilon=config.norm_eps,
            feed_forward_proj=config.feed,
            eos_token_id=config.end,
            pad_token_id=config.padding,
        )
        self.model: Any = getattr(library, f"{family}EncoderModel")(
            library_config
        ).encoder  # without the second name of its table

    def forward(self, numbers: Tensor, used: Tensor) -> TextEncoderOutput:
        """Vectors of rows of tokens, (B, L) int64; `used` (B, L) is False for padding."""
        check_numbers(numbers, self.config.vocab_size)
        mask = used if self.config.attend == "tokens" else torch.ones_like(used)
        return TextEncoderOutput(self.model(input_ids=numbers, attention_mask=mask.long()).last_hidden_state)


TextEncoderNetwork = CLIPTextEncoder | T5TextEncoder


def build(config: TextEncoderConfig) -> TextEncoderNetwork:
    """Create the text encoder of a configuration, freshly initialised.

    Raises:
        RecipeError: The package transformers is not installed.
    """
    return CLIPTextEncoder(config) if isinstance(config, CLIPEncoderConfig) else T5TextEncoder(config)


def expand_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """Section of a recipe, completed with the settings of its `name`; settings in the section take precedence.

    Raises:
        RecipeError: The name is unknown; the message names the nearest.
    """
    options = dict(section)
    name = options.pop("name", None)
    if name is None:
        return options
    if name not in SIZES:
        raise RecipeError(f"encoder name {name!r}: known are {', '.join(SIZES)}{did_you_mean(name, list(SIZES))}")
    return {**SIZES[name], **options}


def check_numbers(numbers: Tensor, vocabulary: int) -> None:
    """Raise ShapeError for tokens outside the vocabulary, which a table look-up would not report clearly."""
    if not numbers.numel() or numbers.is_meta:
        return
    lowest, highest = (int(number) for number in numbers.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise ShapeError(
            f"token {lowest if lowest < 0 else highest}: this encoder has {vocabulary} tokens from 0 on; its "
            "vocabulary is another than the prompt's"
        )


def _check_heads(width: int, heads: int) -> None:
    if width < 1 or heads < 1 or width % heads:
        raise RecipeError(f"width {width} with {heads} heads: the width must be a multiple of the heads")


def _check_special(vocabulary: int, tokens: Mapping[str, int]) -> None:
    for name, number in tokens.items():
        if not 0 <= number < vocabulary:
            raise RecipeError(f"{name} = {number}: the vocabulary has 0 to {vocabulary - 1}")
