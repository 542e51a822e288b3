"""Running video tasks: inputs, requests, output files with metadata, and regeneration from these."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unveil.errors import DataError, PromptTooLong, RecipeError, WeightsError
from unveil.generation import hires, video, video_inputs
from unveil.generation.conditioning_frames import check_frame_index
from unveil.generation.generate import (
    PROMPT,
    ModelSource,
    OnStep,
    Request,
    SourceFile,
    TaskSpec,
    adapter_metadata,
    generate,
    recorded_request,
)
from unveil.generation.long_video import VideoChunk, VideoSpec, exact_frames, generate_long_video, new_frames_only
from unveil.generation.prompt_expansion import ExpansionOptions, PromptExpander, expansions_of, omission_note
from unveil.io.files import refuse_overwrite
from unveil.io.video.writer import FORMS, check_video_path, write_video
from unveil.model import Model, checkpoint_store
from unveil.model.migration import METADATA_FORMAT
from unveil.model.model import FPS
from unveil.model.shapes import check_size
from unveil.tasks.fields import FileInput
from unveil.tasks.image_run import adapters_of, model_options, open_recorded
from unveil.tasks.run_check import PlannedRun, check_run
from unveil.tasks.task import TaskContext, TaskResult
from unveil.types import format_size

if TYPE_CHECKING:
    from unveil.tasks.regenerate import Regenerate
    from unveil.tasks.video_edit import VideoEdit
    from unveil.tasks.video_generate import VideoGenerate
    from unveil.tasks.video_join import VideoJoin
    from unveil.tasks.video_task import VideoTask

WHITE = 128  # value from which on a pixel of a mask is white
Ends = tuple[Tensor | None, Tensor | None]  # frames uint8 (3, t, H, W) before and after those that are generated


@dataclass(frozen=True)
class VideoStage:
    """An open model with the input files of a task.

    Attributes:
        task: The task.
        context: What it runs with.
        model: Model that generates.
        source: Its name and hash.
        files: Path of each input file, by the place of its value in the task, such as keyframes.0.image.
        recorded: Metadata of the file that is generated again.
        sources: Name and hash of each input file that was read.
        sizes: Frames, height and width of each.
    """

    task: VideoTask
    context: TaskContext
    model: Model
    source: ModelSource
    files: Mapping[str, Path]
    recorded: Mapping[str, Any] | None = None
    sources: dict[str, SourceFile] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def read(self, name: str, *, at_task_size: bool = True) -> video_inputs.InputVideo:
        """An input video or image, in the size and at the frame rate of the task."""
        return self.read_at(name, self.task.size if at_task_size else None)

    def read_at(self, name: str, size: tuple[int, int] | None) -> video_inputs.InputVideo:
        """An input video or image in a height and width, and at the frame rate of the task."""
        return self._loaded(name, size, self.task.fps)

    def read_continued(self, name: str) -> video_inputs.InputVideo:
        """An input video that new frames continue, in the size of the task and at the frame rate of the new frames.

        That is the rate of the task, or else that of the model's training; the video is brought to it with the frames
        closest in time. It keeps its own rate if the network is conditioned on the rate, or the model states none.
        """
        rate = self._stated_rate
        if rate is None and not video_inputs.takes_rate(self.model):
            rate = self.model.fps
        clip = self._loaded(name, self.task.size, rate)
        if self._stated_rate is None and clip.file_rate is not None and abs(clip.file_rate - clip.rate) > 0.005:
            self.context.console.say(
                f"{self.files[name]}: {clip.file_rate:.4g} frames per second, brought to the model's {clip.rate:g}: "
                f"{clip.pixels.shape[2]} frames, those closest in time; --fps {clip.file_rate:.4g} keeps its own"
            )
        return clip

    def read_two(self, first: str, last: str) -> tuple[video_inputs.InputVideo, video_inputs.InputVideo, float]:
        """Two input videos of one frame rate, see `read_continued`, and the rate."""
        both = self.read_continued(first), self.read_continued(last)
        paths = [self.files[first], self.files[last]]
        return *both, video_inputs.check_same_fps(both, paths, video_inputs.rate_of(self.model))

    def _loaded(self, name: str, size: tuple[int, int] | None, rate: float | None) -> video_inputs.InputVideo:
        content = video_inputs.load_video(self.files[name], self.model, size, rate)
        self.sources[name] = content.input
        self.sizes[name] = (content.pixels.shape[2], content.pixels.shape[3], content.pixels.shape[4])
        return content

    @property
    def _stated_rate(self) -> float | None:
        """Frame rate of the task, or of the file that is generated again."""
        if self.task.fps is not None or self.recorded is None:
            return self.task.fps
        return None if "fps" not in self.recorded else float(self.recorded["fps"])

    def rate_of(self, shot_rate: float) -> float:
        """Frame rate of the videos: that of the task or of the metadata, else that of the specification."""
        return shot_rate if self._stated_rate is None else self._stated_rate

    def text_condition(self, prompt: str, rate: float) -> dict[str, list[Any]]:
        """Condition of one video on a prompt, and on the frame rate where the network takes it."""
        return {PROMPT: [prompt], **self.rate_condition(rate)}

    def rate_condition(self, rate: float) -> dict[str, list[float]]:
        """Condition on the frame rate, where the network takes it and the metadata do not say otherwise."""
        if self.recorded is not None and FPS not in _recorded_request(self.recorded).cond:
            return {}
        return video_inputs.rate_condition(self.model, self.rate_of(rate))

    def prompt_of(self, clip: video_inputs.InputVideo) -> str | None:
        """The prompt of the task, or else that of an input's metadata."""
        prompt = getattr(self.task, "prompt", None)
        return clip.prompt if prompt is None else prompt

    def request(self, prompt: str | None, *, frames: int = 0, shown: bool = True) -> Request:
        """The request for all videos under one prompt, as the model reads it, or that of the metadata.

        Args:
            prompt: Prompt as it is typed; None: without a prompt.
            frames: Number of frames, for the expansion.
            shown: True if the model is also conditioned on images, so that prompts are not expanded by default.

        Raises:
            RecipeError: A prompt that is empty or too long.
            DataError: The metadata lack something.
        """
        if self.recorded is not None:
            return _recorded_request(self.recorded)
        task = self.task
        prompts, negative = (() if text is None else (text,) for text in (prompt, task.negative_prompt))
        request = Request(
            {PROMPT: list(prompts)} if prompts else {},
            task.seed[0] if len(task.seed) == 1 else task.seed,
            count=task.results,
            batch=1,
            sampling=task.sampling_changes,
            dtype=task.dtype,
            negative={PROMPT: list(negative)} if negative else {},
        )
        expander = self.expander(frames=frames, shown=shown)
        for text in (*(() if expander.reads_all else prompts), *negative):
            check_prompt(self.model, text)
        return expander(request)

    def expander(self, *, frames: int = 0, shown: bool = True) -> PromptExpander:
        """The reader of the task's prompts."""
        options = ExpansionOptions.from_option(getattr(self.task, "expand_prompt", None))
        strict = self.task.strict
        return PromptExpander(options, self.model, self.context.console, frames=frames, shown=shown, strict=strict)

    def read_prompt(self, prompt: str) -> str:
        """A prompt as the model reads it; that of metadata as it is.

        Raises:
            RecipeError: A prompt that is empty or too long.
        """
        expander = self.expander()
        text = prompt if self.recorded is not None else expander.read(prompt).text
        if not expander.reads_all:
            check_prompt(self.model, text)
        return text


class VideoShot(NamedTuple):
    """Specification of the videos that a task generates.

    Attributes:
        task: The task for the metadata, with what it took from the metadata of its inputs.
        spec: How generation is changed; a `TaskSpec` generates a video at once.
        request: Request for all videos.
        rate: Frame rate, where the task states none.
        ends: Frames before and after those that are generated.
        model: Model that generates, where it is not that of the stage.
    """

    task: VideoTask
    spec: VideoSpec | TaskSpec
    request: Request
    rate: float
    ends: Ends = (None, None)
    model: Model | None = None


# --------------------------------------------------------------------------------------------------------- the tasks


def generation_shot(task: VideoGenerate, stage: VideoStage) -> VideoShot:
    """A video from a prompt, with keyframes.

    Raises:
        RecipeError: A keyframe outside the video, or two at one frame.
    """
    model = stage.model
    frames = model.shape[1] if task.frames is None else task.frames
    size = task.size or (model.shape[-2], model.shape[-1])
    check_size(model, size)
    spec = VideoSpec(frames, size, window=task.window, overlap=task.overlap, name="make")
    if task.keyframes:
        images = [stage.read_at(f"keyframes.{number}.image", size) for number in range(len(task.keyframes))]
        places = [check_frame_index(keyframe.frame, frames) for keyframe in task.keyframes]
        if len(set(places)) < len(places):
            listed = " ".join(str(keyframe.frame) for keyframe in task.keyframes)
            raise RecipeError(f"--image-frame {listed}: two images at one frame; give each its own")
        exact = {place: image.pixels[:, :, 0] for place, image in zip(places, images, strict=True)}
        spec = replace(spec, conditioning=exact_frames(exact))
    if hires.needs_hires(model, size):
        stage.context.console.say(hires.describe_passes(model, size))
    request = stage.request(task.prompt, frames=frames, shown=bool(task.keyframes))
    return VideoShot(task, spec, request, video_inputs.rate_of(model))


def joining_shot(task: VideoJoin, stage: VideoStage) -> VideoShot:
    """Two videos as one: by frames between them, or by turning the one into the other."""
    first, last, rate = stage.read_two("first", "last")
    texts = [
        task.prompt[min(number, len(task.prompt) - 1)] if task.prompt else clip.prompt
        for number, clip in enumerate((first, last))
    ]
    prompts = [stage.read_prompt(text) for text in texts if text is not None]
    has_both = len(prompts) == len(texts)
    if has_both:
        task = task.model_copy(update={"prompt": tuple(prompts)})
    request = stage.request(texts[0])
    if task.method == "blend":
        conditions = [stage.text_condition(text, rate) for text in prompts] if has_both else ()
        blend = video.crossfade(stage.model, first.pixels, last.pixels, strength=task.strength, texts=conditions)
        return VideoShot(task, blend, request, rate)
    spec = video.interpolate_between(stage.model, first.pixels, last.pixels, task.frames, context=task.context_frames)
    middle = spec.frames // 2
    if has_both and prompts[0] != prompts[1]:
        scenes = (video.ScheduledPrompt(0, middle, prompts[0]), video.ScheduledPrompt(middle, spec.frames, prompts[1]))
        spec = replace(spec, scenes=scenes, fade=spec.settings["added"])
    return VideoShot(task, spec, request, rate, (first.pixels[0], last.pixels[0]))


def edit_shot(task: VideoEdit, stage: VideoStage) -> VideoShot:
    """A video edited by a prompt.

    Raises:
        RecipeError: No prompt of the input video for the method difference, or a mask of another length.
    """
    clip = stage.read("video")
    mask = _mask(task, stage, clip)
    if task.method == "noise":
        strengths = per_frame(task.strength, clip.pixels.shape[2])
        spec = video.sdedit_video(stage.model, clip.pixels, strengths, mask)
    else:
        source_prompt = clip.prompt if task.source_prompt is None else task.source_prompt
        if source_prompt is None:
            raise RecipeError(
                'the method difference needs the prompt of the input video: --source-prompt "a small red circle"'
            )
        source_prompt = stage.read_prompt(source_prompt)
        task = task.model_copy(update={"source_prompt": source_prompt})
        before = stage.text_condition(source_prompt, clip.rate)
        spec = video.flow_edit_video(stage.model, clip.pixels, before, strength=task.strength[0], mask=mask)
    return VideoShot(task, spec, stage.request(task.prompt), clip.rate)


def per_frame(values: Sequence[float], frames: int) -> list[float]:
    """A value for each frame: the only one, or on straight lines through several, evenly spread."""
    if len(values) == 1 or frames == 1:
        return list(values[:1]) * frames
    along = torch.linspace(0, len(values) - 1, frames, dtype=torch.float64)
    low = along.floor().long().clamp(max=len(values) - 2)
    points = torch.tensor(values, dtype=torch.float64)
    return torch.lerp(points[low], points[low + 1], along - low).tolist()


def _mask(task: VideoEdit, stage: VideoStage, clip: video_inputs.InputVideo) -> Tensor | None:
    """The mask of the new content: boolean (1, 1, 1 or T, H, W)."""
    name = "mask" if task.mask is not None else "keep_mask"
    if name not in stage.files:
        return None
    pixels = stage.read_at(name, (clip.pixels.shape[3], clip.pixels.shape[4])).pixels
    if pixels.shape[2] not in (1, clip.pixels.shape[2]):
        raise RecipeError(
            f"{stage.files[name]}: {pixels.shape[2]} frames for a video of {clip.pixels.shape[2]}; a mask is one "
            "image, or a video of the same length"
        )
    white = pixels.float().mean(1, keepdim=True) >= WHITE
    return white if name == "mask" else ~white


def check_prompt(model: Model, prompt: str) -> None:
    """Refuse a prompt that is empty, or has more words than the model reads.

    Raises:
        RecipeError: The message says how many fit.
    """
    if not prompt.strip():
        raise RecipeError('the prompt is empty; write one such as "a small red circle moves left"')
    conditioner: Any = dict(model.conditioners.items()).get(PROMPT)
    if conditioner is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PromptTooLong)
        try:
            conditioner.encode([prompt])
        except PromptTooLong as problem:
            raise RecipeError(f"{problem}; use fewer words") from problem


# -------------------------------------------------------------------------------------------------------------- runs


def run_video(task: VideoTask, context: TaskContext) -> TaskResult:
    """Generate the videos of a task and write them, each part as soon as it is generated.

    Raises:
        Error: They cannot be generated or written.
    """
    paths = output_paths(context.output.path, task.results)
    _check_outputs(paths, task.fps, context)
    model, source = context.open(model_options(task, context), media="videos")
    files = {name: context.path(value, mark) for name, (value, mark) in _file_values(task).items()}
    stage = VideoStage(task, context, model, source, files)
    return _write(stage, task.shot(stage), paths)


def output_paths(out: Path, count: int) -> list[Path]:
    """The file of each video; several are numbered."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{number:03d}{out.suffix}") for number in range(count)]


def _check_outputs(paths: Sequence[Path], rate: float | None, context: TaskContext) -> None:
    for path in paths:
        check_video_path(path, video_inputs.RATE if rate is None else rate)
        refuse_overwrite(path, context.output.force)


def _file_values(task: VideoTask) -> dict[str, tuple[str, FileInput]]:
    """The value of each input file by its place in the task, without the control images, which belong to the model."""
    return {
        ".".join(map(str, reference.path)): (reference.value, reference.mark)
        for reference in task.references()
        if isinstance(reference.mark, FileInput) and reference.path[0] != "controlnet"
    }


def _write(stage: VideoStage, shot: VideoShot, paths: Sequence[Path]) -> TaskResult:
    console, count = stage.context.console, len(paths)
    rate = stage.rate_of(shot.rate)
    shot = shot._replace(request=replace(shot.request, cond={**shot.request.cond, **stage.rate_condition(rate)}))
    _check_resources(stage, shot, paths)
    written, shape = list[str](), [0, 0, 0]
    with console.progress("step", 0) as progress:
        for number, path in enumerate(paths):

            def on_step(done: int, total: int, number: int = number) -> None:
                progress.reach(number * total + done, count * total)

            request = shot.request.part(number, number + 1)
            parts = iter(_chunks(stage, shot, request, on_step))
            first = next(parts)
            facts = _facts(stage, shot, request, first.facts[0], rate) if stage.context.output.metadata else None
            shape = [0, *first.pixels.shape[3:]]
            write_video(path, _counted(_pieces(chain([first], parts), shot.ends), shape), rate, facts)
            written.append(str(path))
    task, seed = stage.task, shot.request.seed
    result = {"clips": written, "model": stage.source._asdict(), "task": task.name}
    result |= {"seed": seed if isinstance(seed, int) else list(seed), "count": count}
    result |= {"frames": shape[0], "size": shape[1:], "fps": rate, **expansions_of(shot.request)}
    text = f"{shape[0]} frames of {format_size(shape)} at {rate:g} fps: " + ", ".join(written)
    return TaskResult(result, text + omission_note(shot.request))


def _check_resources(stage: VideoStage, shot: VideoShot, paths: Sequence[Path]) -> None:
    """Refuse a run that is impossible on this machine, and ask about a long one."""
    model, spec = shot.model or stage.model, shot.spec
    largest = max(stage.sizes.values(), key=math.prod, default=model.shape[-3:])
    if isinstance(spec, TaskSpec):
        frames, size, window, in_passes = largest[0], spec.size or largest[-2:], None, False
    else:
        frames, size, window = spec.frames, spec.size or (model.shape[-2], model.shape[-1]), spec.window
        in_passes = spec.window_transform is None
    at_once = min(frames, window or model.shape[1])
    passes = in_passes and hires.needs_hires(model, (size[-2], size[-1]))
    tiled = hires.share_of_calls(model, size, passes, int(getattr(shot.task, "factor", 1)))
    whole, cond = (frames, *size[-2:]), shot.request.cond
    planned = PlannedRun(len(paths), whole, at_once, stage.sizes, cond, paths[0], tiled=tiled)
    check_run(shot.task, model, stage.context, planned)


def _chunks(stage: VideoStage, shot: VideoShot, request: Request, on_step: OnStep) -> Iterable[VideoChunk]:
    """The parts of a video as they are generated."""
    model, spec = shot.model or stage.model, shot.spec
    if isinstance(spec, TaskSpec):
        results = generate(model, request, stage.source, spec, on_step=on_step)
        return (VideoChunk(result.pixels[None], (result.facts,)) for result in results)
    if spec.window_transform is None and spec.size is not None and hires.needs_hires(model, spec.size):
        return hires.generate_hires(model, request, spec, stage.source, on_step)
    return new_frames_only(generate_long_video(model, request, spec, stage.source, on_step), spec)


def _facts(
    stage: VideoStage, shot: VideoShot, request: Request, generated: Mapping[str, Any], rate: float
) -> dict[str, Any]:
    """The metadata of a video: those of its first window, with the task and its inputs.

    A window has its own seed, and the last of several passes other settings; those of the request are stored.
    """
    settings = generated.get("task", {})
    seed = request.seed if isinstance(request.seed, int) else request.seed[0]
    batch = generated["batch"] | ({} if isinstance(request.seed, int) else {"seeds": list(request.seed)})
    facts = {**generated, "format": METADATA_FORMAT, "task": shot.task.metadata(), "seed": seed, "batch": batch}
    facts |= {name: settings[name] for name in ("windows", "passes") if name in settings}
    facts |= {"inputs": {name: source._asdict() for name, source in stage.sources.items()}} if stage.sources else {}
    facts |= stage.model.sampling.changed(request.sampling).flat()
    facts |= {"negative": {key: values[0] for key, values in request.negative.items()}} if request.negative else {}
    return facts | {"fps": rate}


def _pieces(parts: Iterable[VideoChunk], ends: Ends) -> Iterator[Tensor]:
    """The parts of one video (3, t, H, W), with what is before and after them."""
    if ends[0] is not None:
        yield ends[0]
    for part in parts:
        yield part.pixels[0]
    if ends[1] is not None:
        yield ends[1]


def _counted(pieces: Iterable[Tensor], shape: list[int]) -> Iterator[Tensor]:
    for piece in pieces:
        shape[0] += piece.shape[1]
        yield piece


# ------------------------------------------------------------------------------------------------------ regeneration


def regenerate_video(
    task: VideoTask, context: TaskContext, facts: Mapping[str, Any], regeneration: Regenerate
) -> TaskResult:
    """Generate a video again and write it; into a folder under the name of the file.

    Raises:
        DataError: An input is missing, or the metadata lack something.
        WeightsError: Another model or adapter than the metadata name.
    """
    file = context.path(regeneration.source, FileInput("media"))
    out = context.output.path
    is_folder = not out.suffix and file.suffix.lower().removeprefix(".") in FORMS
    paths = [out / file.name if is_folder else out]
    _check_outputs(paths, task.fps, context)
    places = [*context.places, file.parent, Path()]
    try:
        sources = {name: SourceFile(str(file["name"]), str(file["sha256"])) for name, file in _inputs(facts).items()}
        threads = int(facts["threads"])
        sha256 = str(facts["model"]["sha256"])
        _recorded_request(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(f"{file}: its metadata lack {problem}; use the file as it was written") from problem
    files = {name: video_inputs.find_video(wanted, places) for name, wanted in sources.items()}
    model, source = open_recorded(facts, file, regeneration, context, places, "videos")
    if not checkpoint_store.is_same(sha256, source.sha256):
        raise WeightsError(
            f"{file}: generated by {facts['model'].get('name')!r} (sha256 {sha256[:12]}...), this is {source.name!r} "
            f"({source.sha256[:12]}...); give the model that generated it with --model"
        )
    if adapters_of(facts) != adapters_of(adapter_metadata(model)):
        raise WeightsError(f"{file}: generated with other LoRAs or ControlNets than are on the model; give the same")
    stage = VideoStage(task, context, model, source, files, facts)
    with _threads(threads):
        result = _write(stage, task.shot(stage), paths)
    return TaskResult(result.facts | {"source": str(file)}, result.text)


def _inputs(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return facts.get("inputs") or {}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run on a number of threads, since sums are split by thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recorded_request(facts: Mapping[str, Any]) -> Request:
    """The request for the one video of some metadata; its frames have the size that the task states."""
    negative = {str(key): [value] for key, value in facts.get("negative", {}).items()}
    return replace(recorded_request(facts), negative=negative, size=None)
