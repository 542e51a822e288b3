"""Event handlers of the tabs, called without a browser."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")

import gradio as gr

from tests.server.http.conftest import FakeWorkerPool
from tests.studio.conftest import LEFT
from unveil.errors import Error, RecipeError
from unveil.io.images import png
from unveil.server.jobs import job_table
from unveil.server.jobs.job_table import Job, QueueLimits
from unveil.server.jobs.outputs import MAX_BYTES, JobOutputs
from unveil.server.jobs.owners import OwnerData
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.service import Service
from unveil.server.jobs.worker import log_path
from unveil.server.jobs.worker_main import MADE
from unveil.studio.client import StudioClient
from unveil.studio.form_parsing import FormParser
from unveil.studio.i18n import Translator
from unveil.studio.page import Page
from unveil.studio.tab_base import Tab, TabContext
from unveil.studio.tabs.gallery import GalleryTab
from unveil.studio.tabs.image import ImageTab
from unveil.studio.tabs.models import ModelsTab
from unveil.studio.tabs.queue import ENDED_SHOWN, QueueTab
from unveil.studio.tabs.train import LAST, TrainTab
from unveil.studio.tabs.video import VideoTab
from unveil.tasks import registry

pytestmark = LEFT
Laid = Callable[..., Any]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudioClient]:
    """An empty service without a worker."""
    for variable, name in (("UNVEIL_MODELS", "models"), ("UNVEIL_DATA", "data")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    folder = tmp_path / "service"
    queue = Queue(folder, QueueLimits(waiting=100, each=100))
    service = Service(queue, JobOutputs(folder / MADE), FakeWorkerPool(), OwnerData(folder))  # type: ignore[arg-type]
    yield StudioClient(service, None)
    service.owners.close()
    queue.close()


@pytest.fixture
def laid(client: StudioClient) -> Iterator[Laid]:
    """Lays a tab."""

    def build(tab: Callable[[TabContext], Any], language: Any = "en") -> Any:
        found = tab(TabContext(client, Translator(language)))
        with gr.Blocks():
            found.build()
        return found

    yield build
    gc.collect()  # the warnings about what Gradio leaves open are ignored here


def ended(client: StudioClient, outputs: list[str], kind: str = "sample", **request: Any) -> Job:
    """A job that is over."""
    job = client.service.queue.submit(kind, request)
    client.service.queue.claim("w")
    client.service.queue.complete(job.id, "w", outputs)
    found = client.service.queue.get(job.id)
    assert found is not None
    return found


def test_the_queue_tab_does_not_read_all_former_jobs(laid: Laid, client: StudioClient, monkeypatch: pytest.MonkeyPatch):
    tab, empty = laid(QueueTab), Translator("en")("No jobs yet: generate an image or a video.")
    assert empty in tab.look("")
    jobs = [ended(client, ["0.png"], prompt=f"ring {number}") for number in range(ENDED_SHOWN + 40)]
    client.cancel(client.service.queue.submit("sample", {"prompt": "not wanted"}).id, "")
    for number in range(3):
        client.service.queue.submit("sample", {"prompt": f"disk {number}"})
    client.service.queue.claim("w")
    client.service.queue.submit("sample", {"prompt": "secret"}, owner="another")
    read, real = list[Any](), job_table._job
    monkeypatch.setattr(job_table, "_job", lambda *row: read.append(row) or real(*row))
    client.service.queue.positions(1)  # who is before whom, and how long they took, is known of all
    known = len(read)
    table = tab.look("")
    assert len(read) - 2 * known <= ENDED_SHOWN + 10
    assert f"1 running, 2 queued, {len(jobs) + 1} ended." in table
    shown = [table.index(f"<td>{words}</td>") for words in ("disk 0", "disk 1", "disk 2", "not wanted", "ring 69")]
    assert shown == sorted(shown)
    assert "<td>ring 20</td>" not in table
    assert "secret" not in table


# -- numbers and faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", 10**400, "much", [1]])
def test_values_that_are_not_finite_numbers_are_refused(value: Any):
    typed = FormParser(Translator("en"))
    for read in (typed.number, typed.integer):
        with pytest.raises(RecipeError, match="must be a number"):
            read(value, "Steps")
    assert (typed.integer("12", "Steps"), typed.integer("", "Steps"), typed.number("1e3", "Steps")) == (
        12,
        None,
        1000.0,
    )


def test_an_internal_error_is_one_line_on_the_page_and_complete_in_the_log(
    laid: Laid, caplog: pytest.LogCaptureFixture
):
    tab: Tab = laid(TrainTab)

    def fault() -> None:
        raise sqlite3.OperationalError("database is locked in /home/ann")

    with caplog.at_level(logging.ERROR):
        alert, *rest = tab._tried("", fault, 2)
    assert alert == '<div class="alert" role="alert">The server could not do it: OperationalError</div>'
    assert rest == [gr.skip(), gr.skip()]
    assert "database is locked in /home/ann" in caplog.text
    assert "Traceback" in caplog.text


def test_errors_use_the_words_of_the_page(laid: Laid, client: StudioClient, tmp_path: Path):
    typed, chinese = FormParser(Translator("zh")), client.with_language(Translator("zh"))
    large, odd = tmp_path / "large.png", tmp_path / "weights.txt"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    odd.write_bytes(b"")
    models = laid(ModelsTab, "zh")
    faults = [
        (lambda: typed.number("many", "Steps"), "Steps = 'many'.必须是数字"),
        (lambda: typed.integer("2.5", "Steps"), "Steps = 2.5.必须是整数"),
        (lambda: typed.settings("- many", "Changes"), "Changes.每行一项"),
        (lambda: chinese.store_upload(str(large)), "large.png.超过了 32 MiB"),
        (lambda: chinese.delete("none", ""), "任务不存在或尚未结束"),
        (lambda: models._brought("", str(odd), "loras"), "weights.txt.文件名必须以"),
    ]
    for fault, message in faults:
        with pytest.raises(Error, match=message):
            fault()
    assert Page(client, "zh").image.client.tr.language == "zh"


# -- grids ------------------------------------------------------------------------------------------------------------


def gridded(image_tab: ImageTab, samplers: list[str], steps: str, scales: str) -> Any:
    values = {name: getattr(part, "value", None) for name, part in image_tab.fields.items()}
    return image_tab.grid._begin("", (samplers, steps, scales), {**values, "sampling": "", "prompt": "a ring"})


def test_an_incomplete_grid_is_cancelled(laid: Laid, client: StudioClient, monkeypatch: pytest.MonkeyPatch):
    image_tab, submit, left = laid(ImageTab), client.submit, [2]

    def some(*args: Any) -> Job:
        if not left[0]:
            raise RecipeError("no more")
        left[0] -= 1
        return submit(*args)

    monkeypatch.setattr(client, "submit", some)
    with pytest.raises(RecipeError, match="no more"):
        gridded(image_tab, ["heun"], "2 3 4", "")
    assert [job.state for job in client.service.queue.jobs()] == ["cancelled"] * 2
    left[0] = 9
    kept, *_ = gridded(image_tab, ["heun"], "2 3 4", "")
    waiting = client.service.queue.jobs("queued")
    assert [job.id for job in waiting] == kept["jobs"]
    assert [job.request["steps"] for job in waiting] == [2, 3, 4]
    with pytest.raises(RecipeError, match="whole number"):
        gridded(image_tab, ["heun"], "2.5 3", "")


def test_a_grid_is_limited_by_the_queue(laid: Laid, client: StudioClient):
    client.service.queue.limits = QueueLimits(waiting=100, each=4)
    image_tab = laid(ImageTab)
    with pytest.raises(RecipeError, match="has 2 to 4 images; this one has 6"):
        gridded(image_tab, ["heun", "euler-time"], "2 3 4", "")
    assert client.service.queue.jobs() == []
    gridded(image_tab, ["heun", "euler-time"], "2 3", "")
    assert len(client.service.queue.jobs("queued")) == 4


# -- training ---------------------------------------------------------------------------------------------------------


def run_of(client: StudioClient, name: str, sheets: int = 0) -> Path:
    """A run with a checkpoint and a number of sample grids."""
    run = client.service.catalog().runs / name
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "samples").mkdir(exist_ok=True)
    for place in range(sheets):
        shade = torch.full((3, 4, 4), place, dtype=torch.uint8)
        (run / "samples" / f"{place:04d}.png").write_bytes(png(shade))
    return run


def test_a_new_run_cannot_have_the_name_of_a_model(laid: Laid, client: StudioClient):
    train = laid(TrainTab)
    bundled = client.models()[0]
    with pytest.raises(RecipeError, match=f"A model named {bundled} already exists; {bundled}-2 is free"):
        train._submit("", "", "ddpm-digits", bundled, True, "")
    (client.service.catalog().runs / f"{bundled}-2").mkdir(parents=True)
    assert client.service.catalog().free_run_name(bundled) == f"{bundled}-3"
    assert client.service.queue.jobs() == []
    train._submit("", "", "ddpm-digits", f"{bundled}-2", True, "")  # an own run is resumed
    run_of(client, "mine")
    assert "mine" in client.models()
    train._submit("", "", "ddpm-digits", "mine", True, "")
    assert [job.request["run_name"] for job in client.service.queue.jobs()] == [f"{bundled}-2", "mine"]


def test_a_run_hidden_by_a_model_resumes_and_is_not_used_silently(laid: Laid, client: StudioClient):
    train, bundled = laid(TrainTab), client.models()[0]
    run_of(client, bundled)
    job, _ = train._submit("", "", "ddpm-digits", bundled, True, "")
    with pytest.raises(RecipeError, match="the name of another model"):
        train.model_of("", {"job": job.id})
    run_of(client, "mine")
    job, _ = train._submit("", "", "ddpm-digits", "mine", True, "")
    assert train.model_of("", {"job": job.id}) == "mine"


def test_the_slider_of_samples_keeps_its_position(laid: Laid, client: StudioClient):
    train = laid(TrainTab)
    run_of(client, "mine", sheets=3)
    job = client.service.queue.submit("train", {"recipe": "ddpm-digits", "run_name": "mine"})
    kept = {"job": job.id}

    def look(at: Any, seen: Any) -> tuple[dict[str, Any], Any, str]:
        _, slider, now, sheet, *_ = train.look("", kept, at, seen)
        return slider.constructor_args, now, sheet

    slider, seen, sheet = look(None, [])  # a hidden slider has no value
    assert (slider["value"], slider["maximum"], seen) == (2, 2, [job.id, 2])
    assert "0002" in sheet
    run_of(client, "mine", sheets=5)
    slider, later, sheet = look(1, seen)  # who looks at an earlier one
    assert "value" not in slider
    assert (slider["maximum"], later) == (4, [job.id, 4])
    assert "0001" in sheet
    slider, _, sheet = look(2, seen)  # who is at the end goes with it
    assert slider["value"] == 4
    assert "0004" in sheet
    slider, _, _ = look(4, later)  # nothing new: nothing is moved under a hand
    assert "value" not in slider
    slider, _, _ = look(1, ["another job", 1])
    assert slider["value"] == 4


def test_a_reloaded_page_shows_the_watched_run_or_the_last(laid: Laid, client: StudioClient):
    train = laid(TrainTab)
    assert train.restored("", {}, {}) == [gr.skip()] * 6
    data = Path(os.environ["UNVEIL_DATA"]) / "squares"
    data.mkdir(parents=True)
    (data / "a.png").write_bytes(b"")
    first, _ = train._submit("", "squares", "own-images", "one", True, "train.steps: 20")
    second, _ = train._submit("", "", "ddpm-digits", "two", False, "")
    client.service.queue.submit("train", {"recipe": "ddpm-digits", "run_name": "of another"}, owner="bob")

    def fields(kept: Any, typed: Any = None) -> list[Any]:
        return [getattr(one, "value", one) for one in train.restored("", kept, typed)]

    assert fields({"job": first.id}) == [{"job": first.id}, "squares", "own-images", "one", True, "train.steps: 20\n"]
    for kept in ({}, None, {"job": "deleted"}):
        assert fields(kept) == [{"job": second.id}, "", "ddpm-digits", "two", False, ""]
    typed = {"folder": "squares", "recipe": "own-videos", "run": "three", "small": True, "changes": "train.steps: 7"}
    assert fields({}, typed) == [{"job": second.id}, "squares", "own-videos", "three", True, "train.steps: 7"]
    assert fields({}, {"folder": "gone", "recipe": 3, "run": None}) == fields({})


def test_the_log_of_a_training_is_shown_while_it_runs_and_after_a_failure(laid: Laid, client: StudioClient):
    train, queue = laid(TrainTab), client.service.queue
    job = queue.submit("train", {"recipe": "ddpm-digits", "run_name": "mine"})

    def says() -> str:
        *_, log, again = train.look("", {"job": job.id})
        return f"{log} {again.constructor_args['active']}"

    assert "No output yet." in says()
    queue.claim("w")
    log = log_path(queue.folder, job.id)
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"step {number} <b>\n" for number in range(LAST + 2)) + "error: no such folder\n")
    assert "error: no such folder" in says()
    assert "step 2 &lt;b&gt;" not in says()
    assert "step 3 &lt;b&gt;" in says()
    queue.fail(job.id, "w", "no such folder")
    assert says().endswith("False")  # nothing more will come
    assert "error: no such folder" in says()


# -- results ---------------------------------------------------------------------------------------------------------

MASK, SOURCE = f"{1:032x}.png", f"{2:032x}.png"


def test_a_card_shows_every_image_of_its_job(laid: Laid, client: StudioClient):
    names = [f"seed0_{place:05d}.png" for place in range(3)]
    ended(client, names, prompt="a ring", seed=0)
    shown = laid(GalleryTab).look("", "", 1)
    assert [name in shown for name in names] == [True] * 3
    assert shown.count("<img") == 3
    assert 'alt="a ring (3)"' in shown


def test_the_gallery_searches_when_a_word_is_complete(client: StudioClient):
    page = Page(client, "en")
    every = [target for one in page.blocks().fns.values() for target in one.targets]
    assert {event for id, event in every if id == page.gallery.words._id} == {"submit", "blur"}


@pytest.mark.parametrize(
    ("task", "request_", "missing"),
    [
        ("inpaint", {"image": SOURCE, "mask": MASK, "eta": 0.5, "repaint_resamples": 3}, "Eta, Repaint resamples"),
        ("sample", {"lora": [{"file": name} for name in "abc"]}, "all LoRAs except the first 2"),
        (
            "sample",
            {"controlnet": [{"network": name, "image": SOURCE} for name in "ab"]},
            "all ControlNets except the first",
        ),
    ],
)
def test_parameters_of_an_image_without_a_field_are_reported(
    laid: Laid, task: str, request_: dict[str, Any], missing: str
):
    image_tab = laid(ImageTab)
    *fields, _, message = image_tab.refilled(task, {"prompt": "a ring", **request_})
    assert len(fields) == len(image_tab.fields)
    assert f"Not restored in the form: {missing}. Generate again, in the gallery" in message
    assert "gallery" not in image_tab.refilled(task, {"prompt": "a ring", **request_}, in_gallery=False)[-1]
    assert image_tab.refilled("sample", {"prompt": "a ring", "lora": [{"file": "a"}, {"file": "b"}]})[-1] == ""
    assert image_tab.refilled("outpaint", {"image": SOURCE, "method": "repaint", "feather": 3})[-1] == ""


def test_parameters_of_a_video_without_a_field_are_reported(laid: Laid):
    video = laid(VideoTab)
    known = [{"image": SOURCE, "frame": 0}, {"image": MASK, "frame": 3}]
    assert "all keyframes except the first" in video.refilled("video-generate", {"keyframes": known})[-1]
    assert "one of two masks" in video.refilled("video-edit", {"keep_mask": MASK, "mask": SOURCE})[-1]
    assert video.refilled("video-edit", {"keep_mask": MASK})[-1] == ""
    assert video.refilled("video-generate", {"keyframes": known[:1]})[-1] == ""


def test_a_painted_mask_is_restored_as_a_file(laid: Laid, client: StudioClient):
    image_tab, video = laid(ImageTab), laid(VideoTab)
    kept = client.service.uploads().store(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    edit = {"image": kept.name, "mask": kept.name}
    found = dict(zip(image_tab.fields, image_tab.filled_by("inpaint", edit), strict=True))
    assert found["mask"] == str(client.service.uploads().path(kept.name))
    assert image_tab.request(found)["mask"] == kept.name
    found = dict(zip(video.fields, video.filled_by("video-edit", {"keep_mask": kept.name}), strict=True))
    assert (found["means"], found["mask"]) == ("keep_mask", str(client.service.uploads().path(kept.name)))
    gone = dict(zip(image_tab.fields, image_tab.filled_by("inpaint", {**edit, "mask": MASK}), strict=True))
    assert gone["mask"] is None
    with pytest.raises(RecipeError, match="Paint over"):
        image_tab.request(gone)


@pytest.mark.parametrize(
    ("tab", "task", "request_"),
    [
        (ImageTab, "sample", {"prompt": "a ring", "negative_prompt": ["red"], "label": ["3", "4"], "count": 2,
                              "steps": 3, "guidance_scale": 2.5, "sampler": "heun", "width": 32, "height": 48,
                              "start_index": 2, "expand_prompt": "none", "sampling": {"eta": 0.5},
                              "lora": [{"file": "a", "weight": 0.5}]}),
        (ImageTab, "img2img", {"image": True, "strength": 0.45}),
        (ImageTab, "inpaint", {"image": True, "mask": True, "strength": 0.5, "feather": 4, "method": "repaint"}),
        (ImageTab, "outpaint", {"image": True, "left": 4, "bottom": 8, "feather": 2}),
        (ImageTab, "upscale", {"image": True, "factor": 3}),
        (VideoTab, "video-generate", {"prompt": "a ring", "frames": 4, "fps": 12, "format": "gif", "window": 3,
                                      "keyframes": [{"image": True, "frame": -1}]}),
        (VideoTab, "video-loop", {"prompt": "a ring", "frames": 4}),
        (VideoTab, "video-storyboard", {"scenes": [{"first": 0, "last": 3, "prompt": "a ring"}],
                                        "prompt_crossfade": 2}),
    ],
)  # fmt: skip
def test_a_request_comes_back_from_the_components_that_it_fills(
    laid: Laid, client: StudioClient, tab: Any, task: str, request_: dict[str, Any]
):
    form, kept = laid(tab), client.service.uploads().store(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(item) for item in value]
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        return kept.name if value is True else value

    wanted = {"seed": 7, **named(request_)}
    values = dict(zip(form.fields, form.filled_by(task, wanted), strict=True))
    values = {name: form.fields[name].value if value == gr.skip() else value for name, value in values.items()}
    assert form.task_of(values) == task
    parsed = [registry.task_class(task).parse(request) for request in (wanted, form.request(values))]
    first, second = (one.model_copy(update={"save_trajectory": False}) for one in parsed)
    assert first.metadata() == second.metadata()
    assert form.left_out(task, wanted) == []


def test_a_mask_is_either_painted_or_uploaded(laid: Laid, client: StudioClient, tmp_path: Path):
    image_tab, painted = laid(ImageTab), tmp_path / "layer.png"
    layer = Image.new("RGBA", (8, 8))
    layer.paste((255, 0, 0, 255), (0, 0, 4, 8))
    layer.save(painted)
    kept = client.service.uploads().store(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    given = str(client.service.uploads().path(kept.name))
    brush = {"layers": [str(painted)]}
    assert image_tab.masked({"editor": None, "mask": None}, kept) is None
    assert image_tab.masked({"editor": brush, "mask": None}, kept) not in (None, kept.name)
    assert image_tab.masked({"editor": {"layers": []}, "mask": given}, kept) == kept.name
    with pytest.raises(RecipeError, match="not both"):
        image_tab.masked({"editor": brush, "mask": given}, kept)


def test_a_draft_takes_precedence_over_the_last_request(laid: Laid, client: StudioClient):
    image_tab = laid(ImageTab)
    assert image_tab.restored("", {}, {}) == [gr.skip()] * len(image_tab.filled)
    job = client.service.queue.submit("sample", {"prompt": "a ring", "seed": 3})
    typed = {"prompt": "a cross", "count": "4", "fresh": True, "strength": 0.3}

    def fields(typed: Any) -> dict[str, Any]:
        return dict(zip(image_tab.fields, image_tab.restored("", {"job": job.id}, typed), strict=False))

    before, after = fields({}), fields(typed)
    assert (before["prompt"], before["seed"], before["fresh"]) == ("a ring", 3, False)
    assert {name: after[name] for name in typed} == typed
    assert {name: value for name, value in after.items() if name not in typed} == {
        name: value for name, value in before.items() if name not in typed
    }
    former = {"mode": "upscale", "guidance": "3", "negative": "blue"}
    assert {"task": "upscale", "guidance_scale": "3", "negative_prompt": "blue"}.items() <= fields(former).items()
    assert fields({"mode": "new"})["task"] == "sample"
    odd = {"prompt": 3, "count": 7, "fresh": "yes", "strength": 7, "task": "away", "source": "/etc/passwd"}
    for one in (odd, "odd", None, {"prompt": "a" * 30_000}, {"count": True}, {"other": 1}):
        assert fields(one) == before  # it comes from a browser


def test_restored_parameters_are_a_draft_and_a_submitted_request_is_not(laid: Laid):
    image_tab = laid(ImageTab)
    *_, draft, _ = image_tab.refilled("sample", {"prompt": "a ring", "seed": 3})
    assert (draft["prompt"], draft["seed"], draft["task"]) == ("a ring", 3, "sample")
    assert not {"source", "editor", "mask", "hint"} & set(draft)
    values = {name: part.value for name, part in image_tab.fields.items()}
    _, (*_, settled) = image_tab.submitted("", *{**values, "prompt": "a ring"}.values())
    assert settled == {}


def test_omitted_settings_are_the_defaults(laid: Laid):
    """A field that is skipped keeps what was in it before."""
    image_tab, video = laid(ImageTab), laid(VideoTab)
    edit = {"image": SOURCE}
    filled = dict(zip(image_tab.fields, image_tab.filled_by("inpaint", edit), strict=True))
    assert {key: filled[key] for key in ("strength", "feather", "factor", "left")} == {
        "strength": 1.0, "feather": 0, "factor": 2, "left": "0",
    }  # fmt: skip
    controls = [{"network": "a", "image": SOURCE}]
    filled = dict(zip(image_tab.fields, image_tab.filled_by("sample", {"controlnet": controls}), strict=True))
    assert {key: filled[key] for key in ("weight", "start", "stop")} == {"weight": 1, "start": 0, "stop": 1}
    filled = dict(zip(video.fields, video.filled_by("video-upscale", {}), strict=True))
    assert {key: filled[key] for key in ("strength", "factor", "direction")} == {
        "strength": 0.3, "factor": "2", "direction": "forward",
    }  # fmt: skip


def test_a_card_repeats_the_complete_request(laid: Laid, client: StudioClient):
    request = {"model": client.models()[0], "prompt": "a ring", "seed": 7, "steps": 3}
    job, gallery = ended(client, ["seed7_00000.png"], **request), laid(GalleryTab)
    _, wanted = gallery.heard("", {"do": "restore", "job": job.id}, "", 1)
    assert wanted == job
    _, again = gallery.heard("", {"do": "again", "job": job.id}, "", 1)
    assert again is not None
    assert (again.id != job.id, again.state, again.request) == (True, "queued", job.request)
    gallery.heard("bob", {"do": "again", "job": job.id}, "", 1)
    assert len(client.service.queue.jobs()) == 2
