"""Folders of saved sequence models: a card, the weights, and the vocabularies of both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from unveil.errors import WeightsError
from unveil.io.files import refuse_overwrite, sha256, tensor_bytes, write_atomically
from unveil.model import migration
from unveil.model.config.sections import read_yaml
from unveil.nn.tokenizer import Vocabulary
from unveil.nn.transformer import Transformer, TransformerConfig


class SequenceModel(NamedTuple):
    """Transformer with the vocabularies of source and target.

    Attributes:
        facts: Content of the card besides the network, such as the training and the settings of decoding.
    """

    network: Transformer
    source: Vocabulary
    target: Vocabulary
    facts: Mapping[str, Any]


def save_sequence(name: str, model: SequenceModel, folder: Path, *, force: bool = False) -> Path:
    """Write NAME.safetensors, NAME.json with the vocabularies and, last, the card NAME.yaml with their hashes.

    Returns:
        Path of the card, for `load_sequence`.

    Raises:
        OutputError: A file of that name exists, and `force` is not set.
    """
    weights, words, card = (folder / f"{name}.{end}" for end in ("safetensors", "json", "yaml"))
    for path in (weights, words, card):
        refuse_overwrite(path, force)
    write_atomically(weights, tensor_bytes(model.network.state_dict()))
    vocabularies = {"source": model.source.plain(), "target": model.target.plain()}
    write_atomically(words, json.dumps(vocabularies, ensure_ascii=False))
    facts = {
        "name": name,
        "network": {"kind": "transformer", **asdict(model.network.config)},
        **model.facts,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "sha256": {"weights": sha256(weights), "vocabularies": sha256(words)},
    }
    return write_atomically(card, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))


def load_sequence(path: str | Path, device: torch.device | str = "cpu") -> SequenceModel:
    """Load the sequence model of a card, or of the folder that contains it, for inference.

    Raises:
        WeightsError: The card does not exist or is that of another kind of model, or a file is damaged.
    """
    card = _card(Path(path))
    try:
        facts: dict[str, Any] = migration.migrate(read_yaml(card.read_text("utf-8"), str(card)))
        network = dict(facts["network"])
        if network.pop("kind", "cnn") != "transformer":
            raise WeightsError(f"{card}: not a sequence model; train one, such as transformer-translate")
        config = TransformerConfig(**network)
        files = {"weights": card.with_suffix(".safetensors"), "vocabularies": card.with_suffix(".json")}
        for what, file in files.items():
            if (digest := sha256(file)) != (stated := facts["sha256"][what]):
                raise WeightsError(f"{file}: sha256 {digest[:12]}... is not {stated[:12]}... of its card; damaged")
        words = json.loads(files["vocabularies"].read_text("utf-8"))
        source, target = (Vocabulary.from_plain(words[side]) for side in ("source", "target"))
        state = load_bytes(files["weights"].read_bytes())
        model = Transformer(config)
        model.load_state_dict(state)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise WeightsError(f"{card}: not a readable sequence model: {problem}; train it again") from problem
    return SequenceModel(model.to(device).eval().requires_grad_(False), source, target, facts)


def sequence_cards(folder: Path) -> list[Path]:
    """List the cards of sequence models in a folder, each with a file of vocabularies of the same name."""
    return [card for card in sorted(folder.glob("*.yaml")) if card.with_suffix(".json").is_file()]


def _card(path: Path) -> Path:
    if not path.is_dir():
        return path
    cards = sequence_cards(path)
    if len(cards) != 1:
        raise WeightsError(f"{path}: holds {len(cards)} cards of sequence models; give the folder of one, or its card")
    return cards[0]
