"""PSNR and SSIM against other implementations and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unveil.errors import ShapeError
from unveil.evaluate.psnr_ssim import mse, psnr, ssim


def pair(channels: int = 1, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images, and the same with noise."""
    chosen = np.random.default_rng(0)
    x = np.kron(chosen.integers(0, 256, (3, channels, size // 4, size // 4)), np.ones((4, 4)))
    y = x + chosen.normal(0, 20, x.shape)
    return tuple(torch.from_numpy(v.clip(0, 255).round().astype(np.uint8)) for v in (x, y))  # type: ignore[return-value]


def test_decibels_of_a_known_error():
    x = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    y = x.clone()
    y[0] += 51  # 0.2 of the range
    errors = mse(x, y)
    assert errors.tolist() == pytest.approx([0.04, 0])
    assert psnr(errors)[0].item() == pytest.approx(13.979, abs=1e-3)
    assert psnr(errors)[1].item() == pytest.approx(120)
    assert psnr(errors.mean()).item() == pytest.approx(16.990, abs=1e-3)


def test_psnr_is_skimages():
    x, y = pair(3)
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(x, y, strict=True)]
    assert psnr(mse(x, y)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_skimages_with_wangs_settings(channels):
    x, y = pair(channels)
    expected = [
        structural_similarity(
            a.numpy(), b.numpy(), data_range=255, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]  # fmt: skip
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1])
    assert max(expected) < 0.99


def test_what_cannot_be_compared_is_refused():
    x, y = pair()
    with pytest.raises(ShapeError, match="SSIM needs at least 11 pixels a side"):
        ssim(x[..., :8, :8], y[..., :8, :8])
    with pytest.raises(ShapeError, match="both must be uint8"):
        mse(x.float(), y.float())
    with pytest.raises(ShapeError, match="of one shape"):
        ssim(x, y[:2])
