"""Images on the page: generation, gallery, regeneration, editing, grids, and reloading the page."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

from tests.checkpoints import tiny_sd
from tests.server.http.conftest import Server
from tests.studio.conftest import MARKS, another, begun, chosen, ended, opened, painted, picked, settled
from unveil.data.image_decoding import decode_native_size, open_image
from unveil.io.files import write_tensors
from unveil.io.images import png
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import image_files
from unveil.server.jobs.worker import JobProgress
from unveil.studio.tabs import gallery

pytestmark = MARKS


def job_of(studio: Server, id: str) -> Job:
    job = studio.service.queue.get(id)
    assert job is not None
    return job


def files(studio: Server, id: str) -> list[bytes]:
    return [studio.service.results.file(id, name).read_bytes() for name in image_files(job_of(studio, id))]


def decoded(png: bytes) -> Any:
    return decode_native_size(open_image(io.BytesIO(png), 10**6), 3)


def test_an_image_is_generated_found_and_regenerated_to_the_byte(
    page: Any, studio: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = threading.Event()
    write_preview = JobProgress.preview

    def wait_after_preview(progress: JobProgress, image: bytes) -> None:  # the job may end before the page asks again
        write_preview(progress, image)
        seen.wait(60)

    monkeypatch.setattr(JobProgress, "preview", wait_after_preview)
    begun(page, "a large blue square on green", 12)
    page.wait_for_selector("#image-status img.preview")
    seen.set()
    first = ended(page, "image")
    shown = page.locator("#image-result .figures img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    strip = page.locator("#image-result img.strip")
    assert strip.evaluate("image => image.decode().then(() => image.naturalWidth)") > 256

    begun(page, "a small red circle on white", 4)
    other = another(page, "image", first)
    chosen(page, "gallery")
    page.get_by_label("Search").fill("blue square")
    page.get_by_label("Search").press("Enter")
    page.wait_for_function("document.querySelectorAll('#gallery-cards article').length == 1")
    page.get_by_role("button", name="Use the settings of a large blue square on green").click()
    page.wait_for_selector("#tab-image:visible")
    page.wait_for_function("document.querySelector('#image-prompt textarea').value.includes('blue')")
    page.get_by_role("button", name="Generate images").click()
    again = another(page, "image", other)
    assert files(studio, again) == files(studio, first) != files(studio, other)

    chosen(page, "gallery")
    page.get_by_role("button", name="Restore settings from an image file").click()
    dropped = tmp_path / "dropped.png"
    dropped.write_bytes(files(studio, other)[0])
    page.locator("#gallery-file input[type=file]").set_input_files(dropped)
    page.wait_for_function("document.querySelector('#image-prompt textarea').value.includes('red circle')")
    page.get_by_role("button", name="Generate images").click()
    dropped_again, before = (files(studio, id) for id in (another(page, "image", again), other))
    # all settings of the metadata are stated now, so that only the pixels are the same
    assert [decoded(file).tolist() for file in dropped_again] == [decoded(file).tolist() for file in before]


def test_a_painted_region_is_inpainted_and_the_rest_stays(painting_page: Any, studio: Server):
    page = painting_page
    begun(page, "a large blue square on green", 8)
    first = ended(page, "image")
    page.get_by_role("button", name="Edit this image").click()
    page.wait_for_selector("#image-source img")
    page.get_by_label("Inpaint").check()
    page.locator("#image-editor canvas").first.wait_for()
    page.get_by_role("button", name="Generate images").click()
    page.get_by_text("Paint over the part to regenerate.").nth(1).wait_for()  # nothing was painted
    painted(page, "image")
    begun(page, "a red circle on green", 8)
    again = another(page, "image", first)
    before, after = (decoded(files(studio, id)[0]) for id in (first, again))
    mask = decoded(studio.service.uploads().path(job_of(studio, again).request["mask"]).read_bytes())[0] > 127
    assert 4 < int(mask.sum()) < 500
    assert (before != after).any(0)[mask].any()
    assert (before == after).all(0)[~mask].all()


def test_new_files_in_the_models_folder_are_chosen_and_used(page: Any, studio: Server, places: Path):
    tiny_sd.pipeline().save_pretrained(places / "models" / "checkpoints" / "tiny")
    (places / "models" / "loras").mkdir()
    write_tensors(places / "models" / "loras" / "style.safetensors", tiny_sd.lora())
    tiny_sd.controlnet().save_pretrained(places / "models" / "controlnets" / "edges")
    chosen(page, "models")
    page.get_by_role("button", name="Inspect tiny").click()
    page.get_by_text("StableDiffusionPipeline").first.wait_for()
    chosen(page, "image")
    page.get_by_label("Random seed each time").uncheck()
    picked(page, "image-model", "tiny")
    begun(page, "a cat", 1)
    plain = ended(page, "image")
    page.get_by_role("button", name="LoRA and ControlNet").click()
    picked(page, "image-lora-1", "style")
    page.get_by_role("button", name="Generate images").click()
    with_lora = another(page, "image", plain)
    picked(page, "image-control", "edges")
    hint = places / "hint.png"
    hint.write_bytes(files(studio, plain)[0])
    page.locator("#image-hint input[type=file]").set_input_files(hint)
    page.wait_for_selector("#image-hint img")
    page.get_by_role("button", name="Generate images").click()
    with_control = another(page, "image", with_lora)
    requests = [job_of(studio, id).request for id in (plain, with_lora, with_control)]
    style = [{"file": "style", "weight": 1}]
    assert [one.get("lora") for one in requests] == [None, style, style]
    assert requests[2]["controlnet"][0]["network"] == "edges"
    assert len({files(studio, id)[0] for id in (plain, with_lora, with_control)}) == 3
    chosen(page, "gallery")  # a file does not contain the control image
    page.get_by_role("button", name="Restore settings from an image file").click()
    (places / "controlled.png").write_bytes(files(studio, with_control)[0])
    page.locator("#gallery-file input[type=file]").set_input_files(places / "controlled.png")
    page.get_by_text("Not restored in the form: the ControlNet edges with its control image.").wait_for()


def test_a_grid_has_an_image_for_every_setting(page: Any, studio: Server):
    page.locator("#image-prompt textarea").fill("a small ring on white")
    page.get_by_role("button", name="X/Y/Z plot of samplers, steps and guidance scales").click()
    page.get_by_label("heun", exact=True).check()
    page.get_by_label("euler-time", exact=True).check()
    page.get_by_label("Steps to compare").fill("2 3")
    page.get_by_label("Guidance scales to compare").fill("1, 4")
    page.get_by_role("button", name="Generate the plot").click()
    page.wait_for_function("document.querySelectorAll('#grid-result img[data-state=completed]').length == 8")
    jobs = studio.service.queue.jobs("completed")
    rings = [job.request for job in jobs if job.request["prompt"] == "a small ring on white"]
    made = {(one["sampler"], one["steps"], one["guidance_scale"]) for one in rings}
    assert made == {(name, steps, scale) for name in ("heun", "euler-time") for steps in (2, 3) for scale in (1, 4)}
    page.get_by_label("Steps to compare").fill("many")
    page.get_by_role("button", name="Generate the plot").click()
    page.get_by_role("alert").get_by_text("must be a number").wait_for()


@pytest.mark.usefixtures("slow_steps")
def test_a_running_job_is_shown_after_a_reload_in_chinese_and_can_be_cancelled(page: Any, studio: Server):
    begun(page, "a large ring", 9_000)
    page.wait_for_selector("#image-status [data-state=running]")
    running = page.locator("#image-status [data-state]").get_attribute("data-job")
    page.reload()
    page.wait_for_selector(f"#image-status [data-job='{running}']")
    page.wait_for_function("document.querySelector('#image-prompt textarea').value === 'a large ring'")
    page.get_by_role("link", name="中文").click()
    page.wait_for_selector(f"#image-status [data-job='{running}']")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_role("tab", name="队列").click()
    page.get_by_role("button", name="取消 a large ring").click()
    page.locator("#queue-table").get_by_text("已取消。").first.wait_for()
    assert studio.until(running, "cancelled")["outputs"] == []
    opened(page, studio, "en")
    assert ended(page, "image", "cancelled") == running


def test_a_draft_survives_a_reload(page: Any, studio: Server):
    begun(page, "a ring", 2)
    first = ended(page, "image")
    page.locator("#image-prompt textarea").fill("a large cross on green")
    page.get_by_label("Number of images").fill("2")
    page.get_by_label("Number of images").press("Tab")
    before = page.evaluate("localStorage.getItem('unveil-image-typed')")
    page.locator("#image-task").get_by_label("Upscale").check()
    page.wait_for_function("before => localStorage.getItem('unveil-image-typed') !== before", arg=before)
    page.reload()
    page.wait_for_function("document.querySelector('#image-prompt textarea')?.value === 'a large cross on green'")
    page.wait_for_function("document.querySelector('#image-task input[value=upscale]')?.checked")
    assert page.get_by_label("Number of images").input_value() == "2"
    assert page.locator("#image-steps textarea, #image-steps input").input_value() == "2"  # of the last request
    page.locator("#image-task").get_by_label("Text to image").check()
    page.get_by_role("button", name="Generate images").click()
    second = another(page, "image", first)
    assert (job_of(studio, second).request["prompt"], len(files(studio, second))) == ("a large cross on green", 2)


def test_a_mask_file_replaces_the_brush_and_is_restored(page: Any, studio: Server, tmp_path: Path):
    begun(page, "a large blue square on green", 4)
    first = ended(page, "image")
    before = decoded(files(studio, first)[0])
    mask = torch.zeros(1, *before.shape[1:], dtype=torch.uint8)
    mask[..., : mask.shape[2] // 2] = 255
    (tmp_path / "mask.png").write_bytes(png(mask))
    page.get_by_role("button", name="Edit this image").click()
    page.wait_for_selector("#image-source img")
    page.get_by_label("Inpaint").check()
    page.locator("#image-mask input[type=file]").set_input_files(tmp_path / "mask.png")
    page.wait_for_selector("#image-mask img")
    settled(page)
    begun(page, "a red circle on green", 4)
    second = another(page, "image", first)
    after = decoded(files(studio, second)[0])
    assert (before != after).any(0)[mask[0] > 0].any()
    assert (before == after).all(0)[mask[0] == 0].all()
    begun(page, "a ring", 2)
    third = another(page, "image", second)
    chosen(page, "gallery")
    page.get_by_role("button", name="Use the settings of a red circle on green").first.click()
    page.wait_for_function("document.querySelector('#image-prompt textarea').value.includes('red circle')")
    page.wait_for_selector("#image-mask img")
    page.get_by_role("button", name="Generate images").click()
    assert files(studio, another(page, "image", third)) == files(studio, second)


def test_a_card_is_regenerated_and_deleted_after_confirmation(page: Any, studio: Server):
    page.get_by_label("Number of images").fill("2")
    begun(page, "a thick ring", 2)
    first = ended(page, "image")
    chosen(page, "gallery")
    card = page.locator(f"#gallery-cards article[data-job='{first}']")
    card.locator("img").nth(1).wait_for()
    card.get_by_role("button", name="Generate a thick ring again").click()
    page.wait_for_selector("#tab-image:visible")
    again = another(page, "image", first)
    assert job_of(studio, again).request == job_of(studio, first).request
    assert files(studio, again) == files(studio, first)

    chosen(page, "gallery")
    page.locator(f"#gallery-cards article[data-job='{again}']").wait_for()  # the cards are the new ones
    card.get_by_role("button", name="Delete a thick ring", exact=True).click()
    card.get_by_text("Delete it for good?").wait_for()
    card.get_by_role("button", name="Keep a thick ring").click()
    card.get_by_text("Delete it for good?").wait_for(state="detached")
    assert studio.service.queue.get(first) is not None
    card.get_by_role("button", name="Delete a thick ring", exact=True).click()
    card.get_by_role("button", name="Delete a thick ring for good").click()
    card.wait_for(state="detached")
    assert studio.service.queue.get(first) is None
    assert studio.service.queue.get(again) is not None


def test_a_late_answer_does_not_undo_a_newer_action(page: Any, monkeypatch: pytest.MonkeyPatch):
    begun(page, "a ring", 2)
    card = page.locator(f"#gallery-cards article[data-job='{ended(page, 'image')}']")
    chosen(page, "gallery")
    card.wait_for()
    chosen(page, "image")
    searching, search = threading.Event(), gallery.search

    def late(*args: Any, **kwargs: Any) -> Any:
        if not searching.is_set():
            searching.set()
            time.sleep(1.5)
        return search(*args, **kwargs)

    monkeypatch.setattr(gallery, "search", late)
    chosen(page, "gallery")  # the gallery is searched again
    assert searching.wait(30)
    card.get_by_role("button", name="Delete a ring", exact=True).click()
    card.get_by_text("Delete it for good?").wait_for()
    page.wait_for_timeout(2000)
    assert card.get_by_text("Delete it for good?").is_visible()


def test_foreign_prompts_and_names_are_shown_as_text(page: Any, studio: Server, places: Path):
    hostile = 'a red ring <img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\x1b[31mend'
    begun(page, hostile, 1)
    id = ended(page, "image")
    folder = places / "models" / "checkpoints" / "<img src=x onerror=window.hacked=1>"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    for tab in ("models", "gallery", "queue"):
        chosen(page, tab)
        page.locator(f"#tab-{tab}").get_by_text("<img src=x").first.wait_for()
    shown = page.locator("#queue-table td", has_text="end").first.inner_text()
    assert "<script>" in shown
    assert "\x1b" not in shown
    begun_again = studio.service.queue.get(id)
    assert begun_again is not None
    assert begun_again.request["prompt"] == hostile
    chosen(page, "models")
    page.get_by_role("button", name="Inspect <img").click()
    page.get_by_role("alert").wait_for()
    assert page.evaluate("window.hacked") is None
