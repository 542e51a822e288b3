"""Saving of models: the files of a saved model's folder, written whole or not at all.

    model.yaml  denoiser.safetensors  label.safetensors  autoencoder.safetensors  card.md  manifest.json

A text encoder's part is `prompt.safetensors`, with `prompt.tokenizer.json` where the vocabulary is its own, and
`prompt.vocabulary.json` where it is made of the training texts. What was trained as a LoRA on a base that stays as it
is has lora.safetensors in the place of weights, and base.json, which says what it is on; a ControlNet likewise has
control.safetensors. `unveil.model.model_folder` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError
from unveil.io.files import refuse_foreign
from unveil.io.safetensors_io import require_finite
from unveil.model import checkpoint_store
from unveil.model.base_model import BASE
from unveil.model.config import dump
from unveil.model.int8 import quantize
from unveil.model.model_card import card
from unveil.types import ADDITIONS

if TYPE_CHECKING:
    from unveil.model.model import Model

AUTOENCODER = "autoencoder.safetensors"


def weight_files(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that has some, by file name; of an autoencoder, those of the codec."""
    return {name: dict(part.state_dict()) for name, part in parts_of(model)}


def model_files(model: Model, *, about: str = "", small: bool = False) -> dict[str, checkpoint_store.Content]:
    """Everything that a saved model's folder holds, but for the manifest.

    Args:
        about: Markdown for the end of the card: how it was trained, how good it is.
        small: weights in eight bits, as `rounded` makes them.
    """
    if model.base is not None:
        what = ADDITIONS[model.base.what]
        on = f"These are only the weights of a {what} on `{model.base.name}` (sha256 {model.base.sha256[:12]})."
        about = f"{on}\n\n{about}"
    weights = {name: quantize(part) if small else part for name, part in weight_files(model).items()}
    files: dict[str, checkpoint_store.Content] = {**weights, "card.md": card(model, about)}
    for name, part in texts_of(model):
        files |= {f"{name}.{end}": content for end, content in part.files().items()}
    if model.config is not None:
        files["model.yaml"] = dump(model.config)
    if model.base is not None:
        files[BASE] = model.base._asdict()
    return files


def save_model(model: Model, folder: Path, *, force: bool = False, about: str = "", small: bool = False) -> Path:
    """Writes the model's folder, whole or not at all; returns it.

    Args:
        force: take the place of what is there.
        about, small: as `model_files` takes them.

    Raises:
        RecipeError: the model was not built from a config, so nobody could build it again from the folder.
        NonFinite: a weight is not finite.
        OutputError: something is there already, or the place cannot be written.
    """
    if model.source_folder is not None:
        raise RecipeError(
            f"this model is saved already: the folder {model.source_folder} itself is the model; copy that"
        )
    if model.config is None:
        raise RecipeError(
            "this model's network was not built from a recipe, so its folder could not be loaded by itself; "
            "keep its run folder, and load it with model_folder.load_weights into a model you build"
        )
    require_finite(dict(model.named_parameters()), "the model")
    if force:
        refuse_foreign(folder)
    checkpoint_store.save(folder, model_files(model, about=about, small=small), replace=force)
    return folder


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """File name and module of every part with tensors of its own; a module without `parts` is an autoencoder."""
    parts = getattr(model, "parts", None)
    if parts is None:
        yield AUTOENCODER, model
    else:
        yield from parts()


def texts_of(model: Model) -> Iterator[tuple[str, TextEncoder | LearnedTextEncoder]]:
    """The conditioners that may need a file beside their weights."""
    yield from (
        (name, part) for name, part in model.conditioners.items() if isinstance(part, TextEncoder | LearnedTextEncoder)
    )
