"""What the models give, kept beside them; and `key.json`, which says where it was made."""

from __future__ import annotations

import json
import shutil

from safetensors.torch import save_file

from tests.former.command import FILES
from tests.former.environment import key
from tests.former.outputs import tensors, texts


def make_outputs() -> None:
    """Writes them down."""
    save_file(tensors(), FILES / "outputs.safetensors")
    written = {"key": key(), **texts("scratch")}
    shutil.rmtree(FILES / "scratch")
    (FILES / "outputs.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
