"""Noisy classifiers that guide: our own, from their card, and published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor

from unveil.checkpoints.formats import openai
from unveil.checkpoints.overrides import ModelOverrides
from unveil.core import elementary
from unveil.core.process import Process
from unveil.errors import WeightsError
from unveil.io import files
from unveil.io.files import sha256
from unveil.model import migration
from unveil.model.config.model import ProcessSection
from unveil.model.config.sections import Section, read_yaml, validate
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.types import NoiseLevel, like


class _Levels(Section):
    """The card's part that says which levels the classifier knows."""

    former: ClassVar[str] = "recipe"
    process: ProcessSection


@dataclass(frozen=True)
class GuidanceClassifier:
    """A noisy classifier and the process whose levels it knows: (x, level) -> logits (B, classes).

    A level of another process is read at the same ratio of signal to noise, with x scaled to fit.
    One that was read from no file has no hash.
    """

    network: NoisyClassifier
    process: Process
    name: str = "unnamed"
    sha256: str = ""

    def __call__(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """The logits; differentiable in x. The level is the same for all samples."""
        ratio = level.half_log_snr.flatten()[0].item()
        nearest = self.process.at(self.process.t_of(ratio))
        index = torch.full((len(x),), float(self.process.timestep(nearest)), dtype=torch.float32, device=x.device)
        return self.network(x * like(elementary.divide(nearest.alpha.item(), level.alpha), x), index)


def load_guide(path: str | Path, process: Process, overrides: Mapping[str, Any] | None = None) -> GuidanceClassifier:
    """The noisy classifier of a card, of the folder that holds it, or of a published file of tensors.

    Args:
        process: Process of the model that it guides, which a published file does not name.
        overrides: Settings that the keys of a published file do not determine, by the names of `ModelOverrides`.

    Raises:
        WeightsError: No such file, damaged, or no noisy classifier.
    """
    file = Path(path)
    cards = [file] if file.suffix == ".yaml" else []
    if file.is_dir():
        cards = sorted({*file.glob("*.yaml")} - {file / "recipe.yaml"})
    if file.is_dir() and len(cards) != 1:
        raise WeightsError(f"{path}: holds {len(cards)} cards; give the folder of one trained classifier, or its card")
    if cards:
        return _own(cards[0])
    network = openai.classifier_of(
        files.read_state(file), validate(ModelOverrides, dict(overrides or {}), "classifier")
    )
    return GuidanceClassifier(network, process, file.name, sha256(file))


def _own(card: Path) -> GuidanceClassifier:
    try:
        facts: dict[str, Any] = migration.migrate(read_yaml(card.read_text("utf-8"), str(card)))
        network = dict(facts["network"])
        if network.pop("kind", "cnn") != "noisy-classifier":
            raise WeightsError(f"{card}: a classifier of clean images, which cannot guide; train a noisy-classifier")
        config = NoisyClassifierConfig(**network)
        levels = validate(_Levels, {"process": facts["process"]}, str(card))
        weights = card.with_suffix(".safetensors")
        digest, state = sha256(weights), load_bytes(weights.read_bytes())
    except (OSError, KeyError, TypeError, yaml.YAMLError, SafetensorError) as problem:
        raise WeightsError(f"{card}: not a readable classifier: {problem}; train it again") from problem
    if digest != facts["sha256"]:
        raise WeightsError(f"{weights}: sha256 {digest[:12]}... is not {facts['sha256'][:12]}... of its card; damaged")
    classifier = NoisyClassifier(config).eval().requires_grad_(False)
    classifier.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return GuidanceClassifier(classifier, levels.process.build(), str(facts["name"]), digest)
