"""The cache of latents: what changes its key, what it holds, and what an interruption leaves."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unveil import data, playground
from unveil.data.fingerprint import dataset_fingerprint, tensors_fingerprint
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions, LatentEncoder, cache_latents
from unveil.errors import DataError, NonFinite, OutputError, RecipeError, ShapeError

NUMBERS = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (7, 1, 4, 6), dtype=torch.uint8, generator=NUMBERS)


def stored(pixels: Tensor = PIXELS, labels: bool = True) -> data.ImageTensorDataset:
    classes = ["even", "odd"] if labels else None
    return data.ImageTensorDataset(pixels, torch.arange(len(pixels)) % 2 if labels else None, classes)


def says(pixels: Tensor) -> Tensor:
    """Mean and logarithm of variance, two channels each, of half the size."""
    half = torch.nn.functional.avg_pool2d(pixels, 2)
    tilt = torch.linspace(0.5, 1.5, half.shape[-1])  # so that a mirrored latent is none of a mirrored image
    return torch.cat([half * tilt, -half, half - 1, half * 0.5], 1)


ENCODER = LatentEncoder(says, "weights", 2, (2.0, 4.0), (0.5, -0.5))


def made(tmp_path: Path, items: Any = None, encoder: LatentEncoder = ENCODER, **how: Any) -> CachedLatents:
    items = stored() if items is None else items
    return CachedLatents(
        items, cache_latents(items, encoder, LatentCacheOptions(folder=tmp_path, **{"batch": 3, **how}))[0]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(4):
        array = np.full((8, 8, 3), 40 * number, np.uint8)
        array[number] = 255
        Image.fromarray(array).save(root / f"{number}.png")
    return root


def opened(root: Path, **changes: Any) -> data.ImageFolderDataset:
    return data.ImageFolderDataset(data.FolderConfig(str(root), 4, val_fraction=0, **changes))


def test_it_holds_the_output_of_the_encoder(tmp_path: Path):
    found = made(tmp_path)
    assert (len(found), found.shape, found.classes) == (7, (1, 4, 2, 3), ["even", "odd"])
    expected = says(PIXELS / 127.5 - 1)
    for index, item in enumerate(found):
        assert torch.equal(item["pixels"][0], expected[index])
        assert item["label"] == index % 2
    with pytest.raises(IndexError):
        found[7]


def test_both_versions_of_an_image_are_kept(tmp_path: Path):
    found = made(tmp_path, mirrored=True)
    assert found.shape == (2, 4, 2, 3)
    mirrored = says((PIXELS / 127.5 - 1).flip(-1))
    for index, item in enumerate(found):
        assert torch.equal(item["pixels"][1], mirrored[index])
        assert not torch.equal(item["pixels"][1], item["pixels"][0].flip(-1))
    assert cache_latents(stored(), ENCODER, LatentCacheOptions(folder=tmp_path))[0] != found.path


def test_it_is_a_file_of_latents_like_any_other(tmp_path: Path):
    path = made(tmp_path).path
    found = data.Latents(data.LatentsConfig(str(path), 0))
    expected = (says(PIXELS / 127.5 - 1)[:, :2] - torch.tensor([0.5, -0.5]).view(2, 1, 1)) * torch.tensor(
        [2.0, 4.0]
    ).view(2, 1, 1)
    assert torch.equal(torch.stack([item["latents"] for item in found]), expected)  # type: ignore[attr-defined]
    assert found[3]["label"] == 1
    report = data.check_latents(path)
    assert (report.count, report.shape, report.classes) == (7, (2, 2, 3), {"even": 4, "odd": 3})
    assert report.mean == pytest.approx(expected.double().mean((0, 2, 3)).tolist())
    assert report.metadata["moments"] == "2"
    codes = made(tmp_path, encoder=LatentEncoder(lambda pixels: says(pixels)[:, :2], "codes"))
    assert codes.packed.latent == (2, 2, 3)


def test_it_is_written_once(tmp_path: Path):
    calls: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return says(pixels)

    progress: list[tuple[int, int]] = []
    encoder, how = replace(ENCODER, encode=encode), LatentCacheOptions(batch=3, folder=tmp_path)
    path, there = cache_latents(stored(), encoder, how, lambda done, total: progress.append((done, total)))
    assert (calls, progress, there) == ([3, 3, 1], [(3, 7), (6, 7), (7, 7)], False)
    before = path.read_bytes()
    assert cache_latents(stored(), encoder, replace(how, batch=5)) == (path, True)
    assert (len(calls), path.read_bytes()) == (3, before)
    assert sorted(one.suffix for one in tmp_path.iterdir()) == [".lock", ".safetensors"]


def test_whatever_changes_the_latents_changes_the_key(tmp_path: Path):
    one_pixel = PIXELS.clone()
    one_pixel[3, 0, 1, 1] ^= 1
    names = {
        "as it is": made(tmp_path).path.name,
        "one pixel": made(tmp_path, stored(one_pixel)).path.name,
        "order": made(tmp_path, stored(PIXELS.flip(0))).path.name,
        "one fewer": made(tmp_path, stored(PIXELS[:-1])).path.name,
        "size": made(tmp_path, stored(PIXELS[..., :4].contiguous())).path.name,
        "labels": made(tmp_path, stored(labels=False)).path.name,
        "encoder": made(tmp_path, encoder=replace(ENCODER, identity="other weights")).path.name,
        "mirrored": made(tmp_path, mirrored=True).path.name,
        "dtype": made(tmp_path, dtype=torch.float16).path.name,
    }
    assert len(set(names.values())) == len(names), names
    assert made(tmp_path, stored(PIXELS.clone())).path.name == names["as it is"]


def test_a_folders_key_is_that_of_its_files_and_how_they_are_read(folder: Path):
    before = dataset_fingerprint(opened(folder))
    assert dataset_fingerprint(opened(folder)) == before
    assert dataset_fingerprint(opened(folder, fit="pad")) != before
    assert dataset_fingerprint(opened(folder, background="black")) != before
    times = (folder / "1.png").stat()
    first, second = (folder / name for name in ("1.png", "2.png"))
    kept_first, kept_second = first.read_bytes(), second.read_bytes()
    listed = opened(folder)
    first.write_bytes(kept_second)
    second.write_bytes(kept_first)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))  # what a check by time and size would not see
    assert dataset_fingerprint(listed) != before
    first.unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        dataset_fingerprint(listed)


def test_the_hash_of_any_other_data_set_is_that_of_its_items():
    scenes = playground.ScenesConfig(size=16, count=3, num_val=2)
    before = dataset_fingerprint(playground.Scenes(scenes))
    assert dataset_fingerprint(playground.Scenes(scenes)) == before
    assert dataset_fingerprint(playground.Scenes(replace(scenes, seed=1))) != before
    assert dataset_fingerprint(playground.Scenes(scenes, "held-out")) != before
    with pytest.raises(ShapeError, match="item 0, 'pixels': list; must be"):
        dataset_fingerprint([{"pixels": [1, 2]}])


def test_one_weight_changes_the_hash_of_tensors():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    before = tensors_fingerprint(weights)
    assert tensors_fingerprint(dict(reversed(weights.items()))) == before
    assert tensors_fingerprint({"a": torch.zeros(3), "c": torch.ones(2, 2)}) != before
    assert tensors_fingerprint({"a": torch.zeros(3, dtype=torch.float16), "b": torch.ones(2, 2)}) != before
    assert tensors_fingerprint({"a": torch.zeros(3), "b": torch.ones(4)}) != before
    weights["b"][0, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert tensors_fingerprint(weights) != before


def test_a_hint_is_drawn_and_changes_no_latent(tmp_path: Path):
    def draw(item: data.ControlImageDataset) -> Tensor:
        return item["pixels"].expand(3, -1, -1)  # type: ignore[index]

    plain, hinted = made(tmp_path), made(tmp_path, data.ControlImageDataset(stored(), draw))  # type: ignore[arg-type]
    assert hinted.path == plain.path
    with_hints = CachedLatents(data.ControlImageDataset(stored(), draw), plain.path, keys=["hint"])  # type: ignore[arg-type]
    assert torch.equal(with_hints[2]["hint"], PIXELS[2].expand(3, -1, -1))
    assert torch.equal(with_hints[2]["pixels"], plain[2]["pixels"])


def test_images_are_read_only_where_needed(tmp_path: Path, folder: Path):
    items = opened(folder)
    path = cache_latents(
        items, LatentEncoder(lambda pixels: pixels.mean(1, keepdim=True), "mean"), LatentCacheOptions(folder=tmp_path)
    )[0]
    found = CachedLatents(items, path)
    for image in folder.iterdir():
        image.unlink()
    assert found[3]["pixels"].shape == (1, 1, 4, 4)
    with pytest.raises(DataError):
        CachedLatents(items, path, keys=["low"])[3]


class Stopping:
    """An encoder that is interrupted at its third batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return says(pixels)


def test_an_interrupted_run_goes_on_and_leaves_no_half_file(tmp_path: Path):
    stopping, how = Stopping(), LatentCacheOptions(batch=3, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(stored(), replace(ENCODER, encode=stopping), how)
    assert not list(tmp_path.glob("*.safetensors"))
    parts = sorted(tmp_path.glob("*.parts/*"))
    assert [part.name for part in parts] == ["0.safetensors", "3.safetensors"]
    parts[1].write_bytes(parts[1].read_bytes()[:-1])  # a damaged one is made again
    path, _ = cache_latents(stored(), replace(ENCODER, encode=stopping), how)
    assert stopping.calls == 5
    assert path.read_bytes() == made(tmp_path / "other").path.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_a_damaged_file_is_made_anew(tmp_path: Path):
    path = made(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert made(tmp_path).path.read_bytes() == whole


def _keep(folder: Path, queue: Any) -> None:
    queue.put(cache_latents(stored(), ENCODER, LatentCacheOptions(batch=1, folder=folder)))


def test_several_processes_share_one_file(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_keep, args=(tmp_path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({path for path, _ in found}) == 1
    assert sorted(there for _, there in found) == [False, True, True]


def test_what_cannot_be_kept_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="without images"):
        made(tmp_path, [])
    with pytest.raises(ShapeError, match="item 0: 'pixels' is not an image"):
        made(tmp_path, [{"state": 3}])
    with pytest.raises(NonFinite, match="item 0: the encoder makes NaN or infinite numbers"):
        made(tmp_path, encoder=replace(ENCODER, encode=lambda p: says(p) / 0))
    with pytest.raises(ShapeError, match=r"the encoder makes \(3, 3, 2, 3\)"):
        made(tmp_path, encoder=replace(ENCODER, encode=lambda p: says(p)[:, :3]))
    with pytest.raises(RecipeError, match=r"dtype torch\.float64"):
        LatentCacheOptions(dtype=torch.float64)
    with pytest.raises(DataError, match="7 latents for 6 items"):
        CachedLatents(stored(PIXELS[:6]), made(tmp_path).path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="set UNVEIL_CACHE"):
        cache_latents(stored(), ENCODER, LatentCacheOptions(folder=tmp_path / "file"))
