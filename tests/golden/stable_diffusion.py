"""Golden kind of Stable Diffusion as a whole: one file, from token numbers to images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported
from tests.golden.text import encoded
from unveil.autoencoders import AutoencoderKL
from unveil.checkpoints import ldm_unet
from unveil.checkpoints.formats import autoencoder, single_file
from unveil.checkpoints.overrides import ModelOverrides
from unveil.conditioning.text_encoder import TextEncoder
from unveil.core.guidance import cfg
from unveil.core.rng import SampleRNG
from unveil.core.samplers import run
from unveil.model import Model
from unveil.nn.unet import UNet
from unveil.types import Condition


def pipeline(case: Case) -> Iterator[Comparison]:
    """Tokens, DDIM with guidance, decoded: everything read from the union of the files, as of one checkpoint."""
    # the only kind whose steps are recorded in a remark alone
    numbers = re.search(r"DDIM (\d+) steps eta ([\d.]+) CFG (-?[\d.]+)", case.meta["flags"])
    if numbers is None:
        raise Unsupported(f"a pipeline of other steps: {case.meta['flags']}")
    steps, eta, scale = int(numbers[1]), float(numbers[2]), float(numbers[3])
    arguments = case.meta["unet_arguments"]
    heads = {"head_channels": arguments["num_head_channels"]} if arguments.get("num_head_channels", -1) > 0 else {
        "heads": arguments["num_heads"]
    }  # fmt: skip
    words = case.meta["text_arguments"]
    overrides = ModelOverrides(
        **heads,
        size=case.io["decoded"].shape[-1],
        text_heads=words["num_attention_heads"],
        activation="quick-gelu" if words["hidden_act"] == "quick_gelu" else "gelu",
    )
    model = single_file.read_checkpoint(case.weights(), overrides).model
    yield from configurations(case, model)
    text = cast(TextEncoder, model.conditioners[single_file.PROMPT])
    with torch.no_grad():
        both = {name: encoded(text, case.io[ids]) for name, ids in (("cond", "input_ids"), ("uncond", "uncond_ids"))}
        for name, tokens in both.items():
            yield case.compare(name, tokens)
        how = model.sampling.changed({"steps": steps, "eta": eta})
        levels = how.levels(model.process)
        step = cfg(*(model.denoise_fn(Condition(tokens=tokens)) for tokens in both.values()), scale)
        streams = SampleRNG(0, range(len(case.io["x_T"])))
        plan = how.plan(levels, model.variance, None)
        latents = run(plan, step, case.io["x_T"], noise=streams.bind(case.io["x_T"].shape[1:]))
        yield case.compare("latents", latents)
        pixels = model.decode(latents)
        yield case.compare("decoded", pixels)
        yield case.compare("image01", ((pixels + 1) / 2).clamp(0, 1))
    written, theirs = single_file.tensors_of(model), case.weights()
    lost = [key for key in theirs if key not in written]
    yield case.compare("keys lost in writing", torch.tensor(len(lost)), want=torch.tensor(0))
    changed = [key for key, tensor in theirs.items() if key in written and not _same(key, written[key], tensor)]
    yield case.compare("tensors changed by writing", torch.tensor(len(changed)), want=torch.tensor(0))


def configurations(case: Case, model: Model) -> Iterator[Comparison]:
    """What the file was taken for, beside the constructors' arguments."""
    unet = ldm_unet.config_from_arguments(case.meta["unet_arguments"])
    yield case.compare("unet_arguments", int(cast(UNet, model.denoiser.network).config == unet), want=1)
    codec = cast(AutoencoderKL, model.autoencoder).config
    vae = replace(autoencoder.config_from_arguments(case.meta["vae_arguments"]), scale=codec.scale)
    yield case.compare("vae_arguments", int(codec == vae), want=1)
    words, prefix = case.meta["text_arguments"], "cond_stage_model.transformer.text_model"
    shapes = {key.removeprefix(f"{prefix}."): tuple(tensor.shape) for key, tensor in case.weights().items()}
    width, first = words["hidden_size"], "encoder.layers.0.mlp.fc1.weight"
    sizes = {
        "embeddings.token_embedding.weight": (words["vocab_size"], width),
        "embeddings.position_embedding.weight": (words["max_position_embeddings"], width),
        first: (words["intermediate_size"], width),
    }
    yield case.compare("text_arguments", int(sizes == {key: shapes[key] for key in sizes}), want=1)
    layers = sum(key.startswith("encoder.layers.") and key.endswith(".mlp.fc1.weight") for key in shapes)
    yield case.compare("num_hidden_layers", layers, want=words["num_hidden_layers"])


def _same(key: str, mine: Tensor, theirs: Tensor) -> bool:
    """Weights to the bit, tables of the schedule as close as float32 holds them."""
    return torch.allclose(mine, theirs, rtol=1e-5) if key in single_file.SCHEDULE else torch.equal(mine, theirs)


KINDS: dict[str, Callable[[Case], Iterator[Comparison]]] = {"latent-diffusion/sd1_tiny_pipeline": pipeline}
