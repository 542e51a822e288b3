"""Security middleware: checks host, origin and API key, and limits the size, depth and duration of request bodies.

It is a plain ASGI application around another, so that nothing is parsed before it was checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from unveil.errors import DataError, RecipeError
from unveil.server.http.connection import ConnectionLimits, check_head
from unveil.server.http.errors import HttpProblem
from unveil.server.jobs.outputs import MAX_BYTES
from unveil.server.jobs.service import Service

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST = 16  # characters of a key
MIB = 1 << 20
MAX_DEPTH, MAX_ENTRIES = 32, 10_000  # of JSON
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]*)(?::[0-9]{1,5})?")
SMALL = 4096  # bytes of JSON that are checked at once; for more, others do not wait


@dataclass(frozen=True)
class SecurityPolicy:
    """Security policy of a server.

    Attributes:
        keys: API keys by name; none: no key is required.
        hosts: Allowed Host headers, without port; none: any host, which requires keys.
        origins: Allowed origins of other pages, such as https://studio.example.org.
        json: Maximum bytes of a JSON body.
        body: Maximum bytes of any other body.
        seconds: Time until a request must be complete.
        depth: Maximum nesting of JSON.
        entries: Maximum number of values in JSON.
        large: Paths that accept uploads of any size and duration; for use on the own machine.
        admins: Names of the keys that may change models, which all keys share.
        proxies: States the addresses of proxies, whose headers are trusted.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    hosts: frozenset[str] | None = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    json: int = MIB // 4
    body: int = MAX_BYTES
    seconds: float = 30.0
    depth: int = MAX_DEPTH
    entries: int = MAX_ENTRIES
    large: frozenset[str] = frozenset()
    admins: frozenset[str] = frozenset()
    proxies: ConnectionLimits = field(default_factory=ConnectionLimits)

    def __post_init__(self) -> None:
        """Raise RecipeError for keys that can be guessed."""
        for name, key in self.keys.items():
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise RecipeError(f"key {name!r}: needs at least {SHORTEST} ASCII characters without spaces")

    def key_name(self, candidate: str | None) -> str | None:
        """Return the name of a key, "" if no key is required, or None if the key is invalid.

        Keys are compared in constant time.
        """
        if not self.keys:
            return ""
        digest, match = _digest(candidate or ""), None
        for name, key in self.keys.items():
            if hmac.compare_digest(digest, _digest(key)):
                match = name
        return match if candidate else None

    def is_host(self, host: str) -> bool:
        """Return True if a Host header is allowed: a name or an address, and perhaps a port."""
        match = _HOST.fullmatch(host.lower())
        return match is not None and (self.hosts is None or match[1] in self.hosts)

    def is_origin(self, origin: str, host: str) -> bool:
        """Return True if a page of this origin may send requests to this host."""
        scheme, _, rest = origin.lower().partition("://")
        return origin in self.origins or (scheme in ("http", "https") and rest == host.lower())


def is_loopback(host: str) -> bool:
    """Return True if a host is a loopback address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class ApiKeys(NamedTuple):
    """API keys by name, and the names of those with the role of an admin."""

    keys: Mapping[str, str] = MappingProxyType({})
    admins: frozenset[str] = frozenset()


ADMIN = "admin"  # role in a file of keys


def read_keys(file: Path, *, shared: bool = False) -> ApiKeys:
    """Read a file of keys, one KEY, NAME KEY or NAME KEY admin per line.

    Empty lines and lines that begin with # are ignored.

    Args:
        file: File that only its owner can read.
        shared: Other users may read it as well, such as a mounted secret of a container.

    Raises:
        DataError: It cannot be read.
        RecipeError: Other users can read or write it, a name is repeated, or the file contains no key.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            lines = [line.split() for line in opened.read().splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{file}: {getattr(problem, 'strerror', None) or 'is not text'}") from problem
    if mode & 0o022:
        raise RecipeError(f"{file}: other users can write it (mode {mode:04o}); run chmod 600 {file}")
    if mode & 0o044 and not shared:
        raise RecipeError(
            f"{file}: other users can read it (mode {mode:04o}); run chmod 600 {file}, or pass --shared-api-keys for a "
            "mounted secret of a container"
        )
    keys: dict[str, str] = {}
    admins: set[str] = set()
    for number, words in enumerate(lines, 1):
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 3 or words[2:] not in ([], [ADMIN]):
            raise RecipeError(f"{file} line {number}: must be NAME KEY, or NAME KEY {ADMIN}")
        name = words[0] if len(words) > 1 else f"key {number}"
        if name in keys:
            raise RecipeError(f"{file} line {number}: repeats the name of another key; give each its own")
        keys[name] = words[min(1, len(words) - 1)]
        if len(words) == 3:
            admins.add(name)
    if not keys:
        raise RecipeError(f"{file}: contains no key; write one NAME KEY per line")
    return ApiKeys(keys, frozenset(admins))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# called at the end of a request with its scope, status and seconds
OnRequestEnd = Callable[[Scope, int, float], None]

OPEN = ("/health",)  # routes without a key
JSON, FORM = "application/json", "multipart/form-data"
MAX_KIND = 256  # characters of a Content-Type, whose boundary has at most 70 (RFC 2046 5.1.1)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


class SecurityMiddleware:
    """Passes on the requests that the policy allows, and answers all others itself.

    Args:
        app: Application behind it.
        rules: Security policy.
        seen: Called at the end of each request.
    """

    def __init__(self, app: App, rules: SecurityPolicy, seen: OnRequestEnd) -> None:
        self._app, self._rules, self._seen = app, rules, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        start, status, name = time.monotonic(), [0], secrets.token_hex(8)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                present = {key for key, _ in message.get("headers", ())}
                more = [header for header in HEADERS if header[0] not in present]
                message["headers"] = [*message.get("headers", ()), *more, (b"x-request-id", name.encode())]
            await send(message)

        try:
            check_head(scope["headers"], (scope.get("raw_path") or b"") + scope.get("query_string", b""))
            scope["scheme"] = _scheme(scope, self._rules.proxies)
            self._admit(scope)
            await self._app(scope, await self._checked(scope, receive), answer)
        except HttpProblem as problem:
            if status[0]:
                raise
            await _send_problem(problem, answer)
        finally:
            self._seen(scope, status[0], time.monotonic() - start)

    def _admit(self, scope: Scope) -> None:
        """Raise HttpProblem if the policy does not allow the request."""
        if (refusal := scope.get("state", {}).get("refusal")) is not None:  # of the connection
            raise refusal
        headers = _headers(scope)
        if "transfer-encoding" in headers and ("content-length" in headers or scope.get("http_version") == "1.0"):
            # a proxy may see another end of this request; the connection is closed (RFC 9112 6.1 and 6.3)
            raise HttpProblem(400, "transfer-encoding with content-length, or in HTTP/1.0, is refused", "bad_request")
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._rules.is_host(host):
            raise HttpProblem(403, "the Host header is not an allowed host of this server", "wrong_host")
        if origin is not None and not self._rules.is_origin(origin, host):
            raise HttpProblem(403, "requests from pages of this origin are not allowed", "wrong_origin")
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and not _is_link(scope, headers):
            raise HttpProblem(403, "requests from pages of this origin are not allowed", "wrong_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self._rules.key_name(key.strip() if scheme.lower() == "bearer" else None)
        if owner is None and scope["path"] not in OPEN:
            raise HttpProblem(401, "an API key is required: Authorization: Bearer KEY", "invalid_api_key")
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
        if owner is None and has_body:  # nothing of a client without a key is parsed
            raise HttpProblem(413, f"{scope['path']} takes no body", "too_large")
        state = scope.setdefault("state", {})
        state["owner"] = owner or ""
        state["admitted"] = owner is not None  # such a connection is not closed in favour of others
        # nothing behind this reads cookies, and parsing them takes a time that is quadratic in their length
        scope["headers"] = [header for header in scope["headers"] if header[0].lower() != b"cookie"]

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Check the body, and return the function from which the application reads it.

        Raises:
            HttpProblem: The body has an unsupported type, or is too large, too late or too deep.
        """
        headers, rules = _headers(scope), self._rules
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise HttpProblem(400, "content-length is not a number", "bad_request")
        has_body = int(length[:12]) > 0 or "transfer-encoding" in headers
        if not has_body:
            return receive
        if kind not in (JSON, FORM) or len(headers["content-type"]) > MAX_KIND:
            raise HttpProblem(415, f"the body must be {JSON} or {FORM}", "unsupported_media_type")
        if "content-encoding" in headers:
            raise HttpProblem(415, "a content-encoding of the body is not supported", "unsupported_media_type")
        if kind == FORM and scope["path"] in rules.large:
            return receive
        most = rules.json if kind == JSON else rules.body
        if len(length) > 12 or int(length) > most:
            raise _too_large(most)
        bounded = LimitedBody(receive, most, rules.seconds)
        if kind != JSON:
            return bounded
        body = bytearray()
        while True:
            message = await bounded()
            if message["type"] != "http.request":
                return _replay(message, receive)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        content = bytes(body)
        if len(content) <= SMALL:
            check_json(content, rules.depth, rules.entries)
        else:
            await run_in_threadpool(check_json, content, rules.depth, rules.entries)
        return _replay({"type": "http.request", "body": content, "more_body": False}, receive)


class LimitedBody:
    """Reads a body up to a maximum size and duration.

    Args:
        receive: Receives messages from the client.
        limit: Maximum number of bytes.
        seconds: Time until the body must be complete.
    """

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._most = receive, limit
        self._end = time.monotonic() + seconds
        self._read, self._whole = 0, False

    async def __call__(self) -> Message:
        """Receive the next message.

        Raises:
            HttpProblem: 408 or 413.
        """
        if self._whole:  # later calls wait for a disconnect
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._end - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise HttpProblem(408, "the request took too long to arrive", "request_timeout") from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body")
            if self._read > self._most:
                raise _too_large(self._most)
        return message


def check_json(body: bytes, depth: int = MAX_DEPTH, entries: int = MAX_ENTRIES) -> int:
    """Check the size of JSON before it is parsed; return an upper limit of the number of its entries.

    Args:
        body: JSON, or any other bytes.
        depth: Maximum nesting.
        entries: Maximum number of entries; the names and the values of an object count as one each.

    Raises:
        HttpProblem: It is not UTF-8, is nested too deeply, or has too many entries.
    """
    if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):  # brackets have other bytes there
        raise HttpProblem(422, "JSON must be encoded as UTF-8", "bad_json")
    count = _entries(body)
    if count > entries and (count := _entries(_STRING.sub(b"", body))) > entries:
        raise HttpProblem(422, f"JSON has {count} entries; the maximum is {entries}", "too_many_entries")
    if json_depth(body, depth) > depth:
        raise HttpProblem(422, f"JSON is nested deeper than {depth} levels", "too_deep")
    return count


def _entries(body: bytes) -> int:
    """Count the separators and the opening brackets, of which JSON has at least as many as entries."""
    return sum(map(body.count, (b",", b":", b"[", b"{")))


def json_depth(body: bytes, limit: int) -> int:
    """Return the nesting depth of JSON outside strings; counting stops one level beyond `limit`."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > limit:
            break
    return deepest


async def _send_problem(problem: HttpProblem, send: Send) -> None:
    """Send an error and close the connection, since the rest of the request is not received."""
    body = json.dumps(problem.as_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), *((key.encode(), value.encode()) for key, value in problem.headers.items())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> HttpProblem:
    return HttpProblem(413, f"the body is larger than the maximum of {most} bytes", "too_large")


def _replay(first: Message, rest: Receive) -> Receive:
    left = [first]

    async def receive() -> Message:
        return left.pop() if left else await rest()

    return receive


def _is_link(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Return True if the user followed a link from another page, which changes nothing and reveals nothing to it.

    Frames and fetches of that page do not count as links.
    """
    kinds = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["method"] == "GET" and kinds == ("navigate", "document")


def _scheme(scope: Scope, proxies: ConnectionLimits) -> str:
    """Return the scheme that the client used; the header is trusted only of a proxy."""
    forwarded, client = _headers(scope).get("x-forwarded-proto"), scope.get("client")
    trusted = client is not None and proxies.is_proxy(client[0])
    return forwarded if forwarded in ("http", "https") and trusted else scope["scheme"]


def _headers(scope: Scope) -> dict[str, str]:
    """Return headers by name; repeated ones are joined, which matches no valid value."""
    headers: dict[str, str] = {}
    for key, value in scope["headers"]:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsCollector:
    """Counts requests, and reads the state of the queue when scraped.

    Args:
        service: Service to measure.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ("method", "route", "status")
        self._requests = Counter("unveil_http_requests", "Requests that were answered", labels, registry=self._registry)
        self._seconds = Histogram(
            "unveil_http_request_seconds", "Until they were answered", labels[1:2], registry=self._registry
        )
        self._registry.register(self)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; those without a route share one label, which bounds the number of labels."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, status or "none").inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Yield the current state of the queue."""
        jobs = GaugeMetricFamily("unveil_jobs", "Jobs in each state", labels=["state"])
        for state, count in self._service.queue.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        limit = self._service.queue.limits.waiting
        yield GaugeMetricFamily("unveil_queue_limit", "Maximum number of queued jobs", value=limit)
        yield GaugeMetricFamily("unveil_workers", "Running workers", value=len(self._service.workers.names()))

    def page(self, owners: Iterable[str]) -> bytes:
        """Return all metrics as text, with the disk space of these owners."""
        registry = CollectorRegistry()
        registry.register(_DiskCollector(self._service, owners))
        return generate_latest(self._registry) + generate_latest(registry)


class _DiskCollector:
    """Measures the disk space of owners.

    Args:
        service: Service of the owners.
        owners: Names of API keys; "" without keys.
    """

    def __init__(self, service: Service, owners: Iterable[str]) -> None:
        self._service, self._owners = service, owners

    def collect(self) -> Iterable[Metric]:
        """Yield bytes and files of each owner, and their maximum."""
        size = GaugeMetricFamily("unveil_key_disk_bytes", "Uploads, runs and outputs of an API key", labels=["key"])
        files = GaugeMetricFamily("unveil_key_files", "Files of an API key", labels=["key"])
        for owner in self._owners:
            usage = self._service.usage(owner)
            size.add_metric([owner], usage.bytes)
            files.add_metric([owner], usage.files)
        quota = self._service.owners.quota
        yield size
        yield files
        yield GaugeMetricFamily("unveil_key_disk_bytes_limit", "Maximum of each API key", value=quota.bytes)
        yield GaugeMetricFamily("unveil_key_files_limit", "Maximum of each API key", value=quota.files)


_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
