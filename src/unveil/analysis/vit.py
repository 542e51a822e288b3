"""Scaling study of a ViT: accuracy of several sizes on several amounts of training data.

Every network is trained for the same number of steps, so a smaller amount means more epochs. The smaller amounts are
subsets of the larger ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unveil.data.tensor_dataset import ImageTensorDataset, stable_hash
from unveil.errors import RecipeError
from unveil.evaluate.charts import ChartLine, lines_chart
from unveil.evaluate.findings import Figure, Finding
from unveil.evaluate.image_set import ImageDataset, ImageSet, collect_images
from unveil.evaluate.metrics import proportion
from unveil.evaluate.migration import ORDER_KEY, migrate_vit_point
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, to_html
from unveil.io.files import write_atomically
from unveil.model.config import ClassifierRecipe
from unveil.nn.vit import ViTConfig
from unveil.train.classifier import ClassifierConfig, StepProgress, train_classifier

VERSION = 1  # of the training of an arm: raised if its result changes, so that stored points are not reused


class ViTSize(NamedTuple):
    """Number of blocks, and width of their tokens."""

    depth: int
    width: int

    @property
    def name(self) -> str:
        """Form on the command line."""
        return f"{self.depth}x{self.width}"


@dataclass(frozen=True)
class ViTStudySettings:
    """Settings of the study.

    Attributes:
        sizes: Sizes of the network.
        amounts: Numbers of training images, rising.
        steps: Training steps of each network, rounded to whole epochs.
        seeds: Number of networks of each size and amount.

    Raises:
        RecipeError: There is nothing to train, or the amounts do not rise.
    """

    sizes: tuple[ViTSize, ...] = (ViTSize(3, 48), ViTSize(6, 96), ViTSize(8, 144))
    amounts: tuple[int, ...] = (1000, 8000, 60000)
    steps: int = 1200
    seeds: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise RecipeError(
                f"sizes {', '.join(size.name for size in self.sizes)}: write different sizes, such as 6x96"
            )
        if not self.amounts or list(self.amounts) != sorted(set(self.amounts)):
            raise RecipeError(f"amounts {', '.join(map(str, self.amounts))}: write rising numbers, such as 1000,8000")
        if min(self.steps, self.seeds) < 1:
            raise RecipeError(f"steps {self.steps}, seeds {self.seeds}: at least 1")

    @property
    def arms(self) -> list[tuple[ViTSize, int, int]]:
        """Size, amount and seed of every network, small networks first."""
        return [(size, amount, seed) for size in self.sizes for amount in self.amounts for seed in range(self.seeds)]


class ViTPoint(NamedTuple):
    """A trained network.

    Attributes:
        size: Name of its size.
        parameters: Number of parameters.
        amount: Number of training images.
        seed: Seed of the training.
        steps, epochs: Length of the training.
        accuracy, low, high: Accuracy on the held-out images with its 95 % interval.
        by_size: Accuracy by other side lengths of the images in pixels.
        cpu_seconds: CPU seconds of the training.
    """

    size: str
    parameters: int
    amount: int
    seed: int
    steps: int
    epochs: int
    accuracy: float
    low: float
    high: float
    by_size: dict[str, float]
    cpu_seconds: float


def study_vit(
    recipe: ClassifierRecipe,
    settings: ViTStudySettings,
    train: ImageDataset,
    held_out: ImageDataset,
    folder: Path,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[ViTPoint]:
    """Train every network, except those with a stored result.

    Args:
        recipe: Recipe of a ViT with the settings that are not studied, such as the width of a head.
        settings: Settings of the study.
        train: Training images.
        held_out: Held-out images.
        folder: Folder of the results; results of other settings or data are not reused.
        on_progress: Called with the finished training steps and their total.

    Raises:
        RecipeError: The recipe is not that of a ViT, or an amount is larger than the data or smaller than a batch.
    """
    images, test = collect_images(train), collect_images(held_out)
    configs = [_config(recipe, settings, *arm) for arm in settings.arms]
    smallest, largest, available = settings.amounts[0], settings.amounts[-1], len(images.pixels)
    if images.labels is None or not recipe.train.batch_size <= smallest <= largest <= available:
        raise RecipeError(
            f"amounts {smallest} to {largest}: must be between the batch size, {recipe.train.batch_size}, and the "
            f"{available} labelled training images"
        )
    order = sorted(range(available), key=lambda row: stable_hash(f"{ORDER_KEY} {row}"))
    data = {"train": images.sha256(), "held_out": test.sha256()}
    total = sum(_steps(config, amount) for config, (_, amount, _) in zip(configs, settings.arms, strict=True))
    done, points = 0, []
    for config, (size, amount, seed) in zip(configs, settings.arms, strict=True):
        path = folder / f"{size.name}-{amount}-{seed}.json"
        training = {key: value for key, value in vars(config).items() if key not in ("network", "process")}
        arm = {"loop": VERSION, "network": asdict(config.network), "training": training, "data": data, "amount": amount}
        digest = hashlib.sha256(json.dumps(arm, sort_keys=True).encode()).hexdigest()
        point = _load_point(path, digest)
        if point is None:
            subset = images.subset(torch.tensor(order[:amount]))
            point = _train(
                config,
                size,
                subset,
                test,
                lambda progress, done=done: on_progress(done + progress.step, total) if on_progress else None,
            )
            write_atomically(path, json.dumps({"sha256": digest, "point": point._asdict()}, indent=1) + "\n")
        done += _steps(config, amount)
        if on_progress:
            on_progress(done, total)
        points.append(point)
    return points


def record_of(recipe: ClassifierRecipe, settings: ViTStudySettings, points: Sequence[ViTPoint]) -> dict[str, Any]:
    """The results as plain values."""
    return {
        "recipe": recipe.name,
        "data": recipe.data.kind,
        "settings": {
            "sizes": [size.name for size in settings.sizes],
            "amounts": list(settings.amounts),
            "steps": settings.steps,
            "seeds": settings.seeds,
            "training": recipe.train.model_dump(mode="json", exclude={"epochs", "seed"}),
            "network": recipe.network.model_dump(mode="json", exclude={"depth", "hidden_size", "heads"}),
        },
        "points": [point._asdict() for point in points],
    }


def page(record: Mapping[str, Any]) -> str:
    """Accuracy against the amount of data as a chart and as a table, and every network."""
    settings, points = record["settings"], record["points"]
    seeds = f"The mean of {settings['seeds']} networks each. " if settings["seeds"] > 1 else ""
    lines = [
        ChartLine(size, [(amount, 100 * _mean(points, size, amount)) for amount in settings["amounts"]])
        for size in settings["sizes"]
    ]
    chart = lines_chart(lines, "training images", "accuracy on held-out images in %", log_x=True)
    blocks: list[Block] = [
        Paragraph(
            f"A ViT of {len(settings['sizes'])} sizes (blocks x width), each trained for about "
            f"{settings['steps']} steps on {len(settings['amounts'])} amounts of {record['data']}. The smaller "
            "amounts are subsets of the larger ones, and all networks have the same held-out images."
        ),
        Figure(f"Accuracy on held-out images against the number of training images. {seeds}", chart),
        Heading("Numbers"),
        Table(("size", *(f"{amount} images" for amount in settings["amounts"])), list(_grid(record))),
        Heading("Every network"),
        Table(_HEADS, [_row(point) for point in points]),
        Paragraph(
            "95 % intervals are over the held-out images, not over seeds. Other sides: the same images resized, with "
            "interpolated positions.",
            "remark",
        ),
        Heading("Settings"),
        Table(("", ""), [(key, str(value)) for key, value in _flat(record)]),
    ]
    return to_html(Page(f"{record['recipe']}: sizes and amounts of data", blocks))


_HEADS = ("size", "parameters", "images", "seed", "epochs", "accuracy", "at other sides", "CPU seconds")


def _config(
    recipe: ClassifierRecipe, settings: ViTStudySettings, size: ViTSize, amount: int, seed: int
) -> ClassifierConfig:
    network = recipe.network.build()
    if not isinstance(network, ViTConfig):
        raise RecipeError(f"{recipe.name}: a recipe of a {recipe.network.kind}; the study needs a vit")
    head = network.hidden_size // network.heads
    if size.width % head:
        near = max(round(size.width / head), 1) * head
        raise RecipeError(f"size {size.name}: the width must be a multiple of a head's, {head}; nearest {near}")
    network = replace(network, depth=size.depth, hidden_size=size.width, heads=size.width // head)
    passes = max(1, round(settings.steps / max(amount // recipe.train.batch_size, 1)))
    training = recipe.train.model_copy(update={"epochs": passes, "seed": recipe.train.seed + seed})
    return ClassifierConfig(network, **training.model_dump())


def _steps(config: ClassifierConfig, amount: int) -> int:
    return config.epochs * (amount // config.batch_size)


def _train(
    config: ClassifierConfig,
    size: ViTSize,
    images: ImageSet,
    test: ImageSet,
    on_progress: Callable[[StepProgress], object],
) -> ViTPoint:
    names = None if test.classes is None else list(test.classes)
    train, held_out = (ImageTensorDataset(part.pixels, part.labels, names) for part in (images, test))
    trained = train_classifier(config, train, held_out, on_progress)
    count, amount = len(held_out), len(train)
    interval = proportion(torch.arange(count) < round(trained.accuracy * count))
    return ViTPoint(
        size=size.name,
        parameters=sum(weight.numel() for weight in trained.network.parameters()),
        amount=amount,
        seed=config.seed,
        steps=_steps(config, amount),
        epochs=config.epochs,
        accuracy=trained.accuracy,
        low=interval.low,
        high=interval.high,
        by_size={str(side): accuracy for side, accuracy in trained.by_size.items()},
        cpu_seconds=round(trained.cpu_seconds, 1),
    )


def _load_point(path: Path, digest: str) -> ViTPoint | None:
    """The stored result of an arm; None without a readable file of this arm."""
    try:
        stored = migrate_vit_point(json.loads(path.read_text("utf-8")))
        return ViTPoint(**stored["point"]) if stored["sha256"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mean(points: Sequence[Mapping[str, Any]], size: str, amount: int) -> float:
    values = [point["accuracy"] for point in points if (point["size"], point["amount"]) == (size, amount)]
    return sum(values) / len(values)


def _grid(record: Mapping[str, Any]) -> Iterable[list[str]]:
    settings = record["settings"]
    for size in settings["sizes"]:
        yield [size, *(f"{_mean(record['points'], size, amount):.1%}" for amount in settings["amounts"])]


def _row(point: Mapping[str, Any]) -> list[str]:
    return [
        point["size"],
        f"{point['parameters']:,}",
        str(point["amount"]),
        str(point["seed"]),
        str(point["epochs"]),
        Finding("accuracy", point["accuracy"], point["low"], point["high"], form=".2%").text,
        ", ".join(f"{side} px {accuracy:.1%}" for side, accuracy in point["by_size"].items()),
        f"{point['cpu_seconds']:.0f}",
    ]


def _flat(record: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for part in ("network", "training"):
        yield from ((f"{part}.{key}", value) for key, value in record["settings"][part].items())
    yield from record.get("about", {}).items()
