"""`unveil studio`: the server with the page before it."""

from __future__ import annotations

from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from unveil.cli.console import Console
from unveil.server.http import server
from unveil.server.http.middleware import App, Message, Receive, Scope, Send
from unveil.server.jobs.service import Service
from unveil.studio.client import Client
from unveil.studio.i18n import LANGUAGES
from unveil.studio.login import PLACE, Entrance, cookie_of
from unveil.studio.page import mounted
from unveil.studio.ssrf_guard import is_address, shut

# The page's own code is made of strings, and its pictures may be data; nothing is fetched from elsewhere.
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    b"worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
# Gradio's own words follow the browser's language, and ours the page's.
SPEAKS = """<script>
for (const [name, value] of [['language', 'LANGUAGE'], ['languages', ['LANGUAGE']]]) {
  Object.defineProperty(navigator, name, {get: () => value});
}
</script>"""
KEPT = b"public, max-age=31536000, immutable"  # files whose names say what they hold


def serve(ask: server.Ask, console: Console) -> None:
    """Serves until it is interrupted.

    Raises:
        RecipeError, NotWritable: as `server.serve`.
    """
    weights = [f"/{language}/gradio_api/upload" for language in LANGUAGES]
    server.serve(replace(ask, large=weights), console, extend=extended, before=Entrance)


def extended(app: FastAPI, service: Service, budget: float | None) -> App:
    """The application with the page, for `web.api.api`."""

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        """The page in the language that the browser asks for first."""
        asked = request.headers.get("accept-language", "").lower()
        return RedirectResponse(f"/{'zh' if asked.startswith('zh') else 'en'}/", 303)

    @app.post(PLACE, include_in_schema=False)
    async def entered(request: Request) -> RedirectResponse:
        """Who gave a key comes in, and is known by a cookie from now on."""
        key = request.headers["authorization"].partition(" ")[2]
        return RedirectResponse("/", 303, {"set-cookie": cookie_of(key)})

    shut()
    return Policed(mounted(app, Client(service, budget)))


class Policed:
    """Says of the page's answers what a browser may do with them; the other answers have a stricter word of the guard.

    Args:
        app: behind it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path.split("/")[1] not in LANGUAGES:
            await self._app(scope, receive, send)
            return
        if is_address(path):
            await Response("No file here.", 404)(scope, receive, send)
            return
        language = "zh-CN" if path.startswith("/zh") else "en"
        page = _Page(send, path, SPEAKS.replace("LANGUAGE", language).encode(), language)
        await self._app(scope, receive, page)


class _Page:
    """Passes on an answer with the policy; of a page also with its language, which is fixed in Gradio's own.

    Args:
        send: to the browser.
        path: that was asked.
        script: that a page begins with.
        language: of the page.
    """

    def __init__(self, send: Send, path: str, script: bytes, language: str) -> None:
        self._send, self._path, self._script, self._language = send, path, script, language
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Passes a message on; those of a page when it is whole."""
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(message)
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(b"text/html") and message["status"] == 200:
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._whole(self._start)
            return
        await self._send(message)

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        more = [(b"content-security-policy", POLICY)]
        if "/assets/" in self._path and message["status"] == 200:
            more.append((b"cache-control", KEPT))
        names = {name for name, _ in more}
        return [*(one for one in message.get("headers", ()) if one[0] not in names), *more]

    async def _whole(self, start: Message) -> None:
        tag = f'lang="{self._language}"'.encode()
        body = bytes(self._body).replace(b'lang="en"', tag, 1).replace(b"<head>", b"<head>" + self._script, 1)
        length = (b"content-length", str(len(body)).encode())
        headers = [*(one for one in start["headers"] if one[0] != length[0]), length]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
