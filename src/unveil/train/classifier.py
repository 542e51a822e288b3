"""Trains classifiers: those that read samples and give FID its features, and those of noisy pictures that guide.

They see the training part alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from unveil.core.process import Process
from unveil.core.rng import SampleRNG
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate.features import classifier_accuracy
from unveil.evaluate.image_set import ImageDataset, ImageSet, collect_images
from unveil.io.files import refuse_overwrite, sha256, write_atomically
from unveil.io.images import to_unit
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.cnn import Cnn, CnnConfig
from unveil.nn.vit import ViT, ViTConfig
from unveil.types import NoiseLevel, like

TIME, NOISE = 0, 1  # draws of a training step
LEVELS, HELD_OUT = 10, 1000  # tenths of the times, and pictures, that a noisy classifier is judged at
OTHER_SIDES = (-1, 0, 1, 2)  # patches more than it was trained for that a ViT is judged at too


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained: AdamW, a short warm-up, then a cosine to zero.

    Attributes:
        epochs: passes over the training part.
        label_smoothing: probability taken from the true class and spread over all.
        translate: pictures are moved by up to so many pixels either way.
        degrees: and turned by up to so many degrees either way.
        scale: and enlarged or reduced by up to this share.
        sizes: sides in pixels, of which each batch has one, for networks that will read other sizes; none: the
            pictures' own.
        random_flip: and mirrored half of the time.
        precision: of products in training; what is reported is read in float32.
        process: whose levels a noisy classifier reads, each time equally often; None for clean pictures.

    Raises:
        RecipeError: a noisy classifier without process, or a process for one of clean pictures.
    """

    network: CnnConfig | ViTConfig | NoisyClassifierConfig
    epochs: int
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    translate: float = 0.0
    degrees: float = 0.0
    scale: float = 0.0
    sizes: tuple[int, ...] = ()
    random_flip: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0
    process: Process | None = None

    def __post_init__(self) -> None:
        noisy = isinstance(self.network, NoisyClassifierConfig)
        if noisy != (self.process is not None):
            raise RecipeError(
                "a noisy classifier needs the process whose levels it reads: give the diffusion model's"
                if noisy
                else "process: this classifier reads clean pictures; leave process away, or take a noisy-classifier"
            )
        if self.sizes and not isinstance(self.network, ViTConfig):
            raise RecipeError("sizes: only a vit reads pictures of several sizes; leave them away")
        if isinstance(self.network, ViTConfig) and any(side < 1 or side % self.network.patch for side in self.sizes):
            raise RecipeError(f"sizes {list(self.sizes)}: each must be a multiple of the patch, {self.network.patch}")


class ClassifierProgress(NamedTuple):
    """Where training is, after a step."""

    step: int
    steps: int
    loss: float
    seconds: float


class TrainedClassifier(NamedTuple):
    """A classifier, its share of held-out pictures read correctly, and what it took.

    by_level: of a noisy one, the same at each tenth of the times, from the data on; `accuracy` is their mean.
    by_size: of a ViT, the same for pictures brought to other sides in pixels, with interpolated positions.
    """

    network: Cnn | ViT | NoisyClassifier
    accuracy: float
    cpu_seconds: float
    by_level: tuple[float, ...] = ()
    by_size: Mapping[int, float] = MappingProxyType({})


def train_classifier(
    config: ClassifierConfig,
    dataset: ImageDataset,
    held_out: ImageDataset,
    on_progress: Callable[[ClassifierProgress], object] | None = None,
) -> TrainedClassifier:
    """A classifier of `dataset`, the same for the same seed, machine and number of compute threads.

    Args:
        on_progress: called after each step; to stop, let it raise `errors.Cancelled`.

    Raises:
        RecipeError: pictures without labels, or a label that the network has no output for.
        NonFinite: the loss left the finite numbers.
    """
    train, test = _labelled(collect_images(dataset), config), _labelled(collect_images(held_out), config)
    if len(train.pixels) < config.batch_size:
        raise RecipeError(
            f"batch_size = {config.batch_size}: more than the {len(train.pixels)} training pictures; lower it"
        )
    began, spent = time.perf_counter(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _fresh(config)
        optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * (len(train.pixels) // config.batch_size)
        network.train()
        reads = _Noisy(network, config.process, config.seed) if config.process else _clean(network)
        for step, (pixels, labels) in enumerate(_batches(config, train), start=1):
            for group in optimiser.param_groups:
                group["lr"] = config.lr * _schedule(step / steps)
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = reads(pixels, step)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            if not math.isfinite(value := loss.item()):
                raise NonFinite(f"step {step}: the loss is {value}; lower lr, now {config.lr}")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if on_progress:
                on_progress(ClassifierProgress(step, steps, value, time.perf_counter() - began))
    network.eval().requires_grad_(False)
    if not isinstance(network, NoisyClassifier):
        _scale_features(network, train.pixels[:10_000])
    # The shipped weights are halves; what is reported must hold for them.
    network.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()})
    assert test.labels is not None
    if not isinstance(network, NoisyClassifier):
        accuracy = classifier_accuracy(network, test.pixels, test.labels)
        by_size = _accuracy_by_size(network, test) if isinstance(network, ViT) else {}
        return TrainedClassifier(network, accuracy, time.process_time() - spent, by_size=by_size)
    assert config.process is not None
    by_level = tuple(_accuracy_at(network, config.process, test, k) for k in range(LEVELS))
    return TrainedClassifier(network, sum(by_level) / LEVELS, time.process_time() - spent, by_level)


def save_classifier(
    name: str,
    trained: TrainedClassifier,
    config: ClassifierConfig,
    folder: Path,
    *,
    process: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Writes NAME.safetensors in half precision and, last, the card NAME.yaml with its hash.

    Args:
        name: of the recipe, such as classifier-digits.
        process: the recipe's section of a noisy classifier's process.

    Returns:
        The card, which `evaluate.features.classifier` opens, or `guidance_classifier.load_guide` a noisy one's.

    Raises:
        OutputError: a file of that name is there and `force` is not set.
    """
    weights, card = (folder / f"{name}.{end}" for end in ("safetensors", "yaml"))
    for path in (weights, card):
        refuse_overwrite(path, force)
    state = {k: v.contiguous() for k, v in trained.network.state_dict().items() if not k.endswith("tracked")}
    write_atomically(weights, save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}))
    kinds = {CnnConfig: "cnn", ViTConfig: "vit", NoisyClassifierConfig: "noisy-classifier"}
    kind = kinds[type(config.network)]
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config.network).items()
    }
    training = {key: value for key, value in vars(config).items() if key not in ("network", "process")}
    training["sizes"] = list(config.sizes)
    facts = {
        "name": name.removeprefix("classifier-"),
        "network": settings if kind == "cnn" else {"kind": kind, **settings},
        "preprocessing": "uint8 / 127.5 - 1",
        "accuracy": round(trained.accuracy, 4),
        "accuracy_of": "held-out pictures, with these weights",
        "trained_on": "the training part only",
        "training": training,
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "cpu_seconds": round(trained.cpu_seconds),
        "command": f"unveil train {name}",
        "sha256": sha256(weights),
    }
    if trained.by_size:
        facts |= {"accuracy_by_size": {size: round(share, 4) for size, share in trained.by_size.items()}}
    if process is not None:
        facts |= {"process": dict(process), "accuracy_by_level": [round(share, 4) for share in trained.by_level]}
    return write_atomically(card, yaml.safe_dump(facts, sort_keys=False))


def _fresh(config: ClassifierConfig) -> Cnn | ViT | NoisyClassifier:
    if isinstance(config.network, ViTConfig):
        return ViT(config.network)
    network = Cnn(config.network) if isinstance(config.network, CnnConfig) else NoisyClassifier(config.network)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _clean(network: nn.Module) -> Callable[[Tensor, int], Tensor]:
    return lambda pixels, step: network(pixels).logits


@dataclass(frozen=True)
class _Noisy:
    """Reads pictures with the noise of random times. Source: Dhariwal & Nichol 2021, section 4 (arXiv:2105.05233)."""

    network: nn.Module
    process: Process
    seed: int

    def __call__(self, pixels: Tensor, step: int) -> Tensor:
        """The logits of a batch at training step `step`, of times and noises that it alone decides."""
        streams = SampleRNG(self.seed, range(len(pixels)))
        level = self.process.at(self.process.trainable(streams.uniform(step, TIME)))
        x, index = _noised(self.process, level, pixels, streams.normal(pixels.shape[1:], step, NOISE))
        return self.network(x, index)


def _noised(process: Process, level: NoiseLevel, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, H, W) at a level, and the index (B,) of it that the network is given."""
    x = like(level.alpha, pixels) * pixels + like(level.sigma, pixels) * noise
    return x, torch.as_tensor(process.index(level), dtype=torch.float32).expand(len(x))


def _accuracy_at(network: NoisyClassifier, process: Process, test: ImageSet, tenth: int) -> float:
    """The share of the first held-out pictures read correctly with the noise of a tenth of the times."""
    assert test.labels is not None
    pixels, labels = to_unit(test.pixels[:HELD_OUT]), test.labels[:HELD_OUT]
    streams = SampleRNG(0, range(len(pixels)))
    u = (tenth + streams.uniform(tenth, TIME)) / LEVELS
    level = process.at(process.trainable(u))
    x, index = _noised(process, level, pixels, streams.normal(pixels.shape[1:], tenth, NOISE))
    with torch.inference_mode():
        read = torch.cat([network(*pair).argmax(1) for pair in zip(x.split(256), index.split(256), strict=True)])
    return float((read == labels).double().mean())


def _accuracy_by_size(network: ViT, test: ImageSet) -> dict[int, float]:
    """The share of held-out pictures read correctly at other sides: one patch less and up to two more than its own.

    Source: Dosovitskiy et al. 2021, section 3.2 (arXiv:2010.11929), where the network is trained on at that size.
    """
    assert test.labels is not None
    sides = [network.config.side + more for more in OTHER_SIDES if network.config.side + more > 0]
    found: dict[int, float] = {}
    with torch.inference_mode():
        for size in (side * network.config.patch for side in sides):
            read = [network(_resized(part, size)).logits.argmax(1) for part in test.pixels.split(256)]
            found[size] = float((torch.cat(read) == test.labels).double().mean())
    return found


def _resized(pixels: Tensor, size: int) -> Tensor:
    """In [-1, 1], size x size: bilinear, means where they become fewer."""
    return functional.interpolate(to_unit(pixels), (size, size), mode="bilinear", antialias=True)


def _batches(config: ClassifierConfig, train: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    assert train.labels is not None
    for _ in range(config.epochs):
        order = torch.randperm(len(train.pixels))
        for rows in order[: len(order) // config.batch_size * config.batch_size].split(config.batch_size):
            yield _augmented(train.pixels[rows], config), train.labels[rows]


def _augmented(pixels: Tensor, config: ClassifierConfig) -> Tensor:
    """In [-1, 1], each picture mirrored, turned, zoomed and moved by its own amount; bilinear, edges repeated.

    Where there are `sides`, the batch comes in one of them.
    """
    x = to_unit(pixels)
    mirror = 1 - 2 * (torch.rand(len(x)) < 0.5).float() if config.random_flip else torch.ones(len(x))
    if not (config.translate or config.degrees or config.scale or config.sizes):
        return torch.where(mirror[:, None, None, None] < 0, x.flip(-1), x)
    angle = math.radians(config.degrees) * (2 * torch.rand(len(x)) - 1)
    move = config.translate * 2 / x.shape[-1] * (2 * torch.rand(len(x), 2, 1) - 1)  # 2 is the grid's whole width
    turned = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1).reshape(-1, 2, 2)
    if config.scale:
        turned = turned * (1 + config.scale) ** (2 * torch.rand(len(x), 1, 1) - 1)
    size = list(x.shape)
    if config.sizes:
        size[2:] = [config.sizes[int(torch.randint(len(config.sizes), ()))]] * 2
    grid = functional.affine_grid(torch.cat([turned, move], 2), size, align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _scale_features(network: Cnn | ViT, pixels: Tensor) -> None:
    """Divides the features by their spread and makes up for it in the head: the same logits, features of order 1.

    Distances of features then have a size that means something, whatever the network grew to during training.
    """
    with torch.inference_mode():
        features = torch.cat([network(to_unit(part)).features for part in pixels.split(256)])
    network.scale_features(float(features.var(0).mean().sqrt()))


def _schedule(part: float) -> float:
    """Share of the learning rate after this part of the training: up over the first tenth, then a cosine to 0."""
    return part / 0.1 if part < 0.1 else 0.5 * (1 + math.cos(math.pi * (part - 0.1) / 0.9))


def _labelled(pictures: ImageSet, config: ClassifierConfig) -> ImageSet:
    if pictures.labels is None:
        raise RecipeError("a classifier needs pictures with a label each; this data set has none")
    low, high = int(pictures.labels.min()), int(pictures.labels.max())
    if low < 0 or high >= config.network.num_classes:
        raise RecipeError(f"labels {low} to {high}: the network has {config.network.num_classes} classes, 0 and up")
    return pictures
