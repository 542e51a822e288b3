"""`unveil studio`: the HTTP server with the page."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from unveil.io.console import Console
from unveil.server.http import server
from unveil.server.http.middleware import App, Message, Receive, Scope, Send
from unveil.server.jobs.service import Service
from unveil.studio.client import StudioClient
from unveil.studio.file_access import FileAccess
from unveil.studio.i18n import LANGUAGES, is_page_path
from unveil.studio.login import LOGIN_PATH, LoginMiddleware, cookie_of
from unveil.studio.page import mount_pages
from unveil.studio.ssrf_guard import disable_url_fetch, names_url

# Gradio builds code from strings and uses data URLs for images; nothing is loaded from other hosts.
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    b"worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
# Gradio's own texts follow the browser's language; this makes them follow the page's.
SPEAKS = """<script>
for (const [name, value] of [['language', 'LANGUAGE'], ['languages', ['LANGUAGE']]]) {
  Object.defineProperty(navigator, name, {get: () => value});
}
</script>"""
CACHE = "browser"  # subfolder of the state folder for files from browsers
KEPT = b"public, max-age=31536000, immutable"  # for files whose names contain a hash of their content


def serve(ask: server.ServerOptions, console: Console) -> None:
    """Serve until interrupted.

    Raises:
        RecipeError, OutputError: As `server.serve`.
    """
    weights = [f"/{language}/gradio_api/upload" for language in LANGUAGES]
    server.serve(replace(ask, large=weights), console, extend=add_studio, before=LoginMiddleware)


def add_studio(app: FastAPI, service: Service, budget: float | None) -> App:
    """Add the page to an application; used as `extend` of `api.api`."""

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        """Redirect to the page in the browser's preferred language."""
        language = request.headers.get("accept-language", "").lower()
        return RedirectResponse(f"/{'zh' if language.startswith('zh') else 'en'}/", 303)

    @app.post(LOGIN_PATH, include_in_schema=False)
    async def entered(request: Request) -> RedirectResponse:
        """Set the session cookie after a login with a valid key."""
        key = request.headers["authorization"].partition(" ")[2]
        return RedirectResponse("/", 303, {"set-cookie": cookie_of(key, secure=request.url.scheme == "https")})

    disable_url_fetch()
    temporary = temporary_folder(service)
    pages = mount_pages(app, StudioClient(service, budget), temporary)
    return SecurityHeaders(FileAccess(pages, service, temporary))


def temporary_folder(service: Service) -> Path:
    """Return the folder for files from browsers, whose path the browsers receive.

    Without keys, all browsers are those of this machine's user, who may upload large files: it is a subfolder of the
    state folder. With keys it is a new folder among the temporary ones of the system, so that browsers do not
    receive the path of the state folder; it is deleted at the end of the process.
    """
    if service.admins is None:
        return Path(os.path.realpath(service.queue.folder / CACHE))
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="unveil-")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class SecurityHeaders:
    """Adds the content security policy to responses of the page; other responses have a stricter one.

    Args:
        app: Application behind it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not is_page_path(path):
            await self._app(scope, receive, send)
            return
        if names_url(path):
            await Response("No file here.", 404)(scope, receive, send)
            return
        language = "zh-CN" if path.startswith("/zh") else "en"
        page = _Page(send, path, SPEAKS.replace("LANGUAGE", language).encode(), language)
        await self._app(scope, receive, page)


class _Page:
    """Adds the policy to a response, and the language to an HTML page.

    Args:
        send: Sends to the browser.
        path: Requested path.
        script: Script inserted at the start of the page.
        language: Language of the page.
    """

    def __init__(self, send: Send, path: str, script: bytes, language: str) -> None:
        self._send, self._path, self._script, self._language = send, path, script, language
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Pass on a message; those of an HTML page are collected first."""
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
        return [*(header for header in message.get("headers", ()) if header[0] not in names), *more]

    async def _whole(self, start: Message) -> None:
        tag = f'lang="{self._language}"'.encode()
        body = bytes(self._body).replace(b'lang="en"', tag, 1).replace(b"<head>", b"<head>" + self._script, 1)
        length = (b"content-length", str(len(body)).encode())
        headers = [*(header for header in start["headers"] if header[0] != length[0]), length]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
