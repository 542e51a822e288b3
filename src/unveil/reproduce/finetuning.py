"""A part trained on a base that stays as it is, such as a ControlNet or a LoRA, and kept for other claims."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from unveil import data
from unveil.conditioning.controlnet import steered
from unveil.core.objective import Loss
from unveil.core.rng import Streams
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.reproduce.experiment import Bench
from unveil.reproduce.training_history import pace_of
from unveil.reproduce.variant import LOOP, Kept, descend, keep, kept


class Part(Protocol):
    """The part that trains, whose tensors are kept."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> Any:
        """Copies tensors into it."""
        ...


def tuned(
    bench: Bench, model: Model, recipe: Recipe, seed: int, *, part_of: Callable[[Model], Part], on: Mapping[str, Any]
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
    from unveil.train.data_order import Numbered, Order

    told = recipe.model_dump(mode="json", include={"data", "network", "process", "train"})
    facts = {"loop": LOOP, "what": recipe.name, "recipe": told, "on": on, "seed": seed}
    made, found = copy.deepcopy(model), kept(bench.cache, facts)
    if found is not None:
        part_of(made).load_state_dict(found.tensors)
        bench.spent(found.cpu_seconds, earlier=True)
        return made.eval()
    pictures = data.open(recipe.data.build())
    keys, objective = list(made.conditioners), recipe.objective.build(recipe, made.process, recipe.train.batch)
    numbered = Numbered(pictures, Order(len(pictures), seed), recipe.key, keys)

    def loss_of(numbers: range, streams: Streams, step: int) -> Loss:
        x0, condition = prepare(made, numbered.__getitems__(list(numbers)), streams, step)
        return objective(steered(made.denoiser, made.controls), x0, condition, streams, step)

    begun = time.process_time()
    with bench.console.progress(f"training {recipe.name}, seed {seed}: step", recipe.train.steps) as counter:
        average = descend(made, loss_of, pace_of(recipe), seed, recipe.name, lambda _, step: counter.advance())
    spent = time.process_time() - begun
    keep(bench.cache, facts, Kept(part_of(average).state_dict(), spent))
    bench.spent(spent, earlier=False)
    return average.eval()
