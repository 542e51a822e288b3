"""The perceptual distance: by hand on a tiny network, and the published one from files of random numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from unveil import data
from unveil.autoencoders.losses import BACKBONES, LPIPS, Features, classifier_lpips, published_lpips
from unveil.data.digits import DigitsConfig
from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.evaluate.inception import read_weights
from unveil.evaluate.perceptual import fingerprint, perceptual
from unveil.nn.cnn import Cnn, CnnConfig
from unveil.nn.vit import ViT, ViTConfig

# torchvision's numbering of VGG16: the convolutions, and the layers after which features are compared (relu*_2 and _3)
VGG = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
VGG_KEPT = (3, 8, 15, 22, 29)
ALEX_KEPT = (1, 4, 7, 9, 11)


class Two(Features):
    """The image itself and its negative half, so that every number can be worked out."""

    widths = (2, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Two features."""
        return [images, images[:, :1] + 1]


def test_features_are_compared_at_length_one():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    y = torch.tensor([0.0, 5.0]).view(1, 2, 1, 1)
    # (0.6, 0.8) and (0, 1): 0.36 + 0.04; the second feature is positive in both, so of length 1 it is the same
    assert LPIPS(Two())(x, y).item() == pytest.approx(0.4)
    heads = [torch.tensor([2.0, 10.0]), torch.tensor([1.0])]
    assert LPIPS(Two(), heads)(x, y).item() == pytest.approx(2 * 0.36 + 10 * 0.04)
    assert LPIPS(Two())(x, x).item() == 0


def test_places_are_averaged_and_layers_summed():
    x = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    y = torch.tensor([[0.0, 1.0], [5.0, 0.0]]).view(1, 2, 1, 2)
    assert LPIPS(Two())(x, y).item() == pytest.approx(0.4 / 2)


def test_features_that_are_zero_everywhere_have_a_gradient():
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    LPIPS(Two())(x, torch.ones(1, 2, 2, 2)).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_it_is_frozen_and_stays_in_evaluation_mode():
    network = Cnn(CnnConfig(1, 8, 3, (4, 8)))
    judge = classifier_lpips(network, "mine").train()
    assert not judge.training
    assert not network.training
    assert not any(p.requires_grad for p in judge.parameters())
    mean = network.body[1].running_mean.clone()
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    judge(x, torch.zeros(2, 1, 8, 8)).sum().backward()
    assert torch.equal(network.body[1].running_mean, mean)
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_the_stages_of_a_classifier_are_what_it_pools():
    network = Cnn(CnnConfig(1, 8, 3, (4, 8))).eval()
    x = torch.randn(2, 1, 8, 8)
    first, second = classifier_lpips(network, "mine").features(x)
    assert (first.shape, second.shape) == ((2, 4, 8, 8), (2, 8, 4, 4))
    assert torch.equal(second, network.body(x))


def test_heads_of_other_widths_are_refused():
    with pytest.raises(ShapeError, match=r"the features have \[2, 1\] channels"):
        LPIPS(Two(), [torch.ones(2), torch.ones(2)])


# ---------------------------------------------------------------------- the published network


def alex(seed: int = 0) -> dict[str, Tensor]:
    """AlexNet's convolutions and heads as the two files name them, of random numbers."""
    torch.manual_seed(seed)
    state = {}
    widths = [64, 192, 384, 256, 256]
    for (number, (given, made, kernel, _, _)), width in zip(
        BACKBONES["alex"].convolutions.items(), widths, strict=True
    ):
        assert made == width
        state[f"features.{number}.weight"] = torch.randn(made, given, kernel, kernel) / (given * kernel**2) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(made)
    state |= {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(widths)}
    return state | {"classifier.1.weight": torch.zeros(3, 3)}


def by_layers(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The features layer by layer as torchvision numbers them, written out."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    h = (x.expand(-1, 3, -1, -1) - shift[:, None, None]) / scale[:, None, None]
    conv = lambda h, n, **how: F.conv2d(h, state[f"features.{n}.weight"], state[f"features.{n}.bias"], **how)  # noqa: E731
    first = F.relu(conv(h, 0, stride=4, padding=2))
    second = F.relu(conv(F.max_pool2d(first, 3, 2), 3, padding=2))
    third = F.relu(conv(F.max_pool2d(second, 3, 2), 6, padding=1))
    fourth = F.relu(conv(third, 8, padding=1))
    return [first, second, third, fourth, F.relu(conv(fourth, 10, padding=1))]


def test_alexnet_is_the_sum_over_its_five_relus_written_out():
    state = alex()
    torch.manual_seed(1)
    x, y = torch.rand(2, 2, 1, 64, 64) * 2 - 1
    expected = torch.zeros(2)
    for number, (f, g) in enumerate(zip(by_layers(state, x), by_layers(state, y), strict=True)):
        apart = F.normalize(f, dim=1) - F.normalize(g, dim=1)
        expected += F.conv2d(apart.square(), state[f"lin{number}.model.1.weight"]).mean((1, 2, 3))
    torch.testing.assert_close(published_lpips(state, "x")(x, y), expected, rtol=1e-4, atol=1e-6)


def test_vgg_has_the_published_numbering():
    layout = BACKBONES["vgg"]
    assert {number: shape[1] for number, shape in layout.convolutions.items()} == VGG
    assert tuple(number + 1 for number in layout.read_layers) == VGG_KEPT
    assert sorted(layout.pools) == [5, 10, 17, 24]
    assert tuple(number + 1 for number in BACKBONES["alex"].read_layers) == ALEX_KEPT


def test_the_heads_that_torchmetrics_ships_are_read():
    """Real heads of VGG16, of which the file names are the published ones; the convolutions are random numbers."""
    found = importlib.util.find_spec("torchmetrics")  # whose import would take seconds
    if found is None or found.origin is None:
        pytest.skip("torchmetrics is not installed")
    heads = read_weights(Path(found.origin).parent / "functional/image/lpips_models/vgg.pth", "")
    zeros = {}
    for number, (given, made, *_) in BACKBONES["vgg"].convolutions.items():
        zeros |= {f"features.{number}.weight": torch.zeros(made, given, 3, 3)}
        zeros |= {f"features.{number}.bias": torch.zeros(made)}
    judge = published_lpips({**zeros, **heads}, "vgg.pth")
    assert torch.equal(judge.get_buffer("head4"), heads["lin4.model.1.weight"].flatten())


def test_files_are_read_in_either_spelling(tmp_path):
    state = alex()
    heads = {key: tensor for key, tensor in state.items() if key.startswith("lin")}
    torch.save({key: tensor for key, tensor in state.items() if key not in heads}, tmp_path / "alexnet.pth")
    save_file(heads, tmp_path / "heads.safetensors")
    together = {
        f"net.slice1.{key.removeprefix('features.')}" if key.startswith("features") else key.replace("lin", "lins."): v
        for key, v in state.items()
    }
    save_file(together, tmp_path / "lpips.safetensors")
    two = perceptual("lpips", [tmp_path / "alexnet.pth", tmp_path / "heads.safetensors"])
    one = perceptual("lpips", [tmp_path / "lpips.safetensors"])
    assert fingerprint(one) == fingerprint(two) != fingerprint(published_lpips(alex(1), "x"))


def test_files_without_their_keys_are_named(tmp_path):
    state = alex()
    missing = {key: tensor for key, tensor in state.items() if key not in ("features.6.bias", "lin2.model.1.weight")}
    missing["lin4.model.1.weight"] = torch.rand(1, 9, 1, 1)
    save_file(missing, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError) as caught:
        perceptual("lpips", [tmp_path / "part.safetensors"])
    message = str(caught.value)
    assert "part.safetensors: not the perceptual metric of alex: features.6.bias: missing; lin2: missing" in message
    assert "lin4: (1, 9, 1, 1), must be (1, 256, 1, 1)" in message
    assert "give torchvision's convolutions" in message
    torch.save({"features.0.weight": Path("x")}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"more\.pth: holds more than plain tensors"):
        perceptual("lpips", [tmp_path / "more.pth"])
    with pytest.raises(WeightsError, match=r"none\.pth: no such file; the perceptual metric needs"):
        perceptual("lpips", [tmp_path / "none.pth"])


def test_names_are_checked_and_lpips_needs_its_files(tmp_path):
    with pytest.raises(RecipeError, match=r"'lpips': needs its files.*take a classifier: fashion"):
        perceptual("lpips")
    with pytest.raises(RecipeError, match=r"'fashon': must be one of fashion, digits, lpips.*nearest: 'fashion'"):
        perceptual("fashon")
    with pytest.raises(RecipeError, match="the classifier 'fashion' has its own"):
        perceptual("fashion", ["vgg.pth"])
    with pytest.raises(WeightsError, match="holds 0 cards of classifiers"):
        perceptual(str(tmp_path))
    with pytest.raises(RecipeError, match="a ViT has no stages"):
        classifier_lpips(
            ViT(ViTConfig(channels=1, size=8, num_classes=2, patch=4, depth=1, hidden_size=8, heads=1)), "mine"
        )
    with pytest.raises(ShapeError, match="reads 3 channels"):
        classifier_lpips(Cnn(CnnConfig(3, 8, 2, (8,))), "mine")(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_the_distance_of_the_bundled_classifier_grows_with_blur():
    x = data.open(DigitsConfig(), "held-out").pixels[:16].float() / 127.5 - 1
    judge = perceptual("digits")
    blurred = [F.avg_pool2d(F.pad(x, (k, k, k, k), mode="replicate"), 2 * k + 1, 1) for k in (0, 1, 2)]
    distances = [float(judge(x, one).mean()) for one in blurred]
    assert distances[0] < 1e-6
    assert 0.05 < distances[1] < distances[2]


def test_a_module_that_is_no_cnn_has_no_stages():
    with pytest.raises(RecipeError, match="a Linear has no stages"):
        classifier_lpips(nn.Linear(1, 1), "mine")


def test_clips_are_compared_frame_by_frame_and_colours_by_grey_features_channel_by_channel():
    clips = torch.rand(2, 2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))  # x and y, (2, 2, T, 4, 4)
    x, y = clips.unbind(0)
    judge = LPIPS(Two())
    frames = torch.stack([judge(x[:, :, t], y[:, :, t]) for t in range(3)])
    torch.testing.assert_close(judge(x, y), frames.mean(0))
    grey = classifier_lpips(Cnn(CnnConfig(1, 4, 2, (4,))).eval(), "tiny")
    channels = torch.stack([grey(x[:, [c], 0], y[:, [c], 0]) for c in range(2)])
    torch.testing.assert_close(grey(x[:, :, 0], y[:, :, 0]), channels.mean(0))
