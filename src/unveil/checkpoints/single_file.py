"""Files that hold a whole latent diffusion model, Stable Diffusion 1 and 2 among them: read and written.

    model.diffusion_model.*   the U-Net, its averages as model_ema.* (without dots)
    first_stage_model.*       the autoencoder
    cond_stage_model.*        the text encoder, or a table of classes; nothing where the model takes no condition
    betas, alphas_cumprod ... the schedule

Facts: configuration files and state-dict keys of github.com/CompVis/latent-diffusion, CompVis/stable-diffusion,
Stability-AI/stablediffusion and runwayml/stable-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.autoencoders.autoencoder import Autoencoder, PerChannel
from unveil.checkpoints import autoencoder, ldm_unet, text_encoder_keys, text_encoder_loader
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides, Shapes, in_float, shapes_of
from unveil.checkpoints.scheduler import SchedulerConfig
from unveil.conditioning.class_label import LabelToken
from unveil.conditioning.text_encoder import TextEncoder
from unveil.core.process import DiscreteVP, betas
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.model.config.latent_autoencoder import section_of
from unveil.model.config.model import UNetSection
from unveil.nn.meta_device import EmptyParameters
from unveil.nn.text_encoders import CLIPEncoderConfig
from unveil.nn.unet import UNet
from unveil.nn.unet_config import UNetConfig

MARK = f"{ldm_unet.PREFIX}input_blocks.0.0.weight"
STAGE = "cond_stage_model."
CLASSES = f"{STAGE}embedding.weight"
TABLE = "table.weight"  # ours
PROMPT, LABEL = "prompt", "label"
# What may be said of such a file, because neither keys nor shapes hold it
SAYABLE = {"size", "heads", "head_channels", "prediction", "classes", "text_heads", "activation", "weights"}

# The two published schedules, both linear in the square root; a file's own betas go before them
TEXT_ENDS, OTHER_ENDS = (0.00085, 0.012), (0.0015, 0.0195)
SCALE = 0.18215  # of Stable Diffusion's latents, which its files do not hold
# Width of Stable Diffusion 2's text, whose files of two kinds have the same keys
AMBIGUOUS = 1024
SIDES = {"eps": 512, "v": 768}  # of its pictures, by what the network predicts
LDM_SIDE = 256
PUBLISHED_NULL = 1001  # rows of a table of ImageNet's classes whose last stands for none
# As the scripts draw: 50 steps of DDIM, guided where there is something to be guided by
SAMPLE = {"sampler": "ddim", "steps": 50, "schedule": "latent-diffusion", "threshold": "none"}
SCALES = {PROMPT: 7.5, LABEL: 3.0}
INPAINTING = {"mask": 1, "masked": 0}  # channels beside x, 0: those of the latents

# Top-level tensors that follow from the betas, in the order in which they are written
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
BESIDE = (*SCHEDULE, "scale_factor", "logvar", "lvlb_weights")


class LoadedCheckpoint(NamedTuple):
    """A model and how the file fitted it.

    Attributes:
        matched: how many of the file's tensors became a part of the model.
        unused: keys of tensors that are no part of it, or stand in it twice.
    """

    model: Model
    matched: int
    unused: tuple[str, ...]


def is_whole(shapes: Shapes) -> bool:
    """Whether these are the keys of a file of all parts."""
    return MARK in shapes


def read(theirs: Mapping[str, Tensor], said: ModelOverrides | None = None) -> LoadedCheckpoint:
    """The model of such a file, in evaluation mode; tensors of another type become float32.

    Args:
        theirs: the file's tensors.
        said: what the keys do not show, see `SAYABLE`.

    Raises:
        WeightsError: a part is missing, not whole, or one that is not supported; or something has to be said.
    """
    said = said or ModelOverrides()
    said.only(SAYABLE, "files of a whole latent diffusion model")
    unet = _unet(theirs, said)
    network = ldm_unet.infer_config(shapes_of(unet), _heads(said))
    first = autoencoder.first_stage({k: v for k, v in theirs.items() if k.startswith(autoencoder.PREFIX)})
    if not first:
        raise WeightsError(f"there is no autoencoder ({autoencoder.PREFIX}*) beside the U-Net; give the whole file")
    encoder = _text_encoder(theirs, said)
    if encoder is None and network.cross_attention_dim is not None and CLASSES not in theirs:
        raise WeightsError(f"there is no text encoder ({STAGE}*), and the U-Net reads a text; give the whole file")
    codec = autoencoder.codec_of(first, scale=_scale(theirs, encoder is not None))
    config = _config(theirs, network, codec, encoder, said)
    model = filled(config, ldm_unet.load(unet, network).network, codec, encoder)
    if CLASSES in theirs:
        model.conditioners[LABEL].load_state_dict(in_float({TABLE: theirs[CLASSES]}), assign=True)
    used = {ldm_unet.PREFIX + key for key in unet} | {key for key in theirs if key.startswith(autoencoder.PREFIX)}
    used |= {key for key in theirs if key.startswith(STAGE)} | {key for key in SCHEDULE if key in theirs}
    return LoadedCheckpoint(model, len(used & theirs.keys()), tuple(sorted(theirs.keys() - used)))


def filled(
    config: ModelConfig,
    network: Mapping[str, Tensor],
    codec: Autoencoder,
    encoder: text_encoder_loader.LoadedTextEncoder | None,
) -> Model:
    """The model of a configuration and its parts, in evaluation mode; the network becomes float32.

    Args:
        config: see `described`.
        network: our state dict of the U-Net.
        codec: with its weights.
        encoder: of the prompt, where there is one.
    """
    with EmptyParameters():  # nothing is drawn that the file replaces
        model = build(config)
    model.denoiser.network.load_state_dict(in_float(network), assign=True)
    model.autoencoder = codec
    for conditioner in model.conditioners.values():
        if isinstance(conditioner, TextEncoder) and encoder is not None:
            encoder.fill(conditioner)
    return model.eval()


def tensors_of(model: Model) -> dict[str, Tensor]:
    """The file of a model, its averages left out.

    Raises:
        RecipeError: a model that such files cannot hold.
    """
    network, codec, process = model.denoiser.network, model.autoencoder, model.process
    if not isinstance(network, UNet) or not isinstance(codec, Autoencoder) or not isinstance(process, DiscreteVP):
        raise RecipeError(
            "such a file holds a U-Net over the latents of an autoencoder under a table of betas; this model is "
            f"a {type(network).__name__} over {type(codec).__name__} under {type(process).__name__}"
        )
    theirs = schedule(process)
    theirs |= ldm_unet.add_prefix(ldm_unet.dump(network.state_dict(), network.config))
    theirs |= ldm_unet.add_prefix(autoencoder.dump(codec), autoencoder.PREFIX)  # pyright: ignore[reportArgumentType]
    for conditioner in model.conditioners.values():
        if isinstance(conditioner, TextEncoder):
            theirs |= _tower(conditioner)
        elif isinstance(conditioner, LabelToken):
            theirs[CLASSES] = conditioner.state_dict()[TABLE]
    return theirs


def schedule(process: DiscreteVP) -> dict[str, Tensor]:
    """The tables that such files hold beside the weights, float32 (N,), computed in float64.

    Source: Ho et al. 2020, section 2 and eq. 6 to 7 (arXiv:2006.11239).
    """
    beta = process.betas
    alpha = 1 - beta
    bar = alpha.cumprod(0)
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    variance = beta * (1 - before) / (1 - bar)
    tables = (
        beta,
        bar,
        before,
        bar.sqrt(),
        (1 - bar).sqrt(),
        (1 - bar).log(),
        (1 / bar).sqrt(),
        (1 / bar - 1).sqrt(),
        variance,
        variance.clamp_min(1e-20).log(),  # as they clip it, which the first entry alone needs
        beta * before.sqrt() / (1 - bar),
        (1 - before) * alpha.sqrt() / (1 - bar),
    )
    return {name: table.float() for name, table in zip(SCHEDULE, tables, strict=True)}


# -- parts --------------------------------------------------------------------------------------------------------


def _unet(theirs: Mapping[str, Tensor], said: ModelOverrides) -> dict[str, Tensor]:
    """The U-Net's tensors without their prefix: the averages where there are some, unless the others were asked for."""
    found = ldm_unet.strip_prefix(theirs)
    averages = {key: ldm_unet.ema_key(ldm_unet.PREFIX + key) for key in found}
    there = [key for key in averages.values() if key in theirs]
    if said.weights == "trained" or (not there and said.weights is None):
        return found
    if len(there) < len(averages):
        lacking = [key for key in averages.values() if key not in theirs]
        raise WeightsError(
            f"averages are missing: {abbreviate(lacking, 3)}; say file.weights=trained to read the others"
        )
    return {key: theirs[average] for key, average in averages.items()}


def _heads(said: ModelOverrides) -> dict[str, int] | None:
    given = {"heads": said.heads, "head_channels": said.head_channels}
    return {name: value for name, value in given.items() if value is not None} or None


def _text_encoder(theirs: Mapping[str, Tensor], said: ModelOverrides) -> text_encoder_loader.LoadedTextEncoder | None:
    own = {key: tensor for key, tensor in theirs.items() if key.startswith(STAGE)}
    if not own or CLASSES in own:
        return None
    if not text_encoder_keys.places(own):
        raise WeightsError(
            f"a text encoder that is not known ({abbreviate(sorted(own), 2)}); known are CLIP's "
            f"({text_encoder_keys.SD1}*), OpenCLIP's ({text_encoder_keys.SD2}*) and a table of classes ({CLASSES})"
        )
    told = {"heads": said.text_heads, "activation": said.activation}
    return text_encoder_loader.read_state_of(
        own, said={name: value for name, value in told.items() if value is not None}
    )


def _tower(conditioner: TextEncoder) -> dict[str, Tensor]:
    """A text encoder's tensors: Stable Diffusion 2's is the one whose last block is not used.

    Its folders leave that block away; files have one, so it is a copy of the one before there, which nobody runs.
    """
    state, config = conditioner.tower.state_dict(), conditioner.tower.config
    if not isinstance(config, CLIPEncoderConfig) or config.activation != "gelu":
        return text_encoder_keys.dump(
            state, config, text_encoder_keys.TextEncoderLocation("clip", text_encoder_keys.SD1)
        )
    if added := duplicated_block(conditioner):
        state |= {key: state[own] for key, own in added.items()}
        config = replace(config, depth=config.depth + 1, skip=1)
    return text_encoder_keys.dump(
        state, config, text_encoder_keys.TextEncoderLocation("openclip", text_encoder_keys.SD2)
    )


def duplicated_block(conditioner: TextEncoder) -> dict[str, str]:
    """Our keys of the block that a file has and this text encoder lacks, and those whose tensors are written for it."""
    config = conditioner.tower.config
    if not isinstance(config, CLIPEncoderConfig) or config.activation != "gelu" or config.skip:
        return {}
    last, unused = (f"model.encoder.layers.{number}." for number in (config.depth - 1, config.depth))
    return {key.replace(last, unused): key for key in conditioner.tower.state_dict() if key.startswith(last)}


def _scale(theirs: Mapping[str, Tensor], reads_text: bool) -> PerChannel:
    if "scale_factor" in theirs:
        return float(theirs["scale_factor"])
    return SCALE if reads_text else 1.0


def _config(
    theirs: Mapping[str, Tensor],
    network: UNetConfig,
    codec: Any,
    encoder: text_encoder_loader.LoadedTextEncoder | None,
    said: ModelOverrides,
) -> ModelConfig:
    """The model's configuration."""
    prediction = said.prediction or "eps"
    if network.cross_attention_dim == AMBIGUOUS and said.prediction is None:
        raise WeightsError(
            "Stable Diffusion 2 has the same keys with two predictions: say file.prediction=eps (the base models, "
            "512 px) or file.prediction=v (those of 768 px)"
        )
    condition: list[dict[str, Any]] = []
    if encoder is None and CLASSES in theirs:
        rows = len(theirs[CLASSES])
        classes = said.classes or (rows - 1 if rows == PUBLISHED_NULL else rows)
        condition.append(
            {"kind": "class-label-token", "num_classes": rows, "drop_prob": 0.1 if classes < rows else 0.0}
        )
    usual = SIDES.get(str(prediction), 512) if network.cross_attention_dim == AMBIGUOUS else SIDES["eps"]
    side = said.size or (usual if encoder is not None else LDM_SIDE)
    process = {"kind": "discrete-vp", **_table(theirs, encoder is not None)}
    scheduler = SchedulerConfig(process, str(prediction), SAMPLE)
    return infer_model_config(network, codec, encoder, scheduler, (side, side), condition)


def infer_model_config(
    network: UNetConfig,
    codec: Autoencoder,
    encoder: text_encoder_loader.LoadedTextEncoder | None,
    scheduler: SchedulerConfig,
    size: tuple[int, int],
    condition: Sequence[Mapping[str, Any]] = (),
) -> ModelConfig:
    """The configuration of a latent diffusion model, from its parts.

    Args:
        network: of the U-Net.
        codec: the autoencoder.
        encoder: of the prompt, where there is one.
        scheduler: process, prediction and sampling; guidance is added where there is something to be guided by.
        size: height and width of pictures, in pixels.
        condition: further sections.

    Raises:
        WeightsError: pictures beside x that nobody knows, or a text encoder of another width than the U-Net's.
    """
    if encoder is not None and network.cross_attention_dim is None:
        raise WeightsError(
            "a text encoder, and a U-Net that reads no text: its attention to a text is missing "
            "(middle_block.1.transformer_blocks.0.attn2), or they are of two models; copy all parts of one again"
        )
    if encoder is not None and encoder.config.hidden_size != network.cross_attention_dim:
        raise WeightsError(
            f"text of width {encoder.config.hidden_size}, and a U-Net that takes {network.cross_attention_dim}: "
            "the text encoder and the U-Net are of two models; copy all parts of one again"
        )
    every = [dict(one) for one in condition]
    if encoder is not None:
        every.insert(0, encoder.described() | {"key": PROMPT, "drop_prob": 0.1, "prompt_weighting": "brackets"})
    every += _beside(network, encoder is not None)
    guided = [SCALES[one["key"]] for one in every if one.get("key") in SCALES]
    guided += [SCALES[LABEL] for one in every if one["kind"] == "label-token" and one["drop"]]
    plain = {
        "shape": (codec.config.in_channels, *size),
        "network": {
            "kind": "unet",
            **{name: getattr(network, name) for name in UNetSection.model_fields if name != "kind"},
        },
        "process": dict(scheduler.process),
        "prediction": scheduler.prediction,
        "condition": every,
        "autoencoder": section_of(codec),
        "sample": {**scheduler.sample, "steps": SAMPLE["steps"], "guidance": {"scale": guided[0] if guided else 1.0}},
    }
    return validate(ModelConfig, plain, "the file")


def _beside(network: UNetConfig, reads_text: bool) -> list[dict[str, Any]]:
    """The conditions that are channels beside x."""
    found, latents = network.concat_channels, network.in_channels
    if not found:
        return []
    if reads_text and found == latents + 1:
        widths = {key: width or latents for key, width in INPAINTING.items()}
        return [{"kind": "concat", "key": key, "channels": width} for key, width in widths.items()]
    raise WeightsError(
        f"a U-Net with {found} channels beside its {latents}: known is Stable Diffusion's inpainting with "
        f"{latents + 1}, a mask and a masked picture; depth, super-resolution and inpainting without text are not"
    )


def _table(theirs: Mapping[str, Tensor], reads_text: bool) -> dict[str, Any]:
    """The betas: the published ones by name where the file's own are these, else as they are written there."""
    start, end = TEXT_ENDS if reads_text else OTHER_ENDS
    named = {"beta_schedule": "sqrt-linear", "beta_start": start, "beta_end": end, "timesteps": 1000}
    own = theirs.get("betas")
    if own is None or torch.allclose(own.double(), betas("sqrt-linear", 1000, start=start, end=end), rtol=1e-5):
        return named
    return {"beta_schedule": tuple(own.double().tolist())}
