"""Training step of DiT-S/4 on 4 x 32 x 32 latents, batch 8: forward to EMA, as each library does it.

The peer is diffusers' DiTTransformer2DModel with its DDPMScheduler and EMAModel. It embeds time and class in every
block, 7 million weights more; the network is otherwise the same.

As bundled on a CPU that multiplies bf16 means bf16 autocast.
"""

from __future__ import annotations

from itertools import count

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, SIZE, STEPS, CLASSES, PARAMETERS = 8, 32, 1000, 1000, 32_895_808


def diffusers_fp32() -> dict[str, float]:
    """Diffusers as its training examples run it, in float32."""
    from diffusers import DDPMScheduler, DiTTransformer2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        sample_size=SIZE,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    ).train()
    scheduler, parameters = DDPMScheduler(STEPS), list(network.parameters())
    x0, labels = torch.randn(BATCH, 4, SIZE, SIZE), torch.randint(0, CLASSES, (BATCH,))
    ema = EMAModel(parameters, decay=0.9999)

    def loss() -> Tensor:
        eps, t = torch.randn_like(x0), torch.randint(0, STEPS, (BATCH,))
        found = network(scheduler.add_noise(x0, eps, t), timestep=t, class_labels=labels).sample
        return F.mse_loss(found, eps)

    return harness.measure_step(
        loss, torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0), lambda: ema.step(parameters)
    )


def ours(*, bf16: bool) -> dict[str, float]:
    """Our parts as training puts them together: objective with its own streams, fused AdamW, joint EMA."""
    from unveil.conditioning.class_label import Label
    from unveil.core.denoiser import Denoiser
    from unveil.core.objective import DiffusionLoss
    from unveil.core.process import DiscreteVP, betas
    from unveil.core.rng import SampleRNG
    from unveil.nn.dit import DiT, get_preset

    torch.manual_seed(0)
    network = DiT(get_preset("dit-s-4", in_channels=4, out_channels=4, size=SIZE))
    label = Label(CLASSES, network.vector_dim, drop=0.1)
    denoiser = Denoiser(network, DiscreteVP(betas("linear", STEPS))).train()
    parts = nn.ModuleList([denoiser, label])
    parameters, objective = list(parts.parameters()), DiffusionLoss()
    total = sum(p.numel() for p in parameters)
    assert total == PARAMETERS, f"{total} parameters: not DiT-S/4"
    averages = [p.detach().clone() for p in parameters]
    x0, labels = torch.randn(BATCH, 4, SIZE, SIZE), torch.randint(0, CLASSES, (BATCH,))
    steps = count()

    def loss() -> Tensor:
        step = next(steps)
        streams = SampleRNG(0, range(step * BATCH, (step + 1) * BATCH))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return objective(denoiser, x0, label.encode(labels), streams, step).value

    @torch.no_grad()
    def average() -> None:
        torch._foreach_lerp_(averages, parameters, 1e-4)

    return harness.measure_step(loss, torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True), average)


if __name__ == "__main__":
    harness.main(
        "dit_step",
        {
            "diffusers fp32": diffusers_fp32,
            "unveil fp32": lambda: ours(bf16=False),
            "unveil bf16": lambda: ours(bf16=True),
        },
        [
            harness.Ratio("equal precision", "diffusers fp32", "unveil fp32", at_least=1.0, goal=1.1),
            harness.Ratio("default settings", "diffusers fp32", "unveil bf16", at_least=1.7, goal=2.3, bf16=True),
            harness.Ratio("peak memory", "unveil bf16", "diffusers fp32", "peak_mb"),
        ],
    )
