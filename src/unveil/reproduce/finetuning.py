"""A part trained on a base that stays as it is, such as a ControlNet or a LoRA, and kept for other claims."""

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
    """The part that trains, whose tensors are kept."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> Any:
        """Copies tensors into it."""
        ...


def finetune(
    bench: ExperimentContext,
    model: Model,
    recipe: Recipe,
    seed: int,
    *,
    part_of: Callable[[Model], TrainablePart],
    on: Mapping[str, Any],
) -> Model:
    """A second model whose part was trained as the recipe says, its weights averaged; the one given stays.

    Args:
        model: the base with the untrained part, which alone has gradients.
        recipe: of the part.
        part_of: finds it in a model.
        on: what the base follows from, and all else of the recipe that makes a difference.

    Raises:
        NonFinite: the loss left the finite numbers.
    """
    from unveil.train.batch_preparation import prepare  # with these comes Lightning, which takes seconds
    from unveil.train.data_order import EpochShuffle, IndexedDataset

    told = recipe.model_dump(mode="json", include={"data", "network", "process", "train"})
    facts = {"loop": LOOP, "what": recipe.name, "recipe": told, "on": on, "seed": seed}
    made, found = copy.deepcopy(model), cache_get(bench.cache, facts)
    if found is not None:
        part_of(made).load_state_dict(found.tensors)
        bench.spent(found.cpu_seconds, earlier=True)
        return made.eval()
    pictures = data.open(recipe.data.build())
    keys, objective = list(made.conditioners), recipe.objective.build(recipe, made.process, recipe.train.batch_size)
    numbered = IndexedDataset(pictures, EpochShuffle(len(pictures), seed), recipe.key, keys)

    def loss_of(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        x0, condition = prepare(made, numbered.__getitems__(list(numbers)), streams, step)
        return objective(with_controlnets(made.denoiser, made.controls), x0, condition, streams, step)

    begun = time.process_time()
    with bench.console.progress(f"training {recipe.name}, seed {seed}: step", recipe.train.steps) as counter:
        average = train_loop(
            made, loss_of, train_schedule(recipe), seed, recipe.name, lambda _, step: counter.advance()
        )
    spent = time.process_time() - begun
    cache_put(bench.cache, facts, CachedTraining(part_of(average).state_dict(), spent))
    bench.spent(spent, earlier=False)
    return average.eval()
