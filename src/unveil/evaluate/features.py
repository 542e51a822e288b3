"""Feature networks of the metrics, with one interface for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError, WeightsError, did_you_mean
from unveil.evaluate.inception import load_inception, load_weights
from unveil.io.files import sha256
from unveil.io.images import to_unit
from unveil.model import migration
from unveil.nn.cnn import Cnn, CnnConfig
from unveil.nn.vit import ViT, ViTConfig

BUNDLED = Path(__file__).parent.parent / "assets" / "feature_networks"
NAMES = ("digits", "fashion", "inception", "pixels")


class FeatureOutput(NamedTuple):
    """Output of a feature network, in float32 on the CPU."""

    features: Tensor  # (N, dim)
    logits: Tensor | None  # (N, classes), where the network classifies


@dataclass(frozen=True)
class FeatureNetwork:
    """Network from uint8 images to features.

    Attributes:
        name: Name of the network.
        dim: Number of features per image.
        classes: Number of logits; None without logits.
        sha256: SHA-256 of the weights file; the empty string without a file.
        preprocessing: Description of the preprocessing of pixels; part of every protocol.
        run: Function of a batch uint8 (B, C, H, W) on `device`; returns features and logits.
        accuracy: Accuracy on the held-out images of its training data, if known.
        batch: Batch size.
        device: Device of the network.
    """

    name: str
    dim: int
    classes: int | None
    sha256: str
    preprocessing: str
    run: Callable[[Tensor], FeatureOutput]
    accuracy: float | None = None
    batch: int = 256
    device: str = "cpu"

    def extract(self, pixels: Tensor, on_progress: Callable[[int, int], None] | None = None) -> FeatureOutput:
        """Return the features and logits of images uint8 (N, C, H, W), computed in batches.

        Args:
            pixels: Images.
            on_progress: Function of the number of finished images and of all images, called after each batch.

        Raises:
            ShapeError: The images are not uint8, or the network does not support their size or channels.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or not len(pixels):
            raise ShapeError(f"images {tuple(pixels.shape)} {pixels.dtype}: uint8 (N, C, H, W) is needed, N > 0")
        outputs: list[FeatureOutput] = []
        with torch.inference_mode():
            for part in pixels.split(self.batch):
                output = self.run(part.to(self.device))
                outputs.append(FeatureOutput(*(None if x is None else x.float().cpu() for x in output)))  # type: ignore[arg-type]
                if on_progress:
                    on_progress(min(len(outputs) * self.batch, len(pixels)), len(pixels))
        logits = [output.logits for output in outputs if output.logits is not None]
        features = torch.cat([output.features for output in outputs])
        return FeatureOutput(features, None if self.classes is None else torch.cat(logits))

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (N, dim) in float32."""
        return self.extract(pixels).features

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (N, classes) in float32.

        Raises:
            RecipeError: The network is not a classifier.
        """
        logits = self.extract(pixels).logits
        if logits is None:
            raise RecipeError(f"the feature network {self.name!r} has no classes; use a classifier: digits or fashion")
        return logits


def load(
    name: str, *, weights: Path | str | None = None, shape: tuple[int, ...] | None = None, device: str = "cpu"
) -> FeatureNetwork:
    """Return a feature network: digits and fashion are bundled, inception needs a file, pixels needs a shape.

    Args:
        name: Name of the network.
        weights: Weights of inception: pt_inception-2015-12-05-6726825d.pth, or the same tensors as safetensors.
        shape: Shape (C, H, W) of the images for pixels.
        device: Device of the network.

    Raises:
        RecipeError: The name is unknown, or its file or shape is missing.
        WeightsError: The weights are damaged, or belong to another network.
    """
    if name in ("digits", "fashion"):
        if weights is not None:
            raise RecipeError(f"weights = {weights}: the feature network {name!r} ships with its own; leave them out")
        return classifier(BUNDLED / f"classifier-{name}.yaml", device)
    if name == "inception":
        if weights is None:
            raise RecipeError(
                "the feature network 'inception' needs weights=: a file pt_inception-2015-12-05-6726825d.pth, "
                "as other FID programs download it (--feature-weights FILE), or choose evaluate.features=pixels"
            )
        return _inception(Path(weights), device)
    if name == "pixels":
        if shape is None:
            raise RecipeError("the feature network 'pixels' needs shape=(C, H, W) of the images")
        return _pixels(shape)
    raise RecipeError(f"feature network {name!r}: must be one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")


def classifier(card: Path, device: str = "cpu") -> FeatureNetwork:
    """Return a small classifier from its card, the YAML file beside its weights.

    Raises:
        WeightsError: The card does not exist, or the weights are not those that it names.
    """
    network, facts = read_classifier(card)
    network.to(device)
    config = network.config
    return FeatureNetwork(
        name=str(facts["name"]),
        dim=config.features if isinstance(config, CnnConfig) else config.hidden_size,
        classes=config.num_classes,
        sha256=str(facts["sha256"]),
        preprocessing=str(facts["preprocessing"]),
        run=functools.partial(_run_classifier, network),
        accuracy=float(facts["accuracy"]),
        device=device,
    )


def read_classifier(card: Path) -> tuple[Cnn | ViT, dict[str, Any]]:
    """Return the frozen network of a classifier's card, and the content of the card.

    Raises:
        WeightsError: The card does not exist, or the weights are not those that it names.
    """
    try:
        facts: dict[str, Any] = migration.migrate(yaml.safe_load(card.read_text()))
        described = dict(facts["network"])
        config = _config(described.pop("kind", "cnn"), described)
        path = card.with_suffix(".safetensors")
        content, digest = path.read_bytes(), sha256(path)
        state = load_bytes(content)
    except (OSError, KeyError, TypeError, yaml.YAMLError, SafetensorError) as problem:
        raise WeightsError(
            f"{card}: not a readable classifier: {problem}; train it again, or install the package again"
        ) from problem
    if digest != facts["sha256"]:
        raise WeightsError(f"{path}: sha256 {digest[:12]}... is not {facts['sha256'][:12]}... of its card; damaged")
    network = (Cnn(config) if isinstance(config, CnnConfig) else ViT(config)).eval().requires_grad_(False)
    load_weights(network, state, str(path))
    return network, facts


def _config(kind: str, described: dict[str, Any]) -> CnnConfig | ViTConfig:
    """Return the network configuration of a card; a card without a kind is that of a cnn."""
    if kind == "vit":
        return ViTConfig(**described)
    if kind != "cnn":
        raise KeyError(f"a network of kind {kind!r}, which gives no features")
    widths: Any = tuple(described["widths"])
    return CnnConfig(**(described | {"widths": widths}))


def classifier_accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images that a classifier predicts as their class."""
    with torch.inference_mode():
        read = torch.cat([network(to_unit(part)).logits.argmax(1) for part in pixels.split(256)])
    return float((read == labels).double().mean())


def _run_classifier(network: nn.Module, pixels: Tensor) -> FeatureOutput:
    return FeatureOutput(*network(to_unit(pixels)))


def _inception(path: Path, device: str) -> FeatureNetwork:
    network = load_inception(path).to(device)

    def run(pixels: Tensor) -> FeatureOutput:
        # Published practice shows grey images to the network as three equal channels.
        outputs = network(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels)
        return FeatureOutput(outputs["2048"], outputs["logits_unbiased"])

    return FeatureNetwork(
        name="inception",
        dim=2048,
        classes=1008,
        sha256=sha256(path),
        preprocessing="TensorFlow 1 bilinear to 299 x 299, (x - 128) / 128",
        run=run,
        batch=32,
        device=device,
    )


def _pixels(shape: tuple[int, ...]) -> FeatureNetwork:
    def run(pixels: Tensor) -> FeatureOutput:
        if tuple(pixels.shape[1:]) != tuple(shape):
            raise ShapeError(f"images {tuple(pixels.shape[1:])}: these pixel features are of images {tuple(shape)}")
        return FeatureOutput(to_unit(pixels).flatten(1), None)

    dim = int(torch.Size(shape).numel())
    return FeatureNetwork("pixels", dim, None, "", "uint8 / 127.5 - 1, flattened", run)
