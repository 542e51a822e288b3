"""Training of sequence models, which convert one sequence to another, and their rate of exact matches.

Only the training split is used, also for the vocabularies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, WeightsError
from unveil.io.files import read_tensors
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import SequenceRecipe, TrainConfig
from unveil.model.config.sections import validate
from unveil.model.config.seq2seq import DecodeConfig, SequenceTrainConfig, TokensConfig
from unveil.model.seq2seq import exact_match
from unveil.model.seq2seq_folder import SequenceModel
from unveil.nn.tokenizer import BEGIN, END, PADDING, Vocabulary, pad_sequences
from unveil.nn.transformer import Transformer, TransformerConfig, token_loss
from unveil.playground.text_pairs import Pair, TaskConfig, open_pairs
from unveil.train import lr_schedule
from unveil.train.classifier import StepProgress
from unveil.train.data_order import Batch, ExampleNumbers, IndexableItems, SortedWindows
from unveil.train.learner import AdamWOptions, Learner
from unveil.train.lr_schedule import Schedule
from unveil.train.trainer import learn, learn_in_memory

if TYPE_CHECKING:  # with it comes Lightning, which takes seconds
    from unveil.train.lightning_module import StepOutput

FILE, WORDS = "transformer.safetensors", "vocabularies.json"  # of a checkpoint


class TrainedSequence(NamedTuple):
    """Sequence model with its rates of exact matches on held-out pairs and the cost of its training.

    Attributes:
        model: Trained model.
        exact: Rates by decoding method, `greedy` or `beam`, then by set: all, each task, and `length N` beyond the
            trained lengths.
        cpu_seconds: CPU time of the training.
    """

    model: SequenceModel
    exact: dict[str, dict[str, float]]
    cpu_seconds: float


class Example(NamedTuple):
    """Training pair as token numbers.

    Attributes:
        source: Tokens of the source, with the end token.
        target: Tokens of the target, with the begin and end tokens.
    """

    source: list[int]
    target: list[int]

    @property
    def length(self) -> int:
        """Number of tokens of source and target."""
        return len(self.source) + len(self.target)


class SequenceLearner(Learner):
    """Learner of a sequence model, whose training pairs are in memory.

    Weights, order of the pairs and dropout are drawn from one generator.

    Args:
        network: Configuration of the network.
        examples: Training pairs.
        config: Settings of training.
        vocabularies: Vocabularies of source and target.
    """

    adamw = AdamWOptions(eps=1e-9)

    def __init__(
        self,
        network: TransformerConfig,
        examples: list[Example],
        config: SequenceTrainConfig,
        vocabularies: tuple[Vocabulary, Vocabulary],
    ) -> None:
        self.batch_size = min(config.batch_size, len(examples))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            super().__init__(Transformer(network))
            self.order = SortedWindows([example.length for example in examples], self.batch_size)
        self.examples, self.config, self.vocabularies = examples, config, vocabularies
        self._rows: tuple[int, list[int]] | None = None  # of a step: its number, and the examples of its batch

    def loop(self) -> TrainConfig:
        """Return the settings of the training loop.

        Raises:
            RecipeError: A setting is invalid, such as a batch that cannot be split.
        """
        config = self.config
        settings = {
            "batch_size": self.batch_size,
            "steps": config.steps,
            "lr": config.lr,
            "adam_betas": config.adam_betas,
            "weight_decay": config.weight_decay,
            "ema_decay": config.ema_decay,
            "grad_clip_norm": config.grad_clip_norm,
            "grad_accum_steps": config.grad_accum_steps,
            "precision": config.precision,
            "seed": config.seed,
            "save_every": config.save_every,
            "sample_every": 0,
            "validate_every": 0,
            "max_minutes": config.max_minutes,
            "nonfinite_limit": 0,
        }
        return validate(TrainConfig, settings, "train")

    def dataset(self, items: IndexableItems, config: TrainConfig) -> Dataset[Batch]:
        """Data set of example numbers only."""
        return ExampleNumbers()

    def schedule(self, config: TrainConfig) -> Schedule:
        """Learning rate schedule: a rise over the warm-up, then a decay by the inverse square root or half a cosine."""
        warmup = lr_schedule.warmup_within(config.steps, self.config.warmup)
        if self.config.lr_schedule == "cosine":
            return lr_schedule.cosine(config.steps, warmup=warmup)
        return lr_schedule.inverse_sqrt(warmup=warmup)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
        """Scale a gradient down to the limit as torch does, which adds 1e-6 to the norm."""
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Mean cross-entropy of the targets' tokens, over all parts of the step."""
        part = self.order.part(batch.numbers)
        if self._rows is None or self._rows[0] != step:
            with self.order.drawing():
                self._rows = step, self.order.draw().tolist()
        rows = self._rows[1]
        chosen = [self.examples[row] for row in rows[part.positions]]
        source, target = (
            pad_sequences([each.source for each in chosen]),
            pad_sequences([each.target for each in chosen]),
        )
        source, target = source.to(self.device), target.to(self.device)
        with self.order.forward_pass(part):
            logits = self.model(source, target[:, :-1], mask=source != PADDING)
        value = token_loss(logits, target[:, 1:], smoothing=self.config.label_smoothing, padding=PADDING)
        if not part.whole:  # the mean over the parts is that over the tokens of all
            tokens = [sum(len(self.examples[row].target) - 1 for row in some) for some in (rows[part.positions], rows)]
            value = value * (tokens[0] / tokens[1] * len(rows) / len(chosen))
        nowhere = torch.full((len(chosen),), math.nan, dtype=torch.float64)
        return LossOutput(value, value.detach().expand(len(chosen)), nowhere, {})

    def state(self) -> dict[str, Tensor]:
        """State of the order of the pairs and of the generator."""
        return self.order.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the order of the pairs and the generator.

        Raises:
            WeightsError: A tensor is missing.
        """
        self.order.restore(state)
        self._rows = None

    def ema_tensors(self, average: Any) -> dict[str, dict[str, Tensor]]:
        """Tensors of the network by file name."""
        return {FILE: dict(average.state_dict())}

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the network with the trained weights, its vocabularies and its card."""
        return {FILE: dict(self.model.state_dict()), WORDS: self._words(), "card.md": self.card(about)}

    def load(self, model: Any, folder: Path, which: model_folder.WeightSet) -> None:
        """Copy the weights of a folder into the network.

        Raises:
            WeightsError: The weights are those of another network or another vocabulary.
        """
        if checkpoint_store.read_json(folder / WORDS) != self._words():
            raise WeightsError(f"{folder}: the texts have other words now; use those of the run, or begin another run")
        path = model_folder.weights_of(folder, FILE, which)
        tensors = read_tensors(path)
        model_folder.check_keys(path, model, tensors)
        model.load_state_dict(tensors)

    def card(self, about: str) -> str:
        """Card with the network's size."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"# A sequence model\n\nTransformer, {parameters:,} parameters\n\n{about}\n"

    def _words(self) -> dict[str, Any]:
        source, target = self.vocabularies
        return {"source": source.plain(), "target": target.plain()}


def train_sequence(
    recipe: SequenceRecipe, on_progress: Callable[[StepProgress], object] | None = None
) -> TrainedSequence:
    """Train the model of a recipe; the same seed, machine and number of threads give the same weights.

    Args:
        on_progress: Function called after each step; it may raise `errors.Cancelled` to stop.

    Raises:
        RecipeError: A pair, possibly a held-out one, is longer than the network's limit.
        DataError: The pairs cannot be read, or there are no held-out ones.
        NonFinite: The loss is not finite.
    """
    begun, spent = time.perf_counter(), time.process_time()
    learner, held_out = _prepared(recipe)

    def report(step: StepOutput) -> None:
        if on_progress:
            on_progress(StepProgress(step.step, recipe.train.steps, step.loss, time.perf_counter() - begun))

    learn_in_memory(learner, cast(Any, learner.examples), config=learner.loop(), on_step=report)
    return _finished(learner, recipe, held_out, spent)


def fit_sequence(recipe: SequenceRecipe, *, run: Path | str) -> TrainedSequence:
    """Train the model of a recipe in a run folder, or resume the run in it; by one process or those of `torchrun`.

    Args:
        run: Run folder, which is new or contains a run of the same recipe.

    Raises:
        RecipeError, DataError: The pairs do not fit, as in `train_sequence`, or the folder contains a run of another
            recipe.
        OutputError, NonFinite, OutOfResources, Cancelled: Training stops, as in `train.fit`.
    """
    spent = time.process_time()
    learner, held_out = _prepared(recipe)
    recorded = recipe.model_dump(mode="json")
    learn(learner, cast(Any, learner.examples), config=learner.loop(), run=run, held_out=None, recorded=recorded)
    return _finished(learner, recipe, held_out, spent)


def _prepared(recipe: SequenceRecipe) -> tuple[SequenceLearner, dict[str, Sequence[Pair]]]:
    """Create the learner of a recipe, and the held-out pairs, both checked."""
    config = recipe.data.build()
    pairs = open_pairs(config, "train")
    source, target = vocabularies(pairs.pairs, recipe.tokens)
    network = recipe.network.build({"source": len(source), "target": len(target)})
    examples = _encoded(pairs.pairs, source, target, network)
    held_out = _held_out(recipe, config)  # before hours that would be lost with it
    for pair in (pair for pairs_of_set in held_out.values() for pair in pairs_of_set):
        if not 1 <= len(source.encode(pair.source)) < network.max_length:
            text = f"{pair.source[:60]!r} has {len(source.encode(pair.source))} tokens"
            raise RecipeError(
                f"network.max_length = {network.max_length}: the held-out {text}; raise it, or mend the text"
            )
    return SequenceLearner(network, examples, recipe.train, (source, target)), held_out


def _finished(
    learner: SequenceLearner, recipe: SequenceRecipe, held_out: Mapping[str, Sequence[Pair]], spent: float
) -> TrainedSequence:
    """Return the trained model with its rates of exact matches."""
    facts = {
        "data": recipe.data.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "decode": recipe.decode.model_dump(mode="json"),
    }
    model = SequenceModel(learner.model.eval().requires_grad_(False), *learner.vocabularies, facts)
    return TrainedSequence(model, _judged(model, recipe, held_out), time.process_time() - spent)


def vocabularies(pairs: Sequence[Pair], config: TokensConfig) -> tuple[Vocabulary, Vocabulary]:
    """Build the vocabularies of source and target; a shared one is returned twice."""
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    if config.shared:
        both = Vocabulary.build([*sources, *targets], config.source, limit=config.vocab_size)
        return both, both
    return (
        Vocabulary.build(sources, config.source, limit=config.vocab_size),
        Vocabulary.build(targets, config.target, limit=config.vocab_size),
    )


def _encoded(
    pairs: Sequence[Pair], source: Vocabulary, target: Vocabulary, network: TransformerConfig
) -> list[Example]:
    examples = [Example([*source.encode(a), END], [BEGIN, *target.encode(b), END]) for a, b in pairs]
    longest = max(max(len(example.source), len(example.target) - 1) for example in examples)
    if longest > network.max_length:
        raise RecipeError(
            f"network.max_length = {network.max_length}: the longest training text has {longest} tokens; raise it"
        )
    return examples


def _held_out(recipe: SequenceRecipe, config: Any) -> dict[str, Sequence[Pair]]:
    """Return the held-out pairs, by the name of their set."""
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
    exact = {"greedy": _shares(model, sets, tasks, recipe.decode.model_copy(update={"num_beams": 1}))}
    if recipe.decode.num_beams > 1:
        exact["beam"] = _shares(model, sets, tasks, recipe.decode)
    return exact


def _shares(
    model: SequenceModel, sets: Mapping[str, Sequence[Pair]], tasks: Sequence[str], decode: DecodeConfig
) -> dict[str, float]:
    """Rate of exact matches of each set, and of each task in it."""
    shares: dict[str, float] = {}
    for name, pairs in sets.items():
        right = exact_match(model, pairs, beams=decode.num_beams, length_power=decode.length_penalty)
        shares[name] = sum(right) / len(right)
        for task in tasks:
            of_task = [hit for hit, pair in zip(right, pairs, strict=True) if pair.source.split()[0] == task]
            if of_task:
                shares[task if name == "all" else f"{name}, {task}"] = sum(of_task) / len(of_task)
    return shares
