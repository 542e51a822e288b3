"""The stock client of OpenAI's interface generates images and videos here, and maps the errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.http.conftest import KEY, Begin, Server
from unveil.cli.commands import run
from unveil.generation.video_inputs import decode_video
from unveil.server.http.middleware import SecurityPolicy
from unveil.server.http.schema import VideosBody
from unveil.server.jobs.catalog import ModelInfo
from unveil.server.jobs.job_table import QueueLimits

openai = pytest.importorskip("openai")
pytest.importorskip("av")
# the client deprecates its calls for videos
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
Opens = Callable[..., Any]


@pytest.fixture
def client() -> Iterator[Opens]:
    """Open clients of a server, and close each before its sockets are collected."""
    with ExitStack() as stack:

        def opened(server: Server, key: str = "none") -> Any:
            url = f"http://127.0.0.1:{server.port}/v1"
            return stack.enter_context(openai.OpenAI(api_key=key, base_url=url, max_retries=0))

        yield opened


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_an_image_equals_that_of_the_command_line(client: Opens, real: Server, tmp_path: Path):
    options = {"seed": 3, "steps": 2, "expand": False}
    found = client(real).images.generate(prompt="a red ring", n=2, size="32x32", quality="high", extra_body=options)
    made = [pixels(base64.b64decode(one.b64_json)) for one in found.data]
    command = [
        "sample",
        "a red ring",
        "--expand-prompt=none",
        "--seed",
        "3",
        "--steps",
        "2",
        "-n",
        "2",
        "--size",
        "32x32",
    ]
    assert run([*command, "--quiet", "--out", str(tmp_path / "own")]) == 0
    own = sorted(path for path in (tmp_path / "own").glob("seed3_*.png"))
    assert all(np.array_equal(one, pixels(path.read_bytes())) for one, path in zip(made, own, strict=True))
    assert (found.size, found.output_format) == ("32x32", "png")


def test_a_short_prompt_is_expanded_and_returned(client: Opens, real: Server):
    (one,) = client(real).images.generate(prompt="a red ring", extra_body={"steps": 1}).data
    assert one.revised_prompt.startswith("a ")
    assert len(one.revised_prompt) > len("a red ring")


def test_an_image_is_served_at_its_url(client: Opens, real: Server):
    (one,) = client(real).images.generate(prompt="a red ring", response_format="url", extra_body={"steps": 1}).data
    path = one.url.partition(f"127.0.0.1:{real.port}")[2]
    found = real.ask("GET", path)
    assert (found.status, found.headers["content-type"]) == (200, "image/png")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert pixels(found.body).shape == (32, 32, 3)


def test_an_image_is_edited_where_the_mask_is_transparent(client: Opens, real: Server):
    """OpenAI's masks are transparent in the region to inpaint, ours are white there. Both are read."""
    grey = np.full((32, 32, 3), 90, np.uint8)
    hole = np.dstack([np.full((32, 32, 3), 255, np.uint8), np.full((32, 32), 255, np.uint8)])
    hole[:, :16, 3] = 0
    white = np.zeros((32, 32, 3), np.uint8)
    white[:, :16] = 255
    made = []
    for mask in (hole, white):
        files = {}
        for name, content in (("image", grey), ("mask", mask)):
            files[name] = io.BytesIO()
            Image.fromarray(content).save(files[name], "PNG")
            files[name] = (f"{name}.png", files[name].getvalue(), "image/png")
        ask = {"seed": 1, "steps": 2}
        (one,) = client(real).images.edit(prompt="a red ring", extra_body=ask, **files).data
        made.append(pixels(base64.b64decode(one.b64_json)))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0][:, 16:], grey[:, 16:])
    assert not np.array_equal(made[0][:, :16], grey[:, :16])


def test_seconds_are_frames_at_the_rate_of_the_task_or_of_the_model():
    models = {"fast": ModelInfo(fps=24.0), "unknown": ModelInfo(), "playground-video": ModelInfo(fps=12.0)}

    def frames(**values: Any) -> int:
        body = VideosBody.model_validate({"prompt": "a ring", "seconds": 2, **values})
        return body.values("video-generate", models)["frames"]

    assert (frames(model="fast"), frames(model="unknown"), frames(model="of no catalog"), frames()) == (48, 16, 16, 24)
    assert (frames(model="fast", fps=10), frames(model="fast", frames=5)) == (20, 5)


def test_a_video_is_generated_served_extended_and_deleted(client: Opens, real: Server, tmp_path: Path):
    videos = client(real).videos
    small = {"steps": 1}
    made = videos.create_and_poll(prompt="a small red circle moves left", seconds="1", size="16x16", extra_body=small)
    assert (made.status, made.progress, made.seconds, made.size, made.error) == ("completed", 100, "1", "16x16", None)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(videos.download_content(made.id).read())
    assert decode_video(clip, None)[0].shape == (3, 8, 16, 16)
    assert pixels(videos.download_content(made.id, variant="thumbnail").read()).shape == (16, 16, 3)
    other = videos.remix(made.id, prompt="a small blue circle moves left", extra_body=small)
    longer = videos.extend(video=clip, prompt="a small red circle moves left", seconds="0.5", extra_body=small)
    begun = videos.create(prompt="a red ring", input_reference=("a.png", videos.download_content(
        made.id, variant="thumbnail").read(), "image/png"), extra_body={**small, "frames": 4})  # fmt: skip
    for one in (other, longer, begun):
        assert videos.poll(one.id, poll_interval_ms=50).status == "completed"
    clip.write_bytes(videos.download_content(longer.id).read())
    assert decode_video(clip, None)[0].shape[1] == 12
    listed = [one.id for one in videos.list(limit=2)]
    assert listed == [begun.id, longer.id, other.id, made.id]  # pages follow each other
    assert videos.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(made.id)


def test_models_are_the_allowed_ones(client: Opens, real: Server):
    models = client(real).models
    assert {"ddpm-digits", "playground-video"} <= {one.id for one in models.list()}
    assert models.retrieve("playground-video").makes == "videos"
    with pytest.raises(openai.NotFoundError, match="nearest: 'ddpm-digits'"):
        models.retrieve("ddpm-digit")


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "no model has this name"),
        ({"size": "big"}, openai.BadRequestError, "WIDTHxHEIGHT"),
        ({"size": "33x32"}, openai.BadRequestError, "33"),
        ({"n": 65}, openai.UnprocessableEntityError, "n: "),
        ({"extra_body": {"stpes": 3}}, openai.UnprocessableEntityError, "stpes"),
        ({"extra_body": {"sampler": "dimm"}}, openai.BadRequestError, "ddim"),
        ({"model": "ddpm-digits"}, openai.BadRequestError, "this model takes no prompt, only: label"),
        ({"size": "8192x8192", "n": 64}, openai.UnprocessableEntityError, "megapixel evaluations"),
    ],
)
def test_errors_have_the_types_that_the_client_expects(client: Opens, real: Server, ask: Any, kind: Any, message: str):
    with pytest.raises(kind, match=message):
        client(real).images.generate(**{"prompt": "a ring", **ask})


def test_a_wrong_key_and_a_full_queue_are_reported(client: Opens, begin: Begin):
    server = begin(rules=SecurityPolicy(keys={"me": KEY}), limits=QueueLimits(waiting=1, each=5), workers=0)
    with pytest.raises(openai.AuthenticationError):
        client(server, "another-another-another").images.generate(prompt="a ring")
    assert client(server, KEY).videos.create(prompt="a ring").status == "queued"
    with pytest.raises(openai.RateLimitError, match="1 jobs are queued") as limited:
        client(server, KEY).videos.create(prompt="a ring")
    assert int(limited.value.response.headers["retry-after"]) >= 1
