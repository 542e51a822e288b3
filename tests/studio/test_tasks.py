"""Every task is a form on the page, made of its class."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.http.conftest import Server
from tests.studio.conftest import MARKS, chosen, ended
from unveil.studio.i18n import CHINESE_TASKS
from unveil.studio.task_form import _item_of, label_of
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
