"""The way in for browsers, which send no key with what they ask: a form takes it once, and a cookie stands for it."""

from __future__ import annotations

import hashlib
import hmac
import io
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any

from python_multipart import parse_form
from python_multipart.exceptions import FormParserError

from unveil.server.http.errors import Problem
from unveil.server.http.middleware import App, Bounded, Message, Receive, Scope, Send
from unveil.server.http.security import Rules
from unveil.studio.i18n import LANGUAGES, Language, Say

PLACE = "/login"
COOKIE = "unveil_session"
KEPT_S = 30 * 24 * 3600
MOST = 8 << 10  # bytes of the form


class Entrance:
    """Before the guard: a cookie becomes the key that it stands for, and who has none is shown the form.

    Args:
        app: the guard.
        rules: with the keys.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._keys = {session_of(key): key for key in rules.keys.values()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or not self._keys:
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if "authorization" in headers:
            await self._app(scope, receive, send)
            return
        key = self._of_cookie(headers.get("cookie", ""))
        if scope["path"] == PLACE and scope["method"] == "POST":
            try:
                key = await _told(headers.get("content-type", ""), Bounded(receive, MOST, self._rules.seconds))
            except Problem:  # too slow or too large: no key, which the guard refuses
                key = ""
            receive = _nothing
            hidden = (b"content-type", b"content-length", b"transfer-encoding")
            scope = {**scope, "headers": [one for one in scope["headers"] if one[0].lower() not in hidden]}
        if key:
            scope = {
                **scope,
                "headers": [*scope["headers"], (b"authorization", f"Bearer {key}".encode("latin-1", "replace"))],
            }
        if "text/html" in headers.get("accept", ""):
            send = _Form(send, headers.get("accept-language", ""), tried=scope["path"] == PLACE)
        await self._app(scope, receive, send)

    def _of_cookie(self, text: str) -> str | None:
        try:
            given = SimpleCookie(text).get(COOKIE)
        except CookieError:
            return None
        found = None
        for session, key in self._keys.items():  # all of them, in a time that tells nothing
            if given is not None and hmac.compare_digest(session.encode(), given.value.encode()):
                found = key
        return found


class _Form:
    """Shows the form in the place of a 401.

    Args:
        send: to the browser.
        languages: that it asks for.
        tried: whether a key was given, which was none.
    """

    def __init__(self, send: Send, languages: str, *, tried: bool) -> None:
        self._send, self._tried, self._shown = send, tried, False
        asked: list[Language] = [one for one in LANGUAGES if languages.lower().startswith(one)]
        self._say = Say(asked[0] if asked else LANGUAGES[0])

    async def __call__(self, message: Message) -> None:
        """Passes on what is no 401."""
        if message["type"] == "http.response.start" and message["status"] == 401:
            self._shown = True
            body = form(self._say, wrong=self._tried).encode()
            policy = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
            headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            headers += [
                (b"content-security-policy", policy),
                (b"cache-control", b"no-store"),
                (b"connection", b"close"),
            ]
            await self._send({**message, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        elif not self._shown:
            await self._send(message)


def form(say: Say, *, wrong: bool) -> str:
    """The page that asks for a key."""
    told = f'<p role="alert">{escape(say("This is no key of this server."))}</p>' if wrong else ""
    label, go = escape(say("Key")), escape(say("Enter"))
    return (
        f'<!doctype html><html lang="{say.language}"><head><meta charset="utf-8"><title>unveil</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem}"
        "input,button{font:inherit;padding:.4rem;width:100%;box-sizing:border-box;margin:.3rem 0}</style></head>"
        f'<body><main><h1>unveil</h1>{told}<form method="post" action="{PLACE}" enctype="multipart/form-data">'
        f'<label>{label}<input type="password" name="key" autocomplete="current-password" required autofocus></label>'
        f"<button>{go}</button></form></main></body></html>"
    )


def session_of(key: str) -> str:
    """What a cookie says in the place of a key, from which the key cannot be had."""
    return hmac.new(key.encode(), b"unveil studio", hashlib.sha256).hexdigest()


def cookie_of(key: str) -> str:
    """The cookie of a key: no page's code reads it, and no other site's page sends it."""
    return f"{COOKIE}={session_of(key)}; Path=/; Max-Age={KEPT_S}; HttpOnly; SameSite=Strict"


async def _told(kind: str, receive: Receive) -> str:
    """The key of a form that was sent; empty where there is none, or too much."""
    body = bytearray()
    while len(body) <= MOST:
        message = await receive()
        if message["type"] != "http.request":
            return ""
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    found: list[bytes] = []

    def field(one: Any) -> None:
        if one.field_name == b"key":
            found.append(one.value or b"")

    try:
        sent = {"Content-Type": kind.encode(), "Content-Length": str(len(body)).encode()}
        parse_form(sent, io.BytesIO(bytes(body)), field, lambda file: None)
    except FormParserError:
        return ""
    return found[0].decode("ascii", "replace").strip() if len(body) <= MOST and found else ""


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
