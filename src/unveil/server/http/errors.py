"""HTTP errors: status codes and the error object of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unveil.errors import (
    Cancelled,
    DataError,
    Error,
    OutOfResources,
    OutputError,
    QueueFull,
    RecipeError,
    ShapeError,
    WeightsError,
    out_of_memory,
)
from unveil.server.jobs.job_types import AdminRequired, JobTooLarge
from unveil.server.jobs.owners import QuotaExceeded, TooManyFiles

# the first match counts: status and machine-readable code
_KINDS: tuple[tuple[type[Error], int, str], ...] = (
    (JobTooLarge, 422, "over_budget"),
    (AdminRequired, 403, "admin_required"),
    (TooManyFiles, 429, "quota_exceeded"),
    (QuotaExceeded, 507, "quota_exceeded"),
    (QueueFull, 429, "rate_limit_exceeded"),
    (Cancelled, 409, "cancelled"),
    (WeightsError, 404, "model_not_found"),
    (RecipeError, 400, "invalid_value"),
    (ShapeError, 400, "invalid_value"),
    (DataError, 400, "invalid_file"),
    (OutputError, 507, "not_writable"),
    (OutOfResources, 507, "out_of_resources"),
)
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {429: "rate_limit_error", 409: "conflict_error"}


class HttpProblem(Exception):
    """An HTTP error response.

    Args:
        status: HTTP status.
        message: Human-readable message.
        code: Machine-readable code.
        param: Field that caused the error.
        headers: Additional response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def http_problem(error: Error) -> HttpProblem:
    """Convert an error of the library into an HTTP error."""
    status, code = next(((status, code) for kind, status, code in _KINDS if isinstance(error, kind)), (400, "failed"))
    if code == "out_of_resources" and out_of_memory(error):  # which a smaller request does not need; a disk stays full
        status, code = 503, "out_of_memory"
    headers: dict[str, str] = {}
    if isinstance(error, QueueFull):
        headers["retry-after"] = str(max(1, math.ceil(error.seconds)))
    return HttpProblem(status, str(error), code, headers=headers)
