"""HTTP interface of the service, as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as Plain

from unveil import __version__
from unveil.errors import Error
from unveil.server.http.errors import HttpProblem, http_problem
from unveil.server.http.middleware import CONTENT_TYPE, App, MetricsCollector, SecurityMiddleware, SecurityPolicy
from unveil.server.http.openapi import add_schemas
from unveil.server.http.routes import AsyncService, router, validation_error
from unveil.server.http.task_routes import task_router
from unveil.server.jobs.service import Service

BUDGET = 5_000.0  # maximum cost of a job, in megapixel evaluations


class Health(BaseModel):
    """Status of the server and its number of workers."""

    status: Literal["ok", "no workers", "damaged"]
    workers: int


class ErrorBody(BaseModel):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Error in the format of OpenAI's API."""

    error: ErrorBody


ExtendApp = Callable[[FastAPI, Service, float | None], App]


def api(service: Service, rules: SecurityPolicy, budget: float | None = BUDGET, extend: ExtendApp | None = None) -> App:
    """Build the application behind its security middleware.

    Args:
        service: Service behind it.
        rules: Security policy.
        budget: Maximum cost of a job in megapixel evaluations; None: unlimited.
        extend: Adds more routes behind the middleware, such as the studio.
    """
    app = FastAPI(
        title="unveil",
        version=__version__,
        description="OpenAI-compatible routes for images and videos, and routes for jobs; long work is queued.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses={code: {"model": ErrorResponse} for code in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429)},
        separate_input_output_schemas=False,
    )
    meter = MetricsCollector(service)
    app.state.calls = AsyncService(service, budget)
    app.include_router(router)
    app.include_router(task_router())

    @app.get("/health", response_model=Health)
    async def health() -> Health:
        """Return the status of the server; needs no key."""
        count = len(service.workers.names())
        if service.workers.damaged:  # the job database, which the next start repairs
            return Health(status="damaged", workers=count)
        return Health(status="ok" if count else "no workers", workers=count)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """Return the same schema as /v1/openapi.json, at the address that clients try first."""
        return app.openapi()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return metrics in Prometheus format; the disk space of other keys is shown to admins only."""
        owner = str(request.state.owner)
        owners = list(rules.keys) if rules.keys and service.is_admin(owner) else [owner]
        return Response(await run_in_threadpool(meter.page, owners), media_type=CONTENT_TYPE)

    add_schemas(app)
    _handle(app)
    return SecurityMiddleware(app if extend is None else extend(app, service, budget), rules, meter.count_request)


def _handle(app: FastAPI) -> None:
    """Turn every error into the same JSON object."""

    async def respond(request: Request, problem: Any) -> Response:
        del request
        headers = dict(problem.headers)
        if problem.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not received
        return JSONResponse(problem.as_json(), problem.status, headers=headers)

    async def library_error(request: Request, error: Any) -> Response:
        return await respond(request, http_problem(error))

    async def invalid(request: Request, error: Any) -> Response:
        return await respond(request, validation_error(error.errors()))

    async def http_error(request: Request, error: Any) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return await respond(request, HttpProblem(error.status_code, str(error.detail), code, headers=error.headers))

    async def unexpected(request: Request, error: Any) -> Response:
        del error
        return await respond(request, HttpProblem(500, "unexpected error in unveil; see the server's log", "internal"))

    app.add_exception_handler(HttpProblem, respond)
    app.add_exception_handler(Error, library_error)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (HTTPException, Plain):
        app.add_exception_handler(kind, http_error)
    app.add_exception_handler(Exception, unexpected)
