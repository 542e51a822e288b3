"""Tiny language models of transformers with drawn weights, and a tokenizer of words."""

from __future__ import annotations

import string
from typing import Any

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from tests.checkpoints.tiny_hf import WORDS, drawn

TEMPLATE = "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}{{ 'assistant' }}"
WIDTH = 32  # of language models


def words_tokenizer(*, signs: bool = False, before: int = 0) -> Any:
    """A tokenizer of words, as transformers saves one; with `signs` they are words too.

    Args:
        before: Further tokens before a chat.
    """
    pieces = ["<pad>", "<unk>", "<s>", "user", "assistant", *WORDS, *string.ascii_lowercase, *string.digits]
    words = tokenizers.Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace() if signs else pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", padding_side="right"
    )
    made.chat_template = "{{ '<s> ' * NUMBER }}".replace("NUMBER", str(before)) + TEMPLATE
    return made


def language(config: Any, kind: Any, seed: int) -> Any:
    return drawn(kind(config), seed)


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
