"""A bench whose networks nobody has trained: what an experiment does with them is what it does with others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unveil.core.denoiser import Denoiser
from unveil.reproduce.experiment import ExperimentContext
from unveil.reproduce.training_history import RecipeVariant, TrainingHistory, eval_steps, init_recipe_model
from unveil.reproduce.variant import Variant, build, loss_of


def shaken(network: nn.Module, seed: int) -> None:
    """Adds noise to every weight, so that layers that begin at zero say something too."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.02)
    network.eval().requires_grad_(False)


def drawn(size: Sequence[int], draw: torch.Generator) -> Tensor:
    """Images of four patches each, so that features are few and not one per pixel."""
    *others, height, width = size
    patches = torch.randint(256, (*others, 2, 2), generator=draw, dtype=torch.uint8)
    return patches.repeat_interleave(height // 2, -2).repeat_interleave(width // 2, -1)


class Untrained(ExperimentContext):
    """Builds each arm and what it would minimise, and draws what a training would have left behind, by the seed."""

    def network(self, variant: Variant, seed: int) -> Denoiser:
        if (variant, seed) not in self._networks:
            loss_of(variant, self.scale.budget)
            denoiser = build(variant, self.scale.budget, seed)
            shaken(denoiser, seed)
            self._networks[variant, seed] = denoiser
        return self._networks[variant, seed]

    def training_history(self, variant: RecipeVariant, seed: int) -> TrainingHistory:
        if (variant, seed) not in self._histories:
            before = None if variant.after is None else self.training_history(variant.after, seed).model
            recipe = variant.recipe_config(self.scale.quick)
            model = init_recipe_model(variant, seed, self.scale.quick, before)
            recipe.objective.build(recipe, model.process, recipe.train.batch_size)
            shaken(model, seed)
            steps, draw = eval_steps(recipe), torch.Generator().manual_seed(seed)
            pixels = drawn((len(steps), self.scale.samples, *model.shape), draw)
            losses = torch.rand(len(steps), generator=draw).tolist()
            self._histories[variant, seed] = TrainingHistory(model, steps, pixels, losses, 0.0, cached=False)
        return self._histories[variant, seed]
