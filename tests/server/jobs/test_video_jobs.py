"""Jobs that generate videos: every task, from names of uploads, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

from tests.server.jobs.conftest import done
from unveil.cli.commands import run
from unveil.errors import DataError, RecipeError
from unveil.generation.image_output import read_generation_metadata
from unveil.generation.video_inputs import decode_video
from unveil.io.images import png
from unveil.io.video.writer import write_video
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.job_types import job_cost
from unveil.server.jobs.outputs import COVER, STRIP

WORDS = "a small red circle moves left"
SMALL = {"steps": 1, "width": 16, "height": 16}
ONE, TWO = "0" * 32 + ".mp4", "1" * 32 + ".mp4"


@pytest.fixture
def sent(inputs, tmp_path: Path) -> dict[str, str]:
    """A red and a blue video of four frames each, and an image."""
    names = {}
    for name, colour in (("clip", 0), ("other", 2)):
        frames = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
        frames[colour, :, 4:12, 4:12] = 255
        write_video(tmp_path / f"{name}.mp4", frames, 8.0, None)
        names[name] = inputs.store((tmp_path / f"{name}.mp4").read_bytes()).name
    names["image"] = inputs.store(png(torch.full((3, 16, 16), 90, dtype=torch.uint8))).name
    return names


def test_text_to_video_equals_that_of_the_command_line(queue, results, worker, tmp_path: Path):
    command = ["video", "generate", WORDS, "--frames", "4", "--seed", "3", "--steps", "2", "--size", "16x16", "--quiet"]
    found = []
    for name, typed, chosen in (("own", [], {}), ("other", ["--sampler", "ancestral"], {"sampler": "ancestral"})):
        job = done(queue, worker, "video-generate", prompt=WORDS, frames=4, seed=3, **SMALL | {"steps": 2, **chosen})
        assert job.error is None
        assert job.outputs == ("clip.mp4", COVER, STRIP)
        own = tmp_path / f"{name}.mp4"
        assert run([*command, *typed, "-o", str(own)]) == 0
        made = results.file(job.id, "clip.mp4")
        assert torch.equal(decode_video(made, None)[0], decode_video(own, None)[0])
        facts = read_generation_metadata(made)
        assert (facts["seed"], facts["typed"]["prompt"]) == (3, WORDS)
        assert facts["sampler"] == chosen.get("sampler", "ddim")
        found.append(decode_video(own, None)[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("task", "ask", "frames"),
    [
        ("video-generate", {"prompt": WORDS, "frames": 4, "keyframes": [{"image": "image", "frame": 0}]}, 4),
        ("video-extend", {"video": "clip", "frames": 2, "prompt": WORDS}, 6),
        ("video-extend", {"video": "clip", "frames": 2, "backward": True}, 6),
        ("video-interpolate", {"first": "clip", "last": "other", "frames": 2}, 10),
        ("video-join", {"first": "clip", "last": "other", "frames": 2, "prompt": [WORDS, "a blue ring"]}, 10),
        ("video-join", {"first": "clip", "last": "other", "method": "blend"}, 4),
        ("video-loop", {"video": "clip", "frames": 2}, 6),
        ("video-loop", {"prompt": WORDS, "frames": 4, "width": 32, "height": 32}, 4),
        ("video-edit", {"video": "clip", "prompt": "a blue ring", "strength": 0.5}, 4),
        ("video-storyboard", {"scenes": [{"first": 0, "last": 1, "prompt": "a red ring"},
                                         {"first": 2, "last": 3, "prompt": "a blue ring"}]}, 4),
        ("video-upscale", {"video": "clip", "factor": 2, "prompt": WORDS}, 4),
    ],
)  # fmt: skip
def test_every_task_generates_its_video(queue, results, worker, sent, task: str, ask, frames: int):
    request = {
        **SMALL,
        **{key: sent.get(value, value) if isinstance(value, str) else value for key, value in ask.items()},
    }
    if "keyframes" in request:
        request["keyframes"] = [{"image": sent["image"], "frame": 0}]
    if task == "video-upscale":
        request = {key: value for key, value in request.items() if key not in ("width", "height")}
    job = done(queue, worker, task, **request)
    assert job.error is None
    pixels, rate, _ = decode_video(results.file(job.id, "clip.mp4"), None)
    assert pixels.shape[1] == frames
    assert rate == 8
    assert pixels.shape[2] == (32 if task == "video-upscale" or "width" in ask else 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "prompt: missing"),
        ({"task": "video-mak"}, "video-make|no such type of job"),
        ({"task": "video-extend"}, "video: missing"),
        ({"task": "video-interpolate", "first": ONE}, "last: missing"),
        ({"prompt": "a", "video": ONE}, "video: unknown key; .*allowed: .*prompt"),
        ({"task": "video-loop", "video": ONE, "keyframes": [{"image": ONE}]}, "keyframes: unknown key"),
        ({"task": "video-loop"}, "loop needs a video, or --prompt"),
        ({"task": "video-loop", "video": "/etc/passwd"}, "no file with this name was uploaded"),
        ({"task": "video-loop", "video": "../" + ONE}, "no file with this name was uploaded"),
        ({"prompt": "a", "frames": 0}, "frames"),
        ({"prompt": "a", "fps": 0}, "fps"),
        ({"prompt": "a", "sampling": {"etta": 1}}, "etta.*'eta'"),
        ({"prompt": "a", "sampler": "huen"}, "sampler 'huen'.*'heun'"),
        ({"prompt": "a", "format": "exe"}, "format"),
    ],
)
def test_an_invalid_request_is_refused_before_it_is_queued(queue, inputs, wrong, message: str):
    request = {"task": "video-generate", **wrong}
    with pytest.raises((RecipeError, DataError), match=message):
        job_cost(request.pop("task"), request, Catalog(queue.folder / "runs"), inputs)


def test_a_missing_upload_is_named(queue, worker):
    job = done(queue, worker, "video-loop", video=TWO, **SMALL)
    assert (job.state, job.error) == ("failed", f"'{TWO}': no file with this name was uploaded; upload it again")
