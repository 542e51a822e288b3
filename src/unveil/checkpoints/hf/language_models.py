"""Prompts for networks that read the last layers of a language model, through transformers' own classes.

Facts: how diffusers' `ZImagePipeline`, `SanaPipeline`, `QwenImagePipeline`, `Lumina2Pipeline`,
`Flux2KleinPipeline` and `HunyuanVideo15Pipeline` encode prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    "Qwen2_5_VLTextModel",
    "Qwen3Model",
    "Qwen3ForCausalLM",
)
GLYPHS = 256  # tokens of HunyuanVideo 1.5's letters
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


def language_model_of(
    folder: PipelineFolder, read: ReadPrompts, dtype: torch.dtype, kinds: Sequence[str] = ENCODERS
) -> LanguageModelPrompts:
    """The prompts of a folder's text encoder and tokenizer; nothing but safetensors is read, and no code is run.

    Raises:
        UnsupportedFormat: A class of encoder that is not known.
        WeightsError: A component that is missing or damaged.
        RecipeError: Transformers is not installed.
    """
    return LanguageModelPrompts(*_open(folder, "", kinds, dtype), read)


def two_models_of(folder: PipelineFolder, read: ReadPrompts, dtype: torch.dtype) -> LanguageModelPrompts:
    """The prompts of a folder whose second text encoder, a T5, reads letters; errors are those of `language_model_of`.

    Args:
        read: Function of both tokenizers and both encoders.
    """
    pairs = [_open(folder, "", ENCODERS, dtype), _open(folder, "_2", ("T5EncoderModel",), dtype)]
    tokenizers, encoders = zip(*pairs, strict=True)
    return LanguageModelPrompts(tokenizers, nn.ModuleList(encoders), read)


def _open(folder: PipelineFolder, end: str, kinds: Sequence[str], dtype: torch.dtype) -> tuple[Any, Any]:
    """A tokenizer and a text encoder of transformers, whose names in the folder end so."""
    name = f"text_encoder{end}"
    place = folder.place(name)
    kind = (read_json(place / "config.json").get("architectures") or [folder.index[name][1]])[0]
    if kind not in kinds:
        raise UnsupportedFormat(f"{place}: a {kind}; of a {folder.kind} it must be one of {', '.join(kinds)}")
    folder.tensors(name)  # answers what is missing or a pickle
    library: Any = import_extra("transformers", f"a {folder.kind}")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = library.AutoTokenizer.from_pretrained(folder.place(f"tokenizer{end}"), **local)
    encoder = getattr(library, kind).from_pretrained(place, dtype=dtype, use_safetensors=True, **local)
    return tokenizer, encoder.eval()


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


def hunyuan_prompts(instruction: str, first: int, length: int = 1000, letters: int = GLYPHS) -> ReadPrompts:
    """Letters in quotes by T5, then the third layer from the end of Qwen 2.5 VL after an instruction.

    Tokens are as wide as the wider of the two; the first `letters` of them are those of the quotes.
    """

    def read(tokenizers: Any, encoders: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        del none
        chats = [
            [{"role": "system", "content": instruction}, {"role": "user", "content": text or " "}] for text in texts
        ]
        rows = (
            tokenizers[0]
            .apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                padding="max_length",
                max_length=length + first,
                truncation=True,
                return_tensors="pt",
            )
            .to(encoders[0].device)
        )
        states = encoders[0](
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
        ).hidden_states[-3][:, first:]
        used = rows.attention_mask[:, first:].bool()
        longest = int(used.sum(1).max())
        quotes = [_quoted(text) for text in texts]
        glyphs = _padded(tokenizers[1], encoders[1], quotes, letters)
        seen = glyphs.attention_mask.bool() & torch.tensor([[bool(quote)] for quote in quotes], device=used.device)
        shown = encoders[1](input_ids=glyphs.input_ids, attention_mask=glyphs.attention_mask.float())[0]
        width = max(shown.shape[2], states.shape[2])
        both = [functional.pad(part, (0, width - part.shape[2])) for part in (shown, states[:, :longest])]
        return torch.cat(both, dim=1), torch.cat([seen, used[:, :longest]], dim=1)

    return read


def _quoted(text: str) -> str:
    """What a prompt has in quotes, in the form that the encoder of letters was trained with; empty: nothing."""
    quotes = [plain or curly for plain, curly in re.findall(r"\"(.*?)\"|\u201c(.*?)\u201d", text)]
    return "".join(f'Text "{quote}". ' for quote in dict.fromkeys(quotes))


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
