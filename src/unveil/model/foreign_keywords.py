"""Keywords of former versions and of other programs' pipelines, for the errors of `Model.generate`."""

from __future__ import annotations

from collections.abc import Sequence

from unveil.errors import did_you_mean

# Former names of keywords
_FORMER_KEYWORDS = {
    "raw": "cond",
    "negative": "negative_cond",
    "scale": "guidance_scale",
    "grid": "schedule",
    "clip": "threshold",
    "first_sample": "start_index",
    "seen": "tile_size",
    "shift": "cond_grad",
    "change": "transform",
}
# Keywords of other programs' pipelines, and the keywords of `generate`
_FOREIGN_KEYWORDS = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "num_images": "count",
    "num_images_per_prompt": "count",
    "n": "count",
    "generator": "seed",
    "scheduler": "schedule",
    "class_labels": "label",
    "height": "size",
    "width": "size",
    "num_frames": "size",
    "frames": "size",
    "given": "cond",
}


def unknown_keyword(name: str, allowed: Sequence[str]) -> str:
    """Return the message about a keyword that `generate` does not have; it names the nearest of the allowed ones."""
    if name in _FORMER_KEYWORDS:
        return f"generate: {name} is the former name of {_FORMER_KEYWORDS[name]}; write {_FORMER_KEYWORDS[name]}"
    near = f"; nearest: {_FOREIGN_KEYWORDS[name]!r}" if name in _FOREIGN_KEYWORDS else did_you_mean(name, allowed)
    return f"generate: {name}: no such keyword{near}"
