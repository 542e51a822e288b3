"""A causal language model of transformers, from a local folder."""

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
    """Goes on with a conversation by its likeliest tokens, so that the same prompt is always answered alike.

    A model without a chat template is shown the conversation as plain text, a turn a line, and answers with a line.

    Args:
        folder: Model folder as written by transformers: config.json, safetensors, a tokenizer. No code in it is run.
        device: Device of the model. dtype: Type of its weights.

    Raises:
        WeightsError: no such model there, or a folder that wants code or a pickle to be run.
        RecipeError: transformers is not installed.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no config.json; give the folder of a causal language model of transformers")
        check_folder(folder)
        transformers: Any = import_extra("transformers", WHAT)
        how = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **how)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, **how, use_safetensors=True, dtype=dtype
            )
        except Exception as problem:  # whatever a damaged folder makes a library raise that reads every kind
            raise WeightsError(
                f"{folder}: cannot be opened as a causal language model ({first_line(problem)})"
            ) from problem
        self._model = model.to(device).eval()
        self.name, self.cost = folder.name, ""

    def __call__(self, turns: Sequence[ChatMessage]) -> str:
        """The likeliest answer.

        Raises:
            NoAnswer: it stops at once, the conversation is longer than it reads, its template refuses it, or it fails.
        """
        try:
            return self._answer(turns)
        except NoAnswer:
            raise
        except Exception as problem:  # code of many hands: whatever it raises is of this conversation
            raise NoAnswer(f"it fails ({first_line(problem)})") from problem

    def _answer(self, turns: Sequence[ChatMessage]) -> str:
        tokens: Any = self._tokens(turns).to(self._model.device)
        count = tokens["input_ids"].shape[1]
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and count + 1 > longest:
            raise NoAnswer(f"the conversation has {count} tokens, it reads {longest}")
        most = MAX_TOKENS if longest is None else min(MAX_TOKENS, longest - count)
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        with torch.no_grad():
            generated = self._model.generate(**tokens, max_new_tokens=most, do_sample=False, pad_token_id=pad)
        text: str = self._tokenizer.decode(generated[0, count:], skip_special_tokens=True).strip()
        lines = text.splitlines()
        if not lines:
            raise NoAnswer("it answers nothing")
        return text if self._tokenizer.chat_template else lines[0]

    def _tokens(self, turns: Sequence[ChatMessage]) -> Any:
        if self._tokenizer.chat_template:
            refusal: Any = import_extra("jinja2", WHAT).TemplateError
            try:
                return self._templated(turns)
            except refusal:
                pass  # many templates have no system role
            try:
                return self._templated(_without_system(turns))
            except refusal as problem:
                raise NoAnswer(f"its chat template refuses the conversation ({first_line(problem)})") from problem
        marks = {"system": "", "user": "Short: ", "assistant": "Dense: "}
        lines = [f"{marks[turn.role]}{turn.text}" for turn in turns]
        encoded: Any = self._tokenizer("\n".join([*lines, "Dense:"]), return_tensors="pt")
        encoded.pop("token_type_ids", None)
        return encoded

    def _templated(self, turns: Sequence[ChatMessage]) -> Any:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )


def _without_system(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the same conversation with each system message prepended to the next user message."""
    merged: list[ChatMessage] = []
    before: list[str] = []
    for turn in turns:
        if turn.role == "system":
            before.append(turn.text)
        else:
            merged.append(ChatMessage(turn.role, "\n\n".join([*before, turn.text])))
            before = []
    return merged
