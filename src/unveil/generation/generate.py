"""Pictures from a model, each with a record from which it can be made again exactly."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.guidance_classifier import GuidanceClassifier
from unveil.conditioning.class_label import Label
from unveil.core import guidance
from unveil.core.samplers.ancestral import Shift
from unveil.errors import DataError, RecipeError, WeightsError, did_you_mean
from unveil.generation.task_spec import PLAIN, TaskSpec, hints
from unveil.generation.trajectory import Preview, TrajectoryRecorder
from unveil.io.images import to_pixels
from unveil.model import Model, checkpoint_store
from unveil.model.config import SampleConfig
from unveil.model.migration import migrate_settings
from unveil.model.shapes import check_size
from unveil.types import is_valid_utf8

LABEL = "label"  # the key of what a classifier guides towards
PROMPT = "prompt"  # the key of a text condition
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Source(NamedTuple):
    """Which model made a picture: its name, and the hash of its files."""

    name: str
    sha256: str


# (steps made, steps in all or 0)
OnStep = Callable[[int, int], object]
UNNAMED = Source("unnamed", "")


class ClassifierGuidance(NamedTuple):
    """Guidance by a noisy classifier towards the labels of a request; scale 1 is Bayes' rule."""

    classifier: GuidanceClassifier
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        given: the condition by key: one value for all pictures, or one each.
        seed: of the set; or one for each picture.
        first: the number of its first sample, and `count` how many are made. With a seed for each picture, the
            number that all of them have.
        batch: at a time; the last one may be smaller.
        sampling: changes of the model's own settings, by the names of `SampleConfig.flat`.
        negative: a condition to go away from, as `given`.
        size: height and width in pixels, of a clip its frames before them; none: the model's own, or that of what
            is edited.
        guided: by a noisy classifier, towards given["label"], which the model itself need not take.
        compiled: whether torch compiles the network before.
        asked: what was typed where `given` is told in other words, likewise; for the record alone.
    """

    given: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int | tuple[int, ...] = 0
    first: int = 0
    count: int = 1
    batch: int = 16
    sampling: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    guided: ClassifierGuidance | None = None
    compiled: bool = False
    negative: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    size: tuple[int, ...] | None = None
    asked: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("count", 1), ("batch", 1), ("first", 0)):
            if getattr(self, name) < low:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least {low}")
        if (least := min((self.seed,) if isinstance(self.seed, int) else self.seed, default=0)) < 0:
            raise RecipeError(f"seed = {least}: at least 0")
        if not isinstance(self.seed, int) and len(self.seed) != self.count:
            raise RecipeError(f"seed: {len(self.seed)} for {self.count} pictures; give one, or one for each")
        if self.dtype not in DTYPES:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}{did_you_mean(self.dtype, [*DTYPES])}"
            )
        for key, values in [*self.given.items(), *self.negative.items()]:
            for one in values:
                if isinstance(one, str) and not is_valid_utf8(one):
                    raise RecipeError(f"{key} {one!r}: holds half a character, which is no text; type it anew")

    def part(self, start: int, stop: int) -> Request:
        """The request of these rows alone: their seeds, numbers and conditions are those of the whole."""
        given, negative, asked = (
            {key: _each(key, values, self.count)[start:stop] for key, values in one.items()}
            for one in (self.given, self.negative, self.asked)
        )
        rows = {"given": given, "negative": negative, "asked": asked, "count": stop - start}
        if isinstance(self.seed, int):
            return replace(self, **rows, first=self.first + start)
        return replace(self, **rows, seed=self.seed[start:stop])


class GeneratedSample(NamedTuple):
    """A sample, what it is as pixels, and how it was made; of a clip (C, T, H, W) in the place of (C, H, W)."""

    sample: Tensor  # (C, H, W) in [-1, 1]
    pixels: Tensor  # uint8 (C, H, W)
    facts: dict[str, Any]
    frames: Tensor  # (F, C, H, W): the state on the way, noise first; empty unless asked for


def generate(
    model: Model,
    request: Request,
    source: Source = UNNAMED,
    edit: TaskSpec = PLAIN,
    *,
    frames: int = 0,
    on_step: OnStep | None = None,
    preview: Preview | None = None,
) -> Iterator[GeneratedSample]:
    """The pictures of a request, batch by batch.

    Args:
        source: which model it is, for the record.
        edit: what is made of generation: an edit of pictures, a path between two samples.
        frames: how many states on the way are kept for each.
        on_step: called after every step with the number of those made, and of all, 0 where that is not known; may
            raise `errors.Cancelled`.
        preview: shows the estimate on the way.

    Raises:
        RecipeError: a setting that cannot work, such as a size that the network does not take.
    """
    sampling = model.sampling.changed(request.sampling).flat()
    model.precision = DTYPES[request.dtype]
    if request.compiled:
        model.compile_network()
    size = request.size or edit.size
    if size is not None:
        check_size(model, size)
    about = {"model": source._asdict(), **sampling, **_about(model, request)}
    batches = math.ceil(request.count / request.batch)
    for number in range(batches):
        here = slice(number * request.batch, min((number + 1) * request.batch, request.count))
        part = request.part(here.start, here.stop)
        film = TrajectoryRecorder(model, frames, on_step and part_of(on_step, number, batches), preview)
        samples = _drawn(model, replace(part, sampling=sampling, size=size), edit, here, film)
        pixels, shots = edit.finish(to_pixels(samples), here), film.shots(samples)
        batch = {**_batch(part), **edit.of_batch(here)}
        for row in range(part.count):
            facts = {**about, **_facts(part, row), **edit.of_picture(here.start + row), "place": row, "batch": batch}
            yield GeneratedSample(samples[row], pixels[row], facts, shots[row])


def repeat(
    model: Model,
    facts: Mapping[str, Any],
    source: Source,
    on_step: OnStep | None = None,
    *,
    classifier: GuidanceClassifier | None = None,
    edit: TaskSpec = PLAIN,
) -> GeneratedSample:
    """The same picture again, from its record: its whole batch is drawn, since kernels differ by batch.

    Args:
        classifier: that guided it, if one did.
        edit: Edit of its batch, made of the metadata and the inputs that they name, see
            `tasks.image_run.recorded_spec`.

    Raises:
        DataError: the record lacks something.
        WeightsError: another model than the record names.
    """
    try:
        made_by = facts["model"]["sha256"]
        request = replace(recorded_request(facts), guided=guided_by(facts.get("classifier"), classifier))
        told = [(str(one["sha256"]), float(one["weight"])) for one in facts.get("loras", [])]
        steered = [_identity(one) for one in facts.get("controls", [])]
        place = int(facts["place"]) if "place" in facts else int(facts["sample"]) - request.first
        threads = int(facts["threads"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, RecipeError):
            raise
        raise DataError(f"the picture's record lacks {problem}; it was not written by this program") from problem
    if not checkpoint_store.is_same(str(made_by), source.sha256):
        raise WeightsError(
            f"the picture was made by {facts['model'].get('name')!r} (sha256 {str(made_by)[:12]}...), "
            f"this is {source.name!r} ({source.sha256[:12]}...); give the model that made it"
        )
    _same_additions(model, told, steered)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))  # sums are split by thread
    try:
        return list(generate(model, request, source, edit, on_step=on_step))[place]
    finally:
        torch.set_num_threads(before)


def recorded_request(facts: Mapping[str, Any]) -> Request:
    """The request for the whole batch of some metadata, without the classifier.

    Raises:
        KeyError, IndexError, TypeError, ValueError, AttributeError: The metadata lack something.
    """
    batch = facts["batch"]
    return Request(
        given={str(key): list(values) for key, values in batch["given"].items()},
        negative={str(key): list(values) for key, values in batch.get("negative", {}).items()},
        asked={str(key): list(values) for key, values in batch.get("asked", {}).items()},
        seed=tuple(map(int, batch["seeds"])) if "seeds" in batch else int(facts["seed"]),
        first=int(batch["first"]),
        count=int(batch["count"]),
        batch=int(batch["count"]),
        sampling=sampling_of(facts),
        dtype=str(facts["dtype"]),
        compiled=bool(facts.get("compiled", False)),
        size=tuple(map(int, facts["size"])) if "size" in facts else None,
    )


def part_of(on_step: OnStep, number: int, count: int) -> OnStep:
    """Steps of one batch of several, as steps of all."""
    return lambda done, total: on_step(number * total + done, count * total)


def additions(model: Model) -> dict[str, Any]:
    """What a record says of the LoRAs and ControlNets that are on a model."""
    facts: dict[str, Any] = {}
    if model.lora_infos:
        facts["loras"] = [one._asdict() for one in model.lora_infos]
    if model.controlnet_infos and model.controls is not None:
        facts["controls"] = [one.record() for one in model.controlnet_infos]
        facts["control_mode"] = model.controls.mode
    return facts


def sampling_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of sampling in a record, by the names of `SampleConfig.flat`."""
    now = migrate_settings(facts)
    return {name: now[name] for name in SampleConfig.names() if name in now}


def versions() -> dict[str, str]:
    """Of everything that a picture's bits depend on."""
    import unveil

    return {"unveil": unveil.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _shift(model: Model, guided: ClassifierGuidance, rows: Mapping[str, Sequence[Any]]) -> Shift:
    """What moves a batch towards its labels."""
    if LABEL not in rows:
        raise RecipeError("a classifier guides towards a class: give a label")
    own: Any = dict(model.conditioners.items()).get(LABEL)
    labels = own.numbers(rows[LABEL]) if isinstance(own, Label) else _whole(rows[LABEL])
    shape = (guided.classifier.network.config.in_channels, *(guided.classifier.network.config.size,) * 2)
    score = guidance.log_probability(guided.classifier, labels, shape=shape)
    return guidance.gradient(score, guided.scale)


def _whole(labels: Sequence[Any]) -> Tensor:
    try:
        return torch.tensor([int(label) for label in labels])
    except (TypeError, ValueError):
        raise RecipeError(f"label {list(labels)}: this model knows no names of classes; give numbers") from None


def guided_by(told: Mapping[str, Any] | None, classifier: GuidanceClassifier | None) -> ClassifierGuidance | None:
    """The guidance that a picture's record tells of, by the classifier that was given; None: there was none.

    Raises:
        WeightsError: none was given, or another one.
    """
    if told is None:
        return None
    if classifier is None or classifier.sha256 != told["sha256"]:
        raise WeightsError(
            f"the picture was guided by the classifier {told['name']!r} (sha256 {str(told['sha256'])[:12]}...); "
            "give that one with --classifier"
        )
    return ClassifierGuidance(classifier, float(told["scale"]))


def _about(model: Model, request: Request) -> dict[str, Any]:
    """What else the pictures of a request depend on."""
    facts: dict[str, Any] = {
        "dtype": request.dtype,
        "compiled": request.compiled,
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if request.size is not None:
        facts["size"] = list(request.size)
    if (guided := request.guided) is not None:
        classifier = {"name": guided.classifier.name, "sha256": guided.classifier.sha256}
        facts["classifier"] = {**classifier, "scale": guided.scale}
    return facts | additions(model)


def _drawn(model: Model, part: Request, edit: TaskSpec, here: slice, film: TrajectoryRecorder) -> Tensor:
    """The samples of one batch."""
    shift = None if part.guided is None else _shift(model, part.guided, part.given)
    shown = edit.shown(here)
    given = {key: values for key, values in part.given.items() if shift is None or key in model.conditioners}
    # what is shown stays where the rest of the condition is left away
    away = {**shown, **part.negative} if part.negative or (shown and part.sampling["guidance_scale"] != 1) else None
    return model.generate(
        cond={**given, **hints(model, part.count, part.size), **shown},
        count=part.count,
        seed=part.seed,
        start_index=part.first,
        on_step=film,
        sampling=part.sampling,
        negative_cond=away,
        cond_grad=shift,
        size=part.size,
        tile_size=edit.seen,
        transform=lambda course, _: edit.change(course, here),
    )


def _same_additions(model: Model, loras: Sequence[tuple[str, float]], controls: Sequence[tuple[Any, ...]]) -> None:
    """Raises WeightsError unless a record's LoRAs and ControlNets are those that are on the model."""
    if loras != [(one.sha256, one.weight) for one in model.lora_infos]:
        raise WeightsError(
            f"the image was made with {len(loras)} LoRAs, {len(model.lora_infos)} others are on the model: give these"
        )
    if controls != [_identity(one.record()) for one in model.controlnet_infos]:
        raise WeightsError(
            f"the image was made with {len(controls)} ControlNets and their images, "
            f"{len(model.controlnet_infos)} others are on the model: give these"
        )


def _identity(control: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a record of a control says but for the names of files."""
    return tuple(control[name] for name in ("sha256", "picture_sha256", "weight", "start", "stop"))


def _facts(part: Request, row: int) -> dict[str, Any]:
    """What the record of one picture says of the wish."""
    own = part.part(row, row + 1)
    facts: dict[str, Any] = {"seed": own.seed if isinstance(own.seed, int) else own.seed[0], "sample": own.first}
    for name, values in (("given", own.given), ("negative", own.negative), ("asked", own.asked)):
        if values or name == "given":
            facts[name] = {key: value[0] for key, value in values.items()}
    return facts


def _batch(part: Request) -> dict[str, Any]:
    """Everything that a batch's pictures have to be drawn with again."""
    facts: dict[str, Any] = {"first": part.first, "count": part.count, "given": dict(part.given)}
    facts |= {name: dict(one) for name, one in (("negative", part.negative), ("asked", part.asked)) if one}
    if not isinstance(part.seed, int):
        facts["seeds"] = list(part.seed)
    return facts


def _each(key: str, values: Sequence[Any], count: int) -> list[Any]:
    """One value for each picture: a short list is repeated in turn."""
    if isinstance(values, str) or not len(values) or len(values) > count:
        raise RecipeError(f"{key}: {values!r} for {count} pictures; give 1 to {count} values")
    return [values[i % len(values)] for i in range(count)]
