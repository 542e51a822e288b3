"""Latents in one file: written chunk by chunk, mapped and not copied, split by a hash, and refused with a remedy."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil import data
from unveil.data.latents import open_latent_file
from unveil.errors import DataError, NonFinite, OutputError, RecipeError, ShapeError

SHAPE = (4, 3, 5)


def some(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def write(folder: Path, count: int = 40, **given: Any) -> Path:
    return data.write_latents(folder / "latents.safetensors", some(count).split(7), **given)


def opened(path: Path, part: data.Split = "train", held_out: float = 0.0) -> data.Latents:
    found = data.open(data.LatentsConfig(str(path), held_out), part)
    assert isinstance(found, data.Latents)
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_written_comes_back_scaled(tmp_path: Path, dtype: torch.dtype):
    latents, labels, shift = some(10, dtype), torch.arange(10).flip(0), (1.0, 0.0, -1.0, 0.5)
    path = data.write_latents(
        tmp_path / "new" / "a.safetensors",
        iter([latents[:4], latents[4:9], latents[9:]]),
        labels=labels,
        classes=list("abcdefghij"),
        scale=0.18215,
        shift=shift,
        metadata={"encoder": "sha256 of it", "made of": "images"},
    )
    found = opened(path)
    assert len(found) == 10
    assert found.classes == list("abcdefghij")
    assert found.metadata["encoder"] == "sha256 of it"
    for place in range(10):
        item = found[place]
        expected = (latents[place].float() - torch.tensor(shift).reshape(4, 1, 1)) * 0.18215
        assert item["latents"].dtype == torch.float32
        torch.testing.assert_close(item["latents"], expected, rtol=0, atol=0)
        assert item["label"] == 9 - place
    # any other reader of the format finds the same
    assert torch.equal(load_file(path)["latents"], latents)
    assert torch.equal(load_file(path)["labels"], labels)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["shift"]) == list(shift)


def test_files_of_others_are_read_too(tmp_path: Path):
    latents = some(5, torch.float16)
    labels = torch.tensor([0, 1, 2, 1, 0])
    save_file({"latents": latents, "labels": labels, "ids": torch.arange(5)}, tmp_path / "a", {"scale": "[2, 1, 1, 1]"})
    found = opened(tmp_path / "a")
    assert found[2]["label"] == 2
    torch.testing.assert_close(found[1]["latents"][0], 2 * latents[1, 0].float())
    torch.testing.assert_close(found[1]["latents"][1:], latents[1, 1:].float())
    save_file({"latents": latents}, tmp_path / "b")
    assert set(opened(tmp_path / "b")[0]) == {"latents"}


def test_the_file_is_mapped_and_not_copied(tmp_path: Path):
    """Eight GiB that a disk need not have: the file is a hole."""
    count, size = 2**20, 2**20 * 4 * 32 * 32 * 2
    tensors = {"latents": {"dtype": "F16", "shape": [count, 4, 32, 32], "data_offsets": [0, size]}}
    header = json.dumps(tensors).encode().ljust(128)
    with (tmp_path / "large").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    tracemalloc.start()
    try:
        found = opened(tmp_path / "large")
        assert float(found[count - 1]["latents"].abs().max() + found[0]["latents"].abs().max()) == 0
        assert tracemalloc.get_traced_memory()[1] < 30e6  # which row is which takes 8 MB
    finally:
        tracemalloc.stop()


def test_a_worker_that_is_started_anew_gets_no_copy(tmp_path: Path):
    found = opened(write(tmp_path, 400), "held-out", 0.2)
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[3]["latents"], found[3]["latents"])


def test_reading_an_item_leaves_the_file_alone(tmp_path: Path):
    path = write(tmp_path)
    before = path.read_bytes()
    found = opened(path)
    found[0]["latents"].fill_(7.0)
    assert float(found[0]["latents"].max()) < 7
    assert path.read_bytes() == before


def test_the_parts_are_the_same_everywhere_and_share_nothing(tmp_path: Path):
    path = write(tmp_path, 400)
    train, held_out = opened(path, held_out=0.2), opened(path, "held-out", 0.2)
    rows = np.concatenate([train.rows, held_out.rows])
    assert sorted(rows) == list(range(400))
    assert 50 < len(held_out) < 110
    assert held_out.rows[:4].tolist() == [0, 2, 14, 21]  # on every machine
    longer = data.write_latents(tmp_path / "longer", [some(400), some(50)])
    assert [row for row in opened(longer, "held-out", 0.2).rows if row < 400] == held_out.rows.tolist()
    torch.testing.assert_close(held_out[3]["latents"], some(400)[held_out.rows[3]])
    few = data.write_latents(tmp_path / "few", [some(3)])
    assert len(opened(few, "held-out", 0.001)) == 1
    assert len(opened(few)) == 3
    with pytest.raises(DataError, match="few: no latents for the held-out part of 3"):
        opened(few, "held-out")
    with pytest.raises(RecipeError, match="val_fraction 1"):
        data.LatentsConfig("a", 1.0)


BAD: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
    ({"latent": some(3)}, {}, "holds latent, and no tensor 'latents'; nearest: 'latent'"),
    ({"latents": some(3).double()}, {}, "latents of F64 .3, 4, 3, 5.; must be F16, BF16, F32"),
    ({"latents": some(3)[:, 0].contiguous()}, {}, "latents of F32 .3, 3, 5.; must be .* .N, C, H, W."),
    ({"latents": some(0)}, {}, "none of them 0"),
    ({"latents": some(3), "labels": torch.arange(2)}, {}, "labels of I64 .2,.; must be I64 .3,., one for each"),
    ({"latents": some(3), "labels": torch.arange(3).int()}, {}, "labels of I32"),
    ({"latents": some(3), "labels": torch.arange(3) - 1}, {}, "labels -1 to 1; must be 0 and up"),
    ({"latents": some(3), "labels": torch.arange(3)}, {"classes": '["a", "b"]'}, "labels 0 to 2; must be 0 to 1"),
    ({"latents": some(3)}, {"classes": "cat, dog"}, "classes = 'cat, dog'; must be a JSON list"),
    ({"latents": some(3)}, {"scale": "small"}, "scale = 'small'; must be a number, or a JSON list"),
    ({"latents": some(3)}, {"scale": "0"}, "scale = '0'; .* none of them 0"),
    ({"latents": some(3)}, {"scale": "NaN"}, "scale = 'NaN'"),
    ({"latents": some(3)}, {"shift": "[1, 2]"}, "one for each of the 4 channels"),
]


@pytest.mark.parametrize(("tensors", "metadata", "message"), BAD)
def test_what_is_no_latents_is_named_with_a_remedy(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], message: str
):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(DataError, match=message) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "write it again with unveil.data.write_latents" in str(caught.value)


def test_files_that_are_none(tmp_path: Path):
    whole = write(tmp_path, labels=torch.arange(40)).read_bytes()
    for content in (b"", b"text", whole[:-1], whole[:100], whole + b"0", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DataError, match=r"bad: not a whole safetensors file .*copy it again"):
            opened(tmp_path / "bad")
    with pytest.raises(DataError, match=r"latent.safetensors: no such file; nearest: 'latents.safetensors'"):
        opened(tmp_path / "latent.safetensors")
    with pytest.raises(DataError, match="a folder; give the safetensors file"):
        opened(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    def broken() -> Iterator[Tensor]:
        yield some(3)
        raise DataError("the fourth image")

    path = tmp_path / "a"
    wrong: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (DataError, "the fourth image", broken(), {}),
        (ShapeError, "at least one is needed", [], {}),
        (ShapeError, "chunk 0: torch.float64", [some(2).double()], {}),
        (ShapeError, r"chunk 0: .*\(4, 3, 5\); must be \(n, C, H, W\)", [some(1)[0]], {}),
        (ShapeError, "chunk 1: torch.float16 .* the first torch.float32", [some(2), some(2).half()], {}),
        (ShapeError, "chunk 1: .* all must be alike", [some(2), some(2)[..., :4]], {}),
        (NonFinite, "chunk 1: holds NaN", [some(2), some(2) / 0], {}),
        (ShapeError, "3 labels for 2 latents", [some(2)], {"labels": torch.arange(3)}),
        (ShapeError, "must be torch.int64", [some(2)], {"labels": torch.zeros(2)}),
        (RecipeError, "labels 0 to 1: must be 0 to 0", [some(2)], {"labels": torch.arange(2), "classes": ["a"]}),
        (RecipeError, "metadata scale = '1': give it as the argument scale", [some(2)], {"metadata": {"scale": "1"}}),
        (DataError, "one for each of the 4 channels", [some(2)], {"scale": [1.0, 2.0]}),
    ]
    for kind, message, chunks, given in wrong:
        with pytest.raises(kind, match=message):
            data.write_latents(path, chunks, **given)
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path: Path):
    path = write(tmp_path, 3)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path, 4)

    def slow() -> Iterator[Tensor]:
        yield some(1)
        (tmp_path / "other").write_text("of somebody else")  # while ours was being made

    with pytest.raises(OutputError, match="exists already"):
        data.write_latents(tmp_path / "other", slow())
    assert (tmp_path / "other").read_text() == "of somebody else"
    assert path.read_bytes() == before
    write(tmp_path, 4, force=True)
    assert open_latent_file(path).shape[0] == 4
    assert sorted(one.name for one in tmp_path.iterdir()) == ["latents.safetensors", "other"]


def test_a_check_reads_everything(tmp_path: Path):
    latents = some(2000) * torch.tensor([5.0, 5, 5, 1]).reshape(4, 1, 1) + 1
    latents[7, 0, 0, 0] = torch.nan
    path = tmp_path / "a"
    tensors = {"latents": latents, "labels": torch.arange(2000) % 3, "ids": torch.arange(2000)}
    save_file(tensors, path, {"classes": '["cat", "dog", "fox"]', "made by": "hand"})
    reported: list[tuple[int, int]] = []
    found = data.check_latents(path, lambda *progress: reported.append(progress))
    assert reported == [(1024, 2000), (2000, 2000)]
    assert (found.count, found.shape, found.dtype, found.nonfinite) == (2000, SHAPE, "F32", [7])
    assert found.classes == {"cat": 667, "dog": 667, "fox": 666}
    assert found.mean == pytest.approx([1, 1, 1, 1], abs=0.15)
    assert found.deviation == pytest.approx([5, 5, 5, 1], rel=0.03)
    text = found.to_text()
    for words in ("2000 latents of shape (4, 3, 5), F32", "dog 667", "made by: hand", "not read     ids", "such as 7"):
        assert words in text
    assert "deviation 4.3" in text
    assert "a process is made for about 1" in text
    assert json.loads(json.dumps(found.to_dict()))["spread"] == pytest.approx(4.36, abs=0.05)
    good = data.check_latents(data.write_latents(tmp_path / "b", [latents[8:]], scale=[0.2, 0.2, 0.2, 1], shift=1))
    assert good.total_std == pytest.approx(1, abs=0.03)
    assert "made for about" not in good.to_text()
    save_file({"latents": latents[:1] / 0}, tmp_path / "c")
    assert "NaN" not in json.dumps(data.check_latents(tmp_path / "c").to_dict(), allow_nan=False)
