"""Training from kept latents against training from pixels: the same losses, the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.tiny import STEPS, Net, config
from unveil import data, playground, train
from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, VQModel, VQModelConfig
from unveil.conditioning.class_label import Label
from unveil.conditioning.learned_text_encoder import LearnedTextEncoder, LearnedTextEncoderConfig
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import SampleRNG
from unveil.data.latent_cache import CachedLatents, LatentCacheOptions
from unveil.errors import RecipeError
from unveil.model import Model
from unveil.train.batch_preparation import cache_dataset, encoder_of, prepare
from unveil.train.data_order import collate

SIZES: dict[str, Any] = {"model_channels": 16, "channel_mult": (1, 1), "num_res_blocks": 1, "groups": 8, "dropout": 0.1}
PIXELS = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = data.ImageTensorDataset(PIXELS, torch.arange(30) % 3, ["a", "b", "c"])


def model(kind: str = "kl") -> Model:
    """A model of latents (2, 4, 4) with a frozen codec that has dropout, which encoding leaves off."""
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "out_channels": 1, "z_channels": 2, "scale": (1.5, 0.7), "shift": 0.1, **SIZES}
    codec = (
        AutoencoderKL(AutoencoderKLConfig(**sizes, latent_channels=2))
        if kind == "kl"
        else VQModel(VQModelConfig(**sizes, codebook_size=8))
    )
    codec.requires_grad_(False)
    denoiser = Denoiser(Net(2), DiscreteVP(betas("cosine", STEPS)))
    return Model(denoiser, (1, 8, 8), conditioners=[Label(3, 8, 0.3)], autoencoder=codec)


def cached(tmp_path: Path, of: Model, mirrored: bool = True) -> CachedLatents:
    return cache_dataset(of, DATA, LatentCacheOptions(mirrored=mirrored, batch=7, folder=tmp_path))[0]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_batch_is_the_same_from_pixels_and_from_the_cache(tmp_path: Path, kind: str):
    one = model(kind).train()
    kept = cached(tmp_path, one)
    numbers = [4, 9, 2, 17, 11, 5]
    rows: Any = {
        name: collate(numbers, numbers, [items[n] for n in numbers], "pixels", ["label"])  # type: ignore[index]
        for name, items in (("pixels", DATA), ("cache", kept))
    }
    for step in (0, 1, None):
        streams = SampleRNG(3, numbers)
        expected, _ = prepare(one, rows["pixels"], streams, step, flip=True)
        found, condition = prepare(one, rows["cache"], streams, step, flip=True)
        assert expected.shape == (6, 2, 4, 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert condition is not None
    first, second = (prepare(one, rows["cache"], SampleRNG(3, numbers), step)[0] for step in (0, 1))
    assert torch.equal(first, second) == (kind == "vq")  # the posterior is sampled again at every step
    assert one.training


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_from_the_cache_is_training_from_pixels(tmp_path: Path, precision: str):
    settings = config(steps=12, grad_accum_steps=1, precision=precision)
    runs = {}
    for name in ("encode", "cache"):
        one = model()
        items = DATA if name == "encode" else cached(tmp_path, one)
        train.fit(one, items, objective=DiffusionLoss(), config=settings, run=tmp_path / name, held_out=items)
        runs[name] = one
    tolerance = 1e-6 if precision == "float32" else 1e-3
    assert losses(tmp_path / "cache") == pytest.approx(losses(tmp_path / "encode"), abs=tolerance)
    assert len(losses(tmp_path / "cache")) > 0
    if precision == "float32":
        for mine, theirs in zip(runs["cache"].parameters(), runs["encode"].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_mirroring_needs_both_versions(tmp_path: Path):
    one = model()
    kept = cached(tmp_path, one, mirrored=False)
    batch = collate([0, 1], [0, 1], [kept[0], kept[1]], "pixels", [])
    plain = prepare(Model(one.denoiser, one.shape, autoencoder=one.autoencoder), batch, SampleRNG(0, [0, 1]), 0)[0]
    assert plain.shape == (2, 2, 4, 4)
    with pytest.raises(RecipeError, match=r"mirrored=True, set random_flip: false, or train.cache_latents: false"):
        prepare(one, batch, SampleRNG(0, [0, 1]), 0, flip=True)


def test_one_weight_or_setting_of_the_codec_makes_another_file(tmp_path: Path):
    one = model()
    paths = [cached(tmp_path, one).path]
    for name in ("encoder.enter.weight", "scale"):
        before = dict(one.autoencoder.state_dict())[name].flatten()  # type: ignore[attr-defined]
        value = before[0].item()
        before[0] = torch.nextafter(before[0], torch.tensor(9.0))
        paths.append(cached(tmp_path, one).path)
        before[0] = value
    assert cached(tmp_path, one).path == paths[0]
    assert len(set(paths)) == 3
    with torch.no_grad():
        for parameter in one.denoiser.parameters():
            parameter.zero_()
    assert cached(tmp_path, one).path == paths[0]  # the denoiser encodes nothing


def test_a_model_without_an_encoder_is_refused():
    bare = Model(model().denoiser, (2, 4, 4))
    with pytest.raises(RecipeError, match=r"Identity, encodes nothing; set train\.cache_latents: false"):
        encoder_of(bare)


def test_captions_of_a_cached_image_are_read_without_rendering_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the model calls prompt the data call text, and know it without the image."""
    of = Model(
        model().denoiser,
        (1, 8, 8),
        conditioners=[LearnedTextEncoder(LearnedTextEncoderConfig(), 8)],
        autoencoder=model().autoencoder,
    )
    scenes = data.open(playground.ScenesConfig(size=16, count=6))

    class Grey:
        """Scenes as the codec's grey images of 8 x 8."""

        def __len__(self) -> int:
            return len(scenes)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**scenes.facts(index), "pixels": scenes[index]["pixels"][:1, :8, :8]}

        def facts(self, index: int) -> dict[str, Any]:
            return scenes.facts(index)

    found, _ = cache_dataset(of, Grey(), LatentCacheOptions(folder=tmp_path))
    monkeypatch.setattr(Grey, "__getitem__", None)
    assert [item["text"] for item in found.__getitems__([4, 0])] == [scenes.facts(n)["text"] for n in (4, 0)]
