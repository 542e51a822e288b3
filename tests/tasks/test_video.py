"""Video tasks from Python: every one is generated again from its metadata, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.test_video import clip, frames, model
from tests.generation.tiny import WORDS, tiny_clips
from unveil.errors import DataError, RecipeError, WeightsError
from unveil.generation.image_output import read_generation_metadata
from unveil.io.console import Console
from unveil.io.images import png
from unveil.io.video.writer import write_video
from unveil.model.migration import METADATA_FORMAT
from unveil.tasks import NAME, registry
from unveil.tasks.regenerate import Regenerate
from unveil.tasks.task import TaskContext, TaskOutput
from unveil.tasks.video_edit import VideoEdit
from unveil.tasks.video_run import per_frame

__all__ = ["model"]
TWO = [WORDS[0], WORDS[1]]
SCENES = [{"first": 0, "last": 6, "prompt": WORDS[0]}, {"first": 7, "last": 11, "prompt": WORDS[1]}]
TASKS: dict[str, dict[str, Any]] = {
    "prompt": {NAME: "video-generate", "prompt": WORDS[0], "seed": 4, "negative_prompt": "blue", "steps": 3},
    "windows": {NAME: "video-generate", "prompt": WORDS[0], "frames": 14, "overlap": 2, "fps": 4},
    "keyframes": {
        NAME: "video-generate",
        "prompt": WORDS[0],
        "keyframes": [{"image": "one.png", "frame": -1}, {"image": "two.png", "frame": 2}],
    },
    "passes": {NAME: "video-generate", "prompt": WORDS[0], "width": 16, "height": 16, "guidance_scale": 2.0},
    "extend": {NAME: "video-extend", "video": "clip", "frames": 5},
    "backward": {NAME: "video-extend", "video": "clip", "frames": 5, "backward": True},
    "interpolate": {NAME: "video-interpolate", "first": "one.png", "last": "other", "frames": 4, "prompt": WORDS[0]},
    "loop": {NAME: "video-loop", "video": "clip", "frames": 3},
    "ring": {NAME: "video-loop", "prompt": WORDS[0], "frames": 5},
    "join": {NAME: "video-join", "first": "clip", "last": "other", "frames": 4, "prompt": TWO},
    "blend": {NAME: "video-join", "first": "clip", "last": "other", "method": "blend"},
    "edit": {NAME: "video-edit", "video": "clip", "prompt": WORDS[1], "strength": [0, 0.9], "mask": "white.png"},
    "difference": {NAME: "video-edit", "video": "clip", "prompt": WORDS[1], "method": "difference"},
    "storyboard": {NAME: "video-storyboard", "scenes": SCENES, "prompt_crossfade": 2},
    "upscale": {NAME: "video-upscale", "video": "clip", "factor": 3},
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two videos of frames, two images and a mask, which is the current one."""
    monkeypatch.chdir(tmp_path)
    given = clip(tmp_path / "clip", facts={"given": {"prompt": WORDS[0]}})
    clip(tmp_path / "other", seed=3)
    for name, place in (("one", 0), ("two", 1)):
        (tmp_path / f"{name}.png").write_bytes(png(given[:, place]))
    white = torch.zeros(1, 8, 8, dtype=torch.uint8)
    white[..., :4] = 255
    (tmp_path / "white.png").write_bytes(png(white))
    return tmp_path


def context(out: str) -> TaskContext:
    return TaskContext(TaskOutput(Path(out)), Console(quiet=True))


@pytest.mark.parametrize("name", TASKS)
def test_a_video_is_generated_again(inputs: Path, model: Path, name: str):
    task = registry.parse({**TASKS[name], "model": str(model)})
    assert registry.parse(json.loads(json.dumps(task.model_dump(mode="json"))) | {NAME: task.name}) == task
    task.run(context("made"))
    threads = torch.get_num_threads()
    facts = read_generation_metadata(inputs / "made" / "frame_00000.png")
    assert (facts["format"], facts["task"][NAME]) == (METADATA_FORMAT, task.name)
    (inputs / "elsewhere").mkdir()
    (inputs / "one.png").rename(inputs / "elsewhere" / "one.png")  # found in a folder that is given
    found = Regenerate(source="made/frame_00000.png", model=str(model), inputs=("elsewhere",))
    found.run(context("again"))
    assert torch.get_num_threads() == threads
    assert torch.equal(frames(inputs / "again"), frames(inputs / "made"))
    assert read_generation_metadata(inputs / "again" / "frame_00000.png") == facts


def test_each_of_several_videos_is_generated_again(inputs: Path, model: Path):
    values = {"prompt": WORDS[0], "model": str(model)}
    registry.parse({NAME: "video-generate", **values, "count": 3, "seed": 5}).run(context("many.gif"))
    registry.parse({NAME: "video-generate", **values, "seed": [1, 9]}).run(context("seeds.gif"))
    for name in ("many_002.gif", "seeds_001.gif"):
        Regenerate(source=name, model=str(model)).run(context("again"))
        assert (inputs / "again" / name).read_bytes() == (inputs / name).read_bytes()


def test_what_cannot_be_generated_again_says_why(inputs: Path, model: Path, tmp_path: Path):
    registry.parse({**TASKS["extend"], "model": str(model)}).run(context("made.gif"))
    clip(tmp_path / "clip", seed=8)
    with pytest.raises(DataError, match=r"clip \(sha256 .*is not here"):
        Regenerate(source="made.gif", model=str(model)).run(context("again.gif"))
    registry.parse({**TASKS["prompt"], "model": str(model)}).run(context("words.gif"))
    other = tiny_clips(frames=5).save(tmp_path / "else")
    with pytest.raises(WeightsError, match="give the model that generated it"):
        Regenerate(source="words.gif", model=str(other)).run(context("again.gif"))
    former = {"task": {"verb": "upscale", "size": [8, 8]}, "fps": 8.0, "model": {"name": "clips", "sha256": "0"}}
    write_video(tmp_path / "former.gif", torch.zeros(3, 2, 8, 8, dtype=torch.uint8), 8.0, former)
    with pytest.raises(DataError, match="former version"):
        Regenerate(source="former.gif").run(context("again.gif"))


def test_strengths_lie_on_lines_through_those_that_are_given():
    assert per_frame([0.5], 3) == [0.5, 0.5, 0.5]
    assert per_frame([0.0, 1.0, 0.5], 5) == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert per_frame([0.3, 0.9], 1) == [0.3]
    with pytest.raises(RecipeError, match=r"strength.1 = 2"):
        VideoEdit.parse({"video": "a", "prompt": "b", "strength": [0, 2]})
