"""Migration of former names: recipes, saved models, runs and reports of earlier versions are converted to new names.

The tables hold every key that was renamed, by section. `migrate` rewrites plain values, `migrate_path` the dotted path
of an override, `migrate_settings` the flat settings of sampling in metadata. `foreign` names our key for one of another
library. A section is named by its place in a recipe and its kind: `train`, `network/unet`, `data/folder`; the rows of
`network` apply to every kind of network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unveil.errors import DataError, RecipeError

_log = logging.getLogger("unveil.model")
# bundled recipes by their former names
RECIPES = {"own-pictures": "own-images", "video-clips": "own-videos"}
_UNET = {"channels": "model_channels", "multipliers": "channel_mult", "blocks": "num_res_blocks"}
_FOLDER = {
    "small": "undersized",
    "text": "caption_column",
    "label": "label_column",
    "synthetic": "synthetic_column",
    "captions": "captions_file",
    "share": "synthetic_prob",
    "held_out": "val_fraction",
}
_DIT = {"width": "hidden_size", "hidden": "mlp_ratio", "recompute": "gradient_checkpointing"}
_SCORES = {
    f"{attribute} as asked, {prompts}": f"{attribute} as in the prompt, {prompts}"
    for attribute in ("colour", "shape", "motion", "all")
    for prompts in ("validation", "seen", "held-out")
}

# The former name of each key and its name now, by section.
RENAMED: dict[str, dict[str, str]] = {
    "recipe": {"paper": "reference", "small": "smoke_test", "codec": "autoencoder"},
    "train": {
        "batch": "batch_size",
        "betas": "adam_betas",
        "clip": "grad_clip_norm",
        "flip": "random_flip",
        "ema": "ema_decay",
        "accumulate": "grad_accum_steps",
        "latents": "cache_latents",
        "workers": "num_workers",
        "smoothing": "label_smoothing",
    },
    "train/diffusion": {"decay": "lr_decay_ratio"},
    "train/autoencoder": {"decay": "lr_decay_ratio"},
    "train/captioner": {"decay": "lr_decay_ratio"},
    "train/sequence": {"decay": "lr_schedule"},
    "train/classifier": {"shift": "translate", "turn": "degrees", "zoom": "scale", "sides": "sizes"},
    "evaluate": {
        "compared": "num_real",
        "floor_splits": "fid_floor_splits",
        "bound": "vlb_images",
        "bound_steps": "vlb_steps",
        "ode": "nll_images",
        "ode_probes": "nll_probes",
        "lists": "prompt_sets",
        "pictures": "num_images",
        "longer": "extra_lengths",
    },
    "sample": {"grid": "schedule", "clip": "threshold"},
    "process/discrete-vp": {
        "betas": "beta_schedule",
        "steps": "timesteps",
        "start": "beta_start",
        "end": "beta_end",
        "rescale": "rescale_timesteps",
    },
    "prediction": {"steps": "timesteps"},
    "file": {  # what the keys of a published file leave open
        "betas": "beta_schedule",
        "steps": "timesteps",
        "rescale": "rescale_timesteps",
        "blocks": "num_res_blocks",
    },
    "network": {"context_channels": "concat_channels", "classes": "num_classes"},
    "network/unet": {**_UNET, "modulation": "time_scale_shift", "context_width": "cross_attention_dim"},
    "network/song-unet": _UNET,
    "network/dhariwal-unet": _UNET,
    "network/noisy-classifier": {**_UNET, "modulation": "time_scale_shift"},
    "network/dit": {**_DIT, "design": "block_type"},
    "network/transformer": {"limit": "max_length", "width": "hidden_size", "hidden": "intermediate_size"},
    "network/captioner": {
        "limit": "max_length",
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "hidden": "mlp_ratio",
    },
    "network/vit": {"width": "hidden_size", "hidden": "mlp_ratio"},
    "network/boxes": {"channels": "hidden_size", "blocks": "depth"},
    "data": {"hint": "control_image"},
    "data/folder": {**_FOLDER, "low": "low_res"},
    "data/video-folder": {
        **_FOLDER,
        "hop": "stride",
        "short": "too_short",
        "chunk": "temporal_multiple",
        "multiple": "size_multiple",
    },
    "data/latents": {"held_out": "val_fraction"},
    "data/fashion": {"low": "low_res"},
    "data/playground": {
        "smallest": "min_size",
        "largest": "max_size",
        "patterned": "p_pattern",
        "occluded": "p_occluder",
        "panned": "p_camera",
        "registers": "caption_styles",
        "faults": "caption_error_rate",
        "captions": "captions_file",
        "share": "synthetic_prob",
        "held_out": "num_val",
        "cut": "crop",
    },
    "data/scenes": {"held_out": "num_val", "said": "mentioned"},
    "data/task": {"held_out": "num_val", "shortest": "min_length", "longest": "max_length"},
    "data/scene-pairs": {"held_out": "num_val"},
    "condition": {"drop": "drop_prob", "classes": "num_classes"},
    "condition/layout": {"most": "max_objects"},
    "condition/learned-text": {"limit": "vocab_size", "most": "max_length", "width": "hidden_size"},
    "condition/text": {
        "gives": "output",
        "emphasis": "prompt_weighting",
        "chunks": "num_chunks",
        "nothing": "uncond",
    },
    "encoder": {"vocabulary": "vocab_size", "length": "max_length", "width": "hidden_size"},
    "encoder/clip": {"hidden": "mlp_ratio"},
    "encoder/t5": {"hidden": "intermediate_size", "head_width": "head_dim"},
    "weight/flow": {"most": "max_weight"},
    "objective": {"time": "timestep_sampling", "ways": "context_modes"},
    "context_modes": {
        "head": "prefix",
        "tail": "suffix",
        "both": "both_ends",
        "some": "random",
        "own": "independent",
    },
    "scores": {**_SCORES, "attributes told right": "correct attributes"},
    "tokens": {"limit": "vocab_size"},
    "words": {"limit": "vocab_size"},
    "decode": {"beams": "num_beams", "length_power": "length_penalty"},
    "autoencoder": _UNET,
    "autoencoder/vq": {"codes": "codebook_size", "decay": "ema_decay", "restart": "restart_dead"},
    "lengths": {"pictures": "image_prob", "shortest": "min_frames"},
    "loss": {"kl": "kl_weight", "codebook": "codebook_weight", "log_scale": "logvar_init"},
    "network/video-dit": {
        **_DIT,
        "context_width": "cross_attention_dim",
        "pattern": "attention_pattern",
        "waves": "pos_fourier_dim",
        "theta": "rope_theta",
    },
}

# The former name of each kind that was renamed, by section.
KINDS: dict[str, dict[str, str]] = {
    "data": {"clips": "video-folder"},
    "process": {"root-shifted": "sqrt-size-shifted"},
    "condition": {
        "words": "learned-text",
        "label": "class-label",
        "label-token": "class-label-token",
        "quantised": "binned-value",
        "context": "concat",
    },
    "objective": {"framewise": "diffusion-forcing"},
    "context_modes": {"ways": "context_modes"},
}

# Values of a key (by its new name) that are written in another way now.
VALUES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("train", "cache_latents"): lambda value: (
        {"cache": True, "encode": False}.get(value, value) if isinstance(value, str) else value
    ),
}

# The section that a key of a section holds, by the key's new name; where it is a list, that of each of its items.
INSIDE: dict[str, dict[str, str]] = {
    "recipe": {
        name: name
        for name in (
            "train",
            "data",
            "network",
            "process",
            "prediction",
            "condition",
            "autoencoder",
            "sample",
            "objective",
            "expected",
        )
    }
    | {name: name for name in ("evaluate", "loss", "tokens", "words", "decode", "lengths", "lora", "control")},
    "file": {"process": "process", "prediction": "prediction"},
    "process": {"process": "process"},
    "condition": {"encoder": "encoder"},
    "objective": {"timestep_sampling": "time", "context_modes": "context_modes", "weight": "weight"},
    "expected": {"scores": "scores"},
    "time": {"of": "time"},
    "data": {"control_image": "hint"},
    "sample": {"guidance": "guidance"},
    "loss": {"perceptual": "perceptual", "discriminator": "discriminator"},
    "evaluate": {"perceptual": "perceptual"},
}

# Keys of other libraries and scripts: where the same is set here, and what is to be known about it.
FOREIGN: dict[str, str] = {
    **dict.fromkeys(("learning_rate", "base_lr", "base_learning_rate", "max_lr"), "train.lr"),
    **dict.fromkeys(
        ("num_epochs", "num_train_epochs", "max_epochs", "epochs", "n_epochs"),
        "train.steps, which counts optimiser steps: epochs x images / batch_size",
    ),
    **dict.fromkeys(
        ("max_steps", "max_train_steps", "train_num_steps", "total_steps", "num_steps", "iterations", "max_iters"),
        "train.steps",
    ),
    **dict.fromkeys(
        ("lr_scheduler", "lr_scheduler_type", "scheduler_type"),
        "train.warmup and train.lr_decay_ratio, the fraction of the run over which the rate falls",
    ),
    **dict.fromkeys(("lr_warmup_steps", "warmup_steps", "num_warmup_steps"), "train.warmup"),
    **dict.fromkeys(
        ("train_batch_size", "per_device_train_batch_size", "global_batch_size", "batchsize", "bs"), "train.batch_size"
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulate_grad_batches", "gradient_accumulate_every"),
        "train.grad_accum_steps",
    ),
    **dict.fromkeys(("mixed_precision", "fp16", "bf16", "use_fp16", "amp"), "train.precision"),
    **dict.fromkeys(("max_grad_norm", "gradient_clip_val", "clip_grad_norm", "grad_clip"), "train.grad_clip_norm"),
    **dict.fromkeys(("ema_rate", "use_ema", "ema_max_decay"), "train.ema_decay"),
    **dict.fromkeys(("dataloader_num_workers",), "train.num_workers"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "train.adam_betas, a list of both"),
    **dict.fromkeys(("adam_weight_decay",), "train.weight_decay"),
    **dict.fromkeys(("checkpointing_steps", "save_steps", "save_interval", "save_model_every"), "train.save_every"),
    **dict.fromkeys(("validation_steps", "eval_steps"), "train.validate_every"),
    **dict.fromkeys(("center_flip", "horizontal_flip"), "train.random_flip"),
    **dict.fromkeys(("image_size", "resolution", "img_size"), "data.size, and shape: [channels, height, width]"),
    **dict.fromkeys(
        ("train_data_dir", "instance_data_dir", "data_dir", "dataset", "dataset_name", "data_path"),
        "data, such as data: {kind: folder, path: photos}",
    ),
    **dict.fromkeys(("caption_key", "text_column"), "data.caption_column"),
    **dict.fromkeys(("image_column", "image_key", "video_column", "video_key"), "data.file_column"),
    **dict.fromkeys(("output_dir", "logging_dir"), "no key: give unveil train --output-dir"),
    **dict.fromkeys(("resume_from_checkpoint",), "no key: train again with the same output folder"),
    **dict.fromkeys(
        ("pretrained_model_name_or_path", "pretrained_model", "init_from", "resume_from", "base_model"), "base"
    ),
    **dict.fromkeys(
        ("block_out_channels", "ch_mult", "channel_multipliers"),
        "network.channel_mult, as multiples of network.model_channels",
    ),
    **dict.fromkeys(("num_channels", "dim", "base_channels"), "network.model_channels"),
    **dict.fromkeys(("layers_per_block", "n_res_blocks"), "network.num_res_blocks"),
    **dict.fromkeys(
        ("attention_resolutions", "attn_resolutions"), "network.attention, as factors by which the image is reduced"
    ),
    **dict.fromkeys(("use_scale_shift_norm", "resnet_time_scale_shift"), "network.time_scale_shift"),
    **dict.fromkeys(("use_checkpoint", "use_gradient_checkpointing"), "network.gradient_checkpointing"),
    **dict.fromkeys(("num_train_timesteps", "diffusion_steps", "num_timesteps", "n_timestep"), "process.timesteps"),
    **dict.fromkeys(("noise_schedule", "schedule_name", "beta_scheduler"), "process.beta_schedule"),
    **dict.fromkeys(("rescale_betas_zero_snr",), "process.last: zero-snr"),
    **dict.fromkeys(("prediction_type", "parameterization", "objective_type"), "prediction"),
    **dict.fromkeys(("learn_sigma", "learned_sigma"), "variance: learned-range"),
    **dict.fromkeys(("timestep_respacing", "timesteps_respacing"), "sample.schedule"),
    **dict.fromkeys(("num_inference_steps", "sampling_timesteps", "sampling_steps"), "sample.steps"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale", "cond_scale"), "sample.guidance.scale"),
    **dict.fromkeys(("clip_sample", "clip_denoised", "dynamic_thresholding", "thresholding"), "sample.threshold"),
    **dict.fromkeys(
        ("class_dropout_prob", "cond_drop_prob", "p_uncond", "uncond_prob", "ucg_rate"), "condition.0.drop_prob"
    ),
    **dict.fromkeys(("num_classes", "class_cond"), "condition: [{kind: class-label, num_classes: ...}]"),
    **dict.fromkeys(("snr_gamma",), "objective.weight: {kind: min-snr, gamma: ...}"),
    **dict.fromkeys(("lora_rank", "network_dim", "r"), "lora.rank"),
    **dict.fromkeys(("lora_alpha", "network_alpha"), "lora.alpha"),
    **dict.fromkeys(("paper_url", "citation"), "reference"),
    "seed": "train.seed",
}

# Flat settings of sampling, as metadata and reports hold them.
SETTINGS = {
    "grid": "schedule",
    "clip": "threshold",
    "scale": "guidance_scale",
    "guidance": "guidance_kind",
    "interval": "guidance_interval",
    "rescale": "guidance_rescale",
    "channels": "guidance_channels",
}

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine", "power-cosine")  # former values of "schedule"


class Former:
    """Former names that were found in one file or one override, for one warning.

    Args:
        where: Name of the file or text of the override.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.pairs: dict[str, str] = {}

    def add(self, former: str, now: str) -> None:
        """Record a former name and the new one."""
        self.pairs[former] = now

    def warn(self) -> None:
        """Log the warning, if there is a former name."""
        if self.pairs:
            _log.warning("%s", self)

    def __str__(self) -> str:
        listed = ", ".join(f"{former} is now {now}" for former, now in self.pairs.items())
        return f"{self.where}: former names are read: {listed}; write the new ones"


def migrate(raw: Any, section: str = "recipe", former: Former | None = None) -> Any:
    """Return the plain values of a section with new names; the given values are not changed.

    Args:
        section: Kind of the values, such as `recipe` for a recipe or a model.yaml, `sample`, `network`.
        former: Record to which the former names are added.

    Raises:
        RecipeError: A key is given by its former and by its new name.
    """
    return _section(
        raw, section, "", former or Former(""), str(raw.get("kind", "")) if isinstance(raw, Mapping) else ""
    )


def migrate_path(raw: Any, path: str, value: Any, former: Former | None = None) -> tuple[str, Any]:
    """Return the dotted path and the value of an override in new names.

    Args:
        raw: Recipe that is overridden, in new names.
    """
    former = former or Former("")
    section, here, done = "recipe", raw, []
    recipe_kind = str(raw.get("kind", "diffusion")) if isinstance(raw, Mapping) else "diffusion"
    keys = path.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, Sequence) and not isinstance(here, str) and key.isdigit():
            done.append(key)
            here = here[int(key)] if int(key) < len(here) else None
            if last:
                value = _section(value, section, ".".join(done), former, recipe_kind)
            continue
        kind = _kind_of(here, section, recipe_kind)
        name = _renames(section, kind).get(key, key)
        if last:
            value = _value(value, section, name, ".".join([*done, name]), former, recipe_kind)
        done.append(name)
        here = here.get(name) if isinstance(here, Mapping) else None
        section = _inside(section, name)
    now = ".".join(done)
    if now != path:
        former.add(path, now)
    return now, value


def migrate_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings of sampling in new names; other keys are not changed."""
    raw = dict(settings)
    if raw.get("schedule") in GUIDANCE_SCHEDULES:
        raw["guidance_schedule"] = raw.pop("schedule")
    for before, now in SETTINGS.items():
        if isinstance(raw.get(before), Mapping):  # of a video's metadata, whose "clip" is its size
            continue
        if before in raw:
            value = raw.pop(before)
            raw.setdefault(now, value)
    return raw


def foreign(key: str, allowed: Sequence[str]) -> str:
    """Return the name of another library's key here, as the end of a message; empty if it is unknown."""
    ours = FOREIGN.get(key)
    if ours is None:
        return ""
    name = ours.split(",")[0].split(":")[0].rpartition(".")[2]
    return f"; here it is {name if ours.rpartition('.')[2] == name and name in allowed else ours}"


def _section(raw: Any, section: str, path: str, former: Former, recipe_kind: str) -> Any:
    if isinstance(raw, list | tuple):
        return [_section(item, section, f"{path}.{place}", former, recipe_kind) for place, item in enumerate(raw)]
    if isinstance(raw, str):  # a kind alone, as a weight may be written
        return _kind(raw, section, path, former)
    if not isinstance(raw, Mapping):
        return raw
    names = _renames(section, _kind_of(raw, section, recipe_kind))
    migrated: dict[Any, Any] = {}
    for key, value in raw.items():
        name = str(names.get(key, key))
        if name in migrated or (name != key and name in raw):
            raise RecipeError(f"{_join(path, key)} is the former name of {name}, and both are given; leave {key} out")
        if name != key:
            former.add(_join(path, key), _join(path, name))
        migrated[name] = _value(value, section, name, _join(path, name), former, recipe_kind)
    if section == "recipe" and isinstance(changes := migrated.get("smoke_test"), Mapping):
        migrated["smoke_test"] = _smoke_test(migrated, changes)
    return migrated


def _smoke_test(recipe: Mapping[str, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    moved = (
        migrate_path(recipe, path, value) if isinstance(path, str) else (path, value) for path, value in changes.items()
    )
    return dict(moved)


def _value(value: Any, section: str, name: str, path: str, former: Former, recipe_kind: str) -> Any:
    if name == "kind":
        return _kind(value, section, path, former)
    if (change := VALUES.get((section, name))) is not None:
        return change(value)
    inside = _inside(section, name)
    return _section(value, inside, path, former, recipe_kind) if inside else value


def _kind(value: Any, section: str, path: str, former: Former) -> Any:
    now = KINDS.get(section, {}).get(value, value) if isinstance(value, str) else value
    if now != value:
        former.add(f"{path}: {value}", str(now))
    return now


def _kind_of(raw: Any, section: str, recipe_kind: str) -> str:
    if section == "train":
        return recipe_kind or "diffusion"
    kind = raw.get("kind", "") if isinstance(raw, Mapping) else ""
    return KINDS.get(section, {}).get(kind, kind) if isinstance(kind, str) else ""


def _renames(section: str, kind: str) -> dict[str, str]:
    return RENAMED.get(section, {}) | RENAMED.get(f"{section}/{kind}", {})


def _inside(section: str, name: str) -> str:
    return INSIDE.get(section, {}).get(name, "")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


METADATA_FORMAT = 3
_TASK_FORMAT = 2  # since which metadata hold the task
_END_FORMAT = 3  # since which samplers in time take x0 in the step onto clean data
IN_TIME = ("euler-time", "heun-time", "midpoint-time", "adams-bashforth-2")
RENAMED_IN_FORMAT = ('"asked"', '"controls"')  # keys with values that had other names in metadata of this format
VIDEO_TASKS = {"picture": "image"}  # former names of tasks in records of benchmarks of video models
ROLES = {"picture": "image", "noise": "latents"}  # former names of the fields that hold inputs
CONTROL_KEYS = {"picture": "image", "picture_sha256": "image_sha256"}  # former keys of a ControlNet's metadata


def migrate_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata in the present format.

    Args:
        facts: Metadata of any format.

    Raises:
        DataError: The metadata are damaged.
    """
    facts = _with_former_end(_renamed_keys(facts))
    if "fps" in facts:  # a video: its metadata of format 1 lack what is needed to generate it again
        return facts
    if facts.get("format", 1) >= _TASK_FORMAT or not isinstance(facts.get("model"), Mapping):
        return facts
    former = facts.get("task")
    try:
        if former is None:
            facts["task"] = {"name": "sample"}
        elif isinstance(former, Mapping) and former.get("verb") in _TASKS:
            facts["task"] = _TASKS[str(former["verb"])](former, facts)
            facts["inputs"] = _with_roles(former.get("inputs", {}))
            facts |= {key: former[key] for key in ("passes",) if key in former}
        else:
            return facts
        batch = facts.get("batch")
        if isinstance(batch, Mapping) and "inputs" in batch:
            facts["batch"] = {**batch, "inputs": _with_roles(batch["inputs"])}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
        raise DataError(f"the image's metadata lack {problem}; use the file as it was written") from problem
    return facts | {"format": _TASK_FORMAT}


def _with_former_end(facts: dict[str, Any]) -> dict[str, Any]:
    """State the rule of the last step that samplers in time had: along the velocity."""
    former = facts.get("format", 1)
    if not isinstance(former, int) or former >= _END_FORMAT or facts.get("sampler") not in IN_TIME:
        return facts
    options = facts.get("options")
    return facts | {"options": {"end": "velocity", **(options if isinstance(options, Mapping) else {})}}


def _renamed_keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rename keys that had another name in metadata of the same format."""
    renamed = {"typed" if key == "asked" else key: value for key, value in facts.items()}
    if isinstance(batch := renamed.get("batch"), Mapping) and "asked" in batch:
        renamed["batch"] = {"typed" if key == "asked" else key: value for key, value in batch.items()}
    if isinstance(controls := renamed.get("controls"), list) and all(isinstance(item, Mapping) for item in controls):
        renamed["controls"] = [{CONTROL_KEYS.get(key, key): item[key] for key in item} for item in controls]
    return renamed


def _with_roles(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {ROLES.get(role, role): files for role, files in inputs.items()}


def _file(former: Mapping[str, Any], role: str) -> str:
    return str(former.get("inputs", {}).get(role, {}).get("name", role))


def _img2img(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "img2img", "image": _file(former, "picture"), "strength": former["strength"]}


def _inpainting(former: Mapping[str, Any]) -> dict[str, Any]:
    length, times = former["jumps"]
    jumps = {"repaint_jump_length": length, "repaint_resamples": times}
    return {"feather": former["feather"], "method": former["method"], **jumps}


def _inpaint(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    files = {"image": _file(former, "picture"), "mask": _file(former, "mask")}
    return {"name": "inpaint", **files, "strength": former["strength"], **_inpainting(former)}


def _outpaint(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    margins = dict(zip(("left", "right", "top", "bottom"), former["margins"], strict=True))
    return {"name": "outpaint", "image": _file(former, "picture"), **margins, **_inpainting(former)}


def _upscale(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: former[key] for key in ("factor", "strength", "overlap")}
    return {"name": "upscale", "image": _file(former, "picture"), **settings}


def _variations(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    seed, index = former["of"]
    return {
        "name": "variations",
        "image": "image",
        "variation_strength": former["amount"],
        "source_sample": [seed, index],
    }


def _interpolate(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    (first, index), (last, _) = former["ends"]
    cond = {key: [values[0], *former["to"].get(key, ())] for key, values in facts["batch"]["given"].items()}
    fields = {key: cond.pop(key) for key in ("prompt", "label") if key in cond}
    return {
        "name": "interpolate",
        "seed": [first, last],
        "start_index": index,
        "frames": former["frames"],
        **fields,
        **({"cond": cond} if cond else {}),
    }


def _noise(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "sample", "latents": _file(former, "noise")}


def _large(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "sample"}


_TASKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "img2img": _img2img,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "upscale": _upscale,
    "vary": _variations,
    "interpolate": _interpolate,
    "noise": _noise,
    "large": _large,
}
