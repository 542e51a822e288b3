"""Small files of large images: uploads are checked before anything decodes them."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr
from gradio import processing_utils
from gradio.components.image_editor import AcceptBlobs, EditorData
from gradio.data_classes import ImageData

from tests.data.test_bad_folders import black_png, grown_mb
from tests.server.http.conftest import Many, Server, server
from tests.server.http.test_middleware import form
from tests.studio.conftest import LEFT
from unveil.errors import RecipeError
from unveil.studio.client import StudioClient
from unveil.studio.page import Page
from unveil.studio.server import add_studio
from unveil.studio.upload_components import LAYERS, PAINTED, ImageUpload, MaskEditor, VideoUpload

pytestmark = LEFT
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
GROWTH_MB = 64


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("bombs"), limits=Many, extend=add_studio) as found:
        yield found


def pressed(studio: Server, part: str, values: dict[str, Any], event: str = "click") -> dict[str, Any] | None:
    """Return the updates of the page's components after a button is pressed, by name; None after a failure."""
    config = studio.ask("GET", "/en/config").json
    named = {one["id"]: (one["props"].get("elem_id"), one["props"].get("value")) for one in config["components"]}
    place = next(id for id, (name, _) in named.items() if name == part)
    dependency = next(one for one in config["dependencies"] if [place, event] in one["targets"] and one["backend_fn"])
    data = [values.get(name, value) for name, value in (named[id] for id in dependency["inputs"])]
    joined = {"data": data, "fn_index": dependency["id"], "session_hash": "bombs"}
    assert studio.ask("POST", "/en/gradio_api/queue/join", joined).status == 200
    line = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=60)
    line.request("GET", "/en/gradio_api/queue/data?session_hash=bombs")
    answer = line.getresponse()
    while (event_data := json.loads(answer.readline().removeprefix(b"data: ").strip() or "{}")).get("msg") != (
        "process_completed"
    ):
        pass
    line.close()
    if not event_data["success"]:
        return None
    return {named[id][0]: value for id, value in zip(dependency["outputs"], event_data["output"]["data"], strict=True)}


def sent(studio: Server, content: bytes) -> dict[str, Any]:
    """A file that the page was sent."""
    headers, body = form(("files", '; filename="a.png"', content))
    found = studio.ask("POST", "/en/gradio_api/upload", body=body, headers=headers)
    return {"path": found.json[0], "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


@LINUX
@pytest.mark.parametrize("mode", ["1", "RGBA"])
def test_a_bomb_is_refused_before_anything_decodes_it(studio: Server, mode: str):
    bomb = black_png(13_000, 13_000) if mode == "1" else rgba(9_000)
    first = pressed(studio, "image-go", {"image-prompt": "a ring"})
    assert first is not None
    assert first["image-message"] == ""  # all is imported
    updates: dict[str, Any] = {}

    def work() -> None:
        given = {"image-task": "img2img", "image-source": sent(studio, bomb), "image-prompt": "a ring"}
        updates.update(pressed(studio, "image-go", given) or {})

    assert grown_mb(work) < GROWTH_MB
    assert "pixels: the limit is 16,000,000" in updates["image-message"]


def rgba(side: int) -> bytes:
    """A PNG of four channels, which Gradio converts whatever Pillow's limit is."""
    out = io.BytesIO()
    Image.new("RGBA", (side, side)).save(out, "PNG", compress_level=1)
    return out.getvalue()


@LINUX
def test_gradios_own_part_decodes_it(tmp_path: Path):
    """The control of the test above, with a smaller image."""
    (tmp_path / "bomb.png").write_bytes(rgba(5_000))
    given = ImageData(path=str(tmp_path / "bomb.png"), orig_name="bomb.png")
    assert grown_mb(lambda: gr.Image(type="filepath").preprocess(given)) > 2 * GROWTH_MB
    assert grown_mb(lambda: ImageUpload(type="filepath").preprocess(given)) < 1


def test_a_session_without_updates_keeps_the_components_that_decode_nothing():
    """Gradio makes a part again of its class for each session that an update passes over."""
    for part in (ImageUpload(), MaskEditor(), VideoUpload()):
        assert type(part)(**part.constructor_args).preprocess.__func__ is type(part).preprocess
    assert [one.get_block_name() for one in (ImageUpload(), MaskEditor(), VideoUpload())] == [
        "image",
        "imageeditor",
        "video",
    ]
    assert not list(Path(__import__("unveil.studio").__file__).parent.rglob("*.pyi"))


def test_no_part_of_the_page_decodes_what_is_sent(studio: Server):
    parts = Page(StudioClient(studio.service, None), "en").blocks().blocks.values()
    assert {type(one) for one in parts if isinstance(one, gr.Image | gr.ImageEditor | gr.Video)} == {
        ImageUpload,
        MaskEditor,
        VideoUpload,
    }
    assert not [one for one in parts if isinstance(one, gr.Gallery | gr.AnnotatedImage | gr.ImageSlider)]


@pytest.mark.parametrize("ending", ["gif", "mkv", "mp4"])
def test_a_video_is_uploaded_and_shown_unchanged(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = tmp_path / f"clip.{ending}"
    clip.write_bytes(b"of any content")
    probed: list[str] = []
    monkeypatch.setattr(processing_utils, "ffmpeg_installed", lambda: True)
    monkeypatch.setattr(processing_utils, "video_is_playable", lambda path: probed.append(path) or True)
    monkeypatch.setattr(processing_utils, "_check_allowed", lambda *given, **how: None)
    gr.Video().postprocess(str(clip))
    assert probed == [str(clip)]  # control: Gradio's own part lets ffprobe read it
    probed.clear()
    shown = VideoUpload().postprocess(str(clip))
    assert shown is not None
    assert (shown.path, shown.orig_name, probed) == (str(clip), clip.name, [])
    assert VideoUpload().preprocess(shown) == str(clip)
    assert VideoUpload().postprocess(None) is VideoUpload().preprocess(None) is None


def blob(id: str, index: int) -> AcceptBlobs:
    return AcceptBlobs.model_construct(data={"type": "layer", "index": str(index), "id": id}, files=[("", b"painted")])


def test_painted_layers_are_bounded_and_passed_as_files(tmp_path: Path):
    brush = MaskEditor()
    brush.GRADIO_CACHE = str(tmp_path)
    with pytest.raises(RecipeError, match="at most"):
        brush.accept_blobs(blob("one", 10**9))
    brush.accept_blobs(blob("one", LAYERS - 1))
    found = brush.preprocess(EditorData(id="one"))
    assert [Path(one).read_bytes() for one in found["layers"]] == [b"painted"]
    for number in range(2 * PAINTED):
        brush.accept_blobs(blob(str(number), 0))
    assert len(brush.blob_storage) == PAINTED
    assert brush.preprocess(EditorData(id=str(2 * PAINTED - 1)))["layers"]
    assert brush.preprocess(None)["layers"] == []
