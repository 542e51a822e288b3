"""Gradio components for images and videos that pass on uploaded files without decoding them.

Gradio's own components decode and convert every image in the server process before a handler runs, although a small
file may decode to hundreds of megabytes. They also convert videos by ffmpeg if installed, which may change frames.
These components pass on the files as uploaded; the upload store checks the header first.
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

from unveil.errors import RecipeError

LAYERS = 8  # maximum number of layers of a painting
PAINTED = 32  # paintings received but not yet taken by a handler


class _Plain(ComponentMeta):
    """Metaclass that writes no interface file beside the source, unlike Gradio's."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attrs)


class ImageUpload(gr.Image, metaclass=_Plain):
    """Image upload whose value is the path of the uploaded file."""

    is_template = True  # uses the front end of its base class

    def preprocess(self, payload: Any) -> str | None:
        """Return the path of the file; None without a file."""
        return None if payload is None else payload.path


class VideoUpload(gr.Video, metaclass=_Plain):
    """Video upload whose value is the path of the uploaded file, even if a browser cannot play it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """Return the path of the file; None without a file."""
        return None if payload is None else payload.path

    def postprocess(self, value: str | Path | None) -> FileData | None:
        """Show the file without conversion."""
        return None if value is None else FileData(path=str(value), orig_name=Path(value).name)


class MaskEditor(gr.ImageEditor, metaclass=_Plain):
    """Mask editor whose value are the paths of the painted layers."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Return the paths of the layers; the background is already known."""
        painting = payload if payload is None or payload.id is None else self.blob_storage.pop(payload.id, None)
        layers = [self._path(layer) for layer in (painting.layers if painting is not None else None) or () if layer]
        return {"background": None, "layers": layers, "composite": None}

    @server  # pyright: ignore[reportUntypedFunctionDecorator] - Gradio's own
    def accept_blobs(self, data: Any) -> Any:
        """Receive painted layers, up to the maximum numbers of layers and paintings.

        Raises:
            RecipeError: Too many layers, or not the form of a painted layer.
        """
        fields, files = getattr(data, "data", None), getattr(data, "files", None)
        if not isinstance(fields, dict) or not {"type", "index", "id"} <= fields.keys() or not files:
            raise RecipeError("the painting must have the fields type, index and id, and a file")
        index = str(fields["index"])  # from a form
        if index not in ("", "null", *map(str, range(LAYERS))):
            raise RecipeError(f"layer {index[:40]}: at most {LAYERS} layers are supported")
        while len(self.blob_storage) >= PAINTED and fields["id"] not in self.blob_storage:
            self.blob_storage.pop(next(iter(self.blob_storage)), None)
        return super().accept_blobs(data)

    def _path(self, layer: Any) -> str:
        return save_bytes_to_cache(layer, "layer.png", self.GRADIO_CACHE) if isinstance(layer, bytes) else layer.path
