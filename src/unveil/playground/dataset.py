"""The playground: an unlimited procedural data set of captioned videos with exact annotations.

A video is a pure function of (seed, index), as scenes are. A hash holds out combinations of colour, shape and motion.
Training never contains them, so that a model can be evaluated on unseen combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.folder_index import check_mix
from unveil.data.image_folder import SHARE, mix_captions
from unveil.data.metadata import CaptionRecord, captions_by_index
from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import Split
from unveil.errors import RecipeError, did_you_mean
from unveil.playground.scenes import HELD_OUT, uniforms
from unveil.playground.shapes import COLOURS
from unveil.playground.world import caption_templates
from unveil.playground.world import objects as casting
from unveil.playground.world import rendering as staging
from unveil.playground.world.attributes import facts_of
from unveil.playground.world.camera_scenes import corridor, pillars
from unveil.playground.world.caption_templates import CaptionStyle, Facts, Language
from unveil.playground.world.motion import MOTIONS, SHORTEST, TEN, Real, VideoShape
from unveil.playground.world.special_scenes import DRAWS as SHOT_DRAWS
from unveil.playground.world.special_scenes import MIN_FRAMES, MIN_SIDE, SceneBatch, brush, impact, paddle
from unveil.types import Item

Motion = Literal["still", "left", "right", "up", "down", "diagonal", "bounce", "orbit", "grow", "shrink", "spin"]
Scene = Literal["objects", "brush", "pillars", "paddle", "corridor", "impact"]
Cut = Literal["none", "square"]
SIDES_PX, LENGTHS, RATES = (16, 96, 8), (1, 33), (4, 8, 16)  # smallest, largest, step; frames; frames per second
MAX_OBJECTS = 3  # objects
_LOOKED = 16  # captions of a file that are compared with the videos
SPECIAL_SCENES: dict[str, Callable[[Real, VideoShape], SceneBatch]] = {
    "brush": brush,
    "pillars": pillars,
    "paddle": paddle,
    "corridor": corridor,
    "impact": impact,
}
_T = TypeVar("_T")
# Draws of one video, by place, as in scenes.
_SCENE, _SIZE, _LENGTH, _RATE, _COUNT, _REGISTER, _LANGUAGE, _WRITER = range(8)
_CAPTION, _STAGE, _HUES = 16, 16 + caption_templates.DRAWS, 16 + caption_templates.DRAWS + staging.DRAWS
_ACTION = _HUES + len(COLOURS)
_ALL = _ACTION + MAX_OBJECTS * casting.PER_OBJECT


@dataclass(frozen=True)
class PlaygroundConfig:
    """Configuration of the playground's videos. The defaults are those of the evaluation prompts.

    Attributes:
        min_size, max_size: Range of the sides in pixels, 16 to 96, multiples of 8. All sizes in it occur equally often.
        aspect: Maximum ratio of the longer to the shorter side, 1 to 2.
        frames: Lengths, each 1 (an image) to 33, equally often. If all are 1, items have rank 3.
        fps: Frame rates, each 4, 8 or 16, equally often.
        scenes: Kinds of scene, equally often among those that fit the size and the length of a video.
        objects: Numbers of objects of scene "objects", each 1 to 3, equally often.
        motions: Motions of these objects.
        p_pattern, p_occluder, p_camera: Probabilities that a video of scene "objects" has a gradient or checkered
            background, an occluding bar, or a moving camera, if its size allows it.
        caption_styles, languages: Styles and languages of captions, equally often.
        caption_error_rate: Error rate of raw captions, relative to the usual one; 0 to 1.
        captions_file: File with captions of a captioner by video index, as `unveil caption` writes it.
        synthetic_prob: Probability of a caption of that file, for videos that have one.
        count, num_val: Number of videos of the training and the validation split.
        crop: "square" crops each video to its central square, as if the data had been cropped. Captions, facts and
            tracks describe the whole video.
    """

    min_size: int = 32
    max_size: int = 32
    aspect: float = 1.0
    frames: tuple[int, ...] = (16,)
    fps: tuple[int, ...] = (8,)
    scenes: tuple[Scene, ...] = ("objects",)
    objects: tuple[int, ...] = (1,)
    motions: tuple[Motion, ...] = TEN
    p_pattern: float = 0.0
    p_occluder: float = 0.0
    p_camera: float = 0.0
    caption_styles: tuple[CaptionStyle, ...] = caption_templates.REGISTERS
    languages: tuple[Language, ...] = ("en",)
    caption_error_rate: float = 1.0
    captions_file: str | None = None
    synthetic_prob: float = SHARE
    count: int = 1_000_000
    num_val: int = 1_000
    seed: int = 0
    crop: Cut = "none"
    kind: Literal["playground"] = "playground"

    def __post_init__(self) -> None:
        """Raises RecipeError for a setting out of range."""
        low, high, step = SIDES_PX
        for name, value in (("min_size", self.min_size), ("max_size", self.max_size)):
            if not low <= value <= high or value % step:
                close = min(max(round(value / step) * step, low), high)
                raise RecipeError(f"{name} {value}: must be {low} to {high} by {step}; nearest: {close}")
        if self.min_size > self.max_size:
            raise RecipeError(f"min_size {self.min_size}: must not be above max_size {self.max_size}")
        if not 1 <= self.aspect <= 2:
            raise RecipeError(f"aspect {self.aspect}: the longer side over the shorter must be 1 to 2")
        self._check_lists()
        longest = max(self.frames)
        short = [frames for frames in self.frames if 1 < frames < min(SHORTEST.get(m, 3) for m in self.motions)]
        if short and "objects" in self.scenes:
            raise RecipeError(
                f"frames {short[0]}: none of the motions {', '.join(self.motions)} can be seen in so few; "
                f"the longest here are {longest}: leave the short ones out, or add 'still' or 'left'"
            )
        if not self.fitting(VideoShape(self.min_size, self.min_size, min(self.frames), self.fps[0])):
            raise RecipeError(
                f"scenes {', '.join(self.scenes)} with sides of {self.min_size} and {min(self.frames)} frames: they "
                f"take at least {MIN_SIDE} pixels and {MIN_FRAMES} frames; enlarge what is smaller, or add 'objects'"
            )
        for name in ("p_pattern", "p_occluder", "p_camera"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} {getattr(self, name)}: a part of the videos, must be 0 to 1")
        if not 0 <= self.caption_error_rate <= 1:
            raise RecipeError(
                f"caption_error_rate {self.caption_error_rate}: a part of those that raw captions usually have, "
                "must be 0 to 1"
            )
        check_mix(self.synthetic_prob)
        if self.count < 1 or self.num_val < 1 or self.seed < 0:
            raise RecipeError(
                f"count {self.count}, num_val {self.num_val}, seed {self.seed}: must be at least 1, 1 and 0"
            )

    def _check_lists(self) -> None:
        allowed = {
            "frames": range(LENGTHS[0], LENGTHS[1] + 1),
            "fps": RATES,
            "objects": range(1, MAX_OBJECTS + 1),
            "scenes": get_args(Scene),
            "motions": MOTIONS,
            "caption_styles": caption_templates.REGISTERS,
            "languages": caption_templates.LANGUAGES,
        }
        if self.crop not in get_args(Cut):
            raise RecipeError(
                f"crop {self.crop!r}: must be {' or '.join(get_args(Cut))}{did_you_mean(self.crop, get_args(Cut))}"
            )
        for name, choices in allowed.items():
            values = getattr(self, name)
            if not values:
                raise RecipeError(f"{name}: empty; give at least one of {_listed(choices)}")
            for value in values:
                if value not in choices:
                    raise RecipeError(f"{name}: {value!r} is none of {_listed(choices)}{did_you_mean(value, choices)}")

    def fitting(self, view: VideoShape) -> list[Scene]:
        """Return the scenes that fit videos of this size and length."""
        roomy = min(view.height, view.width) >= MIN_SIDE and view.frames >= MIN_FRAMES
        return [scene for scene in self.scenes if roomy or scene not in SPECIAL_SCENES]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Return every height and width that occurs."""
        sides = range(self.min_size, self.max_size + 1, SIDES_PX[2])
        return [(high, wide) for high in sides for wide in sides if max(high, wide) <= self.aspect * min(high, wide)]


@data_kind("playground", PlaygroundConfig)
class Playground(Dataset[Item]):
    """Data set of playground videos.

    An item contains:
        pixels: uint8 (3, T, H, W), or (3, H, W) if all items are images.
        fps: Frames per second.
        text: Caption, with its register and language.
        mentioned: Attributes that the caption names.
        texts: This caption and that of a captioner, if both exist and the text is one of them.
        attributes: True attributes.
        unseen: True for a combination that training never contains.
        track: float32 (N, T, 4): x, y, radius in pixels and visible fraction in [0, 1] of each object.
    """

    def __init__(self, config: PlaygroundConfig, part: Split = "train") -> None:
        self.config = config
        self.part: Split = part
        self.classes: list[str] | None = None
        self.first = HELD_OUT if part == "held-out" else 0
        self.flat = set(config.frames) == {1}
        self.count = config.num_val if part == "held-out" else config.count
        self.synthetic_captions: dict[int, CaptionRecord] = {}
        if part == "train" and config.captions_file is not None:
            self.synthetic_captions = captions_by_index(Path(config.captions_file).expanduser())
            self._check_written(config.captions_file)

    def _check_written(self, file: str) -> None:
        """Raise RecipeError if the captions belong to a playground with other settings."""
        captioned = self.synthetic_captions
        looked = [number for number, record in captioned.items() if record.original and number < self.count][:_LOOKED]
        for number, item in zip(looked, self.annotations(looked), strict=True):
            if (original := item["texts"][0]) != captioned[number].original:
                raise RecipeError(
                    f"captions {file!r}: of another world: video {number} was {captioned[number].original!r} there and "
                    f"is {original!r} here; tell the videos of these settings"
                )

    def __len__(self) -> int:
        """Return the number of videos."""
        return self.count

    def __getitem__(self, index: int) -> Item:
        """Return one video."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several videos, rendered together (a DataLoader requests whole batches)."""
        items: list[Item] = [{} for _ in indices]
        for group in self._groups(indices):
            pixels, tracks = group.render()
            for row, place in enumerate(group.places):
                clip = pixels[row, :, 0] if self.flat else pixels[row]
                clip = clip if self.config.crop == "none" else _square(clip)
                items[place] = self._item(group, row, indices[place]) | {"pixels": clip, "track": tracks[row]}
        return items

    def sizes(self) -> Tensor:
        """Return the frames, height and width of every video without rendering: int64 (N, 3)."""
        numbers = np.arange(self.first, self.first + self.count, dtype=np.uint64)
        draws = uniforms(self.config.seed, numbers, _COUNT)
        frames, size = np.array(self.config.frames), np.array(self.config.sizes)
        lengths = frames[(draws[:, _LENGTH] * len(frames)).astype(np.int64)]
        sides = size[(draws[:, _SIZE] * len(size)).astype(np.int64)]
        if self.config.crop == "square":
            sides = sides.min(1, keepdims=True).repeat(2, 1)
        return torch.from_numpy(np.column_stack([lengths, sides]).astype(np.int64))

    def annotations(self, indices: Sequence[int]) -> list[Item]:
        """Return the annotations of several videos: items without pixels and tracks, without rendering."""
        items: list[Item] = [{} for _ in indices]
        for group in self._groups(indices):
            for row, place in enumerate(group.places):
                items[place] = self._item(group, row, indices[place])
        return items

    def _item(self, group: _Group, row: int, index: int) -> Item:
        draws, facts = group.draws[row], group.scene.facts[row]
        register = _pick(self.config.caption_styles, draws[_REGISTER])
        language = _pick(self.config.languages, draws[_LANGUAGE])
        caption_draws = draws[_CAPTION : _CAPTION + caption_templates.DRAWS].tolist()
        caption = caption_templates.write_caption(
            facts, register, language, caption_draws, faults=self.config.caption_error_rate
        )
        written = self.synthetic_captions.get(index % self.count)
        share, draw = self.config.synthetic_prob, float(draws[_WRITER])
        return {
            **(
                {"text": caption.text}
                if written is None
                else mix_captions(caption.text, written.synthetic, share, draw)
            ),
            "register": register,
            "language": language,
            "mentioned": caption.facts,
            "attributes": facts,
            "unseen": has_held_out_combination(facts),
            "fps": group.view.fps,
        }

    def _groups(self, indices: Sequence[int]) -> Iterator[_Group]:
        """Group the requested videos by scene and size, and draw their attributes together."""
        for index in indices:
            if not -self.count <= index < self.count:
                raise IndexError(f"video {index} of {self.count}")
        numbers = np.array([self.first + index % self.count for index in indices], dtype=np.uint64)
        draws = uniforms(self.config.seed, numbers, _ALL)
        sizes = self.config.sizes
        frames, fps = self.config.frames, self.config.fps
        views = [
            VideoShape(*_pick(sizes, draw[_SIZE]), _pick(frames, draw[_LENGTH]), _pick(fps, draw[_RATE]))
            for draw in draws[:, :_COUNT]
        ]
        drawn = [(_pick(self.config.fitting(v), draw[_SCENE]), v) for draw, v in zip(draws, views, strict=True)]
        for scene, view in dict.fromkeys(drawn):
            places = [place for place, key in enumerate(drawn) if key == (scene, view)]
            yield _group(self.config, self.part, scene, draws[places], view, places)


class _Group(NamedTuple):
    """Videos of one scene and size: their indices in the request, draws, attributes, and rendering function.

    present: (B, N) which of the tracks that `shot` gives are of things that are there; None for all.
    """

    places: list[int]
    draws: Real
    view: VideoShape
    scene: SceneBatch
    present: NDArray[np.bool_] | None = None

    def render(self) -> tuple[Tensor, list[Tensor]]:
        """Pixels (B, 3, T, H, W) uint8, and of each video the track (N, T, 4) of its objects."""
        canvas, track = self.scene.render()
        present = np.ones(track.shape[:2], dtype=bool) if self.present is None else self.present
        tracks = [torch.from_numpy(positions[there]) for positions, there in zip(track, present, strict=True)]
        whole = np.rint(canvas.clip(0, 255, out=canvas), out=canvas).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(whole.transpose(0, 2, 1, 3, 4))), tracks


def _square(clip: Tensor) -> Tensor:
    """Return the central square of (..., H, W)."""
    high, wide = clip.shape[-2:]
    side = min(high, wide)
    top, left = (high - side) // 2, (wide - side) // 2
    return clip[..., top : top + side, left : left + side].contiguous()


def has_held_out_combination(facts: Facts) -> bool:
    """Return True if a video shows a combination of colour, shape and motion that training never has."""
    return any(
        thing["motion"] is not None
        and casting.is_held_out_combination(thing["colour"], thing["shape"], thing["motion"])
        for thing in facts.get("objects", [])
    )


def _group(
    config: PlaygroundConfig, part: Split, scene: str, draws: Real, view: VideoShape, places: list[int]
) -> _Group:
    if scene == "objects":
        return _objects(config, part, draws, view, places)
    return _Group(places, draws, view, SPECIAL_SCENES[scene](draws[:, _ACTION : _ACTION + SHOT_DRAWS], view))


def _objects(config: PlaygroundConfig, part: Split, draws: Real, view: VideoShape, places: list[int]) -> _Group:
    wanted, most = np.array([_pick(config.objects, draw) for draw in draws[:, _COUNT]]), max(config.objects)
    hues = draws[:, _HUES:_ACTION].argsort(axis=1)[:, :most]  # no colour twice in a video
    action = draws[:, _ACTION : _ACTION + most * casting.PER_OBJECT]
    cast = casting.sample_objects(action, hues, wanted, view, config.motions, part=part)
    shares = staging.SceneProbabilities(config.p_pattern, config.p_occluder, config.p_camera)
    cast, stage = staging.set_up_scene(cast, draws[:, _STAGE:_HUES], view, shares)

    def draw_video() -> tuple[Real, Real]:
        canvas, seen = staging.render(cast, stage, view)
        x, y, radius, _ = (field.reshape(seen.shape) for field in cast.paths[:4])
        return canvas, np.stack([x, y, radius, seen], axis=-1)

    facts = [facts_of(cast, stage, view, row) for row in range(len(draws))]
    return _Group(places, draws, view, SceneBatch(facts, draw_video), cast.present)


def _pick(values: Sequence[_T], draw: float) -> _T:
    return values[int(draw * len(values))]


def _listed(values: Sequence[object]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values, range) else ", ".join(map(str, values))
