"""Recorded networks of latent diffusion: its U-Nets with and without cross-attention, and ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.checkpoints import ldm_unet, openai_keys
from unveil.checkpoints.formats import controlnet as control
from unveil.conditioning.class_label import Label, LabelToken
from unveil.conditioning.controlnet import AttachedControlNet, ControlledBlocks, ControlMode, MultiControlNet
from unveil.nn.embeddings import sinusoid
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition, NoiseLevel


def loaded(config: UNetConfig, theirs: dict[str, Tensor]) -> UNet:
    """The U-Net with published weights."""
    network = UNet(config)
    network.load_state_dict(ldm_unet.convert_state_dict(theirs, config).network)
    return network.eval()


@torch.no_grad()
def unet(case: Case) -> Iterator[Comparison]:
    """UNetModel of latent diffusion, and of ControlNet's repository."""
    io, theirs = case.io, ldm_unet.strip_prefix(case.weights())
    config = ldm_unet.config_from_arguments(case.meta["arguments"])
    network = loaded(config, theirs)
    x, t, tokens = io["x"], io["timesteps"], io.get("context")
    condition = Condition(tokens=tokens)
    if openai_keys.LABEL in theirs:
        classes, dim = theirs[openai_keys.LABEL].shape
        label = Label(classes, dim)
        label.load_state_dict({openai_keys.OUR_LABEL: theirs[openai_keys.LABEL]})
        condition = condition.join(label.encode(io["y"]))
    yield case.compare("out", network(x, t, condition))
    if "timestep_embedding" in io:
        yield case.compare("timestep_embedding", sinusoid(t, config.model_channels, config.embedding))
    if "out_nonsquare" in io:
        x = io["x_nonsquare"]
        assert tokens is not None
        yield case.compare("out_nonsquare", network(x, t[: len(x)], Condition(tokens=tokens[: len(x)])))
    if "class_embedding" in io:
        table = io["cond_stage_model.embedding.weight"]
        classes = LabelToken(table.shape[0], table.shape[1])
        classes.load_state_dict({"rows.table.weight": table})
        encoded = classes.encode(io["class_labels"])
        yield case.compare("class_embedding", encoded.tokens)
        yield case.compare("out_class", network(io["x"], t, encoded))
    for name in ("out_concat", "out_hybrid"):
        if name in io:
            yield case.compare(name, _beside(config, theirs, io, tokens))


def _beside(config: UNetConfig, theirs: dict[str, Tensor], io: dict[str, Tensor], tokens: Tensor | None) -> Tensor:
    """The result where what is concatenated to x, and both halves of the text, come as conditions of their own."""
    out = config.out_channels
    network = loaded(ldm_unet.with_concat_channels(config, config.in_channels - out), theirs)
    condition = Condition(concat=io["x"][:, out:])
    if tokens is not None:
        condition = condition.join(Condition(tokens=tokens[:, :3])).join(Condition(tokens=tokens[:, 3:]))
    return network(io["x"][:, :out], io["timesteps"], condition)


@torch.no_grad()
def cldm(case: Case) -> Iterator[Comparison]:
    """ControlNet beside its U-Net: residuals, and what the U-Net makes of them."""
    io, theirs, arguments = case.io, case.weights(), case.meta["arguments"]
    unet_config = ldm_unet.config_from_arguments(arguments["unet"])
    config, hint_channels = control.config_from_arguments(arguments["controlnet"])
    network, controlnet = loaded(unet_config, theirs), control.build_controlnet(theirs, config)
    x, t, hint = io["x"], io["timesteps"], io["hint"]
    text = Condition(tokens=io["context"])
    assert hint.shape[1] == hint_channels
    yield case.compare("hint_embedding", controlnet.control_features(hint, x))
    residuals = controlnet(x, t, replace(text, control_image=hint))
    yield case.compare("n_controls", len(residuals), want=case.meta.get("n_controls", len(residuals)))
    for number, residual in enumerate(residuals):
        yield case.compare(f"control.{number:02}", residual)
    yield case.compare("eps_no_control", network(x, t, text))

    def controlled(mode: ControlMode = "balanced", place: ControlledBlocks = "all", *, null: bool = False) -> Tensor:
        weights = tuple(io["control_scales"].tolist())
        controls = MultiControlNet([AttachedControlNet("hint", controlnet, weights, blocks=place)], mode)
        conditioned = replace(text, control_image=hint)
        conditioned = controls.null_condition(conditioned) if null else conditioned
        return network(x, t, controls(x, t, conditioned, NoiseLevel(0.5, 0.5, 0.5)))

    yield case.compare("eps", controlled())
    yield case.compare("eps_only_mid", controlled(place="middle"))
    if "eps_cfg_guess_uncond" in io:
        yield case.compare("eps_cfg_guess_uncond", controlled("guess", null=True))


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "latent-diffusion/unet": unet,
    "ControlNet/unet": unet,
    "ControlNet/cldm": cldm,
}
