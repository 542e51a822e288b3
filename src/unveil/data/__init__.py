"""Data sets: map-style objects whose items are dicts with "pixels" uint8, or "latents", and what is known.

Pixels are (C, H, W), those of videos (3, T, H, W).
"""

from __future__ import annotations

from unveil.data.adapter import AdaptedDataset, adapt_dataset
from unveil.data.annotated_folder import AnnotatedFolder, AnnotatedFolderConfig
from unveil.data.box_mask_encoding import boxes_to_state, mask_to_state, state_to_boxes, state_to_mask
from unveil.data.control_images import HINT, ControlImageConfig, ControlImageDataset
from unveil.data.digits import DigitsConfig, digits
from unveil.data.fashion_mnist import FashionConfig, StyleConfig, apply_style, fashion, fashion_in_style
from unveil.data.folder_index import FolderConfig, Progress
from unveil.data.image_folder import ImageFolderDataset, check_images, check_images_or_raise
from unveil.data.latents import LATENTS, Latents, LatentsConfig, LatentsReport, check_latents, write_latents
from unveil.data.registry import MapDataset, data_kind, data_kinds, open, to_config
from unveil.data.report import FolderReport
from unveil.data.tensor_dataset import ImageTensorDataset, Split, check_split
from unveil.data.video_folder import (
    VideoDataset,
    VideoFolderConfig,
    VideoFolderReport,
    check_videos,
    check_videos_or_raise,
)

__all__ = [
    "HINT",
    "LATENTS",
    "AdaptedDataset",
    "AnnotatedFolder",
    "AnnotatedFolderConfig",
    "ControlImageConfig",
    "ControlImageDataset",
    "DigitsConfig",
    "FashionConfig",
    "FolderConfig",
    "FolderReport",
    "ImageFolderDataset",
    "ImageTensorDataset",
    "Latents",
    "LatentsConfig",
    "LatentsReport",
    "MapDataset",
    "Progress",
    "Split",
    "StyleConfig",
    "VideoDataset",
    "VideoFolderConfig",
    "VideoFolderReport",
    "adapt_dataset",
    "apply_style",
    "boxes_to_state",
    "check_images",
    "check_images_or_raise",
    "check_latents",
    "check_split",
    "check_videos",
    "check_videos_or_raise",
    "data_kind",
    "data_kinds",
    "digits",
    "fashion",
    "fashion_in_style",
    "mask_to_state",
    "open",
    "state_to_boxes",
    "state_to_mask",
    "to_config",
    "write_latents",
]
