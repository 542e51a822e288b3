"""Networks of perceptual distances: a bundled classifier, a trained classifier, or the published metric."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from unveil.autoencoders.losses import LPIPS, classifier_lpips, published_lpips
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.evaluate.features import BUNDLED, read_classifier
from unveil.evaluate.inception import read_weights

NAMES = ("fashion", "digits", "lpips")


def perceptual(network: str, weights: Sequence[Path | str] = ()) -> LPIPS:
    """Return the perceptual distance by a network.

    Args:
        network: `fashion` or `digits`, the bundled classifiers; the card of a trained classifier or its folder; or
            `lpips`, the published metric.
        weights: Files of lpips: torchvision's VGG16 or AlexNet and the linear heads, or one file with both.

    Raises:
        RecipeError: The name is unknown, lpips has no files, a classifier has files, or a classifier has no stages of
            features.
        WeightsError: A file is missing, damaged, or contains something else.
    """
    if network == "lpips":
        if not weights:
            raise RecipeError(
                "perceptual.network = 'lpips': needs its files, which no package may ship: give "
                "perceptual.weights=[vgg16-397923af.pth, vgg.pth] (torchvision's network and the linear heads), or "
                "take a classifier: fashion, digits, or the card of one that you trained"
            )
        state: dict[str, Tensor] = {}
        for file in weights:
            state |= read_weights(Path(file), "the perceptual metric needs the files of its network and its heads")
        return published_lpips(state, " and ".join(map(str, weights)))
    if weights:
        raise RecipeError(f"perceptual.weights: the classifier {network!r} has its own; leave them out")
    card = BUNDLED / f"classifier-{network}.yaml" if network in NAMES else _card(network)
    return classifier_lpips(read_classifier(card)[0], network)


def fingerprint(judge: LPIPS) -> str:
    """Return the SHA-256 of the tensors of a perceptual network, which identifies its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(judge.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _card(network: str) -> Path:
    """Return the card at a path: the path itself, or the only card in a folder."""
    path = Path(network)
    if path.suffix in (".yaml", ".yml"):
        return path
    if not path.is_dir():
        raise RecipeError(
            f"perceptual.network = {network!r}: must be one of {', '.join(NAMES)}, or the card or folder of a trained "
            f"classifier{did_you_mean(network, NAMES)}"
        )
    cards = [card for card in sorted(path.glob("*.yaml")) if card.with_suffix(".safetensors").is_file()]
    if len(cards) != 1:
        raise WeightsError(f"{network}: holds {len(cards)} cards of classifiers; name one, such as NAME.yaml")
    return cards[0]


def bundled_perceptual(kind: str) -> tuple[str, LPIPS] | None:
    """Return name and network of the bundled perceptual distance for a kind of data, or None."""
    return (kind, perceptual(kind)) if kind in ("digits", "fashion") else None
