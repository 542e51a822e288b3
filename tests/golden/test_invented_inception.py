"""The FID Inception with weights and images that no record has, in functional form (Szegedy et al. 2015)."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.invented import Record, changed, failures, uniform
from tests.golden.reference_layers import Weights

Sides = tuple[int, int]


class Salted(Weights):
    """Weights by the rule that the cases state."""

    def __init__(self, salt: str) -> None:
        super().__init__()
        self.salt = salt

    def drawn(self, key: str, shape: tuple[int, ...]) -> Tensor:
        z = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32((self.salt + key).encode())))
        if key.endswith("running_var"):
            return 1 + 0.2 * z.abs()
        if len(shape) == 1:
            return 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
        return z * math.sqrt(2 / z[0].numel())


class Inception:
    """The network; layers are (name, width, sides, stride), and padded to keep the size where the stride is 1."""

    def __init__(self, w: Weights) -> None:
        self.w = w

    def unit(self, key: str, x: Tensor, width: int, sides: Sides, stride: int = 1, *, padded: bool = True) -> Tensor:
        padding = tuple(side // 2 for side in sides) if padded and stride == 1 else (0, 0)
        x = F.conv2d(x, self.w(f"{key}.conv.weight", width, x.shape[1], *sides).float(), None, stride, padding)
        mean, variance, scale, shift = (
            self.w(f"{key}.bn.{name}", width).float()[:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        self.w.tensors[f"{key}.bn.num_batches_tracked"] = torch.tensor(0)
        return F.relu((x - mean) / (variance + 1e-3).sqrt() * scale + shift)

    def chain(self, key: str, x: Tensor, *layers: tuple[str, int, Sides], last: int = 1) -> Tensor:
        """Layers after each other; `last` is the stride of the last of them."""
        for place, (name, width, sides) in enumerate(layers):
            x = self.unit(f"{key}.{name}", x, width, sides, last if place == len(layers) - 1 else 1)
        return x

    def pooled(self, key: str, x: Tensor, width: int, *, largest: bool = False) -> Tensor:
        pool = F.max_pool2d(x, 3, 1, 1) if largest else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.unit(f"{key}.branch_pool", pool, width, (1, 1))

    def block35(self, key: str, x: Tensor, pooled: int) -> Tensor:
        triple = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))]
        return torch.cat([
            self.unit(f"{key}.branch1x1", x, 64, (1, 1)),
            self.chain(key, x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            self.chain(key, x, *triple), self.pooled(key, x, pooled),
        ], 1)  # fmt: skip

    def block17(self, key: str, x: Tensor, c: int) -> Tensor:
        once = [("branch7x7_1", c, (1, 1)), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))]
        twice = [(f"branch7x7dbl_{i}", width, sides) for i, width, sides in (
            (1, c, (1, 1)), (2, c, (7, 1)), (3, c, (1, 7)), (4, c, (7, 1)), (5, 192, (1, 7)),
        )]  # fmt: skip
        parts = [self.unit(f"{key}.branch1x1", x, 192, (1, 1)), self.chain(key, x, *once), self.chain(key, x, *twice)]
        return torch.cat([*parts, self.pooled(key, x, 192)], 1)

    def block8(self, key: str, x: Tensor, *, largest: bool) -> Tensor:
        parts = [self.unit(f"{key}.branch1x1", x, 320, (1, 1))]
        for stem, layers, fork in (
            ("3x3", [("branch3x3_1", 384, (1, 1))], "2"),
            ("3x3dbl", [("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))], "3"),
        ):
            h = self.chain(key, x, *layers)
            parts += [self.unit(f"{key}.branch{stem}_{fork}{end}", h, 384, sides) for end, sides in
                      (("a", (1, 3)), ("b", (3, 1)))]  # fmt: skip
        return torch.cat([*parts, self.pooled(key, x, 192, largest=largest)], 1)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        x = (stretched(stretched(pixels.float(), 2), 3) - 128) / 128
        x = self.unit("Conv2d_1a_3x3", x, 32, (3, 3), 2)
        x = self.unit("Conv2d_2a_3x3", x, 32, (3, 3), padded=False)
        x = F.max_pool2d(self.unit("Conv2d_2b_3x3", x, 64, (3, 3)), 3, 2)
        got = {"64": x.mean((2, 3))}
        x = self.unit("Conv2d_3b_1x1", x, 80, (1, 1))
        x = F.max_pool2d(self.unit("Conv2d_4a_3x3", x, 192, (3, 3), padded=False), 3, 2)
        got["192"] = x.mean((2, 3))
        for name, width in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self.block35(f"Mixed_{name}", x, width)
        triple = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))]
        x = torch.cat([
            self.unit("Mixed_6a.branch3x3", x, 384, (3, 3), 2), self.chain("Mixed_6a", x, *triple, last=2),
            F.max_pool2d(x, 3, 2),
        ], 1)  # fmt: skip
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = self.block17(f"Mixed_{name}", x, width)
        got["768"] = x.mean((2, 3))
        once = [("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))]
        seven = [(f"branch7x7x3_{i}", 192, sides) for i, sides in enumerate(((1, 1), (1, 7), (7, 1), (3, 3)), 1)]
        parts = [self.chain("Mixed_7a", x, *layers, last=2) for layers in (once, seven)]
        x = torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        x = self.block8("Mixed_7c", self.block8("Mixed_7b", x, largest=False), largest=True)
        got["2048"] = x.mean((2, 3))
        got["logits_unbiased"] = got["2048"] @ self.w("fc.weight", 1008, 2048).float().T
        got["logits"] = got["logits_unbiased"] + self.w("fc.bias", 1008).float()
        return got


def stretched(x: Tensor, axis: int) -> Tensor:
    """299 values along an axis: that of place i is at i * in / 299 between its neighbours."""
    count = x.shape[axis]
    place = torch.arange(299) * (count / 299)
    low = place.floor().long()
    share = (place - low).reshape(-1, *(1,) * (3 - axis))
    high = (low + 1).clamp(max=count - 1)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


@pytest.mark.parametrize(("salt", "size"), [("another ", (5, 640)), ("", (298, 300))])
@torch.no_grad()
def test_the_fid_inception(tmp_path, salt, size):
    w, pixels = Salted(salt), (uniform(1, 1, 3, *size) * 256).to(torch.uint8)
    outputs = Inception(w)(pixels)
    keys = {key: list(value.shape) for key, value in w.tensors.items()}
    io = {"input.7": pixels} | {f"output.7.{name}": value for name, value in outputs.items()}
    record = Record({"kind": "torch-fidelity/inception", "salt": salt, "keys": keys}, io)
    assert failures(tmp_path, record) == []
    if salt:  # a run builds the whole network
        lines = failures(tmp_path, record._replace(meta=changed(record.meta, ("salt",), "golden")))
        assert len(lines) == len(outputs)
        lines = failures(tmp_path, record._replace(meta=changed(record.meta, ("keys", "fc.bias"), [1007])))
        assert lines
