"""Training step of DDPM's 35.7M CIFAR-10 U-Net, batch 4: forward, loss, backward, AdamW, EMA, as each library does it.

The peer is diffusers' UNet2DModel, configured to the same network, with its DDPMScheduler and EMAModel.

As bundled on a CPU means bf16 autocast and contiguous tensors: with channels last torch's bf16 normalisation costs
three times as much and its fused AdamW twice, and the convolutions gain nothing.
"""

from __future__ import annotations

from itertools import count

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, SIZE, STEPS, PARAMETERS = 4, 32, 1000, 35_746_307


def counted(network: nn.Module) -> list[nn.Parameter]:
    """The parameters, which must be those of the published network."""
    parameters = list(network.parameters())
    total = sum(p.numel() for p in parameters)
    assert total == PARAMETERS, f"{total} parameters: not DDPM's CIFAR-10 network"
    return parameters


def diffusers_fp32() -> dict[str, float]:
    """Diffusers as its training example runs it, in float32."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=0.1,
    ).train()
    scheduler, parameters = DDPMScheduler(STEPS), counted(network)
    x0 = torch.randn(BATCH, 3, SIZE, SIZE).clamp(-1, 1)
    ema = EMAModel(parameters, decay=0.9999)

    def loss() -> Tensor:
        eps, t = torch.randn_like(x0), torch.randint(0, STEPS, (BATCH,))
        return F.mse_loss(network(scheduler.add_noise(x0, eps, t), t).sample, eps)

    return harness.measure_step(
        loss, torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0), lambda: ema.step(parameters)
    )


def ours(*, layout: torch.memory_format, bf16: bool) -> dict[str, float]:
    """Our parts as training puts them together: objective with its own streams, fused AdamW, joint EMA."""
    from unveil.core.denoiser import Denoiser
    from unveil.core.objective import DiffusionLoss
    from unveil.core.process import DiscreteVP, betas
    from unveil.core.rng import SampleRNG
    from unveil.nn.unet import UNet, UNetConfig

    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=3,
        out_channels=3,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=2,
        attention=(2,),
        resample="conv-asymmetric",
        embedding="sin-cos",
        norm_eps=1e-6,
        dropout=0.1,
    )
    denoiser = Denoiser(UNet(config), DiscreteVP(betas("linear", STEPS))).train()
    denoiser = denoiser.to(memory_format=layout)
    parameters, objective = counted(denoiser), DiffusionLoss()
    averages = [p.detach().clone() for p in parameters]
    x0 = torch.randn(BATCH, 3, SIZE, SIZE).clamp(-1, 1).contiguous(memory_format=layout)
    steps = count()

    def loss() -> Tensor:
        step = next(steps)
        streams = SampleRNG(0, range(step * BATCH, (step + 1) * BATCH))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return objective(denoiser, x0, None, streams, step).value

    @torch.no_grad()
    def average() -> None:
        torch._foreach_lerp_(averages, parameters, 1e-4)

    return harness.measure_step(loss, torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True), average)


if __name__ == "__main__":
    plain, last = torch.contiguous_format, torch.channels_last
    harness.main(
        "train_step",
        {
            "diffusers fp32": diffusers_fp32,
            "unveil fp32": lambda: ours(layout=plain, bf16=False),
            "unveil bf16": lambda: ours(layout=plain, bf16=True),
            "unveil bf16 channels-last": lambda: ours(layout=last, bf16=True),
        },
        [
            harness.Ratio("equal precision", "diffusers fp32", "unveil fp32", at_least=1.0, goal=1.1),
            harness.Ratio("default settings", "diffusers fp32", "unveil bf16", at_least=1.4, goal=1.7, bf16=True),
            harness.Ratio(
                "channels-last", "diffusers fp32", "unveil bf16 channels-last", at_least=1.4, goal=1.7, bf16=True
            ),
        ],
    )
