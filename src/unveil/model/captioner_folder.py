"""Folders of saved captioners, with their configuration, their weights and their vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from unveil.errors import WeightsError
from unveil.io.files import read_tensors, refuse_foreign, require_finite
from unveil.model import checkpoint_store, migration, model_folder
from unveil.model.config.sections import read_yaml
from unveil.nn.captioner import Captioner, CaptionerConfig
from unveil.nn.tokenizer import Vocabulary

FILE, WORDS, SETTINGS = "captioner.safetensors", "captioner.words.json", "captioner.yaml"
WORD_TABLE = "decoder.words.table.weight"


class CaptionModel(NamedTuple):
    """Captioner with its vocabulary.

    Attributes:
        network: Captioning network.
        words: Vocabulary of the captions.
        facts: Content of `captioner.yaml` besides the network, which are the settings of decoding.
    """

    network: Captioner
    words: Vocabulary
    facts: Mapping[str, Any]


def captioner_files(model: CaptionModel, *, about: str = "") -> dict[str, checkpoint_store.Content]:
    """Return the files of a captioner's folder, except the manifest.

    Args:
        about: Markdown for the end of the card.
    """
    config = asdict(model.network.config)
    settings = {"network": {"kind": "captioner", **config}, **model.facts}
    return {
        FILE: dict(model.network.state_dict()),
        WORDS: model.words.plain(),
        SETTINGS: yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "card.md": captioner_card(model, about),
    }


def save_captioner(
    model: CaptionModel, folder: Path, *, dtype: torch.dtype | None = None, about: str = "", force: bool = False
) -> Path:
    """Write a captioner's folder, completely or not at all, and return it.

    Args:
        dtype: Number format of the weights in the file; None: that of the network.
        force: True if an existing folder is replaced.

    Raises:
        NonFinite: A weight is not finite.
        OutputError: The folder exists already, or it cannot be written.
    """
    require_finite(dict(model.network.named_parameters()), "the captioner")
    files = captioner_files(model, about=about)
    if dtype is not None:
        state = model.network.state_dict()
        files[FILE] = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    if force:
        refuse_foreign(folder)
    checkpoint_store.save(folder, files, replace=force)
    return folder


def load_captioner(path: str | Path, device: torch.device | str = "cpu") -> CaptionModel:
    """Load the captioner of a folder, or of the newest checkpoint of a run, with its EMA weights, for inference.

    Raises:
        WeightsError: The folder is not a captioner, or its files are damaged.
    """
    folder = model_folder.resolve_checkpoint(path)
    if not (folder / SETTINGS).is_file():
        raise WeightsError(f"{path}: not a captioner; train one, such as captioner-playground")
    checkpoint_store.verify(folder)
    try:
        settings: dict[str, Any] = dict(
            migration.migrate(read_yaml((folder / SETTINGS).read_text("utf-8"), str(folder / SETTINGS)))
        )
        network = dict(settings.pop("network"))
        network.pop("kind", None)
        words = words_of(folder)
        model = Captioner(CaptionerConfig(**network))
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise WeightsError(f"{folder}: not a readable captioner: {problem}; train it again") from problem
    if len(words) != model.config.vocab_size:
        raise WeightsError(f"{folder / WORDS}: {len(words)} words for a network of {model.config.vocab_size}; damaged")
    copy_captioner(model, folder, "ema")
    return CaptionModel(model.to(device).eval().requires_grad_(False), words, settings)


def words_of(folder: Path) -> Vocabulary:
    """Load the vocabulary of a captioner's folder, or of a checkpoint of one."""
    return Vocabulary.from_plain(json.loads((folder / WORDS).read_text("utf-8")))


def copy_captioner(network: nn.Module, folder: Path, which: model_folder.WeightSet) -> None:
    """Copy the weights of a verified folder into a network: the EMA weights ("ema") or the "trained" ones.

    Raises:
        WeightsError: The weights do not fit the network.
    """
    path = model_folder.weights_of(folder, FILE, which)
    tensors = read_tensors(path)
    model_folder.check_keys(path, network, tensors)
    network.load_state_dict(tensors)


def extend_vocabulary(base: CaptionModel, words: Vocabulary) -> Captioner:
    """Create a captioner's network with a larger vocabulary, which keeps the embeddings of the base's words.

    Args:
        words: Vocabulary that begins with the words of the base.
    """
    network = Captioner(replace(base.network.config, vocab_size=len(words)))
    state: dict[str, Tensor] = dict(base.network.state_dict())
    table = network.state_dict()[WORD_TABLE].clone()
    table[: len(base.words)] = state[WORD_TABLE]
    network.load_state_dict(state | {WORD_TABLE: table})
    return network


def captioner_card(model: CaptionModel, about: str = "") -> str:
    """Return the card of a captioner in Markdown."""
    config = model.network.config
    rows = {
        "reads": f"videos and images of {config.channels} channels, sides multiples of {config.patch} px",
        "network": f"Captioner, {sum(p.numel() for p in model.network.parameters()):,} parameters",
        "words": f"{len(model.words)}, at most {config.max_length - 1} in a caption",
    }
    lines = ["# Card of a captioner", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]
    lines += ["```bash", "unveil caption FOLDER --model this/folder", "```", ""]
    lines += ["It tells what resembles its training data, in the words of their captions, and nothing else.", ""]
    return "\n".join(lines) + (f"\n{about.strip()}\n" if about.strip() else "")
