"""Training of the evaluation classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from unveil import data
from unveil.data import ImageTensorDataset
from unveil.errors import OutputError, RecipeError, ShapeError
from unveil.evaluate import features
from unveil.nn.cnn import Cnn, CnnConfig
from unveil.nn.vit import ViTConfig
from unveil.train.classifier import ClassifierConfig, StepProgress, save_classifier, train_classifier

SMALL = ClassifierConfig(CnnConfig(1, 8, 10, (8, 16), features=12), epochs=4, batch_size=64, translate=0.5, degrees=10)


@pytest.fixture(scope="module")
def parts() -> tuple[ImageTensorDataset, ImageTensorDataset]:
    return data.digits("train"), data.digits("held-out")


def test_it_learns_the_same_from_the_same_seed_and_leaves_the_global_one_alone(parts, tmp_path: Path):
    progress: list[StepProgress] = []
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = train_classifier(SMALL, *parts, progress.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert not one.by_size  # a convolutional network has no positions
    two = train_classifier(SMALL, *parts)
    other = train_classifier(replace(SMALL, seed=1), *parts)
    assert one.accuracy > 0.5  # chance is 0.1
    assert [p.step for p in progress] == list(range(1, 4 * (1347 // 64) + 1))
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    assert not torch.equal(one.network.head.weight, other.network.head.weight)

    card = save_classifier("classifier-digits", one, SMALL, tmp_path)
    loaded = features.classifier(card)
    assert loaded.accuracy == pytest.approx(one.accuracy, abs=1e-4)
    with torch.inference_mode():
        expected = one.network(features.to_unit(parts[1].pixels[:50])).logits
    torch.testing.assert_close(loaded.logits(parts[1].pixels[:50]), expected, rtol=0, atol=1e-5)
    with pytest.raises(OutputError, match="exists already"):
        save_classifier("classifier-digits", one, SMALL, tmp_path)


def test_fewer_images_than_a_batch_are_refused(parts):
    few = ImageTensorDataset(parts[0].pixels[:90], parts[0].labels[:90], parts[0].classes)
    with pytest.raises(RecipeError, match="batch_size = 128: more than the 90 training images"):
        train_classifier(replace(SMALL, batch_size=128), few, parts[1])


@pytest.mark.parametrize(("stem", "precision"), [("patches", "float32"), ("convolutions", "bf16")])
def test_a_vit_is_trained_and_gives_features(parts, tmp_path: Path, stem, precision):
    network = ViTConfig(1, 8, 10, 2, 2, 32, 4, 2.0, pool="mean", stem=stem)
    config = ClassifierConfig(network, epochs=8, batch_size=64, precision=precision)
    trained = train_classifier(config, *parts)
    assert trained.accuracy > 0.5  # chance is 0.1
    assert list(trained.by_size) == [6, 8, 10, 12]  # one patch less, its own, one and two more
    assert trained.by_size[8] == trained.accuracy
    assert min(trained.by_size.values()) > 0.2
    assert len(set(trained.by_size.values())) > 1  # other images were read
    card = save_classifier("vit-digits", trained, config, tmp_path)
    progress = yaml.safe_load(card.read_text())["accuracy_by_size"]
    assert progress == {size: pytest.approx(share, abs=1e-4) for size, share in trained.by_size.items()}
    loaded = features.classifier(card)
    read = loaded.extract(parts[1].pixels[:50])
    assert (loaded.dim, tuple(read.features.shape)) == (32, (50, 32))
    with torch.inference_mode():
        expected = trained.network(features.to_unit(parts[1].pixels[:50])).logits
    torch.testing.assert_close(read.logits, expected, rtol=0, atol=1e-5)
    assert 0.5 < float(loaded.features(parts[0].pixels).var(0).mean().sqrt()) < 2  # scaled to order 1


def test_zooming_is_another_training_and_none_changes_nothing(parts):
    short = replace(SMALL, epochs=1)
    plain, none, zoomed = (
        train_classifier(config, *parts).network.head.weight
        for config in (short, replace(short, scale=0.0), replace(short, scale=0.3))
    )
    assert torch.equal(plain, none)
    assert not torch.equal(plain, zoomed)


def test_batches_of_several_sizes_prepare_for_them(parts):
    network = ViTConfig(1, 8, 10, 2, 1, 32, 4, 2.0, pool="mean", stem="convolutions", begin="sin-cos")
    one_size = ClassifierConfig(network, epochs=6, batch_size=64)
    plain, prepared = (
        train_classifier(config, *parts) for config in (one_size, replace(one_size, sizes=(6, 8, 10, 12)))
    )
    lost = [trained.accuracy - min(trained.by_size.values()) for trained in (plain, prepared)]
    assert prepared.accuracy > 0.5
    assert lost[1] < lost[0]
    with pytest.raises(RecipeError, match=r"sizes \[6, 9\]: each must be a multiple of the patch, 2"):
        replace(one_size, sizes=(6, 9))
    with pytest.raises(RecipeError, match="sizes: only a vit"):
        replace(SMALL, sizes=(6,))


def test_lower_precision_is_another_training_near_the_first(parts, monkeypatch):
    monkeypatch.setattr("unveil.train.precision.cpu_computes_bf16", lambda: True)  # also on a CPU that is slow in it
    short = replace(SMALL, epochs=1)
    exact, rough = (train_classifier(replace(short, precision=p), *parts) for p in ("float32", "bf16"))
    assert not torch.equal(exact.network.head.weight, rough.network.head.weight)
    assert all(weight.dtype == torch.float32 for weight in rough.network.parameters())
    assert abs(exact.accuracy - rough.accuracy) < 0.15


def test_images_without_usable_labels_are_refused(parts):
    with pytest.raises(RecipeError, match="a label each"):
        train_classifier(SMALL, ImageTensorDataset(parts[0].pixels), parts[1])
    with pytest.raises(RecipeError, match="labels 0 to 9: the network has 3 classes"):
        train_classifier(replace(SMALL, network=CnnConfig(1, 8, 3, (8,))), *parts)


def test_the_network_s_limits_are_named():
    with pytest.raises(RecipeError, match="2 pixels a side"):
        CnnConfig(1, 8, 10, (8, 8, 8, 8))
    with pytest.raises(ShapeError, match="this classifier reads"):
        Cnn(CnnConfig(1, 8, 10, (8,)))(torch.zeros(1, 3, 8, 8))
