"""Login for browsers, which cannot send an API key: a form takes the key once, and a session cookie replaces it."""

from __future__ import annotations

import hashlib
import hmac
import io
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any

from python_multipart import parse_form
from python_multipart.exceptions import FormParserError

from unveil.server.http.errors import HttpProblem
from unveil.server.http.middleware import App, LimitedBody, Message, Receive, Scope, SecurityPolicy, Send
from unveil.studio.i18n import LANGUAGES, Language, Translator

LOGIN_PATH = "/login"
COOKIE = "unveil_session"
KEPT_S = 30 * 24 * 3600
MAX_FORM_BYTES = 8 << 10


class LoginMiddleware:
    """Replaces a session cookie by its API key, and shows the login form if a request has none.

    Args:
        app: Security middleware behind it.
        rules: Policy with the keys.
    """

    def __init__(self, app: App, rules: SecurityPolicy) -> None:
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
        if scope["path"] == LOGIN_PATH and scope["method"] == "POST":
            try:
                key = await _submitted_key(
                    headers.get("content-type", ""), LimitedBody(receive, MAX_FORM_BYTES, self._rules.seconds)
                )
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

    def _of_cookie(self, text: str) -> str | None:
        try:
            cookie = SimpleCookie(text).get(COOKIE)
        except CookieError:
            return None
        match = None
        for session, key in self._keys.items():  # compares with all of them, in constant time
            if cookie is not None and hmac.compare_digest(session.encode(), cookie.value.encode()):
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


def session_of(key: str) -> str:
    """Return the session id of a key, from which the key cannot be computed."""
    return hmac.new(key.encode(), b"unveil studio", hashlib.sha256).hexdigest()


def cookie_of(key: str) -> str:
    """Return the session cookie of a key, which scripts cannot read and other sites cannot send."""
    return f"{COOKIE}={session_of(key)}; Path=/; Max-Age={KEPT_S}; HttpOnly; SameSite=Strict"


async def _submitted_key(kind: str, receive: Receive) -> str:
    """Return the key of a submitted form; empty if it is missing or the form is too large."""
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
