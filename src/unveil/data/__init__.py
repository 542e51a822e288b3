"""Data sets: map-style objects whose items are dicts with "pixels" uint8, or "latents", and what is known.

Pixels are (C, H, W), those of clips (3, T, H, W).
"""

from __future__ import annotations

from unveil.data.adapted import Adapted, adapt
from unveil.data.box_mask_encoding import boxes_to_state, mask_to_state, state_to_boxes, state_to_mask
from unveil.data.control_images import HINT, Hinted, HintedConfig
from unveil.data.digits import DigitsConfig, digits
from unveil.data.fashion_mnist import FashionConfig, fashion
from unveil.data.fashion_style import StyleConfig, in_style, styled
from unveil.data.folder_index import FolderConfig
from unveil.data.image_folder import Folder
from unveil.data.image_validation import check, usable
from unveil.data.latent_validation import LatentsReport, check_latents
from unveil.data.latents import LATENTS, Latents, LatentsConfig, write_latents
from unveil.data.registry import KINDS, MapDataset, open, register, register_wrapper, to_config
from unveil.data.report import Report
from unveil.data.scan_cache import Progress
from unveil.data.tensor_dataset import Part, Stored, known_part
from unveil.data.video_folder import Clips
from unveil.data.video_slicing import ClipsConfig
from unveil.data.video_validation import ClipsReport, check_clips, usable_clips

register("clips", ClipsConfig, Clips, has_images=False)
register("digits", DigitsConfig, lambda config, part: digits(part))
register("fashion", FashionConfig, fashion)
register("fashion-style", StyleConfig, styled)
register("folder", FolderConfig, Folder)
register("latents", LatentsConfig, Latents, has_images=False)
register_wrapper(HintedConfig, lambda config, part: Hinted(open(config.of, part), config.draw))

__all__ = [
    "HINT",
    "KINDS",
    "LATENTS",
    "Adapted",
    "Clips",
    "ClipsConfig",
    "ClipsReport",
    "DigitsConfig",
    "FashionConfig",
    "Folder",
    "FolderConfig",
    "Hinted",
    "HintedConfig",
    "Latents",
    "LatentsConfig",
    "LatentsReport",
    "MapDataset",
    "Part",
    "Progress",
    "Report",
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
    "register",
    "register_wrapper",
    "state_to_boxes",
    "state_to_mask",
    "styled",
    "to_config",
    "usable",
    "usable_clips",
    "write_latents",
]
