"""A fake hub on the loopback interface that answers HEAD and GET requests like huggingface.co."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """Serves repositories while used as a context manager.

    Files other than .json are redirected to another host name, as the real hub redirects to its CDN.

    Args:
        repositories: {name: {file: content}}.

    Attributes:
        fault: How to misbehave: "" (not at all), "truncated", "dropped" or "altered" (bodies), "unauthorized", "gated"
            or "failing" (status codes).
        requests: (method, path) of each request so far.
        endpoint: URL to set as HF_ENDPOINT.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        self.repositories = repositories
        self.fault = ""
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub._answer(self)

            def do_GET(self):
                hub._answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.command, request.path))
        if found := re.fullmatch(r"/cdn/(.+?/.+?)/(.+)", request.path):
            return self._send_body(request, self.repositories[found[1]][found[2]])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", request.path):
            files = self.repositories.get(found[1])
            if files is None:
                return _refuse(request, 401, "RepoNotFound")
            document = {"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return _send(request, 200, json.dumps(document).encode())
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path)
        if self.fault == "failing":
            return _refuse(request, 503, "")
        if self.fault == "gated":
            return _refuse(request, 403, "GatedRepo")
        if self.fault == "unauthorized" or not found:
            return _refuse(request, 401, "RepoNotFound")
        if found[1] not in self.repositories:
            return _refuse(request, 404, "RepoNotFound")
        if found[2] not in self.repositories[found[1]]:
            return _refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": COMMIT})
        content = self.repositories[found[1]][found[2]]
        if found[2].endswith(".json"):
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return _send(request, 200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'})
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Location": f"http://localhost:{self.port}/cdn/{found[1]}/{found[2]}",
        }
        return _send(request, 302, b"", headers)

    def _send_body(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        start = int(re.sub(r"\D", "", request.headers.get("Range", "0")) or 0)
        if self.fault == "altered":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.fault == "truncated":
            content = content[: len(content) // 2]
        if self.fault != "dropped":
            return _send(request, 206 if start else 200, content[start:])
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : len(content) // 2])
        return None


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str, headers: dict[str, str] | None = None) -> None:
    _send(request, status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        with suppress(BrokenPipeError):
            request.wfile.write(body)
