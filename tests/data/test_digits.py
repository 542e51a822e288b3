import pytest
import torch
from sklearn.datasets import load_digits

from unveil import data
from unveil.errors import RecipeError, ShapeError


def test_the_parts_are_disjoint_complete_and_of_the_stated_size():
    train, held_out = data.open(data.DigitsConfig()), data.open(data.DigitsConfig(), "held-out")
    assert (len(train), len(held_out)) == (1347, 450)
    together = torch.cat([train.pixels, held_out.pixels]).reshape(1797, 64).long()
    values, labels = load_digits(return_X_y=True)
    expected = torch.from_numpy(values).mul(255 / 16).round().long()
    # as multisets: every original row is there as often as it was
    weights = torch.randint(1, 1 << 40, (64,), generator=torch.Generator().manual_seed(0))
    assert torch.equal((together @ weights).sort().values, (expected @ weights).sort().values)
    counted = torch.cat([train.labels, held_out.labels]).bincount()
    assert torch.equal(counted, torch.from_numpy(labels).bincount())


def test_the_split_never_changes():
    # published results rest on it: the first and last held-out labels, and their sum over places
    labels = data.open(data.DigitsConfig(), "held-out").labels
    assert labels[:10].tolist() == [6, 9, 8, 9, 0, 1, 9, 9, 5, 8]
    assert int((labels * torch.arange(450)).sum()) == 443967


def test_an_item_is_uint8_pixels_and_a_label():
    digits = data.open(data.DigitsConfig())
    item = digits[5]
    assert item["pixels"].dtype == torch.uint8
    assert item["pixels"].shape == (1, 8, 8)
    assert isinstance(item["label"], int)
    assert digits.classes[item["label"]] == str(item["label"])
    assert int(digits.pixels.max()) == 255


def test_an_unknown_part_names_the_allowed_ones():
    with pytest.raises(RecipeError, match=r"part 'heldout': must be 'train' or 'held-out'; nearest: 'held-out'"):
        data.open(data.DigitsConfig(), "heldout")


def test_labels_must_be_as_many_as_images():
    with pytest.raises(ShapeError, match="2 labels for 3 images"):
        data.ImageTensorDataset(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
