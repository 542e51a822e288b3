"""The HTTP interface of a service, as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as Plain

from unveil import __version__
from unveil.server.http.errors import Problem, problem_of
from unveil.server.http.metrics import KIND, Meter
from unveil.server.http.middleware import App, Guard
from unveil.server.http.openapi import describe
from unveil.server.http.routes import router, wrong
from unveil.server.http.security import Rules
from unveil.server.http.service_facade import Calls
from unveil.server.jobs.service import Service
from unveil.types import Error

BUDGET = 5_000.0  # megapixel calls of a job


class Health(BaseModel):
    """Whether the server answers, and who works."""

    status: Literal["ok", "no workers", "damaged"]
    workers: int


class ErrorOf(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """What clients of OpenAI's interface read of an error."""

    error: ErrorOf


Extend = Callable[[FastAPI, Service, float | None], App]


def api(service: Service, rules: Rules, budget: float | None = BUDGET, extend: Extend | None = None) -> App:
    """The application, with its guard before it.

    Args:
        service: behind it.
        rules: whom it answers.
        budget: of a job, in megapixel calls; None: as much as one likes.
        extend: puts more behind the guard, such as a page.
    """
    app = FastAPI(
        title="unveil",
        version=__version__,
        description="Pictures and clips in OpenAI's words and in ours; all that takes long is a job of one queue.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses={code: {"model": ErrorAnswer} for code in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429)},
        separate_input_output_schemas=False,
    )
    meter = Meter(service)
    app.state.calls = Calls(service, budget)
    app.include_router(router)

    @app.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether the server answers; needs no key."""
        count = len(service.crew.names())
        if service.crew.damaged:  # the table of jobs, which the next start mends
            return Health(status="damaged", workers=count)
        return Health(status="ok" if count else "no workers", workers=count)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What is measured, for Prometheus."""
        return Response(meter.page(), media_type=KIND)

    describe(app)
    _handle(app)
    return Guard(app if extend is None else extend(app, service, budget), rules, meter.seen)


def _handle(app: FastAPI) -> None:
    """Every error is the same object."""

    async def told(request: Request, problem: Any) -> Response:
        del request
        headers = dict(problem.headers)
        if problem.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        return JSONResponse(problem.plain(), problem.status, headers=headers)

    async def ours(request: Request, error: Any) -> Response:
        return await told(request, problem_of(error))

    async def invalid(request: Request, error: Any) -> Response:
        return await told(request, wrong(error.errors()))

    async def plain(request: Request, error: Any) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return await told(request, Problem(error.status_code, str(error.detail), code, headers=error.headers))

    async def unexpected(request: Request, error: Any) -> Response:
        del error
        return await told(request, Problem(500, "a fault of unveil; the server's log says more", "internal"))

    app.add_exception_handler(Problem, told)
    app.add_exception_handler(Error, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (HTTPException, Plain):
        app.add_exception_handler(kind, plain)
    app.add_exception_handler(Exception, unexpected)
