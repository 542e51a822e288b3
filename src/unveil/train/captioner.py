"""Training of captioners: the learner of a network that generates captions of images and videos.

Source: Betker et al. 2023, "Improving image generation with better captions", section 2.1: a language model over the
words of captions, given the image, trained first on short captions and then on dense ones.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, WeightsError
from unveil.model import checkpoint_store, model_folder
from unveil.model.captioner_folder import (
    FILE,
    CaptionModel,
    captioner_card,
    captioner_files,
    copy_captioner,
    extend_vocabulary,
    load_captioner,
    words_of,
)
from unveil.model.config import CaptionerRecipe
from unveil.model.config.data import frame_rate_of
from unveil.model.config.train import Batching
from unveil.nn.captioner import Captioner
from unveil.nn.tokenizer import BEGIN, END, PADDING, Vocabulary, pad_sequences
from unveil.train.batch_preparation import fixed_subset, slice_batch, to_float
from unveil.train.data_order import Batch, IndexableItems, check_items
from unveil.train.learner import Learner
from unveil.train.trainer import learn
from unveil.train.vocabulary import all_captions

TEXT, FPS = "text", "fps"


def initial_captioner(recipe: CaptionerRecipe, dataset: IndexableItems, device: torch.device) -> CaptionModel:
    """Create the initial captioner: new weights with the words of the data, or a base whose vocabulary is extended.

    Raises:
        RecipeError: An item has no text, the texts contain no word or are longer than the network's limit, or the base
            is another network.
        WeightsError: The base is not a captioner.
    """
    base = None if recipe.base is None else load_captioner(recipe.base)
    before = () if base is None else base.words.tokens
    captions = [*all_captions(dataset, TEXT)]
    words = Vocabulary.build(captions, recipe.words.unit, limit=recipe.words.vocab_size, before=before)
    if not words.tokens:
        raise RecipeError("the training captions hold no word; give items a text")
    config = recipe.network.build({"vocab_size": len(words)})
    _refuse_long(max((len(words.encode(text)) for text in dict.fromkeys(captions)), default=0), config.max_length)
    size, rate = list(shape_of(dataset, recipe.key)[-2:]), frame_rate_of(recipe.data)
    facts = {"decode": recipe.decode.model_dump(mode="json"), "size": size, "fps": rate}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        network = Captioner(config) if base is None else extend_vocabulary(base, words)
    if network.config != config:
        raise RecipeError(f"base {recipe.base!r}: its network is {network.config}, the recipe says {config}; use one")
    return CaptionModel(network.requires_grad_(True).to(device), words, facts)


def fit_captioner(
    recipe: CaptionerRecipe,
    model: CaptionModel,
    dataset: IndexableItems,
    *,
    run: Path | str,
    held_out: IndexableItems | None = None,
) -> Path:
    """Train a captioner in a run folder, or resume the run in it; return the folder.

    Training resumes and repeats as that of `train.fit`. At the end the network holds the EMA weights.

    Raises:
        RecipeError: An item has no caption, a caption is longer than the network's limit, or the run is of another
            recipe.
        OutputError, NonFinite, OutOfResources, Cancelled: Training stops, as in `train.fit`.
    """
    check_items(dataset, recipe.key, [TEXT], None)
    batching = recipe.train.batching
    if batching == "packed" or recipe.train.tokens is not None:
        raise RecipeError("train.batching: a captioner computes size by size; set buckets, and leave tokens out")
    learner = CaptionerLearner(model, recipe.key, shape_of(dataset, recipe.key), FPS in dataset[0], batching)
    recorded = recipe.model_dump(mode="json")
    return learn(learner, dataset, config=recipe.train, run=run, held_out=held_out, recorded=recorded)


def _refuse_long(words: int, limit: int) -> None:
    """Check that a caption, with its end token, is not longer than the network's limit.

    Raises:
        RecipeError: The caption is longer.
    """
    if words + 1 > limit:
        raise RecipeError(f"network.max_length = {limit}: a caption has {words + 1} words with its end; raise it")


def shape_of(dataset: IndexableItems, key: str) -> tuple[int, ...]:
    """Shape of the first item's data."""
    return tuple(torch.as_tensor(dataset[0][key]).shape)


class CaptionerLearner(Learner):
    """Learner of a captioner.

    Args:
        model: Model that is trained.
        key: Key of the item's image or video.
        shape: Shape of one item's data.
        timed: True if items contain their frame rate.
        batching: Batching "buckets" for images and videos of different sizes; None: all have one size.
    """

    def __init__(
        self, model: CaptionModel, key: str, shape: tuple[int, ...], timed: bool, batching: Batching | None = None
    ) -> None:
        super().__init__(model.network)
        self.words, self.facts = model.words, model.facts
        self.key, self.shape = key, shape
        self.batching: Batching | None = batching
        self.raw_keys = [TEXT, *([FPS] if timed else [])]

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Cross-entropy per word in nats, of each caption and of the batch.

        Raises:
            RecipeError: Images are mirrored, which would make captions wrong.
        """
        del streams, step
        if flip:
            raise RecipeError("train.random_flip: a mirrored image has another caption; set it to false")
        return self.caption_losses(self.model, batch)

    def caption_losses(self, network: Captioner, batch: Batch) -> LossOutput:
        """Loss of a batch for the trained or the EMA network."""
        data = batch.data
        targets = self.targets(batch.raw[TEXT]).to(data[0].device)
        rate = torch.as_tensor(batch.raw[FPS]).cpu().double() if FPS in batch.raw else None
        total, counted = torch.zeros(len(data), device=targets.device), (targets[:, 1:] != PADDING).sum(1)
        for places in of_one_size(data):
            x = as_videos(
                to_float(data if isinstance(data, Tensor) else torch.stack([data[place] for place in places]))
            )
            words = targets[places]
            logits = network(x, words[:, :-1], None if rate is None else rate[places])
            nats = nn.functional.cross_entropy(logits.float().transpose(1, 2), words[:, 1:], reduction="none")
            total = total.index_add(
                0, torch.tensor(places, device=total.device), (nats * (words[:, 1:] != PADDING)).sum(1)
            )
        nowhere = torch.full((len(data),), math.nan, dtype=torch.float64)
        return LossOutput(total.sum() / counted.sum(), (total / counted).detach(), nowhere, {})

    def targets(self, captions: list[str]) -> Tensor:
        """Tokens (B, L) of captions, with begin and end.

        Raises:
            RecipeError: A caption is longer than the network's limit.
        """
        numbers = [[BEGIN, *self.words.encode(str(text)), END] for text in captions]
        _refuse_long(max(map(len, numbers)) - 2, self.model.config.max_length)
        return pad_sequences(numbers)

    def compile(self) -> None:
        """Compile the image encoder and the decoder."""
        self.model.encoder.compile()
        self.model.decoder.stack.compile()

    def validator(self, items: IndexableItems, at_once: int, count: int, seed: int) -> CaptionValidation:
        """Validation by the loss of held-out captions."""
        del seed
        return CaptionValidation(self, fixed_subset(items, count, self.key, self.raw_keys, self.batching), at_once)

    def ema_tensors(self, average: Captioner) -> dict[str, dict[str, Tensor]]:
        """Tensors of the network by file name."""
        return {FILE: dict(average.state_dict())}

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the captioner with the trained weights."""
        return captioner_files(self._whole(self.model), about=about)

    def load(self, model: Captioner, folder: Path, which: model_folder.WeightSet) -> None:
        """Copy the weights of a folder into the network.

        Raises:
            WeightsError: The weights are for another vocabulary, for example because captions were changed.
        """
        if words_of(folder) != self.words:
            raise WeightsError(
                f"{folder}: the captions have other words now, or in another order; "
                "give those that the run began with, or begin another run with base"
            )
        copy_captioner(model, folder, which)

    def card(self, about: str) -> str:
        """Card of the captioner."""
        return captioner_card(self._whole(self.model), about)

    def _whole(self, network: Captioner) -> CaptionModel:
        return CaptionModel(network, self.words, self.facts)


class CaptionValidation:
    """Loss of the EMA captioner on held-out captions."""

    from_start = False

    def __init__(self, learner: CaptionerLearner, batch: Batch, at_once: int) -> None:
        self.learner, self.batch, self.at_once = learner, batch, at_once

    @torch.no_grad()
    def line(self, model: Captioner) -> dict[str, Any]:
        """Return `validation`, the mean cross-entropy per word in nats."""
        count, total = len(self.batch.numbers), 0.0
        for begin in range(0, count, self.at_once):
            part = slice_batch(self.batch, begin, min(begin + self.at_once, count), self.learner.device)
            total += self.learner.caption_losses(model, part).per_sample.sum().item()
        return {"validation": total / count}


def as_videos(x: Tensor) -> Tensor:
    """Convert images (B, C, H, W) to videos of one frame; return videos unchanged."""
    return x[:, :, None] if x.ndim == 4 else x


def of_one_size(data: Tensor | list[Tensor]) -> list[list[int]]:
    """Indices of the items of each shape, for all shapes that occur."""
    if isinstance(data, Tensor):
        return [list(range(len(data)))]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(data):
        by_shape.setdefault(tuple(item.shape), []).append(place)
    return list(by_shape.values())
