"""A Hugging Face Hub on this machine that records what is created and committed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OWNER = "own"


class FakeHub:
    """The state of the server.

    Attributes:
        url: Its address.
        created: The names of the repositories that were asked for.
        commits: The message and the files of every commit.
        tokens: The tokens of all requests about repositories.
        deny: Maps a part of a request's path to the status with which it is refused.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.created: list[str] = []
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.tokens: set[str | None] = set()
        self.deny: dict[str, int] = {}

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the repository after all commits."""
        return {name: content for _, files in self.commits for name, content in files.items()}

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, dict]:
        """Returns the status and the answer to a request."""
        if path.startswith(("/api/repos/", "/api/models/")):
            self.tokens.add(token)
        for part, status in self.deny.items():
            if part in path:
                return status, {"error": "You have no right to do this."}
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.created.append(name)
            return 200, {"url": f"{self.url}/{OWNER}/{name}"}
        if path == "/api/validate-yaml":  # of the model card
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": x["path"], "uploadMode": "regular", "shouldIgnore": False} for x in asked]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            [header] = [line["value"] for line in lines if line["key"] == "header"]
            files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
            self.commits.append((header["summary"], files))
            return 200, {"commitUrl": f"{self.url}/{OWNER}/x/commit/0", "commitOid": "0" * 40}
        return 404, {"error": f"unknown request {path}"}


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Runs a hub in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            status, answer = hub.answer(self.path.partition("?")[0], body, token if scheme == "Bearer" else None)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if "error" in answer:
                self.send_header("X-Error-Message", answer["error"])
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
