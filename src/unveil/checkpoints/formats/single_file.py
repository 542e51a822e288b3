"""The format `ldm`: a latent diffusion model in one file, Stable Diffusion 1 and 2 among them.

    model.diffusion_model.*   the U-Net, its averages as model_ema.* (without dots)
    first_stage_model.*       the autoencoder
    cond_stage_model.*        the text encoder, or a table of classes; missing if the model takes no condition
    betas, alphas_cumprod ... the schedule

Facts: configuration files and state-dict keys of github.com/CompVis/latent-diffusion, CompVis/stable-diffusion,
Stability-AI/stablediffusion and runwayml/stable-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.autoencoders.autoencoder import Autoencoder, PerChannel
from unveil.checkpoints import ldm_unet, text_encoder_keys
from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint, Signature, save_file
from unveil.checkpoints.formats import autoencoder, text_encoder
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import ModelOverrides, in_float, shapes_of
from unveil.checkpoints.scheduler import SchedulerConfig
from unveil.checkpoints.unet_model import network_section
from unveil.conditioning.class_label import LabelToken
from unveil.conditioning.text_encoder import TextEncoder
from unveil.core.process import DiscreteVP, betas
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model, build, model_folder
from unveil.model.config import ModelConfig, validate
from unveil.model.config.model import section_of
from unveil.nn.layers import EmptyParameters
from unveil.nn.text_encoders import CLIPEncoderConfig
from unveil.nn.unet import UNet, UNetConfig

STAGE = "cond_stage_model."
CLASSES = f"{STAGE}embedding.weight"
TABLE = "table.weight"  # ours
PROMPT, LABEL = "prompt", "label"
# The two published schedules, both linear in the square root; betas in the file take precedence
TEXT_ENDS, OTHER_ENDS = (0.00085, 0.012), (0.0015, 0.0195)
SCALE = 0.18215  # of Stable Diffusion's latents, which its files do not hold
# Width of Stable Diffusion 2's text, whose files of two kinds have the same keys
AMBIGUOUS = 1024
SIDES = {"eps": 512, "v": 768}  # of its images, by what the network predicts
LDM_SIDE = 256
PUBLISHED_NULL = 1001  # rows of a table of ImageNet's classes, the last for no class
# As the scripts sample: 50 steps of DDIM, guided if there is a condition
SAMPLE = {"sampler": "ddim", "steps": 50, "schedule": "latent-diffusion", "threshold": "none"}
SCALES = {PROMPT: 7.5, LABEL: 3.0}
INPAINTING = {"mask": 1, "masked": 0}  # channels concatenated to x, 0: those of the latents

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


def read_checkpoint(theirs: Mapping[str, Tensor], overrides: ModelOverrides | None = None) -> LoadedCheckpoint:
    """Load the model of such a file, in evaluation mode; weights of another type become float32.

    Args:
        theirs: Tensors of the file.
        overrides: Settings that the keys do not show.

    Raises:
        WeightsError: A part is missing, incomplete or not supported; or a setting is missing.
    """
    overrides = overrides or ModelOverrides()
    unet = _unet(theirs, overrides)
    network = ldm_unet.config_from_keys(shapes_of(unet), _heads(overrides))
    prefix = autoencoder.PREFIX
    first = autoencoder.first_stage({k: v for k, v in theirs.items() if k.startswith(prefix)})
    if not first:
        raise WeightsError(f"no autoencoder ({prefix}*) beside the U-Net; give the whole file")
    encoder = _text_encoder(theirs, overrides)
    if encoder is None and network.cross_attention_dim is not None and CLASSES not in theirs:
        raise WeightsError(f"no text encoder ({STAGE}*), and the U-Net reads a text; give the whole file")
    codec = autoencoder.build_autoencoder(first, scale=_scale(theirs, encoder is not None))
    config = _config(theirs, network, codec, encoder, overrides)
    model = assemble_model(config, ldm_unet.convert_state_dict(unet, network).network, codec, encoder)
    if CLASSES in theirs:
        model.conditioners[LABEL].load_state_dict(in_float({TABLE: theirs[CLASSES]}), assign=True)
    used = {ldm_unet.PREFIX + key for key in unet} | {key for key in theirs if key.startswith(prefix)}
    used |= {key for key in theirs if key.startswith(STAGE)} | {key for key in SCHEDULE if key in theirs}
    return LoadedCheckpoint(model, len(used & theirs.keys()), tuple(sorted(theirs.keys() - used)))


def fit(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> LoadedCheckpoint:
    """Compare a file with its model, without reading its weights.

    Raises:
        WeightsError: As `read`.
    """
    # only the tables are numbers that determine what the model is
    return read_checkpoint(
        {key: tensor if key in BESIDE else tensor.to("meta") for key, tensor in theirs.items()}, overrides
    )


def assemble_model(
    config: ModelConfig,
    network: Mapping[str, Tensor],
    codec: Autoencoder,
    encoder: text_encoder.LoadedTextEncoder | None,
) -> Model:
    """Return the model of a configuration and its parts, in evaluation mode; the network becomes float32.

    Args:
        config: Configuration, see `infer_model_config`.
        network: Native state dict of the U-Net.
        codec: Autoencoder with its weights.
        encoder: Text encoder of the prompt, if there is one.
    """
    with EmptyParameters():  # no weight is initialised that the file replaces
        model = build(config)
    model.denoiser.network.load_state_dict(in_float(network), assign=True)
    model.autoencoder = codec
    for conditioner in model.conditioners.values():
        if isinstance(conditioner, TextEncoder) and encoder is not None:
            encoder.fill(conditioner)
    return model.eval()


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model's file, without EMA weights.

    Raises:
        RecipeError: Such files cannot hold the model.
    """
    network, codec, process = model.denoiser.network, model.autoencoder, model.process
    if not isinstance(network, UNet) or not isinstance(codec, Autoencoder) or not isinstance(process, DiscreteVP):
        raise RecipeError(
            "such a file holds a U-Net over the latents of an autoencoder under a table of betas; this model is "
            f"a {type(network).__name__} over {type(codec).__name__} under {type(process).__name__}"
        )
    theirs = schedule(process)
    theirs |= ldm_unet.add_prefix(ldm_unet.published_state_dict(network.state_dict(), network.config))
    theirs |= ldm_unet.add_prefix(autoencoder.published_state_dict(codec), autoencoder.PREFIX)  # pyright: ignore[reportArgumentType]
    for conditioner in model.conditioners.values():
        if isinstance(conditioner, TextEncoder):
            theirs |= _tower(conditioner)
        elif isinstance(conditioner, LabelToken):
            theirs[CLASSES] = conditioner.state_dict()[TABLE]
    return theirs


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write a model as one file."""
    notes = tuple(
        f"added: {len(added)} tensors of a last block of the text encoder, which nothing reads and such files have; "
        "it is a copy of the block before"
        for conditioner in model.conditioners.values()
        if isinstance(conditioner, TextEncoder) and (added := duplicated_block(conditioner))
    )
    return save_file(path, tensors_of(model))._replace(notes=notes)


def schedule(process: DiscreteVP) -> dict[str, Tensor]:
    """Return the tables that such files hold beside the weights, float32 (N,), computed in float64.

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


def _unet(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> dict[str, Tensor]:
    """Return the U-Net's tensors without their prefix: EMA weights if there are any and no others are requested."""
    trained = ldm_unet.strip_prefix(theirs)
    averages = {key: ldm_unet.ema_key(ldm_unet.PREFIX + key) for key in trained}
    missing = [key for key in averages.values() if key not in theirs]
    if overrides.weights == "trained" or (len(missing) == len(averages) and overrides.weights is None):
        return trained
    if missing:
        raise WeightsError(
            f"averages are missing: {abbreviate(missing, 3)}; say file.weights=trained to read the others"
        )
    return {key: theirs[average] for key, average in averages.items()}


def _heads(overrides: ModelOverrides) -> dict[str, int] | None:
    heads = {"heads": overrides.heads, "head_channels": overrides.head_channels}
    return {name: value for name, value in heads.items() if value is not None} or None


def _text_encoder(theirs: Mapping[str, Tensor], overrides: ModelOverrides) -> text_encoder.LoadedTextEncoder | None:
    state = {key: tensor for key, tensor in theirs.items() if key.startswith(STAGE)}
    if not state or CLASSES in state:
        return None
    if not text_encoder_keys.find_text_encoders(state):
        raise WeightsError(
            f"a text encoder that is not known ({abbreviate(sorted(state), 2)}); known are CLIP's "
            f"({text_encoder_keys.SD1}*), OpenCLIP's ({text_encoder_keys.SD2}*) and a table of classes ({CLASSES})"
        )
    settings = {"heads": overrides.text_heads, "activation": overrides.activation}
    return text_encoder.read_state_dict(
        state, settings={name: value for name, value in settings.items() if value is not None}
    )


def _tower(conditioner: TextEncoder) -> dict[str, Tensor]:
    """Return a text encoder's tensors; the last block of Stable Diffusion 2's is not used.

    Its folders leave that block out and its files have one. The file gets a copy of the block before.
    """
    state, config = conditioner.tower.state_dict(), conditioner.tower.config
    if not isinstance(config, CLIPEncoderConfig) or config.activation != "gelu":
        return text_encoder_keys.published_state_dict(
            state, config, text_encoder_keys.TextEncoderLocation("clip", text_encoder_keys.SD1)
        )
    if added := duplicated_block(conditioner):
        state |= {key: state[copied] for key, copied in added.items()}
        config = replace(config, depth=config.depth + 1, skip=1)
    return text_encoder_keys.published_state_dict(
        state, config, text_encoder_keys.TextEncoderLocation("openclip", text_encoder_keys.SD2)
    )


def duplicated_block(conditioner: TextEncoder) -> dict[str, str]:
    """Return the native keys of the block that files have and a text encoder lacks, with those that are copied."""
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
    encoder: text_encoder.LoadedTextEncoder | None,
    overrides: ModelOverrides,
) -> ModelConfig:
    """Return the configuration of a file's model."""
    prediction = overrides.prediction or "eps"
    if network.cross_attention_dim == AMBIGUOUS and overrides.prediction is None:
        raise WeightsError(
            "Stable Diffusion 2 has the same keys with two predictions: say file.prediction=eps (the base models, "
            "512 px) or file.prediction=v (those of 768 px)"
        )
    condition: list[dict[str, Any]] = []
    if encoder is None and CLASSES in theirs:
        rows = len(theirs[CLASSES])
        classes = overrides.classes or (rows - 1 if rows == PUBLISHED_NULL else rows)
        condition.append(
            {"kind": "class-label-token", "num_classes": rows, "drop_prob": 0.1 if classes < rows else 0.0}
        )
    default = SIDES.get(str(prediction), 512) if network.cross_attention_dim == AMBIGUOUS else SIDES["eps"]
    side = overrides.size or (default if encoder is not None else LDM_SIDE)
    process = {"kind": "discrete-vp", **_beta_schedule(theirs, encoder is not None)}
    scheduler = SchedulerConfig(process, str(prediction), SAMPLE)
    return infer_model_config(network, codec, encoder, scheduler, (side, side), condition)


def infer_model_config(
    network: UNetConfig,
    codec: Autoencoder,
    encoder: text_encoder.LoadedTextEncoder | None,
    scheduler: SchedulerConfig,
    size: tuple[int, int],
    condition: Sequence[Mapping[str, Any]] = (),
) -> ModelConfig:
    """Return the configuration of a latent diffusion model, from its parts.

    Args:
        network: Configuration of the U-Net.
        codec: The autoencoder.
        encoder: Text encoder of the prompt, if there is one.
        scheduler: Process, prediction and sampling; guidance is added if there is a condition.
        size: Height and width of the images, in pixels.
        condition: Further sections.

    Raises:
        WeightsError: Unknown images concatenated to x, or a text encoder of another width than the U-Net's.
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
    sections = [dict(section) for section in condition]
    if encoder is not None:
        prompt = {"key": PROMPT, "drop_prob": 0.1, "prompt_weighting": "brackets"}
        sections.insert(0, encoder.describe() | prompt)
    sections += _concatenated(network, encoder is not None)
    guided = [SCALES[section["key"]] for section in sections if section.get("key") in SCALES]
    guided += [SCALES[LABEL] for section in sections if section["kind"] == "label-token" and section["drop_prob"]]
    plain = {
        "shape": (codec.config.in_channels, *size),
        "network": network_section(network),
        "process": dict(scheduler.process),
        "prediction": scheduler.prediction,
        "condition": sections,
        "autoencoder": section_of(codec),
        "sample": {**scheduler.sample, "steps": SAMPLE["steps"], "guidance": {"scale": guided[0] if guided else 1.0}},
    }
    return validate(ModelConfig, plain, "the file")


def _concatenated(network: UNetConfig, reads_text: bool) -> list[dict[str, Any]]:
    """Return the sections of the images that are concatenated to x."""
    channels, latents = network.concat_channels, network.in_channels
    if not channels:
        return []
    if reads_text and channels == latents + 1:
        widths = {key: width or latents for key, width in INPAINTING.items()}
        return [{"kind": "concat", "key": key, "channels": width} for key, width in widths.items()]
    raise WeightsError(
        f"a U-Net with {channels} channels beside its {latents}: known is Stable Diffusion's inpainting with "
        f"{latents + 1}, a mask and a masked image; depth, super-resolution and inpainting without text are not"
    )


def _beta_schedule(theirs: Mapping[str, Tensor], reads_text: bool) -> dict[str, Any]:
    """Return the betas: the published ones by name if the file's betas are these, else the file's."""
    start, end = TEXT_ENDS if reads_text else OTHER_ENDS
    named = {"beta_schedule": "sqrt-linear", "beta_start": start, "beta_end": end, "timesteps": 1000}
    table, published = theirs.get("betas"), betas("sqrt-linear", 1000, start=start, end=end)
    if table is None or (table.shape == published.shape and torch.allclose(table.double(), published, rtol=1e-5)):
        return named
    return {"beta_schedule": tuple(table.double().tolist())}


_UNET = ldm_unet.PREFIX
WHOLE = {"the U-Net": f"{_UNET}input_blocks.0.0.weight", "the autoencoder": autoencoder.PREFIX}
FORMATS = (
    Format(
        name="ldm",
        signatures=(
            Signature("Stable Diffusion 1 in one file", {**WHOLE, "the text encoder": "cond_stage_model.transformer."}),
            Signature("Stable Diffusion 2 in one file", {**WHOLE, "the text encoder": "cond_stage_model.model."}),
            Signature("a latent diffusion model in one file", WHOLE),
            Signature("a latent-diffusion or Stable Diffusion checkpoint", {"a U-Net": f"{_UNET}time_embed."}),
            Signature(
                "a U-Net of latent diffusion",
                {
                    "its time embedding": "time_embed.0.weight",
                    "its first convolution": "input_blocks.0.0.weight",
                    "text": "middle_block.1.transformer_blocks.",
                },
                model_folder.PART_ADVICE,
            ),
        ),
        load=read_checkpoint,
        fit=fit,
        save=save,
        endings=(".safetensors",),
        overrides=frozenset(
            {"size", "heads", "head_channels", "prediction", "classes", "text_heads", "activation", "weights"}
        ),
        converts_to=("diffusers", "ldm"),
        cannot_hold="a process other than a table of betas, a sampler, the size of its images, or EMA weights",
        priority=5,  # a U-Net of latent diffusion has the keys of ADM's too
    ),
)
