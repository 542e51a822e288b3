"""The pages about the server name every route that there is, and the limits as they are."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.server.http.conftest import Begin
from unveil.cli.serve import Worked
from unveil.server.http.schema import JobsAsk
from unveil.server.http.security import Rules
from unveil.server.http.server import Ask
from unveil.server.jobs.job import Limits
from unveil.server.jobs.job_types import REQUESTS

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ["howto/serve.md", "zh/howto/serve.md"])
def test_every_route_and_every_limit_is_told(begin: Begin, page: str):
    text = (DOCS / page).read_text("utf-8")
    for path in begin().ask("GET", "/v1/openapi.json").json["paths"]:
        assert path in text, path
    worked, rules = Worked(), Rules()
    ask, limits = Ask(Path()), Limits()
    assert (worked.queue, worked.each, worked.budget) == (ask.waiting, ask.each, ask.budget)
    assert (ask.waiting, ask.each) == (limits.waiting, limits.each)
    for told in (
        f"--max-queued {worked.queue}",
        f"--max-jobs-per-key {worked.each}",
        f"--max-job-cost {worked.budget:g}",
    ):
        assert f"`{told}`" in text
    assert f"{rules.json >> 10} KiB" in text
    assert f"{rules.body >> 20} MiB" in text
    assert f"{rules.seconds:g} seconds" in text or f"{rules.seconds:g} 秒" in text


def test_a_job_may_be_of_every_kind_that_there_is():
    assert set(get_args(JobsAsk.model_fields["kind"].annotation)) == REQUESTS.keys()
