"""A ViT in several sizes, each trained on several amounts of data: how much more data give, and to which size.

Every network takes equally many steps, so with fewer pictures it sees each of them more often. The smaller amounts
are parts of the larger ones.
"""

from __future__ import annotations

import hashlib
import json
import re
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
from unveil.evaluate.page_writer import Block, Heading, Page, Paragraph, Table, to_html
from unveil.io.files import write_atomically
from unveil.model.config import ClassifierRecipe
from unveil.nn.vit import ViTConfig
from unveil.train.classifier import ClassifierConfig, StepProgress, train_classifier

LOOP = 1  # raised when an arm comes to compute something else, so that what was kept is not used any more


class ViTSize(NamedTuple):
    """Blocks, and the width of their tokens."""

    depth: int
    width: int

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"{self.depth}x{self.width}"


@dataclass(frozen=True)
class ViTStudySettings:
    """What is trained.

    Attributes:
        amounts: training pictures, rising.
        steps: of each network, as nearly as whole passes over its pictures allow.
        seeds: networks of each size and amount.

    Raises:
        RecipeError: nothing to train, or amounts that do not rise.
    """

    sizes: tuple[ViTSize, ...] = (ViTSize(3, 48), ViTSize(6, 96), ViTSize(8, 144))
    amounts: tuple[int, ...] = (1000, 8000, 60000)
    steps: int = 1200
    seeds: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or len(set(self.sizes)) < len(self.sizes):
            raise RecipeError(f"sizes {', '.join(one.name for one in self.sizes)}: give different ones, such as 6x96")
        if not self.amounts or list(self.amounts) != sorted(set(self.amounts)):
            raise RecipeError(f"amounts {', '.join(map(str, self.amounts))}: give rising numbers, such as 1000,8000")
        if min(self.steps, self.seeds) < 1:
            raise RecipeError(f"steps {self.steps}, seeds {self.seeds}: at least 1")

    @property
    def arms(self) -> list[tuple[ViTSize, int, int]]:
        """Size, amount and seed of every network, the cheap ones first."""
        return [(size, amount, seed) for size in self.sizes for amount in self.amounts for seed in range(self.seeds)]


class ViTPoint(NamedTuple):
    """A trained network.

    Attributes:
        epochs: passes over its pictures.
        accuracy, low, high: share of the held-out pictures read correctly, with its 95 % interval.
        by_size: the same for pictures of other sides in pixels.
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


def parse_sizes(text: str) -> tuple[ViTSize, ...]:
    """A list such as 3x48,6x96.

    Raises:
        RecipeError: something else.
    """
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part.strip()) for part in text.split(",")]
    if not all(found):
        raise RecipeError(f"sizes {text!r}: write DEPTHxWIDTH with commas between them, such as 3x48,6x96,8x144")
    return tuple(ViTSize(int(one[1]), int(one[2])) for one in found if one)


def study_vit(
    recipe: ClassifierRecipe,
    settings: ViTStudySettings,
    train: ImageDataset,
    held_out: ImageDataset,
    kept: Path,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[ViTPoint]:
    """Trains every network, or takes it from `kept`, where each leaves a file when it is done.

    Args:
        recipe: of a ViT, whose settings all share but for what is studied; heads are as wide as its own.
        kept: a folder; what was trained with other settings or on other pictures is not used.
        on_progress: told the training steps done and the steps in all.

    Raises:
        RecipeError: not a recipe of a ViT, or more pictures asked for than there are, or fewer than a batch.
    """
    pictures, test = collect_images(train), collect_images(held_out)
    configs = [_config(recipe, settings, *arm) for arm in settings.arms]
    if pictures.labels is None or not recipe.train.batch_size <= settings.amounts[0] <= settings.amounts[-1] <= len(
        pictures.pixels
    ):
        raise RecipeError(
            f"amounts {settings.amounts[0]} to {settings.amounts[-1]}: must be between a batch, "
            f"{recipe.train.batch_size}, "
            f"and the {len(pictures.pixels)} labelled training pictures that there are"
        )
    order = sorted(range(len(pictures.pixels)), key=lambda row: stable_hash(f"picture {row}"))
    data = {"train": pictures.sha256(), "held_out": test.sha256()}
    total = sum(_steps(config, amount) for config, (_, amount, _) in zip(configs, settings.arms, strict=True))
    done, points = 0, []
    for config, (size, amount, seed) in zip(configs, settings.arms, strict=True):
        path = kept / f"{size.name}-{amount}-{seed}.json"
        asked = {"loop": LOOP, "network": asdict(config.network), "training": _training(config), "data": data}
        asked["amount"] = amount
        found = _recalled(path, asked)
        if found is None:
            chosen = pictures.subset(torch.tensor(order[:amount]))
            found = _point(config, size, chosen, test, _after(done, total, on_progress))
            write_atomically(path, json.dumps({"asked": _digest(asked), "found": found._asdict()}, indent=1) + "\n")
        done += _steps(config, amount)
        if on_progress:
            on_progress(done, total)
        points.append(found)
    return points


def record_of(recipe: ClassifierRecipe, settings: ViTStudySettings, points: Sequence[ViTPoint]) -> dict[str, Any]:
    """Everything that was found, as plain values."""
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
    """Accuracy against the amount of data, a line per size; the same as a table; and every network."""
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
            "amounts are parts of the larger ones, and the held-out images are the same for all."
        ),
        Figure(f"Accuracy on held-out images against the number of training images. {seeds}", chart),
        Heading("Numbers"),
        Table(("size", *(f"{amount} images" for amount in settings["amounts"])), list(_grid(record))),
        Heading("Every network"),
        Table(_HEADS, [_row(point) for point in points]),
        Paragraph(
            "Intervals are of the held-out images, at 95 %, and not of other seeds. Other sides: the same images "
            "resized to so many pixels, with interpolated positions.",
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
        raise RecipeError(f"{recipe.name}: a recipe of a {recipe.network.kind}; sizes are studied of a vit")
    head = network.hidden_size // network.heads
    if size.width % head:
        near = max(round(size.width / head), 1) * head
        raise RecipeError(f"size {size.name}: the width must be a multiple of a head's, {head}; nearest {near}")
    network = replace(network, depth=size.depth, hidden_size=size.width, heads=size.width // head)
    passes = max(1, round(settings.steps / max(amount // recipe.train.batch_size, 1)))
    own = recipe.train.model_copy(update={"epochs": passes, "seed": recipe.train.seed + seed})
    return ClassifierConfig(network, **own.model_dump())


def _steps(config: ClassifierConfig, amount: int) -> int:
    return config.epochs * (amount // config.batch_size)


def _point(
    config: ClassifierConfig,
    size: ViTSize,
    chosen: ImageSet,
    test: ImageSet,
    on_progress: Callable[[StepProgress], object],
) -> ViTPoint:
    names = None if test.classes is None else list(test.classes)
    parts = [ImageTensorDataset(one.pixels, one.labels, names) for one in (chosen, test)]
    trained = train_classifier(config, parts[0], parts[1], on_progress)
    count, amount = len(parts[1]), len(parts[0])
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
        by_size={str(side): found for side, found in trained.by_size.items()},
        cpu_seconds=round(trained.cpu_seconds, 1),
    )


def _after(done: int, total: int, told: Callable[[int, int], object] | None) -> Callable[[StepProgress], object]:
    return lambda progress: told(done + progress.step, total) if told else None


def _training(config: ClassifierConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if key not in ("network", "process")}


def _digest(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _recalled(path: Path, asked: Mapping[str, Any]) -> ViTPoint | None:
    """What an earlier run left of exactly this; None where it left nothing of it, or nothing readable."""
    try:
        left = json.loads(path.read_text("utf-8"))
        return ViTPoint(**left["found"]) if left["asked"] == _digest(asked) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mean(points: Sequence[Mapping[str, Any]], size: str, amount: int) -> float:
    values = [one["accuracy"] for one in points if (one["size"], one["amount"]) == (size, amount)]
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
        ", ".join(f"{side} px {found:.1%}" for side, found in point["by_size"].items()),
        f"{point['cpu_seconds']:.0f}",
    ]


def _flat(record: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for part in ("network", "training"):
        yield from ((f"{part}.{key}", value) for key, value in record["settings"][part].items())
    yield from record.get("about", {}).items()
