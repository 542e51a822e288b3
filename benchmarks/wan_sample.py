"""Guided sampling of a network of Wan's shape, half as wide, 4 blocks: 10 steps of UniPC, 300 tokens, guidance scale 5.

The peer is diffusers' WanPipeline as it is called, given the text's vectors, without the autoencoder. It reads the text
and embeds the level in every call; here a text's keys and values, a level's modulation and the table of places are
computed once for a run. The weights are drawn; the video has 9 frames of 128 x 128 pixels, 192 tokens.

In diffusers, bf16 applies to the weights of the whole network, except for those that it keeps in float32. Here sums,
normalisations and the state stay in float32, and only products are computed in bf16.
"""

from __future__ import annotations

from typing import Any

import harness
import torch
from torch import Tensor

SCALE, TEXT, TOKENS = 5.0, 4096, 300
STEPS = 5 if harness.short() else 10  # what is computed once is shared by fewer steps, so that a short run gains less
FRAMES, SIDE = 9, 128
LATENTS = (16, 3, 16, 16)


def network() -> Any:
    """The class and the widths of Wan 2.1's 1.3B network, of heads half as wide and fewer blocks."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=64, text_dim=TEXT, ffn_dim=4480, num_layers=4
    )
    return made.eval().requires_grad_(False)


def text() -> Tensor:
    """Vectors of a prompt and of none, (2, L, D)."""
    return torch.randn(2, TOKENS, TEXT, generator=torch.Generator().manual_seed(1))


def diffusers(dtype: torch.dtype) -> dict[str, float]:
    """The pipeline as it is called."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    pipeline = WanPipeline(
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        vae=None,  # pyright: ignore[reportArgumentType]
        scheduler=UniPCMultistepScheduler(  # pyright: ignore[reportArgumentType]
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=network().to(dtype),
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, none = text().to(dtype).split(1)
    start = torch.randn(1, *LATENTS)

    def run() -> object:
        return pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=none,
            latents=start,
            num_frames=FRAMES,
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="latent",
        )

    return harness.measure(run, repeats=1, warmup=1)


def ours(dtype: torch.dtype) -> dict[str, float]:
    """Our model as `unveil.load` returns it, called as `unveil video` calls it."""
    from unveil.checkpoints.hf.video_adapters import Wan
    from unveil.conditioning.prompt_embeds import PrecomputedPrompts
    from unveil.core.denoiser import Denoiser
    from unveil.core.flow import RectifiedFlow, TimeShift
    from unveil.core.prediction import rectified_flow
    from unveil.model import Model
    from unveil.types import Condition

    denoiser = Denoiser(Wan(network()), TimeShift(RectifiedFlow(rounding="down"), 3.0), prediction=rectified_flow)
    words = PrecomputedPrompts(["a cat", ""], Condition(tokens=text()), where="the benchmark")
    model = Model(denoiser, LATENTS, conditioners=[words]).eval().to_inference_dtype(dtype)
    how = {"sampler": "unipc-2", "steps": STEPS, "schedule": "flow-sigmas", "threshold": "none", "scale": SCALE}
    return harness.measure(lambda: model.generate(cond={"prompt": "a cat"}, sampling=how), repeats=1, warmup=1)


if __name__ == "__main__":
    single, half = torch.float32, torch.bfloat16
    harness.main(
        "wan_sample",
        {
            "diffusers fp32": lambda: diffusers(single),
            "unveil fp32": lambda: ours(single),
            "diffusers bf16": lambda: diffusers(half),
            "unveil bf16": lambda: ours(half),
        },
        [
            harness.Ratio("equal precision, fp32", "diffusers fp32", "unveil fp32", at_least=1.2),
            harness.Ratio("equal precision, bf16", "diffusers bf16", "unveil bf16", at_least=1.2, bf16=True),
            harness.Ratio("default settings", "diffusers fp32", "unveil bf16", at_least=2.0, bf16=True),
        ],
    )
