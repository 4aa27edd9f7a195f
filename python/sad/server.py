"""Requests to a server through the `openai` client: retries, a common pace of all threads, and the server's own errors."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from sad.errors import InputError
from sad.responses import check_url, response_hook, without_secret

_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the next attempt after an invalid response; doubles each time
_LONGEST_WAIT = 3600.0  # seconds; a server that asks for more ends the run
_BUSY = (429, 503)
_SHOWN = 600
_MAX_RESPONSE_BYTES = 256 << 20  # log-probabilities of a long prompt have some megabytes


class ServerStopped(BaseException):
    """Ends a thread that waits for its turn after `Server.stop`. The `openai` client repeats no request because of it."""


class RejectedError(Exception):
    """A permanent failure.

    Args:
        status: The HTTP status, or None if there was no response.
        text: What the server said, or the failure of the connection.
    """

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def error_text(error: Exception) -> str:
    """Returns an error of the `openai` client in words: its class, the status, and all that the server said.

    The text of the exception itself lacks the server's words if they do not have OpenAI's form.
    """
    response = getattr(error, "response", None)
    if response is None:
        cause = error.__cause__
        return f"{type(error).__name__}: {error}" + (f" ({cause})" if cause is not None and str(cause) else "")
    said = getattr(error, "body", None)
    for key in ("error", "message", "detail"):  # OpenAI, vLLM and SGLang, FastAPI
        if isinstance(said, Mapping) and said.get(key):
            said = said[key]
    words = " ".join(str(said).split()) if said else "nothing more"
    return f"{type(error).__name__}: status {response.status_code}, {words[:_SHOWN]}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the pause in seconds that a response asks for, or None."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
            return unit * float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            continue
    return None


class _Pace:
    """The moments at which the threads of a client may send their requests.

    Args:
        per_minute: Maximum number of requests per minute; None: no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._lock, self._next, self._paused = threading.Lock(), 0.0, 0.0
        self.stopped = threading.Event()

    def wait(self) -> None:
        """Returns when the calling thread may send its next request.

        Raises:
            ServerStopped: The client was stopped.
        """
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._interval
        while (left := max(turn, self._paused) - time.monotonic()) > 0 and not self.stopped.is_set():
            self.stopped.wait(left)
        if self.stopped.is_set():
            raise ServerStopped

    def pause(self, seconds: float) -> None:
        """Lets no thread send a request for some time."""
        with self._lock:
            self._paused = max(self._paused, time.monotonic() + seconds)


class Server:
    """A server that answers with JSON. Any number of threads may use it.

    A request is repeated after a 429 or 5xx status, a lost connection, a timeout or a body that is not JSON. A `Retry-After`
    of one response holds the requests of all threads.

    Args:
        url: Base URL with the version, such as `http://localhost:8000/v1`.
        api_key: Key that is sent with each request. Local servers often need none.
        timeout: Timeout of the connection, of each read and of the whole body in seconds.
        retries: Maximum number of repetitions of a request.
        requests_per_minute: Maximum number of requests per minute, repetitions included; None: no limit.
        say: Receives a message when the server asks for a long pause.

    Raises:
        InputError: The `openai` package is not installed, or an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 5,
        requests_per_minute: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            remedy = "pip install '.[endpoint]'"
            raise InputError("endpoint", "the openai package", "an environment without it", remedy) from None
        check_url(url)
        if not 0 < timeout < float("inf") or retries < 0:
            got = f"{timeout} s and {retries} retries"
            raise InputError("endpoint", "a timeout above 0 s and 0 or more retries", got, "Use larger numbers.")
        if requests_per_minute is not None and not 0 < requests_per_minute < float("inf"):
            remedy = "Leave it out for no limit."
            raise InputError("requests_per_minute", "a number above 0", str(requests_per_minute), remedy)
        self.url, self.retries = url.rstrip("/"), retries
        self._root = self.url.removesuffix("/v1")
        self._openai, self._key, self._say = openai, api_key, say or (lambda message: None)
        self._pace = _Pace(requests_per_minute)
        hooks = {
            "request": [lambda request: self._pace.wait()],
            "response": [self._heed, response_hook(timeout, _MAX_RESPONSE_BYTES)],
        }
        http_client = openai.DefaultHttpxClient(timeout=timeout, event_hooks=hooks)
        self._client = openai.OpenAI(
            base_url=url,
            api_key=api_key or "none",
            timeout=timeout,
            max_retries=retries,
            default_headers={"Accept-Encoding": "identity"},  # 1 MB of gzip can hold 1 GB
            http_client=http_client,
        )

    def post(self, path: str, body: Mapping[str, Any], check: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """Posts JSON and returns what `check` makes of the response.

        Args:
            path: Path behind the URL, such as `completions`. A path that starts with `/` replaces the URL's `/v1`.
            body: The JSON object.
            check: Raises `ValueError` for a response that is not of the expected form. The request is then repeated.

        Raises:
            RejectedError: The request failed for good.
            ServerStopped: Another thread has called `stop`.
        """
        return self._request(lambda url: self._client.post(url, cast_to=object, body=dict(body)), path, check)

    def get(self, path: str) -> Any:
        """Returns the JSON at a path. Path and errors as in `post`."""
        return self._request(lambda url: self._client.get(url, cast_to=object), path, lambda answer: answer)

    def stop(self) -> None:
        """Ends all threads that wait for their turn, and accepts no further request."""
        self._pace.stopped.set()

    def _request(self, send: Callable[[str], Any], path: str, check: Callable[[Any], Any]) -> Any:
        openai, url = self._openai, f"{self._root}{path}" if path.startswith("/") else f"{self.url}/{path}"
        for attempt in range(self.retries + 1):
            try:
                return check(send(url))
            except openai.APIStatusError as error:
                if error.status_code not in _BUSY or retry_after(error.response.headers) is None or self.retries == attempt:
                    self._reject(error, error.status_code)
                continue  # the client waits up to one or two minutes by itself; after that the pace has the longer pause
            except (openai.APIResponseValidationError, ValueError, RecursionError) as error:
                invalid = error
            except openai.OpenAIError as error:
                self._reject(error, None)
            if attempt < self.retries:
                self._pace.stopped.wait(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
        said = (
            f"a body that is not JSON: {invalid.doc[:100]!r}" if isinstance(invalid, json.JSONDecodeError) else str(invalid)
        )
        raise RejectedError(None, f"{self._hide(said)[:_SHOWN]} ({self.retries + 1} times)")

    def _heed(self, response: Any) -> None:
        """Holds all threads if a response asks for it."""
        if response.status_code not in _BUSY:
            return
        seconds = retry_after(response.headers)
        if seconds is not None and seconds <= _LONGEST_WAIT:
            if seconds >= 10:
                self._say(f"{self.url} asks for a pause of {seconds:.0f} s")
            self._pace.pause(seconds)

    def _reject(self, error: Exception, status: int | None) -> NoReturn:
        raise RejectedError(status, self._hide(error_text(error))) from None

    def _hide(self, text: str) -> str:
        """Returns a text without the key, which a server may repeat in its error."""
        return without_secret(text, self._key)
