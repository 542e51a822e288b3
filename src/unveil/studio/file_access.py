"""Access to files of the page: each API key reads its own uploads, outputs and temporary files, and no others.

Gradio's file routes know folders and no owners. A temporary file of Gradio belongs to the owners to whom its path was
sent: the answer to an upload and the events of the page state it. A request with a path of another owner is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from unveil.errors import Error
from unveil.server.http.errors import HttpProblem, http_problem
from unveil.server.http.middleware import JSON, App, Message, Receive, Scope, Send
from unveil.server.jobs.outputs import FOLDER
from unveil.server.jobs.service import Service
from unveil.server.jobs.worker_main import MADE
from unveil.studio.i18n import is_page_path

_FILE_ROUTE = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
_UPLOAD_ROUTE = "/gradio_api/upload"
_TAIL = 512  # bytes of a chunk in which a path may begin that ends in the next one


class FileAccess:
    """Checks the paths in requests of the page, and notes those in the answers.

    Args:
        app: Application behind it.
        service: Service behind the page.
        temporary: Folder of Gradio's temporary files, with one folder per file.
    """

    def __init__(self, app: App, service: Service, temporary: Path) -> None:
        self._app, self._service = app, service
        self._temporary = Path(os.path.realpath(temporary))
        self._state = Path(os.path.realpath(service.queue.folder))
        # bounds the length of a name, so that a path fits into the tail of a chunk
        self._sent = re.compile(re.escape(str(self._temporary)).encode() + rb"/([^/\"\\\s]{1,128})/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not is_page_path(path):
            await self._app(scope, receive, send)
            return
        owner = str(scope.get("state", {}).get("owner", ""))
        try:
            match = _FILE_ROUTE.search(path)
            # the path is decoded; whether it is decoded once more is up to Gradio
            if match and not all(self.may_read(owner, name) for name in (match[1], unquote(match[1]))):
                raise HttpProblem(404, "no such file", "not_found")
            if path.endswith(_UPLOAD_ROUTE) and scope["method"] == "POST":
                await run_in_threadpool(self._service.check_quota, owner, _content_length(scope))
            receive = await self._checked(scope, receive, owner)
        except (HttpProblem, Error) as error:
            problem = http_problem(error) if isinstance(error, Error) else error
            await JSONResponse(problem.as_json(), problem.status, headers=problem.headers)(scope, receive, send)
            return
        is_data = "/gradio_api/" in path and _FILE_ROUTE.search(path) is None
        await self._app(scope, receive, _Noted(send, self._sent, self._grant(owner)) if is_data else send)

    def may_read(self, owner: str, name: str) -> bool:
        """Return True if an owner may read a file; files outside the folders of the service are left to Gradio."""
        try:
            path = Path(os.path.realpath(name))
        except (OSError, ValueError):  # such as a null character
            return False
        if path.is_relative_to(self._temporary):
            parts = path.relative_to(self._temporary).parts
            return len(parts) > 1 and self._service.owners.is_temporary(owner, self._temporary / parts[0])
        if not path.is_relative_to(self._state):
            return True
        if path.is_relative_to(os.path.realpath(self._service.owners.folder(owner) / FOLDER)):
            return True
        parts = path.relative_to(self._state).parts
        if len(parts) != 3 or parts[0] != MADE:
            return False
        job = self._service.queue.get(parts[1])
        return job is not None and job.owner == owner and parts[2] in job.outputs

    async def _checked(self, scope: Scope, receive: Receive, owner: str) -> Receive:
        """Check the paths in a JSON body, which the security middleware has received as one message.

        Raises:
            HttpProblem: The body names a file of another owner.
        """
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != JSON.encode():
            return receive
        message = await receive()
        try:
            content = json.loads(message.get("body", b""))
        except (ValueError, RecursionError):
            content = None  # Gradio refuses it
        for text in nested(content):
            if isinstance(text, str) and not self._may_name(owner, text):
                raise HttpProblem(404, "no such file", "not_found")
        left = [message]

        async def again() -> Message:
            return left.pop() if left else await receive()

        return again

    def _may_name(self, owner: str, text: str) -> bool:
        """Return True if a text of a request has no path, or one of a file that the owner may read."""
        if "/" not in text or len(text) > 4096 or "\0" in text:
            return str(self._temporary) not in text
        for match in self._sent.finditer(text.encode("utf-8", "replace")):
            name = match[1].decode("utf-8", "replace")
            if not self._service.owners.is_temporary(owner, self._temporary / name):
                return False
        return not os.path.isabs(text) or self.may_read(owner, text)

    def _grant(self, owner: str) -> Any:
        def grant(name: bytes) -> None:
            self._service.owners.add_temporary(owner, self._temporary / name.decode("utf-8", "replace"))

        return grant


class _Noted:
    """Calls `grant` for each temporary folder in a response."""

    def __init__(self, send: Send, pattern: re.Pattern[bytes], grant: Any) -> None:
        self._send, self._pattern, self._grant, self._tail = send, pattern, grant, b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            content = self._tail + message.get("body", b"")
            for match in self._pattern.finditer(content):
                self._grant(match[1])
            self._tail = content[-_TAIL:]
        await self._send(message)


def nested(value: Any) -> Iterator[Any]:
    """Yield parsed JSON and every value in it, keys included."""
    pending = [value]
    while pending:
        item = pending.pop()
        yield item
        if isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _content_length(scope: Scope) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) <= 12 else 0
