"""Recorded text: CLIP's tokens, and the text encoder of a tiny Stable Diffusion 1."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.conditioning.clip_tokenizer import clip_tokenizer
from unveil.conditioning.prompt_weighting import PromptChunk, TokenLayout, chunk_prompt
from unveil.conditioning.text_encoder import TextEncoder, TokenBatch

CUT = "tokenize_truncate_"  # and the length of a row
LENGTH = 77  # of a row that states none


def tokenizer(case: Case) -> Iterator[Comparison]:
    """CLIP's encoding both ways, and rows of tokens cut to a length."""
    tokenized, vocabulary = json.loads((case.folder / "tokens.json").read_text("utf-8")), clip_tokenizer()
    for number, one in enumerate(tokenized):
        tokens = vocabulary.encode(one["prompt"])
        yield case.compare(f"encode.{number}", torch.tensor(tokens), want=torch.tensor(one["encode"]))
        decoded = vocabulary.decode(one["encode"]) == one["decode"]
        yield case.compare(f"decode.{number}", torch.tensor(int(decoded)), want=torch.tensor(1))
    prompts = [one["prompt"] for one in tokenized]
    for key in (key for key in case.io if key.startswith(CUT)):
        frame = TokenLayout(int(key.removeprefix(CUT)), 1, vocabulary.begin, vocabulary.end, 0)
        laid = [chunk_prompt([PromptChunk(prompt)], vocabulary, frame) for prompt in prompts]
        yield case.compare(key, torch.tensor([one.numbers[0] for one in laid]))
    frame = TokenLayout(LENGTH, 1, vocabulary.begin, vocabulary.end, 0)
    lost = [prompt for prompt in prompts if chunk_prompt([PromptChunk(prompt)], vocabulary, frame).lost]
    wanted = case.meta.get("too_long_without_truncate", [])  # the beginnings of these prompts
    same = len(lost) == len(wanted) and all(a.startswith(b) for a, b in zip(lost, wanted, strict=True))
    yield case.compare("too long", torch.tensor(int(same)), want=torch.tensor(1))


def encoded(one: TextEncoder, numbers: Tensor) -> Tensor:
    """The vectors (B, L, D) of rows of tokens, (B, L)."""
    rows = numbers[:, None]
    tokens = one.condition(TokenBatch(rows, torch.ones(rows.shape), torch.ones(rows.shape, dtype=torch.bool))).tokens
    assert tokens is not None
    return tokens


KINDS = {"CLIP/tokenizer": tokenizer}
