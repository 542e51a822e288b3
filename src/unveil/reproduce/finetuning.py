"""Training of a ControlNet or a LoRA on a frozen base model, cached for all claims."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from unveil import data
from unveil.conditioning.controlnet import with_controlnets
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.reproduce.experiment import ExperimentContext
from unveil.reproduce.training_history import train_schedule
from unveil.reproduce.variant import LOOP, CachedTraining, cache_get, cache_put, train_loop


class TrainablePart(Protocol):
    """Trainable part of a model."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> Any:
        """Copy tensors into the part."""
        ...


def finetune(
    context: ExperimentContext,
    model: Model,
    recipe: Recipe,
    seed: int,
    *,
    part_of: Callable[[Model], TrainablePart],
    on: Mapping[str, Any],
) -> Model:
    """Return a copy of a model whose trainable part has the EMA weights of a training with a recipe.

    Args:
        context: Context of the experiment.
        model: Base model with the untrained part, which alone has gradients. It is not changed.
        recipe: Recipe of the part.
        seed: Seed of the order of the data and of the noise.
        part_of: Function that returns the part of a model.
        on: Settings that determine the base model, and all other settings that determine the result.

    Raises:
        NonFinite: The loss is not finite.
    """
    from unveil.train.batch_preparation import prepare  # imports Lightning, which takes seconds
    from unveil.train.data_order import EpochShuffle, IndexedDataset

    config = recipe.model_dump(mode="json", include={"data", "network", "process", "train"})
    key = {"loop": LOOP, "what": recipe.name, "recipe": config, "on": on, "seed": seed}
    finetuned, entry = copy.deepcopy(model), cache_get(context.cache, key)
    if entry is not None:
        part_of(finetuned).load_state_dict(entry.state_dict)
        context.add_training_time(entry.cpu_seconds, cached=True)
        return finetuned.eval()
    images = data.open(recipe.data.build())
    keys = list(finetuned.conditioners)
    objective = recipe.objective.build(recipe, finetuned.process, recipe.train.batch_size)
    dataset = IndexedDataset(images, EpochShuffle(len(images), seed), recipe.key, keys)

    def loss_of(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        x0, condition = prepare(finetuned, dataset.__getitems__(list(numbers)), streams, step)
        return objective(with_controlnets(finetuned.denoiser, finetuned.controls), x0, condition, streams, step)

    start = time.process_time()
    with context.console.progress(f"training {recipe.name}, seed {seed}: step", recipe.train.steps) as counter:
        ema = train_loop(
            finetuned, loss_of, train_schedule(recipe), seed, recipe.name, lambda _, step: counter.advance()
        )
    cpu_seconds = time.process_time() - start
    cache_put(context.cache, key, CachedTraining(part_of(ema).state_dict(), cpu_seconds))
    context.add_training_time(cpu_seconds, cached=False)
    return ema.eval()
