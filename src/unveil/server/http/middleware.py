"""What stands before every route: who asks, by which name, from which page, and how much is read of it and how long.

It is a plain ASGI application around another, so that nothing is parsed before it has been weighed.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from unveil.server.http.errors import Problem
from unveil.server.http.security import Rules, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# how a request ended: the scope, the status and the seconds
Seen = Callable[[Scope, int, float], None]

OPEN = ("/health",)  # what needs no key
JSON, FORM = "application/json", "multipart/form-data"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


class Guard:
    """Lets through what the rules allow, and answers all else itself.

    Args:
        app: behind it.
        rules: of the server.
        seen: hears how each request ended.
    """

    def __init__(self, app: App, rules: Rules, seen: Seen) -> None:
        self._app, self._rules, self._seen = app, rules, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        begun, status, name = time.monotonic(), [0], secrets.token_hex(8)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                own = {key for key, _ in message.get("headers", ())}
                more = [one for one in HEADERS if one[0] not in own]
                message["headers"] = [*message.get("headers", ()), *more, (b"x-request-id", name.encode())]
            await send(message)

        scope["scheme"] = _scheme(scope)
        try:
            self._admit(scope)
            await self._app(scope, await self._weighed(scope, receive), answer)
        except Problem as problem:
            if status[0]:
                raise
            await _told(problem, answer)
        finally:
            self._seen(scope, status[0], time.monotonic() - begun)

    def _admit(self, scope: Scope) -> None:
        """Raises Problem: who asks is nobody who may."""
        headers = _headers(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._rules.is_host(host):
            raise Problem(403, "this server is not called by that name", "wrong_host")
        if origin is not None and not self._rules.is_origin(origin, host):
            raise Problem(403, "pages of another origin may not ask this server", "wrong_origin")
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and not _is_link(scope, headers):
            raise Problem(403, "pages of another origin may not ask this server", "wrong_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self._rules.who(key.strip() if scheme.lower() == "bearer" else None)
        if owner is None and scope["path"] not in OPEN:
            raise Problem(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
        scope.setdefault("state", {})["owner"] = owner or ""

    async def _weighed(self, scope: Scope, receive: Receive) -> Receive:
        """What the application reads the body from.

        Raises:
            Problem: a body of a kind that is not read, or larger, later or deeper than may be.
        """
        headers, rules = _headers(scope), self._rules
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Problem(400, "content-length is no number", "bad_request")
        has_body = int(length[:12]) > 0 or "transfer-encoding" in headers
        if not has_body:
            return receive
        if kind not in (JSON, FORM):
            raise Problem(415, f"a body is {JSON} or {FORM}", "unsupported_media_type")
        if "content-encoding" in headers:
            raise Problem(415, "a body is sent as it is, without a content-encoding", "unsupported_media_type")
        if kind == FORM and scope["path"] in rules.large:
            return receive
        most = rules.json if kind == JSON else rules.body
        if len(length) > 12 or int(length) > most:
            raise _too_large(most)
        bounded = Bounded(receive, most, rules.seconds)
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
        if depth_of(bytes(body), rules.depth) > rules.depth:
            raise Problem(422, f"JSON that is deeper than {rules.depth} levels", "too_deep")
        return _replay({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


class Bounded:
    """Reads a body until it is too large or too late.

    Args:
        receive: from the client.
        most: bytes of it.
        seconds: from now on until it has to be there.
    """

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most = receive, most
        self._end = time.monotonic() + seconds
        self._read, self._whole = 0, False

    async def __call__(self) -> Message:
        """The next part of it.

        Raises:
            Problem: 408 or 413.
        """
        if self._whole:  # from here on it is asked whether the client is still there
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._end - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, "the request took too long to arrive", "request_timeout") from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body")
            if self._read > self._most:
                raise _too_large(self._most)
        return message


def depth_of(body: bytes, most: int) -> int:
    """How deep brackets and braces stand in each other in JSON, strings aside; no further than one beyond `most`."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(_STRING.sub(b"", body)):
        depth += 1 if found[0] in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > most:
            break
    return deepest


async def _told(problem: Problem, send: Send) -> None:
    """Answers with a problem; the connection ends, since the rest of the request is not read."""
    body = json.dumps(problem.plain()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), *((key.encode(), value.encode()) for key, value in problem.headers.items())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body is larger than {most} bytes, which is the most that is read", "too_large")


def _replay(first: Message, rest: Receive) -> Receive:
    left = [first]

    async def receive() -> Message:
        return left.pop() if left else await rest()

    return receive


def _is_link(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether somebody followed a link from another page: that changes nothing here, and the page sees nothing of it.

    A frame in that page is none, nor is what its scripts fetch.
    """
    kinds = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["method"] == "GET" and kinds == ("navigate", "document")


def _scheme(scope: Scope) -> str:
    """How the client reached the server: a proxy says it, which is believed where it is on the same machine."""
    said, client = _headers(scope).get("x-forwarded-proto"), scope.get("client")
    return said if said in ("http", "https") and client and is_loopback(client[0]) else scope["scheme"]


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by their names; of one that is there twice, both, which is no value of any."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found
