"""A shipped recipe as an arm: its training followed from point to point, and kept for other claims."""

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
from unveil.nn.meta_device import meta_device
from unveil.playground.dataset import Playground
from unveil.playground.eval_prompts import EvalPrompt, dataset_prompts
from unveil.reproduce.variant import LOOP, CachedTraining, TrainSchedule, cache_get, cache_put, train_loop
from unveil.types import Condition, Raw

PROMPT = "prompt"
# What a training and its points follow from; the rest of a recipe is words, or about other commands.
_PARTS = {"key", "shape", "network", "process", "prediction", "variance", "condition", "autoencoder", "sample", "data"}


@dataclass(frozen=True)
class RecipeVariant:
    """What is trained: a shipped recipe and what differs from it.

    Attributes:
        changes: as on a command line, such as "network.depth=3 network.patch=4".
        start: changes of the arm that it shares its first weights with, wherever those have the same name and size.
        after: the arm whose averaged weights of the same seed it goes on from instead.
    """

    recipe: str
    changes: str = ""
    start: str = ""
    after: RecipeVariant | None = None

    def read(self, quick: bool) -> Recipe:
        """The whole recipe, or its `small` form."""
        return _read(self.recipe, self.changes, quick)


@lru_cache(maxsize=64)
def _read(name: str, changes: str, quick: bool) -> Recipe:
    recipe = load_recipe(name, shlex.split(changes), small=quick)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe {name!r}: trains no diffusion model, so a study cannot follow it")
    return recipe


class TrainingHistory(NamedTuple):
    """An arm's training with one seed.

    Attributes:
        model: with the averaged weights, at the end.
        steps: behind each point.
        pixels: samples drawn at each point as the recipe says, their classes in turn, each from the noise that its
            number has in this seed: uint8 (points, N, C, H, W).
        losses: at each point, on held-out pictures with the same noise at the same levels for every arm and seed.
        cpu_seconds: of the training and its points.
        kept: by an earlier run.
    """

    model: Model
    steps: list[int]
    pixels: Tensor
    losses: list[float]
    cpu_seconds: float
    kept: bool


def train_schedule(recipe: Recipe) -> TrainSchedule:
    """How a recipe trains, in float32 whatever it asks for."""
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
    """The steps after which a training is looked at: every `sample_every`-th, and the last."""
    last, every = recipe.train.steps, recipe.train.sample_every
    return sorted({*range(every, last, every), last}) if every else [last]


def cost_of(recipe: Recipe) -> int:
    """Multiply-adds of the network for one picture, once."""
    with meta_device():
        network: Any = recipe.build_network()
        read = [
            one.max_length + 2 for one in recipe.condition if isinstance(one, LearnedTextSection)
        ]  # with its begin and end
        text = torch.empty(1, read[0], network.config.cross_attention_dim) if read else None
        condition = Condition(vector=torch.empty(1, network.vector_dim), tokens=text) if recipe.condition else None
        return multiply_adds(network, (torch.empty(1, *recipe.latent_shape), torch.empty(1), condition))


def cycle_labels(model: Model, count: int) -> dict[str, list[int]]:
    """What so many samples are asked for."""
    conditioners: Any = model.conditioners
    return {key: [number % one.classes for number in range(count)] for key, one in conditioners.items()}


def eval_prompts_of(model: Model, recipe: Recipe, count: int) -> Raw:
    """What so many samples are asked for: classes in turn, or what held-out clips of the playground show.

    Texts are in the registers of its captions in turn, complete and right.
    """
    if PROMPT not in model.conditioners:
        return cycle_labels(model, count)
    return {PROMPT: [prompt.text for prompt in prompts_of(recipe, count)]}


def prompts_of(recipe: Recipe, count: int) -> list[EvalPrompt]:
    """The prompts of so many samples of a recipe of the playground."""
    world = held_out_videos(recipe)
    return dataset_prompts(world, count, world.config.caption_styles)


def held_out_videos(recipe: Recipe) -> Playground:
    """The held-out clips of a recipe.

    Raises:
        RecipeError: data other than the playground's.
    """
    held_out = data.open(recipe.data.build(), "held-out")
    if not isinstance(held_out, Playground):
        raise RecipeError(f"recipe {recipe.name!r}: a study knows prompts of the playground alone")
    return held_out


def init_recipe_model(arm: RecipeVariant, seed: int, quick: bool, before: Model | None = None) -> Model:
    """The untrained model, with the weights that it shares with others of its seed.

    Args:
        before: that it goes on from, with this one's weights; None: there is none.
    """
    model = _fresh(arm.read(quick), seed)
    _learn_words(model, arm, quick)
    other = _fresh(_read(arm.recipe, arm.start, quick), seed) if before is None else before
    own, others = model.state_dict(), other.state_dict()
    places = {_place(name): tensor for name, tensor in others.items()}
    for name, tensor in own.items():
        other = places.get(_place(name))
        if other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
    return model


def _fresh(recipe: Recipe, seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(recipe.model)


def _learn_words(model: Model, arm: RecipeVariant, quick: bool) -> None:
    """Gives it the words of its data, behind those of the arms that it goes on from."""
    from unveil.train.vocabulary import build_vocabulary

    if PROMPT in model.conditioners:
        if arm.after is not None:
            _learn_words(model, arm.after, quick)
        build_vocabulary(model, data.open(arm.read(quick).data.build()))


def _place(name: str) -> str:
    """Where a weight stands, whatever holds it: DiT's plain designs have ViT's block inside of their own."""
    return name.replace(".plain.own.", ".attention.").replace(".plain.", ".")


def train_and_track(
    arm: RecipeVariant,
    quick: bool,
    seed: int,
    count: int,
    cache: Path,
    on_step: Callable[[], object] = lambda: None,
    before: Model | None = None,
) -> TrainingHistory:
    """The training of an arm, from the cache where it is there, and into it where not.

    Arms of one seed see the same pictures in the same order with the same noise.

    Args:
        quick: the recipe's `small` form.
        count: samples at each point.
        before: the model that it goes on from, of the arm's `after` with this seed.

    Raises:
        NonFinite: the loss left the finite numbers.
    """
    recipe = arm.read(quick)
    facts = _facts(arm, recipe, quick) | {"seed": seed, "samples": count}
    found = cache_get(cache, facts)
    if found is not None:
        model = _fresh(recipe, seed)
        _learn_words(model, arm, quick)
        with contextlib.suppress(RuntimeError, KeyError):  # a file of another layout is trained anew
            rest = dict(found.tensors)
            pixels, losses = rest.pop("pixels"), rest.pop("losses").tolist()
            model.load_state_dict(rest)
            model.eval().requires_grad_(False)
            return TrainingHistory(model, eval_steps(recipe), pixels, losses, found.cpu_seconds, kept=True)
    start = time.process_time()
    with warnings.catch_warnings(
        action="ignore", category=PromptTruncated
    ):  # raw captions hold numbers that no model knows
        model, pixels, losses = _follow(init_recipe_model(arm, seed, quick, before), recipe, seed, count, on_step)
    spent = time.process_time() - start
    points = {"pixels": pixels, "losses": torch.tensor(losses, dtype=torch.float64)}
    cache_put(cache, facts, CachedTraining({**model.state_dict(), **points}, spent))
    return TrainingHistory(model, eval_steps(recipe), pixels, losses, spent, kept=False)


def _facts(arm: RecipeVariant, recipe: Recipe, quick: bool) -> dict[str, Any]:
    """What a training follows from."""
    whole, start = (one.model_dump(mode="json") for one in (recipe, _read(arm.recipe, arm.start, quick)))
    after = {} if arm.after is None else {"after": _facts(arm.after, arm.after.read(quick), quick)}
    batching = {"batching": recipe.train.batching} if recipe.train.batching else {}
    return {
        "loop": LOOP,
        "recipe": {name: whole[name] for name in sorted(_PARTS | {"objective"})},
        "pace": train_schedule(recipe)._asdict(),
        "flip": recipe.train.random_flip,
        "points": eval_steps(recipe),
        "start": {name: start[name] for name in ("network", "condition")},
        **after,
        **batching,
    }


def _follow(
    model: Model, recipe: Recipe, seed: int, count: int, on_step: Callable[[], object]
) -> tuple[Model, Tensor, list[float]]:
    """The trained model, and what it drew and how well it predicted at each point."""
    from unveil.train.batch_preparation import prepare
    from unveil.train.callbacks import ValidationLoss  # with these comes Lightning, which takes seconds
    from unveil.train.data_order import EpochShuffle, IndexedDataset, collate
    from unveil.train.variable_size import VariableSizeLoss

    keys, batching = list(model.conditioners), recipe.train.batching
    pictures, held_out = (data.open(recipe.data.build(), part) for part in ("train", "held-out"))
    objective: Any = recipe.objective.build(recipe, model.process, recipe.train.batch_size)
    objective = objective if batching is None else VariableSizeLoss(objective, batching)
    numbered = IndexedDataset(pictures, EpochShuffle(len(pictures), seed), recipe.key, keys, batching)
    shown = range(min(recipe.train.batch_size, len(held_out)))  # as a run of the recipe does
    judge = ValidationLoss(
        collate(list(shown), shown, [held_out[i] for i in shown], recipe.key, keys, batching), objective, 0, len(shown)
    )  # fmt: skip
    asked = eval_prompts_of(model, recipe, count)
    pixels, losses, points = [], [], set(eval_steps(recipe))

    def loss_of(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        batch = numbered.__getitems__(list(numbers))
        x0, condition = prepare(model, batch, streams, step, recipe.train.random_flip)
        loss = objective(model.denoiser, x0, condition, streams, step)
        objective.observe(model.process, loss.t, loss.per_sample)
        return loss

    def look(average: Model, step: int) -> None:
        on_step()
        if step in points:
            pixels.append(to_pixels(average.generate(cond=asked, count=count, seed=seed)))
            levels = judge.by_level(average)
            losses.append(sum(levels) / len(levels))

    what = f"{recipe.name} with {recipe.network.kind}"
    return train_loop(model, loss_of, train_schedule(recipe), seed, what, look), torch.stack(pixels), losses
