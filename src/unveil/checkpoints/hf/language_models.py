"""Prompts for networks that read the last layers of a language model, through transformers' own classes.

Facts: how diffusers' `ZImagePipeline`, `SanaPipeline`, `QwenImagePipeline`, `Lumina2Pipeline` and
`Flux2KleinPipeline` encode prompts.
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
ENCODERS = (
    "Gemma2Model",
    "Gemma2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3Model",
    "Qwen3ForCausalLM",
)
# (tokenizer, encoder, texts, whether they are for "none") -> tokens (B, L, D) and mask (B, L); None: all are seen
ReadPrompts = Callable[[Any, Any, list[str], bool], tuple[Tensor, Tensor | None]]


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
        """Condition of B prompts: tokens (B, L, D), with a mask (B, L) where not all are seen.

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
        return Condition(tokens=tokens.float()[places], mask=None if mask is None else mask.bool()[places])


def language_model_of(folder: PipelineFolder, read: ReadPrompts, dtype: torch.dtype) -> LanguageModelPrompts:
    """The prompts of a folder's text encoder and tokenizer; nothing but safetensors is read, and no code is run.

    Raises:
        UnsupportedFormat: A class of encoder that is not known.
        WeightsError: A component that is missing or damaged.
        RecipeError: Transformers is not installed.
    """
    place = folder.place("text_encoder")
    kind = (read_json(place / "config.json").get("architectures") or [folder.index["text_encoder"][1]])[0]
    if kind not in ENCODERS:
        raise UnsupportedFormat(f"{place}: a {kind}; of a {folder.kind} it must be one of {', '.join(ENCODERS)}")
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
    rows = _padded(tokenizer, encoder, [_chat(tokenizer, text, thinking=True) for text in texts], length)
    mask = rows.attention_mask.bool()
    return encoder(input_ids=rows.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2], mask


def flux2_prompts(layers: Sequence[int], length: int = 512) -> ReadPrompts:
    """Some layers of Qwen 3, one after the other, after its own chat template; tokens after a prompt are seen."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, None]:
        del none
        rows = _padded(tokenizer, encoder, [_chat(tokenizer, text, thinking=False) for text in texts], length)
        states = encoder(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return torch.cat([states[layer] for layer in layers], dim=2), None

    return read


def lumina2_prompts(instruction: str, length: int = 256) -> ReadPrompts:
    """The layer before the last of Gemma 2, after an instruction."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        tokenizer.padding_side = "right"
        prompts = texts if none else [f"{instruction} <Prompt Start> {text}" for text in texts]
        rows = _padded(tokenizer, encoder, prompts, length)
        states = encoder(rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True).hidden_states
        return states[-2], rows.attention_mask

    return read


def qwen_prompts(template: str, first: int, length: int = 512) -> ReadPrompts:
    """The last layer of Qwen 2.5 VL at a template with the prompt, without the template's first tokens."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        del none
        tokenizer.padding_side = "right"
        prompts = [template.format(text) for text in texts]
        rows = tokenizer(prompts, max_length=length + first, padding=True, truncation=True, return_tensors="pt")
        rows = rows.to(encoder.device)
        states = encoder(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
        return states[:, first:], rows.attention_mask[:, first:]

    return read


def sana_prompts(instruction: str, length: int = 300) -> ReadPrompts:
    """The last layer of Gemma 2 after an instruction, of which only the first token is kept."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        tokenizer.padding_side = "right"
        before = "" if none else instruction
        size = length if not before else len(tokenizer.encode(before)) + length - 2
        prompts = [before + text.lower().strip() for text in texts]
        rows = _padded(tokenizer, encoder, prompts, size)
        states = encoder(rows.input_ids, attention_mask=rows.attention_mask)[0]
        places = [0, *range(1 - length, 0)]
        return states[:, places], rows.attention_mask[:, places]

    return read


def _chat(tokenizer: Any, text: str, *, thinking: bool) -> str:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)


def _padded(tokenizer: Any, encoder: Any, texts: list[str], length: int) -> Any:
    """Rows of tokens, all of one length, where the encoder is."""
    rows = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return rows.to(encoder.device)
