"""`unveil video`: each command writes a playable video, keeps its conditioning frames and refuses invalid options."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cli.conftest import Cli, tree
from tests.cli.test_bad_input import refused
from tests.cli.test_commands import pixels
from tests.generation.tiny import WORDS, tiny_clips
from tests.io.video.tiny_videos import make_video
from unveil.generation.image_output import read_generation_metadata
from unveil.io import staging
from unveil.io.images import png
from unveil.io.video.reader import VideoLimits, VideoReader
from unveil.io.video.writer import write_video


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clips(frames=6).save(tmp_path_factory.mktemp("models") / "clips")


def clip(path: Path, frames: int = 6, size: int = 8, seed: int = 1, facts: dict[str, Any] | None = None) -> Tensor:
    """Write a video; return it as uint8 (3, T, H, W)."""
    made = torch.randint(0, 256, (3, frames, size, size), generator=torch.Generator().manual_seed(seed))
    write_video(path, made.to(torch.uint8), 8.0, facts)
    return made.to(torch.uint8)


def frames(folder: Path) -> Tensor:
    """The frames of a folder, uint8 (3, T, H, W)."""
    return torch.stack([pixels(file).permute(2, 0, 1) for file in sorted(folder.iterdir())], dim=1)


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("form", ["mp4", "webm", "gif", "webp", "apng"])
def test_text_to_video_in_every_output_format(cli: Cli, model: Path, tmp_path: Path, form: str):
    done = cli(
        "video", WORDS[0], "--model", model, "-o", f"out.{form}", "--seed", 4, "--negative-prompt", "blue", "--json"
    )
    assert done.code == 0, done.err
    assert done.json | {"model": None} == {
        "clips": [f"out.{form}"], "model": None, "task": "video-generate", "seed": 4, "count": 1, "frames": 6,
        "size": [8, 8], "fps": 8.0,
    }  # fmt: skip
    facts = read_generation_metadata(tmp_path / f"out.{form}")
    assert facts["given"] == {"prompt": WORDS[0]}
    assert facts["negative"] == {"prompt": "blue"}
    assert (facts["seed"], facts["steps"], facts["size"], facts["fps"]) == (4, 4, [6, 8, 8], 8.0)
    wanted = {"name": "video-generate", "model": "clips", "prompt": WORDS[0], "negative_prompt": "blue", "seed": 4}
    assert facts["task"] == wanted
    if form in ("mp4", "webm", "gif"):
        assert VideoReader().probe(tmp_path / f"out.{form}", VideoLimits()).frames == 6


@pytest.mark.filterwarnings("ignore::unveil.errors.PromptTruncated")  # of the words that it does not know
def test_a_prompt_that_begins_as_a_setting_does_is_a_prompt(cli: Cli, model: Path, tmp_path: Path):
    typed = "style=plain, " + WORDS[0]
    done = cli("video", typed, "--model", model, "-o", "out.gif", "--negative-prompt", "look=blue", "--quiet")
    assert done.code == 0, done.err
    facts = read_generation_metadata(tmp_path / "out.gif")
    assert (facts["given"], facts["negative"]) == ({"prompt": typed}, {"prompt": "look=blue"})


def test_force_keeps_foreign_files_of_a_folder(cli: Cli, model: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"mine")
    ask = ["video", WORDS[0], "--model", model, "--force", "-o"]
    refused(cli(*ask, "photos"), 5, "photos: would be replaced, and holds holiday.jpg")
    refused(cli("merge", model, model, "--out", "photos", "--force"), 5, "holds holiday.jpg")
    assert tree(tmp_path) == {"photos/holiday.jpg": b"mine"}
    for place in (".", ".."):
        refused(cli(*ask, place), 5, "names no file or folder; add a name")
    assert cli(*ask, "frames").code == 0
    assert cli(*ask, "frames", "--frames", 4).code == 0  # ours, and fewer of them
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"frame_{n:05d}.png" for n in range(4)]


def test_longer_videos_and_several(cli: Cli, model: Path, tmp_path: Path):
    options = ["--model", model, "--frames", 14, "--overlap", 2, "--fps", 4, "--no-metadata"]
    done = cli("video", WORDS[0], *options, "-n", 2, "--size", "12x8", "-o", "many", "--json")
    assert done.code == 0, done.err
    assert done.json["clips"] == ["many_000", "many_001"]
    both = [frames(tmp_path / name) for name in done.json["clips"]]
    assert [tuple(one.shape) for one in both] == [(3, 14, 8, 12)] * 2
    assert not torch.equal(*both)
    assert cli("video", "generate", WORDS[0], *options, "--size", "12x8", "-o", "one").code == 0
    assert int((frames(tmp_path / "one").int() - both[0].int()).abs().max()) <= 1, "noise is each clip's own"


def test_image_to_video_keeps_the_keyframes(cli: Cli, model: Path, tmp_path: Path):
    given = clip(tmp_path / "given", 2)
    first, second = sorted((tmp_path / "given").iterdir())
    done = cli(
        "video", WORDS[0], "--model", model, "--image", first, "--image-frame", -1, "--image", second,
        "--image-frame", 2, "--frames", 9, "-o", "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    made = frames(tmp_path / "out")
    assert torch.equal(made[:, [-1, 2]], given)
    facts = read_generation_metadata(tmp_path / "out" / "frame_00000.png")
    assert facts["task"]["keyframes"] == [
        {"image": first.name, "frame": -1},
        {"image": second.name, "frame": 2},
    ]
    assert [one["name"] for one in facts["inputs"].values()] == [first.name, second.name]


@pytest.mark.parametrize(("options", "kept"), [([], slice(0, 6)), (["--backward"], slice(5, 11))])
def test_an_extended_video_keeps_its_frames(cli: Cli, model: Path, tmp_path: Path, options: list[str], kept: slice):
    given = clip(tmp_path / "given", facts={"given": {"prompt": WORDS[1]}})
    done = cli("video", "extend", "given", "--model", model, "--frames", 5, *options, "-o", "out")
    assert done.code == 0, done.err
    made = frames(tmp_path / "out")
    assert made.shape[1] == 11
    assert torch.equal(made[:, kept], given)
    assert read_generation_metadata(tmp_path / "out" / "frame_00000.png")["given"] == {"prompt": WORDS[1]}, (
        "the words that made it"
    )


def test_interpolation_between_images_and_videos(cli: Cli, model: Path, tmp_path: Path):
    given, other = clip(tmp_path / "given", 2), clip(tmp_path / "other", 3, seed=3)
    image = sorted((tmp_path / "given").iterdir())[0]
    done = cli(
        "video", "interpolate", image, "other", "--model", model, "--frames", 4, "--prompt", WORDS[0], "-o", "out"
    )
    assert done.code == 0, done.err
    made = frames(tmp_path / "out")
    assert made.shape[1] == 1 + 4 + 3
    assert torch.equal(made[:, 0], given[:, 0])
    assert torch.equal(made[:, -3:], other)


def test_loops(cli: Cli, model: Path, tmp_path: Path):
    given = clip(tmp_path / "given")
    done = cli("video", "loop", "given", "--model", model, "--frames", 3, "--prompt", WORDS[0], "-o", "out")
    assert done.code == 0, done.err
    assert torch.equal(frames(tmp_path / "out")[:, :6], given)
    assert frames(tmp_path / "out").shape[1] == 9
    done = cli("video", "loop", "--prompt", WORDS[0], "--model", model, "--frames", 5, "-o", "ring", "--json")
    assert done.code == 0, done.err
    assert done.json["task"] == "video-loop"
    assert frames(tmp_path / "ring").shape[1] == 5


def test_videos_are_connected(cli: Cli, model: Path, tmp_path: Path):
    first, last = clip(tmp_path / "first"), clip(tmp_path / "last", seed=3)
    both = ["video", "join", "first", "last", "--model", model, "--prompt", WORDS[0], "--prompt", WORDS[1]]
    assert cli(*both, "--frames", 4, "-o", "bridge").code == 0
    made = frames(tmp_path / "bridge")
    assert torch.equal(made[:, :6], first)
    assert torch.equal(made[:, -6:], last)
    assert made.shape[1] == 16
    assert cli(*both, "--method", "blend", "-o", "blend").code == 0
    made = frames(tmp_path / "blend")
    assert torch.equal(made[:, [0, -1]], torch.stack([first[:, 0], last[:, -1]], dim=1))


def test_edits_keep_the_masked_region(cli: Cli, model: Path, tmp_path: Path):
    given = clip(tmp_path / "given", facts={"given": {"prompt": WORDS[0]}})
    white = torch.zeros(1, 8, 8, dtype=torch.uint8)
    white[..., :4] = 255
    (tmp_path / "white.png").write_bytes(png(white))
    base = ["video", "edit", "given", "--model", model, "--prompt", WORDS[1]]
    for name, options in (("mask", ["--mask", "white.png"]), ("keep", ["--keep-mask", "white.png"])):
        for way in ("noise", "difference"):
            done = cli(*base, *options, "--method", way, "-o", f"{name}-{way}")
            assert done.code == 0, done.err
            made = frames(tmp_path / f"{name}-{way}")
            same, anew = (made[..., 4:], made[..., :4]) if name == "mask" else (made[..., :4], made[..., 4:])
            theirs, other = (given[..., 4:], given[..., :4]) if name == "mask" else (given[..., :4], given[..., 4:])
            assert torch.equal(same, theirs)
            assert not torch.equal(anew, other)
    assert cli(*base, "--strength", "0,0.9", "-o", "ramp").code == 0
    made = frames(tmp_path / "ramp")
    assert torch.equal(made[:, 0], given[:, 0])
    assert not torch.equal(made[:, -1], given[:, -1])


def test_storyboards_as_options_and_in_a_file_are_equal(cli: Cli, model: Path, tmp_path: Path):
    (tmp_path / "board.yaml").write_text(
        f"scenes:\n  - {{frames: 0-6, prompt: {WORDS[0]}}}\n  - {{frames: 7-11, prompt: {WORDS[1]}}}\n"
    )
    typed = ["--scene", f"0-6 {WORDS[0]}", "--scene", f"7-11: {WORDS[1]}"]
    for name, given in (("file", ["board.yaml"]), ("typed", typed)):
        done = cli("video", "storyboard", *given, "--model", model, "--prompt-crossfade", 2, "-o", name)
        assert done.code == 0, done.err
    assert torch.equal(frames(tmp_path / "file"), frames(tmp_path / "typed"))
    assert frames(tmp_path / "file").shape[1] == 12


def test_large_sizes_use_passes_and_keep_the_keyframes(cli: Cli, model: Path, tmp_path: Path):
    clip(tmp_path / "given", 1, size=24)
    (image,) = (tmp_path / "given").iterdir()
    options = ["--model", model, "--size", "32x24", "--frames", 3]
    done = cli("video", WORDS[0], *options, "--image", image, "--image-frame", 1, "-o", "large")
    assert done.code == 0, done.err
    assert "32x24 is far beyond the model's own 8x8: made in 3 passes, at 12x8, 20x16, 32x24;" in done.out
    made = frames(tmp_path / "large")
    assert made.shape == (3, 3, 24, 32)
    assert read_generation_metadata(tmp_path / "large" / "frame_00000.png")["passes"] == [[8, 12], [16, 20], [24, 32]]
    done = cli("video", WORDS[0], *options[:2], "--size", "24x24", "--frames", 3, "--image", image, "-o", "square")
    assert done.code == 0, done.err
    assert torch.equal(frames(tmp_path / "square")[:, :1], frames(tmp_path / "given"))


def test_videos_are_upscaled(cli: Cli, model: Path, tmp_path: Path):
    clip(tmp_path / "given")
    done = cli("video", "upscale", "given", "--model", model, "--factor", 3, "--prompt", WORDS[0], "-o", "large")
    assert done.code == 0, done.err
    assert frames(tmp_path / "large").shape == (3, 6, 24, 24)


def test_a_video_model_generates_images(cli: Cli, model: Path, tmp_path: Path):
    done = cli("sample", model, WORDS[1], "--size", "12x8", "-n", 2, "--save-trajectory", "--out", "made")
    assert done.code == 0, done.err
    assert pixels(tmp_path / "made" / "seed0_00000.png").shape == (8, 12, 3)
    again = cli("sample", model, "--from-metadata", "made/seed0_00001.png", "--out", "again.png")
    assert again.code == 0, again.err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "made" / "seed0_00001.png").read_bytes()


def test_large_images_use_passes(cli: Cli, model: Path, tmp_path: Path):
    done = cli("sample", model, WORDS[1], "--size", "32x24", "--out", "large.png")
    assert done.code == 0, done.err
    assert "32x24 is far beyond the model's own 8x8: made in 3 passes, at 12x8, 20x16, 32x24;" in done.out
    assert pixels(tmp_path / "large.png").shape == (24, 32, 3)
    assert read_generation_metadata(tmp_path / "large.png")["passes"] == [[8, 12], [16, 20], [24, 32]]
    refused(
        cli("sample", model, "--from-metadata", "large.png", "--out", "again.png"),
        4,
        "several passes are not generated again",
    )
    Path("lines.txt").write_text(f"{WORDS[1]}\n", "utf-8")
    options = ["--size", "32x24", "--seed", 4, "--steps", 1]
    done = cli("sample", model, "--prompts", "lines.txt", *options, "--out", "lines")
    assert "32x24 is far beyond the model's own 8x8: made in 3 passes" in done.out
    assert cli("sample", model, WORDS[1], *options, "--out", "alone.png").code == 0
    assert torch.equal(pixels(tmp_path / "lines/line0001_seed4_00000.png"), pixels(tmp_path / "alone.png"))


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([""], 2, ["the prompt is empty; write one"]),
        ([f"{WORDS[0]} {WORDS[1]}"], 2, ["words more than the 8 that fit", "use fewer words"]),
        (["no such things"], 2, ["none of its words is known"]),
        (
            [WORDS[0], "--size", "30x30"],
            2,
            ["size 30x30 (width x height): both sides must be multiples of 4 px; nearest 28x28 or 32x32"],
        ),
        ([WORDS[0], "--size", "large"], 2, ["--size 'large': is written WIDTHxHEIGHT"]),
        ([WORDS[0], "--frames", 0], 2, ["frames = 0: must be greater than or equal to 1"]),
        ([WORDS[0], "-n", 0], 2, ["count = 0: must be greater than or equal to 1"]),
        ([WORDS[0], "--fps", 0], 2, ["fps = 0.0: must be greater than 0"]),
        ([WORDS[0], "-o", "out.avi"], 2, ["out.avi: a video's name ends in .mp4"]),
        ([WORDS[0], "--image", "one.png", "--image-frame", 9], 2, ["frame 9 of a video of 6: must be 0 to 5"]),
        (
            [WORDS[0], "--image", "one.png", "--image", "one.png"],
            2,
            ["2 images but 1 frame indices; give one --image-frame for each"],
        ),
        ([WORDS[0], "--image", "none.png"], 4, ["none.png: no such file"]),
        ([WORDS[0], "--frames", 9, "--overlap", 6], 2, ["overlap 6: neighbouring windows of 6 frames share 1 to 5"]),
        (["extend", "given", "--context-frames", 7], 2, ["context 7: the video has 6 frames; give 1 to 6"]),
        (["extend", "text.mp4"], 4, ["text.mp4: its content is text, not MP4, MOV, WebM, MKV or GIF"]),
        (["extend", "given", "--frames", 0], 2, ["frames = 0: must be greater than or equal to 1"]),
        (["join", "given", "wide"], 2, ["videos of 8x8 and 12x12 px", "bring both to it with --size 8x8"]),
        (["join", "given", "short", "--method", "blend"], 2, ["videos of 6 and 3 frames", "cut both to 3"]),
        (["join", "given", "given", "--method", "belnd"], 2, ["must be one of bridge, blend; nearest: 'blend'"]),
        (["edit", "given"], 2, ["edit needs a prompt"]),
        (
            ["edit", "given", "--prompt", WORDS[0], "--strength", "1.5"],
            2,
            ["strength.0 = 1.5: must be less than or equal to 1"],
        ),
        (["edit", "given", "--prompt", WORDS[0], "--strength", "much"], 2, ["--strength 'much': must be numbers"]),
        (["loop"], 2, ["loop needs a video, or --prompt"]),
        (["storyboard"], 2, ["a storyboard is a file, or one --scene for each scene"]),
        (["storyboard", "--scene", f"0-3 {WORDS[0]}", "--scene", f"6-9 {WORDS[0]}"], 2, ["must begin at 4"]),
        (["storyboard", "--scene", "first"], 2, ["--scene 'first': needs frames as FIRST-LAST"]),
        (["upscale", "given", "--strength", 2], 2, ["strength = 2.0: must be less than or equal to 1"]),
    ],
)
def test_faults(cli: Cli, model: Path, tmp_path: Path, arguments: list[Any], code: int, words: list[str]):
    clip(tmp_path / "given")
    clip(tmp_path / "short", 3)
    clip(tmp_path / "wide", size=12)
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "one.png").write_bytes(sorted((tmp_path / "given").iterdir())[0].read_bytes())
    before = tree(tmp_path)
    refused(cli("video", *arguments, "--model", model), code, *words)
    assert tree(tmp_path) == before, "nothing is written"


def test_existing_files_are_not_overwritten_without_force(cli: Cli, model: Path, tmp_path: Path):
    (tmp_path / "out.mp4").write_text("mine")
    refused(cli("video", WORDS[0], "--model", model, "-o", "out.mp4"), 2, "exists already", "--force")
    assert (tmp_path / "out.mp4").read_text() == "mine"
    assert cli("video", WORDS[0], "--model", model, "-o", "out.mp4", "--force").code == 0


def test_a_full_disk_leaves_nothing(cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging, "sync", full)
    done = cli("video", WORDS[0], "--model", model, "-o", "out.mp4", "--json")
    refused(done, 5, "out.mp4: the disk is full", "free some space")
    assert json.loads(done.out)["exit_code"] == 5
    assert tree(tmp_path) == {}


def test_a_variable_frame_rate_needs_a_resampling_rule(cli: Cli, model: Path, tmp_path: Path):
    make_video(tmp_path / "uneven.mp4", size=(8, 8), count=6, ticks=[0, 1, 4, 5, 9, 10])
    refused(cli("video", "extend", "uneven.mp4", "--model", model, "-o", "out"), 4, "frame rate varies; give --fps")
    assert cli("video", "extend", "uneven.mp4", "--model", model, "--fps", 8, "--size", "8x8", "-o", "out").code == 0


def test_files_without_frames_are_refused_as_videos(cli: Cli, model: Path, tmp_path: Path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux([*stream.encode(sound), *stream.encode(None)])
    refused(cli("video", "extend", "song.mp4", "--model", model, "-o", "out"), 4, "song.mp4: holds sound only")
    assert list(tree(tmp_path)) == ["song.mp4"]


def test_an_animated_image_is_refused_as_a_keyframe(cli: Cli, model: Path, tmp_path: Path):
    assert cli("video", WORDS[0], "--model", model, "-o", "out.webp").code == 0
    refused(cli("video", "extend", "out.webp", "--model", model, "-o", "more"), 4, "out.webp: an image of 6 frames")
    assert list(tree(tmp_path)) == ["out.webp"]


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(model: Path, tmp_path: Path):
    words = [
        sys.executable,
        "-m",
        "unveil",
        "video",
        WORDS[0],
        "--model",
        str(model),
        "--frames",
        "100000",
        "-o",
        "a.mp4",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE)
    for _ in range(1200):
        if any(tmp_path.iterdir()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"interrupted" in err
    assert tree(tmp_path) == {}
