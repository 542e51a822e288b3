"""Golden kind of Stable Diffusion as a whole: one file, from token numbers to images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tests.golden.case import Case, Comparison, Unsupported
from tests.golden.text import encoded
from unveil.checkpoints.formats import single_file
from unveil.checkpoints.overrides import ModelOverrides
from unveil.conditioning.text_encoder import TextEncoder
from unveil.core.guidance import cfg
from unveil.core.rng import SampleRNG
from unveil.core.samplers import run
from unveil.types import Condition


def pipeline(folder: Path) -> Iterator[Comparison]:
    """Tokens, DDIM with guidance, decoded: everything read from the union of the files, as of one checkpoint."""
    case = Case(folder)
    found = re.search(r"DDIM (\d+) steps eta ([\d.]+) CFG ([\d.]+)", case.meta["flags"])
    if found is None:
        raise Unsupported(f"a pipeline of other steps: {case.meta['flags']}")
    steps, eta, scale = int(found[1]), float(found[2]), float(found[3])
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


def _same(key: str, mine: Tensor, theirs: Tensor) -> bool:
    """Weights to the bit, tables of the schedule as close as float32 holds them."""
    return torch.allclose(mine, theirs, rtol=1e-5) if key in single_file.SCHEDULE else torch.equal(mine, theirs)


KINDS: dict[str, Callable[[Path], Iterator[Comparison]]] = {"latent-diffusion/sd1_tiny_pipeline": pipeline}
