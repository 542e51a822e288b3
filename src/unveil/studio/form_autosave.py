"""What was typed and not asked for yet: the browser keeps it, so that a reload or a server's restart loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

LONGEST = 20_000  # letters of a field that are kept
_PLAIN = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Radio, gr.Dropdown)  # a file's place is not for ever


class Draft:
    """Keeps the values of fields in the browser, whenever a hand changes one.

    Args:
        key: by which the browser keeps them.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def lay(self) -> None:
        """Places what keeps them."""
        self.kept = gr.BrowserState({}, storage_key=f"unveil-{self._key}-typed", secret="unveil")

    def wire(self, fields: Mapping[str, Any]) -> None:
        """Lets each field that holds no file be kept; the server is not asked."""
        self._fields = fields
        plain = {name: part for name, part in fields.items() if isinstance(part, _PLAIN)}
        call = f"(...values) => Object.fromEntries({json.dumps([*plain])}.map((name, at) => [name, values[at]]))"
        for part in plain.values():
            part.input(
                None, [*plain.values()], [self.kept], js=call, queue=False, show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip

    def of(self, values: Sequence[Any]) -> dict[str, Any]:
        """What the browser is to keep of values of the fields."""
        named = zip(self._fields.items(), values, strict=True)
        return {name: value for (name, part), value in named if _fits(part, value)}

    def over(self, values: Sequence[Any], typed: Any) -> list[Any]:
        """Values of the fields, and over them what the browser has kept, as far as the fields take it."""
        known: Mapping[str, Any] = typed if isinstance(typed, Mapping) else {}
        named = zip(self._fields.items(), values, strict=True)
        return [
            known[name] if name in known and _fits(part, known[name]) else value for (name, part), value in named
        ]  # fmt: skip


def _fits(part: Any, value: Any) -> bool:
    """Whether a field takes a value, which may come from anywhere."""
    if isinstance(part, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(part, gr.Slider):
        return _is_number(value) and part.minimum <= value <= part.maximum
    if isinstance(part, gr.Number):
        return value is None or _is_number(value)
    if isinstance(part, gr.Radio):
        return value in [own for _, own in part.choices]
    return isinstance(part, _PLAIN) and isinstance(value, str) and len(value) <= LONGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
