"""Frame rates: videos have that of training, networks are conditioned on it, and input videos are brought to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cli.test_video import clip, frames
from tests.generation.tiny import WORDS, tiny_clips
from tests.io.video.tiny_videos import make_video
from unveil.conditioning.micro_conditioning import ScalarCondition
from unveil.generation.image_output import read_generation_metadata
from unveil.generation.video_inputs import decode_video
from unveil.io.console import Console
from unveil.model import Model, checkpoint_store
from unveil.model.config import load_recipe
from unveil.model.model import FPS
from unveil.tasks import NAME, registry
from unveil.tasks.regenerate import Regenerate
from unveil.tasks.task import TaskContext, TaskOutput

RATE = 10.0  # of the training of the model here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_clips(frames=6)
    assert tiny.config is not None
    tiny.config = tiny.config.model_copy(update={"fps": RATE})
    return tiny.save(tmp_path_factory.mktemp("rated") / "clips")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is printed; the current folder is new."""
    monkeypatch.chdir(tmp_path)
    texts: list[str] = []
    monkeypatch.setattr(Console, "say", lambda self, text, *rest: texts.append(text))
    return texts


def ran(model: Path, out: str = "made", *, again: bool = False, **values: object) -> Tensor:
    """The frames that a task writes; by the metadata they are generated again."""
    task = registry.parse({"model": str(model), "steps": 1, **values})
    task.run(TaskContext(TaskOutput(Path(out)), Console(quiet=True)))
    made = frames(Path(out))
    if not again:
        return made
    first = f"{out}/frame_00000.png"
    Regenerate(source=first, model=str(model)).run(TaskContext(TaskOutput(Path(f"{out}-again")), Console(quiet=True)))
    assert torch.equal(frames(Path(f"{out}-again")), made)
    return made


def rate_in(folder: str) -> float:
    return read_generation_metadata(Path(folder) / "frame_00000.png")["fps"]


@pytest.mark.parametrize(
    "values",
    [
        {NAME: "video-generate", "prompt": WORDS[0]},
        {NAME: "video-loop", "prompt": WORDS[0], "frames": 5},
        {NAME: "video-storyboard", "scenes": [{"first": 0, "last": 5, "prompt": WORDS[0]}]},
        {NAME: "video-extend", "video": "clip", "frames": 3},
    ],
    ids=lambda values: values[NAME],
)
def test_videos_have_the_rate_of_training(heard: list[str], model: Path, values: dict[str, object]):
    clip(Path("clip"))  # frames, which have no rate
    ran(model, **values)
    assert rate_in("made") == RATE
    registry.parse({"model": str(model), "steps": 1, **values, "fps": 4}).run(
        TaskContext(TaskOutput(Path("slow")), Console())
    )
    assert rate_in("slow") == 4
    assert not [text for text in heard if "frames per second" in text]


def test_what_is_continued_is_brought_to_the_rate_of_training(heard: list[str], model: Path):
    make_video(Path("fast.mp4"), size=(8, 8), count=31, rate=30)
    given, rate, file_rate = decode_video(Path("fast.mp4"), RATE)
    assert (given.shape[1], rate, file_rate) == (11, RATE, 30)
    whole = decode_video(Path("fast.mp4"), None)[0]
    assert torch.equal(given, whole[:, ::3])  # the frames closest in time
    made = ran(model, again=True, **{NAME: "video-extend"}, video="fast.mp4", frames=4, prompt=WORDS[0])
    assert torch.equal(made[:, :11], given)
    assert (made.shape[1], rate_in("made")) == (15, RATE)
    assert any("fast.mp4: 30 frames per second, brought to the model's 10: 11 frames" in text for text in heard)
    closed = ran(model, "closed", **{NAME: "video-loop"}, video="fast.mp4", frames=3, prompt=WORDS[0])
    assert (closed.shape[1], rate_in("closed")) == (14, RATE)
    make_video(Path("slow.mp4"), size=(8, 8), count=4, rate=5)
    both = ran(model, "both", **{NAME: "video-join"}, first="fast.mp4", last="slow.mp4", frames=3)
    assert (both.shape[1], rate_in("both")) == (11 + 3 + 7, RATE)
    heard.clear()
    kept = ran(model, "kept", **{NAME: "video-extend"}, video="fast.mp4", frames=4, prompt=WORDS[0], fps=30)
    assert torch.equal(kept[:, :31], whole)
    assert rate_in("kept") == 30
    # the frames of an edit are those of the video
    edited = ran(model, "edited", **{NAME: "video-edit"}, video="fast.mp4", prompt=WORDS[1])
    assert (edited.shape[1], rate_in("edited")) == (31, 30)
    assert not heard


def test_a_file_of_another_rate_is_generated_again_at_its_own(
    heard: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As files that were made before the model stated its rate."""
    unrated = tiny_clips(frames=6).save(tmp_path / "unrated")
    make_video(Path("fast.mp4"), size=(8, 8), count=7, rate=30)
    made = ran(unrated, again=True, **{NAME: "video-extend"}, video="fast.mp4", frames=3, prompt=WORDS[0])
    assert (made.shape[1], rate_in("made")) == (10, 30)
    former = Regenerate(source="made/frame_00000.png", model=str(model))  # the same tensors, with a rate
    monkeypatch.setattr(checkpoint_store, "is_same", lambda stated, current: True)
    former.run(TaskContext(TaskOutput(Path("again")), Console(quiet=True)))
    assert torch.equal(frames(Path("again")), made)


def test_a_network_that_takes_the_rate_is_conditioned_on_it(
    heard: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = tiny_clips(frames=6)
    width = tiny.encode({"prompt": WORDS[:1]}, 1)[0].vector.shape[-1]  # pyright: ignore
    given: list[list[float]] = []

    class Rate(ScalarCondition):
        def encode(self, raw):  # type: ignore[no-untyped-def]
            given.append([float(value) for value in torch.as_tensor(raw).flatten()])
            return super().encode(raw)

    conditioners = [*tiny.conditioners.values(), Rate((25.0,), width - 1, key=FPS)]
    rated = Model(tiny.denoiser, tiny.shape, conditioners=conditioners, config=tiny.config, fps=25.0)
    opened = TaskContext.open
    monkeypatch.setattr(TaskContext, "open", lambda self, *rest, **named: (rated, opened(self, *rest, **named)[1]))

    def tell(**values: object) -> float:
        given.clear()
        out = f"made{len(list(Path().iterdir()))}"
        registry.parse({"model": str(model), "steps": 1, **values}).run(TaskContext(TaskOutput(Path(out)), Console()))
        [found] = {number for each in given for number in each}
        assert read_generation_metadata(Path(out) / "frame_00000.png")["batch"]["given"][FPS] == [found]
        assert rate_in(out) == found
        return found

    words = {NAME: "video-generate", "prompt": WORDS[0]}
    assert tell(**words) == 25
    assert tell(**words, fps=12) == 12
    make_video(Path("fast.mp4"), size=(8, 8), count=7, rate=30)
    assert tell(**{NAME: "video-extend"}, video="fast.mp4", frames=3, prompt=WORDS[0]) == 30
    edit = {NAME: "video-edit", "video": "fast.mp4", "prompt": WORDS[1]}
    assert tell(**edit) == 30
    assert tell(**edit, method="difference", source_prompt=WORDS[0]) == 30
    assert tell(**{NAME: "video-join"}, first="fast.mp4", last="fast.mp4", method="blend", prompt=WORDS) == 30
    assert not [text for text in heard if "frames per second" in text]


def test_recipes_have_the_rate_of_their_data():
    assert load_recipe("own-videos").model.fps == 8
    assert load_recipe("own-videos", ["data.fps=12"]).model.fps == 12
    assert load_recipe("own-videos", ["data.fps=null", "data.resample=none"]).model.fps is None
    assert load_recipe("own-videos", ["fps=24"]).model.fps == 24
    assert load_recipe("playground-video").model.fps == 8
    assert load_recipe("playground-video", ["data.fps=[4, 8]"]).model.fps is None
    assert load_recipe("own-images").model.fps is None
