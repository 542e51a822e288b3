"""How much is made anew: each verb begins at its own usual value, and says it only where its slider is seen."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from tests.studio.conftest import LEFT
from tests.studio.test_bombs import pressed, studio
from tests.studio.test_tabs import Laid, client, laid
from tests.web.conftest import Server
from unveil.app import video as commands
from unveil.service.clips import TAKES, Clips
from unveil.service.clips import read_request as read_clips
from unveil.service.inputs import Kept
from unveil.service.pictures import Change
from unveil.studio.client import Client
from unveil.studio.tabs import picture, video

__all__ = ["client", "laid", "studio"]
pytestmark = LEFT
SENT = Kept(f"{1:032x}.png", "picture", 8, 8, 1)
CLIP = Kept(f"{2:032x}.mp4", "clip", 8, 8, 4)
VERBS = ("make", "extend", "between", "connect", "loop", "ring", "edit", "storyboard", "upscale")


def asked(tab: Any, **said: Any) -> dict[str, Any]:
    """What is asked of the service, the other fields being as they are at first."""
    return tab.request({name: getattr(part, "value", None) for name, part in tab.fields.items()} | said)


def seen(tab: Any, groups: list[Any]) -> bool:
    """Whether the slider of a tab is seen, by what its groups are told."""
    shown, part = dict(zip(tab.groups, groups, strict=True)), tab.strength
    while part not in shown:
        part = part.parent
    return bool(shown[part].constructor_args["visible"])


@pytest.mark.parametrize(("verb", "joint"), [*((verb, "bridge") for verb in VERBS), ("connect", "blend")])
def test_a_verb_of_clips_says_it_where_its_slider_is_seen(
    laid: Laid, client: Client, monkeypatch: pytest.MonkeyPatch, verb: str, joint: str
):
    monkeypatch.setattr(Client, "keep", lambda self, path: CLIP if path else None)
    monkeypatch.setattr(Client, "mask", lambda *given: None)
    tab = laid(video.Video)
    said = {"verb": verb, "joint": joint, "clip": "a", "other": "b", "scenes": "0-3 a", "prompt": "a", "strength": 0.45}
    request = asked(tab, **said)
    assert ("strength" in request) == seen(tab, video._groups(verb, joint)) == video.remakes(verb, joint)
    assert request.get("strength", 0.45) == 0.45
    read_clips(request)
    assert not (set(request) & {"strength"} - set(TAKES[verb]))


@pytest.mark.parametrize("mode", ["new", "img2img", "inpaint", "outpaint", "upscale"])
def test_a_verb_of_pictures_says_it_where_its_slider_is_seen(laid: Laid, monkeypatch: pytest.MonkeyPatch, mode: str):
    monkeypatch.setattr(Client, "keep", lambda self, path: SENT if path else None)
    monkeypatch.setattr(Client, "mask", lambda *given: SENT.name)
    tab = laid(picture.Picture)
    change = asked(tab, mode=mode, source="a", strength=0.45).get("change") or {}
    *_, slider = picture._groups(mode)
    shown = slider.constructor_args["visible"]
    assert (change.get("strength") == 0.45) == shown == (mode in picture.USUAL)


def test_the_usual_values_are_those_of_the_service(monkeypatch: pytest.MonkeyPatch):
    for verb, usual in picture.USUAL.items():
        mask = SENT.name if verb == "inpaint" else None
        assert Change(verb=verb, picture=SENT.name, mask=mask).settings()["strength"] == usual  # type: ignore[arg-type]
    told: list[Any] = []
    for name in ("edit", "connect", "upscale"):
        monkeypatch.setattr(commands, name, lambda *given: told.append(given[-1]))
    work = Clips(None, None, type("Inputs", (), {"path": lambda self, name: name})(), "cpu")  # type: ignore[arg-type]
    own = {"clip": CLIP.name, "other": CLIP.name, "prompt": "a"}
    for verb in video.USUAL:
        given = {name: value for name, value in own.items() if name != "other" or verb == "connect"}
        way = {"way": "blend"} if verb == "connect" else {}
        work._shoot(read_clips({"verb": verb, **given, **way}), type("Ask", (), {"out": None})())  # type: ignore[arg-type]
    values = [float(getattr(one, "strength", one)) for one in told]
    assert values == list(video.USUAL.values())


@pytest.mark.parametrize(
    ("tab", "field", "usual"), [("picture", "mode", picture.USUAL), ("video", "verb", video.USUAL)]
)
def test_who_chooses_a_verb_is_shown_its_usual_value(studio: Server, tab: str, field: str, usual: dict[str, float]):
    slider = f"{tab}-strength"
    for verb, value in usual.items():
        for before in usual.values():
            told = pressed(studio, f"{tab}-{field}", {f"{tab}-{field}": verb, slider: before}, "input")
            assert told is not None
            assert told[slider] == value
        told = pressed(studio, f"{tab}-{field}", {f"{tab}-{field}": verb, slider: 0.45}, "input")
        assert told is not None
        assert told[slider] == gr.skip()  # a hand has moved it


def test_a_picture_that_was_made_is_edited_with_the_usual_value(laid: Laid, monkeypatch: pytest.MonkeyPatch):
    """`Edit it` chooses a verb as well, and no hand does."""
    tab = laid(picture.Picture)
    monkeypatch.setattr(picture.Picture, "file_of", lambda *given: "a.png")
    assert tab._reuse("", {}, 1, 0.3) == ["a.png", "img2img", 0.6]
    assert tab._reuse("", {}, 1, 0.45)[2] == gr.skip()
