"""Share of a GPU's peak that training a DiT reaches, as it is and compiled: bf16, fused AdamW, joint EMA.

    python benchmarks/gpu/dit_train.py [--name dit-xl-2] [--batch 32] [--steps 20] [--peak TFLOPS]

Operations are those of the network's products, three times its forward pass (once forward, twice backward), as in
Chowdhery et al. 2022, appendix B (arXiv:2204.02311). The peak is that of dense bf16, from the maker's data sheet; of
a device that is not listed here it has to be given.

Prints a JSON object: for each of `plain` and `compiled` ms a step, images a second, TFLOPS, the share of the peak,
and the largest memory in use. It runs on the CPU too, which shows that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from unveil.conditioning.class_label import Label
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import SampleRNG
from unveil.nn.dit import DiT, get_preset
from unveil.nn.flops import multiply_adds
from unveil.types import Condition

CLASSES = 1000
# Dense bf16 TFLOPS, by a part of the device's name; the first that fits
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "A6000": 155, "4090": 165, "3090": 71}


def peak_of(device: torch.device, given: float | None) -> float:
    """TFLOPS of the device; exits with what to give where it is unknown."""
    if given is not None:
        return given
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for part, peak in PEAKS.items():
        if part in name:
            return peak
    raise SystemExit(f"{name}: its peak is not listed; give --peak, its TFLOPS of dense bf16")


def training(name: str, batch: int, device: torch.device, *, compiled: bool) -> Callable[[], object]:
    """One whole step of training."""
    torch.manual_seed(0)
    config = get_preset(name, out_channels=4)
    network = DiT(config)
    label = Label(CLASSES, network.vector_dim, drop=0.1)
    denoiser = Denoiser(network, DiscreteVP(betas("linear", 1000)))
    parts = nn.ModuleList([denoiser, label]).to(device).train()
    if compiled:
        network.compile()
    parameters, objective = list(parts.parameters()), DiffusionLoss()
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    x0 = torch.randn(batch, 4, config.size, config.size, device=device)
    labels = torch.randint(0, CLASSES, (batch,), device=device)
    taken = 0

    def step() -> None:
        nonlocal taken
        optimiser.zero_grad(set_to_none=True)
        streams = SampleRNG(0, range(taken * batch, (taken + 1) * batch), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective(denoiser, x0, label.encode(labels), streams, taken).value
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1e-4)
        taken += 1

    return step


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median wall time of a step, after three that are not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = []
    for number in range(steps + 3):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times += [time.perf_counter() - start] if number >= 3 else []
    return statistics.median(times)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default="dit-xl-2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", type=float, default=None, help="TFLOPS of dense bf16")
    parser.add_argument("--only", choices=["plain", "compiled"], default=None)
    given = parser.parse_args()
    device = torch.device(given.device)
    peak = peak_of(device, given.peak)
    with torch.device("meta"):
        config = get_preset(given.name, out_channels=4)
        condition = Condition(vector=torch.empty(1, config.hidden_size))
        forward = multiply_adds(DiT(config), (torch.empty(1, 4, config.size, config.size), torch.empty(1), condition))
    record: dict[str, object] = {"name": given.name, "batch": given.batch, "device": str(device), "peak_tflops": peak}
    for case in [given.only] if given.only else ["plain", "compiled"]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        spent = seconds(training(given.name, given.batch, device, compiled=case == "compiled"), given.steps, device)
        tflops = 3 * 2 * forward * given.batch / spent / 1e12
        record[case] = {
            "ms": 1e3 * spent,
            "pictures_per_s": given.batch / spent,
            "tflops": tflops,
            "share_of_peak": tflops / peak,
            "peak_gb": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
