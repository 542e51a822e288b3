"""Pictures from a model, each with a record from which it can be made again exactly."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints.guide import Guide
from unveil.conditioning.label import Label
from unveil.config import SampleConfig
from unveil.core import guidance
from unveil.core.samplers import Progress
from unveil.core.samplers.ancestral import Shift
from unveil.model import Model
from unveil.pictures import to_pixels
from unveil.types import MediaError, RecipeError, WeightsError, nearest

_UNSET = dict.fromkeys(("eta", "interval", "channels"))  # settings that a record may lack
LABEL = "label"  # the key of what a classifier guides towards
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Source(NamedTuple):
    """Which model made a picture: its name, and the hash of its files."""

    name: str
    sha256: str


class Worn(NamedTuple):
    """A LoRA on the model: its name, the hash of its file, and its weight."""

    name: str
    sha256: str
    weight: float = 1.0


class Guided(NamedTuple):
    """Guidance by a noisy classifier towards the labels of a request; scale 1 is Bayes' rule."""

    classifier: Guide
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        given: the condition by key: one value for all pictures, or one each.
        seed: of the set; `first` is the number of its first sample, and `count` how many are made.
        batch: at a time; the last one may be smaller.
        sampling: changes of the model's own settings, by the names of `SampleConfig.flat`.
        guided: by a noisy classifier, towards given["label"], which the model itself need not take.
        compiled: whether torch compiles the network before.
        worn: the LoRAs that are on the model, for the record.
    """

    given: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int = 0
    first: int = 0
    count: int = 1
    batch: int = 16
    sampling: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    guided: Guided | None = None
    compiled: bool = False
    worn: tuple[Worn, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("count", 1), ("batch", 1), ("seed", 0), ("first", 0)):
            if getattr(self, name) < low:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least {low}")
        if self.dtype not in DTYPES:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}{nearest(self.dtype, [*DTYPES])}"
            )


class Picture(NamedTuple):
    """A sample, what it is as pixels, and how it was made."""

    sample: Tensor  # (C, H, W) in [-1, 1]
    pixels: Tensor  # uint8 (C, H, W)
    facts: dict[str, Any]
    frames: Tensor  # (F, C, H, W): the state on the way, noise first; empty unless asked for


def generate(
    model: Model,
    request: Request,
    source: Source,
    *,
    frames: int = 0,
    on_step: Callable[[], object] | None = None,
) -> Iterator[Picture]:
    """The pictures of a request, batch by batch.

    Args:
        frames: how many states on the way are kept for each.
        on_step: called after every step of every batch; may raise `types.Cancelled`.
    """
    sampling = model.sampling.changed(request.sampling).flat()
    model.precision = DTYPES[request.dtype]
    if request.compiled:
        model.compiled()
    given = {key: _each(key, values, request.count) for key, values in request.given.items()}
    for start in range(0, request.count, request.batch):
        count = min(request.batch, request.count - start)
        rows = {key: values[start : start + count] for key, values in given.items()}
        film = _Film(frames, on_step)
        shift = None if request.guided is None else _shift(model, request.guided, rows)
        samples = model.generate(
            raw={key: values for key, values in rows.items() if shift is None or key in model.conditioners},
            count=count,
            seed=request.seed,
            first_sample=request.first + start,
            on_step=film,
            sampling=sampling,
            shift=shift,
        )
        pixels = to_pixels(samples)
        shots = film.shots(samples)
        batch = {"first": request.first + start, "count": count, "given": rows}
        for row in range(count):
            facts = {
                "model": source._asdict(),
                **sampling,
                "dtype": request.dtype,
                "compiled": request.compiled,
                "device": model.device.type,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "seed": request.seed,
                "sample": request.first + start + row,
                "given": {key: values[row] for key, values in rows.items()},
                "batch": batch,
            }
            if (guided := request.guided) is not None:
                classifier = {"name": guided.classifier.name, "sha256": guided.classifier.sha256}
                facts["classifier"] = {**classifier, "scale": guided.scale}
            if request.worn:
                facts["loras"] = [one._asdict() for one in request.worn]
            yield Picture(samples[row], pixels[row], facts, shots[row])


def repeat(
    model: Model,
    facts: Mapping[str, Any],
    source: Source,
    on_step: Callable[[], object] | None = None,
    *,
    classifier: Guide | None = None,
    worn: tuple[Worn, ...] = (),
) -> Picture:
    """The same picture again, from its record: its whole batch is drawn, since kernels differ by batch.

    Args:
        classifier: that guided it, if one did.
        worn: the LoRAs that are on the model now, which must be those of the record.

    Raises:
        MediaError: the record lacks something.
        WeightsError: another model than the record names.
    """
    try:
        made_by, batch = facts["model"]["sha256"], facts["batch"]
        request = Request(
            given={str(key): list(values) for key, values in batch["given"].items()},
            seed=int(facts["seed"]),
            first=int(batch["first"]),
            count=int(batch["count"]),
            batch=int(batch["count"]),
            sampling={name: facts[name] for name in SampleConfig().flat() | _UNSET if name in facts},
            dtype=str(facts["dtype"]),
            compiled=bool(facts.get("compiled", False)),
            guided=_guided_by(facts.get("classifier"), classifier),
            worn=worn,
        )
        told = [(str(one["sha256"]), float(one["weight"])) for one in facts.get("loras", [])]
        place = int(facts["sample"]) - request.first
        threads = int(facts["threads"])
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, RecipeError):
            raise
        raise MediaError(f"the picture's record lacks {problem}; it was not written by this program") from problem
    if made_by != source.sha256:
        raise WeightsError(
            f"the picture was made by {facts['model'].get('name')!r} (sha256 {str(made_by)[:12]}...), "
            f"this is {source.name!r} ({source.sha256[:12]}...); give the model that made it"
        )
    if told != [(one.sha256, one.weight) for one in worn]:
        raise WeightsError(
            f"the picture was made with {len(told)} LoRAs, {len(worn)} others are on the model: give these"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))  # sums are split by thread
    try:
        return list(generate(model, request, source, on_step=on_step))[place]
    finally:
        torch.set_num_threads(before)


def versions() -> dict[str, str]:
    """Of everything that a picture's bits depend on."""
    import unveil

    return {"unveil": unveil.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _shift(model: Model, guided: Guided, rows: Mapping[str, Sequence[Any]]) -> Shift:
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


def _guided_by(told: Mapping[str, Any] | None, classifier: Guide | None) -> Guided | None:
    """The guidance of a record."""
    if told is None:
        return None
    if classifier is None or classifier.sha256 != told["sha256"]:
        raise WeightsError(
            f"the picture was guided by the classifier {told['name']!r} (sha256 {str(told['sha256'])[:12]}...); "
            "give that one with --classifier"
        )
    return Guided(classifier, float(told["scale"]))


class _Film:
    """Keeps some states of a run, evenly spaced, and passes each step on."""

    def __init__(self, frames: int, on_step: Callable[[], object] | None) -> None:
        self._frames, self._on_step = frames, on_step
        self._kept: list[Tensor] = []

    def __call__(self, progress: Progress) -> None:
        done, total = progress.state.number, progress.total
        # the last frame is the sample itself
        if total is None or (done < total and done * self._frames // total > (done - 1) * self._frames // total):
            self._kept.append(progress.state.x.float().cpu().clone())
        if self._on_step:
            self._on_step()

    def shots(self, samples: Tensor) -> Tensor:
        """The frames of each sample, (B, F, ...)."""
        if not self._frames:
            return samples.new_empty(len(samples), 0, *samples.shape[1:])
        wanted = min(self._frames - 1, len(self._kept))  # a run of unknown length kept every step
        chosen = [self._kept[k * len(self._kept) // wanted] for k in range(wanted)]
        return torch.stack([*chosen, samples.float().cpu()], dim=1)


def _each(key: str, values: Sequence[Any], count: int) -> list[Any]:
    """One value for each picture: a short list is repeated in turn."""
    if isinstance(values, str) or not len(values) or len(values) > count:
        raise RecipeError(f"{key}: {values!r} for {count} pictures; give 1 to {count} values")
    return [values[i % len(values)] for i in range(count)]
