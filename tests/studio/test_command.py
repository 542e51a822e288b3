"""`unveil studio` as a process: no request to other machines, and no loss when the server is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from tests.server.http.test_served import Served
from tests.studio.conftest import LONG_MS, MARKS, begun, chosen, ended

pytestmark = MARKS


def test_the_page_continues_after_a_killed_server(browser: Any, tmp_path: Path):
    server = Served(tmp_path / "service", verb="studio")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(LONG_MS)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else ""))
    try:
        page.goto(f"http://127.0.0.1:{server.port}/")  # which leads to a language
        page.wait_for_selector("#image-go")
        begun(page, "a large ring", 9_000)
        page.wait_for_selector("#image-status [data-state=running]")
        running = page.locator("#image-status [data-state]").get_attribute("data-job")
        server.kill()
        server = Served(tmp_path / "service", verb="studio", port=server.port)
        page.reload()
        page.wait_for_selector(f"#image-status [data-state=running][data-job='{running}']")
        page.wait_for_function("document.querySelector('#image-prompt textarea').value === 'a large ring'")
        page.locator("#image-cancel").click()
        assert ended(page, "image", "cancelled") == running
        chosen(page, "video")
        page.locator("#video-prompt textarea").fill("a small red circle moves left")
        page.locator("#video-frames textarea, #video-frames input").fill("4")
        page.get_by_role("button", name="Generate video").click()
        ended(page, "video")
        assert hosts <= {f"127.0.0.1:{server.port}", ""}, hosts
    finally:
        context.close()
        server.kill()
