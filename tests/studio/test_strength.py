"""Strength: each task starts at its default, and sends it only if its slider is visible."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from tests.studio.conftest import MARKS, chosen, settled
from tests.studio.test_tabs import Laid, client, laid
from unveil.server.jobs.outputs import UploadedFile
from unveil.server.jobs.task_job import parse_request
from unveil.studio.client import StudioClient
from unveil.studio.tabs import image, video
from unveil.studio.timeline import LOOP_FROM_PROMPT
from unveil.tasks import registry

__all__ = ["client", "laid"]
pytestmark = MARKS
SENT = UploadedFile(f"{1:032x}.png", "image", 8, 8, 1)
CLIP = UploadedFile(f"{2:032x}.mp4", "video", 8, 8, 4)
LABELS: dict[str, dict[str, str]] = {
    "image": {"img2img": "Image to image", "inpaint": "Inpaint", "upscale": "Upscale"},
    "video": {"video-join": "Join", "video-edit": "Edit", "video-upscale": "Upscale"},
}
VERBS = (*video.TASKS, LOOP_FROM_PROMPT)


def request_of(tab: Any, **fields: Any) -> dict[str, Any]:
    """The request to the service, with defaults for the other fields."""
    return tab.request({name: getattr(part, "value", None) for name, part in tab.fields.items()} | fields)


def seen(tab: Any, groups: list[Any]) -> bool:
    """Return True if the slider of a tab is visible, by the visibility of its groups."""
    shown, part = dict(zip(tab.groups, groups, strict=True)), tab.strength
    while part not in shown:
        part = part.parent
    return bool(shown[part].constructor_args["visible"])


@pytest.mark.parametrize(("verb", "joint"), [*((verb, "bridge") for verb in VERBS), ("video-join", "blend")])
def test_a_video_task_sends_its_strength_if_its_slider_is_visible(
    laid: Laid, client: StudioClient, monkeypatch: pytest.MonkeyPatch, verb: str, joint: str
):
    monkeypatch.setattr(StudioClient, "store_upload", lambda self, path: CLIP if path else None)
    monkeypatch.setattr(StudioClient, "store_mask", lambda *given: None)
    tab = laid(video.VideoTab)
    fields = {
        "task": verb,
        "joint": joint,
        "clip": "a",
        "other": "b",
        "scenes": "0-3 a",
        "prompt": "a",
        "strength": 0.45,
    }
    request = request_of(tab, **fields)
    assert ("strength" in request) == seen(tab, video._groups(verb, joint)) == video.takes_strength(verb, joint)
    assert request.get("strength", 0.45) == 0.45
    parse_request(tab.task_of({"task": verb}), request)


@pytest.mark.parametrize("mode", ["sample", "img2img", "inpaint", "outpaint", "upscale"])
def test_an_image_task_sends_its_strength_if_its_slider_is_visible(
    laid: Laid, monkeypatch: pytest.MonkeyPatch, mode: str
):
    monkeypatch.setattr(StudioClient, "store_upload", lambda self, path: SENT if path else None)
    monkeypatch.setattr(StudioClient, "store_mask", lambda *given: SENT.name)
    tab = laid(image.ImageTab)
    request = request_of(tab, task=mode, source="a", strength=0.45)
    *_, slider = image._groups(mode)
    shown = slider.constructor_args["visible"]
    assert (request.get("strength") == 0.45) == shown == (mode in image.STRENGTHS)


def test_the_default_strengths_are_those_of_the_service():
    assert image.STRENGTHS == {"img2img": 0.6, "inpaint": 1.0, "upscale": 0.3}
    assert video.STRENGTHS == {"video-join": 0.7, "video-edit": 0.7, "video-upscale": 0.3}
    for name, usual in (image.STRENGTHS | video.STRENGTHS).items():
        assert registry.task_class(name).model_fields["strength"].default in (usual, (usual,))


@pytest.mark.parametrize(("tab", "usual"), [("image", image.STRENGTHS), ("video", video.STRENGTHS)])
def test_choosing_a_task_shows_its_default_strength(page: Any, tab: str, usual: dict[str, float]):
    if tab != "image":
        chosen(page, tab)
    slider, verbs = page.locator(f"#{tab}-strength input[type=number]"), page.locator(f"#{tab}-task")
    called = {name: LABELS[tab][name] for name in usual}

    def at(value: float) -> None:
        script = "at => document.querySelector(at[0] + ' input[type=number]').value == at[1]"
        page.wait_for_function(script, arg=[f"#{tab}-strength", f"{value:g}"])

    def drawn(verb: str) -> None:
        if verb in ("inpaint", "video-edit"):  # its editor comes, and may go once it is laid out
            page.locator(f"#{tab}-editor canvas").first.wait_for()
        settled(page)

    one, two, three = called
    for verb in (one, two, one, three, two, three, one):  # each task after each other one
        verbs.get_by_label(called[verb], exact=True).check()
        if verb == "video-join":
            page.get_by_label("crossfade", exact=True).check()
        slider.wait_for()
        at(usual[verb])
        drawn(verb)
    slider.fill("0.45")
    slider.press("Tab")
    for verb, words in called.items():
        verbs.get_by_label(words, exact=True).check()
        at(0.45)  # a hand has moved it
        drawn(verb)


def test_a_generated_image_is_edited_with_the_default_strength(laid: Laid, monkeypatch: pytest.MonkeyPatch):
    """`Edit it` chooses a task without a user's click."""
    tab = laid(image.ImageTab)
    monkeypatch.setattr(image.ImageTab, "file_of", lambda *given: "a.png")
    assert tab._reuse("", {}, 1, 0.3) == ["a.png", "img2img", 0.6]
    assert tab._reuse("", {}, 1, 0.45)[2] == gr.skip()
