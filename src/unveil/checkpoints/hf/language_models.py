"""Prompts for networks that read the last layers of a language model, through transformers' own classes.

Facts: how diffusers' `ZImagePipeline` and `SanaPipeline` encode prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.checkpoints.hf_files import read_json
from unveil.conditioning.prompt_weighting import texts_of
from unveil.errors import UnsupportedFormat
from unveil.io.optional_deps import import_extra
from unveil.types import Condition

# Classes of transformers that are run; all others are refused
ENCODERS = ("Gemma2Model", "Gemma2ForCausalLM", "Qwen3Model", "Qwen3ForCausalLM")
# (tokenizer, encoder, texts, whether they are for "none") -> tokens (B, L, D) and mask (B, L)
ReadPrompts = Callable[[Any, Any, list[str], bool], tuple[Tensor, Tensor]]


class LanguageModelPrompts(nn.Module):
    """Prompts as hidden states of a language model, of one length, with a mask.

    Args:
        tokenizer: Tokenizer of transformers.
        encoder: Language model of transformers.
        read: Function from texts to tokens and a mask.
        key: Key of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, each at its own rate

    def __init__(self, tokenizer: Any, encoder: nn.Module, read: ReadPrompts, *, key: str = "prompt") -> None:
        super().__init__()
        self.tokenizer, self.encoder, self.read, self.key = tokenizer, encoder.requires_grad_(False), read, key

    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, L, D) and a mask (B, L).

        Raises:
            RecipeError: The value is not a list of texts.
        """
        return self._condition(texts_of(self.key, raw), none=False)

    def null(self, batch: int) -> Condition:
        """Null condition: the empty prompt, `batch` times."""
        return self._condition([""], none=True).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    @torch.no_grad()
    def _condition(self, texts: Sequence[str], *, none: bool) -> Condition:
        once = list(dict.fromkeys(texts))
        tokens, mask = self.read(self.tokenizer, self.encoder, once, none)
        places = torch.tensor([once.index(text) for text in texts], device=tokens.device)
        return Condition(tokens=tokens.float()[places], mask=mask.bool()[places])


def language_model_of(
    folder: PipelineFolder, read: ReadPrompts, dtype: torch.dtype, kinds: Sequence[str] = ENCODERS
) -> LanguageModelPrompts:
    """The prompts of a folder's text encoder and tokenizer; nothing but safetensors is read, and no code is run.

    Raises:
        UnsupportedFormat: A class of encoder that is not known.
        WeightsError: A component that is missing or damaged.
        RecipeError: Transformers is not installed.
    """
    place = folder.place("text_encoder")
    kind = (read_json(place / "config.json").get("architectures") or [folder.index["text_encoder"][1]])[0]
    if kind not in kinds:
        raise UnsupportedFormat(f"{place}: a {kind}; of a {folder.kind} it must be one of {', '.join(kinds)}")
    folder.tensors("text_encoder")  # answers what is missing or a pickle
    library: Any = import_extra("transformers", f"a {folder.kind}")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = library.AutoTokenizer.from_pretrained(folder.place("tokenizer"), **local)
    encoder = getattr(library, kind).from_pretrained(place, dtype=dtype, use_safetensors=True, **local)
    return LanguageModelPrompts(tokenizer, encoder.eval(), read)


def z_image_prompts(
    tokenizer: Any, encoder: Any, texts: list[str], none: bool, length: int = 512
) -> tuple[Tensor, Tensor]:
    """The layer before the last of Qwen 3, after its own chat template."""
    del none
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        for text in texts
    ]
    rows = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    rows = rows.to(encoder.device)
    mask = rows.attention_mask.bool()
    states = encoder(input_ids=rows.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    return states, mask


def sana_prompts(instruction: str, length: int = 300) -> ReadPrompts:
    """The last layer of Gemma 2 after an instruction, of which only the first token is kept."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        tokenizer.padding_side = "right"
        before = "" if none else instruction
        size = length if not before else len(tokenizer.encode(before)) + length - 2
        prompts = [before + text.lower().strip() for text in texts]
        rows = tokenizer(prompts, padding="max_length", max_length=size, truncation=True, return_tensors="pt")
        rows = rows.to(encoder.device)
        states = encoder(rows.input_ids, attention_mask=rows.attention_mask)[0]
        places = [0, *range(1 - length, 0)]
        return states[:, places], rows.attention_mask[:, places]

    return read
