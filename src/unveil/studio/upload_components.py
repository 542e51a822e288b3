"""Pictures and clips that a browser sends, of which Gradio decodes nothing.

Its own parts open and convert every picture in the server before a handler is asked, and a small file may be a
picture of hundreds of megabytes; clips that they show they give to ffmpeg, where that is installed, which may make
other frames of them. These give the files as they were sent: who keeps one weighs its header first.
"""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.components.base import server
from gradio.data_classes import FileData
from gradio.processing_utils import save_bytes_to_cache

from unveil.types import RecipeError

LAYERS = 8  # of what is painted
PAINTED = 32  # paintings that were sent and that no handler has taken yet


class _Plain(ComponentMeta):
    """Makes a part as Gradio does, but writes no file of its interface beside the source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attrs)


class Still(gr.Image, metaclass=_Plain):
    """A picture, given as the file that was sent."""

    is_template = True  # is shown as what it is made of

    def preprocess(self, payload: Any) -> str | None:
        """The file's path; None: there is none."""
        return None if payload is None else payload.path


class Film(gr.Video, metaclass=_Plain):
    """A clip, given and shown as the file that it is; one that a browser cannot play is not seen, and is the same."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """The file's path; None: there is none."""
        return None if payload is None else payload.path

    def postprocess(self, value: str | Path | None) -> FileData | None:
        """The file as it is."""
        return None if value is None else FileData(path=str(value), orig_name=Path(value).name)


class Brush(gr.ImageEditor, metaclass=_Plain):
    """A picture that is painted over, given as the layers of what was painted."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The layers' paths, the picture below them being known."""
        found = payload if payload is None or payload.id is None else self.blob_storage.pop(payload.id, None)
        layers = [self._path(layer) for layer in (found.layers if found is not None else None) or () if layer]
        return {"background": None, "layers": layers, "composite": None}

    @server  # pyright: ignore[reportUntypedFunctionDecorator] - Gradio's own
    def accept_blobs(self, data: Any) -> Any:
        """Takes what was painted, of so many layers and paintings at most.

        Raises:
            RecipeError: a layer beyond the last.
        """
        index = data.data["index"]  # of words, since it comes in a form
        if index and index != "null" and int(index) not in range(LAYERS):
            raise RecipeError(f"layer {index}: there are {LAYERS} at most")
        while len(self.blob_storage) >= PAINTED and data.data["id"] not in self.blob_storage:
            self.blob_storage.pop(next(iter(self.blob_storage)), None)
        return super().accept_blobs(data)

    def _path(self, layer: Any) -> str:
        return save_bytes_to_cache(layer, "layer.png", self.GRADIO_CACHE) if isinstance(layer, bytes) else layer.path
