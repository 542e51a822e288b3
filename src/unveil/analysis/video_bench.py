"""What every task of a study of clips is measured on: real clips, texts, a model that draws, and rows of a table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unveil.analysis.video_metrics import StudyResult
from unveil.errors import PromptTruncated, RecipeError, did_you_mean
from unveil.evaluate import plots
from unveil.generation.generate import PLAIN, Request, TaskSpec, generate
from unveil.generation.hires import generate_hires
from unveil.generation.long_video import VideoSpec, concat_chunks, generate_long_video
from unveil.model import Model
from unveil.playground.dataset import Playground, PlaygroundConfig
from unveil.playground.eval_prompts import PromptSet, eval_prompts, eval_videos
from unveil.playground.world import caption_templates
from unveil.playground.world.motion import TEN
from unveil.types import Item

MOVING = ("left", "right", "up", "down", "diagonal", "bounce", "orbit")
LOOPING = ("bounce", "orbit")  # what moves and comes back
LOST = 16.0  # pixels: half a side, as far as what is not seen counts to be off
RATE = 8  # frames a second
SHOWN = 4  # clips of each kind, good and bad, in a film
_POOL = 500  # prompts of a list, all of which clips are chosen from
_MADE = (255, 150, 0)  # the frame around what was made
_OTHER_SIZES = 7  # the seed of worlds of other sizes than the score's
_AMONG, _AT_ONCE = 1_000_000, 64  # clips that are looked through for some of a kind, and at a time
_NONE_AMONG = 20_000  # after so many for each of a kind that is found, the search is given up
Reach = Callable[[int, int], object]  # clips drawn, of how many (0 where that is not known)


def parameters(model: Model) -> int:
    """How many numbers a model of clips has learned: those of the network and of what it is told by."""
    parts = [model.denoiser, *model.conditioners.values()]
    return sum(one.numel() for part in parts for one in part.parameters())


@dataclass(frozen=True)
class SharedSettings:
    """What every study of clips is told.

    Attributes:
        count: clips of each task.
        batch: at a time.
        seed: of the noise and of intervals.
        dtype: what is drawn in.
        sampling: changes of the model's own settings.
        only: tasks by name; none: all.

    Raises:
        RecipeError: numbers that cannot be.
    """

    count: int = 48
    batch: int = 16
    seed: int = 0
    dtype: str = "float32"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.count < 2 or self.batch < 1:
            raise RecipeError(f"count = {self.count}, batch = {self.batch}: at least 2 clips, and 1 at a time")


@dataclass(frozen=True)
class VideoStudySettings(SharedSettings):
    """What the tasks of Sora's list share, beside what every study of clips is told.

    Attributes:
        asked: list of prompts that clips are taken from; "validation" while settings are chosen.
        strengths: of edits, rising; `strength` is the one that bars are for.
        sizes: frames, height and width beside the model's own.

    Raises:
        RecipeError: numbers that cannot be.
    """

    asked: PromptSet = "seen"
    strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)
    strength: float = 0.7
    sizes: tuple[tuple[int, int, int], ...] = (
        (16, 24, 48), (16, 48, 24), (16, 40, 40), (12, 32, 32), (24, 32, 32), (1, 48, 48),
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        super().__post_init__()
        if (
            len(self.strengths) < 2
            or self.strength not in self.strengths
            or any(a >= b for a, b in pairwise(self.strengths))
        ):
            raise RecipeError(f"strengths {list(self.strengths)}: must rise, and {self.strength} be one of them")


S = TypeVar("S", bound=SharedSettings)
QUICK = VideoStudySettings(count=4, sampling={"steps": 2}, strengths=(0.5, 0.7), sizes=((8, 32, 32),))


def thing(item: Item) -> dict[str, Any]:
    """The facts of the one object of a clip."""
    return item["attributes"]["objects"][0]


def text_of(item: Item, **changed: str) -> str:
    """A clip's short caption, with size and ground, and with facts of its object, or the ground, changed."""
    facts = item["attributes"]
    own = {name: value for name, value in changed.items() if name != "ground"}
    told = {**facts, "ground": changed.get("ground", facts["ground"]), "objects": [{**thing(item), **own}]}
    return caption_templates.write_caption(told, "short", "en", [0.99] * caption_templates.DRAWS, faults=0).text


class StudyContext(Generic[S]):
    """A model, and real clips that it is measured on.

    Args:
        reach: told how many clips are drawn.
    """

    def __init__(self, model: Model, settings: S, reach: Reach = lambda done, total: None) -> None:
        self.model, self.settings, self.reach = model, settings, reach
        self._done = 0
        self._pool: list[Item] | None = None

    def items(
        self: StudyContext[VideoStudySettings], motions: Sequence[str] = TEN, count: int | None = None
    ) -> list[Item]:
        """The first clips of the list whose things do one of these.

        Raises:
            RecipeError: there are not so many.
        """
        wanted = count or self.settings.count
        prompts = [one for one in eval_prompts(self.settings.asked, count=_POOL) if one.attributes["motion"] in motions]
        if wanted > len(prompts):
            raise RecipeError(f"count {wanted}: the list has {len(prompts)} such clips; ask for fewer")
        return eval_videos(self.settings.asked, prompts[:wanted])

    def pairs(self: StudyContext[VideoStudySettings]) -> list[tuple[Item, Item]]:
        """Two moving clips each, over one ground and of unlike colours; no clip twice."""
        waiting: dict[str, Item] = {}
        found: list[tuple[Item, Item]] = []
        moving = sum(one.attributes["motion"] in MOVING for one in eval_prompts(self.settings.asked, count=_POOL))
        for item in self.items(MOVING, moving):
            ground = item["attributes"]["ground"]
            other = waiting.pop(ground, None)
            if other is None or thing(other)["colour"] == thing(item)["colour"]:
                waiting[ground] = item
            else:
                found.append((other, item))
            if len(found) == self.settings.count:
                break
        return found

    def world(self, size: tuple[int, int, int]) -> list[Item]:
        """Clips of another size whose combinations training has, with pixels (3, T, H, W)."""
        return self.chosen(size, _OTHER_SIZES, lambda item: not item["unseen"])

    def chosen(
        self, size: tuple[int, ...], seed: int, chosen: Callable[[Item], bool], world: Mapping[str, Any] | None = None
    ) -> list[Item]:
        """As many clips as are studied, pixels (3, T, H, W), of a playground that no model is trained on.

        Args:
            size: frames, height and width.
            seed: of the playground.
            chosen: which of its clips.
            world: further settings of `PlaygroundConfig`.

        Raises:
            RecipeError: there are none of them, or far too few.
        """
        frames, height, width = size
        low, high = min(height, width), max(height, width)
        config = PlaygroundConfig(
            min_size=low, max_size=high, aspect=high / low, frames=(frames,), seed=seed, num_val=_AMONG, **(world or {})
        )
        there, found = Playground(config, "held-out"), list[Item]()
        for begin in range(0, _AMONG, _AT_ONCE):
            for item in there.__getitems__(range(begin, begin + _AT_ONCE)):
                pixels = item["pixels"] if item["pixels"].ndim == 4 else item["pixels"][:, None]
                if tuple(pixels.shape[2:]) == (height, width) and chosen(item):
                    found.append({**item, "pixels": pixels})
                if len(found) == self.settings.count:
                    return found
            if begin >= _NONE_AMONG * (len(found) + 1):
                break
        told = "".join(f", {name} {value}" for name, value in (world or {}).items())
        raise RecipeError(f"{len(found)} clips of {width}x{height}x{frames}{told} are what is studied: too few")

    def made(
        self,
        texts: Sequence[str],
        edit: Callable[[slice], TaskSpec] = lambda rows: PLAIN,
        first: int = 0,
        negative: Sequence[str] | None = None,
    ) -> Tensor:
        """A clip for each text, uint8 (N, 3, T, H, W), by the edit of each batch's rows.

        Args:
            first: the number of the first sample.
            negative: what each is to go away from.
        """
        found: list[Tensor] = []
        for rows, request in self._requests(texts, first):
            if negative is not None:
                request = replace(request, negative={"prompt": list(negative[rows])})
            made = generate(self.model, request, edit=edit(rows))
            found.append(torch.stack([picture.pixels for picture in made]))
            self._count(rows)
        return torch.cat(found)

    def filmed(self, texts: Sequence[str], shot: Callable[[slice], VideoSpec], *, passes: bool = False) -> Tensor:
        """The same by the shot of each batch's rows; in passes, as sizes far beyond the model's own are made."""
        found: list[Tensor] = []
        make = generate_hires if passes else generate_long_video
        for rows, request in self._requests(texts, 0):
            found.append(concat_chunks(make(self.model, request, shot(rows))))
            self._count(rows)
        return torch.cat(found)

    def _requests(self, texts: Sequence[str], first: int) -> list[tuple[slice, Request]]:
        how = self.settings
        every = [slice(start, min(start + how.batch, len(texts))) for start in range(0, len(texts), how.batch)]
        common = Request(seed=how.seed, batch=how.batch, sampling=dict(how.sampling), dtype=how.dtype)
        return [
            (
                rows,
                replace(
                    common,
                    cond={"prompt": list(texts[rows])},
                    first=first + rows.start,
                    count=rows.stop - rows.start,
                ),
            )
            for rows in every
        ]

    def _count(self, rows: slice) -> None:
        self._done += rows.stop - rows.start
        self.reach(self._done, 0)


def check_model(model: Model) -> None:
    """Raises RecipeError for a model that makes no clips from words."""
    if len(model.shape) != 4 or model.shape[0] != 3 or "prompt" not in model.conditioners:
        raise RecipeError(
            f"a model of {tuple(model.shape)} that is told {', '.join(model.conditioners) or 'nothing'}: what is "
            "studied are models of clips (3, frames, height, width) that are told a prompt"
        )


@dataclass(frozen=True)
class VideoStudy:
    """What a model makes of each task.

    Attributes:
        seconds: of the processor, of each task.
    """

    settings: SharedSettings
    sampling: Mapping[str, Any]
    found: Mapping[str, StudyResult]
    seconds: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Everything but the films, as plain values."""
        settings = {**asdict(self.settings), "sampling": dict(self.sampling)}
        tasks = {
            name: {**one.record(), "cpu_seconds": round(self.seconds[name], 1)} for name, one in self.found.items()
        }
        return {"settings": settings, "tasks": tasks}


def run_study(
    model: Model, settings: S, tasks: Mapping[str, Callable[[StudyContext[S]], StudyResult]], reach: Reach
) -> VideoStudy:
    """Runs the tasks that are asked for.

    Raises:
        RecipeError: another kind of model, or an unknown task.
    """
    check_model(model)
    for name in settings.only:
        if name not in tasks:
            raise RecipeError(f"task {name!r}: must be one of {', '.join(tasks)}{did_you_mean(name, list(tasks))}")
    bench = StudyContext(model.eval(), settings, reach)
    found: dict[str, StudyResult] = {}
    seconds: dict[str, float] = {}
    with quietly():
        for name in settings.only or tasks:
            begun = time.process_time()
            found[name] = tasks[name](bench)
            seconds[name] = time.process_time() - begun
    return VideoStudy(settings, model.sampling.changed(settings.sampling).brief(), found, seconds)


def quietly() -> warnings.catch_warnings[None]:
    """A context in which words that a model does not know are passed over."""
    return warnings.catch_warnings(action="ignore", category=PromptTruncated)


def stack_videos(items: Sequence[Item]) -> Tensor:
    """The pixels of clips of one size, (N, 3, T, H, W)."""
    return torch.stack([item["pixels"] for item in items])


def example_videos(rows: Sequence[Tensor], good: Sequence[bool], made: Sequence[int] | None = None) -> dict[str, bytes]:
    """Films of the first clips that are as they should be, and of the first that are not, by their captions.

    Args:
        rows: (N, 3, T, H, W) each, shown above each other; the last one is what was made. Short ones end sooner.
        good: of each clip.
        made: frames of the last row that the model made, which have a coloured edge; None: all.
    """
    longest = max(clips.shape[2] for clips in rows)
    edged = [_edged(clips, [], longest) for clips in rows[:-1]]
    edged.append(_edged(rows[-1], range(rows[-1].shape[2]) if made is None else made, longest))
    found: dict[str, bytes] = {}
    for words, wanted in (("as they should be", True), ("that are not", False)):
        chosen = [n for n, is_good in enumerate(good) if bool(is_good) == wanted][: 2 * SHOWN]
        if chosen:
            found[f"The first clips {words}"] = plots.animated_sheet(
                torch.cat([clips[chosen] for clips in edged]), RATE, len(chosen)
            )
    return found


def _edged(clips: Tensor, made: Sequence[int], length: int) -> Tensor:
    """Clips with an edge of a pixel, coloured in some frames, the last frame repeated up to a length."""
    held = clips[:, :, -1:].repeat(1, 1, length - clips.shape[2], 1, 1)
    found = torch.nn.functional.pad(torch.cat([clips, held], dim=2), (1, 1, 1, 1))
    ink = torch.tensor(_MADE, dtype=torch.uint8).view(1, 3, 1, 1)
    for t in made:
        found[:, :, t, [0, -1]] = found[:, :, t, :, [0, -1]] = ink
    return found
