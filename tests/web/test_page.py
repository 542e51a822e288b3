"""The pages about the server name every route that there is, and the limits as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.conftest import Begin
from unveil.app.serve_cli import Worked
from unveil.web.rules import Rules

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["howto/serve.md", "zh/howto/serve.md"])
def test_every_route_and_every_limit_is_told(begin: Begin, page: str):
    text = (DOCS / page).read_text("utf-8")
    for path in begin().ask("GET", "/v1/openapi.json").json["paths"]:
        assert path in text, path
    worked, rules = Worked(), Rules()
    for told in (f"--queue {worked.queue}", f"--each {worked.each}", f"--budget {worked.budget:g}"):
        assert f"`{told}`" in text
    assert f"{rules.json >> 10} KiB" in text
    assert f"{rules.body >> 20} MiB" in text
    assert f"{rules.seconds:g} seconds" in text or f"{rules.seconds:g} 秒" in text
