"""Where numbers can be expected to be the same to the bit."""

from __future__ import annotations

import platform

import torch


def key() -> dict[str, str]:
    """Torch, the processor's instructions that it uses, the system, and what the processor is."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "bf16": str(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    }
