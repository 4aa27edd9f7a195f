"""Play by a model that a server answers for, over the protocol of OpenAI's API, which vLLM and many others speak."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, NamedTuple

from sad.agents.episode import End, Episode
from sad.agents.episode_runner import Match, Rules
from sad.envs.protocol import Env, Task
from sad.errors import InputError

APIS = ("chat", "completions")
_CHARACTERS = 8  # per token that a turn may have; a server that does not keep to `max_tokens` is cut off there
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before a broken answer is asked for again, doubled each time


class Reply(NamedTuple):
    """What a model wrote.

    Attributes:
        text: The text.
        cut: Whether it ended because there was no more room, and not because the model stopped.
    """

    text: str
    cut: bool


class ContextFull(Exception):
    """The conversation is longer than the model's context."""


class Endpoint:
    """A model behind a URL. Requests that fail for a while are repeated with growing pauses.

    Args:
        url: Up to and with the version: `http://localhost:8000/v1`.
        model: The model's name there.
        api: `"chat"`: messages, for models that follow instructions. `"completions"`: the transcript itself, for those
            that go on with a text.
        api_key: Sent with each request; servers of one's own often need none.
        timeout: Seconds that one request may take.
        retries: How often a request is repeated that was refused for the moment (429, 5xx), lost or answered with
            something else than the protocol's JSON.

    Raises:
        InputError: The `openai` package is not installed, or an argument is not what is listed here.
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
            remedy = "pip install 'structured-agent-distillation[endpoint]'"
            raise InputError("endpoint", "the openai package", "an environment without it", remedy) from None
        if api not in APIS:
            raise InputError("api", " or ".join(map(repr, APIS)), repr(api), "Choose one.")
        if not url.startswith(("http://", "https://")):
            raise InputError(
                "endpoint", "a URL such as http://localhost:8000/v1", repr(url), "Begin with http:// or https://."
            )
        if not timeout > 0 or retries < 0:
            got = f"{timeout} s and {retries} retries"
            raise InputError("endpoint", "a timeout above 0 s and 0 or more retries", got, "Raise them.")
        self.url, self.model, self.api, self.retries = url, model, api, retries
        self._openai = openai
        self._client = openai.OpenAI(base_url=url, api_key=api_key or "none", timeout=timeout, max_retries=retries)

    def ask(self, conversation: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> Reply:
        """What the model says next.

        Args:
            conversation: What the world and the model said in turn, the world first and last.
            max_tokens: Room for the reply.
            temperature: 0 for greedy.
            seed: Sent along; whether the server keeps to it is its own affair.

        Raises:
            ContextFull: The conversation is too long for the model.
            InputError: The server refused, could not be reached, or never answered in the protocol.
        """
        openai = self._openai
        settings = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0, "seed": seed}
        for attempt in range(self.retries + 1):
            try:
                if self.api == "chat":
                    roles = ("user", "assistant")
                    said = [{"role": roles[n % 2], "content": text.rstrip("\n")} for n, text in enumerate(conversation)]
                    answer = self._client.chat.completions.create(messages=said, **settings)
                else:
                    answer = self._client.completions.create(prompt="".join(conversation), **settings)
            except openai.BadRequestError as error:
                if "context" in str(error).lower():  # the code or the words of it, whichever server it is
                    raise ContextFull from None
                raise self._refusal(error) from None
            except (openai.APIResponseValidationError, ValueError) as error:
                broken: object = error
            except openai.OpenAIError as error:
                raise self._refusal(error) from None
            else:
                reply = _reply(answer)
                if reply is not None:
                    limit = _CHARACTERS * max_tokens
                    return Reply(reply.text[:limit], reply.cut or len(reply.text) > limit)
                broken = answer
            if attempt < self.retries:
                time.sleep(min(_PAUSE * 2**attempt, _LONGEST_PAUSE))
        got = f"{str(broken)[:200]!r}, {self.retries + 1} times"
        raise InputError("endpoint", f"answers in the protocol of OpenAI's API from {self.url}", got, "Check the URL.")

    def _refusal(self, error: Exception) -> InputError:
        got = f"{type(error).__name__}: {str(error)[:300]}"
        remedy = "Check URL, model name and key, and that the server is up."
        return InputError("endpoint", f"answers of {self.model!r} from {self.url}", got, remedy)


def _reply(answer: Any) -> Reply | None:
    """The first choice's text; None where the answer has none."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    message = getattr(choices[0], "message", None)
    if message is None:
        text = getattr(choices[0], "text", None)
    else:
        text = getattr(message, "content", "") or ""  # null where the model said nothing
    if not isinstance(text, str):
        return None
    return Reply(text.encode("utf-8", "replace").decode(), getattr(choices[0], "finish_reason", None) == "length")


def play_endpoint(
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
    """Plays `tasks` with the model of an endpoint, `batch_size` episodes at once.

    Args:
        endpoint: The model.
        env: The environment; every episode gets a shallow copy.
        tasks: The tasks to play.
        max_steps: As of `play`, likewise `temperature`, `seed`, `max_turn_tokens`, `max_repeats`, `prompt` and `clean`.
        batch_size: Episodes, and so requests, at the same time.
        on_episode: Called with every finished episode, from the thread that called.

    Returns:
        One episode per task, in the order of `tasks`. `End.CONTEXT` where the server found the conversation too long.

    Raises:
        InputError: As `Endpoint.ask`, and for numbers out of range.
    """
    rules = Rules(max_steps, max_turn_tokens, max_repeats, "free", temperature, prompt, clean)
    rules.check()
    if batch_size < 1:
        raise InputError("batch_size", "at least 1", str(batch_size), "Raise it.")
    seeds = [seed] * len(tasks) if isinstance(seed, int) else seed
    failed = Event()

    def play_one(task: Task, own_seed: int) -> Episode | None:
        match = Match(copy.copy(env), task, rules, own_seed)
        try:
            _converse(endpoint, match, rules, failed)
        except BaseException:
            failed.set()
            raise
        return match.episode if match.over else None  # given up because another one failed

    with ThreadPoolExecutor(batch_size, thread_name_prefix="episode") as threads:
        played = [threads.submit(play_one, task, own_seed) for task, own_seed in zip(tasks, seeds, strict=True)]
        try:
            for future in as_completed(played):
                episode = future.result()
                if episode is not None and on_episode is not None:
                    on_episode(episode)
            return [future.result() for future in played]
        except BaseException:
            failed.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _converse(endpoint: Endpoint, match: Match, rules: Rules, failed: Event) -> None:
    """Plays an episode out, or until another one failed."""
    said = [match.opening]
    seed = match.episode.sampling_seed >> 1  # servers take 31 bits
    while not match.over and not failed.is_set():
        try:
            text, cut = endpoint.ask(said, max_tokens=rules.max_turn_tokens, temperature=rules.temperature, seed=seed)
        except ContextFull:
            match.end(End.CONTEXT)
            return
        before = len(match.episode.text)
        answer = match.turn(text if cut else f"{text}\n")
        if answer is None:
            match.end(End.ENDLESS if cut else End.NO_ACTION, text)
            return
        turn = match.episode.text[before : len(match.episode.text) - len(answer)]
        said += [turn, answer]
