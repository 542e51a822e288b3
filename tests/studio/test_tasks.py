"""Every task is a form on the page, made of its class."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tests.server.http.conftest import Server
from tests.studio.conftest import MARKS, chosen, ended
from unveil.analysis.task import AnalyzeViT
from unveil.server.jobs.catalog import Catalog
from unveil.studio.client import StudioClient
from unveil.studio.i18n import CHINESE_TASKS, Translator
from unveil.studio.task_form import TaskForm, _item_of, label_of
from unveil.tasks import registry
from unveil.tasks.task import field_group

pytestmark = MARKS


def texts_of(kind: Any) -> set[str]:
    """The texts of a task's form."""
    texts: set[str] = set()
    for name, field in kind.model_fields.items():
        texts |= {label_of(name, field), field.description or ""}
        if (item := _item_of(field)) is not None:
            texts |= texts_of(item)
    return texts - {""}


@pytest.mark.parametrize("name", [name for name in registry.BUNDLED if not registry.task_class(name).served])
def test_a_bundled_task_with_a_form_is_translated(name: str):
    kind = registry.task_class(name)
    groups = {field_group(kind, field) for field in kind.model_fields} - {""}
    assert texts_of(kind) | groups | {kind.section, registry.summary(kind)} <= CHINESE_TASKS.keys()


def form_of(name: str) -> TaskForm:
    service = SimpleNamespace(catalog=lambda owner: Catalog(Path("runs")), admins=None)
    form = TaskForm(registry.task_class(name), StudioClient(service, None), Translator("en"))  # type: ignore[arg-type]
    with gr.Blocks():
        form.build()
    return form


@pytest.mark.parametrize("name", [name for name in registry.BUNDLED if not registry.task_class(name).served])
def test_an_untouched_form_changes_no_default(name: str):
    form = form_of(name)
    request = form.request([field.part.value for field in form.fields])
    defaults = {key: field.get_default(call_default_factory=True) for key, field in form.kind.model_fields.items()}
    assert request == {key: defaults[key] for key in request}


def test_numbers_and_sizes_are_typed_in_the_form_of_an_analysis():
    form = form_of("analyze-vit")
    typed = {("sizes", 0, "depth"): "1", ("sizes", 0, "width"): "16", ("sizes", 1, "depth"): "2"}
    typed |= {("sizes", 1, "width"): "32", ("amounts",): "40\n200", ("settings",): "train.lr=0.01"}
    request = form.request([typed.get(field.path, field.part.value) for field in form.fields])
    task = AnalyzeViT.parse(request)
    assert [(size.depth, size.width) for size in task.sizes] == [(1, 16), (2, 32)]
    assert (task.amounts, task.steps, task.settings) == ((40, 200), 1200, {"train.lr": 0.01})
    labels = {field.path: field.part.label for field in form.fields}
    assert labels[("sizes", 1, "width")] == "Size 2: Token width"


def test_a_task_is_chosen_filled_in_and_run(page: Any, studio: Server):
    chosen(page, "tasks")
    page.wait_for_selector("#task-prompt")
    page.wait_for_selector("#tasks-go")
    page.locator("#task-prompt textarea").fill("a small red circle on black")
    page.locator("#task-steps input, #task-steps textarea").first.fill("2")
    page.locator("#task-seed input, #task-seed textarea").first.fill("4")
    page.locator("#tasks-go").click()
    job = studio.service.queue.get(ended(page, "tasks"))
    assert job is not None
    assert job.kind == "sample"
    assert job.request["prompt"] == ["a small red circle on black"]
    assert [name for name in job.outputs if name.startswith("seed4")]
    page.locator("#tasks-result img").first.wait_for()
