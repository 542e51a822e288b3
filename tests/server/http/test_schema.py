"""Random requests within and around the OpenAPI description never end in a server error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.http.conftest import server
from unveil.server.jobs.job_table import QueueLimits

schemathesis = pytest.importorskip("schemathesis")
openapi = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
EXAMPLES = 12  # of each operation, and as many that break a rule
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_no_generated_request_is_a_server_error(tmp_path: Path):
    """Every status is one that is described, every answer has the described form, and none is 5xx."""
    with server(tmp_path / "service", limits=QueueLimits(waiting=8, each=8)) as running:
        address = f"http://127.0.0.1:{running.port}"
        schema = schemathesis.openapi.from_url(f"{address}/v1/openapi.json")
        seen: dict[int, int] = {}
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path.endswith("/events"):
                continue  # a stream does not end before its job does

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @_given(operation)
            def send_request(case) -> None:
                answer = case.call(base_url=address, timeout=30)
                seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.content)
                case.validate_response(answer, checks=CHECKS)

            send_request()
        assert running.ask("GET", "/health").json["status"] == "ok"
    assert sum(seen.values()) >= 200
    assert {200, 404, 422} <= seen.keys()  # control: requests are both valid and invalid


def _given(operation):
    """Cases of an operation, those that break its rules among them; of forms with files it makes only good ones."""
    modes = schemathesis.GenerationMode
    good = operation.as_strategy(generation_mode=modes.POSITIVE)
    if any(body.media_type.startswith("multipart") for body in operation.body):
        return given(case=good)
    return given(case=st.one_of(good, operation.as_strategy(generation_mode=modes.NEGATIVE)))
