"""The format `dit`: the published `.pt` of DiT, diffusers' transformer, and folders of a `DiTPipeline`.

A folder's autoencoder is not a part of the model. The model generates its latents, scaled as the network sees them.

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

from unveil.checkpoints import dit_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, loaded, save_file
from unveil.checkpoints.hf import pipeline_folder, pipelines
from unveil.checkpoints.hf_files import read_json, read_weights, weight_files
from unveil.checkpoints.overrides import ModelOverrides, in_float, shapes_of
from unveil.checkpoints.scheduler import SchedulerConfig, process_settings, read_scheduler, scheduler_of
from unveil.conditioning.class_label import Label
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_header, sha256, write_tensors
from unveil.model import Model, build, model_folder
from unveil.model.config import ModelConfig, validate
from unveil.nn.dit import DiT, DiTConfig
from unveil.nn.layers import meta_device

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
# Settings that are supported with one value only
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}
DDPM_PROCESS = {"kind": "discrete-vp", "beta_schedule": "linear", "timesteps": 1000}
PUBLISHED = SchedulerConfig(DDPM_PROCESS, "eps", PUBLISHED_SAMPLE)


# -- files of tensors ---------------------------------------------------------------------------------------------


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides | None = None) -> LoadedCheckpoint:
    """Load the model of a state dict of either layout; weights of another type become float32.

    Raises:
        WeightsError: Not a DiT, or a setting is missing that the keys do not show.
    """
    overrides = overrides or ModelOverrides()
    config = dit_keys.config_from_keys(shapes_of(theirs), overrides.heads, overrides.size)
    config = dit_keys.with_untied_embeddings(theirs, config)
    return loaded(_model(theirs, config, PUBLISHED, overrides.classes), theirs)


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a state dict of either layout into a model that is built already.

    Raises:
        RecipeError: The layouts cannot hold the model.
        WeightsError: A file of another shape; names what it is, and the first tensors that differ.
    """
    network, label = _parts(model)
    weights = dit_keys.convert_state_dict(theirs, network.config)
    rows, expected = weights.label[dit_keys.OUR_LABEL].shape, label.table.weight.shape
    if rows != expected:
        raise WeightsError(
            f"the table of labels: {tuple(rows)} in the file, {tuple(expected)} in the model; "
            "set its classes, and a drop above 0 where the file has a row for none"
        )
    network.load_state_dict(in_float(weights.network))
    label.load_state_dict(in_float(weights.label))


def tensors_of(model: Model, layout: dit_keys.Layout = "dit") -> dict[str, Tensor]:
    """Return the state dict of a model in either layout.

    Raises:
        RecipeError: The layouts cannot hold the model.
    """
    network, label = _parts(model)
    return dit_keys.published_state_dict(network.state_dict(), network.config, label.state_dict(), layout)


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write a model in the published layout."""
    return save_file(path, tensors_of(model))


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
    weights = dit_keys.convert_state_dict(theirs, config)
    rows = len(weights.label[dit_keys.OUR_LABEL])
    classes = rows - 1 if classes is None else classes
    if classes not in (rows, rows - 1):
        raise WeightsError(f"classes = {classes}: the file's table of labels has {rows} rows; one may be for none")
    learned = config.out_channels == 2 * config.in_channels
    if not learned and config.out_channels != config.in_channels:
        raise WeightsError(f"{config.out_channels} channels out of {config.in_channels}: must be as many, or twice")
    settings = ("patch", "depth", "hidden_size", "heads", "mlp_ratio", "embedding", "embedders", "mlp_norm_eps")
    sample = dict(scheduler.sample)
    if rows == classes or config.in_channels < sample["guidance"].get("channels", 0):
        sample.pop("guidance")
    plain = {
        "shape": (config.in_channels, config.size, config.size),
        "network": {"kind": "dit", **{name: getattr(config, name) for name in settings}},
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
    with meta_device():  # no weight is initialised that the file replaces
        model = build(described)
    model.denoiser.network.load_state_dict(in_float(weights.network), assign=True)
    model.conditioners["label"].load_state_dict(in_float(weights.label), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


# -- diffusers' folders -------------------------------------------------------------------------------------------


def is_folder(path: Path) -> bool:
    """Return whether this is a diffusers folder with a DiT in it, or the transformer's own."""
    place = _transformer(path)
    return place is not None and read_json(place / "config.json").get("_class_name") in CLASSES


def load_folder(path: Path, dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    """Load the model of a `DiTPipeline` folder, or of a folder of its transformer alone.

    Args:
        path: The folder.
        dtype: Unused: the model is float32.

    Raises:
        WeightsError: No such folder, damaged files, settings that this network does not have, or anything in the
            folder that would have to be run.
    """
    del dtype
    if pipeline_folder.is_folder(path):
        pipeline_folder.PipelineFolder(path)  # refuses code
    model = read_folder(path)
    return LoadedCheckpoint(model, len(model.state_dict()))


def read_folder(path: Path) -> Model:
    """Return the model of a folder, in evaluation mode.

    Raises:
        WeightsError: No such folder, damaged files, or settings that this network does not have.
    """
    place = _transformer(path)
    if place is None:
        raise WeightsError(f"{path}: no folder of diffusers' DiT: there is neither config.json nor transformer/")
    settings = read_json(place / "config.json")
    for name, value in FIXED.items():
        if settings.get(name, value) != value:
            raise WeightsError(f"{place / 'config.json'}: {name} = {settings[name]!r}: only {value!r} is supported")
    theirs = read_weights(place, WEIGHTS, pickled=f"{WEIGHTS}.bin")
    config = dit_keys.config_from_keys(
        shapes_of(theirs), int(settings["num_attention_heads"]), int(settings["sample_size"])
    )
    config = replace(config, mlp_norm_eps=float(settings.get("norm_eps", 1e-5)))
    config = dit_keys.with_untied_embeddings(theirs, config)
    scheduler = _scheduler(path / "scheduler" / "scheduler_config.json")
    classes = int(settings.get("num_embeds_ada_norm", 1000))
    return _model(theirs, config, scheduler, classes, _class_names(path / "model_index.json", classes))


def digest(path: Path) -> str:
    """Return one hash over the settings and the weights that determine a folder's images."""
    place = _transformer(path) or path
    files = sorted(file for file in place.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
    scheduler = path / "scheduler" / "scheduler_config.json"
    text = "".join(f"{file.name} {sha256(file)}\n" for file in [*files, *([scheduler] if scheduler.is_file() else [])])
    return hashlib.sha256(text.encode()).hexdigest()


def describe(path: Path) -> str:
    """Return the title of a folder."""
    return f"a folder of diffusers, {'DiTPipeline' if pipeline_folder.is_folder(path) else CLASSES[0]}"


def inspect_folder(path: Path) -> dict[str, Any]:
    """Describe a folder by its headers and settings."""
    if pipeline_folder.is_folder(path):
        return pipelines.inspect(path)
    headers = {file.name: read_header(file) for file in weight_files(path, WEIGHTS)}
    return {"path": str(path), "what": describe(path)} | model_folder.summary(headers)


def write_folder(model: Model, path: Path) -> int:
    """Write transformer, scheduler and index of a `DiTPipeline`; returns the number of tensors.

    The autoencoder has to be added to the folder, or passed to diffusers: `DiTPipeline.from_pretrained(path, vae=...)`.

    Raises:
        RecipeError: The layout cannot hold the model.
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
    return len(tensors)


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
        raise RecipeError("this model was not built from a recipe, which determines its process")
    sampling = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0}
    return sampling | process_settings(model.config)


def _transformer(path: Path) -> Path | None:
    return next((place for place in (path / "transformer", path) if (place / "config.json").is_file()), None)


def _scheduler(path: Path) -> SchedulerConfig:
    """Return the scheduler of a folder; without the file that of the published model."""
    scheduler = read_scheduler(path) if path.is_file() else scheduler_of({"clip_sample": False}, path)
    return replace(scheduler, sample={**scheduler.sample, "steps": 50, "guidance": {"scale": 4.0}})


def _class_names(path: Path, classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes, if the folder has one for each."""
    labels = read_json(path).get("id2label") if path.is_file() else None
    if not isinstance(labels, dict) or sorted(labels) != sorted(str(number) for number in range(classes)):
        return None
    return tuple(str(labels[str(number)]) for number in range(classes))


FORMATS = (
    Format(
        name="dit",
        signatures=(
            Signature("a DiT", {"patches": "x_embedder.proj.weight", "time embedding": "t_embedder.mlp.0.weight"}),
            Signature("a DiT of diffusers", {"patches": "pos_embed.proj.weight", "blocks": "transformer_blocks.0."}),
        ),
        is_folder=is_folder,
        load=load,
        load_folder=load_folder,
        fill=fill_model,
        save=save,
        describe=describe,
        inspect_folder=inspect_folder,
        digest=digest,
        endings=(".safetensors", ".pt"),
        overrides=frozenset({"heads", "classes", "size"}),
        cannot_hold="a noise process, a prediction, an autoencoder, or a network other than a DiT with one label",
        priority=1,  # a DiTPipeline is a diffusers folder too
    ),
)
