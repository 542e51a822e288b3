"""The format `edm`: state dicts of EDM's networks, SongUNet and DhariwalUNet. Read only.

EDM's own files are pickles that contain source code, and are never opened here. The format reads state dicts of
tensors, taken out of such a file in a sandbox. Within one of the preconditioning classes the keys begin with `model.`.
Buffers of filters are checked and written. The table `u` of iDDPM's class follows from its settings. The keys determine
everything except the preconditioning and the range of noise levels.

Facts: state-dict keys, constructor arguments, README, configuration files and defaults of github.com/NVlabs/edm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.checkpoints.format import Format, LoadedCheckpoint, Signature, loaded
from unveil.checkpoints.key_mapping import KeyMap, SourceKeys, layer_keys, to_ours, to_theirs
from unveil.checkpoints.overrides import ModelOverrides, shapes_of
from unveil.checkpoints.unet_model import build_model, fill, has_null_label, network_of
from unveil.core import preconditioning
from unveil.core.preconditioning import Preconditioning
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.model import Model
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import DhariwalUNetSection, SongUNetSection
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, EDMBlock, SongUNet, SongUNetConfig
from unveil.nn.layers import meta_device

Config = SongUNetConfig | DhariwalUNetConfig

BLOCK = {"norm_1": "norm0", "conv_1": "conv0", "time": "affine", "norm_2": "norm1", "conv_2": "conv1"}
PREFIX, FILTER = "model.", ".resample_filter"
LABEL, LABEL_BIAS, OUR_LABEL = "map_label.weight", "map_label.bias", "table.weight"


class EDMWeights(NamedTuple):
    """Contents of a published file: the state dict of the network and, with classes, of the label conditioner.

    SongUNet's table has one row more than classes: the last is that of no label, for a conditioner with drop > 0.
    """

    network: dict[str, Tensor]
    label: dict[str, Tensor] | None


# -- names --------------------------------------------------------------------------------------------------------


def module_map(config: Config, size: int) -> dict[str, str]:
    """Our modules that hold weights and the published ones, whose names hold the side of the images.

    Raises:
        RecipeError: A configuration that EDM's networks do not have.
    """
    encoder = decoder = "standard"
    ends = ("out_norm", "out_conv")
    last = len(config.channel_mult) - 1
    sides = [f"{size // rate}x{size // rate}" for rate in config.rates]
    if isinstance(config, SongUNetConfig):
        for name, other in {"combine": "cat", "resample": "pool", "filter": None}.items():
            if getattr(config, name) == other:
                raise RecipeError(f"{name} = {getattr(config, name)!r}: EDM's SongUNet has no such setting")
        encoder, decoder = config.encoder, config.decoder
        ends = (f"dec.{sides[0]}_aux_norm", f"dec.{sides[0]}_aux_conv")
    modules = {"map_1": "map_layer0", "map_2": "map_layer1", "enter": f"enc.{sides[0]}_conv"}
    modules |= {f"middle.{i}": f"dec.{sides[last]}_in{i}" for i in range(2)}
    for level, side in enumerate(sides):
        up = f"up.{last - level}"
        modules |= {f"down.{level}.blocks.{i}": f"enc.{side}_block{i}" for i in range(config.num_res_blocks)}
        modules |= {f"{up}.blocks.{i}": f"dec.{side}_block{i}" for i in range(config.num_res_blocks + 1)}
        if level:
            modules[f"down.{level}.resample"] = f"enc.{side}_down"
        if level < last:
            modules[f"{up}.resample"] = f"dec.{side}_up"
        if level and encoder == "skip":
            modules[f"down.{level}.side.conv"] = f"enc.{side}_aux_skip"
        if level and encoder == "residual":
            modules[f"down.{level}.side.resample.conv"] = f"enc.{side}_aux_residual"
        if decoder == "skip":
            modules |= {f"{up}.side.norm": f"dec.{side}_aux_norm", f"{up}.side.conv": f"dec.{side}_aux_conv"}
    if decoder != "skip":
        modules |= {"norm": ends[0], "leave": ends[1]}
    return modules


def key_map(config: Config, size: int) -> KeyMap:
    """Our keys of the network and the published ones, for images of this side."""
    modules = dict(meta_network(config).named_modules())
    mapping: KeyMap = {}
    for ours, theirs in module_map(config, size).items():
        module = modules[ours]
        if not isinstance(module, EDMBlock):
            mapping |= {f"{ours}.{kind}": SourceKeys((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
            continue
        mapping |= layer_keys(ours, theirs, BLOCK | ({} if isinstance(module.skip, nn.Identity) else {"skip": "skip"}))
        if module.attention is not None:
            mapping |= layer_keys(f"{ours}.attention", theirs, {"norm": "norm2"})
            for our, their in {"qkv": "qkv", "out": "proj"}.items():
                mapping[f"{ours}.attention.{our}.weight"] = SourceKeys((f"{theirs}.{their}.weight",), ones=2)
                mapping[f"{ours}.attention.{our}.bias"] = SourceKeys((f"{theirs}.{their}.bias",))
    if isinstance(config, SongUNetConfig) and config.embedding == "fourier":
        mapping["frequencies"] = SourceKeys(("map_noise.freqs",))
    if config.augment_dim:
        mapping["augment.weight"] = SourceKeys(("map_augment.weight",))
    return mapping


def filters(config: Config, size: int) -> dict[str, Tensor]:
    """The published buffers, which hold no more than the filter of the configuration."""
    taps = torch.tensor(config.filter or (1, 1) if isinstance(config, SongUNetConfig) else (1, 1), dtype=torch.float32)
    kernel = (taps.outer(taps) / taps.sum() ** 2)[None, None]
    keys: list[str] = []
    for ours, theirs in module_map(config, size).items():
        if ours.endswith(".resample"):
            keys += [f"{theirs}.conv0", f"{theirs}.skip"]
        elif ours.endswith(".side.resample.conv"):
            keys.append(theirs)
        elif theirs.endswith("_aux_skip"):
            keys.append(theirs.replace("skip", "down"))
        elif theirs.endswith("_aux_norm") and ".side." in ours and not ours.startswith("up.0."):
            keys.append(theirs.replace("norm", "up"))
    return {key + FILTER: kernel.clone() for key in keys}


def convert_state_dict(theirs: Mapping[str, Tensor], config: Config) -> EDMWeights:
    """Our state dicts of a published one, inside a preconditioning class or not.

    Raises:
        WeightsError: Missing or extra keys, tensors of another shape, or filters of another configuration.
    """
    theirs = {key.removeprefix(PREFIX): tensor for key, tensor in theirs.items() if key != "u"}
    size, kernels = size_of(theirs), {key: tensor for key, tensor in theirs.items() if key.endswith(FILTER)}
    wanted = filters(config, size)
    if kernels.keys() != wanted.keys() or any(
        kernels[key].shape != wanted[key].shape or not torch.allclose(kernels[key].float(), wanted[key], atol=1e-3)
        for key in wanted
    ):
        raise WeightsError(f"the file's {FILTER[1:]} buffers are not those of the configuration; set filter or encoder")
    rest = {key: value for key, value in theirs.items() if key not in kernels and key not in (LABEL, LABEL_BIAS)}
    network = meta_network(config)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    ours = to_ours(rest, key_map(config, size), shapes)
    for key, heads in _attention(network):
        # published rows stand as (head, channel, query-key-value), ours as (query-key-value, head, channel)
        ours[key] = ours[key].unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)
    return EDMWeights(ours, _label(theirs))


def published_state_dict(
    network: Mapping[str, Tensor], config: Config, size: int, label: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The published state dict of ours, without a preconditioning class around it.

    Args:
        network: State dict of the network.
        config: Its configuration.
        size: Side of the images.
        label: State dict of the label conditioner, as `load` gives it.
    """
    turned = dict(network)
    for key, heads in _attention(meta_network(config)):
        turned[key] = turned[key].unflatten(0, (3, heads, -1)).movedim(0, 2).flatten(0, 2)
    theirs = to_theirs(turned, key_map(config, size)) | filters(config, size)
    if label is not None:
        table = label[OUR_LABEL]
        if isinstance(config, DhariwalUNetConfig):
            return theirs | {LABEL: table.T}
        rows, none = table[:-1], table[-1]
        theirs |= {LABEL: (rows - none).T / len(rows) ** 0.5, LABEL_BIAS: none}
    return theirs


def meta_network(config: Config) -> SongUNet | DhariwalUNet:
    """The network without memory."""
    with meta_device():
        return SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)


def _label(theirs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rows that are added to the embedding; SongUNet's layer sees sqrt(classes) where a class is on."""
    if LABEL not in theirs:
        return None
    rows = theirs[LABEL].T
    if LABEL_BIAS not in theirs:
        return {OUR_LABEL: rows}
    none = theirs[LABEL_BIAS]
    return {OUR_LABEL: torch.cat([rows * len(rows) ** 0.5 + none, none[None]])}


def _attention(network: nn.Module) -> list[tuple[str, int]]:
    """The keys of joint projections, and their heads."""
    blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, EDMBlock)]
    return [
        (f"{name}.attention.qkv.{kind}", module.attention.heads)
        for name, module in blocks
        for kind in ("weight", "bias")
        if module.attention is not None
    ]


def size_of(shapes: Mapping[str, Any]) -> int:
    """The side of the images, by the published keys.

    Raises:
        WeightsError: The keys are not those of such a network.
    """
    for key in (key.removeprefix(PREFIX) for key in shapes):
        if key.startswith("enc.") and key.endswith("_conv.weight"):
            return int(key.removeprefix("enc.").split("x")[0])
    raise WeightsError("not a network of EDM: 'enc.SIZExSIZE_conv.weight' is missing")


# -- configurations -----------------------------------------------------------------------------------------------

# Published argument -> ours; those that only say how training starts or drops labels have no effect.
ARGUMENTS = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "channel_mult_emb": "embedding_multiplier",
    "num_blocks": "num_res_blocks",
    "dropout": "dropout",
    "augment_dim": "augment_dim",
}
SONG_ARGUMENTS = ARGUMENTS | {
    "embedding_type": "embedding",
    "channel_mult_noise": "noise_multiplier",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "filter",
}
WITHOUT_EFFECT = ("img_resolution", "label_dim", "label_dropout", "attn_resolutions")
ARGUMENT_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {"channel_mult": (1, 2, 2, 2), "dropout": 0.1, "attn_resolutions": (16,)},
    "DhariwalUNet": {"dropout": 0.1, "attn_resolutions": (32, 16, 8)},
}
SHELLS = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond")


def config_from_arguments(kind: str, arguments: Mapping[str, Any]) -> Config:
    """The configuration of `SongUNet(**arguments)` or `DhariwalUNet(**arguments)`.

    Raises:
        RecipeError: Another class, or an argument that it does not have.
    """
    if kind not in ARGUMENT_DEFAULTS:
        raise RecipeError(
            f"{kind!r}: must be one of {', '.join(ARGUMENT_DEFAULTS)}{did_you_mean(kind, list(ARGUMENT_DEFAULTS))}"
        )
    allowed = SONG_ARGUMENTS if kind == "SongUNet" else ARGUMENTS
    for name in arguments:
        if name not in allowed and name not in WITHOUT_EFFECT:
            raise RecipeError(
                f"argument {name!r} is not one of {kind}'s{did_you_mean(name, [*allowed, *WITHOUT_EFFECT])}"
            )
    renamed = {allowed[name]: value for name, value in arguments.items() if name in allowed}
    settings = {name: value for name, value in ARGUMENT_DEFAULTS[kind].items() if name != "attn_resolutions"} | renamed
    config = (SongUNetConfig if kind == "SongUNet" else DhariwalUNetConfig)(**settings, attention=())
    sides = arguments.get("attn_resolutions", ARGUMENT_DEFAULTS[kind]["attn_resolutions"])
    rates = tuple(rate for rate in config.rates if arguments["img_resolution"] // rate in sides)
    return type(config)(**settings, attention=rates)


def preconditioning_from_arguments(kind: str, arguments: Mapping[str, Any]) -> tuple[Preconditioning, Config]:
    """The preconditioning and the network of `EDMPrecond(**arguments)` and its kin.

    Raises:
        RecipeError: Another class, or an argument that neither it nor its network has.
    """
    if kind not in SHELLS:
        raise RecipeError(f"{kind!r}: must be one of {', '.join(SHELLS)}{did_you_mean(kind, SHELLS)}")
    rest = {name: value for name, value in arguments.items() if name not in ("use_fp16", "sigma_min", "sigma_max")}
    channels = rest.pop("img_channels")
    network = rest.pop("model_type", "SongUNet" if kind in ("VPPrecond", "VEPrecond") else "DhariwalUNet")
    match kind:
        case "VPPrecond":
            rest.pop("epsilon_t", None)
            low, rise = rest.pop("beta_min", 0.1), rest.pop("beta_d", 19.9)
            shell: Preconditioning = preconditioning.VPPreconditioning(low, low + rise, rest.pop("M", 1000))
        case "VEPrecond":
            shell = preconditioning.VEPreconditioning()
        case "iDDPMPrecond":
            least, offset = rest.pop("C_1", 0.001), rest.pop("C_2", 0.008)
            shell = preconditioning.IDDPMPreconditioning(rest.pop("M", 1000), offset, 1 - least)
        case _:
            shell = preconditioning.EDMPreconditioning(rest.pop("sigma_data", 0.5))
    out = 2 * channels if kind == "iDDPMPrecond" else channels
    return shell, config_from_arguments(network, rest | {"in_channels": channels, "out_channels": out})


def config_from_keys(shapes: Mapping[str, Sequence[int]]) -> Config:
    """The configuration that a published state dict shows; a filter of four taps is taken for (1, 3, 3, 1).

    Args:
        shapes: Shapes of the tensors, by published key, with or without `model.`.

    Raises:
        WeightsError: The keys are not those of such a network.
    """
    shapes = {key.removeprefix(PREFIX): tuple(shape) for key, shape in shapes.items()}
    size = size_of(shapes)
    try:
        sides = sorted({int(key[4:].split("x")[0]) for key in shapes if key.startswith("enc.")}, reverse=True)
        song = "out_conv.weight" not in shapes
        enter = shapes[f"enc.{size}x{size}_conv.weight"]
        channels = enter[0] if song else shapes["map_layer0.weight"][1]
        blocks = sum(key.startswith(f"enc.{size}x{size}_block") and key.endswith("conv1.weight") for key in shapes)
        settings: dict[str, Any] = {
            "in_channels": enter[1],
            "out_channels": shapes[f"dec.{size}x{size}_aux_conv.weight" if song else "out_conv.weight"][0],
            "model_channels": channels,
            "channel_mult": tuple(shapes[f"enc.{s}x{s}_block0.conv1.weight"][0] // channels for s in sides),
            "num_res_blocks": blocks,
            "attention": tuple(size // s for s in sides if f"enc.{s}x{s}_block0.qkv.weight" in shapes),
            "embedding_multiplier": shapes["map_layer0.weight"][0] // channels,
            "augment_dim": shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else 0,
        }
        if not song:
            return DhariwalUNetConfig(**settings)
        seen = {key.split("_", 1)[1].split(".")[0] for key in shapes if "_aux_" in key}
        kernel = next((shape for key, shape in shapes.items() if key.endswith(FILTER)), (1, 1, 2, 2))
        return SongUNetConfig(
            **settings,
            embedding="fourier" if "map_noise.freqs" in shapes else "positional",
            noise_multiplier=shapes["map_layer0.weight"][1] // channels,
            encoder="skip" if "aux_skip" in seen else "residual" if "aux_residual" in seen else "standard",
            decoder="skip" if "aux_up" in seen else "standard",
            filter=(1, 1) if kernel[-1] == 2 else (1, 3, 3, 1),
        )
    except (KeyError, ValueError) as missing:
        raise WeightsError(f"not a network of EDM: {missing} is missing") from None


class ReleaseDefaults(NamedTuple):
    """Settings that a family's files leave out: process and prediction as in a recipe, and the authors' sampling."""

    process: Mapping[str, Any]
    prediction: Any
    sample: Mapping[str, Any]


# Range of noise levels of EDM's sampler, cut from 0.002 and 80 to the levels that each preconditioning knows: the VP
# networks begin at t = 0.001, the VE ones at 0.02, iDDPM's table at its first level
ENDS: dict[str, dict[str, float]] = {
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0},
    "vp": {"sigma_min": 0.010486, "sigma_max": 80.0},
    "ve": {"sigma_min": 0.02, "sigma_max": 80.0},
    "iddpm": {"sigma_min": 0.0064254, "sigma_max": 80.0},
}
# Steps of Heun's method by the side of the images, for networks of score SDE's kind. ADM's networks use churn, whose
# amount depends on whether EDM trained them
STEPS = {32: 18, 64: 40}
CHURN = {"s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
IMAGENET_STEPS, EDM_CHURN, ADM_CHURN = 256, 40.0, 80.0


def load(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Load the model of a published state dict; weights of another type become float32."""
    network = config_from_keys(shapes_of(theirs))
    size, weights = size_of(theirs), convert_state_dict(theirs, network)
    label = weights.label
    if label is not None and isinstance(network, SongUNetConfig):
        # SongUNet's last row is that of no label, which no released network was trained with
        label = {OUR_LABEL: label[OUR_LABEL][:-1]}
    classes = None if label is None else len(label[OUR_LABEL])
    config = model_config(network, size, release_defaults(network, size), overrides, classes)
    return loaded(build_model(config, weights.network, label), theirs)


def release_defaults(network: Config, size: int) -> ReleaseDefaults:
    """Return how a released network with this configuration was trained, and is sampled."""
    doubled = network.out_channels == 2 * network.in_channels
    if isinstance(network, SongUNetConfig):
        # only the baselines were trained without augmentation
        kind = "edm" if network.augment_dim else {"positional": "vp", "fourier": "ve"}[network.embedding]
        sample: dict[str, Any] = {"steps": STEPS.get(size, max(STEPS.values()))}
    else:
        kind = "iddpm" if doubled else "edm"
        sample = {"steps": IMAGENET_STEPS, "options": CHURN | {"s_churn": ADM_CHURN if doubled else EDM_CHURN}}
    sample |= {"sampler": "heun", "schedule": "karras", "threshold": "none"}
    return ReleaseDefaults({"kind": "edm", **ENDS[kind]}, {"kind": kind}, sample)


def model_config(
    network: Config, size: int, defaults: ReleaseDefaults, overrides: ModelOverrides, classes: int | None
) -> ModelConfig:
    """Return the configuration of a file's model; overrides take precedence over the defaults."""
    section = SongUNetSection if isinstance(network, SongUNetConfig) else DhariwalUNetSection
    settings = {name: value for name, value in asdict(network).items() if name in section.model_fields}
    plain = {
        "shape": (network.in_channels, size, size),
        "network": {"kind": section.model_fields["kind"].default, **settings},
        "process": defaults.process if overrides.process is None else overrides.process.model_dump(mode="json"),
        "prediction": defaults.prediction if overrides.prediction is None else overrides.prediction,
        "variance": "learned-range" if network.out_channels > network.in_channels else "fixed-large",
        "condition": [] if classes is None else [{"kind": "class-label", "num_classes": classes}],
        "sample": dict(defaults.sample),
    }
    return validate(ModelConfig, plain, "the file")


def fill_model(model: Model, theirs: Mapping[str, Tensor]) -> None:
    """Copy a published state dict into a model of a recipe."""
    network = network_of(model, ("SongUNet", "DhariwalUNet"), "edm")
    state, label = convert_state_dict(theirs, network.config)
    if label is not None and type(network).__name__ == "SongUNet" and not has_null_label(model):
        label = {key: rows[:-1] for key, rows in label.items()}  # without the row of no label
    fill(model, state, label)


FORMATS = (
    Format(
        name="edm",
        signatures=(
            Signature("EDM's network", {"time embedding": "model.map_layer0.weight", "its encoder": "model.enc."}),
            Signature("EDM's network", {"time embedding": "map_layer0.weight", "its encoder": "enc."}),
        ),
        load=load,
        fill=fill_model,
        overrides=frozenset({"process", "prediction"}),
    ),
)
