"""Requests that need more memory than there is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.http.conftest import Begin
from unveil.errors import OutOfResources
from unveil.server.jobs.worker import JobProgress

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    OutOfResources("out of memory while decoding latents (4, 4, 64, 64), in tiles of 512 px too; lower the batch"),
]


@pytest.mark.parametrize("problem", ERRORS, ids=["sampling", "decoding"])
def test_a_request_without_memory_gets_503_with_a_hint_and_the_next_one_succeeds_soon(begin: Begin, problem: Exception):
    def draw(request: Mapping[str, Any], folder: Path, report: JobProgress) -> None:
        if request["seed"] == 1:
            raise problem
        (folder / "0.png").write_bytes(b"image")

    server = begin(work={"sample": draw})
    refused = server.ask("POST", "/v1/images/generations", {"prompt": "a ring", "seed": 1})
    error = refused.json["error"]
    assert (refused.status, error["type"], error["code"]) == (503, "server_error", "out_of_memory")
    assert error["message"].startswith("out of memory")
    assert "request fewer or smaller images" in error["message"] or "lower the batch" in error["message"]
    begun = time.monotonic()
    assert server.ask("POST", "/v1/images/generations", {"prompt": "a ring", "seed": 2}).status == 200
    assert time.monotonic() - begun < 5
