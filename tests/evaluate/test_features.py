"""Feature networks: the bundled classifiers reach their bars, and every fault is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from unveil import data
from unveil.errors import DataError, RecipeError, ShapeError, WeightsError
from unveil.evaluate import features

BUNDLED = Path(features.__file__).parent.parent / "assets" / "feature_networks"


@pytest.fixture(scope="module")
def digits() -> features.FeatureNetwork:
    return features.load("digits")


def accuracy(network: features.FeatureNetwork, dataset: data.ImageTensorDataset) -> float:
    return float((network.logits(dataset.pixels).argmax(1) == dataset.labels).double().mean())


def test_digits_are_read(digits: features.FeatureNetwork):
    found = accuracy(digits, data.digits("held-out"))
    assert found >= 0.97
    assert found == pytest.approx(digits.accuracy, abs=1e-3)  # the card tells the truth


def test_fashion_is_read():
    try:
        dataset = data.fashion(data.FashionConfig(), "held-out")
    except DataError as absent:
        pytest.skip(f"Fashion-MNIST is not installed: {absent}")
    network = features.load("fashion")
    quarter = data.ImageTensorDataset(dataset.pixels[::4], dataset.labels[::4])
    found = accuracy(network, quarter)
    assert found >= 0.91
    assert found == pytest.approx(network.accuracy, abs=0.015)  # three deviations of a share of 2,500


def test_batches_do_not_matter_and_progress_is_reported(digits: features.FeatureNetwork):
    pixels = data.digits("held-out").pixels[:300]
    progress: list[tuple[int, int]] = []
    whole = digits.extract(pixels, lambda done, total: progress.append((done, total)))
    assert whole.features.shape == (300, digits.dim)
    assert whole.logits is not None
    assert whole.logits.shape == (300, 10)
    assert progress == [(256, 300), (300, 300)]
    torch.testing.assert_close(digits.features(pixels[260:]), whole.features[260:], rtol=1e-4, atol=1e-4)


def test_bundled_weights_stay_within_their_budget():
    assert sum(path.stat().st_size for path in BUNDLED.glob("classifier-*")) <= 2_000_000


def test_features_have_a_spread_of_order_1(digits: features.FeatureNetwork):
    spread = digits.features(data.digits("train").pixels).var(0).mean().sqrt()
    assert float(spread) == pytest.approx(1.0, abs=0.01)


def test_pixels_need_no_weights():
    network = features.load("pixels", shape=(1, 2, 3))
    found = network.extract(torch.tensor([0, 255, 51], dtype=torch.uint8).repeat(2).reshape(1, 1, 2, 3))
    torch.testing.assert_close(found.features, torch.tensor([[-1.0, 1.0, -0.6, -1.0, 1.0, -0.6]]))
    assert found.logits is None
    with pytest.raises(RecipeError, match="has no classes"):
        network.logits(torch.zeros(1, 1, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "nearest: 'digits'"),
        ("inception", {}, "needs weights="),
        ("pixels", {}, "needs shape="),
        ("digits", {"weights": "a.pth"}, "ships with its own"),
    ],
)
def test_names_and_options_that_cannot_work(name: str, options: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        features.load(name, **options)


def test_images_of_another_kind_are_refused(digits: features.FeatureNetwork):
    with pytest.raises(ShapeError, match=r"reads \(B, 1, 8, 8\)"):
        digits.extract(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="uint8"):
        digits.extract(torch.zeros(1, 1, 8, 8))


def test_a_flipped_bit_is_found(tmp_path: Path):
    for end in ("safetensors", "yaml"):
        shutil.copy(BUNDLED / f"classifier-digits.{end}", tmp_path)
    weights = tmp_path / "classifier-digits.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        features.classifier(tmp_path / "classifier-digits.yaml")
    with pytest.raises(WeightsError, match="not a readable classifier"):
        features.classifier(tmp_path / "absent.yaml")


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_card_tells_how_to_make_it_again(name: str):
    from unveil.model import migration
    from unveil.model.config import load_recipe
    from unveil.model.config.train import ClassifierTrainConfig

    card = yaml.safe_load((BUNDLED / f"classifier-{name}.yaml").read_text())
    recipe = load_recipe(card["command"].split()[-1]).model_dump(mode="json")
    network = {key: value for key, value in recipe["network"].items() if key != "kind"}
    assert card["network"] == network
    training = migration.migrate({"kind": "classifier", "train": card["training"]})["train"]  # cards keep former names
    # a setting that came later is at its default, which changes nothing
    assert ClassifierTrainConfig(**training).model_dump(mode="json") == recipe["train"]
