"""Variants of a bundled recipe: training with samples and validation loss at regular steps, cached for all claims."""

from __future__ import annotations

import contextlib
import shlex
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import data
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.errors import PromptTruncated, RecipeError
from unveil.io.images import to_pixels
from unveil.model import Model, build
from unveil.model.config import Recipe, load_recipe
from unveil.model.config.token_conditions import LearnedTextSection
from unveil.nn.flops import multiply_adds
from unveil.nn.layers import meta_device
from unveil.playground.dataset import Playground
from unveil.playground.eval_prompts import EvalPrompt, dataset_prompts
from unveil.reproduce.variant import LOOP, CachedTraining, TrainSchedule, cache_get, cache_put, train_loop
from unveil.types import Condition, Raw

PROMPT = "prompt"
# Parts of a recipe that determine a training; the others are texts, or belong to other commands.
_CACHE_KEYS = {
    "key", "shape", "network", "process", "prediction", "variance", "condition", "autoencoder", "sample", "data"
}  # fmt: skip


@dataclass(frozen=True)
class RecipeVariant:
    """Bundled recipe with changes.

    Attributes:
        recipe: Name of the recipe.
        changes: Changes as on a command line, such as "network.depth=3 network.patch=4".
        start: Changes of the variant with which this one shares initial weights of the same name and size.
        after: Variant from whose EMA weights of the same seed the training continues instead.
    """

    recipe: str
    changes: str = ""
    start: str = ""
    after: RecipeVariant | None = None

    def recipe_config(self, quick: bool) -> Recipe:
        """Return the recipe with its changes, or its smoke-run form."""
        return _recipe_config(self.recipe, self.changes, quick)


@lru_cache(maxsize=64)
def _recipe_config(name: str, changes: str, quick: bool) -> Recipe:
    recipe = load_recipe(name, shlex.split(changes), small=quick)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe {name!r}: trains no diffusion model; a claim needs the recipe of a diffusion model")
    return recipe


class TrainingHistory(NamedTuple):
    """Training of a variant with one seed.

    Attributes:
        model: Final model with the EMA weights.
        steps: Training steps before each evaluation.
        pixels: Samples of each evaluation, uint8 (evaluations, N, C, H, W). Their classes take turns. A sample has the
            same initial noise in each evaluation.
        losses: Loss of each evaluation on held-out data, with the same noise and noise levels for every variant and
            seed.
        cpu_seconds: CPU seconds of the training and its evaluations.
        cached: True if an earlier run trained it.
    """

    model: Model
    steps: list[int]
    pixels: Tensor
    losses: list[float]
    cpu_seconds: float
    cached: bool


def train_schedule(recipe: Recipe) -> TrainSchedule:
    """Return length and rates of a recipe's training, which is in float32 here."""
    train = recipe.train
    return TrainSchedule(
        train.steps,
        train.batch_size,
        train.lr,
        train.warmup,
        train.lr_decay_ratio,
        train.adam_betas,
        train.ema_decay,
        train.grad_clip_norm,
        train.weight_decay,
    )


def eval_steps(recipe: Recipe) -> list[int]:
    """Return the steps after which a training is evaluated: every `sample_every`-th, and the last."""
    last, every = recipe.train.steps, recipe.train.sample_every
    return sorted({*range(every, last, every), last}) if every else [last]


def cost_of(recipe: Recipe) -> int:
    """Return the multiply-adds of one function evaluation of the network for one sample."""
    with meta_device():
        network: Any = recipe.build_network()
        token_counts = [
            section.max_length + 2 for section in recipe.condition if isinstance(section, LearnedTextSection)
        ]  # with begin and end tokens
        text = torch.empty(1, token_counts[0], network.config.cross_attention_dim) if token_counts else None
        condition = Condition(vector=torch.empty(1, network.vector_dim), tokens=text) if recipe.condition else None
        return multiply_adds(network, (torch.empty(1, *recipe.latent_shape), torch.empty(1), condition))


def cycle_labels(model: Model, count: int) -> dict[str, list[int]]:
    """Return the labels of `count` samples, whose classes take turns."""
    conditioners: Any = model.conditioners
    return {key: [number % conditioner.classes for number in range(count)] for key, conditioner in conditioners.items()}


def eval_cond(model: Model, recipe: Recipe, count: int) -> Raw:
    """Return the conditions of `count` samples: classes that take turns, or prompts of the playground."""
    if PROMPT not in model.conditioners:
        return cycle_labels(model, count)
    return {PROMPT: [prompt.text for prompt in prompts_of(recipe, count)]}


def prompts_of(recipe: Recipe, count: int) -> list[EvalPrompt]:
    """Return the prompts of `count` samples of a playground recipe.

    Prompts describe held-out videos in the caption styles of the recipe, which take turns. They are complete and
    correct.
    """
    world = held_out_videos(recipe)
    return dataset_prompts(world, count, world.config.caption_styles)


def held_out_videos(recipe: Recipe) -> Playground:
    """Return the held-out videos of a recipe.

    Raises:
        RecipeError: The data are not the playground.
    """
    held_out = data.open(recipe.data.build(), "held-out")
    if not isinstance(held_out, Playground):
        raise RecipeError(f"recipe {recipe.name!r}: prompts of a claim need the playground as data")
    return held_out


def init_recipe_model(variant: RecipeVariant, seed: int, quick: bool, initial_model: Model | None = None) -> Model:
    """Return the untrained model with the initial weights that it shares with other variants of its seed.

    Args:
        variant: Variant to build.
        seed: Seed of the initial weights.
        quick: True for the smoke-run form of the recipe.
        initial_model: Trained model of the variant that this one continues; it gives weights of equal name and size.
    """
    model = _untrained_model(variant.recipe_config(quick), seed)
    _build_vocabulary(model, variant, quick)
    if initial_model is None:
        initial_model = _untrained_model(_recipe_config(variant.recipe, variant.start, quick), seed)
    initial_weights = {_canonical_name(name): tensor for name, tensor in initial_model.state_dict().items()}
    for name, tensor in model.state_dict().items():
        weight = initial_weights.get(_canonical_name(name))
        if weight is not None and weight.shape == tensor.shape:
            tensor.copy_(weight)
    return model


def _untrained_model(recipe: Recipe, seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(recipe.model)


def _build_vocabulary(model: Model, variant: RecipeVariant, quick: bool) -> None:
    """Add the words of the variant's data to the vocabulary, after those of the variants that it continues."""
    from unveil.train.vocabulary import build_vocabulary

    if PROMPT in model.conditioners:
        if variant.after is not None:
            _build_vocabulary(model, variant.after, quick)
        build_vocabulary(model, data.open(variant.recipe_config(quick).data.build()))


def _canonical_name(name: str) -> str:
    """Return the parameter name without wrappers: DiT's plain designs wrap ViT's block in another module."""
    return name.replace(".plain.own.", ".attention.").replace(".plain.", ".")


def train_and_track(
    variant: RecipeVariant,
    quick: bool,
    seed: int,
    count: int,
    cache: Path,
    on_step: Callable[[], object] = lambda: None,
    initial_model: Model | None = None,
) -> TrainingHistory:
    """Return the training of a variant from the cache; train it and store it there if it is not cached.

    Variants of one seed are trained on the same images in the same order with the same noise.

    Args:
        variant: Variant to train.
        quick: True for the smoke-run form of the recipe.
        seed: Seed of initial weights, order of the data and noise.
        count: Number of samples of each evaluation.
        cache: Cache folder.
        on_step: Function that is called after each step.
        initial_model: Trained model, with this seed, of the variant that this one continues.

    Raises:
        NonFinite: The loss is not finite.
    """
    recipe = variant.recipe_config(quick)
    key = _cache_key(variant, recipe, quick) | {"seed": seed, "samples": count}
    entry = cache_get(cache, key)
    if entry is not None:
        model = _untrained_model(recipe, seed)
        _build_vocabulary(model, variant, quick)
        with contextlib.suppress(RuntimeError, KeyError):  # a file of another layout is trained again
            state_dict = dict(entry.state_dict)
            pixels, losses = state_dict.pop("pixels"), state_dict.pop("losses").tolist()
            model.load_state_dict(state_dict)
            model.eval().requires_grad_(False)
            return TrainingHistory(model, eval_steps(recipe), pixels, losses, entry.cpu_seconds, cached=True)
    start = time.process_time()
    with warnings.catch_warnings(
        action="ignore", category=PromptTruncated
    ):  # raw captions contain numbers outside of every vocabulary
        model = init_recipe_model(variant, seed, quick, initial_model)
        model, pixels, losses = _train(model, recipe, seed, count, on_step)
    cpu_seconds = time.process_time() - start
    evaluations = {"pixels": pixels, "losses": torch.tensor(losses, dtype=torch.float64)}
    cache_put(cache, key, CachedTraining({**model.state_dict(), **evaluations}, cpu_seconds))
    return TrainingHistory(model, eval_steps(recipe), pixels, losses, cpu_seconds, cached=False)


def _cache_key(variant: RecipeVariant, recipe: Recipe, quick: bool) -> dict[str, Any]:
    """Return all settings that determine a training."""
    config = recipe.model_dump(mode="json")
    start = _recipe_config(variant.recipe, variant.start, quick).model_dump(mode="json")
    after = {}
    if variant.after is not None:
        after = {"after": _cache_key(variant.after, variant.after.recipe_config(quick), quick)}
    batching = {"batching": recipe.train.batching} if recipe.train.batching else {}
    return {
        "loop": LOOP,
        "recipe": {name: config[name] for name in sorted(_CACHE_KEYS | {"objective"})},
        "pace": train_schedule(recipe)._asdict(),
        "flip": recipe.train.random_flip,
        "points": eval_steps(recipe),
        "start": {name: start[name] for name in ("network", "condition")},
        **after,
        **batching,
    }


def _train(
    model: Model, recipe: Recipe, seed: int, count: int, on_step: Callable[[], object]
) -> tuple[Model, Tensor, list[float]]:
    """Return the trained model, and samples and validation loss of each evaluation."""
    from unveil.train.batch_preparation import prepare
    from unveil.train.callbacks import ValidationLoss  # imports Lightning, which takes seconds
    from unveil.train.data_order import EpochShuffle, IndexedDataset, collate
    from unveil.train.variable_size import VariableSizeLoss

    keys, batching = list(model.conditioners), recipe.train.batching
    train_data, held_out = (data.open(recipe.data.build(), split) for split in ("train", "held-out"))
    objective: Any = recipe.objective.build(recipe, model.process, recipe.train.batch_size)
    objective = objective if batching is None else VariableSizeLoss(objective, batching)
    dataset = IndexedDataset(train_data, EpochShuffle(len(train_data), seed), recipe.key, keys, batching)
    indices = range(min(recipe.train.batch_size, len(held_out)))  # as in a training run of the recipe
    held_out_batch = collate(list(indices), indices, [held_out[i] for i in indices], recipe.key, keys, batching)
    validation = ValidationLoss(held_out_batch, objective, 0, len(indices))
    cond = eval_cond(model, recipe, count)
    pixels, losses, evaluated = [], [], set(eval_steps(recipe))

    def loss_of(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        batch = dataset.__getitems__(list(numbers))
        x0, condition = prepare(model, batch, streams, step, recipe.train.random_flip)
        loss = objective(model.denoiser, x0, condition, streams, step)
        objective.observe(model.process, loss.t, loss.per_sample)
        return loss

    def evaluate(ema: Model, step: int) -> None:
        on_step()
        if step in evaluated:
            pixels.append(to_pixels(ema.generate(cond=cond, count=count, seed=seed)))
            level_losses = validation.by_level(ema)
            losses.append(sum(level_losses) / len(level_losses))

    name = f"{recipe.name} with {recipe.network.kind}"
    trained_model = train_loop(model, loss_of, train_schedule(recipe), seed, name, evaluate)
    return trained_model, torch.stack(pixels), losses
