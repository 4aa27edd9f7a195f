"""A local test server with the part of the OpenAI API that the agents use."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any] | str  # status and body, or the generated text


def completion(path: str, text: str | None, finish: str = "stop") -> dict[str, Any]:
    """Returns the body of a successful response."""
    body: dict[str, Any] = {"id": "x", "created": 0, "model": "m", "object": "chat.completion"}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"role": "assistant", "content": text}} if "chat" in path else {"text": text}
    return body | {"choices": [choice]}


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Runs a server that responds with `answer(path, request body)`. Yields its URL and the list of its requests."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append(body | {"key": self.headers["authorization"]})
            said = answer(self.path, body)
            status, content = (200, completion(self.path, said)) if isinstance(said, str) else said
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client closed the connection after its timeout
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def raw_serving(respond: Callable[[socket.socket], None]) -> Iterator[str]:
    """Runs a server that reads a request and then calls `respond` with the connection. Yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(10)
                with connection.makefile("rb") as request:
                    length = 0
                    while (line := request.readline()).strip():
                        name, _, value = line.lower().partition(b":")
                        length = int(value) if name == b"content-length" else length
                    request.read(length)
                respond(connection)
            except OSError:  # the client has closed the connection
                pass

    def accept() -> None:
        while not closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        closed.set()
        listener.close()


def drip(connection: socket.socket, head: bytes, body: bytes, pause: float = 0.02) -> None:
    """Sends `head` at once and `body` byte by byte."""
    connection.sendall(head)
    for byte in body:
        connection.sendall(bytes([byte]))
        time.sleep(pause)
