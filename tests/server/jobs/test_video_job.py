"""Jobs that generate videos: every task, from names of uploads, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

from tests.server.jobs.conftest import done
from unveil.cli.commands import run
from unveil.errors import RecipeError
from unveil.generation.image_output import read_facts
from unveil.generation.video_inputs import decoded
from unveil.io.images import png
from unveil.io.video.writer import write_video
from unveil.server.jobs.video_job import CLIPS, COVER, STRIP_FILE, read_request

WORDS = "a small red circle moves left"
SMALL = {"sampling": {"steps": 1}, "width": 16, "height": 16}
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
    names["picture"] = inputs.store(png(torch.full((3, 16, 16), 90, dtype=torch.uint8))).name
    return names


def test_text_to_video_equals_that_of_the_command_line(queue, results, worker, tmp_path: Path):
    command = ["video", "generate", WORDS, "--frames", "4", "--seed", "3", "--steps", "2", "--size", "16x16", "--quiet"]
    found = []
    for name, typed, chosen in (("own", [], {}), ("other", ["--sampler", "ancestral"], {"sampler": "ancestral"})):
        job = done(queue, worker, CLIPS, prompt=WORDS, frames=4, seed=3, **SMALL | {"sampling": {"steps": 2, **chosen}})
        assert job.error is None
        assert job.outputs == ("clip.mp4", COVER, STRIP_FILE)
        own = tmp_path / f"{name}.mp4"
        assert run([*command, *typed, "-o", str(own)]) == 0
        made = results.file(job.id, "clip.mp4")
        assert torch.equal(decoded(made, None)[0], decoded(own, None)[0])
        facts = read_facts(made)
        assert (facts["seed"], facts["typed"]["prompt"]) == (3, WORDS)
        assert facts["sampler"] == chosen.get("sampler", "euler-time")
        found.append(decoded(own, None)[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("ask", "frames"),
    [
        ({"verb": "make", "prompt": WORDS, "frames": 4, "known": [{"picture": "picture", "at": 0}]}, 4),
        ({"verb": "extend", "clip": "clip", "frames": 2, "prompt": WORDS}, 6),
        ({"verb": "extend", "clip": "clip", "frames": 2, "direction": "backward"}, 6),
        ({"verb": "between", "clip": "clip", "other": "other", "frames": 2}, 10),
        ({"verb": "connect", "clip": "clip", "other": "other", "frames": 2, "prompts": [WORDS, "a blue ring"]}, 10),
        ({"verb": "connect", "clip": "clip", "other": "other", "way": "blend"}, 4),
        ({"verb": "loop", "clip": "clip", "frames": 2}, 6),
        ({"verb": "ring", "prompt": WORDS, "frames": 4, "width": 32, "height": 32}, 4),
        ({"verb": "edit", "clip": "clip", "prompt": "a blue ring", "strength": 0.5}, 4),
        ({"verb": "storyboard", "scenes": [{"first": 0, "last": 1, "prompt": "a red ring"},
                                           {"first": 2, "last": 3, "prompt": "a blue ring"}]}, 4),
        ({"verb": "upscale", "clip": "clip", "factor": 2, "prompt": WORDS}, 4),
    ],
)  # fmt: skip
def test_every_task_generates_its_video(queue, results, worker, sent, ask, frames: int):
    request = {
        **SMALL,
        **{key: sent.get(value, value) if isinstance(value, str) else value for key, value in ask.items()},
    }
    if "known" in request:
        request["known"] = [{"picture": sent["picture"], "at": 0}]
    if ask["verb"] == "upscale":
        request = {key: value for key, value in request.items() if key not in ("width", "height")}
    job = done(queue, worker, CLIPS, **request)
    assert job.error is None
    pixels, rate = decoded(results.file(job.id, "clip.mp4"), None)
    assert pixels.shape[1] == frames
    assert rate == 8
    assert pixels.shape[2] == (32 if ask["verb"] in ("upscale", "ring") else 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "make needs prompt; prompt is missing"),
        ({"verb": "mak"}, "verb"),
        ({"verb": "extend"}, "extend needs clip"),
        ({"verb": "between", "clip": ONE}, "between needs clip and other; other is missing"),
        ({"verb": "make", "prompt": "a", "clip": ONE}, "clip: make does not take it; it takes: prompt, frames"),
        ({"verb": "loop", "clip": ONE, "known": [{"picture": ONE}]}, "known: loop does not take it"),
        ({"verb": "loop", "clip": "/etc/passwd"}, "clip"),
        ({"verb": "loop", "clip": "../" + ONE}, "clip"),
        ({"prompt": "a", "frames": 0}, "frames"),
        ({"prompt": "a", "fps": 0}, "fps"),
        ({"prompt": "a", "sampling": {"eta": 1}}, "allowed: steps, guidance_scale, sampler"),
        ({"prompt": "a", "sampling": {"sampler": "huen"}}, "sampler 'huen'.*'heun'"),
        ({"prompt": "a", "form": "exe"}, "form"),
    ],
)
def test_an_invalid_request_is_refused_before_it_is_queued(wrong, message: str):
    with pytest.raises(RecipeError, match=message):
        read_request(wrong)


def test_a_missing_upload_is_named(queue, worker):
    job = done(queue, worker, CLIPS, verb="loop", clip=TWO, **SMALL)
    assert (job.state, job.error) == ("failed", f"'{TWO}': no file with this name was uploaded; upload it again")
