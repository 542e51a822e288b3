"""Causal language models of transformers in local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints.formats.text_encoder import check_folder
from unveil.errors import NoAnswer, WeightsError
from unveil.io.optional_deps import import_extra
from unveil.prompting.llm_rewrite import ChatMessage, first_line

WHAT = "a language model from a folder"
MAX_TOKENS = 256  # tokens of an answer


class LocalLanguageModel:
    """Language model in a local folder; it decodes greedily, so that a prompt always has the same answer.

    A model without a chat template gets the conversation as plain text with one message per line, and its answer is
    one line.

    Args:
        folder: Model folder as written by transformers: config.json, safetensors, and a tokenizer. Code in the folder
            is not run.
        device: Device of the model.
        dtype: Data type of the weights.

    Raises:
        WeightsError: The folder contains no such model, or needs code or a pickle to be run.
        RecipeError: Transformers is not installed.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no config.json; give the folder of a causal language model of transformers")
        check_folder(folder)
        transformers: Any = import_extra("transformers", WHAT)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, **options, use_safetensors=True, dtype=dtype
            )
        except Exception as problem:  # a library that reads any model may raise anything for a damaged folder
            raise WeightsError(
                f"{folder}: cannot be opened as a causal language model ({first_line(problem)})"
            ) from problem
        self._model = model.to(device).eval()
        self.name, self.cost = folder.name, ""

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        """Return the most likely answer.

        Raises:
            NoAnswer: The answer is empty, the conversation exceeds the context length, the chat template refuses it,
                or the model fails.
        """
        try:
            return self._answer(messages)
        except NoAnswer:
            raise
        except Exception as problem:  # a third-party model may raise anything; the error belongs to this conversation
            raise NoAnswer(f"the model fails ({first_line(problem)})") from problem

    def _answer(self, messages: Sequence[ChatMessage]) -> str:
        tokens: Any = self._tokens(messages).to(self._model.device)
        count = tokens["input_ids"].shape[1]
        context_length = getattr(self._model.config, "max_position_embeddings", None)
        if context_length is not None and count + 1 > context_length:
            raise NoAnswer(f"the conversation has {count} tokens, must have at most {context_length - 1}")
        max_tokens = MAX_TOKENS if context_length is None else min(MAX_TOKENS, context_length - count)
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        with torch.no_grad():
            generated = self._model.generate(**tokens, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad)
        text: str = self._tokenizer.decode(generated[0, count:], skip_special_tokens=True).strip()
        lines = text.splitlines()
        if not lines:
            raise NoAnswer("the answer is empty")
        return text if self._tokenizer.chat_template else lines[0]

    def _tokens(self, messages: Sequence[ChatMessage]) -> Any:
        if self._tokenizer.chat_template:
            refusal: Any = import_extra("jinja2", WHAT).TemplateError
            try:
                return self._apply_template(messages)
            except refusal:
                pass  # many chat templates have no system role
            try:
                return self._apply_template(_merge_system_messages(messages))
            except refusal as problem:
                raise NoAnswer(f"its chat template refuses the conversation ({first_line(problem)})") from problem
        prefixes = {"system": "", "user": "Short: ", "assistant": "Dense: "}
        lines = [f"{prefixes[message.role]}{message.text}" for message in messages]
        encoded: Any = self._tokenizer("\n".join([*lines, "Dense:"]), return_tensors="pt")
        encoded.pop("token_type_ids", None)
        return encoded

    def _apply_template(self, messages: Sequence[ChatMessage]) -> Any:
        conversation = [{"role": message.role, "content": message.text} for message in messages]
        return self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )


def _merge_system_messages(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the same conversation with each system message prepended to the next user message."""
    merged: list[ChatMessage] = []
    pending: list[str] = []
    for message in messages:
        if message.role == "system":
            pending.append(message.text)
        else:
            merged.append(ChatMessage(message.role, "\n\n".join([*pending, message.text])))
            pending = []
    return merged
