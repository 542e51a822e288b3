"""The pages of the server name every route and the default limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.http.conftest import Begin
from unveil.server.http.middleware import SecurityPolicy
from unveil.server.http.server import ServerOptions
from unveil.server.jobs.job_table import QueueLimits
from unveil.server.jobs.task_job import is_task
from unveil.server.task import Serve
from unveil.tasks import registry

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ["howto/serve.md", "zh/howto/serve.md"])
def test_every_route_and_limit_is_documented(begin: Begin, page: str):
    text = (DOCS / page).read_text("utf-8")
    for path in begin().ask("GET", "/v1/openapi.json").json["paths"]:
        assert re.sub(r"^/v1/tasks/.*", "/v1/tasks/NAME", path) in text, path
    task, rules = Serve(), SecurityPolicy()
    ask, limits = ServerOptions(Path()), QueueLimits()
    assert (task.max_queued, task.max_jobs_per_key, task.max_job_cost) == (ask.waiting, ask.each, ask.budget)
    assert (ask.waiting, ask.each) == (limits.waiting, limits.each)
    for text_of_limit in (
        f"--max-queued {task.max_queued}",
        f"--max-jobs-per-key {task.max_jobs_per_key}",
        f"--max-job-cost {task.max_job_cost:g}",
    ):
        assert f"`{text_of_limit}`" in text
    assert f"{rules.json >> 10} KiB" in text
    assert f"{rules.body >> 20} MiB" in text
    assert f"{rules.seconds:g} seconds" in text or f"{rules.seconds:g} 秒" in text


@pytest.mark.parametrize("name", [*filter(is_task, registry.entries())])
def test_every_task_is_documented(name: str):
    assert all(f"`{name}`" in (DOCS / page).read_text("utf-8") for page in ("howto/serve.md", "zh/howto/serve.md"))
