"""Saved models: a folder of model.yaml, a safetensors file per part, card.md and the manifest.

    model.yaml  denoiser.safetensors  label.safetensors  codec.safetensors  card.md  manifest.json

A text encoder's part is `prompt.safetensors`, with `prompt.tokenizer.json` where the vocabulary is its own, and
`prompt.vocabulary.json` where it is made of the training texts. What was trained as a LoRA on a base that stays as it
is has lora.safetensors in the place of weights, and base.json, which says what it is on; a ControlNet likewise has
control.safetensors.

A training checkpoint is the same folder with the weights as trained, the averaged ones in `ema/`, and what
training needs to go on. Whoever loads it to sample gets the averaged weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unveil.autoencoders import KL, VQ
from unveil.checkpoints import formats
from unveil.checkpoints.controlnet import TRAINED
from unveil.checkpoints.hf_files import read_json
from unveil.checkpoints.lora_state import LORA, Trained
from unveil.conditioning.learned_text_encoder import WordTokens
from unveil.conditioning.text_encoder import Text
from unveil.io.files import refuse_foreign
from unveil.io.safetensors_io import SHOWN, read_header, read_tensors, require_finite
from unveil.model import Model, build, checkpoint_store, model_dir
from unveil.model.base_model import BASE, base_of
from unveil.model.config import AutoencoderConfig, ModelConfig, dump, read_yaml, validate
from unveil.model.int8 import is_step, restored, rounded
from unveil.model.model_card import card
from unveil.nn.meta_device import Unfilled
from unveil.types import ADDITIONS, RecipeError, WeightsError, nearest

if TYPE_CHECKING:
    from unveil.io.safetensors_io import Header

# "ema": the running average where there is one; "trained": the weights that the optimiser moves.
Which = Literal["ema", "trained"]

CODEC = "codec.safetensors"
SHIPPED = "assets/models"  # the package's folder of models that come with it


# ---------------------------------------------------------------------- saving


def weight_files(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that has some, by file name; of an autoencoder, those of the codec."""
    return {name: dict(part.state_dict()) for name, part in _parts(model)}


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
    weights = {name: rounded(part) if small else part for name, part in weight_files(model).items()}
    files: dict[str, checkpoint_store.Content] = {**weights, "card.md": card(model, about)}
    for name, part in _texts(model):
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
        NotWritable: something is there already, or the place cannot be written.
    """
    if model.home is not None:
        raise RecipeError(f"this model is saved already: the folder {model.home} itself is the model; copy that")
    if model.config is None:
        raise RecipeError(
            "this model's network was not built from a recipe, so its folder could not be loaded by itself; "
            "keep its run folder, and load it with checkpoints.ours.load_weights into a model you build"
        )
    require_finite(dict(model.named_parameters()), "the model")
    if force:
        refuse_foreign(folder)
    checkpoint_store.save(folder, model_files(model, about=about, small=small), replace=force)
    return folder


# ---------------------------------------------------------------------- loading


def load_model(path: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Model:
    """The model in a folder (a saved one, a checkpoint, a run), or a shipped one by its name; in evaluation mode.

    Every file is checked against its sha256, then mapped into memory: pages are read when they are first used.

    Args:
        dtype: floating-point weights of another type are converted; None keeps the file's.

    Raises:
        WeightsError: nothing there, damaged, or weights of another shape than model.yaml says (lists the keys).
    """
    folder = find(path)
    checkpoint_store.verify(folder)
    if (base := base_of(folder)) is not None:
        option = f"--lora {path}" if base.what == "lora" else f"--control {path}=PICTURE"
        raise WeightsError(
            f"{folder}: holds a {ADDITIONS[base.what]} on {base.name!r}, not a whole model; "
            f"unveil sample {base.path} {option}"
        )
    described = folder / "model.yaml"
    if not described.is_file():
        raise WeightsError(
            f"{folder}: holds the weights of a network that was not built from a recipe; build your model, "
            "then call checkpoints.ours.load_weights(model, path)"
        )
    raw = read_yaml(described.read_text("utf-8"), str(described))
    if _is_autoencoder(raw):
        raise WeightsError(
            f"{folder}: an autoencoder, which makes no pictures by itself; name it as the codec of a diffusion model: "
            "codec: {kind: saved, path: ...}"
        )
    config = validate(ModelConfig, raw, str(described))
    with Unfilled():
        model = build(config)
    _assign(model, folder, "ema", dtype)
    _take_files(model, folder)
    return model.eval()


def load_autoencoder(path: Path | str) -> tuple[AutoencoderConfig, KL | VQ]:
    """The autoencoder in a folder (a saved one, a checkpoint, a run) with its averaged weights, frozen.

    Raises:
        WeightsError: nothing there, damaged, no autoencoder, or weights of another shape than model.yaml says.
    """
    folder = find(path)
    checkpoint_store.verify(folder)
    described = folder / "model.yaml"
    raw = read_yaml(described.read_text("utf-8"), str(described)) if described.is_file() else None
    if not _is_autoencoder(raw):
        raise WeightsError(f"{folder}: holds no autoencoder; name the run of one, such as that of ae-fashion")
    config = validate(AutoencoderConfig, raw, str(described))
    with Unfilled():
        codec = config.build()
    _assign(codec, folder, "ema", torch.float32)
    return config, codec.eval().requires_grad_(False)


def load_codec(path: Path | str) -> KL | VQ:
    """The codec in a folder: an autoencoder as `load_autoencoder` gives it, or the one that a model has, frozen.

    Raises:
        WeightsError: as `load_autoencoder` and `load_model`, or a model of pixels.
    """
    described = find(path) / "model.yaml"
    if described.is_file() and _is_autoencoder(read_yaml(described.read_text("utf-8"), str(described))):
        return load_autoencoder(path)[1]
    codec = load_model(path).codec
    if not isinstance(codec, KL | VQ):
        raise WeightsError(f"{path}: a model of pixels, without an autoencoder; name the folder of one")
    return codec


def load_weights(model: Model, path: Path | str, *, which: Which = "ema") -> Model:
    """Copies the weights of a folder into a model that is built already; returns it.

    Raises:
        WeightsError: nothing there, damaged, or weights of another shape than the model's (lists the keys).
    """
    folder = find(path)
    checkpoint_store.verify(folder)
    copy_weights(model, folder, which)
    return model


def copy_weights(model: nn.Module, folder: Path, which: Which) -> None:
    """The same for a folder that has been verified.

    Raises:
        WeightsError: weights of another shape than the model's (lists the keys), or an addition to another base.
    """
    told, base = base_of(folder), model.base if isinstance(model, Model) else None
    if told is not None and base is not None and told.sha256 != base.sha256:
        raise WeightsError(
            f"{folder}: its {ADDITIONS[told.what]} is on {told.name!r} (sha256 {told.sha256[:12]}...), the base here "
            f"is {base.name!r} ({base.sha256[:12]}...); give that one as base, or start a new run"
        )
    for name, part in _parts(model):
        tensors = restored(read_tensors(weights_of(folder, name, which)))
        check_keys(folder / name, part, tensors)
        part.load_state_dict(tensors)
    if isinstance(model, Model):
        _take_files(model, folder)


def find(path: Path | str) -> Path:
    """The folder with a manifest that a path stands for: itself, or the newest valid checkpoint of a run.

    Raises:
        WeightsError: there is none.
    """
    given, path = str(path), Path(path)
    if not path.exists():
        shipped = Path(str(resources.files("unveil"))) / SHIPPED
        names = sorted(entry.name for entry in shipped.iterdir()) if shipped.is_dir() else []
        if given in names:
            return shipped / given
        known = f"; shipped: {', '.join(names)}" if names else ""
        there = [one.name for one in model_dir.entries("checkpoints")]
        raise WeightsError(f"{given}: no such folder or shipped model{nearest(given, [*names, *there])}{known}")
    if path.is_file():
        read_header(path)  # a pickle or a broken file is named as that
        raise WeightsError(
            f"{given}: a file of weights; give the folder with its {checkpoint_store.MANIFEST}, or convert it first"
        )
    if (path / checkpoint_store.MANIFEST).is_file():
        return path
    for parent in (path / "checkpoints", path):
        newest = checkpoint_store.newest_valid(parent)
        if newest is not None:
            return newest
    if (path / "config.json").is_file() and (name := read_json(path / "config.json").get("_class_name")) is not None:
        how = formats.STEERS if "ControlNet" in str(name) else formats.WHOLE_PART
        raise WeightsError(f"{given}: a folder of diffusers' {name}: {how}")
    raise WeightsError(
        f"{given}: neither a saved model nor a run with a valid checkpoint; it has no {checkpoint_store.MANIFEST}"
    )


def inspect(path: Path | str) -> dict[str, Any]:
    """What a file or folder of weights is, from headers alone: no number of it is read.

    Returns:
        path, what, parameters, bytes, and `files`: per safetensors file its metadata and, per key, type and shape.

    Raises:
        WeightsError: nothing there, or a file that is not safetensors.
    """
    path = Path(path)
    facts: dict[str, Any] = {"path": str(path)}
    if path.is_file():
        headers = {path.name: read_header(path)}
        facts["what"] = _what(headers[path.name])
    else:
        folder = find(path)
        manifest = checkpoint_store.read_manifest(folder)
        names = [name for name in manifest.files if name.endswith(".safetensors")]
        headers = {name: read_header(folder / name) for name in names}
        facts["what"] = (
            "a saved model" if manifest.kind == "model" else f"a training checkpoint at step {manifest.step}"
        )
        facts |= {"folder": str(folder), "step": manifest.step, "versions": dict(manifest.versions)}
        if (base := base_of(folder)) is not None:
            facts["what"] += f", of a {ADDITIONS[base.what]} on {base.name} (sha256 {base.sha256[:12]})"
            facts["base"] = base._asdict()
        if (folder / "model.yaml").is_file():
            facts["model"] = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))
    return facts | summary(headers)


def summary(headers: Mapping[str, Header]) -> dict[str, Any]:
    """Parameters, bytes and files of weights, from their headers by file name."""
    weights = [h for name, h in headers.items() if "train_state" not in name and not name.startswith("ema/")]
    return {
        "parameters": sum(t.size for h in weights for key, t in h.tensors.items() if not is_step(key, h.tensors)),
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


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """File name and module of every part with tensors of its own; what is no diffusion model is a codec."""
    if not isinstance(model, Model):
        yield CODEC, model
        return
    if model.base is not None:
        if model.controls is not None and model.base.what == "control":
            yield TRAINED, model.controls.controls[0].network
        else:
            yield LORA, Trained(model.denoiser.network)
        return
    yield "denoiser.safetensors", model.denoiser
    for name, part in model.conditioners.items():
        if name in ("denoiser", "codec", "train_state") or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise RecipeError(f"condition key {name!r}: names a file of the saved model; use letters, digits, - and _")
        if part.state_dict():
            yield f"{name}.safetensors", part
    if isinstance(model.codec, nn.Module) and model.codec.state_dict():
        yield CODEC, model.codec


def _texts(model: Model) -> Iterator[tuple[str, Text | WordTokens]]:
    """The conditioners that may need a file beside their weights."""
    yield from ((name, part) for name, part in model.conditioners.items() if isinstance(part, Text | WordTokens))


def _take_files(model: Model, folder: Path) -> None:
    """Gives conditioners what a folder holds of them beside their weights."""
    for name, part in _texts(model):
        beside = [path for path in folder.glob(f"{name}.*") if path.suffix != ".safetensors"]
        part.take_files({path.name.removeprefix(f"{name}."): path.read_text("utf-8") for path in beside})


def weights_of(folder: Path, name: str, which: Which) -> Path:
    """The file of a part in a verified folder: the averaged one ("ema"), where there is one, or that "trained"."""
    averaged = folder / "ema" / name
    return averaged if which == "ema" and averaged.is_file() else folder / name


def _assign(model: nn.Module, folder: Path, which: Which, dtype: torch.dtype | None) -> None:
    for name, part in _parts(model):
        tensors = restored(read_tensors(weights_of(folder, name, which)))
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


def _what(header: Header) -> str:
    found = formats.recognised(header.tensors)
    if found is not None:
        return found.what
    if header.metadata.get("made_by") == "unveil":
        return "a part of a model that unveil saved"
    return "tensors of an unknown model"
