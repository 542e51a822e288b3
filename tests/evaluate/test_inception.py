"""The FID Inception: its names, its resize, and what it refuses to load. The recorded cases test its numbers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import ShapeError, WeightsError
from unveil.evaluate.inception import FidInception, load_inception, load_weights, resize


@pytest.fixture(scope="module")
def on_meta() -> FidInception:
    with torch.device("meta"):
        return FidInception()


def test_names_and_size_are_the_published_network_s(on_meta: FidInception):
    state = on_meta.state_dict()
    assert len(state) == 94 * 6 + 2  # convolutions with their normalisation, and the last layer
    assert sum(p.numel() for p in on_meta.parameters()) == 21_785_568 + 2049 * 1008
    assert tuple(state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape) == (160, 160, 7, 1)
    assert tuple(state["Mixed_7b.branch3x3dbl_3b.conv.weight"].shape) == (384, 384, 3, 1)
    assert tuple(state["fc.weight"].shape) == (1008, 2048)


def test_resize_reads_output_i_at_i_times_in_over_out():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize(ramp, 8)[0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert resize(ramp, 2)[0, 0, 0].tolist() == [0.0, 2.0]
    assert resize(ramp.mT, 8)[0, 0, :, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]


def test_differences_are_listed(on_meta: FidInception):
    state = {key: value for key, value in on_meta.state_dict().items() if not key.startswith("Mixed_5b.branch1x1")}
    state |= {"AuxLogits.conv0.conv.weight": torch.zeros(1), "fc.bias": torch.zeros(1000)}
    with pytest.raises(WeightsError) as caught:
        load_weights(on_meta, state, "some.pth")
    assert "5 missing (Mixed_5b.branch1x1.conv.weight" in str(caught.value)
    assert "1 unknown (AuxLogits.conv0.conv.weight)" in str(caught.value)
    assert "fc.bias (1000,) instead of (1008,)" in str(caught.value)


def test_files_of_both_formats_are_recognised_by_their_content(tmp_path: Path):
    small = {"fc.bias": torch.zeros(1008)}
    save_file(small, tmp_path / "named.pth")
    torch.save(small, tmp_path / "named.safetensors")
    for name in ("named.pth", "named.safetensors"):
        with pytest.raises(WeightsError, match="471 missing"):
            load_inception(tmp_path / name)


def test_a_pickle_that_runs_code_runs_none(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "canary",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"fc.bias": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "short.pth").write_bytes(b"PK")
    for name in ("evil.pth", "evil.pt", "short.pth", "absent.pth"):
        with pytest.raises(WeightsError):
            load_inception(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_only_bytes_in_three_colours_are_read(on_meta: FidInception):
    with pytest.raises(ShapeError, match="uint8"):
        on_meta(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="uint8"):
        on_meta(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
