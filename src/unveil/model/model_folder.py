"""Loading of saved models from folders, which are found by path or by name.

    model.yaml  denoiser.safetensors  label.safetensors  autoencoder.safetensors  card.md  manifest.json

A text encoder's part is `prompt.safetensors`, with `prompt.tokenizer.json` if the vocabulary is its own, and
`prompt.vocabulary.json` if it was built from the training texts. A LoRA that was trained on a frozen base has
lora.safetensors in place of the weights, and base.json, which names the base; a ControlNet has control.safetensors.
`unveil.model.checkpoint_store` writes these folders.

A training checkpoint is the same folder with the weights as trained, the EMA weights in `ema/`, and the state of the
training. A model that is loaded for sampling gets the EMA weights.

The models folder is $UNVEIL_MODELS, or ./models. A file or folder in it is found by its name wherever a model, a LoRA
or a ControlNet is named. It has three subfolders: checkpoints/ with files and folders of models, loras/ with files of
LoRAs and folders of peft, controlnets/ with files and folders of ControlNets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unveil.autoencoders import AutoencoderKL, VQModel
from unveil.core.denoiser import Denoiser
from unveil.errors import OutputError, UnsupportedFormat, WeightsError, did_you_mean
from unveil.io import staging
from unveil.io.files import SHOWN, explained, read_header, read_tensors, refuse_foreign, refuse_overwrite
from unveil.model import checkpoint_store
from unveil.model.checkpoint_store import AUTOENCODER, base_of, dequantize, is_scale, parts_of, texts_of
from unveil.model.config import AutoencoderModelConfig, ModelConfig, read_yaml, validate
from unveil.model.config.model import SavedSection, build_autoencoder, section_of
from unveil.model.model import Model, resized_part
from unveil.nn.layers import EmptyParameters
from unveil.types import ADDITIONS

if TYPE_CHECKING:
    from unveil.io.files import Header


# "ema": the EMA weights if the folder has some; "trained": the weights that the optimiser moves.
WeightSet = Literal["ema", "trained"]
Subfolder = Literal["checkpoints", "loras", "controlnets"]

CONTROLNET_ADVICE = "give it beside the model that it is for: unveil sample MODEL --controlnet FILE=IMAGE"
PART_ADVICE = "a part of a model, which generates no images by itself; give the whole folder or file that it is from"
BUNDLED = "assets/models"  # the package's folder of bundled models
FORMER_AUTOENCODER = "codec.safetensors"  # former file name of the autoencoder's weights
ENVIRONMENT_VARIABLE, DEFAULT_MODELS_DIR = "UNVEIL_MODELS", "models"
SUBFOLDERS: tuple[Subfolder, ...] = ("checkpoints", "loras", "controlnets")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# Files of a folder that is one model, as this library, diffusers, peft and a training run write it
MODEL_MARKERS = ("manifest.json", "model_index.json", "config.json", "adapter_config.json", "checkpoints")


class ModelFile(NamedTuple):
    """A file or folder in the models folder.

    Attributes:
        name: Path below the subfolder, without a suffix.
        path: The file or folder.
        subfolder: Subfolder of the models folder that contains it.
    """

    name: str
    path: Path
    subfolder: Subfolder


# ---------------------------------------------------------------------- building


def build(config: ModelConfig) -> Model:
    """Return the model of a config, freshly initialised from torch's global generator; on `meta` it takes no memory.

    Raises:
        WeightsError: The saved autoencoder that the config names cannot be read.
    """
    network = config.build_network()
    with torch.device("cpu"):  # tables of noise levels stay on the CPU
        process = resized_part(config.process.build(), config.latent_shape)
        prediction = config.build_prediction(process)
    denoiser = Denoiser(network, process, prediction=prediction, learns_variance=config.learns_variance)
    if isinstance(config.autoencoder, SavedSection):
        autoencoder = load_latent_autoencoder(config.autoencoder.path)
        config = config.model_copy(update={"autoencoder": section_of(autoencoder)})
    else:
        autoencoder = build_autoencoder(config.autoencoder, config.shape)
    conditioners = [part.build(config, getattr(network, "vector_dim", None)) for part in config.condition]
    return Model(
        denoiser,
        config.shape,
        conditioners=conditioners,
        autoencoder=autoencoder,
        variance=config.build_variance(),
        config=config,
    )


# ---------------------------------------------------------------------- loading


def load_model(path: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Model:
    """Return the model of a folder (saved model, checkpoint or run), or a bundled one by its name, in evaluation mode.

    Every file is checked against its sha256, then mapped into memory: pages are read when they are first used.

    Args:
        dtype: Type that floating-point weights are converted to; None: the types of the file.

    Raises:
        WeightsError: The folder does not exist or is damaged, or the shapes of weights differ from those of model.yaml;
            the message lists the keys.
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
    if (folder / "captioner.yaml").is_file():
        raise WeightsError(
            f"{folder}: a captioner, which writes captions and generates no images; `unveil caption FOLDER --model "
            f"{path}` captions the images and videos of a folder"
        )
    if not described.is_file():
        raise WeightsError(
            f"{folder}: holds the weights of a network that was not built from a recipe; build your model, "
            "then call load_weights(model, path)"
        )
    raw = read_yaml(described.read_text("utf-8"), str(described))
    if _is_autoencoder(raw):
        raise WeightsError(
            f"{folder}: an autoencoder, which generates no images by itself; name it in the recipe of a diffusion "
            "model: autoencoder: {kind: saved, path: ...}"
        )
    config = validate(ModelConfig, raw, str(described))
    with EmptyParameters():
        model = build(config)
    _assign(model, folder, "ema", dtype)
    _restore_files(model, folder)
    return model.eval()


def load_autoencoder(path: Path | str) -> tuple[AutoencoderModelConfig, AutoencoderKL | VQModel]:
    """Return the autoencoder of a folder (saved one, checkpoint or run) with its EMA weights, frozen.

    Raises:
        WeightsError: The folder does not exist, is damaged or contains no autoencoder, or the shapes of weights differ
            from those of model.yaml.
    """
    folder = resolve_checkpoint(path)
    checkpoint_store.verify(folder)
    described = folder / "model.yaml"
    raw = read_yaml(described.read_text("utf-8"), str(described)) if described.is_file() else None
    if not _is_autoencoder(raw):
        raise WeightsError(f"{folder}: holds no autoencoder; name the run of one, such as that of ae-fashion")
    config = validate(AutoencoderModelConfig, raw, str(described))
    with EmptyParameters():
        autoencoder = config.build()
    _assign(autoencoder, folder, "ema", torch.float32)
    return config, autoencoder.eval().requires_grad_(False)


def load_latent_autoencoder(path: Path | str) -> AutoencoderKL | VQModel:
    """Load the autoencoder of a folder, frozen: a saved autoencoder, or that of a latent diffusion model.

    Raises:
        WeightsError: The folder cannot be loaded, as in `load_autoencoder` and `load_model`, or the model has no
            autoencoder.
    """
    described = resolve_checkpoint(path) / "model.yaml"
    if described.is_file() and _is_autoencoder(read_yaml(described.read_text("utf-8"), str(described))):
        return load_autoencoder(path)[1]
    autoencoder = load_model(path).autoencoder
    if not isinstance(autoencoder, AutoencoderKL | VQModel):
        raise WeightsError(f"{path}: a model of pixels, without an autoencoder; name the folder of one")
    return autoencoder


def load_weights(model: Model, path: Path | str, *, which: WeightSet = "ema") -> Model:
    """Copy the weights of a folder into a model that is built already; return it.

    Raises:
        WeightsError: The folder does not exist or is damaged, or the shapes of weights differ from the model's; the
            message lists the keys.
    """
    folder = resolve_checkpoint(path)
    checkpoint_store.verify(folder)
    load_into(model, folder, which)
    return model


def load_into(model: nn.Module, folder: Path, which: WeightSet) -> None:
    """Copy the weights of a verified folder into a model that is built already.

    Raises:
        WeightsError: The shapes of weights differ from the model's, with a list of keys, or an adapter has another
            base.
    """
    stated, base = base_of(folder), model.base if isinstance(model, Model) else None
    if stated is not None and base is not None and not checkpoint_store.is_same(stated.sha256, base.sha256):
        raise WeightsError(
            f"{folder}: its {ADDITIONS[stated.what]} is on {stated.name!r} (sha256 {stated.sha256[:12]}...), the base "
            f"here is {base.name!r} ({base.sha256[:12]}...); give that one as base, or start a new run"
        )
    for name, part in parts_of(model):
        tensors = dequantize(read_tensors(weights_of(folder, name, which)))
        check_keys(folder / name, part, tensors)
        part.load_state_dict(tensors)
    if isinstance(model, Model):
        _restore_files(model, folder)


def bundled_models() -> dict[str, Path]:
    """Return the folders of the bundled models by their names."""
    folder = Path(str(resources.files("unveil"))) / BUNDLED
    return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def resolve_checkpoint(path: Path | str) -> Path:
    """Return the folder with a manifest that a path or name stands for.

    It is the folder itself, the newest valid checkpoint of a run, or a bundled model.

    Raises:
        WeightsError: No folder with a manifest is found.
    """
    name, path = str(path), Path(path)
    staging.recover(path)
    if not path.exists():
        bundled = bundled_models()
        if name in bundled:
            return bundled[name]
        listed = f"; bundled: {', '.join(bundled)}" if bundled else ""
        others = [file.name for file in list_models("checkpoints")]
        raise WeightsError(
            f"{name}: no such folder or bundled model{did_you_mean(name, [*bundled, *others])}{listed}; give the path "
            "of a local folder or file, or download a published model by `unveil get`"
        )
    if path.is_file():
        read_header(path)  # a pickle or a broken file is named as that
        raise WeightsError(
            f"{name}: a file of weights; give the folder with its {checkpoint_store.MANIFEST}, or convert it first"
        )
    if (path / checkpoint_store.MANIFEST).is_file():
        return path
    for parent in (path / "checkpoints", path):
        newest = checkpoint_store.latest_valid(parent)
        if newest is not None:
            return newest
    if (class_name := _diffusers_class(path)) is not None:
        advice = CONTROLNET_ADVICE if "ControlNet" in str(class_name) else PART_ADVICE
        raise UnsupportedFormat(f"{name}: a folder of diffusers' {class_name}: {advice}")
    raise UnsupportedFormat(
        f"{name}: neither a saved model nor a run with a valid checkpoint; it has no {checkpoint_store.MANIFEST}"
    )


def summary(headers: Mapping[str, Header]) -> dict[str, Any]:
    """Return the number of parameters and bytes and the tensors of weights files, from their headers by file name."""
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


# ---------------------------------------------------------------------- names


def models_dir() -> Path:
    """Return the models folder, which need not exist."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_MODELS_DIR)


def list_models(subfolder: Subfolder | None = None) -> list[ModelFile]:
    """Return the models in the models folder, or in one subfolder of it, by name; folders inside are searched."""
    files: list[ModelFile] = []
    for part in SUBFOLDERS if subfolder is None else (subfolder,):
        top = models_dir() / part
        for path in sorted(_models(top)):
            inside = path.relative_to(top)
            name = inside.with_suffix("") if path.is_file() else inside
            files.append(ModelFile(name.as_posix(), path, part))
    return files


def resolve_name(name: str | Path, subfolder: Subfolder) -> Path:
    """Return the path of a model: the path itself if it exists, else that of this name in the models folder.

    A name may omit the suffix and the folders inside the subfolder; the name of a folder that contains one model stands
    for it. If nothing has this name, it is returned as a path.

    Raises:
        WeightsError: Several models have this name; the message lists them.
    """
    path = Path(name)
    staging.recover(path)
    if path.exists() or path.is_absolute():
        return path
    files = list_models(subfolder)
    matches = [file for file in files if _has_name(file, path.as_posix())]
    if not matches:
        matches = [file for file in files if file.name.rpartition("/")[0] == path.as_posix()]
    if len(matches) > 1:
        listed = ", ".join(str(file.path) for file in matches)
        raise WeightsError(f"{name}: {len(matches)} have this name: {listed}; give one of them as a path")
    return matches[0].path if matches else path


def own_model(name: str | Path) -> ModelFile:
    """Return the model of the models folder that a name or path stands for, from any of its subfolders.

    Raises:
        WeightsError: The models folder has none of this name, or several.
    """
    for subfolder in SUBFOLDERS:
        path = resolve_name(name, subfolder).absolute()
        for file in list_models(subfolder):
            if file.path.absolute() == path:
                return file
    names = [file.name for file in list_models()]
    raise WeightsError(f"{name}: not a model of {models_dir()}{did_you_mean(str(name), names)}; others are not changed")


def rename_model(file: ModelFile, name: str) -> Path:
    """Rename a model of the models folder; it stays in its subfolder. Return its path.

    Raises:
        OutputError: The name is a path or exists already, or the folder cannot be written.
    """
    if Path(name).name != name or name.startswith("."):
        raise OutputError(f"{name}: must be a name without folders")
    suffix = file.path.suffix if file.path.is_file() else ""
    target = refuse_overwrite(models_dir() / file.subfolder / f"{name}{suffix}")
    try:
        os.rename(file.path, target)
    except OSError as problem:
        raise explained(target, problem) from problem
    _remove_empty(file)
    return target


def delete_model(file: ModelFile) -> None:
    """Delete a model of the models folder; half of it is never there under its name.

    Raises:
        OutputError: The folder has other things than a model, or cannot be written.
    """
    refuse_foreign(file.path, "deleted")
    try:
        staging.discard(file.path)
    except OSError as problem:
        raise explained(file.path, problem) from problem
    _remove_empty(file)


def _remove_empty(file: ModelFile) -> None:
    """Remove the folders of owners that are empty now."""
    top = models_dir() / file.subfolder
    for folder in file.path.parents:
        if folder == top:
            return
        with suppress(OSError):
            folder.rmdir()


def not_found_message(name: str | Path, subfolder: Subfolder) -> str:
    """Return the error message for a name that is neither a path nor in its subfolder; it names the nearest one."""
    names = [file.name for file in list_models(subfolder)]
    folder = models_dir() / subfolder
    return f"{name}: no such file or folder, and nothing of this name in {folder}{did_you_mean(str(name), names)}"


def _has_name(file: ModelFile, name: str) -> bool:
    full_name = file.name + (file.path.suffix if file.path.is_file() else "")
    return name in (file.name, full_name, file.name.rpartition("/")[2], full_name.rpartition("/")[2])


def _models(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    staging.sweep_sometimes(folder)
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file() and path.suffix.lower() in WEIGHT_SUFFIXES:
            yield path
        elif path.is_dir():
            yield from [path] if any((path / mark).exists() for mark in MODEL_MARKERS) else _models(path)


# ---------------------------------------------------------------------- details


def _restore_files(model: Model, folder: Path) -> None:
    """Restore the files of text encoders besides their weights."""
    for name, part in texts_of(model):
        files = [path for path in folder.glob(f"{name}.*") if path.suffix != ".safetensors"]
        part.restore_files({path.name.removeprefix(f"{name}."): path.read_text("utf-8") for path in files})


def _diffusers_class(path: Path) -> str | None:
    """Return the class that a folder's config.json names, as diffusers writes it."""
    if not (path / "config.json").is_file():
        return None
    return checkpoint_store.read_json(path / "config.json").get("_class_name")


def weights_of(folder: Path, name: str, which: WeightSet) -> Path:
    """Path of a part's weights in a verified folder: the EMA weights ("ema") if it has some, or the "trained" ones."""
    if name == AUTOENCODER and not (folder / name).is_file():
        name = FORMER_AUTOENCODER
    averaged = folder / "ema" / name
    return averaged if which == "ema" and averaged.is_file() else folder / name


def _assign(model: nn.Module, folder: Path, which: WeightSet, dtype: torch.dtype | None) -> None:
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
    """Raise WeightsError with a list of differences, unless the part takes exactly these tensors."""
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
    """Return True if a model.yaml describes an autoencoder."""
    return isinstance(raw, dict) and raw.get("kind") == "autoencoder"
