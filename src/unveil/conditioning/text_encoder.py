"""Text as a condition, by one or several frozen encoders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.conditioning.prompt_weighting import (
    PromptChunk,
    TokenizedPrompt,
    Tokenizer,
    chunk_prompt,
    parse_weights,
    texts_of,
    truncate_for_message,
)
from unveil.errors import PromptTooLong, RecipeError, WeightsError, did_you_mean
from unveil.io.optional_deps import import_extra
from unveil.nn.layers import autocast_dtype
from unveil.nn.lora import fingerprint
from unveil.nn.text_encoders import TRANSFORMERS_USER, T5EncoderConfig, TextEncoderNetwork, TextEncoderOutput
from unveil.nn.tokenizer import TokenLayout
from unveil.types import Condition

EncoderOutput = Literal["tokens", "vector", "both"]
PromptWeighting = Literal["none", "brackets"]
NO_MEAN = 1e-4  # of a prompt's root mean square: a mean below it is rounding, and nothing is scaled to it


class FileTokenizer:
    """Tokenizer from a `tokenizer.json`; special tokens are added by the layout instead.

    Args:
        content: Content of the file, as text.
        where: Origin of the file, for messages.

    Raises:
        RecipeError: The tokenizers library is not installed.
        WeightsError: The file is not a tokenizer.
    """

    def __init__(self, content: str, where: str = "tokenizer.json") -> None:
        library = import_extra("tokenizers", TRANSFORMERS_USER)
        self.content = content
        try:
            self._library: Any = library.Tokenizer.from_str(content)
        except Exception as problem:  # the library raises nothing more exact
            raise WeightsError(f"{where}: not a tokenizer that can be read ({problem}); copy it again") from problem
        self._library.no_truncation()
        self._library.no_padding()

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens, without special ones."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, numbers: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self._library.decode(list(numbers)))

    def number(self, token: str) -> int | None:
        """Number of a token as it is written in the file; None if the file has none."""
        return self._library.token_to_id(token)

    def merges(self) -> list[tuple[str, str]] | None:
        """Merges of a byte-pair vocabulary, lowest rank first; None for another kind."""
        merges = json.loads(self.content)["model"].get("merges")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges or []]
        return [(first, second) for first, second in pairs] or None


class TokenBatch(NamedTuple):
    """Prompts as input of an encoder: numbers, weights, and flags that are False for padding, each (B, rows, L)."""

    numbers: Tensor
    weights: Tensor
    used: Tensor


class TextEncoder(nn.Module):
    """Prompts as a condition, from a frozen text encoder.

    Args:
        tower: Text encoder.
        tokenizer: Tokenizer of its vocabulary; None: restored later from the folder that the model is loaded from.
        drop: Share of the training samples that get `uncond` instead, in [0, 1).
        key: Key of the item that holds the text.
        output: Outputs of the condition: tokens, a vector of the whole prompt, or both.
        prompt_weighting: Syntax of weights: `brackets`, see `prompt_weighting.parse_weights`; `none`: brackets are
            text.
        num_chunks: Number of rows of every prompt; more rows allow longer prompts.
        uncond: Prompt that is used for "none".

    Weights: the vector of each token is multiplied by its weight, and all vectors of the prompt are then multiplied by
    one factor that restores their mean. If a mean is zero except for rounding, there is no such factor. The rule is
    that of the web user interface (AUTOMATIC1111/stable-diffusion-webui, modules/sd_hijack_clip.py), for each prompt
    separately.

    Source: Rombach et al. 2022, section 3.3 (arXiv:2112.10752).
    """

    def __init__(
        self,
        tower: TextEncoderNetwork,
        tokenizer: Tokenizer | None,
        drop: float = 0.0,
        *,
        key: str = "prompt",
        output: EncoderOutput = "tokens",
        prompt_weighting: PromptWeighting = "none",
        num_chunks: int = 1,
        uncond: str = "",
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop = {drop}: must lie in [0, 1)")
        choices = (
            ("output", output, get_args(EncoderOutput)),
            ("prompt_weighting", prompt_weighting, get_args(PromptWeighting)),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise RecipeError(
                    f"{name} = {value!r}: must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
                )
        if isinstance(tower.config, T5EncoderConfig) and output != "tokens":
            raise RecipeError(f"output = {output!r}: T5 has no vector for a whole prompt; set output: tokens")
        self.tower = tower.eval().requires_grad_(False)
        self.tokenizer, self.drop, self.key = tokenizer, drop, key
        self.output, self.prompt_weighting, self.uncond = output, prompt_weighting, uncond
        self.frame: TokenLayout = tower.config.frame(num_chunks)
        self._captions = self._warned = False
        self._cache = PromptCache(0)
        self._state: Hashable = None  # of the encoder when they were made

    @property
    def width(self) -> int:
        """Width of a token's vector, which is the `cross_attention_dim` of a network."""
        return self.tower.config.hidden_size

    def train(self, mode: bool = True) -> TextEncoder:
        """Keep the encoder in evaluation mode; in training only the first text that is too long gives a warning."""
        super().train(False)
        self._captions = mode
        return self

    def set_cache_size(self, megabytes: int) -> TextEncoder:
        """Cache the conditions of the most recent prompts in this much memory; 0, the default: no cache.

        Each prompt is then encoded separately, so that its condition does not depend on the other prompts of a batch.

        Raises:
            RecipeError: The size is negative.
        """
        if megabytes < 0:
            raise RecipeError(f"cache = {megabytes}: megabytes, at least 0")
        self._cache = PromptCache(megabytes * 2**20)
        return self

    def files(self) -> dict[str, str]:
        """Files that a saved model needs besides the weights, by the end of the file's name."""
        return {"tokenizer.json": self.tokenizer.content} if isinstance(self.tokenizer, FileTokenizer) else {}

    def restore_files(self, files: dict[str, str]) -> None:
        """Restore the contents of `files`.

        Raises:
            WeightsError: The file is not a tokenizer.
        """
        if "tokenizer.json" in files:
            self.tokenizer = FileTokenizer(files["tokenizer.json"])

    def report(self, prompts: Sequence[str]) -> list[str]:
        """Lines for the prompts that are too long, with the number of tokens that are left out and their text.

        Raises:
            RecipeError: The value is not a list of texts, or there is no tokenizer.
        """
        layouts = {text: self._laid_out(text) for text in texts_of(self.key, prompts)}
        return [self._line(text, laid) for text, laid in layouts.items() if laid.lost]

    def tokenize(self, prompts: Sequence[str]) -> TokenBatch:
        """Tokenize B prompts; warn of what does not fit (`PromptTooLong`).

        Raises:
            RecipeError: The value is not a list of texts, or there is no tokenizer.
        """
        texts = texts_of(self.key, prompts)
        laid = self._tell(texts)
        numbers = torch.tensor([row.numbers for row in laid], dtype=torch.long)
        weights = torch.tensor([row.weights for row in laid], dtype=torch.float32)
        used = torch.tensor([row.used for row in laid], dtype=torch.bool)
        return TokenBatch(numbers, weights, used)

    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, chunks L, D), with a mask for T5, and a vector (B, P); see `output`.

        Raises:
            RecipeError: The value is not a list of texts, or there is no tokenizer.
        """
        texts = texts_of(self.key, raw)
        once = list(dict.fromkeys(texts))
        if self._cache.room:
            if (state := (fingerprint(self.tower), id(self.tokenizer))) != self._state:
                self._cache, self._state = PromptCache(self._cache.room), state
            keys = [(text, *self._where()) for text in once]
            if not self._captions:  # cached ones warn again; in training the first one does, when it is made
                self._tell([key[0] for key in keys if key in self._cache])
            condition = _together([self._cache.get(key, self._alone) for key in keys])
        else:
            condition = self.condition(self.tokenize(once))
        if len(once) == len(texts):
            return condition
        places = torch.tensor([once.index(text) for text in texts])
        return condition.map(lambda tensor: tensor[places.to(tensor.device)])

    def null(self, batch: int) -> Condition:
        """Null condition: that of `uncond`, `batch` times."""
        return self.encode([self.uncond]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def condition(self, rows: TokenBatch) -> Condition:
        """Condition of tokenized prompts."""
        device = next(self.tower.parameters()).device
        numbers, weights, used = (tensor.to(device) for tensor in rows)
        encoded: TextEncoderOutput = self.tower(numbers.flatten(0, 1), used.flatten(0, 1))
        tokens = encoded.tokens.reshape(len(numbers), -1, encoded.tokens.shape[-1])
        tokens = apply_token_weights(tokens, weights.flatten(1))
        pooled = encoded.pooled
        vector = None if pooled is None else pooled.reshape(len(numbers), -1, pooled.shape[-1])[:, 0]
        masked = isinstance(self.tower.config, T5EncoderConfig) and self.tower.config.attend == "tokens"
        return Condition(
            vector=vector if self.output != "tokens" else None,
            tokens=tokens if self.output != "vector" else None,
            mask=used.flatten(1) if masked else None,
        )

    def _where(self) -> tuple[str, str]:
        """Device, and precision of products, at present."""
        device = next(self.tower.parameters()).device
        return str(device), str(autocast_dtype(device))

    def _alone(self, key: tuple[str, ...]) -> Condition:
        """Condition of one prompt, the first of a key."""
        with torch.no_grad():
            return self.condition(self.tokenize([key[0]]))

    def _tell(self, texts: Sequence[str]) -> list[TokenizedPrompt]:
        """Lay out texts, and warn of each that does not fit."""
        laid = [self._laid_out(text) for text in texts]
        for text, row in zip(texts, laid, strict=True):
            if row.lost and not (self._captions and self._warned):
                warnings.warn(self._line(text, row), PromptTooLong, stacklevel=3)
                self._warned = self._captions
        return laid

    def _laid_out(self, text: str) -> TokenizedPrompt:
        if self.tokenizer is None:
            raise RecipeError(f"{self.key}: this encoder has no tokenizer yet; load the model from its folder")
        pieces = parse_weights(text) if self.prompt_weighting == "brackets" else [PromptChunk(text)]
        return chunk_prompt(pieces, self.tokenizer, self.frame)

    def _line(self, text: str, laid: TokenizedPrompt) -> str:
        room = self.frame.room * self.frame.rows
        return (
            f"{self.key} {truncate_for_message(text)!r}: {laid.lost} tokens more than the {room} that fit, left out: "
            f"{truncate_for_message(laid.left_out)!r}"
        )


class PromptCache:
    """Cache of the most recently used conditions, by a text and all else that they depend on.

    Args:
        room: Maximum size in bytes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._used = 0
        self._conditions: dict[tuple[str, ...], Condition] = {}  # the last used at the end

    def __contains__(self, key: tuple[str, ...]) -> bool:
        """Return True if the cache contains the condition of a key."""
        return key in self._conditions

    def get(self, key: tuple[str, ...], make: Callable[[tuple[str, ...]], Condition]) -> Condition:
        """Condition of a key, from the cache or else from `make`."""
        condition = self._conditions.pop(key, None)
        if condition is None:
            condition = make(key)
            self._used += _bytes(condition)
        self._conditions[key] = condition
        while self._used > self.room and len(self._conditions) > 1:
            oldest = next(iter(self._conditions))
            self._used -= _bytes(self._conditions.pop(oldest))
        return condition


def _together(each: Sequence[Condition]) -> Condition:
    """Concatenate the rows of several conditions."""
    return Condition(
        vector=_rows([condition.vector for condition in each]),
        tokens=_rows([condition.tokens for condition in each]),
        mask=_rows([condition.mask for condition in each]),
    )


def _rows(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def _bytes(condition: Condition) -> int:
    return sum(tensor.nbytes for tensor in (condition.vector, condition.tokens, condition.mask) if tensor is not None)


def apply_token_weights(tokens: Tensor, weights: Tensor) -> Tensor:
    """Multiply tokens (B, L, D) by their weights (B, L), scaled so that each prompt keeps its mean.

    Prompts whose weights are all 1 are returned unchanged.
    """
    plain = (weights == 1).all(dim=1)[:, None, None]
    if bool(plain.all()):
        return tokens
    weighted = tokens * weights[..., None].to(tokens.dtype)
    before, after = (part.float().mean(dim=(1, 2), keepdim=True) for part in (tokens, weighted))
    size = tokens.float().square().mean(dim=(1, 2), keepdim=True).sqrt()
    usable = (before.abs() > NO_MEAN * size) & (after.abs() > NO_MEAN * size)
    factor = torch.where(usable, before / torch.where(usable, after, 1.0), 1.0)
    return torch.where(plain, tokens, weighted * factor.to(tokens.dtype))


# Conditions of the encoders, in their order -> the condition of the network
CombineEncoders = Callable[[Sequence[Condition]], Condition]


class MultiTextEncoder(nn.Module):
    """Prompts as a condition, from several frozen text encoders.

    Args:
        texts: Text encoders.
        combine: Function that combines their outputs.
        extra_dims: Number of values at the end of the vector that are zero, for `micro_conditioning.ScalarCondition` to
            fill.
        zero_uncond: True if "none" is zeros instead of the encoding of the empty prompt.
        precisions: Precision of each encoder's products; None: float32. Their outputs are float32.
        key: Key of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, each at its own rate

    def __init__(
        self,
        texts: Sequence[TextEncoder],
        combine: CombineEncoders,
        *,
        extra_dims: int = 0,
        zero_uncond: bool = False,
        precisions: Sequence[torch.dtype] | None = None,
        key: str = "prompt",
    ) -> None:
        super().__init__()
        self.texts = nn.ModuleList(texts)
        self.precisions = list(precisions or [torch.float32] * len(texts))
        self.combine, self.extra_dims, self.zero_uncond, self.key = combine, extra_dims, zero_uncond, key
        self._nothing: tuple[Hashable, Condition] | None = None  # and of which encoders it is

    @torch.no_grad()
    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, L, D), and a vector (B, P + extra_dims).

        Raises:
            RecipeError: The value is not a list of texts, or no encoder outputs a vector.
        """
        device = next(self.parameters()).device.type
        each: list[Condition] = []
        for text, precision in zip(cast(Sequence[TextEncoder], self.texts), self.precisions, strict=True):
            with torch.autocast(device, precision, enabled=precision != torch.float32):
                each.append(text.encode(raw).map(lambda tensor: tensor.float()))
        joined = self.combine(each)
        if joined.vector is None:
            raise RecipeError(f"{self.key}: no encoder gives a vector for the whole prompt, which this network takes")
        return Condition(vector=functional.pad(joined.vector, (0, self.extra_dims)), tokens=joined.tokens)

    def null(self, batch: int) -> Condition:
        """Null condition: that of the empty prompt or zeros, `batch` times."""
        state = fingerprint(self), tuple(self.precisions)
        if self._nothing is None or self._nothing[0] != state:
            empty = self.encode([""])
            self._nothing = state, empty.map(torch.zeros_like) if self.zero_uncond else empty
        return self._nothing[1].map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


def sdxl_concat(conditions: Sequence[Condition]) -> Condition:
    """Combine outputs as in SDXL: tokens concatenated along their width, (B, L, D1 + D2); the last encoder's vector.

    Source: Podell et al. 2023, section 2.1 (arXiv:2307.01952).
    """
    tokens = torch.cat([_tokens(condition) for condition in conditions], dim=2)
    return Condition(vector=conditions[-1].vector, tokens=tokens)


def sd3_concat(width: int, length: int) -> CombineEncoders:
    """Combine outputs as in SD 3: tokens of the first two side by side, padded with zeros, then the third's.

    Without a third encoder its tokens are zeros. The vectors of the first two are concatenated.

    Args:
        width: Width of the network's tokens.
        length: Number of tokens of the third encoder.

    Source: Esser et al. 2024, appendix B.3 (arXiv:2403.03206).
    """

    def together(conditions: Sequence[Condition]) -> Condition:
        first = torch.cat([_tokens(condition) for condition in conditions[:2]], dim=2)
        first = functional.pad(first, (0, width - first.shape[2]))
        third = _tokens(conditions[2]) if len(conditions) > 2 else first.new_zeros(len(first), length, width)
        vectors = [condition.vector for condition in conditions[:2] if condition.vector is not None]
        return Condition(vector=torch.cat(vectors, dim=1), tokens=torch.cat([first, third], dim=1))

    return together


def flux_concat(conditions: Sequence[Condition]) -> Condition:
    """Combine outputs as in FLUX.1: the vector of the first encoder, the tokens of the second.

    Source: FLUX.1's published inference code (github.com/black-forest-labs/flux).
    """
    return Condition(vector=conditions[0].vector, tokens=_tokens(conditions[1]))


def _tokens(condition: Condition) -> Tensor:
    assert condition.tokens is not None  # every encoder here gives tokens
    return condition.tokens
