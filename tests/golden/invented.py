"""Cases of settings that no record has: written to a folder, run, and run again with one setting changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden.__main__ import kinds, run

Changes = Mapping[tuple[str | int, ...], Any]

KINDS = kinds()
COMPARE = {
    "float32": {"rtol": 1e-4, "atol": 1e-7, "atol_of_max": 3e-5},
    "float64": {"rtol": 1e-9, "atol": 1e-12, "atol_of_max": 1e-9},
    "integers": "exact",
}


class Record(NamedTuple):
    """Contents of a case: settings, tensors by name, weights by published key."""

    meta: dict[str, Any]
    io: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None


def failures(folder: Path, record: Record) -> list[str]:
    """The lines of the runner that are not good."""
    case = folder / "REPO" / "case"
    case.mkdir(parents=True, exist_ok=True)
    (case / "meta.json").write_text(json.dumps({"compare": COMPARE, **record.meta}))
    for name, tensors in (("io", record.io), ("weights", record.weights)):
        if tensors is not None:
            # copies, because the format refuses tensors that share memory
            save_file(
                {key: tensor.contiguous().clone() for key, tensor in tensors.items()}, case / f"{name}.safetensors"
            )
    return [line for line, ok in run(case, KINDS) if not ok]


def changed(meta: Mapping[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The settings with one value changed or added."""
    other = copy.deepcopy(dict(meta))
    inside: Any = other
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return other


def check(folder: Path, record: Record, changes: Changes) -> None:
    """The case passes; each change of a setting alone fails, and so does a setting that does not exist."""
    bad = failures(folder, record)
    assert bad == [], bad
    for place, value in changes.items():
        assert failures(folder, record._replace(meta=changed(record.meta, place, value))), f"{place} is not used"
    strange = failures(folder, record._replace(meta={**record.meta, "settings_of_another": {"strange": 1}}))
    assert len(strange) == 1
    assert "settings_of_another.strange" in strange[0]
    assert "(unread)" in strange[0]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def uniform(seed: int, *shape: int) -> Tensor:
    """Uniform numbers of a seed, float32."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def spread(value: Tensor, x: Tensor) -> Tensor:
    """Numbers (B,) with the rank of x."""
    return value.reshape(-1, *(1,) * (x.ndim - 1))


def karras(n: int, low: float, high: float, rho: float) -> list[float]:
    """The n levels of Karras et al. 2022, eq. 5, and 0."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [*((first + i / max(n - 1, 1) * (last - first)) ** rho for i in range(n)), 0.0]


class Analytic(NamedTuple):
    """Isotropic Gaussians, whose denoiser is known."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @classmethod
    def of(cls, seed: int, *shape: int) -> Analytic:
        """Two of them, drawn by a seed."""
        return cls(torch.tensor([0.4, 0.6]), normal(seed, 2, *shape), 0.3 + 0.3 * uniform(seed, 2))

    @property
    def io(self) -> dict[str, Tensor]:
        """Its tensors in a case."""
        return {"gm_weights": self.weights, "gm_means": self.means, "gm_stds": self.stds}

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """x0 of x0 + sigma noise, float64."""
        weights, means, stds = (part.double() for part in self)
        flat, centres = x.double().flatten(1)[:, None], means.flatten(1)
        width = stds**2 + sigma**2
        squares = (flat - centres).square().sum(-1)
        share = torch.softmax(weights.log() - 0.5 * flat.shape[-1] * width.log() - 0.5 * squares / width, -1)
        each = (stds[:, None] ** 2 * flat + sigma**2 * centres) / width[:, None]
        return (share[..., None] * each).sum(1).reshape(x.shape)
