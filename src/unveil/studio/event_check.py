"""Checks of events that browsers send: a wrong event is one error for its sender, without a traceback in the log.

Gradio passes the values of an event to the handlers as they come, and prints a traceback for each that it refuses
itself. Errors of handlers are not touched here: `Tab.on` shows them, and logs those that are bugs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import HTTPException, Request
from gradio.blocks_events import BlocksMeta
from gradio.exceptions import InvalidPathError
from gradio.utils import get_upload_folder
from pydantic import ValidationError

from unveil.errors import Error
from unveil.studio.file_access import nested
from unveil.studio.i18n import Translator

MAX_TEXT = 100_000  # characters of a text field
MAX_NUMBER = 2**63  # what the database and PyTorch hold
MAX_SESSION = 100  # characters of a session's name
JOIN, COMPONENT_SERVER = "/queue/join", "/component_server"
# Routes of Gradio to which the page posts. Others, such as /run and /call, serve programs, which have the HTTP API.
POSTED = (JOIN, COMPONENT_SERVER, "/upload", "/cancel", "/reset")


class _Plain(BlocksMeta):
    """Metaclass that writes no interface file beside the source, unlike Gradio's."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        return type.__new__(cls, name, bases, attrs)


class CheckedBlocks(gr.Blocks, metaclass=_Plain):
    """Gradio page that checks the values of an event before the components read them.

    Args:
        tr: Translator of the page.
        options: Further arguments of the page of Gradio.
    """

    def __init__(self, tr: Translator, **options: Any) -> None:
        super().__init__(**options)
        self._tr = tr

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Return the values for the handler.

        Raises:
            gr.Error: A value does not fit its component. It is shown to the sender, and is not logged.
        """
        parts = block_fn.inputs
        if len(inputs) != len(parts):
            count, expected = len(inputs), len(parts)
            raise _refused(
                self._tr("The event has {count} values instead of {expected}.", count=count, expected=expected)
            )
        for part, value in zip(parts, inputs, strict=True):
            latest = state[part._id] if state is not None and part._id in state else part
            if not part.stateful and (problem := value_problem(latest, value, self._tr)):
                raise _refused(problem)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:  # Gradio's own, such as a number out of range; other exceptions come from bugs
            error.print_exception = False
            raise
        except InvalidPathError as error:
            raise _refused(self._tr("The event names a file that this page did not upload.")) from error


def value_problem(part: Any, value: Any, tr: Translator) -> str:
    """Return why a value from a browser does not fit its component; empty if it fits.

    Args:
        part: The component, with its current choices.
        value: Parsed JSON.
        tr: Translator of the page.
    """
    what = part.label or part.elem_id or type(part).__name__
    is_file = isinstance(part, gr.File | gr.Image | gr.Video | gr.ImageEditor)
    match part:
        case gr.Textbox() if value is not None and not (isinstance(value, str) and len(value) <= MAX_TEXT):
            return tr("{what}: must be a text of at most {most} characters.", what=what, most=MAX_TEXT)
        case gr.Slider() if not _is_number(value):
            return tr("{what}: must be a number.", what=what)
        case gr.Number() if value is not None and not _is_number(value):
            return tr("{what}: must be a number.", what=what)
        case gr.Checkbox() if not isinstance(value, bool):
            return tr("{what}: must be true or false.", what=what)
        case gr.Radio() | gr.Dropdown() | gr.CheckboxGroup() if not _is_choice(part, value):
            return tr("{what}: must be one of the choices.", what=what)
        case gr.BrowserState() if not isinstance(value, dict | None):
            return tr("{what}: must be an object.", what=what)
        case _ if not all(map(_is_uploaded, nested(value))) or (is_file and not _is_upload(part, value)):
            return tr("{what}: must be a file that this page uploaded.", what=what)
        case _:
            return ""


async def check_event(request: Request) -> AsyncIterator[None]:
    """Refuse requests to Gradio's routes that it would answer by an exception; a dependency of all its routes.

    Raises:
        fastapi.HTTPException: Status 404 for a route or an event that the page lacks, 422 for a malformed event.
    """
    route = request.url.path.rpartition("/gradio_api")[2].rstrip("/")
    if request.method == "POST" and route not in POSTED:
        raise HTTPException(404, "The page has no such route; programs use the HTTP API.")
    if route == JOIN:
        _check_joined(request.app.get_blocks(), await request.json())
    try:
        yield
    except (KeyError, ValidationError, Error) as error:
        if route != COMPONENT_SERVER:
            raise
        # a field that is missing or of a wrong type, a component that does not exist, or a layer too many
        raise HTTPException(422, str(error) if isinstance(error, Error) else "The painting is malformed.") from error


def _check_joined(blocks: gr.Blocks, event: Any) -> None:
    """Check the parts of an event other than the values of components.

    Raises:
        fastapi.HTTPException: As `check_event`.
    """
    if not isinstance(event, dict):
        raise HTTPException(422, "The event must be an object.")
    session, number = event.get("session_hash"), event.get("fn_index")
    if not isinstance(session, str) or not 0 < len(session) <= MAX_SESSION:
        raise HTTPException(422, f"session_hash: must be a text of 1 to {MAX_SESSION} characters.")
    if not isinstance(number, int) or isinstance(number, bool):
        raise HTTPException(422, "fn_index: must be an integer.")
    if not all(map(_is_plain, nested(event))):
        raise HTTPException(422, "The event contains an infinite or too large number, or a text that is not Unicode.")
    if number not in blocks.state_holder[session].blocks_config.fns:
        raise HTTPException(404, "fn_index: the page has no such event; reload it.")


def _refused(message: str) -> gr.Error:
    return gr.Error(str(message), print_exception=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _is_plain(value: Any) -> bool:
    """Return True if a number is finite and bounded, and a text is Unicode without null characters."""
    if isinstance(value, str):
        return "\0" not in value and value.encode("utf-8", "replace").decode() == value
    return not isinstance(value, int | float) or isinstance(value, bool) or _is_number(value)


def _is_choice(part: Any, value: Any) -> bool:
    """Return True for a choice, or a list of choices; None only for a list in which nothing may be chosen."""
    if isinstance(part, gr.CheckboxGroup) or getattr(part, "multiselect", False):
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not isinstance(value, list | None):
            return False
    else:
        values = [] if value is None and not (isinstance(part, gr.Radio) and part.value is not None) else [value]
    choices = [choice for _, choice in part.choices]
    is_free = getattr(part, "allow_custom_value", False)
    return all(item in choices or (is_free and isinstance(item, str) and len(item) <= MAX_TEXT) for item in values)


def _is_upload(part: Any, value: Any) -> bool:
    """Return True if a value has the form that a component of files reads, or is None."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    try:
        part.data_model.model_validate(value, context={"validate_meta": True})
    except ValidationError:
        return False
    return True


def _is_uploaded(value: Any) -> bool:
    """Return True unless Gradio would read a value as a file that is not one of its temporary files."""
    if not isinstance(value, dict) or not {"path", "meta"} <= value.keys():
        return True
    if not isinstance(value["meta"], dict):
        return False
    path = value["path"]
    if not isinstance(path, str):
        return path is None
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(get_upload_folder())) and os.path.isfile(real)
