"""Training of a classifier of noisy digits for classifier guidance; no metric uses it."""

from __future__ import annotations

from collections.abc import Callable

from unveil.checkpoints.guidance_classifier import GuidanceClassifier
from unveil.core.process import Process
from unveil.data.digits import digits
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.reproduce.variant import CLASSES

BATCH, RATE = 128, 2e-3
NETWORK = NoisyClassifierConfig(
    1, CLASSES, 8, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention=(2,), head_channels=16, groups=8
)


def steps_of(epochs: int) -> int:
    """Return the training steps of that many epochs over the digits."""
    return epochs * (len(digits("train")) // BATCH)


def train_guidance_classifier(
    process: Process, seed: int, epochs: int, on_step: Callable[[], object] = lambda: None
) -> GuidanceClassifier:
    """Train a small encoder with attention pooling on digits with noise of uniformly drawn times.

    Source: Dhariwal & Nichol 2021, section 4.1 and appendix H (arXiv:2105.05233).
    """
    from unveil.train.classifier import ClassifierConfig, train_classifier  # imports Lightning

    config = ClassifierConfig(NETWORK, epochs, BATCH, RATE, seed=seed, process=process)
    training = train_classifier(config, digits("train"), digits("held-out"), lambda _: on_step())
    assert isinstance(training.network, NoisyClassifier)
    return GuidanceClassifier(training.network, process)
