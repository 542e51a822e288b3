"""Guided sampling of a U-Net of Stable Diffusion 2's shape, a fifth as wide: 20 steps of DDIM, scale 7.5, untrained.

The peer is diffusers' StableDiffusionPipeline, given the text's vectors, without the autoencoder. It reads the text in
every step; here its keys and values are computed once. With 300 tokens, as of T5, that is more than with CLIP's 77.

bf16 is the whole network's weights there; here sums, normalisations and the state stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import harness
import torch
from torch import Tensor, nn

from unveil.types import Condition

SIZE, SCALE, TEXT = 32, 7.5, 768
STEPS = 8 if harness.short() else 20  # what is computed once is shared by fewer steps, so that a short run gains less
WIDTHS = (64, 128, 256, 256)


def text(tokens: int) -> Tensor:
    """Vectors of a prompt and of none."""
    return torch.randn(2, tokens, TEXT, generator=torch.Generator().manual_seed(1))


def diffusers(dtype: torch.dtype, tokens: int) -> dict[str, float]:
    """The pipeline as it is called."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=WIDTHS,
        cross_attention_dim=TEXT,
        attention_head_dim=(1, 2, 4, 4),
        use_linear_projection=True,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    )
    scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=None,  # pyright: ignore[reportArgumentType]
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=network.eval().to(dtype),
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, none = text(tokens).to(dtype).split(1)
    start = torch.randn(1, 4, SIZE, SIZE, dtype=dtype)

    def run() -> object:
        return pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=none,
            latents=start,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="latent",
        )

    return harness.measure(run, repeats=3, warmup=1)


class Vectors(nn.Module):
    """A condition that is the text's vectors themselves."""

    key, drop = "text", 0.1

    def __init__(self, none: Tensor) -> None:
        super().__init__()
        self.none = none

    def encode(self, raw: Sequence[Tensor]) -> Condition:
        """The vectors of each prompt."""
        return Condition(tokens=torch.stack(list(raw)))

    def null(self, batch: int) -> Condition:
        """The vectors of no prompt."""
        return Condition(tokens=self.none.expand(batch, -1, -1))


def ours(dtype: torch.dtype, tokens: int) -> dict[str, float]:
    """Our model as `unveil.load` returns it, called as `unveil sample` calls it."""
    from unveil.core.denoiser import Denoiser
    from unveil.core.process import DiscreteVP, betas
    from unveil.model import Model
    from unveil.nn.unet import UNet, UNetConfig

    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=WIDTHS[0],
        channel_mult=tuple(width // WIDTHS[0] for width in WIDTHS),
        num_res_blocks=2,
        attention=(1, 2, 4),
        head_channels=64,
        projection="linear",
        cross_attention_dim=TEXT,
        transformer_depth=(1,),
    )
    process = DiscreteVP(betas("sqrt-linear", 1000, start=0.00085, end=0.012))
    prompt, none = text(tokens)
    model = (
        Model(Denoiser(UNet(config), process), (4, SIZE, SIZE), conditioners=[Vectors(none)])
        .eval()
        .to_inference_dtype(dtype)
    )
    how = {"sampler": "ddim", "steps": STEPS, "schedule": "leading", "threshold": "none", "scale": SCALE}
    return harness.measure(lambda: model.generate(cond={"text": [prompt]}, sampling=how), repeats=3, warmup=1)


if __name__ == "__main__":
    single, half = torch.float32, torch.bfloat16
    harness.main(
        "sd_sample",
        {
            "diffusers fp32, 77": lambda: diffusers(single, 77),
            "unveil fp32, 77": lambda: ours(single, 77),
            "unveil bf16, 77": lambda: ours(half, 77),
            "diffusers fp32, 300": lambda: diffusers(single, 300),
            "unveil fp32, 300": lambda: ours(single, 300),
        },
        [
            harness.Ratio("77 tokens, fp32", "diffusers fp32, 77", "unveil fp32, 77", at_least=1.05),
            harness.Ratio("300 tokens, fp32", "diffusers fp32, 300", "unveil fp32, 300", at_least=1.2),
            harness.Ratio(
                "77 tokens, default settings", "diffusers fp32, 77", "unveil bf16, 77", at_least=1.7, bf16=True
            ),
        ],
    )
