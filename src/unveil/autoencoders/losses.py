"""Losses of the training of autoencoders: the perceptual distance, the adversarial loss and their weights.

    L = error / exp(s) + s + kl KL + w lambda G     s: learned or 0; w: the discriminator's weight, 0 until it starts
    error = |x - y| or (x - y)^2, plus the perceptual distance; G = -mean of the discriminator's logits of y

Every term is a mean over the values of an image. Published code sums them and divides by the number of images,
which is the same except for one factor on all of them; the divergence is therefore divided by the values of an image.

Sources: Esser et al. 2021, section 3.1 (arXiv:2012.09841); Rombach et al. 2022, appendix G (arXiv:2112.10752).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from unveil.errors import RecipeError, ShapeError, WeightsError
from unveil.nn.cnn import Cnn

# ImageNet's mean and deviation for images in [-1, 1], as the published metric has them.
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY_NORM = 1e-10  # keeps the direction of a feature that is 0 everywhere


class BackboneSpec(NamedTuple):
    """Architecture of a network with published weights.

    Attributes:
        convolutions: Channels in and out, kernel, stride and padding of each convolution, by its number in `features`.
        pools: Kernel of the max-pooling of stride 2 before a convolution, by the convolution's number.
        read_layers: Convolutions after whose ReLU the features are compared.
    """

    convolutions: dict[int, tuple[int, int, int, int, int]]
    pools: dict[int, int]
    read_layers: tuple[int, ...]


def _vgg() -> BackboneSpec:
    """Configuration D of VGG. Source: Simonyan & Zisserman 2015, table 1 (arXiv:1409.1556)."""
    convolutions: dict[int, tuple[int, int, int, int, int]] = {}
    pools: dict[int, int] = {}
    read_layers: list[int] = []
    channels, number = 3, 0
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for place in range(count):
            convolutions[number] = (channels, width, 3, 1, 1)
            if place == 0 and number:
                pools[number] = 2
            channels, number = width, number + 2  # a ReLU has a number too
        read_layers.append(number - 2)
        number += 1  # and so has the pooling
    return BackboneSpec(convolutions, pools, tuple(read_layers))


BACKBONES = {
    "vgg": _vgg(),
    # Krizhevsky 2014, "One weird trick", section 5 (arXiv:1404.5997)
    "alex": BackboneSpec(
        {
            0: (3, 64, 11, 4, 2),
            3: (64, 192, 5, 1, 2),
            6: (192, 384, 3, 1, 1),
            8: (384, 256, 3, 1, 1),
            10: (256, 256, 3, 1, 1),
        },
        {3: 3, 6: 3},
        (0, 3, 6, 8, 10),
    ),
}


class Features(nn.Module, ABC):
    """Features of a network that are compared; subclasses define them.

    Attributes:
        widths: Number of channels of each feature.
        grey: True if the network takes only images of one channel.
    """

    widths: tuple[int, ...]
    grey: bool = False

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w), one for each of `widths`, of images (B, C, H, W) in [-1, 1]."""


class PublishedFeatures(Features):
    """Convolutions of VGG16 or AlexNet without the classifier; grey images are repeated to three channels.

    Parameter names are torchvision's: `features.0.weight` and on.

    Args:
        layout: Name in `BACKBONES`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = BACKBONES[layout]
        self.widths = tuple(self.layout.convolutions[number][1] for number in self.layout.read_layers)
        self.features = nn.ModuleDict(
            {
                str(number): nn.Conv2d(channels, width, kernel, stride=stride, padding=padding)
                for number, (channels, width, kernel, stride, padding) in self.layout.convolutions.items()
            }
        )
        self.register_buffer("shift", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features after the ReLU of each convolution in `read_layers`."""
        if images.shape[1] not in (1, 3):
            raise ShapeError(f"images {tuple(images.shape)}: this network reads 1 or 3 channels")
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale  # (B, 3, H, W)
        features: list[Tensor] = []
        for name, convolution in self.features.items():
            number = int(name)
            if number in self.layout.pools:
                x = functional.max_pool2d(x, self.layout.pools[number], stride=2)
            x = functional.relu(convolution(x))  # (B, C, h, w)
            if number in self.layout.read_layers:
                features.append(x)
        return features


class StageFeatures(Features):
    """Features of each stage of a small classifier, before the image is halved.

    Args:
        network: Classifier that was trained on images like those that are compared.
    """

    def __init__(self, network: Cnn) -> None:
        super().__init__()
        self.network = network
        self.widths = tuple(network.config.widths)
        self.grey = network.config.channels == 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of each stage, before the image is halved."""
        wanted = self.network.config.channels
        if images.shape[1] != wanted:
            raise ShapeError(f"images {tuple(images.shape)}: this classifier reads {wanted} channels")
        features: list[Tensor] = []
        x = images
        for layer in self.network.body:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]


class LPIPS(nn.Module):
    """Perceptual distance d(x, y) = sum over layers of the mean over positions of |w (f(x) - f(y))|^2, with |f| = 1.

    Args:
        features: Features, whose parameters are frozen here.
        heads: Weights w^2 of each layer (C,); None: all are 1, the paper's measure without calibration.

    Raises:
        ShapeError: The heads do not fit the features.

    Source: Zhang et al. 2018, eq. 1 (arXiv:1801.03924).
    """

    def __init__(self, features: Features, heads: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.features = features
        weights = [torch.ones(width) for width in features.widths] if heads is None else list(heads)
        if [tuple(head.shape) for head in weights] != [(width,) for width in features.widths]:
            raise ShapeError(
                f"heads {[tuple(head.shape) for head in weights]}: the features have {list(features.widths)} channels"
            )
        for number, head in enumerate(weights):
            self.register_buffer(f"head{number}", head.float().clone())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Keep evaluation mode, because normalisations must not adapt to the compared images."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance (B,) of two batches of images (B, C, H, W) in [-1, 1], or of videos (B, C, T, H, W).

        The distance of videos is the mean over the frames. If the features are for grey images, other images are
        compared as one grey image per channel, and the distance is the mean over them.
        """
        apart = self._distance(self._shown(x), self._shown(y))
        return apart.view(len(x), -1).mean(1)

    def _shown(self, x: Tensor) -> Tensor:
        """Images or videos as images for the features: (B ..., C, H, W)."""
        images = x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)
        return images.flatten(0, 1)[:, None] if self.features.grey and images.shape[1] > 1 else images

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        distance = torch.zeros(len(x), device=x.device)
        for number, (mine, theirs) in enumerate(zip(self.features(x), self.features(y), strict=True)):
            head = self.get_buffer(f"head{number}")[:, None, None]
            apart = (_unit(mine) - _unit(theirs)).square() * head  # (B, C, h, w)
            distance = distance + apart.sum(1).mean((1, 2))
        return distance


def published_lpips(state: Mapping[str, Tensor], where: str) -> LPIPS:
    """Create the published metric from its tensors: torchvision's convolutions and the linear heads, in one dict.

    Both forms of names are accepted: `features.0.weight` with `lin0.model.1.weight`, as in the two files, and
    `net.slice1.0.weight` with `lin0.model.1.weight` (or `lins.0...`), as in the state of the lpips package. Other
    tensors, such as the classifier's, are ignored.

    Args:
        where: Name of the file or files, for messages.

    Raises:
        WeightsError: A convolution or a head is missing, or has another shape; the message lists them.
    """
    tensors = {_plain(key): tensor for key, tensor in state.items()}
    layout = "alex" if tuple(tensors.get("features.0.weight", torch.empty(0)).shape) == (64, 3, 11, 11) else "vgg"
    features = PublishedFeatures(layout)
    shapes = {key: tuple(tensor.shape) for key, tensor in features.state_dict().items()}
    shapes |= {f"lin{number}": (1, width, 1, 1) for number, width in enumerate(features.widths)}
    faults = [f"{key}: missing" for key in shapes if key not in tensors]
    faults += [
        f"{key}: {tuple(tensors[key].shape)}, must be {shape}"
        for key, shape in shapes.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise WeightsError(
            f"{where}: not the perceptual metric of {layout}: {'; '.join(faults[:4])}{more}; give torchvision's "
            "convolutions (features.0.weight ...) and the linear heads (lin0.model.1.weight ...)"
        )
    features.load_state_dict({key: tensors[key].float() for key in features.state_dict()})
    return LPIPS(features, [tensors[f"lin{number}"].flatten() for number in range(len(features.widths))])


def classifier_lpips(network: nn.Module, name: str) -> LPIPS:
    """Create the metric from the stages of a trained classifier, with a weight of 1 for every channel.

    Raises:
        RecipeError: The network has no stages of convolutions.
    """
    if not isinstance(network, Cnn):
        raise RecipeError(f"{name}: a {type(network).__name__} has no stages of features to compare; take a cnn")
    return LPIPS(StageFeatures(network))


def _plain(key: str) -> str:
    """Convert a key of the package's whole state to that of the two files; other keys are returned unchanged."""
    key = re.sub(r"^net\.slice\d+\.", "features.", key.removeprefix("perceptual_loss."))
    return re.sub(r"^lins?\.?(\d+)\.model\.1\.weight$", r"lin\1", key)


def _unit(features: Tensor) -> Tensor:
    """Normalise the channels to length 1, in float32; the gradient is 0 where all features are 0."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _TINY_NORM)


# logits of real and of made patches -> what the discriminator minimises
AdversarialLoss = Callable[[Tensor, Tensor], Tensor]
MAX_ADAPTIVE_WEIGHT = 1e4  # of the adaptive weight, as published
_TINY = 1e-4  # beside the norm that is divided by, as published


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half the sum of the means of max(0, 1 - D(x)) and of max(0, 1 + D(y)).

    Source: Lim & Ye 2017, eq. 2 (arXiv:1705.02894).
    """
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator: half the sum of the means of -log sigmoid(D(x)) and -log(1 - sigmoid(D(y))).

    Source: Goodfellow et al. 2014, eq. 1 (arXiv:1406.2661).
    """
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


ADVERSARIAL: dict[str, AdversarialLoss] = {"hinge": hinge, "vanilla": vanilla}
# x - y, elementwise
ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


def generator_loss(fake: Tensor) -> Tensor:
    """Adversarial loss of the decoder, for either discriminator loss: minus the mean of the logits of its output."""
    return -fake.mean()


def likelihood(error: Tensor, log_scale: Tensor) -> Tensor:
    """Return error / exp(s) + s, the error relative to a scale that may be learned.

    Source: Rombach et al. 2022, appendix G; Kendall & Gal 2017, eq. 8, for the form (arXiv:1703.04977).
    """
    return error * torch.exp(-log_scale) + log_scale


def adaptive_weight(rebuilt: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Weight lambda that gives both losses gradients of equal norm at the decoder's last layer; it has no gradient.

    lambda = |grad L_rec| / (|grad L_gan| + 1e-4), at most 1e4.

    Args:
        rebuilt: Loss without the adversarial one, a scalar.
        adversarial: Loss of `generator_loss`, a scalar.
        last_layer: Weight of the decoder's last convolution.

    Source: Esser et al. 2021, eq. 7 (arXiv:2012.09841); the limits are those of the published code.
    """
    norms = [
        torch.linalg.vector_norm(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
        for loss in (rebuilt, adversarial)
    ]
    return (norms[0] / (norms[1] + _TINY)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
