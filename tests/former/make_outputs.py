"""What the models give, kept beside them, and where it was made."""

from __future__ import annotations

import json

from safetensors.torch import save_file

from tests.former.command import FILES
from tests.former.environment import key
from tests.former.outputs import tensors, texts


def make_outputs() -> None:
    """Writes them down."""
    save_file(tensors(FILES), FILES / "outputs.safetensors")
    written = {"key": key(), **texts(FILES)}
    (FILES / "outputs.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
