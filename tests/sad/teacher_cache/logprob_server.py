"""A server that runs a tiny model and speaks the forms of vLLM, SGLang and OpenAI's completions with `echo`.

The responses have the fields that the source of vLLM 0.1x to 0.3x and of SGLang 0.4 to 0.5 writes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Answer = tuple[int, Any]
Change = Callable[[str, dict[str, Any], dict[str, Any]], "Answer | dict[str, Any]"]


class Backend:
    """Computes responses.

    Args:
        model: The teacher.
        tokenizer: Its tokenizer.
        owner: "vllm", "sglang" or another name: what the list of models says.
        cap: Most log-probabilities per token, as vLLM's `--max-logprobs`.
        ids: Whether the form `echo` can name tokens by id.
        context: Most tokens of a request.
    """

    def __init__(
        self, model: Any, tokenizer: Any, owner: str = "vllm", cap: int = 20, ids: bool = True, context: int = 128
    ) -> None:
        self._model, self._tokenizer, self._owner, self._cap, self._ids = model.eval(), tokenizer, owner, cap, ids
        self._context, self._lock = context, threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            context = {"max_model_len": self._context} if self._owner in ("vllm", "sglang") else {}
            return 200, {"object": "list", "data": [{"id": "teacher", "owned_by": self._owner, **context}]}
        if path == "/generate" and self._owner == "sglang":
            return 200, self._sglang(body)
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        if body["model"] != "teacher":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        k = body.get("prompt_logprobs") or body.get("logprobs") or 0
        if self._owner == "vllm" and k > self._cap:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self._cap}"
            return 400, {"error": {"message": said, "type": "BadRequestError", "code": 400}}
        if len(body["prompt"]) + body["max_tokens"] > self._context:
            said = f"This model's maximum context length is {self._context} tokens."
            return 400, {"object": "error", "message": said, "code": 400}
        return 200, self._completion(body, k)

    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """Returns (T, V): row p predicts token p + 1."""
        with self._lock, torch.no_grad():
            return self._model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def _completion(self, body: dict[str, Any], k: int) -> dict[str, Any]:
        tokens = body["prompt"]
        rows = self.logprobs(tokens)
        choice: dict[str, Any] = {"index": 0, "text": " x", "finish_reason": "length", "logprobs": None}
        if self._owner == "vllm" and body.get("prompt_logprobs"):
            entries: list[Any] = [None]
            for position in range(1, len(tokens)):
                row, token = rows[position - 1], tokens[position]
                chosen = [token, *(x for x in row.topk(k).indices.tolist() if x != token)]  # the token itself comes first
                entries.append(
                    {
                        str(x): {
                            "logprob": row[x].item(),
                            "rank": int((row >= row[x]).sum()),
                            "decoded_token": self._text(x),
                        }
                        for x in chosen
                    }
                )
            choice["prompt_logprobs"] = entries
            if body.get("return_token_ids"):
                choice["prompt_token_ids"] = tokens
        if body.get("echo") and body.get("logprobs"):
            as_id = self._ids and body.get("return_tokens_as_token_ids")
            name = (lambda x: f"token_id:{x}") if as_id else self._text
            top = [{name(x): row[x].item() for x in row.topk(k).indices.tolist()[::-1]} for row in rows]
            choice["logprobs"] = {
                "tokens": [name(x) for x in [*tokens, 5]],
                "token_logprobs": [None, *(rows[p - 1][tokens[p]].item() for p in range(1, len(tokens))), -1.0],
                "top_logprobs": [None, *top],
                "text_offset": [0] * (len(tokens) + 1),
            }
        usage = {"prompt_tokens": len(tokens), "completion_tokens": 1, "total_tokens": len(tokens) + 1}
        return {"id": "x", "object": "text_completion", "model": "teacher", "choices": [choice], "usage": usage}

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens, start, k = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
        rows = self.logprobs(tokens)
        text = self._text if body.get("return_text_in_logprobs") else lambda x: None
        own: list[Any] = [[None, tokens[start], text(tokens[start])]]
        top: list[Any] = [None]
        for position in range(start + 1, len(tokens)):
            row, token = rows[position - 1], tokens[position]
            own.append([row[token].item(), token if token < len(row) - 1 else 0, text(token)])
            top.append([[row[x].item(), x, text(x)] for x in row.topk(k).indices.tolist()])
        meta = {"prompt_tokens": len(tokens), "input_token_logprobs": own, "input_top_logprobs": top}
        return {"text": " x", "meta_info": meta}


@contextmanager
def serving(backend: Backend, change: Change | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Runs the server. Yields its URL and the list of the requests for log-probabilities.

    Args:
        backend: Computes the responses.
        change: Receives path, request and response. Returns the response to send, or (status, content).
    """
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*backend.answer(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                requests.append(body | {"path": self.path, "key": self.headers["authorization"]})
            status, content = backend.answer(self.path, body)
            if change is not None and status == 200:
                changed = change(self.path, body, content)
                status, content = changed if isinstance(changed, tuple) else (200, changed)
            self._send(status, content)

        def _send(self, status: int, content: Any) -> None:
            headers = content.pop("headers", {}) if isinstance(content, dict) else {}
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                for name, value in ({"retry-after-ms": "1"} | headers if status >= 400 else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client closed the connection after its timeout
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
