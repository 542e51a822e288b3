"""Loading of models for generation: device, weights, LoRAs and ControlNets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from unveil.checkpoints import loader, lora, registry
from unveil.checkpoints.formats import controlnet as controlnet_format
from unveil.checkpoints.formats import native
from unveil.checkpoints.overrides import ModelOverrides
from unveil.conditioning.controlnet import AttachedControlNet, ControlMode
from unveil.conditioning.image import ConcatCondition
from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.data.tensor_dataset import LOW
from unveil.errors import DataError, OutOfResources, RecipeError, WeightsError, did_you_mean
from unveil.generation import inputs
from unveil.generation.generate import DTYPES, PROMPT, ModelSource, SourceFile
from unveil.generation.inpaint import MASK, MASKED
from unveil.generation.single_frame import as_image_model
from unveil.io.console import Console
from unveil.io.files import read_header, read_state, sha256
from unveil.model import Model, checkpoint_store, model_folder
from unveil.model.checkpoint_store import base_of
from unveil.model.config import ModelConfig, read_yaml, validate
from unveil.model.lora_state import LORA
from unveil.nn.cpu_kernels import cpu_computes_bf16
from unveil.nn.unet import UNet
from unveil.types import ADDITIONS, ControlNetInfo, LoraInfo, format_size

Media = Literal["images", "videos"]
ADAPTER_OPTIONS = {"lora": "lora", "control": "controlnet"}  # command-line option of each adapter
DEVICES = ("auto", "cpu", "cuda", "mps")
TRAINED_CONTROL_KEY = "hint"  # key of a trained ControlNet's control image, as in its training data
# Conditions that are images, which a task gives to networks that were trained with them
IMAGE_CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "inpaint": (MASK, MASKED),
    "outpaint": (MASK, MASKED),
    "upscale": (LOW,),
}


class LoraOption(NamedTuple):
    """A LoRA to attach: a file, a folder as peft writes it, or a run; and its weight."""

    path: Path
    weight: float = 1.0


class ControlNetOption(NamedTuple):
    """A ControlNet to attach.

    Attributes:
        network: Its file or run; None: the one that is part of the model.
        image: File of the control image.
        weight: Conditioning scale.
        start, stop: Part of the sampling run in which it acts, in [0, 1].
    """

    network: Path | None
    image: Path
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class ModelOptions:
    """A model, its adapters, its device and its number format.

    Attributes:
        name: Bundled model, folder or weights file.
        file: What a weights file does not state itself, by the names of `checkpoints.overrides.ModelOverrides`.
    """

    name: str
    device: str = "auto"
    dtype: str = "float32"
    loras: tuple[LoraOption, ...] = ()
    controlnets: tuple[ControlNetOption, ...] = ()
    control_mode: str = "balanced"
    file: Mapping[str, Any] = field(default_factory=dict)


def open_for_generation(
    options: ModelOptions,
    console: Console,
    *,
    shown: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
    places: Sequence[Path] = (),
    media: Media = "images",
) -> tuple[Model, ModelSource]:
    """Return the model of some options with its LoRAs and ControlNets, ready to generate images or videos.

    A video model generates images as videos of one frame.

    Args:
        options: Model, adapters, device and number format.
        console: Shows what was matched.
        shown: Keys of the images that the task gives the network as conditions.
        recorded: Metadata of a file that is generated again; they state the adapters.
        places: Files and folders that may contain the control images of the metadata.
        media: What the task generates.

    Raises:
        RecipeError: The model needs other images as conditions, or its samples are not of this medium.
    """
    named = options.dtype if recorded is None else str(recorded.get("dtype", options.dtype))
    dtype = DTYPES.get(named, torch.float32)  # text encoders compute in it too; the request refuses another one
    model, source = open_model(options.name, resolve_device(options.device), options.file or None, dtype)
    conditions = [key for key, value in model.conditioners.items() if isinstance(value, ConcatCondition)]
    if recorded is None and (missing := [key for key in conditions if key not in shown]):
        tasks = " or ".join(f"`unveil {task}`" for task, keys in IMAGE_CONDITIONS.items() if missing[0] in keys)
        raise RecipeError(
            f"this model takes an image as the condition {missing[0]!r}, which cannot be typed; "
            + (f"use {tasks}" if tasks else "use it from Python: unveil.load(...).generate(cond=...)")
        )
    of_images = len(model.shape) == 3 and media == "images"
    if len(model.shape) == 3 and media == "videos" and model.shape[0] in (1, 3):
        raise RecipeError(
            f"{options.name}: generates images, {format_size(model.shape[1:])} pixels, and not videos; `unveil sample "
            f"--model {options.name}` generates an image; `unveil inspect models` lists models"
        )
    if not (of_images or model.is_video) or model.shape[0] not in (1, 3):
        raise RecipeError(
            f"this model generates samples of shape {model.shape}, which are not {media}; "
            "use it from Python: unveil.load(...).generate(...)"
        )
    adapters: Sequence[LoraOption] = options.loras
    controls: Sequence[ControlNetOption] = options.controlnets
    mode = options.control_mode
    if recorded is not None:
        adapters = recorded_loras(recorded.get("loras") or [], adapters)
        controls, mode = recorded_controlnets(recorded, controls, model, places)
    if adapters:
        attach_loras(model, source, adapters, console)
    if controls or model.controlnet_infos:
        attach_controlnets(model, controls, mode, console)
    if dtype == torch.bfloat16 and model.device.type == "cpu" and not cpu_computes_bf16():
        console.warn("dtype bfloat16: this CPU has no instructions for it and is many times slower than in float32")
    model = as_image_model(model) if media == "images" and model.is_video else model
    return model.to_inference_dtype(dtype), source


def check_takes_prompt(model: Model, what: str) -> None:
    """Refuse a prompt for a model that takes none.

    Args:
        model: Model.
        what: Option that has the prompt.

    Raises:
        RecipeError: The model takes no prompt; the message lists its conditions.
    """
    if PROMPT not in model.conditioners:
        raise RecipeError(f"{what}: this model takes no prompt, only: {', '.join(model.conditioners) or 'nothing'}")


def resolve_device(name: str) -> torch.device:
    """Return the device of this name; auto is the fastest available one.

    Raises:
        RecipeError: An unknown name.
        OutOfResources: A device that this machine does not have.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (name != kind and not (number.isdecimal() and kind in ("cuda", "mps"))):
        raise RecipeError(
            f"device {name!r}: must be one of {', '.join(DEVICES)}, or cuda:0 and so on{did_you_mean(name, DEVICES)}"
        )
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        name = kind = next(k for k in ("cuda", "mps", "cpu") if available[k])
    if not available[kind]:
        raise OutOfResources(f"device {name!r}: this machine has none that torch can use; use --device cpu")
    if kind == "cuda":
        # each of several processes has its own, not all the first
        number, count = number or os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
        if int(number) >= count:
            raise OutOfResources(f"device {name!r}: this machine has {count}; use cuda:0 to cuda:{count - 1}")
        return torch.device(kind, int(number)) if count > 1 else torch.device(kind)
    return torch.device(name)


# ---------------------------------------------------------------------- weights


def open_model(
    name: str, where: torch.device, overrides: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Model, ModelSource]:
    """Return the model of a name, a folder or a published weights file, with its name and hash.

    Args:
        name: Path of a model, name of one in the models folder (see `model.model_folder`), of a bundled one, or of one
            of the hub, whose download is offered.
        where: Device of the model.
        overrides: What the keys of a published file do not state, by the names of
            `checkpoints.overrides.ModelOverrides`.
        dtype: Number format of sampling, if the folder can be read in it at once.
    """
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        raise RecipeError(f"{name}: is an image where a model is expected; the model comes first: COMMAND MODEL IMAGE")
    path = _found(name)
    name = str(path)
    if path.is_dir() and (folder := _adapter_folder(path)) is not None:
        return _with_adapter(folder, name, where, overrides)
    # a bundled or saved model needs no detection of its format
    if not overrides and (not path.exists() or (path / checkpoint_store.MANIFEST).is_file()):
        return model_folder.load_model(path).to(where), model_source(name)
    stated = validate(ModelOverrides, dict(overrides or {}), "file")
    model = loader.open_checkpoint(path, stated, dtype).model.to(where)
    if path.is_file():
        return model, ModelSource(path.name, loader.digest(path))
    entry = loader.format_of(path)
    if entry is None or entry.converts_to is None:
        return model, model_source(name)
    return model, ModelSource(path.resolve().name, loader.digest(path))


def _found(name: str) -> Path:
    """Return the path of a model; the download of a published one that is not here is offered on a terminal.

    Raises:
        WeightsError: It can be one of the hub, and was not downloaded.
    """
    path = model_folder.resolve_name(name, "checkpoints")
    if path.exists() or name in model_folder.bundled_models():
        return path
    from unveil.checkpoints.hub import get, table  # the first one imports the readers of all pipelines

    path = table.resolve(name)
    return path if path.exists() or not table.is_offered(name) else get.offer(name, Console()) or path


def config_of(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """Return the configuration of a model; of a native folder or a file, no weights are read.

    Raises:
        WeightsError: It cannot be read.
        RecipeError: It runs through another library's classes, and has no configuration.
    """
    path = _found(name)
    stated = validate(ModelOverrides, dict(overrides or {}), "file")
    if not path.exists() or native.is_folder(path):
        described = model_folder.resolve_checkpoint(path) / "model.yaml"
        if described.is_file():
            return validate(ModelConfig, read_yaml(described.read_text("utf-8"), str(described)), str(described))
    detected = registry.detect(read_header(path).tensors) if path.is_file() else None
    if detected is not None and detected.format.fit is not None and not detected.signature.instead:
        config = detected.format.fit(read_state(path), stated).model.config
    else:
        config = loader.open_checkpoint(path, stated).model.config
    if config is None:
        raise RecipeError(
            f"base = {name}: runs through the classes of diffusers, which are not trained here; give a model of "
            "Stable Diffusion 1 or 2, or one of unveil"
        )
    return config


def model_source(name: str) -> ModelSource:
    """Return the name of a model, and one hash over the hashes of the files that its samples depend on."""
    folder = model_folder.resolve_checkpoint(name)
    return ModelSource(_model_name(name, folder), checkpoint_store.identity(folder))


def _adapter_folder(path: Path) -> Path | None:
    """Return the checkpoint of a run that trained a LoRA or a ControlNet, if this is one."""
    try:
        folder = model_folder.resolve_checkpoint(path)
    except WeightsError:  # another kind of folder
        return None
    return folder if base_of(folder) is not None else None


def _with_adapter(
    folder: Path, name: str, where: torch.device, overrides: Mapping[str, Any] | None
) -> tuple[Model, ModelSource]:
    """Return a run's LoRA or ControlNet on its base, which must be where it was."""
    stated = base_of(folder)
    assert stated is not None
    checkpoint_store.verify(folder)
    model, base = open_model(stated.path, where, overrides)
    if not checkpoint_store.is_same(stated.sha256, base.sha256):
        raise WeightsError(
            f"{stated.path}: has changed since the {ADDITIONS[stated.what]} in {name} was trained on it (sha256 "
            f"{stated.sha256[:12]}..., now {base.sha256[:12]}...); use --{ADAPTER_OPTIONS[stated.what]} {name} if that "
            "is intended"
        )
    if stated.what == "lora":
        file = lora_file(folder)
        lora.attach(lora.parts_of(model), folder.name, lora.read_lora(file))
        added = sha256(file)
    else:
        controlnet = controlnet_format.read_controlnet(folder)
        model.with_controlnets(AttachedControlNet(TRAINED_CONTROL_KEY, controlnet.network.to(where)))
        model.controlnet_infos = (ControlNetInfo(TRAINED_CONTROL_KEY, Path(name).resolve().name, controlnet.sha256),)
        added = controlnet.sha256
    described = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))
    model.config = validate(ModelConfig, described, str(folder / "model.yaml"))
    model.sampling = model.config.sample
    model.fps = model.config.fps or model.fps
    both = hashlib.sha256(f"{stated.sha256} {added}".encode()).hexdigest()
    return model, ModelSource(_model_name(name, folder), both)


def _model_name(name: str, folder: Path) -> str:
    """Return a name that identifies the model for a person, without its location."""
    if folder.parent.name == "checkpoints":
        return f"{folder.parent.parent.resolve().name} {folder.name}"
    return folder.resolve().name if Path(name).exists() else name


# ---------------------------------------------------------------------- LoRAs


def lora_file(path: Path) -> Path:
    """Return the file of a LoRA: the path itself, that of peft's folder, or the EMA one of a run's newest checkpoint.

    A name is looked up in the models folder, see `model.model_folder`.

    Raises:
        WeightsError: There is none.
    """
    path = model_folder.resolve_name(path, "loras")
    if not path.is_dir():
        return path
    if (path / lora.ADAPTER).is_file():
        return path / lora.ADAPTER
    folder = model_folder.resolve_checkpoint(path)
    for file in (folder / "ema" / LORA, folder / LORA):
        if file.is_file():
            return file
    raise WeightsError(f"{path}: neither peft's folder nor a run that trained a LoRA; it has whole weights")


def attach_loras(
    model: Model, source: ModelSource, options: Sequence[LoraOption], console: Console
) -> tuple[LoraInfo, ...]:
    """Attach LoRAs to a model, in order; print what was matched, and return their metadata.

    Raises:
        WeightsError: A file that is not a LoRA, or that is for another base model.
    """
    parts = lora.parts_of(model)
    infos: list[LoraInfo] = []
    for option in options:
        if not option.path.exists():
            raise WeightsError(model_folder.not_found_message(option.path, "loras"))
        file = lora_file(option.path)
        name = _lora_name(option.path, file)
        name = f"{name} {len(infos)}" if name in {other.name for other in infos} else name
        trained_on = base_of(file.parent if file.parent.name != "ema" else file.parent.parent)
        if trained_on is not None and trained_on.sha256 != source.sha256:
            console.warn(f"{option.path}: was trained on {trained_on.name!r}, which is not the model {source.name!r}")
        read = lora.read_lora(file)
        try:
            report = lora.attach(parts, name, read, option.weight)
        except WeightsError as problem:
            raise WeightsError(f"{option.path}: {problem}") from problem
        console.say(f"{option.path}: {report.text()}")
        infos.append(LoraInfo(name, sha256(file), option.weight))
    model.lora_infos = tuple(infos)
    return model.lora_infos


def recorded_loras(recorded: Sequence[Mapping[str, Any]], options: Sequence[LoraOption]) -> list[LoraOption]:
    """Return the LoRAs of an image's metadata, each by its hash among the files of `options`, or by its name here.

    Raises:
        WeightsError: A LoRA that is not among the options.
        DataError: The metadata are damaged.
    """
    try:
        infos = [LoraInfo(str(info["name"]), str(info["sha256"]), float(info["weight"])) for info in recorded]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"the image's metadata of its LoRAs lack {problem}; use it as it was written") from problem
    paths = {sha256(lora_file(option.path)): option.path for option in options}
    loras: list[LoraOption] = []
    for info in infos:
        here = lora_file(Path(info.name))
        if info.sha256 not in paths and here.exists() and sha256(here) == info.sha256:
            paths[info.sha256] = here
        if info.sha256 not in paths:
            raise WeightsError(
                f"the image was made with the LoRA {info.name!r} (sha256 {info.sha256[:12]}...); give that file "
                "with --lora"
            )
        loras.append(LoraOption(paths[info.sha256], info.weight))
    return loras


def _lora_name(path: Path, file: Path) -> str:
    """Return the name of a file; of a run that of its folder."""
    return path.name if path.is_file() or file.parent == path else path.resolve().name


# ---------------------------------------------------------------------- ControlNets


def attach_controlnets(
    model: Model, options: Sequence[ControlNetOption], mode: str, console: Console
) -> tuple[ControlNetInfo, ...]:
    """Attach ControlNets to a model; those that are part of it get their control images, weights and ranges.

    Args:
        model: Model.
        options: ControlNets, in order.
        mode: `balanced` or `guess`.
        console: Shows the base of a trained ControlNet.

    Returns:
        Metadata of the ControlNets.

    Raises:
        WeightsError: A file that is not a ControlNet, or that is for another base model.
        DataError: A control image that cannot be read.
        RecipeError: An invalid range or mode.
    """
    attached = {info.sha256: info for info in model.controlnet_infos}
    networks = {} if model.controls is None else {control.key: control.network for control in model.controls.controls}
    base = model.denoiser.network
    controls: list[AttachedControlNet] = []
    infos: list[ControlNetInfo] = []
    for option in options:
        info = _attached_controlnet(option, attached)
        if info is None:
            assert option.network is not None
            loaded = controlnet_format.read_controlnet(option.network, base.config if isinstance(base, UNet) else None)
            network, name, digest = loaded.network.to(model.device), option.network.resolve().name, loaded.sha256
            key = f"control{len(controls) + 1}"
            if loaded.base is not None:
                console.say(f"{option.network}: a ControlNet that was trained on {loaded.base.name!r}")
        else:
            network, key, name, digest = networks[info.key], info.key, info.name, info.sha256
        channels = network.hint_channels
        if channels not in (1, 3):
            raise WeightsError(f"{name}: takes control images of {channels} channels, which no image file has")
        image = inputs.open_input(inputs.IMAGE, option.image, channels)
        part = option.weight, option.start, option.stop
        controls.append(AttachedControlNet(key, network, *part))
        infos.append(ControlNetInfo(key, name, digest, *part, image.input.name, image.input.sha256, image.content))
    keys = {control.key for control in controls}
    if left := [info.name for info in attached.values() if info.key not in keys]:
        raise RecipeError(
            f"this model is the ControlNet {left[0]!r} on its base; give its control image: --controlnet IMAGE"
        )
    model.with_controlnets(*controls, mode=cast(ControlMode, mode))
    model.controlnet_infos = tuple(infos)
    return model.controlnet_infos


def recorded_controlnets(
    facts: Mapping[str, Any], options: Sequence[ControlNetOption], model: Model, places: Sequence[Path]
) -> tuple[list[ControlNetOption], str]:
    """Return the ControlNets and the mode of an image's metadata; files are identified by their hashes, or names here.

    Args:
        facts: Metadata of the image.
        options: ControlNets that the user gives.
        model: Model, which may have a ControlNet.
        places: Files and folders that may contain the control images.

    Raises:
        WeightsError: A ControlNet that is not among the options.
        DataError: A control image that does not exist, or damaged metadata.
    """
    recorded = facts.get("controls") or []
    try:
        files = [SourceFile(str(control["name"]), str(control["sha256"])) for control in recorded]
        images = [SourceFile(str(control["image"]), str(control["image_sha256"])) for control in recorded]
        ranges = [(float(item["weight"]), float(item["start"]), float(item["stop"])) for item in recorded]
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"the image's metadata of its ControlNets lack {problem}; use it as it was written"
        ) from problem
    image_paths = inputs.find_inputs(images, [*(option.image for option in options), *places])
    networks: dict[str, Path | None] = {info.sha256: None for info in model.controlnet_infos}
    if files:
        networks |= {
            controlnet_format.digest(option.network): option.network for option in options if option.network is not None
        }
    controls = [
        ControlNetOption(_controlnet_path(file, networks), path, *part)
        for file, path, part in zip(files, image_paths, ranges, strict=True)
    ]
    return controls, str(facts.get("control_mode", "balanced"))


def _attached_controlnet(option: ControlNetOption, attached: Mapping[str, ControlNetInfo]) -> ControlNetInfo | None:
    """Return the ControlNet of the model that an option means, if it means one."""
    if option.network is not None:
        return attached.get(controlnet_format.digest(option.network)) if attached else None
    if not attached:
        raise RecipeError(
            f"--controlnet {option.image}: names no ControlNet; give it with its control image: --controlnet "
            f"FILE={option.image}"
        )
    return next(iter(attached.values()))


def _controlnet_path(file: SourceFile, networks: Mapping[str, Path | None]) -> Path | None:
    """Return the path of a ControlNet of some metadata; None for one that is part of the model."""
    if file.sha256 in networks:
        return networks[file.sha256]
    here = Path(file.name)
    if here.exists() and controlnet_format.digest(here) == file.sha256:
        return here
    raise WeightsError(
        f"the image was generated with the ControlNet {file.name!r} (sha256 {file.sha256[:12]}...); give it with "
        "--controlnet FILE=IMAGE"
    )
