"""Prompts of HunyuanVideo: tokens of a LLaMA after a template, and the pooled vector of a CLIP.

Facts: how diffusers' `HunyuanVideoPipeline` encodes prompts; Kong et al. 2024, section 4.3 (arXiv:2412.03603).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.checkpoints.hf.components import encoder_of
from unveil.checkpoints.hf.language_models import LanguageModelPrompts, ReadPrompts, language_model_of
from unveil.checkpoints.hf.pipeline_folder import PipelineFolder
from unveil.conditioning.prompt_weighting import texts_of
from unveil.conditioning.text_encoder import TextEncoder
from unveil.io.optional_deps import import_extra
from unveil.types import Condition

LLAMA = ("LlamaModel", "LlamaForCausalLM")  # classes of transformers that are run; all others are refused
CLIP_TOKENS = 77
LAYER = -3  # of the hidden states: the last two layers are left out


class HunyuanPrompts(nn.Module):
    """Prompts as tokens with a mask, and a vector.

    Args:
        language: Prompts of the language model.
        pooled: Text encoder whose output is a vector.
        precision: Precision of the products of `pooled`; its output is float32.
        extra_dims: Numbers at the end of the vector that are left zero, for others to fill.
        key: Key of the item that holds the text.
    """

    drop = 0.1  # published models were trained with dropped prompts, each at its own rate

    def __init__(
        self,
        language: LanguageModelPrompts,
        pooled: TextEncoder,
        *,
        precision: torch.dtype = torch.float32,
        extra_dims: int = 0,
        key: str = "prompt",
    ) -> None:
        super().__init__()
        self.language, self.pooled = language, pooled.requires_grad_(False)
        self.precision, self.extra_dims, self.key = precision, extra_dims, key

    @torch.no_grad()
    def encode(self, raw: Sequence[str]) -> Condition:
        """Condition of B prompts: tokens (B, L, D), a mask (B, L), and a vector (B, P + extra_dims).

        Raises:
            RecipeError: The value is not a list of texts.
        """
        texts = texts_of(self.key, raw)
        device = next(self.pooled.parameters()).device
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            vector = self.pooled.condition(self.pooled.tokenize(texts)).vector
        assert vector is not None  # the encoder gives a vector
        return replace(self.language.encode(texts), vector=functional.pad(vector.float(), (0, self.extra_dims)))

    def null(self, batch: int) -> Condition:
        """Null condition: the empty prompt in the template, `batch` times."""
        return self.encode([""]).map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))


def llama_prompts(template: str, first: int, length: int = 256) -> ReadPrompts:
    """A layer of LLaMA at a template with the prompt, without the first tokens of the template."""

    def read(tokenizer: Any, encoder: Any, texts: list[str], none: bool) -> tuple[Tensor, Tensor]:
        del none
        prompts = [template.format(text) for text in texts]
        rows = tokenizer(
            prompts, padding="max_length", max_length=length + first, truncation=True, return_tensors="pt"
        ).to(encoder.device)
        states = encoder(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
        ).hidden_states[LAYER]
        return states[:, first:], rows.attention_mask[:, first:]

    return read


def hunyuan_prompts_of(folder: PipelineFolder, dtype: torch.dtype, extra_dims: int) -> HunyuanPrompts:
    """The prompts of the two text encoders of a folder, with the template of diffusers' pipeline.

    Args:
        folder: Folder of a `HunyuanVideoPipeline`.
        dtype: Type of the encoders' weights.
        extra_dims: Numbers at the end of the vector that are left zero, for others to fill.

    Raises:
        UnsupportedFormat: The language model is of another class than LLaMA.
        WeightsError: A component is missing or damaged.
        RecipeError: Transformers or diffusers is not installed.
    """
    library: Any = import_extra("diffusers", f"a {folder.kind}")
    parameters = inspect.signature(library.HunyuanVideoPipeline.encode_prompt).parameters
    template: dict[str, Any] = parameters["prompt_template"].default
    read = llama_prompts(str(template["template"]), int(template["crop_start"]))
    language = language_model_of(folder, read, dtype, LLAMA)
    pooled, precision = encoder_of(folder, 2, "vector", dtype, CLIP_TOKENS)
    return HunyuanPrompts(language, pooled, precision=precision, extra_dims=extra_dims)
