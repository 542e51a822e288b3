"""Models of DiT's files: the published `.pt`, and diffusers' `DiTPipeline` folder, read and written.

A folder's autoencoder is not a part of the model: what is made are its latents, scaled as the network sees them.

Facts: configuration files of diffusers' `DiTPipeline`, and of github.com/facebookresearch/DiT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.checkpoints import dit
from unveil.checkpoints.hf_files import read_json, read_weights
from unveil.checkpoints.overrides import ModelOverrides, in_float, shapes_of
from unveil.checkpoints.scheduler import SchedulerConfig, process_settings, read_scheduler, scheduler_of
from unveil.conditioning.class_label import Label
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import sha256
from unveil.io.safetensors_io import write_tensors
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.nn.dit import DiT
from unveil.nn.dit_config import DiTConfig
from unveil.nn.meta_device import meta_device

WEIGHTS = "diffusion_pytorch_model"
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# As published: 250 of 1,000 steps, guided on three of the four channels
PUBLISHED_SAMPLE = {
    "sampler": "ancestral",
    "schedule": "250",
    "steps": 250,
    "threshold": "none",
    "guidance": {"scale": 4.0, "channels": 3},
}
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}


SAYABLE = {"heads", "classes", "size"}


DDPM_PROCESS = {"kind": "discrete-vp", "beta_schedule": "linear", "timesteps": 1000}
PUBLISHED = SchedulerConfig(DDPM_PROCESS, "eps", PUBLISHED_SAMPLE)


# -- files of tensors ---------------------------------------------------------------------------------------------


def model_of(theirs: Mapping[str, Tensor], said: ModelOverrides | None = None) -> Model:
    """The model of a state dict of either layout, in evaluation mode; tensors of another type become float32.

    Raises:
        WeightsError: no DiT, something was not said that keys do not show, or something that they do.
    """
    said = said or ModelOverrides()
    said.only(SAYABLE, "files of DiT")
    config = dit.infer_config(shapes_of(theirs), said.heads, said.size)
    return _model(theirs, dit.with_untied_embeddings(theirs, config), PUBLISHED, said.classes)


def fill(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copies a state dict of either layout into a model that is built already.

    Raises:
        RecipeError: a model that the layouts cannot hold.
        WeightsError: a file of another shape: names what it is, and the first tensors that differ.
    """
    network, label = _parts(model)
    parts = dit.load(theirs, network.config)
    rows, wanted = parts.label[dit.OUR_LABEL].shape, label.table.weight.shape
    if rows != wanted:
        raise WeightsError(
            f"the table of labels: {tuple(rows)} in the file, {tuple(wanted)} in the model; "
            "set its classes, and a drop above 0 where the file has a row for none"
        )
    network.load_state_dict(in_float(parts.network))
    label.load_state_dict(in_float(parts.label))


def tensors_of(model: Model, layout: dit.Layout = "dit") -> dict[str, Tensor]:
    """The state dict of a model in either layout.

    Raises:
        RecipeError: a model that the layouts cannot hold.
    """
    network, label = _parts(model)
    return dit.dump(network.state_dict(), network.config, label.state_dict(), layout)


def _parts(model: Model) -> tuple[DiT, Label]:
    network, conditioners = model.denoiser.network, list(model.conditioners.values())
    if not isinstance(network, DiT) or len(conditioners) != 1 or not isinstance(conditioners[0], Label):
        raise RecipeError("the layouts of DiT hold a DiT with a label, and nothing else; this model is another one")
    return network, conditioners[0]


def _model(
    theirs: Mapping[str, Tensor],
    config: DiTConfig,
    scheduler: SchedulerConfig,
    classes: int | None,
    names: tuple[str, ...] | None = None,
) -> Model:
    parts = dit.load(theirs, config)
    rows = len(parts.label[dit.OUR_LABEL])
    classes = rows - 1 if classes is None else classes
    if classes not in (rows, rows - 1):
        raise WeightsError(f"classes = {classes}: the file's table of labels has {rows} rows; one may be for none")
    learned = config.out_channels == 2 * config.in_channels
    if not learned and config.out_channels != config.in_channels:
        raise WeightsError(f"{config.out_channels} channels out of {config.in_channels}: must be as many, or twice")
    kept = ("patch", "depth", "hidden_size", "heads", "mlp_ratio", "embedding", "embedders", "mlp_norm_eps")
    sample = dict(scheduler.sample)
    if rows == classes or config.in_channels < sample["guidance"].get("channels", 0):
        sample.pop("guidance")
    plain = {
        "shape": (config.in_channels, config.size, config.size),
        "network": {"kind": "dit", **{name: getattr(config, name) for name in kept}},
        "process": scheduler.process,
        "prediction": scheduler.prediction,
        "variance": "learned-range" if learned else "fixed-large",
        "condition": [
            {
                "kind": "class-label",
                "num_classes": classes,
                "names": names,
                "drop_prob": 0.1 if rows > classes else 0.0,
                "std": 0.02,
            }
        ],
        "sample": sample,
    }
    described = validate(ModelConfig, plain, "the file")
    with meta_device():  # nothing is drawn that the file replaces
        model = build(described)
    model.denoiser.network.load_state_dict(in_float(parts.network), assign=True)
    model.conditioners["label"].load_state_dict(in_float(parts.label), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


# -- diffusers' folders -------------------------------------------------------------------------------------------


def is_folder(path: Path) -> bool:
    """Whether this is a folder of diffusers with a DiT in it, or the transformer's own."""
    place = _transformer(path)
    return place is not None and read_json(place / "config.json").get("_class_name") in CLASSES


def read_folder(path: Path) -> Model:
    """The model of a `DiTPipeline` folder, or of a folder of its transformer alone, in evaluation mode.

    Raises:
        WeightsError: no such folder, files that are damaged, or settings that this network does not have.
    """
    place = _transformer(path)
    if place is None:
        raise WeightsError(f"{path}: no folder of diffusers' DiT: there is neither config.json nor transformer/")
    said = read_json(place / "config.json")
    for name, value in FIXED.items():
        if said.get(name, value) != value:
            raise WeightsError(f"{place / 'config.json'}: {name} = {said[name]!r}: only {value!r} is supported")
    theirs = read_weights(place, WEIGHTS, pickled=f"{WEIGHTS}.bin")
    config = dit.infer_config(shapes_of(theirs), int(said["num_attention_heads"]), int(said["sample_size"]))
    config = dit.with_untied_embeddings(theirs, replace(config, mlp_norm_eps=float(said.get("norm_eps", 1e-5))))
    scheduler = _scheduler(path / "scheduler" / "scheduler_config.json")
    classes = int(said.get("num_embeds_ada_norm", 1000))
    return _model(theirs, config, scheduler, classes, _names(path / "model_index.json", classes))


def sha256_of(path: Path) -> str:
    """One hash over the settings and the weights that make a folder's pictures."""
    place = _transformer(path) or path
    files = sorted(file for file in place.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
    scheduler = path / "scheduler" / "scheduler_config.json"
    text = "".join(f"{file.name} {sha256(file)}\n" for file in [*files, *([scheduler] if scheduler.is_file() else [])])
    return hashlib.sha256(text.encode()).hexdigest()


def write_folder(model: Model, path: Path) -> None:
    """Writes transformer, scheduler and index of a `DiTPipeline`; the autoencoder has to be put beside them.

    `DiTPipeline.from_pretrained(path, vae=...)` opens it.

    Raises:
        RecipeError: a model that the layout cannot hold.
    """
    label = _parts(model)[1]
    settings = {
        "transformer/config.json": _transformer_settings(model),
        "scheduler/scheduler_config.json": _scheduler_settings(model),
        "model_index.json": {
            "_class_name": "DiTPipeline",
            "id2label": dict(enumerate(label.names or [str(number) for number in range(label.classes)])),
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", CLASSES[0]],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    }
    tensors = tensors_of(model, "diffusers")
    for name, content in settings.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    with torch.no_grad():
        write_tensors(path / "transformer" / f"{WEIGHTS}.safetensors", tensors)


def _transformer_settings(model: Model) -> dict[str, Any]:
    network, label = _parts(model)
    config = network.config
    return {
        "_class_name": CLASSES[0],
        "num_attention_heads": config.heads,
        "attention_head_dim": config.hidden_size // config.heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.size,
        "patch_size": config.patch,
        "num_embeds_ada_norm": label.classes,
        "norm_eps": config.mlp_norm_eps,
        "norm_num_groups": 32,
        **FIXED,
    }


def _scheduler_settings(model: Model) -> dict[str, Any]:
    if model.config is None:
        raise RecipeError("this model was not built from a recipe, which says its process")
    sampling = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0}
    return sampling | process_settings(model.config)


def _transformer(path: Path) -> Path | None:
    return next((place for place in (path / "transformer", path) if (place / "config.json").is_file()), None)


def _scheduler(path: Path) -> SchedulerConfig:
    """Process, prediction and sampling of a scheduler's settings; without the file those of the published model."""
    read = read_scheduler(path) if path.is_file() else scheduler_of({"clip_sample": False}, path)
    return replace(read, sample={**read.sample, "steps": 50, "guidance": {"scale": 4.0}})


def _names(path: Path, classes: int) -> tuple[str, ...] | None:
    """The classes' names, where the folder has one for each."""
    said = read_json(path).get("id2label") if path.is_file() else None
    if not isinstance(said, dict) or sorted(said) != sorted(str(number) for number in range(classes)):
        return None
    return tuple(str(said[str(number)]) for number in range(classes))
