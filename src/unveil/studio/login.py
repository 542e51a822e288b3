"""Login for browsers, which cannot send an API key: a form takes the key once, and a session cookie replaces it."""

from __future__ import annotations

import hashlib
import hmac
import io
import re
import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from python_multipart import parse_form
from python_multipart.exceptions import FormParserError

from unveil.server.http.connection import MAX_HEAD
from unveil.server.http.errors import HttpProblem
from unveil.server.http.middleware import (
    MAX_KIND,
    App,
    LimitedBody,
    Message,
    Receive,
    Scope,
    SecurityPolicy,
    Send,
)
from unveil.studio.i18n import LANGUAGES, Language, Translator

LOGIN_PATH = "/login"
COOKIE = "unveil_session"
KEPT_S = 30 * 24 * 3600
MAX_FORM_BYTES = 8 << 10
# a session as `session_of` builds it, among other cookies, which are not parsed; the time is linear in the length
_SESSION = re.compile(rf"(?:^|;)[ \t]*{COOKIE}=(([0-9]{{1,12}})\.[0-9a-f]{{64}})[ \t]*(?:;|$)".encode())


class LoginMiddleware:
    """Replaces a session cookie by its API key, and shows the login form if a request has none.

    Args:
        app: Security middleware behind it.
        rules: Policy with the keys.
    """

    def __init__(self, app: App, rules: SecurityPolicy) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or not self._rules.keys:
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if "authorization" in headers:
            await self._app(scope, receive, send)
            return
        cookies = [value for name, value in scope["headers"] if name.lower() == b"cookie" and len(value) <= MAX_HEAD]
        key = self._key_of_session(cookies)
        if scope["path"] == LOGIN_PATH and scope["method"] == "POST":
            try:
                key = await _submitted_key(headers, LimitedBody(receive, MAX_FORM_BYTES, self._rules.seconds))
            except HttpProblem:  # too slow or too large: the empty key is refused by the security middleware
                key = ""
            receive = _nothing
            hidden = (b"content-type", b"content-length", b"transfer-encoding")
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0].lower() not in hidden]}
        if key:
            scope = {
                **scope,
                "headers": [*scope["headers"], (b"authorization", f"Bearer {key}".encode("latin-1", "replace"))],
            }
        if "text/html" in headers.get("accept", ""):
            send = _Form(send, headers.get("accept-language", ""), tried=scope["path"] == LOGIN_PATH)
        await self._app(scope, receive, send)

    def _key_of_session(self, cookies: Iterable[bytes]) -> str | None:
        """Return the key of the first session in Cookie headers; None if there is none, or if it has expired."""
        session = next(filter(None, map(_SESSION.search, cookies)), None)
        if session is None or int(session[2]) <= time.time():
            return None
        match = None
        for key in self._rules.keys.values():  # compares with all of them, in constant time
            if hmac.compare_digest(session_of(key, int(session[2])).encode(), session[1]):
                match = key
        return match


class _Form:
    """Shows the login form instead of a 401 response.

    Args:
        send: Sends to the browser.
        languages: Accept-Language header.
        tried: An invalid key was submitted.
    """

    def __init__(self, send: Send, languages: str, *, tried: bool) -> None:
        self._send, self._tried, self._shown = send, tried, False
        preferred: list[Language] = [language for language in LANGUAGES if languages.lower().startswith(language)]
        self._tr = Translator(preferred[0] if preferred else LANGUAGES[0])

    async def __call__(self, message: Message) -> None:
        """Pass on other responses."""
        if message["type"] == "http.response.start" and message["status"] == 401:
            self._shown = True
            body = login_page(self._tr, wrong=self._tried).encode()
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


def login_page(tr: Translator, *, wrong: bool) -> str:
    """Return the login page."""
    error = f'<p role="alert">{escape(tr("This key is not valid."))}</p>' if wrong else ""
    label, go = escape(tr("Key")), escape(tr("Log in"))
    return (
        f'<!doctype html><html lang="{tr.language}"><head><meta charset="utf-8"><title>unveil</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem}"
        "input,button{font:inherit;padding:.4rem;width:100%;box-sizing:border-box;margin:.3rem 0}</style></head>"
        f'<body><main><h1>unveil</h1>{error}<form method="post" action="{LOGIN_PATH}" enctype="multipart/form-data">'
        f'<label>{label}<input type="password" name="key" autocomplete="current-password" required autofocus></label>'
        f"<button>{go}</button></form></main></body></html>"
    )


def session_of(key: str, expires: int) -> str:
    """Return the session of a key, from which the key cannot be computed.

    Args:
        key: API key.
        expires: Time from which the session is not valid, in seconds since 1970.
    """
    return f"{expires}." + hmac.new(key.encode(), f"unveil studio {expires}".encode(), hashlib.sha256).hexdigest()


def cookie_of(key: str, *, secure: bool) -> str:
    """Return the session cookie of a key, which scripts cannot read and other sites cannot send.

    Args:
        key: API key.
        secure: The page was loaded over https, so that browsers send the cookie only over https.
    """
    session = session_of(key, int(time.time()) + KEPT_S)
    return f"{COOKIE}={session}; Path=/; Max-Age={KEPT_S}; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


async def _submitted_key(headers: Mapping[str, str], receive: Receive) -> str:
    """Return the key of a submitted form; empty if it is missing, or the form is too large or in chunks."""
    kind = headers.get("content-type", "")
    if "transfer-encoding" in headers or len(kind) > MAX_KIND:  # browsers send the length of a form
        return ""
    body = bytearray()
    while len(body) <= MAX_FORM_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return ""
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    keys: list[bytes] = []

    def field(part: Any) -> None:
        if part.field_name == b"key":
            keys.append(part.value or b"")

    try:
        sent = {"Content-Type": kind.encode(), "Content-Length": str(len(body)).encode()}
        parse_form(sent, io.BytesIO(bytes(body)), field, lambda file: None)
    except FormParserError:
        return ""
    return keys[0].decode("ascii", "replace").strip() if len(body) <= MAX_FORM_BYTES and keys else ""


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
