"""`unveil convert`: weights of other projects to the native format, native ones to theirs, and between theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.checkpoints import conversion
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides
from unveil.checkpoints.registry import get_format
from unveil.cli.recipe_kind import diffusion
from unveil.errors import RecipeError, did_you_mean
from unveil.generation.generate import DTYPES
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.model import model_folder
from unveil.model.config import load_recipe, override, validate

INT8 = "int8"  # weights of native folders only, with the scale of each row


@dataclass(frozen=True)
class Layout:
    """The format that is not native, the recipe of the model in a published file, and the type that is written."""

    name: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        get_format(self.name)
        known = [*DTYPES, INT8]
        if self.dtype not in known:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(known)}{did_you_mean(self.dtype, known)}"
            )


def convert(source: Path, out: Path, layout: Layout, force: bool, console: Console) -> None:
    """Convert weights in the direction that the source determines, and print how many tensors were matched."""
    refuse_overwrite(out, force)
    for subfolder in ("checkpoints", "controlnets"):
        source = model_folder.resolve_name(source, subfolder)
    config, overrides = None, None
    if layout.recipe is None:
        overrides = _overrides(layout)
    else:
        config = diffusion(load_recipe(layout.recipe, layout.overrides), "unveil convert").model
    result = conversion.convert(
        source,
        out,
        layout.name,
        config=config,
        overrides=overrides,
        dtype=DTYPES.get(layout.dtype, DTYPES["float32"]),
        int8=layout.dtype == INT8,
    )
    facts: dict[str, Any] = {
        "source": str(source),
        "out": str(out),
        "layout": layout.name,
        "part": result.part,
        "matched": result.matched,
        "unmatched": len(result.unused),
    }
    facts["unmatched_keys"] = list(result.unused)
    if result.notes:
        facts["notes"] = list(result.notes)
    rest = f": {abbreviate(result.unused, 4)}" if result.unused else ""
    text = f"{out}: {result.matched} tensors matched, {len(result.unused)} unmatched, from {result.part}{rest}"
    console.result(facts, "\n".join([text, *result.notes]))


def _overrides(layout: Layout) -> ModelOverrides:
    """Return the settings that keys do not determine, from file.KEY=VALUE."""
    settings: dict[str, Any] = {}
    for change in layout.overrides:
        override(settings, change)
    overrides = validate(ModelOverrides, settings.pop("file", {}), "file")
    if settings:
        raise RecipeError(f"{next(iter(settings))}: a change of a recipe; give --recipe, or say file.KEY=VALUE")
    return overrides
