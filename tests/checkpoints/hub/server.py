"""A hub on this machine that speaks the protocol of huggingface.co, as far as its plain path without Xet goes.

Large files (.safetensors and pickles) are redirected to a second address, as the hub does with its storage.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".ckpt", ".bin")


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    storage: bool


@dataclass
class Repo:
    """A repository of one commit.

    Attributes:
        files: Content by path.
        card: Metadata of its card.
        gated: Files are refused to those who have not accepted: 401 without a token, 403 with one.
        sent: Other content than the listing's, by path: of a mirror that lies, or a damaged disk.
        cut: Bytes after which the connection ends, by path, once for each entry.
        stalls: Path whose content stops in the middle for some seconds.
        moved: Paths whose GET, and not HEAD, is redirected to the storage.
    """

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: bool = False
    private: bool = False
    sent: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    stalls: str = ""
    moved: tuple[str, ...] = ()

    @property
    def commit(self) -> str:
        text = "".join(
            f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(self.files.items())
        )
        return hashlib.sha1(text.encode()).hexdigest()

    def info(self, name: str) -> dict[str, Any]:
        return {
            "_id": "1", "id": name, "modelId": name, "sha": self.commit, "private": self.private, "tags": [],
            "gated": "manual" if self.gated else False, "downloads": 0, "likes": 0, "cardData": self.card,
            "siblings": [self.sibling(path) for path in sorted(self.files)],
        }  # fmt: skip

    def sibling(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        facts: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
        if path.endswith(LARGE):
            facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return facts

    def etag(self, path: str) -> str:
        content = self.files[path]
        return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_blob(content)


class Hub:
    """The hub: its repositories, and the requests that arrived."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.uploaded: dict[str, bytes] = {}  # by sha256
        self.address = self.storage = ""
        self.stalled, self.goes_on = threading.Event(), threading.Event()

    def clear(self) -> None:
        """Forget everything except the addresses."""
        for part in (self.repos, self.seen, self.uploaded):
            part.clear()
        self.stalled.clear()
        self.goes_on.clear()

    def requested(self, part: str, method: str = "GET") -> list[Seen]:
        return [one for one in self.seen if part in one.path and one.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    is_storage = False

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def as_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"", X_Error_Code=code, X_Error_Message=f"refused: {code}")

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def begin(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(self.command, path, {k.lower(): v for k, v in self.headers.items()}, self.is_storage))
        return path.strip("/").split("/")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.begin()
        if self.is_storage:
            name, path = "/".join(parts[:2]), "/".join(parts[2:])
            self.send_file(self.hub.repos[name], path)
        elif parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            repo = self.hub.repos.get(name)
            if repo is None or (repo.private and "authorization" not in {k.lower() for k in self.headers}):
                self.refuse(401, "RepoNotFound")
            elif parts[4:5] == ["revision"] and "/".join(parts[5:]) not in ("main", repo.commit):
                self.refuse(404, "RevisionNotFound")
            elif parts[4:5] == ["tree"]:
                rows = [{"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
                        for path, data in repo.files.items()]  # fmt: skip
                self.as_json(rows)
            else:
                self.as_json(repo.info(name))
        elif parts[2:3] == ["resolve"]:
            self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self.refuse(404, "")

    def resolve(self, name: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or path not in repo.files:
            self.refuse(404, "EntryNotFound" if repo else "RepoNotFound")
        elif repo.gated:
            token = "authorization" in {k.lower() for k in self.headers}
            self.refuse(403 if token else 401, "GatedRepo")
        elif path in repo.moved and self.command == "GET":
            self.answer(302, b"", Location=f"{self.hub.storage}/{name}/{path}")
        elif path.endswith(LARGE):
            self.answer(
                302, b"", Location=f"{self.hub.storage}/{name}/{path}", X_Repo_Commit=repo.commit,
                X_Linked_Size=str(len(repo.files[path])), X_Linked_Etag=f'"{repo.etag(path)}"',
            )  # fmt: skip
        else:
            self.send_file(repo, path)

    def send_file(self, repo: Repo, path: str) -> None:
        content = repo.sent.get(path, repo.files[path])
        headers = {"ETag": f'"{repo.etag(path)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if (requested := self.headers.get("Range")) is not None:
            start = int(requested.removeprefix("bytes=").split("-")[0])
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = repo.cut.get(path) or []
        stop = cut.pop(0) if cut else len(content)
        if path == repo.stalls:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.goes_on.wait(20)
        self.wfile.write(content[start:stop])
        if stop < len(content):
            self.close_connection = True

    def do_POST(self) -> None:
        parts = self.begin()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "authorization" not in {k.lower() for k in self.headers}:
            self.refuse(401, "")
        elif parts == ["api", "repos", "create"]:
            requested = json.loads(body)
            name = f"{requested['organization']}/{requested['name']}"
            fresh = self.hub.repos.setdefault(name, Repo({}, {}))
            fresh.private = requested.get("visibility") == "private" or bool(requested.get("private"))
            self.as_json({"url": f"{self.hub.address}/{name}"})
        elif parts == ["api", "validate-yaml"]:
            self.as_json({"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                      "shouldIgnore": False, "oid": None} for file in files]  # fmt: skip
            self.as_json({"files": modes})
        elif parts[2:] == ["info", "lfs", "objects", "batch"] or parts[-2:] == ["objects", "batch"]:
            objects = [
                {"oid": one["oid"], "size": one["size"],
                 "actions": {"upload": {"href": f"{self.hub.storage}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]  # fmt: skip
            self.as_json({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            self.as_json(self.commit("/".join(parts[2:4]), body))
        else:
            self.refuse(404, "")

    def do_PUT(self) -> None:
        oid = self.begin()[-1]
        self.hub.uploaded[oid] = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(200)

    def commit(self, name: str, body: bytes) -> dict[str, Any]:
        import base64

        repo = self.hub.repos[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.uploaded[value["oid"]]
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{repo.commit}", "commitOid": repo.commit}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub, and its storage under another address."""
    hub = Hub()
    servers = []
    for is_storage in (False, True):
        handler = type("Handler", (_Handler,), {"hub": hub, "is_storage": is_storage})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    hub.address, hub.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
