"""Training of classifiers: of clean images, whose features are used for FID, and of noisy images, for guidance.

Only the training split is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
import yaml
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from unveil.core.objective import LossOutput
from unveil.core.process import Process
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError
from unveil.evaluate.features import classifier_accuracy
from unveil.evaluate.image_set import ImageDataset, ImageSet, collect_images
from unveil.io.files import read_tensors, refuse_overwrite, sha256, tensor_bytes, write_atomically
from unveil.io.images import to_unit
from unveil.model import checkpoint_store, model_folder
from unveil.model.config import TrainConfig
from unveil.model.config.sections import validate
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig
from unveil.nn.cnn import Cnn, CnnConfig
from unveil.nn.vit import ViT, ViTConfig
from unveil.train.data_order import Batch, BatchPart, ExampleNumbers, IndexableItems, ShuffledRows
from unveil.train.learner import AdamWOptions, Learner
from unveil.train.lr_schedule import Schedule
from unveil.train.trainer import learn, learn_in_memory
from unveil.types import NoiseLevel, like

if TYPE_CHECKING:  # with it comes Lightning, which takes seconds
    from unveil.train.lightning_module import StepOutput

FILE = "classifier.safetensors"  # of a checkpoint
TIME, NOISE = 0, 1  # draws of a training step
LEVELS, HELD_OUT = 10, 1000  # tenths of the times, and images, that a noisy classifier is judged at
OTHER_SIDES = (-1, 0, 1, 2)  # patches more than it was trained for that a ViT is judged at too
RUN_ONLY = ("save_every", "max_minutes")  # settings that change no number


@dataclass(frozen=True)
class ClassifierConfig:
    """Training of a classifier: AdamW, a short warm-up, then a cosine to zero.

    Attributes:
        epochs: Number of passes over the training split.
        label_smoothing: Probability taken from the true class and spread over all classes.
        translate: Maximum shift of images in pixels, in either direction.
        degrees: Maximum rotation of images in degrees, in either direction.
        scale: Maximum share by which images are enlarged or reduced.
        sizes: Sides in pixels, one of which each batch has, for networks that will take other sizes; by default the
            size of the images.
        random_flip: True if images are mirrored left-right with probability 1/2.
        precision: Precision of products in training; reported results are computed in float32.
        process: Noise process of a noisy classifier, whose times are sampled uniformly; None: clean images.
        ema_decay: Decay of the EMA of the weights, per step; 0: the result is the last weights.
        grad_accum_steps: Number of parts that a batch is split into, to save memory.
        save_every: Number of steps between the checkpoints of a run folder.
        max_minutes: Wall time in minutes after which training in a run folder stops; it can be resumed.

    Raises:
        RecipeError: A noisy classifier has no process, or a classifier of clean images has one.
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
    ema_decay: float = 0.0
    grad_accum_steps: int = 1
    save_every: int = 1000
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        noisy = isinstance(self.network, NoisyClassifierConfig)
        if noisy != (self.process is not None):
            raise RecipeError(
                "a noisy classifier needs the process whose levels it reads: give the diffusion model's"
                if noisy
                else "process: this classifier reads clean images; leave process out, or take a noisy-classifier"
            )
        if self.sizes and not isinstance(self.network, ViTConfig):
            raise RecipeError("sizes: only a vit reads images of several sizes; leave them out")
        if isinstance(self.network, ViTConfig) and any(side < 1 or side % self.network.patch for side in self.sizes):
            raise RecipeError(f"sizes {list(self.sizes)}: each must be a multiple of the patch, {self.network.patch}")

    def loop(self, images: int) -> TrainConfig:
        """Return the settings of the training loop, for a number of training images.

        Raises:
            RecipeError: A setting is invalid, such as a batch that cannot be split.
        """
        settings = {
            "batch_size": self.batch_size,
            "steps": self.epochs * (images // self.batch_size),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "ema_decay": self.ema_decay,
            "grad_clip_norm": 0.0,
            "grad_accum_steps": self.grad_accum_steps,
            "precision": self.precision,
            "seed": self.seed,
            "save_every": self.save_every,
            "sample_every": 0,
            "validate_every": 0,
            "max_minutes": self.max_minutes,
            "nonfinite_limit": 0,
        }
        return validate(TrainConfig, settings, "train")


class StepProgress(NamedTuple):
    """Progress of training after a step."""

    step: int
    steps: int
    loss: float
    seconds: float


class TrainedClassifier(NamedTuple):
    """Classifier with its accuracy on held-out images and the cost of its training.

    Attributes:
        network: Trained network.
        accuracy: Share of held-out images that are classified correctly; the mean of `by_level` of a noisy classifier.
        cpu_seconds: CPU time of the training.
        by_level: Accuracy of a noisy classifier at each tenth of the times, from the data on.
        by_size: Accuracy of a ViT on images resized to other sides in pixels, with interpolated positions.
    """

    network: Cnn | ViT | NoisyClassifier
    accuracy: float
    cpu_seconds: float
    by_level: tuple[float, ...] = ()
    by_size: Mapping[int, float] = MappingProxyType({})


class ClassifierLearner(Learner):
    """Learner of a classifier, whose training images are in memory.

    Weights, order of the images, augmentations and dropout are drawn from one generator.

    Args:
        images: Training images with their labels.
    """

    adamw = AdamWOptions(fused=False)

    def __init__(self, config: ClassifierConfig, images: ImageSet) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            super().__init__(_fresh(config))
            self.order = ShuffledRows(len(images.pixels), config.batch_size)
        self.config = config
        self.images = images
        self.shape = tuple(images.pixels.shape[1:])
        self._batch: tuple[int, Tensor, Tensor] | None = None  # of a step: its number, pixels and labels

    def dataset(self, items: IndexableItems, config: TrainConfig) -> Dataset[Batch]:
        """Data set of example numbers only."""
        return ExampleNumbers()

    def schedule(self, config: TrainConfig) -> Schedule:
        """Learning rate schedule: a rise over the first tenth of the training, then a cosine to 0."""
        return lambda step: _schedule((step + 1) / config.steps)

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Cross-entropy of the images' labels."""
        part = self.order.part(batch.numbers)
        pixels, labels = (whole[part.positions] for whole in self._augmented_batch(step))
        with self.order.forward_pass(part):
            logits = self._logits(pixels, step, part).float()
        smoothing = self.config.label_smoothing
        value = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        each = functional.cross_entropy(logits.detach(), labels, label_smoothing=smoothing, reduction="none")
        return LossOutput(value, each, torch.full((len(labels),), math.nan, dtype=torch.float64), {})

    def _augmented_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1] and labels of a step's batch, the same for all of its parts."""
        if self._batch is None or self._batch[0] != step:
            assert self.images.labels is not None
            with self.order.drawing(), torch.autocast(self.device.type, enabled=False):
                rows = self.order.draw()
                pixels = _augmented(self.images.pixels[rows], self.config)
            self._batch = step, pixels, self.images.labels[rows]
        return self._batch[1:]

    def _logits(self, pixels: Tensor, step: int, part: BatchPart) -> Tensor:
        """Logits of images; for a noisy classifier with noise, whose times depend only on step and position.

        Source: Dhariwal & Nichol 2021, section 4 (arXiv:2105.05233).
        """
        process = self.config.process
        if process is None:
            return self.model(pixels).logits
        streams = SampleRNG(self.config.seed, range(part.positions.start, part.positions.stop))
        level = process.at(process.trainable(streams.uniform(step + 1, TIME)))
        x, index = _noised(process, level, pixels, streams.normal(pixels.shape[1:], step + 1, NOISE))
        return self.model(x, index)

    def state(self) -> dict[str, Tensor]:
        """State of the order of the images and of the generator."""
        return self.order.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the order of the images and the generator.

        Raises:
            WeightsError: A tensor is missing.
        """
        self.order.restore(state)
        self._batch = None

    def ema_tensors(self, average: Any) -> dict[str, dict[str, Tensor]]:
        """Tensors of the network by file name."""
        return {FILE: dict(average.state_dict())}

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the network with the trained weights, and its card."""
        return {FILE: dict(self.model.state_dict()), "card.md": self.card(about)}

    def load(self, model: Any, folder: Path, which: model_folder.WeightSet) -> None:
        """Copy the weights of a folder into the network.

        Raises:
            WeightsError: The weights are those of another network.
        """
        path = model_folder.weights_of(folder, FILE, which)
        tensors = read_tensors(path)
        model_folder.check_keys(path, model, tensors)
        model.load_state_dict(tensors)

    def card(self, about: str) -> str:
        """Card with the network's name and size."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"# A classifier\n\n{type(self.model).__name__}, {parameters:,} parameters\n\n{about}\n"


def train_classifier(
    config: ClassifierConfig,
    dataset: ImageDataset,
    held_out: ImageDataset,
    on_progress: Callable[[StepProgress], object] | None = None,
) -> TrainedClassifier:
    """Train a classifier on `dataset`; the same seed, machine and number of threads give the same weights.

    Args:
        on_progress: Function called after each step; it may raise `errors.Cancelled` to stop.

    Raises:
        RecipeError: The images have no labels, or the network has no output for a label.
        NonFinite: The loss is not finite.
    """
    begun, spent = time.perf_counter(), time.process_time()
    learner, test = _prepared(config, dataset, held_out)
    loop = config.loop(len(learner.images.pixels))

    def report(step: StepOutput) -> None:
        if on_progress:
            on_progress(StepProgress(step.step, loop.steps, step.loss, time.perf_counter() - begun))

    learn_in_memory(learner, cast(Any, dataset), config=loop, on_step=report)
    return _finished(learner, test, spent)


def fit_classifier(
    config: ClassifierConfig,
    dataset: ImageDataset,
    held_out: ImageDataset,
    *,
    run: Path | str,
    recorded: Mapping[str, Any],
) -> TrainedClassifier:
    """Train a classifier in a run folder, or resume the run in it, by one process or by those of `torchrun`.

    Args:
        run: Run folder, which is new or contains a run of the same recipe.
        recorded: Recipe as plain values.

    Raises:
        RecipeError: The images have no labels, the network has no output for a label, or the run is of another recipe.
        OutputError, NonFinite, OutOfResources, Cancelled: Training stops, as in `train.fit`.
    """
    spent = time.process_time()
    learner, test = _prepared(config, dataset, held_out)
    loop = config.loop(len(learner.images.pixels))
    learn(learner, cast(Any, dataset), config=loop, run=run, held_out=None, recorded=recorded)
    return _finished(learner, test, spent)


def _prepared(
    config: ClassifierConfig, dataset: ImageDataset, held_out: ImageDataset
) -> tuple[ClassifierLearner, ImageSet]:
    """Create the learner of checked images, and the held-out images."""
    train, test = _labelled(collect_images(dataset), config), _labelled(collect_images(held_out), config)
    if len(train.pixels) < config.batch_size:
        raise RecipeError(
            f"batch_size = {config.batch_size}: more than the {len(train.pixels)} training images; lower it"
        )
    return ClassifierLearner(config, train), test


def _finished(learner: ClassifierLearner, test: ImageSet, spent: float) -> TrainedClassifier:
    """Scale the features to order 1, round the weights to half precision, and measure the accuracy."""
    network: Cnn | ViT | NoisyClassifier = learner.model.eval().requires_grad_(False)
    if not isinstance(network, NoisyClassifier):
        _scale_features(network, learner.images.pixels[:10_000])
    # The saved weights are halves; what is reported must hold for them.
    network.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()})
    assert test.labels is not None
    if not isinstance(network, NoisyClassifier):
        accuracy = classifier_accuracy(network, test.pixels, test.labels)
        by_size = _accuracy_by_size(network, test) if isinstance(network, ViT) else {}
        return TrainedClassifier(network, accuracy, time.process_time() - spent, by_size=by_size)
    process = learner.config.process
    assert process is not None
    by_level = tuple(_accuracy_at(network, process, test, tenth) for tenth in range(LEVELS))
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
    """Write NAME.safetensors in half precision and, last, the card NAME.yaml with its hash.

    Args:
        name: Name of the recipe, such as classifier-digits.
        process: Section of the recipe for a noisy classifier's process.
        force: True if existing files are replaced.

    Returns:
        Path of the card, for `evaluate.features.classifier`, or of a noisy classifier for
        `guidance_classifier.load_guide`.

    Raises:
        OutputError: A file of that name exists, and `force` is not set.
    """
    weights, card = (folder / f"{name}.{end}" for end in ("safetensors", "yaml"))
    for path in (weights, card):
        refuse_overwrite(path, force)
    state = {k: v for k, v in trained.network.state_dict().items() if not k.endswith("tracked")}
    write_atomically(weights, tensor_bytes({k: v.half() if v.is_floating_point() else v for k, v in state.items()}))
    kinds = {CnnConfig: "cnn", ViTConfig: "vit", NoisyClassifierConfig: "noisy-classifier"}
    kind = kinds[type(config.network)]
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config.network).items()
    }
    training = {key: value for key, value in vars(config).items() if key not in ("network", "process", *RUN_ONLY)}
    training["sizes"] = list(config.sizes)
    facts = {
        "name": name.removeprefix("classifier-"),
        "network": settings if kind == "cnn" else {"kind": kind, **settings},
        "preprocessing": "uint8 / 127.5 - 1",
        "accuracy": round(trained.accuracy, 4),
        "accuracy_of": "held-out images, with these weights",
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


def _noised(process: Process, level: NoiseLevel, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) at a noise level, and the time input (B,) of the network."""
    x = like(level.alpha, pixels) * pixels + like(level.sigma, pixels) * noise
    return x, torch.as_tensor(process.timestep(level), dtype=torch.float32).expand(len(x))


def _accuracy_at(network: NoisyClassifier, process: Process, test: ImageSet, tenth: int) -> float:
    """Accuracy on the first held-out images with noise of the given tenth of the times."""
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
    """Accuracy on held-out images at other sides, from one patch less to two more than the network's own.

    Source: Dosovitskiy et al. 2021, section 3.2 (arXiv:2010.11929), where the network is also fine-tuned at that size.
    """
    assert test.labels is not None
    sides = [network.config.side + more for more in OTHER_SIDES if network.config.side + more > 0]
    by_size: dict[int, float] = {}
    with torch.inference_mode():
        for size in (side * network.config.patch for side in sides):
            read = [network(_resized(part, size)).logits.argmax(1) for part in test.pixels.split(256)]
            by_size[size] = float((torch.cat(read) == test.labels).double().mean())
    return by_size


def _resized(pixels: Tensor, size: int) -> Tensor:
    """Resize images to size x size in [-1, 1], bilinearly with antialiasing."""
    return functional.interpolate(to_unit(pixels), (size, size), mode="bilinear", antialias=True)


def _augmented(pixels: Tensor, config: ClassifierConfig) -> Tensor:
    """Augment images, each mirrored, rotated, scaled and shifted at random, in [-1, 1]; bilinear, edges repeated.

    With `sizes`, the whole batch is resampled to one of them.
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
    """Divide the features by their spread and multiply the head by it, which keeps the logits.

    Distances of features then have a comparable scale, whatever their scale is after training.
    """
    with torch.inference_mode():
        features = torch.cat([network(to_unit(part)).features for part in pixels.split(256)])
    network.scale_features(float(features.var(0).mean().sqrt()))


def _schedule(part: float) -> float:
    """Factor on the learning rate after a part of the training: rising over the first tenth, then a cosine to 0."""
    return part / 0.1 if part < 0.1 else 0.5 * (1 + math.cos(math.pi * (part - 0.1) / 0.9))


def _labelled(images: ImageSet, config: ClassifierConfig) -> ImageSet:
    if images.labels is None:
        raise RecipeError("a classifier needs images with a label each; this data set has none")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= config.network.num_classes:
        raise RecipeError(f"labels {low} to {high}: the network has {config.network.num_classes} classes, 0 and up")
    return images
