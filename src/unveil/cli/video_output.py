"""What all commands on clips do: they open a model, check what was typed, and write clips as they are made."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from unveil.cli.generation_options import PROMPT, GenerationOptions, ModelLoader, changes, opened
from unveil.errors import PromptTooLong, RecipeError
from unveil.generation import hires, video_inputs
from unveil.generation.generate import OnStep, Request, Source, generate
from unveil.generation.long_video import VideoChunk, VideoSpec, generate_long_video, new_frames_only
from unveil.generation.prompt_expansion import expanded
from unveil.generation.task_spec import TaskSpec
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite
from unveil.io.video.writer import check_video_path, write_video
from unveil.model import Model
from unveil.types import format_size

Ends = tuple[Tensor | None, Tensor | None]  # frames uint8 (3, t, H, W) that stand before and after what is made


@dataclass(frozen=True)
class VideoRequest:
    """What is asked of which model, as typed; `size` is WIDTHxHEIGHT."""

    model: str
    out: Path
    prompt: str | None = None
    size: str | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    seed: int = 0
    count: int = 1
    negative: str | None = None
    metadata: bool = True
    device: str = "auto"
    dtype: str = "float32"
    force: bool = False
    console: Console = field(default_factory=Console)  # what the answer goes to
    opener: ModelLoader = opened

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> VideoRequest:
        """The ask of a command's options, by their names."""
        plain = {one.name for one in fields(cls)}
        console = Console(bool(options.get("as_json")), bool(options.get("quiet")))
        return cls(**{name: value for name, value in options.items() if name in plain}, console=console)

    def sized(self) -> tuple[int, int] | None:
        """Height and width, where a size was given.

        Raises:
            RecipeError: not WIDTHxHEIGHT.
        """
        if self.size is None:
            return None
        found = re.fullmatch(r"(\d+)x(\d+)", self.size)
        if found is None:
            raise RecipeError(f"--size {self.size!r}: is written WIDTHxHEIGHT in pixels, such as --size 96x64")
        return int(found[2]), int(found[1])

    def rate(self, other: float) -> float:
        """Frames in a second that were asked for, or else the other number."""
        return other if self.fps is None else self.fps

    def paths(self) -> list[Path]:
        """The file of each clip; several are numbered."""
        if self.count == 1:
            return [self.out]
        return [self.out.with_name(f"{self.out.stem}_{n:03d}{self.out.suffix}") for n in range(self.count)]


class Stage(NamedTuple):
    """A model that is ready, and who is told how it goes."""

    ask: VideoRequest
    model: Model
    source: Source
    console: Console

    def read(self, path: Path) -> video_inputs.Read:
        """A clip or a picture, in the size and at the rate that were asked for."""
        return video_inputs.read(path, self.model, self.ask.sized(), self.ask.fps)

    def request(self, prompt: str | None) -> Request:
        """The request for all clips, under one prompt; None: the model's nothing.

        Raises:
            RecipeError: an empty prompt or one that is too long.
        """
        ask, words = self.ask, () if prompt is None else (prompt,)
        negative = () if ask.negative is None else (ask.negative,)
        for text in (*words, *negative):
            check_prompt(self.model, text)
        # as conditions, and not as words: a prompt may begin as a setting does, such as "style=anime"
        given, away = (tuple(f"{PROMPT}={text}" for text in texts) for texts in (words, negative))
        wish = GenerationOptions(ask.model, given=given, negative=away, seed=ask.seed, batch=1, dtype=ask.dtype)
        named = {"steps": ask.steps, "guidance_scale": ask.guidance, "sampler": ask.sampler}
        return wish.request(self.model, changes((), named), ask.count)


def opening(ask: VideoRequest, rate: float, *prompts: str) -> Stage:
    """The model, once all is refused that can be before it is read.

    Raises:
        RecipeError: an empty prompt, a count below 1, a file's name that is none of a clip, a size that is none.
        NotWritable: a file is there already.
    """
    for prompt in prompts:
        _check_words(prompt)
    if ask.count < 1:
        raise RecipeError(f"--num-videos {ask.count}: at least 1")
    ask.sized()
    for path in ask.paths():
        check_video_path(path, rate)
        refuse_overwrite(path, ask.force)
    wish = GenerationOptions(ask.model, device=ask.device, dtype=ask.dtype)
    model, source = ask.opener(wish, ask.model, ask.console, makes="clips")
    return Stage(ask, model, source, ask.console)


def check_prompt(model: Model, prompt: str) -> None:
    """Refuses a prompt that is empty, or has more words than the model reads.

    Raises:
        RecipeError: says how many fit.
    """
    _check_words(prompt)
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


def shoot(stage: Stage, request: Request, shot: VideoSpec, rate: float, ends: Ends = (None, None)) -> None:
    """Makes and writes clips between what is there already, each part as soon as it is made."""

    def parts(own: Request, on_step: OnStep) -> Iterator[VideoChunk]:
        if shot.change is None and shot.size is not None and hires.needs_hires(stage.model, shot.size):
            return hires.generate_hires(stage.model, own, shot, stage.source, on_step)
        return new_frames_only(generate_long_video(stage.model, own, shot, stage.source, on_step), shot)

    _write(stage, request, parts, rate, shot.verb, ends)


def run(stage: Stage, request: Request, made: TaskSpec, rate: float) -> None:
    """Makes and writes clips that are one run each."""

    def parts(own: Request, on_step: OnStep) -> Iterator[VideoChunk]:
        for one in generate(stage.model, own, stage.source, made, on_step=on_step):
            yield VideoChunk(one.pixels[None], (one.facts,))

    _write(stage, request, parts, rate, made.verb)


def _write(
    stage: Stage,
    request: Request,
    parts: Callable[[Request, OnStep], Iterator[VideoChunk]],
    rate: float,
    verb: str,
    ends: Ends = (None, None),
) -> None:
    ask, written, shape = stage.ask, list[str](), [0, 0, 0]
    rate = ask.rate(rate)
    with stage.console.progress("step", 0) as progress:
        for number, path in enumerate(ask.paths()):

            def on_step(done: int, total: int, number: int = number) -> None:
                progress.reach(number * total + done, ask.count * total)

            made = iter(parts(request.part(number, number + 1), on_step))
            first = next(made)
            facts = {**first.facts[0], "fps": rate}
            every = chain([first], made)
            shape = [0, *first.pixels.shape[3:]]
            write_video(path, _counted(_pieces(every, ends), shape), rate, facts if ask.metadata else None)
            written.append(str(path))
    facts = {"clips": written, "model": stage.source._asdict(), "task": verb, "seed": ask.seed, "count": ask.count}
    facts |= {"frames": shape[0], "size": shape[1:], "fps": rate, **expanded(request)}
    text = f"{shape[0]} frames of {format_size(shape)} at {rate:g} fps: " + ", ".join(written)
    stage.console.result(facts, text)


def _pieces(parts: Iterable[VideoChunk], ends: Ends) -> Iterator[Tensor]:
    """The parts of one clip (3, t, H, W), with what is there before and after them."""
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


def _check_words(prompt: str) -> None:
    if not prompt.strip():
        raise RecipeError('the prompt is empty; write one such as "a small red circle moves left"')
