"""A teacher behind a URL: the top-k log-probabilities that vLLM, SGLang and servers like them compute for a prompt."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sad.errors import InputError
from sad.server import RejectedError, Server
from sad.teacher_cache.answers import FORMS, SPARE, Question, Spelling, names_by_text
from sad.teacher_cache.metadata import supervised_rows
from sad.teacher_cache.rows import TeacherRows
from sad.teacher_cache.toplists import PositionError, TopList, rows_from_lists

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWNERS = {"vllm": "vllm", "sglang": "sglang"}  # `owned_by` of their model lists, and the form that they know
_TRIED = ("vllm", "echo")  # forms to try on a server that does not say what it is
_CAP = re.compile(r"logprobs?\b.*(max|at most|limit|exceed|greater|less|between|<=)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(?:max|most|allowed|limit|<=|and|to|than)\D{0,20}?(\d+)", re.IGNORECASE)


class EndpointTeacher:
    """A teacher on a server, in place of a model in memory.

    Args:
        server: The server.
        model: Name of the model on the server.
        tokenizer: The tokenizer of that model. Tokens that the server returns are compared with it.
        top_k: Likely tokens per row.
        vocab_size: Columns of the softmax.
        api: A name in `FORMS`, or "auto" to find out which form the server knows.
        concurrency: Number of parallel requests.
        observe: Whether observation tokens are supervised.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        top_k: int,
        vocab_size: int,
        api: str = "auto",
        concurrency: int = 8,
        observe: bool = False,
    ) -> None:
        if api not in ("auto", *FORMS):
            raise InputError("api", "one of auto, " + ", ".join(FORMS), repr(api), "Use one of these.")
        if concurrency < 1:
            raise InputError("concurrency", "at least 1", str(concurrency), "8 is usual.")
        self.api: str | None = None if api == "auto" else api
        self._server, self._model, self._observe = server, model, observe
        self._top_k, self._vocab_size, self._concurrency = top_k, vocab_size, concurrency
        self._spelling = Spelling(tokenizer)
        self._spare = 0

    def check(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> str:
        """Requests the shortest example, and returns the form in which the server answers.

        Raises:
            InputError: The server does not know the model, its context is too short, or it does not send what is needed.
        """
        self._check_models(max(len(self._question(example).tokens) for example in examples))
        shortest = min(examples, key=lambda example: len(example["input_ids"]))
        forms = _TRIED if self.api is None else (self.api,)
        refusals = []
        for form in forms:
            self.api = form
            try:
                if form == "echo" and self._names_by_text(shortest):
                    self._spare = SPARE
                self.rows(shortest, text=True)
            except _NoValuesError as error:
                refusals.append(f"{form}: {error.got}")
                continue
            return form
        remedy = "Use a server that has one of the forms in docs/cache.md, and name its form with --api."
        expected = f"log-probabilities of the prompt from {self._server.url}"
        raise InputError("endpoint", expected, "; ".join(refusals), remedy)

    def _names_by_text(self, example: Mapping[str, Sequence[int]]) -> bool:
        """Returns whether the server names tokens by their text although the request asks for ids."""
        question = self._question(example)
        try:
            return names_by_text(self._server.post(*FORMS["echo"][0](question)))
        except (TypeError, KeyError, IndexError, ValueError):
            return False  # the reader of the response says what is wrong
        except RejectedError as error:
            raise self._rejected(error, self._top_k) from None

    def _check_models(self, longest: int) -> None:
        """Reads the server's list of models, if it has one: the model, its context, and the form of the server."""
        try:
            listed = self._server.get("models")
            models = {entry["id"]: entry for entry in listed["data"] if isinstance(entry["id"], str)}
        except RejectedError as error:
            if error.status in (None, 401, 403):
                raise self._rejected(error, None) from None
            return  # a server without this list
        except (TypeError, KeyError):
            return
        owners = {str(entry.get("owned_by")).lower() for entry in models.values()}
        known = [form for owner, form in _OWNERS.items() if owner in owners]
        if known and self._model not in models:
            shown = ", ".join(map(repr, list(models)[:5]))
            raise InputError("model", f"a model of {self._server.url}: {shown}", repr(self._model), "Use one of its names.")
        if known and self.api is None:
            self.api = known[0]
        context = models.get(self._model, {}).get("max_model_len")
        if isinstance(context, int) and longest + 1 > context:
            remedy = "Lower --max-length here and in `sad train`, or start the server with a longer context."
            got = f"an example of {longest} tokens and one generated token"
            raise InputError("max_length", f"at most {context} tokens, the context of {self._model!r}", got, remedy)

    def run(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[int, TeacherRows]]:
        """Yields the index of each example and its rows, in the order in which the server answers.

        Args:
            examples: Mappings with `input_ids` and `span_ids`, each with a supervised token.

        Raises:
            InputError: A request failed for good, or a response does not fit its example. No further request starts.
        """
        todo, lock = iter(enumerate(examples)), threading.Lock()
        results: queue.SimpleQueue[tuple[int, TeacherRows | BaseException]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    number, example = next(todo, (-1, None))
                if example is None:
                    return
                try:
                    results.put((number, self.rows(example)))
                except BaseException as error:
                    results.put((number, error))

        # Daemon threads: one that waits for a hanging server must not hold the process after an error.
        for _ in range(min(self._concurrency, len(examples))):
            threading.Thread(target=work, name="teacher", daemon=True).start()
        try:
            for _ in examples:
                number, found = results.get()
                if isinstance(found, BaseException):
                    raise found
                yield number, found
        finally:
            stop.set()
            self._server.stop()

    def rows(self, example: Mapping[str, Sequence[int]], *, text: bool = False) -> TeacherRows:
        """Requests one example and returns its rows.

        Args:
            example: A mapping with `input_ids` and `span_ids`, with a supervised token.
            text: Whether the text of the tokens is compared too if it costs the server extra time.

        Raises:
            InputError: As in `run`.
        """
        question = self._question(example)
        write, read = FORMS[self.api or _TRIED[0]]
        asked = min(self._top_k + self._spare, self._vocab_size)

        def check(answer: Any) -> list[TopList] | None:
            try:
                return read(answer, question, self._spelling)
            except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
                raise ValueError(f"a response of another form ({type(error).__name__}: {error})") from error

        try:
            lists = self._server.post(*write(question._replace(top_k=asked, text=text)), check)
            if lists is None:
                got, remedy = "a response without log-probabilities of the prompt", "Choose another --api."
                raise _NoValuesError("endpoint", f"log-probabilities from {self._server.url}", got, remedy)
            return rows_from_lists(lists, self._top_k, self._vocab_size)
        except PositionError as error:
            place = f"an example of {len(example['input_ids'])} tokens"
            if error.position is not None:
                place = f"position {error.position} of {place}"
            raise InputError(f"endpoint, {place}", error.expected, error.got, error.remedy) from None
        except RejectedError as error:
            raise self._rejected(error, asked) from None

    def _question(self, example: Mapping[str, Sequence[int]]) -> Question:
        """Returns the request of an example. Nothing after its last supervised token is needed."""
        tokens = [int(token) for token in example["input_ids"]]
        positions = (supervised_rows(example["span_ids"], self._observe) + 1).tolist()
        return Question(self._model, tokens[: positions[-1] + 1], positions, self._top_k, self._vocab_size)

    def _rejected(self, error: RejectedError, asked: int | None) -> InputError:
        """Returns the error for the user: a limit on k, the context, a form that the server lacks, or anything else."""
        text, expected = error.text, f"a response of {self._model!r} from {self._server.url}"
        if error.status in (400, 413, 422):
            if asked is not None and _CAP.search(text):
                numbers = [int(x) for x in _NUMBER.findall(text) if int(x) < asked]
                cap = f"the {numbers[-1]} that the server allows" if numbers else "what the server allows"
                spare = f", {SPARE} of them because some texts stand for several tokens" if self._spare else ""
                least = f", or set --top-k {numbers[-1] - self._spare}" if numbers else ", or set a smaller --top-k"
                got = f"{asked}{spare}: {text}"
                return InputError(
                    "top_k", f"at most {cap}", got, f"Start the server with more (vLLM: --max-logprobs {asked}){least}."
                )
            if re.search(r"prefix.?cach", text, re.IGNORECASE):
                remedy = "Start vLLM with --no-enable-prefix-caching, or update it."
                return InputError("endpoint", expected, text, remedy)
            if re.search(r"context|max_model_len|too long|maximum.{0,20}length", text, re.IGNORECASE):
                remedy = "Lower --max-length here and in `sad train`, or start the server with a longer context."
                return InputError("max_length", expected, text, remedy)
        if error.status in (400, 404, 405, 422) and not re.search(r"model\b.*(not|exist)", text, re.IGNORECASE):
            remedy = f"Check the URL (with the version, such as /v1) and --api (now {self.api})."
            return _NoValuesError("endpoint", expected, text, remedy)
        if error.status in (401, 403):
            remedy = "Put the key into the environment variable that --api-key-env names."
            return InputError("endpoint", expected, text, remedy)
        remedy = "Check the URL and the model, and that the server is running. Repeat the command to continue."
        return InputError("endpoint", expected, text, remedy)


class _NoValuesError(InputError):
    """The server answers, but without the values: it does not know the form."""


def open_endpoint(
    url: str,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    top_k: int,
    vocab_size: int,
    api: str = "auto",
    api_key: str | None = None,
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout: float = 300.0,
    retries: int = 5,
    observe: bool = False,
    say: Callable[[str], None] | None = None,
) -> EndpointTeacher:
    """Returns the teacher behind a URL. Arguments as in `Server` and `EndpointTeacher`.

    Raises:
        InputError: The `openai` package is not installed, or an argument is invalid.
    """
    server = Server(url, api_key=api_key, timeout=timeout, retries=retries, requests_per_minute=requests_per_minute, say=say)
    options = {"top_k": top_k, "vocab_size": vocab_size, "api": api, "concurrency": concurrency, "observe": observe}
    return EndpointTeacher(server, model, tokenizer, **options)
