"""One recorded case: its settings, tensors and weights, and the rule by which a value passes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.settings import Settings


class Unsupported(Exception):
    """The kind is known, but this case of it needs a part that does not exist yet; the message says which."""


class Verdict(NamedTuple):
    """The value that is worst against its tolerance, and whether all values pass."""

    error: float
    tolerance: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """A computed quantity beside its record; `single` is the float32 record where a float64 one decides.

    least: the least tolerance that float32 allows for; its kernels' last digits differ from CPU to CPU, so
    what grows out of them in many steps cannot meet the record of one on all.
    failure: why nothing was computed; such a comparison fails.
    """

    name: str
    got: Tensor
    want: Tensor
    single: Tensor | None = None
    least: Tensor | None = None
    failure: str = ""

    def judge(self, rules: Mapping[str, Any]) -> Verdict:
        """By the `compare` entry of the case: |got - want| <= rtol |want| + max(atol, atol_of_max max|want|)."""
        if self.failure:
            return Verdict(math.inf, 0.0, False, self.failure)
        verdict = _judge(self.got, self.want, rules, at_least=self.least)
        if self.single is None or not verdict.ok:
            return verdict
        # Ten times the distance of the two records allows for the float32 record's own noise.
        noise = 10 * (self.single.double() - self.want.double()).abs().nan_to_num()
        second = _judge(self.got, self.single, rules, at_least=noise)
        return verdict if second.ok else second._replace(note="against the float32 record")


def separately(name: str, comparisons: Iterator[Comparison]) -> Iterator[Comparison]:
    """The comparisons of one run; an error in it is a comparison that fails, so that other runs are not hidden."""
    try:
        yield from comparisons
    except Exception as error:
        nothing = torch.empty(0)
        yield Comparison(name, nothing, nothing, failure=f"{type(error).__name__}: {error}")


class Case:
    """A folder REPO/CASE: `meta` (settings), `io` (inputs, noises, outputs) and `weights()`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.meta = Settings(json.loads((self.folder / "meta.json").read_text()))

    @property
    def name(self) -> str:
        """REPO/CASE."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def kind(self) -> str:
        """What to run."""
        return self.meta["kind"]

    @property
    def rules(self) -> Mapping[str, Any]:
        """Tolerances by dtype."""
        return self.meta["compare"]

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Tensors of io.safetensors by name; none where the case has no such file."""
        path = self.folder / "io.safetensors"
        return load_file(path) if path.exists() else {}

    def weights(self) -> dict[str, Tensor]:
        """State dict in float32 under the original names, other cases' files first where `weights_from` names them."""
        sources = self.meta.get("weights_from") or ["weights.safetensors"]
        found: dict[str, Tensor] = {}
        for source in [sources] if isinstance(sources, str) else sources:
            here, below_root = self.folder / source, self.folder.parent.parent / source
            found |= load_file(here if here.exists() else below_root)
        return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}

    def compare(
        self, name: str, got: Any, key: str | None = None, *, want: Any = None, least: Tensor | None = None
    ) -> Comparison:
        """`got` beside the record `key` (default: `name`) of io.safetensors, or beside `want` where that is given.

        A float64 record of the same quantity (`f64` among the key's parts) decides; then pass a float64 `got`.
        """
        got = _tensor(got)
        if want is not None:
            return Comparison(name, got, _tensor(want))
        key = name if key is None else key
        double = self._double(key)
        if double is None:
            return Comparison(name, got, self.io[key], least=least)
        plain = _without_f64(key)
        return Comparison(name, got, self.io[double], self.io.get(plain))

    def _double(self, key: str) -> str | None:
        plain = _without_f64(key)
        return next((other for other in self.io if other != plain and _without_f64(other) == plain), None)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    tensor = torch.as_tensor(value)
    # Python's floats are float64; torch would take them for its default type.
    return torch.as_tensor(value, dtype=torch.float64) if tensor.dtype == torch.get_default_dtype() else tensor


def _without_f64(key: str) -> str:
    return ".".join(part for part in key.replace("_f64", ".f64").split(".") if part != "f64")


def _judge(got: Tensor, want: Tensor, rules: Mapping[str, Any], at_least: Tensor | None = None) -> Verdict:
    if got.shape != want.shape:
        return Verdict(math.inf, 0.0, False, f"shape {tuple(got.shape)}, recorded {tuple(want.shape)}")
    if want.numel() == 0:
        return Verdict(0.0, 0.0, True)
    if not want.dtype.is_floating_point:
        error = (got.double() - want.double()).abs().max().item()
        return Verdict(error, 0.0, error == 0)
    rule = rules["float64" if want.dtype == torch.float64 else "float32"]
    got, want = got.double(), want.double()
    # Equal infinities, and NaN where NaN was recorded, are not errors; another NaN is an infinite error.
    same = (got == want) | (got.isnan() & want.isnan())
    error = torch.where(same, 0.0, (got - want).abs()).nan_to_num(nan=math.inf)
    size = want.abs().nan_to_num(nan=0.0, posinf=0.0)
    tolerance = rule["rtol"] * size + max(rule["atol"], rule["atol_of_max"] * size.max().item())
    if at_least is not None:
        tolerance = torch.maximum(tolerance, at_least)
    worst = int((error / tolerance.clamp_min(1e-300)).argmax())
    ok = bool((error <= tolerance).all())
    return Verdict(error.flatten()[worst].item(), tolerance.flatten()[worst].item(), ok)
