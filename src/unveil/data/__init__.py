"""Data sets: map-style objects whose items are dicts with "pixels" uint8, or "latents", and what is known.

Pixels are (C, H, W), those of clips (3, T, H, W).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

from unveil.data.adapted import Adapted, adapt
from unveil.data.control_images import HINT, Hinted, HintedConfig
from unveil.data.digits import DigitsConfig, digits
from unveil.data.fashion_mnist import FashionConfig, fashion
from unveil.data.fashion_style import StyleConfig, in_style, styled
from unveil.data.folder_index import FolderConfig
from unveil.data.image_folder import Folder
from unveil.data.image_validation import check, usable
from unveil.data.latent_validation import LatentsReport, check_latents
from unveil.data.latents import LATENTS, Latents, LatentsConfig, write_latents
from unveil.data.report import Report
from unveil.data.scan_cache import Progress
from unveil.data.tensor_dataset import Part, Stored, known_part
from unveil.data.video_folder import Clips
from unveil.data.video_slicing import ClipsConfig
from unveil.data.video_validation import ClipsReport, check_clips, usable_clips
from unveil.playground.box_mask_encoding import boxes_to_state, mask_to_state, state_to_boxes, state_to_mask
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.scenes import Scenes, ScenesConfig
from unveil.types import RecipeError, nearest

DataConfig = (
    ClipsConfig
    | DigitsConfig
    | FashionConfig
    | FolderConfig
    | LatentsConfig
    | PlaygroundConfig
    | ScenesConfig
    | HintedConfig
    | StyleConfig
)
DataSet = Stored | Folder | Clips | Latents | Playground | Scenes | Hinted
CONFIGS: dict[str, type[Any]] = {
    "clips": ClipsConfig,
    "digits": DigitsConfig,
    "fashion": FashionConfig,
    "fashion-style": StyleConfig,
    "folder": FolderConfig,
    "latents": LatentsConfig,
    "playground": PlaygroundConfig,
    "scenes": ScenesConfig,
}


class Section(Protocol):
    """The data section of a recipe: `kind`, and fields of the config of that kind."""

    @property
    def kind(self) -> str: ...


def open(config: DataConfig | Section, part: Part = "train") -> DataSet:
    """The data set that a config, or the data section of a recipe, describes.

    Args:
        config: one of the dataclasses here, or an object with `kind` and fields of the same names.
        part: "train", or "held-out" for what training never sees.

    Raises:
        RecipeError: an unknown kind or part.
        MediaError: the data are not there, or too much of them is damaged.
    """
    part = known_part(part)
    chosen = own(config)
    if isinstance(chosen, HintedConfig):
        return Hinted(open(chosen.of, part), chosen.draw)
    if isinstance(chosen, DigitsConfig):
        return digits(part)
    if isinstance(chosen, FashionConfig):
        return fashion(chosen, part)
    if isinstance(chosen, StyleConfig):
        return styled(chosen, part)
    if isinstance(chosen, FolderConfig):
        return Folder(chosen, part)
    if isinstance(chosen, ClipsConfig):
        return Clips(chosen, part)
    if isinstance(chosen, LatentsConfig):
        return Latents(chosen, part)
    if isinstance(chosen, PlaygroundConfig):
        return Playground(chosen, part)
    return Scenes(chosen, part)


def own(config: DataConfig | Section) -> DataConfig:
    """The dataclass of a recipe's data section; a dataclass of ours is returned as it is."""
    if isinstance(config, DataConfig):
        return config
    if config.kind not in CONFIGS:
        raise RecipeError(f"data kind {config.kind!r}: must be {', '.join(CONFIGS)}{nearest(config.kind, [*CONFIGS])}")
    made = CONFIGS[config.kind]
    return made(**{field.name: getattr(config, field.name) for field in fields(made) if hasattr(config, field.name)})


__all__ = [
    "CONFIGS",
    "HINT",
    "LATENTS",
    "Adapted",
    "Clips",
    "ClipsConfig",
    "ClipsReport",
    "DataConfig",
    "DigitsConfig",
    "FashionConfig",
    "Folder",
    "FolderConfig",
    "Hinted",
    "HintedConfig",
    "Latents",
    "LatentsConfig",
    "LatentsReport",
    "Part",
    "Playground",
    "PlaygroundConfig",
    "Progress",
    "Report",
    "Scenes",
    "ScenesConfig",
    "Stored",
    "StyleConfig",
    "adapt",
    "boxes_to_state",
    "check",
    "check_clips",
    "check_latents",
    "digits",
    "fashion",
    "in_style",
    "known_part",
    "mask_to_state",
    "open",
    "own",
    "state_to_boxes",
    "state_to_mask",
    "styled",
    "usable",
    "usable_clips",
    "write_latents",
]
