"""Guided sampling of DiT-S/4 on 4 x 32 x 32 latents: 20 steps of DDIM, batch 4, guidance scale 4, random weights.

The peer is the loop of diffusers' DiTPipeline, without the autoencoder. It embeds time and class in every block of
every step, here they are computed for all steps before the first.

bf16 is the whole network's weights there; here sums, normalisations and the state stay in float32, and only products
are computed in it. What the CPU gains by it is measured beside it, on one product alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import harness
import torch
from torch import Tensor

if TYPE_CHECKING:
    from unveil.model import Model

BATCH, SIZE, SCALE, CLASSES = 4, 32, 4.0, 1000
STEPS = 8 if harness.short() else 20  # what is computed once is shared by fewer steps, so that a short run gains less


def diffusers(dtype: torch.dtype) -> dict[str, float]:
    """The loop of DiTPipeline.__call__."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=4,
        out_channels=8,
        num_layers=12,
        sample_size=SIZE,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    )
    network = network.eval().to(dtype)
    scheduler = DDIMScheduler(1000, clip_sample=False)
    labels = torch.cat([torch.arange(BATCH), torch.full((BATCH,), CLASSES)])
    start = torch.randn(BATCH, 4, SIZE, SIZE, dtype=dtype)

    @torch.no_grad()
    def run() -> Tensor:
        x = torch.cat([start, start])
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            half = x[:BATCH]
            both = scheduler.scale_model_input(torch.cat([half, half]), t)
            found = network(both, timestep=t.expand(2 * BATCH), class_labels=labels).sample
            conditional, null = found[:, :4].chunk(2)
            guided = null + SCALE * (conditional - null)
            x = scheduler.step(torch.cat([guided, guided]), t, x).prev_sample
        return x[:BATCH]

    return harness.measure(run, repeats=3, warmup=1)


def guided(steps: int) -> Model:
    """Build our model, which samples with guidance in `steps` steps."""
    from unveil.model import build
    from unveil.model.config import ModelConfig, validate  # here, so that the peer's process does not hold it

    torch.manual_seed(0)
    raw = {
        "shape": [4, SIZE, SIZE],
        "network": {"kind": "dit", "name": "dit-s-4"},
        "process": {"kind": "discrete-vp", "beta_schedule": "linear-scaled"},
        "variance": "learned-range",
        "condition": [{"kind": "class-label", "num_classes": CLASSES, "drop_prob": 0.1}],
        "sample": {"sampler": "ddim", "steps": steps, "threshold": "none", "guidance": {"scale": SCALE}},
    }
    return build(validate(ModelConfig, raw, "benchmark")).eval()


def ours(precision: torch.dtype) -> dict[str, float]:
    """Our model as `unveil.load` returns it, called as `unveil sample` calls it."""
    model = guided(STEPS).to_inference_dtype(precision)
    return harness.measure(lambda: model.generate(cond={"label": [0, 1, 2, 3]}, count=BATCH), repeats=3, warmup=1)


def product(dtype: torch.dtype) -> dict[str, float]:
    """The first layer of a block's perceptron on the tokens of a guided call: what bf16 can give at most."""
    torch.manual_seed(0)
    x, weight = torch.randn(512, 384, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
    with torch.no_grad():
        return harness.measure(lambda: [torch.nn.functional.linear(x, weight) for _ in range(20)], repeats=10)


if __name__ == "__main__":
    single, half = torch.float32, torch.bfloat16
    harness.main(
        "dit_sample",
        {
            "diffusers fp32": lambda: diffusers(single),
            "unveil fp32": lambda: ours(single),
            "diffusers bf16": lambda: diffusers(half),
            "unveil bf16": lambda: ours(half),
            "product fp32": lambda: product(single),
            "product bf16": lambda: product(half),
        },
        [
            harness.Ratio("equal precision, fp32", "diffusers fp32", "unveil fp32", at_least=1.1, goal=1.2),
            harness.Ratio("equal precision, bf16", "diffusers bf16", "unveil bf16", at_least=1.1, goal=1.2, bf16=True),
            harness.Ratio("default settings", "diffusers fp32", "unveil bf16", at_least=2.5, goal=3.4, bf16=True),
            harness.Ratio("peak memory, fp32", "unveil fp32", "diffusers fp32", "peak_mb", at_most=0.75),
            harness.Ratio("peak memory, bf16", "unveil bf16", "diffusers bf16", "peak_mb", at_most=0.75),
            harness.Ratio("bf16 of a product alone", "product fp32", "product bf16", bf16=True),
        ],
    )
