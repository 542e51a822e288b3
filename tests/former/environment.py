"""Where numbers can be expected to be the same to the bit."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import torch

PROCESSOR_FIELDS = ("vendor_id", "cpu family", "model")


def key() -> dict[str, str]:
    """Torch, the CPU's instructions that it uses, the system, and the kind of CPU.

    The kind counts because the matrix kernels of torch choose their order of summation by it.
    """
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "bf16": str(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "processor": processor(),
    }


def processor() -> str:
    """Vendor, family and model of the CPU, such as `AuthenticAMD 25 17`."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
        fields = {line[0].strip(): line[-1].strip() for line in lines}
        if all(field in fields for field in PROCESSOR_FIELDS):
            return " ".join(fields[field] for field in PROCESSOR_FIELDS)
    return platform.processor() or platform.machine()


def key_digest(environment: dict[str, str]) -> str:
    """The first digits of a hash of a key: the name of the folder of its record."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]
