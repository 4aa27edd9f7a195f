"""Limits of what a server may send: the size and the duration of a response, and text that must not reach a message."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sad.errors import InputError

MAX_RESPONSE_BYTES = 16 << 20  # a turn has at most some thousand characters
_Result = TypeVar("_Result")


class ResponseError(Exception):
    """A response that is not read to its end, because it is too large or compressed."""


class NoAnswerError(Exception):
    """A call that did not return in time."""


def response_hook(timeout: float, max_bytes: int = MAX_RESPONSE_BYTES) -> Callable[[Any], None]:
    """Returns an event hook of an `httpx` client that limits the response before its body is read.

    The timeout of `httpx` is one per read, so a server that sends a byte per second would hold a client forever.

    Args:
        timeout: Seconds for the whole body.
        max_bytes: Largest body.
    """

    def limit(response: Any) -> None:
        library = type(response).__module__.partition(".")[0]  # `httpx`, or `httpx2` since openai 3
        httpx = importlib.import_module(library)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):  # 1 MB of gzip can hold 1 GB
            raise ResponseError(f"a compressed response ({encoding}), which the request did not allow")
        end, inner = time.monotonic() + timeout, response.stream

        class Limited(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                size = 0
                for chunk in inner:
                    size += len(chunk)
                    if size > max_bytes:
                        raise ResponseError(f"a response of more than {max_bytes >> 20} MiB")
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout(f"the response took more than {timeout} s", request=response.request)
                    yield chunk

            def close(self) -> None:
                inner.close()

        response.stream = Limited()

    return limit


def call_within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """Returns the result of `call`, which runs in a thread of its own.

    A read that never ends, such as that of headers that drip, cannot be interrupted. Its thread is abandoned.

    Args:
        seconds: The time limit.
        call: The function.

    Raises:
        NoAnswerError: The call has not returned in time.
    """
    found: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="request", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not found:
        raise NoAnswerError(f"no response within {seconds:.0f} s")
    return found[0]


def check_url(url: str) -> None:
    """Checks the URL of an endpoint.

    Raises:
        InputError: It has no host or another scheme than http and https, or it holds a password.
    """
    example = "a URL such as http://localhost:8000/v1"
    if not url.startswith(("http://", "https://")):
        raise InputError("endpoint", example, repr(url), "Start the URL with http:// or https://.")
    try:
        parts = urlsplit(url)
        host, user, _ = parts.hostname, parts.username, parts.port
    except ValueError as error:
        raise InputError("endpoint", example, f"one that cannot be read ({error})", "Check host and port.") from None
    if user is not None:  # it would stand in settings, messages and logs
        remedy = "Put the key into the environment variable that --api-key-env names."
        raise InputError("endpoint", "a URL without a user name and a password", f"one of {host!r} with them", remedy)
    if not host:
        raise InputError("endpoint", example, repr(url), "Add the host.")


def without_secret(text: str, secret: str | None) -> str:
    """Returns text with a key replaced by asterisks. A server may repeat the key in its error."""
    return text.replace(secret, "***") if secret else text
