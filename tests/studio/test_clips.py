"""Video tasks on the page: text-to-video, image-to-video, extend, loop, connect, edit; and their timelines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("av")

from tests.server.http.conftest import Server
from tests.studio.conftest import LONG_MS, MARKS, another, begun, chosen, ended, painted, settled
from unveil.generation.video_inputs import decode_video
from unveil.studio.tabs import video as video_tab
from unveil.studio.timeline import frame_spans

pytestmark = MARKS


def frames_of(studio: Server, id: str) -> Any:
    return decode_video(studio.service.results.file(id, "clip.mp4"), None)[0]


def until(page: Any, label: str) -> None:
    """Wait until the timeline has this label."""
    from playwright.sync_api import expect

    expect(page.locator("#video-timeline [role=img]")).to_have_attribute("aria-label", label, timeout=LONG_MS)


def small(page: Any, frames: int) -> None:
    """Few frames and steps, and no other seed."""
    for part, value in (("frames", frames), ("steps", 2)):
        page.locator(f"#video-{part} textarea, #video-{part} input").fill(str(value))


def made(page: Any, before: str = "") -> str:
    page.get_by_role("button", name="Generate video").click()
    return another(page, "video", before)


def test_videos_are_generated_extended_looped_connected_and_edited(painting_page: Any, studio: Server):
    page = painting_page
    chosen(page, "video")
    small(page, 5)
    page.locator("#video-prompt textarea").fill("a small red circle moves left")
    first = made(page)
    assert frames_of(studio, first).shape[1:] == (5, 32, 32)
    assert (
        page.locator("#video-result video").evaluate(
            "one => new Promise(done => { one.onloadeddata = () => done(one.videoWidth); one.load(); })"
        )
        == 32
    )

    page.get_by_role("button", name="Extend this video").click()
    page.wait_for_selector("#video-clip video")
    small(page, 4)
    until(page, "frames 0 to 4 conditioning; frames 5 to 8 generated")
    longer = made(page, first)
    found = frames_of(studio, longer)
    assert found.shape[1] == 9
    assert page.locator("#video-result .pair video").count() == 2  # before and after

    page.get_by_label("at the start").check()
    until(page, "frames 0 to 3 generated; frames 4 to 8 conditioning")
    page.get_by_label("Loop", exact=True).check()
    small(page, 4)
    looped = made(page, longer)
    assert frames_of(studio, looped).shape[1] == 9

    page.get_by_label("Join", exact=True).check()
    second = studio.service.results.file(looped, "clip.mp4")
    page.locator("#video-other input[type=file]").set_input_files(second)
    page.wait_for_selector("#video-other video")
    small(page, 3)
    until(page, "frames 0 to 4 conditioning; frames 5 to 7 generated; frames 8 to 16 conditioning")
    joined = made(page, looped)
    assert frames_of(studio, joined).shape[1] == 5 + 3 + 9

    page.get_by_label("Edit", exact=True).check()
    page.locator("#video-prompt textarea").fill("a small blue circle moves left")
    edited = made(page, joined)
    assert frames_of(studio, edited).shape[1] == 5
    assert studio.service.queue.get(edited).request["strength"] == 0.7

    page.get_by_label("keep", exact=True).check()
    painted(page, "video")
    again = made(page, edited)
    request = studio.service.queue.get(again).request
    stays = np.array(Image.open(studio.service.uploads().path(request["keep_mask"]))) > 127
    assert 4 < int(stays.sum()) < 500
    before, after = (frames_of(studio, id).float() for id in (first, again))
    off = (after - before).abs().mean((0, 1)).numpy()
    assert off[stays].mean() < off[~stays].mean() / 2  # the file is compressed


def test_the_timeline_shows_the_last_change_where_an_earlier_one_takes_longer(
    page: Any, studio: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def slow_before_the_change(*values: Any) -> Any:
        if values[3] == 0:  # index of the keyframe
            time.sleep(1.5)
        return frame_spans(*values)

    monkeypatch.setattr(video_tab, "frame_spans", slow_before_the_change)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    chosen(page, "video")
    page.locator("#video-still input[type=file]").set_input_files(tmp_path / "red.png")
    page.wait_for_selector("#video-still img")
    page.locator("#video-at input").fill("-1")
    small(page, 5)
    until(page, "frames 0 to 3 generated; frames 4 to 4 conditioning")
    page.wait_for_timeout(2000)  # for the result of an earlier change
    until(page, "frames 0 to 3 generated; frames 4 to 4 conditioning")


def test_a_storyboard_has_its_scenes_and_transitions(page: Any, studio: Server):
    chosen(page, "video")
    page.get_by_label("Storyboard").check()
    small(page, 8)
    page.get_by_label("Scenes, one per line").fill("0-3 a red circle moves left\n4-7 a blue square grows")
    page.get_by_label("Prompt crossfade").fill("2")
    until(page, "frames 0 to 7 generated")
    id = made(page)
    request = studio.service.queue.get(id).request
    assert (request["prompt_crossfade"], [one["last"] for one in request["scenes"]]) == (2, [3, 7])
    assert frames_of(studio, id).shape[1] == 8


def test_a_generated_image_becomes_a_keyframe_of_a_video(page: Any, studio: Server):
    begun(page, "a large blue square on green", 4)
    ended(page, "image")
    page.get_by_role("button", name="Image to video").click()
    page.wait_for_selector("#tab-video:visible")
    page.wait_for_selector("#video-still img")
    small(page, 5)
    page.locator("#video-at input").fill("-1")
    page.locator("#video-at input").press("Tab")
    until(page, "frames 0 to 3 generated; frames 4 to 4 conditioning")
    page.locator("#video-prompt textarea").fill("a large blue square moves right")
    id = made(page)
    assert studio.service.queue.get(id).request["keyframes"][0]["frame"] == -1
    page.get_by_label("Loop", exact=True).check()
    page.get_by_role("button", name="Generate video").click()
    page.get_by_role("alert").get_by_text("Choose a video first.").wait_for()


def test_video_upscaling_has_its_default_strength(page: Any, studio: Server):
    chosen(page, "video")
    small(page, 3)
    page.locator("#video-prompt textarea").fill("a small red circle moves left")
    first = made(page)
    page.get_by_role("button", name="Extend this video").click()
    page.wait_for_selector("#video-clip video")
    slider, verbs = page.locator("#video-strength input[type=number]"), page.locator("#video-task")
    for verb, value in (("Edit", "0.7"), ("Upscale", "0.3")):
        verbs.get_by_label(verb, exact=True).check()
        slider.wait_for()
        settled(page)
        page.wait_for_function(
            "value => document.querySelector('#video-strength input[type=number]').value == value", arg=value
        )
    verbs.get_by_label("Join", exact=True).check()
    slider.wait_for(state="hidden")
    page.get_by_label("crossfade", exact=True).check()
    slider.wait_for()
    verbs.get_by_label("Upscale", exact=True).check()
    larger = made(page, first)
    job = studio.service.queue.get(larger)
    assert (job.kind, job.request["strength"]) == ("video-upscale", 0.3)
    assert frames_of(studio, larger).shape[1:] == (3, 64, 64)
