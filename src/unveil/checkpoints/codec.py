"""Saved autoencoders: a folder of codec.yaml, codec.safetensors, card.md and the manifest; or a model's own codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from unveil.checkpoints import ours, store
from unveil.checkpoints.meta import Unfilled
from unveil.codec import Autoencoder
from unveil.config import ModelConfig, dump, read_yaml, validate
from unveil.config.codec import DESCRIBED, CodecModel, build_codec, section_of
from unveil.types import WeightsError

WEIGHTS = "codec.safetensors"


def codec_files(codec: Autoencoder, shape: Sequence[int], *, about: str = "") -> dict[str, store.Content]:
    """Everything that a saved autoencoder's folder holds, but for the manifest.

    Args:
        shape: of the pictures (C, H, W) that it was trained on.
        about: Markdown for the end of the card.
    """
    section = section_of(codec)
    latents = codec.latent_shape(tuple(shape))
    count = sum(parameter.numel() for parameter in codec.parameters())
    text = (
        f"# Autoencoder\n\nOf kind {section.kind}, {count:,} parameters: pictures of shape {tuple(shape)} to latents "
        f"of shape {latents} and back. It resembles the data it was trained on, with that data's gaps.\n"
    )
    described = CodecModel(shape=cast("tuple[int, int, int]", tuple(shape)), codec=section)
    return {
        DESCRIBED: dump(described),
        WEIGHTS: dict(codec.state_dict()),
        "card.md": text + (f"\n{about.strip()}\n" if about.strip() else ""),
    }


def save_codec(codec: Autoencoder, shape: Sequence[int], folder: Path, *, force: bool = False, about: str = "") -> Path:
    """Writes an autoencoder's folder, whole or not at all; returns it.

    Raises:
        NonFinite: a weight is not finite.
        NotWritable: something is there already, or the place cannot be written.
    """
    ours.require_finite(dict(codec.named_parameters()), "the autoencoder")
    store.save(folder, codec_files(codec, shape, about=about), replace=force)
    return folder


def load_codec(path: Path | str) -> Autoencoder:
    """The autoencoder of a folder: a saved one, a run's newest checkpoint, or a saved model's; in evaluation mode.

    Averaged weights where there are some, else those as trained; its parameters take no gradient.

    Raises:
        WeightsError: nothing there, damaged, without an autoencoder, or weights of another shape than described.
    """
    folder = ours.find(path)
    store.verify(folder)
    if (place := folder / DESCRIBED).is_file():
        config = validate(CodecModel, read_yaml(place.read_text("utf-8"), str(place)), str(place))
    elif (place := folder / "model.yaml").is_file():
        config = validate(ModelConfig, read_yaml(place.read_text("utf-8"), str(place)), str(place))
    else:
        raise WeightsError(f"{folder}: describes no autoencoder: there is neither {DESCRIBED} nor model.yaml")
    with Unfilled():
        codec = build_codec(config.codec, config.shape)
    if not isinstance(codec, Autoencoder):
        raise WeightsError(f"{folder}: a model of pixels, without an autoencoder; name the folder of one")
    ours.assign(codec, folder, WEIGHTS)
    return codec.requires_grad_(False).eval()
