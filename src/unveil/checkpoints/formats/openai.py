"""The format `openai`: files of Improved DDPM, ADM with its noisy classifiers, and consistency models.

A state dict shows widths, levels and where attention is. It does not show the side of the images, the heads of the
attention and the order of their rows, the noise schedule, whether timesteps are rescaled, or how the variance was
learned. For released files a table holds these settings: the flags of the scripts that trained them, found by keys and
shapes. For others they have to be given.

Facts: the READMEs and the defaults of github.com/openai/improved-diffusion, openai/guided-diffusion and
openai/consistency_models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unveil.checkpoints import openai_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, loaded, save_file
from unveil.checkpoints.overrides import ModelOverrides, Shapes, in_float, shapes_of
from unveil.checkpoints.unet_model import build_model, fill, label_table, network_of, network_section
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model
from unveil.model.config import ModelConfig, validate
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.layers import meta_device
from unveil.nn.unet import UNet, UNetConfig

# -- released files, as flags of the scripts that trained them --------------------------------------------------------

# Defaults of both repositories
FLAGS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "class_cond": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
    "timestep_respacing": None,  # all steps
}
# Channel multipliers that the scripts choose by the size of the images
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
UPSAMPLER_MULTIPLIERS = MULTIPLIERS | {512: (1, 1, 2, 2, 4, 4)}
# Arguments of the network that are flags of the same name
ALIKE = (
    "num_res_blocks",
    "num_heads",
    "num_heads_upsample",
    "num_head_channels",
    "dropout",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_new_attention_order",
)
CLASSIFIER_FLAGS: dict[str, Any] = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
# Flags that several files share
COSINE_4K = {"learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
ADM = {
    "attention_resolutions": "32,16,8",
    "learn_sigma": True,
    "resblock_updown": True,
    "timestep_respacing": 250,  # in ADM's README, except for LSUN, which has the keys of others
}
IMAGENET, HEADS = {"class_cond": True}, {"num_head_channels": 64}
CONSISTENCY = ADM | HEADS | {"learn_sigma": False, "sigma_min": 0.002, "sigma_max": 80.0}

# Flags of each released network, by the names of its files; files that differ only in their weights share an entry
FILES: dict[tuple[str, ...], dict[str, Any]] = {
    ("cifar10_uncond_50M_500K", "cifar10_uncond_vlb_50M_500K"): COSINE_4K
    | {"image_size": 32, "num_res_blocks": 3, "dropout": 0.3},
    ("imagenet64_uncond_100M_1500K", "imagenet64_uncond_vlb_100M_1500K"): COSINE_4K | {"num_res_blocks": 3},
    ("imagenet64_cond_270M_250K",): COSINE_4K
    | IMAGENET
    | {"num_channels": 192, "num_res_blocks": 3, "rescale_timesteps": False},
    ("lsun_uncond_100M_1200K_bs128", "lsun_uncond_100M_2400K_bs64"): {
        "image_size": 256,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
    },
    ("upsample_cond_500K",): COSINE_4K
    | IMAGENET
    | {"num_channels": 192, "large_size": 256, "noise_schedule": "linear", "rescale_timesteps": False},
    ("64x64_diffusion",): ADM
    | HEADS
    | IMAGENET
    | {
        "num_channels": 192,
        "num_res_blocks": 3,
        "dropout": 0.1,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
    },
    ("128x128_diffusion",): ADM | IMAGENET | {"image_size": 128, "num_channels": 256},
    ("256x256_diffusion",): ADM | HEADS | IMAGENET | {"image_size": 256, "num_channels": 256},
    ("256x256_diffusion_uncond", "lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_horse_nodropout"): ADM
    | HEADS
    | {"image_size": 256, "num_channels": 256},
    ("512x512_diffusion",): ADM | HEADS | IMAGENET | {"image_size": 512, "num_channels": 256},
    ("64_256_upsampler",): ADM | IMAGENET | {"num_channels": 192, "large_size": 256},
    ("128_512_upsampler",): ADM
    | HEADS
    | IMAGENET
    | {"num_channels": 192, "large_size": 512, "attention_resolutions": "32,16"},
    ("64x64_classifier",): {"classifier_depth": 4, "noise_schedule": "cosine"},
    **{(f"{size}x{size}_classifier",): {"classifier_depth": 2, "image_size": size} for size in (128, 256, 512)},
    ("cd_imagenet64_l2", "cd_imagenet64_lpips", "ct_imagenet64"): CONSISTENCY
    | IMAGENET
    | {"num_channels": 192, "num_res_blocks": 3},
    (
        *("cd_bedroom256_l2", "cd_bedroom256_lpips", "ct_bedroom256"),
        *("cd_cat256_l2", "cd_cat256_lpips", "ct_cat256"),
    ): CONSISTENCY | {"image_size": 256, "num_channels": 256, "use_scale_shift_norm": False},
}


def release_from_flags(flags: Mapping[str, Any]) -> UNetConfig:
    """Return the configuration that the published training scripts build; `large_size` makes it an upsampler.

    Args:
        flags: Flags of the command line, by name. Missing ones have the scripts' default. Flags of the process and of
            the training are ignored; `sigma_max` marks a consistency model.

    Raises:
        RecipeError: The scripts have no multipliers for the image size, and `channel_mult` is not given.
    """
    flags = FLAGS | dict(flags)
    size = flags.get("large_size", flags["image_size"])
    table = UPSAMPLER_MULTIPLIERS if "large_size" in flags else MULTIPLIERS
    if flags["channel_mult"]:
        multipliers = tuple(float(m) if "." in m else int(m) for m in str(flags["channel_mult"]).split(","))
    elif size in table:
        multipliers = table[size]
    else:
        raise RecipeError(f"image_size {size}: must be one of {', '.join(map(str, table))}, or give channel_mult")
    config = openai_keys.config_from_arguments(
        {
            "in_channels": 3,
            "out_channels": 6 if flags["learn_sigma"] else 3,
            "model_channels": flags["num_channels"],
            "channel_mult": multipliers,
            "attention_resolutions": _rates(size, flags["attention_resolutions"]),
        }
        | {name: flags[name] for name in ALIKE}
    )
    config = openai_keys.consistency(config) if "sigma_max" in flags else config
    return openai_keys.upsampler(config) if "large_size" in flags else config


def classifier_from_flags(flags: Mapping[str, Any]) -> NoisyClassifierConfig:
    """Return the configuration that the published scripts build of a classifier's flags, for the classes of ImageNet.

    Raises:
        RecipeError: The scripts have no multipliers for the image size.
    """
    flags = CLASSIFIER_FLAGS | dict(flags)
    size = flags["image_size"]
    if size not in MULTIPLIERS:
        raise RecipeError(f"image_size {size}: must be one of {', '.join(map(str, MULTIPLIERS))}")
    return openai_keys.classifier_config_from_arguments(
        {
            "image_size": size,
            "in_channels": 3,
            "out_channels": 1000,
            "model_channels": flags["classifier_width"],
            "num_res_blocks": flags["classifier_depth"],
            "channel_mult": MULTIPLIERS[size],
            "attention_resolutions": _rates(size, flags["classifier_attention_resolutions"]),
            "num_head_channels": 64,
            "use_scale_shift_norm": flags["classifier_use_scale_shift_norm"],
            "resblock_updown": flags["classifier_resblock_updown"],
            "pool": flags["classifier_pool"],
        }
    )


def _rates(size: int, sides: object) -> list[int]:
    return [size // int(side) for side in str(sides).split(",")]


# -- what a file contains -------------------------------------------------------------------------------------------

# Published names of noise schedules, and ours
BETAS = {"linear": "linear-scaled", "cosine": "cosine"}
LOW_RES_KEY = "low"  # key of the image that an upsampler enlarges
# How consistency models are sampled (of two calls on this schedule the second is close to the published level), and
# their teachers; and the steps of an ancestral chain whose script is not known
CONSISTENCY_SAMPLE = {"sampler": "consistency", "steps": 1, "schedule": "uniform-log-snr"}
TEACHER_SAMPLE = {"sampler": "heun", "steps": 40, "schedule": "karras"}
ANCESTRAL_STEPS = 250

REQUIRED = ("size", "heads|head_channels", "attention_order", "beta_schedule", "timesteps", "rescale_timesteps")


@dataclass(frozen=True)
class ReleasedModel:
    """The network of a file, with the settings that its keys do not show.

    Attributes:
        files: Names of the released files with these keys and shapes; empty if the settings were given by the user.
        network: Configuration of the network.
        size: Side of the images.
        classes: Number of classes, of the label table or of a classifier; None: there are none.
        process: Noise process, as in a recipe; a classifier is given its index too.
        prediction: Prediction, as in a recipe.
        variance: Variance, as in a recipe; None for a classifier.
        steps: Steps of the ancestral sampler in the published script's commands; None: the whole chain.
    """

    files: tuple[str, ...]
    network: UNetConfig | NoisyClassifierConfig
    size: int
    classes: int | None
    process: Mapping[str, Any]
    prediction: Any = "eps"
    variance: str | None = None
    steps: int | None = None

    @property
    def sample(self) -> dict[str, Any]:
        """Sampling settings of the published scripts."""
        if self.process["kind"] == "discrete-vp":
            table = self.process.get("beta_schedule")
            total = (self.process.get("timesteps") or 1000) if table is None or isinstance(table, str) else len(table)
            steps = min(self.steps or total, total)
            return {"sampler": "ancestral", "steps": steps, "schedule": str(steps)}
        if isinstance(self.prediction, str):
            return {}
        kind = self.prediction["kind"] if isinstance(self.prediction, Mapping) else self.prediction.kind
        return CONSISTENCY_SAMPLE if kind == "consistency" else TEACHER_SAMPLE

    def model_config(self) -> ModelConfig:
        """Return the configuration of the model.

        Raises:
            WeightsError: The network is a classifier.
        """
        if not isinstance(self.network, UNetConfig):
            raise WeightsError("this file is a noisy classifier, which guides a model and makes no images itself")
        condition: list[dict[str, Any]] = []
        if self.classes is not None:
            condition.append({"kind": "class-label", "num_classes": self.classes})
        if self.network.concat_channels:
            condition.append({"kind": "concat", "key": LOW_RES_KEY, "channels": self.network.concat_channels})
        plain = {
            "shape": (self.network.in_channels, self.size, self.size),
            "network": network_section(self.network),
            "process": dict(self.process),
            "prediction": self.prediction,
            "variance": self.variance,
            "condition": condition,
            "sample": self.sample,
        }
        return validate(ModelConfig, plain, " or ".join(self.files) or "the file")


def match_release(shapes: Shapes, overrides: ModelOverrides | None = None) -> ReleasedModel:
    """Return the network of a state dict with these keys and shapes.

    Args:
        shapes: Shapes of the tensors, by published key.
        overrides: Settings that the keys do not show; they take precedence over the table of released files.

    Raises:
        WeightsError: The keys are not those of such a network, or they are those of no released file and a setting is
            missing; it is named.
    """
    overrides = overrides or ModelOverrides()
    matched = released(shapes) or _from_overrides(shapes, overrides)
    network, process = matched.network, dict(matched.process)
    if overrides.heads is not None or overrides.head_channels is not None:
        network = replace(network, heads=overrides.heads or 1, head_channels=overrides.head_channels)
    if overrides.attention_order is not None:
        network = replace(network, attention_order=overrides.attention_order)
    process |= {
        name: getattr(overrides, name)
        for name in ("beta_schedule", "timesteps", "rescale_timesteps")
        if name in overrides.model_fields_set
    }
    if overrides.process is not None:
        process = overrides.process.model_dump(mode="json")
    settings = {name: value for name in ("size", "variance", "prediction") if (value := getattr(overrides, name))}
    return replace(matched, network=network, process=process, **settings)


def released(shapes: Shapes) -> ReleasedModel | None:
    """Return the released network with exactly these keys and shapes, if there is one."""
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    outline = {
        "width": shapes.get("time_embed.0.weight", (0, 0))[-1],
        "classifier": "output_blocks.0.0.in_layers.0.weight" not in shapes,
        "labels": openai_keys.LABEL in shapes,
        "inputs": shapes.get("input_blocks.0.0.weight", (0, 0))[1],
    }
    for files, flags in FILES.items():
        all_flags = FLAGS | CLASSIFIER_FLAGS | flags
        classifier = "classifier_depth" in flags
        expected = {
            "width": all_flags["classifier_width" if classifier else "num_channels"],
            "classifier": classifier,
            "labels": all_flags["class_cond"],
            "inputs": 6 if "large_size" in flags else 3,
        }
        # only the few networks of this outline are built, which takes no memory but time
        if expected == outline and shapes == _shapes(files):
            return release(files)
    return None


@cache
def release(files: tuple[str, ...]) -> ReleasedModel:
    """Return the entry of the table under these names."""
    flags = FLAGS | FILES[files]
    process = {
        "kind": "discrete-vp",
        "beta_schedule": BETAS[flags["noise_schedule"]],
        "timesteps": flags["diffusion_steps"],
        "rescale_timesteps": 1000.0 if flags["rescale_timesteps"] else None,
    }
    if "classifier_depth" in flags:
        classifier = classifier_from_flags(FILES[files])
        return ReleasedModel(files, classifier, classifier.size, classifier.num_classes, process)
    size = flags.get("large_size", flags["image_size"])
    classes = 1000 if flags["class_cond"] else None
    network = release_from_flags(FILES[files])
    if "sigma_max" in flags:
        ends = {"sigma_min": flags["sigma_min"], "sigma_max": flags["sigma_max"]}
        boundary = {"kind": "consistency", "sigma_min": flags["sigma_min"]}
        return ReleasedModel(files, network, size, classes, {"kind": "edm", **ends}, boundary, "fixed-small")
    variance = "learned-range" if flags["learn_sigma"] else "fixed-large"
    steps = flags["timestep_respacing"]
    return ReleasedModel(files, network, size, classes, process, variance=variance, steps=steps)


@cache
def _shapes(files: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    entry = release(files)
    with meta_device():
        if isinstance(entry.network, NoisyClassifierConfig):
            theirs = openai_keys.published_classifier_state_dict(
                NoisyClassifier(entry.network).state_dict(), entry.network
            )
        else:
            rows = None if entry.classes is None else torch.empty(entry.classes, entry.network.vector_dim)
            label = None if rows is None else {openai_keys.OUR_LABEL: rows}
            ones = 2 if entry.process["kind"] == "edm" else 1
            theirs = openai_keys.published_state_dict(UNet(entry.network).state_dict(), entry.network, label, ones=ones)
    return {key: tuple(tensor.shape) for key, tensor in theirs.items()}


def _from_overrides(shapes: Shapes, overrides: ModelOverrides) -> ReleasedModel:
    """Return the network that the keys show, with the settings that the user gives."""
    diffusion = any(key.startswith("output_blocks.") for key in shapes)
    network = openai_keys.config_from_keys(shapes) if diffusion else None
    required = [*REQUIRED, "variance" if diffusion else "num_res_blocks"]
    if "out.2.positional_embedding" in shapes:
        required.remove("size")  # that pooling has a row for each position
    if missing := overrides.lacks(required):
        settings = ", ".join(missing).replace("|", " or ")
        raise WeightsError(
            "the keys and shapes are those of no released file of Improved DDPM, ADM or consistency models, and do "
            f"not say everything: give {settings}, named as in a recipe (on the command line file.timesteps=1000)"
        )
    if network is None:
        blocks = cast(int, overrides.num_res_blocks)
        classifier = openai_keys.classifier_config_from_keys(shapes, blocks, overrides.size)
        return ReleasedModel((), classifier, classifier.size, classifier.num_classes, {"kind": "discrete-vp"})
    classes = shapes[openai_keys.LABEL][0] if openai_keys.LABEL in shapes else None
    process = {"kind": "discrete-vp"}
    return ReleasedModel((), network, cast(int, overrides.size), classes, process, steps=ANCESTRAL_STEPS)


# -- both directions ------------------------------------------------------------------------------------------------


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides | None = None) -> LoadedCheckpoint:
    """Load the model of a published state dict; weights of another type become float32.

    Raises:
        WeightsError: As `match`, or the file is a classifier.
    """
    matched = match_release(shapes_of(theirs), overrides)
    config = matched.model_config()
    assert isinstance(matched.network, UNetConfig)
    weights = openai_keys.convert_state_dict(theirs, matched.network)
    return loaded(build_model(config, weights.network, weights.label), theirs)


def classifier_of(theirs: Mapping[str, Tensor], overrides: ModelOverrides | None = None) -> NoisyClassifier:
    """Return the noisy classifier of a published state dict, in evaluation mode.

    Raises:
        WeightsError: As `match`, or the file is not a classifier.
    """
    matched = match_release(shapes_of(theirs), overrides)
    if not isinstance(matched.network, NoisyClassifierConfig):
        raise WeightsError("this file is a diffusion model, not a noisy classifier; give one such as 64x64_classifier")
    with meta_device():
        classifier = NoisyClassifier(matched.network)
    classifier.load_state_dict(
        in_float(openai_keys.convert_classifier_state_dict(theirs, matched.network)), assign=True
    )
    return classifier.eval()


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    weights = openai_keys.convert_state_dict(theirs, network_of(model, ("UNet",), "openai").config)
    fill(model, weights.network, weights.label)


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write the network and the label table of a model."""
    network = network_of(model, ("UNet",), "openai")
    return save_file(path, openai_keys.published_state_dict(network.state_dict(), network.config, label_table(model)))


FORMATS = (
    Format(
        name="openai",
        signatures=(
            Signature(
                "a U-Net of Improved DDPM or ADM",
                {"its time embedding": "time_embed.0.weight", "its first convolution": "input_blocks.0.0.weight"},
            ),
        ),
        load=load,
        fill=fill_model,
        save=save,
        endings=(".safetensors",),
        overrides=frozenset(ModelOverrides.model_fields),
        cannot_hold="a noise process, a prediction, an autoencoder, conditions other than a label, or a label dropout",
    ),
)
