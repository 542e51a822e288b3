"""Generation of images and videos: requests, tasks that change them, and samples with reproducible metadata."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.guidance_classifier import GuidanceClassifier
from unveil.conditioning.batching import in_batches
from unveil.conditioning.class_label import Label
from unveil.core import guidance
from unveil.core.samplers import SamplingProgress
from unveil.core.samplers.ancestral import Shift
from unveil.core.samplers.loop import SamplingRun
from unveil.data.preprocessors.segmentation import resize_control_image
from unveil.errors import DataError, RecipeError, ShapeError, WeightsError, did_you_mean
from unveil.io.images import to_pixels, to_unit
from unveil.model import Model, RunTransform, checkpoint_store
from unveil.model.config import SampleConfig
from unveil.model.config.sampling import current_settings
from unveil.model.migration import METADATA_FORMAT
from unveil.model.shapes import check_size
from unveil.types import is_valid_utf8

LABEL = "label"  # key of the condition that a classifier guides towards
PROMPT = "prompt"  # key of a text condition
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# (steps done, number of steps or 0)
OnStep = Callable[[int, int], object]


class ModelSource(NamedTuple):
    """The model that generated an image: its name, and the hash of its files."""

    name: str
    sha256: str


UNNAMED = ModelSource("unnamed", "")


class ClassifierGuidance(NamedTuple):
    """Guidance by a noisy classifier towards the labels of a request; scale 1 is Bayes' rule."""

    classifier: GuidanceClassifier
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """A request of samples.

    Attributes:
        cond: Conditions by key: one value for all samples, or one each.
        seed: Seed of the set, or one for each sample.
        first: Index of the first sample. With a seed for each sample, the index of every sample.
        count: Number of samples.
        batch: Number of samples generated at once; the last batch may be smaller.
        sampling: Changes of the model's sampling settings, by the names of `SampleConfig.flat`.
        dtype: Number format, a key of `DTYPES`.
        classifier_guidance: Guidance by a noisy classifier towards cond["label"], which the model itself need not take.
        compiled: Compile the network with torch first.
        negative: Conditions to guide away from, by key.
        size: Height and width in pixels, of a video its frames before them; None: the model's size, or that of the
            edited image.
        original_cond: Original values of expanded conditions, by key; only for the metadata.
    """

    cond: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int | tuple[int, ...] = 0
    first: int = 0
    count: int = 1
    batch: int = 16
    sampling: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    classifier_guidance: ClassifierGuidance | None = None
    compiled: bool = False
    negative: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    size: tuple[int, ...] | None = None
    original_cond: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("count", 1), ("batch", 1), ("first", 0)):
            if getattr(self, name) < low:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least {low}")
        if (lowest := min((self.seed,) if isinstance(self.seed, int) else self.seed, default=0)) < 0:
            raise RecipeError(f"seed = {lowest}: at least 0")
        if not isinstance(self.seed, int) and len(self.seed) != self.count:
            raise RecipeError(f"seed: {len(self.seed)} for {self.count} images; give one, or one for each")
        if self.dtype not in DTYPES:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}{did_you_mean(self.dtype, [*DTYPES])}"
            )
        for key, values in [*self.cond.items(), *self.negative.items()]:
            for value in values:
                if isinstance(value, str) and not is_valid_utf8(value):
                    raise RecipeError(f"{key} {value!r}: contains half a character, which is not text; type it again")

    def part(self, start: int, stop: int) -> Request:
        """Return the request of some of its samples; their seeds, indices and conditions stay the same."""
        cond, negative, typed = (
            {key: _each(key, values, self.count)[start:stop] for key, values in conditions.items()}
            for conditions in (self.cond, self.negative, self.original_cond)
        )
        rows = {"cond": cond, "negative": negative, "original_cond": typed, "count": stop - start}
        if isinstance(self.seed, int):
            return replace(self, **rows, first=self.first + start)
        return replace(self, **rows, seed=self.seed[start:stop])


class GeneratedSample(NamedTuple):
    """A generated sample.

    Attributes:
        sample: (C, H, W) in [-1, 1], of a video (C, T, H, W).
        pixels: The same as uint8.
        facts: Metadata, from which it can be generated again.
        trajectory: (F, C, H, W), states of its trajectory, noise first; empty unless requested.
    """

    sample: Tensor
    pixels: Tensor
    facts: dict[str, Any]
    trajectory: Tensor


class SourceFile(NamedTuple):
    """A file that an image was made from: its name, the hash of its content, and the row in a file of several."""

    name: str
    sha256: str
    row: int = 0


def identity(run: SamplingRun, rows: slice) -> SamplingRun:
    """Return the run unchanged."""
    del rows
    return run


def _untouched(pixels: Tensor, rows: slice) -> Tensor:
    del rows
    return pixels


def _no_images(rows: slice) -> Mapping[str, Tensor]:
    del rows
    return {}


@dataclass(frozen=True)
class TaskSpec:
    """The changes that a task makes to generation. `rows` are those of a batch in the request, counted from 0.

    Attributes:
        name: Name of the task; empty: plain generation.
        settings: Settings for the metadata, besides its inputs; plain enough for JSON.
        transform: (run, rows) -> the run that takes its place.
        image_conditions: Rows -> conditions that are images, by key, (B, C, H, W) each.
        postprocess: (pixels, rows) -> the pixels that are written; both uint8 (B, C, H, W) or (B, C, T, H, W).
        size: Height and width of the results, of a video its frames before them, if other than the model's.
        tile_size: Size that the network takes in one call, if it works in tiles; see `Model.resized`.
        inputs: The files of every row, by the field that names them.
        record: Task for the metadata, as `tasks.task.Task.metadata` gives it.
        notes: Warnings for the user.
    """

    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    transform: RunTransform = identity
    image_conditions: Callable[[slice], Mapping[str, Tensor]] = _no_images
    postprocess: Callable[[Tensor, slice], Tensor] = _untouched
    size: tuple[int, ...] | None = None
    tile_size: tuple[int, int] | None = None
    inputs: Mapping[str, Sequence[SourceFile]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """True if generation is not changed."""
        return not self.name and self.transform is identity and self.postprocess is _untouched and self.size is None

    def sample_metadata(self, row: int) -> dict[str, Any]:
        """Return the metadata of one sample about the task."""
        files = {role: select_row(every, row)._asdict() for role, every in self.inputs.items()}
        if self.record:
            facts: dict[str, Any] = {"format": METADATA_FORMAT, "task": dict(self.record)}
            facts |= {name: self.settings[name] for name in ("passes",) if name in self.settings}
            return facts | ({"inputs": files} if files else {})
        if not self.name:
            return {}
        return {"task": {"verb": self.name, **self.settings, **({"inputs": files} if files else {})}}

    def batch_metadata(self, rows: slice) -> dict[str, Any]:
        """Return the inputs of a whole batch, which are needed to generate it again."""
        if not self.inputs:
            return {}
        count = range(rows.start, rows.stop)
        return {"inputs": {role: [select_row(x, row)._asdict() for row in count] for role, x in self.inputs.items()}}


PLAIN = TaskSpec()


def select_row(every: Sequence[Any], row: int) -> Any:
    """Return the entry of a row, if one entry serves all rows or each has its own."""
    return every[0 if len(every) == 1 else row]


def select_rows(every: Tensor, rows: slice) -> Tensor:
    """Return the entries (B, ...) of a batch, if one entry (1, ...) serves all rows or each has its own."""
    return every.expand(rows.stop - rows.start, *every.shape[1:]) if len(every) == 1 else every[rows]


def select_list(values: Sequence[Any], rows: slice) -> list[Any]:
    """Return the values of a batch, if one value serves all rows or each has its own."""
    return list(values) if len(values) == 1 else list(values)[rows]


def input_to_unit(images: Tensor, channels: int, form: str = "H, W") -> Tensor:
    """Return images (N, C, H, W), or videos with the dimensions of `form`, as float32 in [-1, 1].

    Raises:
        ShapeError: Another shape, or integers other than uint8.
    """
    if images.ndim != form.count(",") + 3 or images.shape[1] != channels:
        raise ShapeError(f"images {tuple(images.shape)}: must be (N, {channels}, {form})")
    if images.dtype == torch.uint8:
        return to_unit(images)
    if not images.is_floating_point():
        raise ShapeError(f"images {images.dtype}: must be uint8, or floating point in [-1, 1]")
    return images.float()


def control_images(model: Model, count: int, size: Sequence[int] | None) -> dict[str, Tensor]:
    """Return the control images of the model's ControlNets, uint8 (count, C, H, W) each, by the keys of these.

    Args:
        model: Model with its ControlNets.
        count: Number of samples.
        size: Height and width of the results; None: the model's.
    """
    height, width = (size or model.shape)[-2:]
    networks = {} if model.controls is None else {control.key: control.network for control in model.controls.controls}
    images = {info.key: info.pixels for info in model.controlnet_infos if info.pixels is not None}
    fitted = {key: resize_control_image(pixels, height, width) for key, pixels in images.items()}
    return {key: pixels[: networks[key].hint_channels].expand(count, -1, -1, -1) for key, pixels in fitted.items()}


@torch.no_grad()
def encode_latents(model: Model, images: Tensor) -> Tensor:
    """Encode images or videos (B, C, ...) in [-1, 1] on the model's device; without an autoencoder, return them."""
    return model.autoencoder.encode(images.to(model.device))


class Preview(NamedTuple):
    """Calls `show(pixels, done, total)` with the estimated images, uint8 (B, C, H, W), every `every` steps.

    `done` is the number of steps of this batch that are done; `total` their number, None if the sampler decides while
    it runs.
    """

    show: Callable[[Tensor, int, int | None], object]
    every: int = 1


class TrajectoryRecorder:
    """Keeps evenly spaced states of a run, shows estimates, and passes each step on.

    Args:
        model: Model whose autoencoder decodes latents.
        frames: Number of images that `trajectory` returns for each sample; 0: none.
        on_step: Called with the number of steps done, and that of all, 0 if the sampler decides while it runs.
        preview: Preview of the estimates.

    Raises:
        RecipeError: A preview interval below 1 step.
    """

    def __init__(
        self,
        model: Model,
        frames: int,
        on_step: Callable[[int, int], object] | None = None,
        preview: Preview | None = None,
    ) -> None:
        if preview is not None and preview.every < 1:
            raise RecipeError(f"preview every {preview.every} steps: at least 1")
        self._model, self._frames, self._on_step, self._preview = model, frames, on_step, preview
        self._states: list[Tensor] = []

    def __call__(self, progress: SamplingProgress) -> None:
        """Record one step."""
        done, total = progress.state.number, progress.total
        # the last frame is the sample itself
        due = total is None or (done < total and done * self._frames // total > (done - 1) * self._frames // total)
        if self._frames and due:
            self._states.append(progress.state.x.float().cpu().clone())
        if self._preview is not None and (done % self._preview.every == 0 or done == total):
            self._preview.show(to_pixels(self._model.decode(progress.estimate.x0)), done, total)
        if self._on_step:
            self._on_step(done, total or 0)

    def trajectory(self, samples: Tensor) -> Tensor:
        """Return the frames of each sample's trajectory (B, F, C, H, W), decoded; the last is the sample itself."""
        if not self._frames:
            return samples.new_empty(len(samples), 0, *samples.shape[1:])
        count = min(self._frames - 1, len(self._states))  # a run of unknown length keeps every step
        chosen = [self._states[k * len(self._states) // count] for k in range(count)]
        decoded = [self._model.decode(state.to(self._model.device)).float().cpu() for state in chosen]
        return torch.stack([*decoded, samples.float().cpu()], dim=1)


def generate(
    model: Model,
    request: Request,
    source: ModelSource = UNNAMED,
    edit: TaskSpec = PLAIN,
    *,
    frames: int = 0,
    on_step: OnStep | None = None,
    preview: Preview | None = None,
) -> Iterator[GeneratedSample]:
    """Yield the samples of a request, batch by batch; if memory runs out, one by one.

    Args:
        model: Model.
        request: Conditions, seeds and settings.
        source: Name and hash of the model, for the metadata.
        edit: Changes of a task, such as an edit of images or an interpolation of two samples.
        frames: Number of states of each trajectory that are returned.
        on_step: Called after every step with the number of steps done, and of all, 0 if unknown; it may raise
            `errors.Cancelled`.
        preview: Preview of the estimates.

    Raises:
        RecipeError: A setting that cannot work, such as a size that the network does not take.
    """
    sampling = model.sampling.changed(request.sampling).flat()
    model.precision = DTYPES[request.dtype]
    if request.compiled:
        model.compile_network()
    size = request.size or edit.size
    if size is not None:
        check_size(model, size)
    shared = {"model": source._asdict(), **sampling, **request_metadata(model, request)}

    def run(rows: slice, number: int, batches: int) -> tuple[Request, TrajectoryRecorder, Tensor]:
        part = request.part(rows.start, rows.stop)
        recorder = TrajectoryRecorder(model, frames, on_step and partial_progress(on_step, number, batches), preview)
        changed = replace(part, sampling=sampling, size=size)
        return part, recorder, _generate_batch(model, changed, edit, rows, recorder)

    for rows, (part, recorder, samples) in in_batches(request.count, request.batch, run):
        pixels, trajectory = edit.postprocess(to_pixels(samples), rows), recorder.trajectory(samples)
        batch = {**_batch_metadata(part), **edit.batch_metadata(rows)}
        for row in range(part.count):
            facts = {**shared, **sample_metadata(part, row), **edit.sample_metadata(rows.start + row)}
            facts |= {"place": row, "batch": batch}
            yield GeneratedSample(samples[row], pixels[row], facts, trajectory[row])


def regenerate(
    model: Model,
    facts: Mapping[str, Any],
    source: ModelSource,
    on_step: OnStep | None = None,
    *,
    classifier: GuidanceClassifier | None = None,
    edit: TaskSpec = PLAIN,
) -> GeneratedSample:
    """Generate an image again from its metadata; its whole batch is generated, since kernels differ by batch size.

    Args:
        model: Model.
        facts: Metadata of the image.
        source: Name and hash of the model.
        on_step: As in `generate`.
        classifier: Classifier that guided it, if one did.
        edit: Edit of its batch, made of the metadata and the inputs that they name, see
            `tasks.image_run.recorded_spec`.

    Raises:
        DataError: The metadata lack something.
        WeightsError: The metadata name another model.
    """
    try:
        model_sha256 = facts["model"]["sha256"]
        request = replace(
            recorded_request(facts), classifier_guidance=recorded_guidance(facts.get("classifier"), classifier)
        )
        loras = [(str(lora["sha256"]), float(lora["weight"])) for lora in facts.get("loras", [])]
        controls = [_control_identity(control) for control in facts.get("controls", [])]
        place = int(facts["place"]) if "place" in facts else int(facts["sample"]) - request.first
        threads = int(facts["threads"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, RecipeError):
            raise
        raise DataError(f"the image's metadata lack {problem}; they were not written by this program") from problem
    if not checkpoint_store.is_same(str(model_sha256), source.sha256):
        raise WeightsError(
            f"the image was generated by {facts['model'].get('name')!r} (sha256 {str(model_sha256)[:12]}...), "
            f"this is {source.name!r} ({source.sha256[:12]}...); give the model that generated it"
        )
    _check_same_adapters(model, loras, controls)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))  # sums are split by thread
    try:
        return list(generate(model, request, source, edit, on_step=on_step))[place]
    finally:
        torch.set_num_threads(before)


def recorded_request(facts: Mapping[str, Any]) -> Request:
    """Return the request for the whole batch of some metadata, without the classifier.

    Raises:
        KeyError, IndexError, TypeError, ValueError, AttributeError: The metadata lack something.
    """
    batch = facts["batch"]
    return Request(
        cond={str(key): list(values) for key, values in batch["given"].items()},
        negative={str(key): list(values) for key, values in batch.get("negative", {}).items()},
        original_cond={str(key): list(values) for key, values in batch.get("typed", {}).items()},
        seed=tuple(map(int, batch["seeds"])) if "seeds" in batch else int(facts["seed"]),
        first=int(batch["first"]),
        count=int(batch["count"]),
        batch=int(batch["count"]),
        sampling=recorded_sampling(facts),
        dtype=str(facts["dtype"]),
        compiled=bool(facts.get("compiled", False)),
        size=tuple(map(int, facts["size"])) if "size" in facts else None,
    )


def partial_progress(on_step: OnStep, number: int, count: int) -> OnStep:
    """Return a callback that counts the steps of one batch of several as steps of all."""
    return lambda done, total: on_step(number * total + done, count * total)


def adapter_metadata(model: Model) -> dict[str, Any]:
    """Return the metadata about the LoRAs and ControlNets that are attached to a model."""
    facts: dict[str, Any] = {}
    if model.lora_infos:
        facts["loras"] = [info._asdict() for info in model.lora_infos]
    if model.controlnet_infos and model.controls is not None:
        facts["controls"] = [info.record() for info in model.controlnet_infos]
        facts["control_mode"] = model.controls.mode
    return facts


def recorded_sampling(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings in metadata, by the names of `SampleConfig.flat`."""
    current = current_settings(facts)
    return {name: current[name] for name in SampleConfig.names() if name in current}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that the bits of an image depend on."""
    import unveil

    return {"unveil": unveil.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def recorded_guidance(
    recorded: Mapping[str, Any] | None, classifier: GuidanceClassifier | None
) -> ClassifierGuidance | None:
    """Return the classifier guidance of an image's metadata; None: there was none.

    Args:
        recorded: Metadata of the classifier.
        classifier: Classifier that the user gives.

    Raises:
        WeightsError: No classifier, or another one.
    """
    if recorded is None:
        return None
    if classifier is None or classifier.sha256 != recorded["sha256"]:
        raise WeightsError(
            f"the image was guided by the classifier {recorded['name']!r} (sha256 {str(recorded['sha256'])[:12]}...); "
            "give that one with --classifier"
        )
    return ClassifierGuidance(classifier, float(recorded["scale"]))


def _shift(model: Model, guided: ClassifierGuidance, rows: Mapping[str, Sequence[Any]]) -> Shift:
    """Return the gradient that moves a batch towards its labels."""
    if LABEL not in rows:
        raise RecipeError("a classifier guides towards a class: give a label")
    conditioner: Any = dict(model.conditioners.items()).get(LABEL)
    labels = conditioner.numbers(rows[LABEL]) if isinstance(conditioner, Label) else _class_indices(rows[LABEL])
    shape = (guided.classifier.network.config.in_channels, *(guided.classifier.network.config.size,) * 2)
    score = guidance.log_probability(guided.classifier, labels, shape=shape)
    return guidance.gradient(score, guided.scale)


def _class_indices(labels: Sequence[Any]) -> Tensor:
    try:
        return torch.tensor([int(label) for label in labels])
    except (TypeError, ValueError):
        raise RecipeError(f"label {list(labels)}: this model has no names of classes; give numbers") from None


def _generate_batch(model: Model, part: Request, edit: TaskSpec, rows: slice, recorder: TrajectoryRecorder) -> Tensor:
    """Generate the samples of one batch."""
    shift = None if part.classifier_guidance is None else _shift(model, part.classifier_guidance, part.cond)
    images = edit.image_conditions(rows)
    cond = {key: values for key, values in part.cond.items() if shift is None or key in model.conditioners}
    # image conditions stay where the rest of the condition is dropped
    negative = {**images, **part.negative}
    guided = part.negative or (images and part.sampling["guidance_scale"] != 1)
    controls = control_images(model, part.count, part.size) if model.controlnet_infos else {}
    return model.generate(
        cond={**cond, **controls, **images},
        count=part.count,
        seed=part.seed,
        start_index=part.first,
        on_step=recorder,
        sampling=part.sampling,
        negative_cond=negative if guided else None,
        cond_grad=shift,
        size=part.size,
        tile_size=edit.tile_size,
        transform=lambda run, _: edit.transform(run, rows),
    )


def _check_same_adapters(model: Model, loras: Sequence[tuple[str, float]], controls: Sequence[tuple[Any, ...]]) -> None:
    """Raise WeightsError unless the LoRAs and ControlNets of the metadata are those that are attached to the model."""
    if loras != [(info.sha256, info.weight) for info in model.lora_infos]:
        raise WeightsError(
            f"the image was made with {len(loras)} LoRAs, {len(model.lora_infos)} others are on the model: give these"
        )
    if controls != [_control_identity(info.record()) for info in model.controlnet_infos]:
        raise WeightsError(
            f"the image was made with {len(controls)} ControlNets and their images, "
            f"{len(model.controlnet_infos)} others are on the model: give these"
        )


def _control_identity(control: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the metadata of a ControlNet except the names of files."""
    return tuple(control[name] for name in ("sha256", "image_sha256", "weight", "start", "stop"))


def request_metadata(model: Model, request: Request) -> dict[str, Any]:
    """Return the metadata that all samples of a request share, besides the model and the sampling settings."""
    facts: dict[str, Any] = {
        "dtype": request.dtype,
        "compiled": request.compiled,
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }
    if request.size is not None:
        facts["size"] = list(request.size)
    if (guided := request.classifier_guidance) is not None:
        classifier = {"name": guided.classifier.name, "sha256": guided.classifier.sha256}
        facts["classifier"] = {**classifier, "scale": guided.scale}
    return facts | adapter_metadata(model)


def sample_metadata(part: Request, row: int) -> dict[str, Any]:
    """Return the metadata of one sample about the request."""
    request = part.part(row, row + 1)
    seed = request.seed if isinstance(request.seed, int) else request.seed[0]
    facts: dict[str, Any] = {"seed": seed, "sample": request.first}
    for name, values in (("given", request.cond), ("negative", request.negative), ("typed", request.original_cond)):
        if values or name == "given":
            facts[name] = {key: value[0] for key, value in values.items()}
    return facts


def _batch_metadata(part: Request) -> dict[str, Any]:
    """Return what a batch needs to be generated again."""
    facts: dict[str, Any] = {"first": part.first, "count": part.count, "given": dict(part.cond)}
    others = (("negative", part.negative), ("typed", part.original_cond))
    facts |= {name: dict(conditions) for name, conditions in others if conditions}
    if not isinstance(part.seed, int):
        facts["seeds"] = list(part.seed)
    return facts


def _each(key: str, values: Sequence[Any], count: int) -> list[Any]:
    """Return one value for each sample: a short list is repeated in turn."""
    if isinstance(values, str) or not len(values) or len(values) > count:
        raise RecipeError(f"{key}: {values!r} for {count} images; give 1 to {count} values")
    return [values[i % len(values)] for i in range(count)]
