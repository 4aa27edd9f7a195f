"""Rollouts with a model behind a server that speaks the OpenAI API, such as vLLM."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from threading import Event
from typing import Any, NamedTuple, TypeVar

from sad.agents.episode import EndReason, Episode, EpisodeRunner, RolloutConfig
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.responses import NoAnswerError, ResponseError, call_within, check_url, response_hook, without_secret
from sad.server import error_text

APIS = ("chat", "completions")
Parsed = TypeVar("Parsed")
_CHARACTERS_PER_TOKEN = 8  # limit for the text of servers that ignore `max_tokens`
_LONGEST_RETRY_AFTER = 60.0  # seconds that the client waits if a server asks for a pause
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the next attempt after an invalid response; doubles each time


class Completion(NamedTuple):
    """The text that a model generated in one request.

    Attributes:
        text: The text.
        truncated: Whether the text ends at the token limit, so that the model did not stop by itself.
    """

    text: str
    truncated: bool


class CompletedIds(NamedTuple):
    """The tokens that a model generated in one request.

    Attributes:
        ids: The token ids, with the stop token if the server returns it.
        truncated: Whether they end at the token limit.
    """

    ids: list[int]
    truncated: bool


class ContextFullError(Exception):
    """The conversation is longer than the context of the model."""


class Endpoint:
    """A model behind a URL. Requests with a temporary failure are repeated with growing pauses.

    Args:
        url: Base URL with the version, such as `http://localhost:8000/v1`.
        model: Name of the model on the server.
        api: `"chat"` sends messages, for models with a chat template. `"completions"` sends the transcript as text.
        api_key: Key that is sent with each request. Local servers often need none.
        timeout: Timeout of a request in seconds. It limits the connection, each read, and the whole response.
        retries: Maximum number of repetitions of a request after a 429 or 5xx status, a lost connection, a timeout or an
            invalid response.

    Raises:
        InputError: The `openai` package is not installed, or an argument is invalid.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: str = "chat",
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        try:
            import openai
        except ImportError:
            remedy = "pip install '.[endpoint]'"
            raise InputError("endpoint", "the openai package", "an environment without it", remedy) from None
        if api not in APIS:
            raise InputError("api", " or ".join(map(repr, APIS)), repr(api), "Use one of these.")
        check_url(url)
        if not 0 < timeout < float("inf") or retries < 0:
            got = f"{timeout} s and {retries} retries"
            raise InputError("endpoint", "a timeout above 0 s and 0 or more retries", got, "Use larger numbers.")
        self.url, self.model, self.api, self.retries = url, model, api, retries
        self._openai, self._key = openai, api_key
        self._seconds = (retries + 1) * (timeout + _LONGEST_RETRY_AFTER)
        client = openai.DefaultHttpxClient(timeout=timeout, event_hooks={"response": [response_hook(timeout)]})
        self._client = openai.OpenAI(
            base_url=url,
            api_key=api_key or "none",
            timeout=timeout,
            max_retries=retries,
            http_client=client,
            default_headers={"Accept-Encoding": "identity"},
        )

    def complete(self, conversation: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> Completion:
        """Requests the next turn of the model.

        Args:
            conversation: Observations and turns, alternating. The first and the last are observations.
            max_tokens: Maximum number of generated tokens.
            temperature: Sampling temperature. 0 is greedy.
            seed: Seed of the sampling. The server may ignore it.

        Raises:
            ContextFullError: The conversation is longer than the context of the model.
            InputError: The server rejected the request, was not reachable, or sent invalid responses only.
        """
        options = self._options(max_tokens, temperature, seed)
        request: Callable[[], Any]
        if self.api == "chat":
            roles = ("user", "assistant")
            messages = [{"role": roles[n % 2], "content": text.rstrip("\n")} for n, text in enumerate(conversation)]
            request = partial(self._client.chat.completions.create, messages=messages, **options)
        else:
            request = partial(self._client.completions.create, prompt="".join(conversation), **options)
        completion = self._answer(request, _parse_response)
        text, limit = completion.text, _CHARACTERS_PER_TOKEN * max_tokens
        return Completion(text[:limit], completion.truncated or len(text) > limit)

    def complete_ids(self, ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int) -> CompletedIds:
        """Requests the next tokens after token ids, as token ids, with the completions API.

        Args:
            ids: The ids that the model reads.
            max_tokens: Maximum number of generated tokens.
            temperature: Sampling temperature. 0 is greedy.
            seed: Seed of the sampling. The server may ignore it.

        Raises:
            ContextFullError: The ids are more than the context of the model.
            InputError: As for `complete`, or the server does not return token ids.
        """
        options = self._options(max_tokens, temperature, seed)
        extra = {"return_token_ids": True}
        request = partial(self._client.completions.create, prompt=list(ids), extra_body=extra, **options)
        return self._answer(request, partial(_parse_ids, url=self.url))

    def _options(self, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        return {"model": self.model, "max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0, "seed": seed}

    def _answer(self, request: Callable[[], Any], parse: Callable[[Any], Parsed | None]) -> Parsed:
        """Sends a request until `parse` accepts the response.

        Raises:
            ContextFullError: The prompt is longer than the context of the model.
            InputError: The server rejected the request, was not reachable, or sent invalid responses only.
        """
        openai = self._openai
        for attempt in range(self.retries + 1):
            try:
                response = call_within(self._seconds, request)
            except openai.BadRequestError as error:
                if "context" in error_text(error).lower():  # servers differ in code and wording, but all name the context
                    raise ContextFullError from None
                raise self._request_error(error) from None
            except (openai.APIResponseValidationError, ValueError, RecursionError) as error:  # also JSON that is nested deep
                invalid: object = error
            except (openai.OpenAIError, NoAnswerError, ResponseError) as error:
                raise self._request_error(error) from None
            else:
                parsed = parse(response)
                if parsed is not None:
                    return parsed
                invalid = response
            if attempt < self.retries:
                time.sleep(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
        got = f"{without_secret(str(invalid), self._key)[:200]!r}, {self.retries + 1} times"
        raise InputError("endpoint", f"responses of OpenAI's API from {self.url}", got, "Check the URL.")

    def _request_error(self, error: Exception) -> InputError:
        cause = error.__cause__ if isinstance(error.__cause__, ResponseError) else error
        got = error_text(error) if cause is error else f"{type(error).__name__}: {cause}"
        got = without_secret(got, self._key).rstrip(".")
        remedy = "Check the URL, the model name and the key, and that the server is running."
        return InputError("endpoint", f"a response of {self.model!r} from {self.url}", got, remedy)


def _parse_response(response: Any) -> Completion | None:
    """Returns the first choice, or None if the response has none."""
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    message = getattr(choices[0], "message", None)
    if message is None:
        text = getattr(choices[0], "text", None)
    else:
        text = getattr(message, "content", "") or ""  # null if the model generated no text
    if not isinstance(text, str):
        return None
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be written to a file
    return Completion(text, getattr(choices[0], "finish_reason", None) == "length")


def _parse_ids(response: Any, url: str) -> CompletedIds | None:
    """Returns the token ids of the first choice, or None if the response has no choice.

    Raises:
        InputError: The choice has no token ids.
    """
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    ids = getattr(choices[0], "token_ids", None)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        remedy = "Use vLLM 0.10.2 or newer, which returns them on request (return_token_ids)."
        raise InputError("endpoint", f"token ids in the responses of {url}", "none", remedy)
    return CompletedIds(ids, getattr(choices[0], "finish_reason", None) == "length")


def rollout_endpoint(
    endpoint: Endpoint,
    env: Env,
    tasks: Sequence[Task],
    *,
    max_steps: int = 50,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    max_turn_tokens: int = 128,
    max_repeats: int = 5,
    prompt: str = "",
    clean: bool = True,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Runs one episode per task with the model of an endpoint, `batch_size` episodes at a time.

    `max_steps`, `temperature`, `seed`, `max_turn_tokens`, `max_repeats`, `prompt` and `clean` have the same meaning as in
    `rollout`.

    Args:
        endpoint: The model.
        env: The environment. Every episode uses a shallow copy.
        tasks: The tasks.
        batch_size: Number of parallel episodes, and therefore of parallel requests.
        on_episode: Called with every finished episode, in the calling thread.

    Returns:
        One episode per task, in the order of `tasks`. Its end is `EndReason.CONTEXT` if the server reports that the
        conversation is too long.

    Raises:
        InputError: A number is out of range, or `Endpoint.complete` fails.
    """
    config = RolloutConfig(max_steps, max_turn_tokens, max_repeats, "free", temperature, prompt, clean)
    if batch_size < 1:
        raise InputError("batch_size", "at least 1", str(batch_size), "Use a larger number.")
    seeds = [seed] * len(tasks) if isinstance(seed, int) else seed
    failed = Event()

    def run_one(task: Task, own_seed: int) -> Episode | None:
        runner = EpisodeRunner(copy.copy(env), task, config, own_seed)
        try:
            _run_episode(endpoint, runner, config, failed)
        except BaseException:
            failed.set()
            raise
        return runner.episode if runner.done else None  # None: stopped because another episode failed

    with ThreadPoolExecutor(batch_size, thread_name_prefix="episode") as threads:
        futures = [threads.submit(run_one, task, own_seed) for task, own_seed in zip(tasks, seeds, strict=True)]
        try:
            for future in as_completed(futures):
                episode = future.result()
                if episode is not None and on_episode is not None:
                    on_episode(episode)
            return [future.result() for future in futures]
        except BaseException:
            failed.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _run_episode(endpoint: Endpoint, runner: EpisodeRunner, config: RolloutConfig, failed: Event) -> None:
    """Runs an episode until it ends, or until another episode has failed."""
    conversation = [runner.opening]
    seed = runner.episode.sampling_seed >> 1  # servers accept 31 bits
    while not runner.done and not failed.is_set():
        try:
            text, truncated = endpoint.complete(
                conversation, max_tokens=config.max_turn_tokens, temperature=config.temperature, seed=seed
            )
        except ContextFullError:
            runner.end(EndReason.CONTEXT)
            return
        before = len(runner.episode.text)
        observation = runner.step(text if truncated else f"{text}\n")
        if observation is None:
            runner.end(EndReason.ENDLESS if truncated else EndReason.NO_ACTION, text)
            return
        turn = runner.episode.text[before : len(runner.episode.text) - len(observation)]
        conversation += [turn, observation]
