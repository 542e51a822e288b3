"""The released files of Improved DDPM, ADM and consistency models, as flags of the scripts that made them.

Facts: the READMEs and the defaults of github.com/openai/improved-diffusion, openai/guided-diffusion and
openai/consistency_models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unveil.checkpoints import openai
from unveil.errors import RecipeError
from unveil.nn.classifier import NoisyClassifierConfig
from unveil.nn.unet_config import UNetConfig

# Defaults, both repositories.
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
# Channel multipliers that the scripts choose by the size of the picture.
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
UPSAMPLER_MULTIPLIERS = MULTIPLIERS | {512: (1, 1, 2, 2, 4, 4)}
# Arguments of the network that are flags of the same name.
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
# What several files share.
COSINE_4K = {"learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
ADM = {
    "attention_resolutions": "32,16,8",
    "learn_sigma": True,
    "resblock_updown": True,
    "timestep_respacing": 250,  # ADM's README samples with so many, but for LSUN, which has the keys of others
}
IMAGENET, HEADS = {"class_cond": True}, {"num_head_channels": 64}
CONSISTENCY = ADM | HEADS | {"learn_sigma": False, "sigma_min": 0.002, "sigma_max": 80.0}

# The flags of each released network, by the names of its files; those that differ in their weights alone are one.
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


def from_flags(flags: Mapping[str, Any]) -> UNetConfig:
    """The configuration that the published training scripts build; `large_size` makes it an upsampler.

    Args:
        flags: of the command line; what is left out has the scripts' default. Flags of the process and of the
            training are ignored; `sigma_max` is one of consistency models.

    Raises:
        RecipeError: a picture size for which the scripts have no multipliers, and none are given.
    """
    given = FLAGS | dict(flags)
    size = given.get("large_size", given["image_size"])
    known = UPSAMPLER_MULTIPLIERS if "large_size" in given else MULTIPLIERS
    if given["channel_mult"]:
        multipliers = tuple(float(m) if "." in m else int(m) for m in str(given["channel_mult"]).split(","))
    elif size in known:
        multipliers = known[size]
    else:
        raise RecipeError(f"image_size {size}: must be one of {', '.join(map(str, known))}, or give channel_mult")
    config = openai.from_arguments(
        {
            "in_channels": 3,
            "out_channels": 6 if given["learn_sigma"] else 3,
            "model_channels": given["num_channels"],
            "channel_mult": multipliers,
            "attention_resolutions": _rates(size, given["attention_resolutions"]),
        }
        | {name: given[name] for name in ALIKE}
    )
    config = openai.consistency(config) if "sigma_max" in given else config
    return openai.upsampler(config) if "large_size" in given else config


def from_classifier_flags(flags: Mapping[str, Any]) -> NoisyClassifierConfig:
    """The configuration that the published scripts build of a classifier's flags, for the classes of ImageNet.

    Raises:
        RecipeError: a picture size for which the scripts have no multipliers.
    """
    given = CLASSIFIER_FLAGS | dict(flags)
    size = given["image_size"]
    if size not in MULTIPLIERS:
        raise RecipeError(f"image_size {size}: must be one of {', '.join(map(str, MULTIPLIERS))}")
    return openai.classifier_from_arguments(
        {
            "image_size": size,
            "in_channels": 3,
            "out_channels": 1000,
            "model_channels": given["classifier_width"],
            "num_res_blocks": given["classifier_depth"],
            "channel_mult": MULTIPLIERS[size],
            "attention_resolutions": _rates(size, given["classifier_attention_resolutions"]),
            "num_head_channels": 64,
            "use_scale_shift_norm": given["classifier_use_scale_shift_norm"],
            "resblock_updown": given["classifier_resblock_updown"],
            "pool": given["classifier_pool"],
        }
    )


def _rates(size: int, sides: object) -> list[int]:
    return [size // int(side) for side in str(sides).split(",")]
