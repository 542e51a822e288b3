"""Inception network of published FID numbers: the TensorFlow graph of 2015-12-05 with the names of its PyTorch ports.

It is Inception v3 with 1008 outputs and three details that change every number: images are resized without half-pixel
centres, average pooling excludes the padding from the mean, and the last block has maximum pooling. Weights are
read from a file that the user has (pt_inception-2015-12-05-6726825d.pth, or the same tensors as safetensors).

Source: Szegedy et al. 2015 (arXiv:1512.00567) for the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from unveil.errors import ShapeError, WeightsError

SIZE = 299
FILE = "pt_inception-2015-12-05-6726825d.pth"
TAPS = (64, 192, 768, 2048)  # widths of the layers whose spatial means are features
CLASSES = 1008
Pair = tuple[int, int]


class FidInception(nn.Module):
    """The network whose 2048 features FID is published with, and whose logits the Inception score is."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _Block35(192, pooled=32)
        self.Mixed_5c = _Block35(256, pooled=64)
        self.Mixed_5d = _Block35(288, pooled=64)
        self.Mixed_6a = _Reduce17()
        self.Mixed_6b = _Block17(128)
        self.Mixed_6c = _Block17(160)
        self.Mixed_6d = _Block17(160)
        self.Mixed_6e = _Block17(192)
        self.Mixed_7a = _Reduce8()
        self.Mixed_7b = _Block8(1280, _mean_pool)
        self.Mixed_7c = _Block8(2048, _max_pool)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the spatial means "64", "192", "768", "2048" and both logits of images uint8 (B, 3, H, W).

        Raises:
            ShapeError: The images are not uint8 RGB images.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ShapeError(f"images {tuple(pixels.shape)} {pixels.dtype}: uint8 (B, 3, H, W) is needed")
        x = (resize(pixels.to(self.fc.weight.dtype)) - 128) / 128  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = functional.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        outputs = {"64": x.mean((2, 3))}
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = functional.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        outputs["192"] = x.mean((2, 3))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (B, 768, 17, 17)
        outputs["768"] = x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        outputs["2048"] = x.mean((2, 3))
        outputs["logits_unbiased"] = outputs["2048"] @ self.fc.weight.T  # what published Inception scores take
        outputs["logits"] = outputs["logits_unbiased"] + self.fc.bias
        return outputs


def load_inception(path: str | os.PathLike[str]) -> FidInception:
    """Return the network in evaluation mode with the weights of a file.

    Raises:
        WeightsError: The file does not exist, or does not contain the tensors of the published network.
    """
    network = FidInception().eval().requires_grad_(False)
    load_weights(network, read_weights(Path(path), f"the FID Inception needs {FILE}"), str(path))
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - an overload of `to`


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into the network; counters of batches may be missing, as in older files.

    Raises:
        WeightsError: Names or shapes differ; the error lists the first of them.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    loaded = {key: tuple(value.shape) for key, value in state.items()}
    missing = [key for key in expected if key not in loaded and not key.endswith("num_batches_tracked")]
    unknown = [key for key in loaded if key not in expected]
    shapes = [
        f"{key} {loaded[key]} instead of {expected[key]}"
        for key in expected
        if key in loaded and loaded[key] != expected[key]
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise WeightsError(f"{source}: not the weights of {type(network).__name__}: {'; '.join(faults)}")
    network.load_state_dict(state, strict=False)


def resize(pixels: Tensor, size: int = SIZE) -> Tensor:
    """Resize floats (B, C, H, W) bilinearly as TensorFlow 1, without half-pixel centres: output i is i * in / out."""
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    top, bottom, down = _neighbours(height, size, pixels)
    rows = torch.lerp(pixels[..., top, :], pixels[..., bottom, :], down[:, None])
    left, right, across = _neighbours(width, size, pixels)
    return torch.lerp(rows[..., left], rows[..., right], across)


def _neighbours(in_size: int, out_size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    place = torch.arange(out_size, dtype=torch.float32) * (in_size / out_size)
    low = place.long().clamp(max=in_size - 1)
    high = (low + 1).clamp(max=in_size - 1)
    return low.to(like.device), high.to(like.device), (place - low).to(like.dtype).to(like.device)


def read_weights(path: Path, needed: str) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file or of any `torch.save` format without executing code in it.

    Args:
        path: File of the weights.
        needed: Description of the missing file, for the error message.

    Raises:
        WeightsError: The file does not exist, is damaged, or contains more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; {needed}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
            # safetensors: the length of the header, then JSON; the content decides, not the name
            if head[8:9] == b"{":
                return load_file(path)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError) as problem:
        raise WeightsError(f"{path}: cannot be read as weights: {problem}") from problem
    except Exception as problem:  # torch reports a refused pickle by its pickle module's own error
        raise WeightsError(f"{path}: holds more than plain tensors, which is never loaded: {problem}") from problem
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a plain mapping of names to tensors")
    return state


def _mean_pool(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


class _Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | Pair, *, stride: int = 1, padding: int | Pair = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _row(in_channels: int, out_channels: int, length: int) -> _Convolution:
    return _Convolution(in_channels, out_channels, (1, length), padding=(0, length // 2))


def _column(in_channels: int, out_channels: int, length: int) -> _Convolution:
    return _Convolution(in_channels, out_channels, (length, 1), padding=(length // 2, 0))


class _Block35(nn.Module):
    """1x1, 5x5, two 3x3 and a pooled branch, at 35 x 35."""

    def __init__(self, in_channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(in_channels, 64, 1)
        self.branch5x5_1 = _Convolution(in_channels, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(in_channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(in_channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean_pool(x))], 1)


class _Reduce17(nn.Module):
    """Reduction from 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(288, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, functional.max_pool2d(x, 3, stride=2)], 1)


class _Block17(nn.Module):
    """1x1, one and two 7x7 split into rows and columns, and a pooled branch, at 17 x 17."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(768, 192, 1)
        self.branch7x7_1 = _Convolution(768, inner, 1)
        self.branch7x7_2 = _row(inner, inner, 7)
        self.branch7x7_3 = _column(inner, 192, 7)
        self.branch7x7dbl_1 = _Convolution(768, inner, 1)
        self.branch7x7dbl_2 = _column(inner, inner, 7)
        self.branch7x7dbl_3 = _row(inner, inner, 7)
        self.branch7x7dbl_4 = _column(inner, inner, 7)
        self.branch7x7dbl_5 = _row(inner, 192, 7)
        self.branch_pool = _Convolution(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_mean_pool(x))], 1)


class _Reduce8(nn.Module):
    """Reduction from 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(768, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(768, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _Block8(nn.Module):
    """1x1, one and two 3x3 that fork into a row and a column, and a pooled branch, at 8 x 8."""

    def __init__(self, in_channels: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Convolution(in_channels, 320, 1)
        self.branch3x3_1 = _Convolution(in_channels, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = _Convolution(in_channels, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = _Convolution(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [self.branch3x3_2a(once), self.branch3x3_2b(once), self.branch3x3dbl_3a(twice)]
        forks.append(self.branch3x3dbl_3b(twice))
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self.pool(x))], 1)
