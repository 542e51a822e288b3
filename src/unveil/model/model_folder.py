"""Saved models: a folder of model.yaml, a safetensors file per part, card.md and the manifest.

    model.yaml  denoiser.safetensors  label.safetensors  autoencoder.safetensors  card.md  manifest.json

A text encoder's part is `prompt.safetensors`, with `prompt.tokenizer.json` where the vocabulary is its own, and
`prompt.vocabulary.json` where it is made of the training texts. What was trained as a LoRA on a base that stays as it
is has lora.safetensors in the place of weights, and base.json, which says what it is on; a ControlNet likewise has
control.safetensors.

A training checkpoint is the same folder with the weights as trained, the averaged ones in `ema/`, and what
training needs to go on. Whoever loads it to sample gets the averaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.errors import WeightsError, did_you_mean
from unveil.io.safetensors_io import SHOWN, read_header, read_tensors
from unveil.model import checkpoint_store, model_dir, model_identity
from unveil.model.assembly import assemble
from unveil.model.base_model import base_of
from unveil.model.config import AutoencoderConfig, ModelConfig, read_yaml, validate
from unveil.model.int8 import dequantize, is_scale
from unveil.model.model import Model
from unveil.model.model_saving import AUTOENCODER, parts_of, texts_of
from unveil.nn.meta_device import EmptyParameters
from unveil.types import ADDITIONS

if TYPE_CHECKING:
    from unveil.io.safetensors_io import Header

# "ema": the running average where there is one; "trained": the weights that the optimiser moves.
Which = Literal["ema", "trained"]

STEERS = "give it beside the model that it is for: unveil sample MODEL --controlnet FILE=IMAGE"
WHOLE_PART = "a part of a model, which makes no pictures by itself; give the whole folder or file that it is from"
BUNDLED = "assets/models"  # the package's folder of bundled models
FORMER_AUTOENCODER = "codec.safetensors"  # former file name of the autoencoder's weights


# ---------------------------------------------------------------------- loading


def load_model(path: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Model:
    """The model in a folder (a saved one, a checkpoint, a run), or a shipped one by its name; in evaluation mode.

    Every file is checked against its sha256, then mapped into memory: pages are read when they are first used.

    Args:
        dtype: floating-point weights of another type are converted; None keeps the file's.

    Raises:
        WeightsError: nothing there, damaged, or weights of another shape than model.yaml says (lists the keys).
    """
    folder = resolve_checkpoint(path)
    checkpoint_store.verify(folder)
    if (base := base_of(folder)) is not None:
        option = f"--lora {path}" if base.what == "lora" else f"--controlnet {path}=IMAGE"
        raise WeightsError(
            f"{folder}: holds a {ADDITIONS[base.what]} on {base.name!r}, not a whole model; "
            f"unveil sample {base.path} {option}"
        )
    described = folder / "model.yaml"
    if not described.is_file():
        raise WeightsError(
            f"{folder}: holds the weights of a network that was not built from a recipe; build your model, "
            "then call model_folder.load_weights(model, path)"
        )
    raw = read_yaml(described.read_text("utf-8"), str(described))
    if _is_autoencoder(raw):
        raise WeightsError(
            f"{folder}: an autoencoder, which generates no images by itself; name it in the recipe of a diffusion "
            "model: autoencoder: {kind: saved, path: ...}"
        )
    config = validate(ModelConfig, raw, str(described))
    with EmptyParameters():
        model = assemble(config, load_latent_autoencoder)
    _assign(model, folder, "ema", dtype)
    _take_files(model, folder)
    return model.eval()


def load_autoencoder(path: Path | str) -> tuple[AutoencoderConfig, AutoencoderKL | VQModel]:
    """The autoencoder in a folder (a saved one, a checkpoint, a run) with its averaged weights, frozen.

    Raises:
        WeightsError: nothing there, damaged, no autoencoder, or weights of another shape than model.yaml says.
    """
    folder = resolve_checkpoint(path)
    checkpoint_store.verify(folder)
    described = folder / "model.yaml"
    raw = read_yaml(described.read_text("utf-8"), str(described)) if described.is_file() else None
    if not _is_autoencoder(raw):
        raise WeightsError(f"{folder}: holds no autoencoder; name the run of one, such as that of ae-fashion")
    config = validate(AutoencoderConfig, raw, str(described))
    with EmptyParameters():
        autoencoder = config.build()
    _assign(autoencoder, folder, "ema", torch.float32)
    return config, autoencoder.eval().requires_grad_(False)


def load_latent_autoencoder(path: Path | str) -> AutoencoderKL | VQModel:
    """Load the autoencoder of a folder, frozen: a saved autoencoder, or that of a latent diffusion model.

    Raises:
        WeightsError: As `load_autoencoder` and `load_model`, or a model of pixels.
    """
    described = resolve_checkpoint(path) / "model.yaml"
    if described.is_file() and _is_autoencoder(read_yaml(described.read_text("utf-8"), str(described))):
        return load_autoencoder(path)[1]
    autoencoder = load_model(path).autoencoder
    if not isinstance(autoencoder, AutoencoderKL | VQModel):
        raise WeightsError(f"{path}: a model of pixels, without an autoencoder; name the folder of one")
    return autoencoder


def load_weights(model: Model, path: Path | str, *, which: Which = "ema") -> Model:
    """Copies the weights of a folder into a model that is built already; returns it.

    Raises:
        WeightsError: nothing there, damaged, or weights of another shape than the model's (lists the keys).
    """
    folder = resolve_checkpoint(path)
    checkpoint_store.verify(folder)
    load_into(model, folder, which)
    return model


def load_into(model: nn.Module, folder: Path, which: Which) -> None:
    """The same for a folder that has been verified.

    Raises:
        WeightsError: weights of another shape than the model's (lists the keys), or an addition to another base.
    """
    told, base = base_of(folder), model.base if isinstance(model, Model) else None
    if told is not None and base is not None and not model_identity.is_same(told.sha256, base.sha256):
        raise WeightsError(
            f"{folder}: its {ADDITIONS[told.what]} is on {told.name!r} (sha256 {told.sha256[:12]}...), the base here "
            f"is {base.name!r} ({base.sha256[:12]}...); give that one as base, or start a new run"
        )
    for name, part in parts_of(model):
        tensors = dequantize(read_tensors(weights_of(folder, name, which)))
        check_keys(folder / name, part, tensors)
        part.load_state_dict(tensors)
    if isinstance(model, Model):
        _take_files(model, folder)


def resolve_checkpoint(path: Path | str) -> Path:
    """The folder with a manifest that a path stands for: itself, or the newest valid checkpoint of a run.

    Raises:
        WeightsError: there is none.
    """
    given, path = str(path), Path(path)
    if not path.exists():
        shipped = Path(str(resources.files("unveil"))) / BUNDLED
        names = sorted(entry.name for entry in shipped.iterdir()) if shipped.is_dir() else []
        if given in names:
            return shipped / given
        known = f"; bundled: {', '.join(names)}" if names else ""
        there = [one.name for one in model_dir.entries("checkpoints")]
        raise WeightsError(
            f"{given}: no such folder or bundled model{did_you_mean(given, [*names, *there])}{known}; nothing is "
            "downloaded, so give the path of a local folder or file"
        )
    if path.is_file():
        read_header(path)  # a pickle or a broken file is named as that
        raise WeightsError(
            f"{given}: a file of weights; give the folder with its {checkpoint_store.MANIFEST}, or convert it first"
        )
    if (path / checkpoint_store.MANIFEST).is_file():
        return path
    for parent in (path / "checkpoints", path):
        newest = checkpoint_store.latest_valid(parent)
        if newest is not None:
            return newest
    if (name := _diffusers_class(path)) is not None:
        how = STEERS if "ControlNet" in str(name) else WHOLE_PART
        raise WeightsError(f"{given}: a folder of diffusers' {name}: {how}")
    raise WeightsError(
        f"{given}: neither a saved model nor a run with a valid checkpoint; it has no {checkpoint_store.MANIFEST}"
    )


def summary(headers: Mapping[str, Header]) -> dict[str, Any]:
    """Parameters, bytes and files of weights, from their headers by file name."""
    weights = [h for name, h in headers.items() if "train_state" not in name and not name.startswith("ema/")]
    return {
        "parameters": sum(t.size for h in weights for key, t in h.tensors.items() if not is_scale(key, h.tensors)),
        "bytes": sum(t.stop - t.start for header in headers.values() for t in header.tensors.values()),
        "files": {
            name: {
                "metadata": header.metadata,
                "tensors": {key: {"dtype": t.dtype, "shape": list(t.shape)} for key, t in header.tensors.items()},
            }
            for name, header in headers.items()
        },
    }


# ---------------------------------------------------------------------- details


def _take_files(model: Model, folder: Path) -> None:
    """Gives conditioners what a folder holds of them beside their weights."""
    for name, part in texts_of(model):
        beside = [path for path in folder.glob(f"{name}.*") if path.suffix != ".safetensors"]
        part.take_files({path.name.removeprefix(f"{name}."): path.read_text("utf-8") for path in beside})


def _diffusers_class(path: Path) -> str | None:
    """The class that a folder's config.json names, as diffusers writes it."""
    if not (path / "config.json").is_file():
        return None
    return checkpoint_store.read_json(path / "config.json").get("_class_name")


def weights_of(folder: Path, name: str, which: Which) -> Path:
    """File of a part in a verified folder: its EMA weights ("ema") if the folder has some, or the "trained" ones."""
    if name == AUTOENCODER and not (folder / name).is_file():
        name = FORMER_AUTOENCODER
    averaged = folder / "ema" / name
    return averaged if which == "ema" and averaged.is_file() else folder / name


def _assign(model: nn.Module, folder: Path, which: Which, dtype: torch.dtype | None) -> None:
    for name, part in parts_of(model):
        tensors = dequantize(read_tensors(weights_of(folder, name, which)))
        check_keys(folder / name, part, tensors)
        if dtype is not None:
            tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        trained = {key: parameter.requires_grad for key, parameter in part.named_parameters()}
        part.load_state_dict(tensors, assign=True)
        for key, parameter in part.named_parameters():
            parameter.requires_grad_(trained[key])


def check_keys(path: Path, part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError that lists what does not fit, unless a part takes just these tensors."""
    expected = {key: tuple(value.shape) for key, value in part.state_dict().items()}
    faults = [f"{key}: missing" for key in expected if key not in tensors]
    faults += [f"{key}: not a part of this network" for key in tensors if key not in expected]
    faults += [
        f"{key}: {tuple(tensors[key].shape)} in the file, {shape} in the network"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        listed = "\n  ".join([*faults[:SHOWN], *more])
        raise WeightsError(
            f"{path}: {len(faults)} keys do not fit the network:\n  {listed}\n"
            "use the model.yaml that the weights were saved with"
        )


def _is_autoencoder(raw: object) -> bool:
    """Whether a model.yaml describes one."""
    return isinstance(raw, dict) and raw.get("kind") == "autoencoder"
