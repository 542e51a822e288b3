"""Trains models that turn one sequence into another, and counts what they write exactly.

They see the training part alone, their vocabularies too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.errors import NonFinite, RecipeError
from unveil.model.config import SequenceRecipe
from unveil.model.config.seq2seq import DecodeConfig, SequenceTrainConfig, TokensConfig
from unveil.model.seq2seq import exact_match
from unveil.model.seq2seq_folder import SequenceModel
from unveil.nn.tokenizer import BEGIN, END, PADDING, Vocabulary, padded
from unveil.nn.transformer import Transformer, TransformerConfig, token_loss
from unveil.playground.text_pairs import Pair, TaskConfig, open_pairs
from unveil.train import lr_schedule
from unveil.train.classifier import ClassifierProgress

WINDOW = 32  # batches whose pairs are sorted by length, so that a batch holds little padding


class TrainedSequence(NamedTuple):
    """A sequence model, the shares of held-out targets it writes exactly, and what it took.

    exact: by how it decodes, greedy or beam, then by what: all, each task, and `length N` beyond the
        trained ones.
    """

    model: SequenceModel
    exact: dict[str, dict[str, float]]
    cpu_seconds: float


def train_sequence(
    recipe: SequenceRecipe, on_progress: Callable[[ClassifierProgress], object] | None = None
) -> TrainedSequence:
    """The model of a recipe, the same for the same seed, machine and number of compute threads.

    Args:
        on_progress: called after each step; to stop, let it raise `errors.Cancelled`.

    Raises:
        RecipeError: pairs longer than the network's limit, those that never train among them.
        DataError: pairs that cannot be read, or none that never trains.
        NonFinite: the loss left the finite numbers.
    """
    spent = time.process_time()
    config = recipe.data.build()
    pairs = open_pairs(config, "train")
    source, target = vocabularies(pairs.pairs, recipe.tokens)
    network = recipe.network.build({"source": len(source), "target": len(target)})
    examples = _encoded(pairs.pairs, source, target, network)
    held_out = _held_out(recipe, config)  # before hours that would be lost with it
    for pair in (pair for own in held_out.values() for pair in own):
        if not 1 <= len(source.encode(pair.source)) < network.max_length:
            told = f"{pair.source[:60]!r} has {len(source.encode(pair.source))} tokens"
            raise RecipeError(
                f"network.max_length = {network.max_length}: the held-out {told}; raise it, or mend the text"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        transformer = Transformer(network).train()
        _fit(transformer, examples, recipe.train, on_progress)
    facts = {
        "data": recipe.data.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "decode": recipe.decode.model_dump(mode="json"),
    }
    model = SequenceModel(transformer.eval().requires_grad_(False), source, target, facts)
    return TrainedSequence(model, _judged(model, recipe, held_out), time.process_time() - spent)


def vocabularies(pairs: Sequence[Pair], config: TokensConfig) -> tuple[Vocabulary, Vocabulary]:
    """Those of sources and of targets; the same one twice where they share."""
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    if config.shared:
        both = Vocabulary.of([*sources, *targets], config.source, limit=config.vocab_size)
        return both, both
    return (
        Vocabulary.of(sources, config.source, limit=config.vocab_size),
        Vocabulary.of(targets, config.target, limit=config.vocab_size),
    )


class _Example(NamedTuple):
    source: list[int]  # with the end
    target: list[int]  # with begin and end


def _encoded(
    pairs: Sequence[Pair], source: Vocabulary, target: Vocabulary, network: TransformerConfig
) -> list[_Example]:
    examples = [_Example([*source.encode(a), END], [BEGIN, *target.encode(b), END]) for a, b in pairs]
    longest = max(max(len(one.source), len(one.target) - 1) for one in examples)
    if longest > network.max_length:
        raise RecipeError(
            f"network.max_length = {network.max_length}: the longest training text has {longest} tokens; raise it"
        )
    return examples


def _fit(
    network: Transformer,
    examples: list[_Example],
    config: SequenceTrainConfig,
    on_progress: Callable[[ClassifierProgress], object] | None,
) -> None:
    began = time.perf_counter()
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=config.adam_betas,
        eps=1e-9,
        weight_decay=config.weight_decay,
        fused=True,
    )
    falling = lr_schedule.inverse_sqrt(warmup=config.warmup)
    if config.lr_schedule == "cosine":
        falling = lr_schedule.cosine(config.steps, warmup=config.warmup)
    for step, (source, target) in zip(range(1, config.steps + 1), _batches(examples, config.batch_size), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * falling(step - 1)
        logits = network(source, target[:, :-1], mask=source != PADDING)
        loss = token_loss(logits, target[:, 1:], smoothing=config.label_smoothing, padding=PADDING)
        if not math.isfinite(value := loss.item()):
            raise NonFinite(f"step {step}: the loss is {value}; lower train.lr, now {config.lr}")
        optimiser.zero_grad()
        loss.backward()
        if config.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip_norm)
        optimiser.step()
        if on_progress:
            on_progress(ClassifierProgress(step, config.steps, value, time.perf_counter() - began))


def _batches(examples: list[_Example], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets (B, N), each pair once before any comes again, pairs of like length together."""
    batch = min(batch, len(examples))
    while True:
        order = torch.randperm(len(examples)).tolist()
        for begin in range(0, len(order) - batch + 1, WINDOW * batch):
            window = sorted(order[begin : begin + WINDOW * batch], key=lambda i: sum(map(len, examples[i])))
            parts = [window[i : i + batch] for i in range(0, len(window) - batch + 1, batch)]
            for place in torch.randperm(len(parts)).tolist():
                chosen = [examples[i] for i in parts[place]]
                yield padded([one.source for one in chosen]), padded([one.target for one in chosen])


def _held_out(recipe: SequenceRecipe, config: Any) -> dict[str, Sequence[Pair]]:
    """The pairs that never train, by the name of their set."""
    sets: dict[str, Sequence[Pair]] = {"all": open_pairs(config, "held-out").pairs[: recipe.evaluate.count]}
    for length in recipe.evaluate.extra_lengths:
        assert isinstance(config, TaskConfig)
        longer = replace(config, min_length=length, max_length=length, num_val=len(sets["all"]))
        sets[f"length {length}"] = open_pairs(longer, "held-out").pairs
    return sets


def _judged(
    model: SequenceModel, recipe: SequenceRecipe, sets: Mapping[str, Sequence[Pair]]
) -> dict[str, dict[str, float]]:
    config = recipe.data.build()
    tasks = config.tasks if isinstance(config, TaskConfig) else ()
    found = {"greedy": _shares(model, sets, tasks, recipe.decode.model_copy(update={"num_beams": 1}))}
    if recipe.decode.num_beams > 1:
        found["beam"] = _shares(model, sets, tasks, recipe.decode)
    return found


def _shares(
    model: SequenceModel, sets: Mapping[str, Sequence[Pair]], tasks: Sequence[str], decode: DecodeConfig
) -> dict[str, float]:
    """The share written exactly of each set, and of each task in it."""
    found: dict[str, float] = {}
    for name, pairs in sets.items():
        right = exact_match(model, pairs, beams=decode.num_beams, length_power=decode.length_penalty)
        found[name] = sum(right) / len(right)
        for task in tasks:
            own = [one for one, pair in zip(right, pairs, strict=True) if pair.source.split()[0] == task]
            if own:
                found[task if name == "all" else f"{name}, {task}"] = sum(own) / len(own)
    return found
