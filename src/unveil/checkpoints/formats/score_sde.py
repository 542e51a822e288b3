"""The format `score-sde`: released networks of score SDE, NCSN++ and DDPM++. Read only.

The published modules form one numbered list, `all_modules`, in the order in which they are used, so that only the
networks of a table are recognised. Networks of the sub-VP SDE have the keys of DDPM++. A file contains a dict with
`model` (keys behind `module.`) and, as the average, a list of tensors in the order of the parameters.

The input of the published NCSN++ is sigma of images in [0, 1], and its result is divided by sigma. Our network takes x
in [-1, 1] and log(sigma / 2) of the doubled sigma, and returns the result itself: `VEPreconditioning`. The input of the
published DDPM++ is 999 t, and its output is -sigma times the score, that is eps: `VPPreconditioning`.

Facts: README, state-dict keys, configuration files and defaults of github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unveil.checkpoints.format import Format, LoadedCheckpoint, Signature, loaded
from unveil.checkpoints.formats.edm import ReleaseDefaults, model_config
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.checkpoints.unet_model import build_model, fill, network_of
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model
from unveil.nn.edm_unet import EDMBlock, SongUNet, SongUNetConfig
from unveil.nn.layers import meta_device

PREFIX, SIGMAS = "module.", "module.sigmas"
BLOCK = {"norm_1": "GroupNorm_0", "conv_1": "Conv_0", "time": "Dense_0", "norm_2": "GroupNorm_1", "conv_2": "Conv_1"}
NIN = ".NIN_"  # a layer over channels, whose matrix W stands the other way round


def module_order(config: SongUNetConfig) -> list[str]:
    """Our modules (and the buffer of frequencies) in the order of `all_modules`; attention stands for itself."""
    last = len(config.channel_mult) - 1
    attends = [rate in config.attention for rate in config.rates]
    modules = ["frequencies"] if config.embedding == "fourier" else []
    modules += ["map_1", "map_2", "enter"]
    for level in range(last + 1):
        if level:
            modules += [f"down.{level}.resample"]
            modules += {
                "standard": [],
                "skip": [f"down.{level}.side.conv"],
                "residual": [f"down.{level}.side.resample"],
            }[config.encoder]
        for i in range(config.num_res_blocks):
            modules.append(f"down.{level}.blocks.{i}")
            modules += [f"down.{level}.blocks.{i}.attention"] if attends[level] else []
    modules += ["middle.0", "middle.0.attention", "middle.1"]
    for place, level in enumerate(range(last, -1, -1)):
        up = f"up.{place}"
        modules += [f"{up}.resample"] if place else []
        modules += [f"{up}.blocks.{i}" for i in range(config.num_res_blocks + 1)]
        modules += [f"{up}.blocks.{config.num_res_blocks}.attention"] if attends[level] else []
        modules += [f"{up}.side.norm", f"{up}.side.conv"] if config.decoder == "skip" else []
    return modules if config.decoder == "skip" else [*modules, "norm", "leave"]


def key_map(config: SongUNetConfig) -> KeyMap:
    """Our keys and the published ones.

    Raises:
        RecipeError: A configuration that these networks do not have.
    """
    for name, values in {"augment_dim": (0,), "concat_channels": (0,), "embedding_multiplier": (4,)}.items():
        if getattr(config, name) not in values:
            raise RecipeError(f"{name} = {getattr(config, name)}: score SDE's networks have {values[0]}")
    modules: dict[str, nn.Module] = dict(_meta_network(config).named_modules())
    mapping: KeyMap = {}
    for number, ours in enumerate(module_order(config)):
        mapping |= _module_key_map(ours, f"{PREFIX}all_modules.{number}", modules.get(ours), config)
    return mapping


def _module_key_map(ours: str, theirs: str, module: nn.Module | None, config: SongUNetConfig) -> KeyMap:
    if module is None:
        return {ours: SourceKeys((f"{theirs}.W",))}
    if isinstance(module, EDMBlock):
        mapping = layer_keys(ours, theirs, BLOCK)
        if isinstance(module.skip, nn.Conv2d):
            kinds = {"weight": "Conv_2.weight", "bias": "Conv_2.bias"}
            if config.resample != "residual":
                kinds = {"weight": "NIN_0.W", "bias": "NIN_0.b"}
            mapping |= {f"{ours}.skip.{kind}": SourceKeys((f"{theirs}.{their}",)) for kind, their in kinds.items()}
        return mapping
    if ours.endswith(".attention"):
        mapping = layer_keys(ours, theirs, {"norm": "GroupNorm_0"})
        for kind, their in {"weight": "W", "bias": "b"}.items():
            mapping[f"{ours}.qkv.{kind}"] = SourceKeys(tuple(f"{theirs}.NIN_{i}.{their}" for i in range(3)))
            mapping[f"{ours}.out.{kind}"] = SourceKeys((f"{theirs}.NIN_3.{their}",))
        return mapping
    if ours.endswith(".resample"):
        if not list(module.parameters()):
            return {}  # only its number is taken
        return layer_keys(ours, theirs, {"1": "Conv_0"} if config.filter is None else {"conv": "Conv2d_0"})
    inner = ".Conv_0" if config.encoder == "skip" and ours.startswith("down.") else ""
    return {f"{ours}.{kind}": SourceKeys((f"{theirs}{inner}.{kind}",)) for kind in ("weight", "bias")}


def convert_state_dict(theirs: Mapping[str, Tensor], config: SongUNetConfig) -> dict[str, Tensor]:
    """Our state dict of a published one, with or without `module.` before its keys.

    Raises:
        WeightsError: Missing or extra keys, or tensors of another shape.
    """
    theirs = {key if key.startswith(PREFIX) else PREFIX + key: tensor for key, tensor in theirs.items()}
    named = key_map(config)
    shapes = {key: tensor.shape for key, tensor in _meta_network(config).state_dict().items()}
    skips = {published.keys[0] for key, published in named.items() if key.endswith(".skip.weight")}
    turned = {}
    for key, tensor in theirs.items():
        if key == SIGMAS:
            continue
        if NIN in key and tensor.ndim == 2:
            tensor = tensor.T[:, :, None, None] if key in skips else tensor.T
        turned[key] = tensor
    return to_ours(turned, named, shapes)


def published_state_dict(ours: Mapping[str, Tensor], config: SongUNetConfig, sigmas: Tensor) -> dict[str, Tensor]:
    """The published state dict of ours.

    Args:
        ours: State dict of the network.
        config: Its configuration.
        sigmas: The buffer of noise levels, (scales,) float64, from the largest: see `sigmas`.
    """
    theirs = to_theirs(ours, key_map(config))
    turned = {key: value.flatten(1).T if NIN in key and value.ndim > 1 else value for key, value in theirs.items()}
    return turned | {SIGMAS: sigmas}


def sigmas(smallest: float, largest: float, scales: int) -> Tensor:
    """The published buffer: geometric from the largest to the smallest, (scales,) float64."""
    return torch.linspace(math.log(largest), math.log(smallest), scales, dtype=torch.float64).exp()


def averaged_state_dict(theirs: Mapping[str, Tensor], average: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state dict with the tensors of `ema.shadow_params` in place of the trained ones.

    Args:
        theirs: The file's `model`, in its own order.
        average: The list, which has no names and leaves out what is not trained.

    Raises:
        WeightsError: Another number of tensors, or tensors of another shape.
    """
    trained = [key for key in theirs if key not in (SIGMAS, "sigmas") and not key.endswith("all_modules.0.W")]
    shapes = [theirs[key].shape for key in trained]
    if [tensor.shape for tensor in average] != shapes:
        raise WeightsError(
            f"the average holds {len(average)} tensors for {len(trained)} parameters, or in another order; "
            "give the model's state dict in the order of the file"
        )
    return dict(theirs) | dict(zip(trained, average, strict=True))


def _meta_network(config: SongUNetConfig) -> SongUNet:
    with meta_device():
        return SongUNet(config)


# -- configurations -----------------------------------------------------------------------------------------------

# Published values and ours; others are refused, among them those that the published code cannot run.
ARGUMENT_VALUES: dict[str, dict[Any, Any]] = {
    "progressive_input": {"none": "standard", "input_skip": "skip", "residual": "residual"},
    "progressive": {"none": "standard", "output_skip": "skip"},
    "progressive_combine": {"sum": "sum", "cat": "cat"},
    "embedding_type": {"positional": "positional", "fourier": "fourier"},
    "resblock_type": {"biggan": "residual", "ddpm": "pool"},
    "skip_rescale": {True: 0.5**0.5, False: 1.0},
    "normalization": {"groupnorm": None},
    "nonlinearity": {"swish": None},
    "conditional": {True: None},
}


def config_from_arguments(arguments: Mapping[str, Any]) -> SongUNetConfig:
    """The configuration of `NCSNpp(config)`.

    Args:
        arguments: The published configuration's `model` and `data`.

    Raises:
        RecipeError: A setting that is missing or not supported.
    """
    try:
        model, data = arguments["model"], arguments["data"]
        ours: dict[str, Any] = {}
        for name, values in ARGUMENT_VALUES.items():
            value = model[name].lower() if isinstance(model[name], str) else model[name]
            if value not in values:
                raise RecipeError(f"{name} = {value!r}: must be one of {', '.join(map(str, values))}")
            ours[name] = values[value]
        if ours["resblock_type"] == "pool" and model["resamp_with_conv"]:
            raise RecipeError("resamp_with_conv = True with resblock_type = 'ddpm': only False is supported")
        sides = {2**level: data["image_size"] // 2**level for level in range(len(model["ch_mult"]))}
        return SongUNetConfig(
            in_channels=data["num_channels"],
            out_channels=data["num_channels"],
            model_channels=model["nf"],
            channel_mult=tuple(model["ch_mult"]),
            num_res_blocks=model["num_res_blocks"],
            attention=tuple(rate for rate, side in sides.items() if side in model["attn_resolutions"]),
            embedding=ours["embedding_type"],
            noise_multiplier=2 if ours["embedding_type"] == "fourier" else 1,
            encoder=ours["progressive_input"],
            decoder=ours["progressive"],
            combine=ours["progressive_combine"],
            filter=tuple(model["fir_kernel"]) if model["fir"] else None,
            resample=ours["resblock_type"],
            branch_weight=ours["skip_rescale"],
            dropout=model["dropout"],
        )
    except KeyError as missing:
        raise RecipeError(f"setting {missing} is missing from the published configuration") from None


NCSNPP = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "filter": (1, 3, 3, 1)}
PC_SAMPLE = {
    "sampler": "pc-reverse-diffusion",
    "steps": 1000,
    "schedule": "exponential",
    "options": {"snr": 0.16},
    "threshold": "none",
}
# Sigmas of the published networks are those of images in [0, 1]; ours are in [-1, 1]
VP = ReleaseDefaults(
    {"kind": "linear-vp", "index_scale": 999.0},
    "eps",
    {"sampler": "euler-maruyama", "steps": 1000, "schedule": "uniform", "threshold": "none"},
)
VE = ReleaseDefaults({"kind": "ve", "sigma_min": 0.02, "sigma_max": 100.0}, {"kind": "ve"}, PC_SAMPLE)
# Networks for CIFAR-10: how they differ from DDPM++, and the settings that the files leave out
NETWORKS: dict[str, tuple[dict[str, Any], ReleaseDefaults]] = {
    "cifar10_ddpmpp_continuous": ({"num_res_blocks": 4, "filter": None}, VP),
    "cifar10_ddpmpp_deep_continuous": ({"num_res_blocks": 8, "filter": None}, VP),
    "cifar10_ncsnpp_continuous": ({"num_res_blocks": 4, **NCSNPP}, VE),
    "cifar10_ncsnpp_deep_continuous": ({"num_res_blocks": 8, **NCSNPP}, VE),
}
SIZE = 32


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the model of a published state dict; weights of another type become float32.

    Raises:
        WeightsError: The network is not in the table.
    """
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in theirs.items()}
    shapes = {key: shape for key, shape in shapes_of(bare).items() if key != "sigmas"}
    name = next((name for name in NETWORKS if _shapes(name) == shapes), None)
    if name is None:
        raise WeightsError(
            f"the keys are those of score SDE's networks, but of none that is known: {', '.join(NETWORKS)}; "
            "write a recipe of the network, and use `unveil convert --format score-sde`"
        )
    network, defaults = network_config(name), NETWORKS[name][1]
    if overrides.process is not None and overrides.process.kind in ("linear-vp", "sub-vp"):
        scale = {"index_scale": defaults.process["index_scale"]} if defaults is VP else {}
        process = {**scale, **overrides.process.model_dump(mode="json", exclude_unset=True)}
        defaults, overrides = defaults._replace(process=process), overrides.model_copy(update={"process": None})
    config = model_config(network, SIZE, defaults, overrides, None)
    return loaded(build_model(config, convert_state_dict(theirs, network), None), theirs)


def network_config(name: str) -> SongUNetConfig:
    """Return the configuration of a released network of the table."""
    return SongUNetConfig(3, 3, channel_mult=(1, 2, 2, 2), **NETWORKS[name][0])


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    network = network_config(name)
    with meta_device():
        theirs = published_state_dict(SongUNet(network).state_dict(), network, torch.empty(0))
    return {key.removeprefix(PREFIX): tuple(tensor.shape) for key, tensor in theirs.items() if key != SIGMAS}


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    fill(model, convert_state_dict(theirs, network_of(model, ("SongUNet",), "score-sde").config), None)


FORMATS = (
    Format(
        name="score-sde",
        signatures=(
            Signature("score SDE's network", {"its layers": "module.all_modules.0."}),
            Signature("score SDE's network", {"its layers": "all_modules.0."}),
        ),
        load=load,
        fill=fill_model,
        overrides=frozenset({"process", "prediction"}),
    ),
)
