"""Studies of video models: real videos, prompts, generation, findings and their record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unveil.errors import PromptTruncated, RecipeError, did_you_mean
from unveil.evaluate import plots
from unveil.evaluate.findings import Finding, Rule, interval_of
from unveil.evaluate.metrics import bootstrap, proportion
from unveil.generation.generate import PLAIN, Request, TaskSpec, generate
from unveil.generation.hires import generate_hires
from unveil.generation.long_video import VideoSpec, concat_chunks, generate_long_video
from unveil.model import Model
from unveil.model.migration import VIDEO_TASKS
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.eval_prompts import PromptSet, eval_prompts, eval_videos
from unveil.playground.world import caption_templates
from unveil.playground.world.motion import TEN
from unveil.types import Item

MOVING = ("left", "right", "up", "down", "diagonal", "bounce", "orbit")
LOOPING = ("bounce", "orbit")  # motions that return to their beginning
LOST = 16.0  # position error in pixels of an object that is not detected: half a side
FPS = 8
SHOWN = 4  # videos of each kind, good and bad, in an animation
_POOL = 500  # prompts of a list, from which videos are selected
_GENERATED_EDGE = (255, 150, 0)  # colour of the frame around generated frames
_SIZES_SEED = 7  # playground seed of videos of other sizes than the model's
_POOL_VIDEOS, _CHUNK = 1_000_000, 64  # playground videos that are searched, and how many at a time
_MAX_MISSES = 20_000  # videos without a match, for each match plus one, after which the search ends
Progress = Callable[[int, int], object]  # finished videos, total (0 if it is unknown)


def num_parameters(model: Model) -> int:
    """Number of parameters of the network and of the encoders of its conditions."""
    modules = [model.denoiser, *model.conditioners.values()]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@dataclass(frozen=True)
class VideoStudySettings:
    """Settings of every study of a video model.

    Attributes:
        count: Number of videos of each task.
        batch: Number of videos that are generated together.
        seed: Seed of the initial noise and of the intervals.
        dtype: Floating-point type of the generation.
        sampling: Changes of the model's own sampling settings.
        only: Names of the tasks; empty: all tasks.

    Raises:
        RecipeError: A number is out of its range.
    """

    count: int = 48
    batch: int = 16
    seed: int = 0
    dtype: str = "float32"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch < 1:
            raise RecipeError(
                f"count = {self.count}, batch = {self.batch}: at least 2 videos, in batches of at least 1"
            )


@dataclass(frozen=True)
class VideoTaskSettings(VideoStudySettings):
    """Settings of the tasks of Sora's list.

    Attributes:
        prompt_set: List of prompts from which videos are taken; "validation" while settings are chosen.
        strengths: Denoising strengths of edits, rising.
        strength: The strength that the bars are for.
        sizes: Frames, height and width of further sizes beside the model's own.

    Raises:
        RecipeError: A number is out of its range.
    """

    prompt_set: PromptSet = "seen"
    strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)
    strength: float = 0.7
    sizes: tuple[tuple[int, int, int], ...] = (
        (16, 24, 48), (16, 48, 24), (16, 40, 40), (12, 32, 32), (24, 32, 32), (1, 48, 48),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(low < high for low, high in pairwise(self.strengths))
        if len(self.strengths) < 2 or self.strength not in self.strengths or not rising:
            raise RecipeError(f"strengths {list(self.strengths)}: must rise and contain {self.strength}")


S = TypeVar("S", bound=VideoStudySettings)
QUICK = VideoTaskSettings(count=4, sampling={"steps": 2}, strengths=(0.5, 0.7), sizes=((8, 32, 32),))


# ---------------------------------------------------------------------- findings


@dataclass(frozen=True)
class StudyResult:
    """Findings and figures of one task of a study.

    Attributes:
        title: Name of the task.
        method: Description of the measurement.
        findings: Numbers of the task.
        curve: Further numbers by setting, such as those of each strength.
        animations: Animated WebPs by their captions.
    """

    title: str
    method: str
    findings: Sequence[Finding]
    curve: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    animations: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def record(self) -> dict[str, Any]:
        """Everything except the animations, as plain values."""
        return {
            "title": self.title,
            "method": self.method,
            "rows": [finding_record(finding) for finding in self.findings],
            "curve": {name: dict(numbers) for name, numbers in self.curve.items()},
        }


def finding_record(finding: Finding) -> dict[str, Any]:
    """A finding as plain values, under the keys of stored records."""
    return {
        "measure": finding.name,
        "found": {"value": finding.value, "low": finding.low, "high": finding.high},
        "count": finding.count,
        "unit": finding.unit,
        "bar": finding.bar,
        "rule": finding.rule,
        "ceiling": finding.ceiling,
        "baselines": dict(finding.baselines),
        "main": finding.is_main,
        "met": finding.met,
        "short": finding.is_worse_than_ceiling,
    }


def finding_of(row: Mapping[str, Any], title: str = "") -> Finding:
    """The finding of a stored record; its name begins with the title of its task if one is passed."""
    return Finding(
        f"{title}: {row['measure']}" if title else row["measure"],
        *interval_of(row["found"]),
        unit=row["unit"],
        bar=row["bar"],
        rule=row["rule"],
        ceiling=row["ceiling"],
        baselines=row["baselines"],
        count=row["count"],
        is_main=row["main"],
    )


def shares(
    name: str,
    hits: Sequence[bool],
    ceiling: Sequence[bool] | None = None,
    *,
    bar: float | None = None,
    rule: Rule = "at least",
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The share of videos for which a test holds."""
    return Finding(
        name, *proportion(torch.tensor(hits)), unit="%", bar=bar, rule=rule,
        ceiling=None if ceiling is None else sum(map(bool, ceiling)) / len(ceiling),
        baselines=baselines or {}, count=len(hits),
    )  # fmt: skip


def means(
    name: str,
    values: Sequence[float],
    seed: int,
    *,
    unit: str = "",
    bar: float | None = None,
    rule: Rule = "at least",
    ceiling: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The mean of a measure over videos."""
    finding = ratios(name, values, [1.0] * len(values), seed, bar=bar, rule=rule, ceiling=ceiling, baselines=baselines)
    return replace(finding, unit=unit)


def ratios(
    name: str,
    values: Sequence[float],
    divisors: Sequence[float],
    seed: int,
    *,
    bar: float | None = None,
    rule: Rule = "at least",
    ceiling: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Finding:
    """The mean of a measure over the mean of another measure of the same videos."""
    top, bottom = (torch.tensor(column, dtype=torch.float64) for column in (values, divisors))
    interval = bootstrap(lambda rows: float(top[rows].mean() / bottom[rows].mean()), len(top), draws=1000, seed=seed)
    return Finding(name, *interval, bar=bar, rule=rule, ceiling=ceiling, baselines=baselines or {}, count=len(values))


# ---------------------------------------------------------------------- real and generated videos


def object_of(item: Item) -> dict[str, Any]:
    """Attributes of the only object of a video."""
    return item["attributes"]["objects"][0]


def caption_of(item: Item, **changes: str) -> str:
    """Short caption of a video, with size and background.

    Args:
        item: Video of the playground.
        changes: New values of attributes of its object, or of `ground`, the background.
    """
    attributes = item["attributes"]
    changed_object = {name: value for name, value in changes.items() if name != "ground"}
    described = {
        **attributes,
        "ground": changes.get("ground", attributes["ground"]),
        "objects": [{**object_of(item), **changed_object}],
    }
    return caption_templates.write_caption(described, "short", "en", [0.99] * caption_templates.DRAWS, faults=0).text


class StudyContext(Generic[S]):
    """A model with the real videos that it is compared with.

    Args:
        model: Video model.
        settings: Settings of the study.
        on_progress: Called with the number of generated videos.
    """

    def __init__(self, model: Model, settings: S, on_progress: Progress = lambda done, total: None) -> None:
        self.model, self.settings, self.on_progress = model, settings, on_progress
        self._done = 0

    def items(
        self: StudyContext[VideoTaskSettings], motions: Sequence[str] = TEN, count: int | None = None
    ) -> list[Item]:
        """The first videos of the list whose objects move in one of these ways.

        Raises:
            RecipeError: The list has fewer of them.
        """
        count = count or self.settings.count
        every = eval_prompts(self.settings.prompt_set, count=_POOL)
        prompts = [prompt for prompt in every if prompt.attributes["motion"] in motions]
        if count > len(prompts):
            raise RecipeError(f"count {count}: the list has {len(prompts)} such videos; choose a smaller count")
        return eval_videos(self.settings.prompt_set, prompts[:count])

    def pairs(self: StudyContext[VideoTaskSettings]) -> list[tuple[Item, Item]]:
        """Pairs of different moving videos with one background and objects of different colours."""
        unpaired: dict[str, Item] = {}
        pairs: list[tuple[Item, Item]] = []
        prompts = eval_prompts(self.settings.prompt_set, count=_POOL)
        for item in self.items(MOVING, sum(prompt.attributes["motion"] in MOVING for prompt in prompts)):
            ground = item["attributes"]["ground"]
            other = unpaired.pop(ground, None)
            if other is None or object_of(other)["colour"] == object_of(item)["colour"]:
                unpaired[ground] = item
            else:
                pairs.append((other, item))
            if len(pairs) == self.settings.count:
                break
        return pairs

    def items_of_size(self, size: tuple[int, int, int]) -> list[Item]:
        """Videos of another size with combinations of the training data, with pixels (3, T, H, W)."""
        return self.select_items(size, _SIZES_SEED, lambda item: not item["unseen"])

    def select_items(
        self, size: tuple[int, ...], seed: int, accept: Callable[[Item], bool], world: Mapping[str, Any] | None = None
    ) -> list[Item]:
        """`count` videos (3, T, H, W) of a playground that no model is trained on.

        Args:
            size: Frames, height and width.
            seed: Seed of the playground.
            accept: Predicate that selects the videos.
            world: Further settings of `PlaygroundConfig`.

        Raises:
            RecipeError: Too few videos are accepted.
        """
        frames, height, width = size
        low, high = min(height, width), max(height, width)
        config = PlaygroundConfig(
            min_size=low, max_size=high, aspect=high / low, frames=(frames,), seed=seed, num_val=_POOL_VIDEOS,
            **(world or {}),
        )  # fmt: skip
        playground, selected = Playground(config, "held-out"), list[Item]()
        for begin in range(0, _POOL_VIDEOS, _CHUNK):
            for item in playground.__getitems__(range(begin, begin + _CHUNK)):
                pixels = item["pixels"] if item["pixels"].ndim == 4 else item["pixels"][:, None]
                if tuple(pixels.shape[2:]) == (height, width) and accept(item):
                    selected.append({**item, "pixels": pixels})
                if len(selected) == self.settings.count:
                    return selected
            if begin >= _MAX_MISSES * (len(selected) + 1):
                break
        options = "".join(f", {name} {value}" for name, value in (world or {}).items())
        raise RecipeError(f"the playground has only {len(selected)} such videos of {width}x{height}x{frames}{options}")

    def generate(
        self,
        prompts: Sequence[str],
        task: Callable[[slice], TaskSpec] = lambda rows: PLAIN,
        first: int = 0,
        negative: Sequence[str] | None = None,
    ) -> Tensor:
        """A video for each prompt, uint8 (N, 3, T, H, W).

        Args:
            prompts: Prompts of all videos.
            task: Task of a batch with these rows.
            first: Index of the first sample.
            negative: Negative prompt of each video.
        """
        batches: list[Tensor] = []
        for rows, request in self._requests(prompts, first):
            if negative is not None:
                request = replace(request, negative={"prompt": list(negative[rows])})
            samples = generate(self.model, request, edit=task(rows))
            batches.append(torch.stack([sample.pixels for sample in samples]))
            self._report(rows)
        return torch.cat(batches)

    def generate_long(
        self, prompts: Sequence[str], spec: Callable[[slice], VideoSpec], *, upscale: bool = False
    ) -> Tensor:
        """A video for each prompt by the specification of its batch.

        Args:
            prompts: Prompts of all videos.
            spec: Specification of a batch with these rows.
            upscale: True generates at the model's own size first, for sizes far beyond it.
        """
        batches: list[Tensor] = []
        run = generate_hires if upscale else generate_long_video
        for rows, request in self._requests(prompts, 0):
            batches.append(concat_chunks(run(self.model, request, spec(rows))))
            self._report(rows)
        return torch.cat(batches)

    def _requests(self, prompts: Sequence[str], first: int) -> list[tuple[slice, Request]]:
        settings, requests = self.settings, list[tuple[slice, Request]]()
        for start in range(0, len(prompts), settings.batch):
            rows = slice(start, min(start + settings.batch, len(prompts)))
            request = Request(
                cond={"prompt": list(prompts[rows])}, first=first + start, count=rows.stop - start, seed=settings.seed,
                batch=settings.batch, sampling=dict(settings.sampling), dtype=settings.dtype,
            )  # fmt: skip
            requests.append((rows, request))
        return requests

    def _report(self, rows: slice) -> None:
        self._done += rows.stop - rows.start
        self.on_progress(self._done, 0)


def stack_videos(items: Sequence[Item]) -> Tensor:
    """Pixels of videos of one size, (N, 3, T, H, W)."""
    return torch.stack([item["pixels"] for item in items])


def example_videos(
    rows: Sequence[Tensor], correct: Sequence[bool], generated: Sequence[int] | None = None
) -> dict[str, bytes]:
    """Animations of the first correct videos and of the first wrong ones, by their captions.

    Args:
        rows: Videos (N, 3, T, H, W), shown below each other; the last row is the model's. Short rows end sooner.
        correct: True for each correct video.
        generated: Frames of the last row that the model generated, which have a coloured edge; None: all.
    """
    longest = max(videos.shape[2] for videos in rows)
    edged = [_add_edge(videos, [], longest) for videos in rows[:-1]]
    edged.append(_add_edge(rows[-1], range(rows[-1].shape[2]) if generated is None else generated, longest))
    animations: dict[str, bytes] = {}
    for caption, expected in (("The first correct videos", True), ("The first wrong videos", False)):
        chosen = [n for n, is_correct in enumerate(correct) if bool(is_correct) == expected][: 2 * SHOWN]
        if chosen:
            sheet = torch.cat([videos[chosen] for videos in edged])
            animations[caption] = plots.animated_sheet(sheet, FPS, len(chosen))
    return animations


def _add_edge(videos: Tensor, frames: Sequence[int], length: int) -> Tensor:
    """Pad videos by an edge of one pixel, coloured in these frames, and repeat the last frame up to a length."""
    held = videos[:, :, -1:].repeat(1, 1, length - videos.shape[2], 1, 1)
    edged = torch.nn.functional.pad(torch.cat([videos, held], dim=2), (1, 1, 1, 1))
    colour = torch.tensor(_GENERATED_EDGE, dtype=torch.uint8).view(1, 3, 1, 1)
    for t in frames:
        edged[:, :, t, [0, -1]] = edged[:, :, t, :, [0, -1]] = colour
    return edged


# ---------------------------------------------------------------------- the study


@dataclass(frozen=True)
class VideoStudy:
    """Results of a study of a video model.

    Attributes:
        settings: Settings of the study.
        sampling: Sampling settings that every video was generated with.
        results: Result of each task.
        seconds: CPU seconds of each task.
    """

    settings: VideoStudySettings
    sampling: Mapping[str, Any]
    results: Mapping[str, StudyResult]
    seconds: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Everything except the animations, as plain values."""
        settings = {**asdict(self.settings), "sampling": dict(self.sampling)}
        tasks = {
            name: {**result.record(), "cpu_seconds": round(self.seconds[name], 1)}
            for name, result in self.results.items()
        }
        return {"settings": settings, "tasks": tasks}


def check_model(model: Model) -> None:
    """Raise RecipeError unless the model generates videos from prompts."""
    if len(model.shape) != 4 or model.shape[0] != 3 or "prompt" not in model.conditioners:
        raise RecipeError(
            f"a model of {tuple(model.shape)} with the conditions {', '.join(model.conditioners) or 'none'}: the study "
            "needs a text-to-video model of (3, frames, height, width)"
        )


def check_tasks(names: Iterable[str], tasks: Collection[str]) -> None:
    """Raise RecipeError unless each name is that of a task of the study."""
    for name in names:
        if name not in tasks:
            if VIDEO_TASKS.get(name) in tasks:
                raise RecipeError(f"task {name!r}: is now named {VIDEO_TASKS[name]!r}")
            raise RecipeError(f"task {name!r}: must be one of {', '.join(tasks)}{did_you_mean(name, list(tasks))}")


def run_study(
    model: Model, settings: S, tasks: Mapping[str, Callable[[StudyContext[S]], StudyResult]], on_progress: Progress
) -> VideoStudy:
    """Run the requested tasks.

    Raises:
        RecipeError: The model is not a text-to-video model, or a task is unknown.
    """
    check_model(model)
    check_tasks(settings.only, tasks)
    context = StudyContext(model.eval(), settings, on_progress)
    results: dict[str, StudyResult] = {}
    seconds: dict[str, float] = {}
    with ignore_truncated_prompts():
        for name in settings.only or tasks:
            start = time.process_time()
            results[name] = tasks[name](context)
            seconds[name] = time.process_time() - start
    return VideoStudy(settings, model.sampling.changed(settings.sampling).brief(), results, seconds)


def ignore_truncated_prompts() -> warnings.catch_warnings[None]:
    """A context without warnings of words that a model does not know."""
    return warnings.catch_warnings(action="ignore", category=PromptTruncated)
