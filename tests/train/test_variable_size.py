"""Training on videos and images of mixed sizes: batched outputs equal single outputs, in steps of N tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil import playground, train
from unveil.conditioning.diffusion_forcing import ContextModes, DiffusionForcingLoss
from unveil.core.denoiser import Denoiser
from unveil.core.flow import RectifiedFlow, SqrtSizeShift
from unveil.core.prediction import flow
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import LogitNormal
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model, build
from unveil.model.config import TrainConfig, load_recipe
from unveil.nn.video_dit import VideoDiT, VideoDiTConfig
from unveil.train.data_order import BatchSampler, EpochShuffle, IndexedDataset, TokenBudget
from unveil.train.diffusion import DiffusionLearner
from unveil.train.variable_size import token_counts

SIZES = [(5, 8, 12), (1, 16, 8), (3, 8, 8), (5, 8, 12), (2, 16, 16)]


class Clips:
    """`count` clips uint8 (3, T, H, W) of sizes in turn."""

    def __init__(self, count: int = 10, sizes: list[tuple[int, int, int]] = SIZES) -> None:
        self.shapes = [sizes[n % len(sizes)] for n in range(count)]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = torch.Generator().manual_seed(index)
        return {"pixels": torch.randint(0, 256, (3, *self.shapes[index]), generator=drawn, dtype=torch.uint8)}

    def sizes(self) -> Tensor:
        return torch.tensor(self.shapes)


def model(pattern: str = "full") -> Model:
    """Of clips, with weights that are not the first ones, whose process depends on the size."""
    torch.manual_seed(0)
    config = VideoDiTConfig(
        3, 3, patch=(1, 4, 4), depth=2, hidden_size=48, heads=4, attention_pattern=pattern, window=(2, 2, 2)
    )  # type: ignore[arg-type]
    network = VideoDiT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Model(Denoiser(network, SqrtSizeShift(RectifiedFlow(), 1.0, 5 * 8 * 8), prediction=flow), (3, 5, 8, 8))


def objective() -> DiffusionForcingLoss:
    return DiffusionForcingLoss(ContextModes(none=1, both_ends=1, random=1, independent=1), time=LogitNormal())


def settings(**changes: Any) -> TrainConfig:
    wanted = {
        "batch_size": 4,
        "batching": "packed",
        "steps": 6,
        "lr": 1e-2,
        "ema_decay": 0.9,
        "precision": "float32",
        "random_flip": True,
    }
    return TrainConfig(**(wanted | {"save_every": 2, "sample_every": 0, "validate_every": 0} | changes))


def gradients(learner: DiffusionLearner, numbered: IndexedDataset, numbers: list[int]) -> tuple[Any, list[Tensor]]:
    learner.model.zero_grad()
    loss = learner.loss(numbered.__getitems__(numbers), SampleRNG(3, numbers), 7, flip=True)
    loss.value.backward()
    return loss, [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("how", ["packed", "buckets"])
@pytest.mark.parametrize("pattern", ["full", "factorised", "windowed"])
def test_together_clips_get_the_loss_and_gradient_that_they_get_alone(how: Any, pattern: str):
    made, items, numbers = model(pattern), Clips(), list(range(5))
    together = IndexedDataset(items, EpochShuffle(10, 0), "pixels", [], how)
    loss, found = gradients(DiffusionLearner(made, objective(), "pixels", how), together, numbers)
    alone = IndexedDataset(items, EpochShuffle(10, 0), "pixels", [])
    wanted: list[Any] = []
    for number in numbers:  # the process for its own size is what `sized` gives, in sampling too
        own = made.resized(tuple(items[alone.order.index(number)]["pixels"].shape[1:]))
        wanted.append(gradients(DiffusionLearner(own, objective(), "pixels"), alone, [number]))
    torch.testing.assert_close(loss.per_sample, torch.cat([one.per_sample for one, _ in wanted]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.value, torch.stack([one.value for one, _ in wanted]).mean(), rtol=1e-5, atol=1e-5)
    assert torch.equal(loss.t, torch.cat([one.t for one, _ in wanted]))
    for place, gradient in enumerate(found):
        mean = torch.stack([each[place] for _, each in wanted]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5 * max(1.0, float(mean.abs().max())))


def test_a_batch_of_one_size_is_what_it_is_stacked():
    made, items, numbers = model(), Clips(6, SIZES[:1]), [0, 1, 2]
    made = made.resized(SIZES[0])
    stacked = gradients(
        DiffusionLearner(made, objective(), "pixels"), IndexedDataset(items, EpochShuffle(6, 0), "pixels", []), numbers
    )
    for how in ("packed", "buckets"):
        listed = IndexedDataset(items, EpochShuffle(6, 0), "pixels", [], how)
        loss, found = gradients(DiffusionLearner(made, objective(), "pixels", how), listed, numbers)
        torch.testing.assert_close(loss.per_sample, stacked[0].per_sample, rtol=1e-5, atol=1e-5)
        for one, two in zip(found, stacked[1], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * max(1.0, float(two.abs().max())))


def test_larger_clips_are_trained_at_more_noise():
    process = model().process
    assert isinstance(process, SqrtSizeShift)
    assert process.resized((3, 5, 8, 8)) == process
    four = process.resized((3, 5, 16, 16))
    assert four.shift == pytest.approx(2)
    assert four.resized((3, 20, 16, 16)).shift == pytest.approx(4)
    assert four.at(0.5).sigma == pytest.approx(2 / 3)


@pytest.mark.parametrize("parts", [1, 3])
def test_steps_of_tokens_take_every_example_once_in_order(parts: int):
    order, each = EpochShuffle(10, seed=2), torch.tensor([7, 1, 3, 12, 5, 2, 9, 4, 4, 6])
    budget = TokenBudget(order, each, 40)
    taken = [[list(budget.examples(step, part, parts)) for part in range(parts)] for step in range(30)]
    numbers = [number for step in taken for part in step for number in part]
    assert numbers == list(range(len(numbers)))
    assert [[n for part in step for n in part] for step in taken] == [list(budget.examples(step)) for step in range(30)]
    assert all(part for step in taken for part in step)
    tokens = [sum(int(each[order.index(n)]) for part in step for n in part) for step in taken]
    assert all(abs(count - 40) < 12 for count in tokens)
    assert sum(tokens) == pytest.approx(30 * 40, abs=12)
    late = TokenBudget(order, each, 40)
    assert list(BatchSampler(17, 19, batch=late, parts=parts)) == [part for step in taken[17:19] for part in step]


def test_a_step_must_hold_the_longest_example_in_each_part():
    budget = TokenBudget(EpochShuffle(2, 0), [3, 8], 16)
    budget.split(2)
    with pytest.raises(RecipeError, match=r"tokens = 16: the longest item has 8 tokens, in 3 part\(s\).*at least 24"):
        budget.split(3)
    with pytest.raises(RecipeError, match="does not tell the sizes"):
        train.fit(model(), [Clips()[0]], objective=objective(), config=settings(tokens=64), run="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_of_tokens_that_stops_and_goes_on_ends_the_same_to_the_bit(tmp_path: Path, workers: int):
    ends = []
    for name, stops in (("whole", []), ("parted", [0.0])):
        for minutes in (*stops, None):
            trained = model()
            limit = {} if minutes is None else {"max_minutes": 1e-9}
            train.fit(
                trained, Clips(), objective=objective(), run=tmp_path / name,
                config=settings(tokens=64, num_workers=workers * len(stops), **limit), held_out=Clips(3),
            )  # fmt: skip
        ends.append(trained.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_how_a_step_of_tokens_is_split_changes_only_rounding(tmp_path: Path):
    ends = []
    for parts in (1, 2):
        trained = model()
        config = settings(tokens=64, grad_accum_steps=parts, steps=3, random_flip=False, validate_every=3)
        train.fit(trained, Clips(), objective=objective(), config=config, run=tmp_path / str(parts), held_out=Clips(3))
        ends.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)  # AdamW makes much of little where gradients are near 0
    assert float((ends[0] - ends[1]).abs().mean()) < 1e-5


def test_lengths_are_tokens_and_sizes_that_do_not_fit_are_named():
    assert token_counts(model(), Clips(5)).tolist() == [30, 8, 12, 30, 32]
    with pytest.raises(ShapeError, match=r"items of 3 frames of 10 x 8 .*: width 10: must be a multiple of 4; nearest"):
        token_counts(model(), Clips(3, [(3, 8, 8), (3, 8, 10)]))


@pytest.mark.parametrize("frames", [(1, 4, 9), (1,)])
def test_the_playground_tells_its_sizes(frames: tuple[int, ...]):
    items = playground.Playground(
        playground.PlaygroundConfig(min_size=16, max_size=32, aspect=2, frames=frames, count=50)
    )
    shapes = [item["pixels"].shape for item in items.__getitems__(list(range(50)))]
    assert items.sizes().tolist() == [[1, *one[1:]] if len(one) == 3 else list(one[1:]) for one in shapes]
    assert len(set(shapes)) > 3


def test_a_recipe_says_what_cannot_be_mixed():
    with pytest.raises(RecipeError, match="tokens = 64: needs batching"):
        load_recipe("playground-video", ["train.batching=null", "train.tokens=64"])
    with pytest.raises(RecipeError, match=r"batching = 'packed'.*cache_latents: false"):
        load_recipe("playground-video", ["train.batching=packed", "train.cache_latents=true"])
    with pytest.raises(RecipeError, match=r"batching = 'packed': for network.kind = video-dit"):
        load_recipe("dit-fashion", ["train.batching=packed"])


def test_a_process_of_a_recipe_is_that_of_the_models_size():
    process = "{kind: root-shifted, process: {kind: rectified-flow}, size: [16, 16, 16]}"
    recipe = load_recipe("playground-video", [f"process={process}"], small=True)
    made = build(recipe.model)  # type: ignore[union-attr]
    assert made.process.shift == pytest.approx(2)  # type: ignore[attr-defined]
    assert made.resized((8, 16, 16)).process.shift == pytest.approx(math.sqrt(0.5))  # type: ignore[attr-defined]
