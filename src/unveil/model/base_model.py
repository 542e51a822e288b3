"""What a folder says of the model that its LoRA or its ControlNet was trained on."""

from __future__ import annotations

from pathlib import Path

from unveil.errors import WeightsError
from unveil.model import checkpoint_store
from unveil.types import ADDITIONS, BaseModel

BASE = "base.json"


def base_of(folder: Path) -> BaseModel | None:
    """What the LoRA or the ControlNet in a folder is on; None for a folder of whole weights.

    Raises:
        WeightsError: the file that says so is damaged.
    """
    if not (folder / BASE).is_file():
        return None
    try:
        base = BaseModel(**{name: str(value) for name, value in checkpoint_store.read_json(folder / BASE).items()})
        if base.what not in ADDITIONS:
            raise TypeError(f"what = {base.what!r}")
        return base
    except (TypeError, AttributeError) as problem:
        raise WeightsError(f"{folder / BASE}: damaged ({problem}); use another checkpoint") from problem
