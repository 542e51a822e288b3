"""Autosave of form fields in the browser, so that a reload or a restart of the server loses no input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

LONGEST = 20_000  # characters of a field that are saved
# fields and tasks by the names under which browsers may have saved them
FORMER_NAMES = {"mode": "task", "verb": "task", "guidance": "guidance_scale", "negative": "negative_prompt"}
FORMER_NAMES |= {"first": "start_index", "others": "sampling", "context": "context_frames", "form": "format"}
FORMER_NAMES |= {"before": "source_prompt", "fade": "prompt_crossfade"}
FORMER_TASKS = {"new": "sample", "make": "video-generate", "between": "video-interpolate", "connect": "video-join"}
FORMER_TASKS |= {"ring": "video-loop from a prompt"}
_PLAIN = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Radio, gr.Dropdown)  # not files: their paths expire


class FormAutosave:
    """Saves the values of fields in the browser whenever the user changes one.

    Args:
        key: Storage key in the browser.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def build(self) -> None:
        """Create the browser storage."""
        self.browser_state = gr.BrowserState({}, storage_key=f"unveil-{self._key}-typed", secret="unveil")

    def connect(self, fields: Mapping[str, Any]) -> None:
        """Save each field that holds no file when it changes, without calling the server."""
        self._fields = fields
        plain = {name: part for name, part in fields.items() if isinstance(part, _PLAIN)}
        call = f"(...values) => Object.fromEntries({json.dumps([*plain])}.map((name, at) => [name, values[at]]))"
        for part in plain.values():
            part.input(
                None, [*plain.values()], [self.browser_state], js=call, queue=False, show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip

    def storable(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the field values that the browser saves."""
        named = zip(self._fields.items(), values, strict=True)
        return {name: value for (name, part), value in named if _fits(part, value)}

    def merge(self, values: Sequence[Any], typed: Any) -> list[Any]:
        """Overlay field values with the saved ones that are valid for their fields."""
        former: Mapping[str, Any] = typed if isinstance(typed, Mapping) else {}
        saved = {FORMER_NAMES.get(name, name): value for name, value in former.items()}
        if isinstance(task := saved.get("task"), str) and "task" in self._fields:
            names = (task, FORMER_TASKS.get(task, task), f"video-{task}")
            saved["task"] = next((name for name in names if _fits(self._fields["task"], name)), task)
        named = zip(self._fields.items(), values, strict=True)
        return [
            saved[name] if name in saved and _fits(part, saved[name]) else value for (name, part), value in named
        ]  # fmt: skip


def _fits(part: Any, value: Any) -> bool:
    """Return True if a value from the browser is valid for a field."""
    if isinstance(part, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(part, gr.Slider):
        return _is_number(value) and part.minimum <= value <= part.maximum
    if isinstance(part, gr.Number):
        return value is None or _is_number(value)
    if isinstance(part, gr.Radio):
        return value in [choice for _, choice in part.choices]
    return isinstance(part, _PLAIN) and isinstance(value, str) and len(value) <= LONGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
