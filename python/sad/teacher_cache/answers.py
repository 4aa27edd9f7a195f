"""The forms in which servers send the log-probabilities of a prompt: requests, and their responses as `TopList`s.

| form     | request                                                                    | response, per token              |
|----------|----------------------------------------------------------------------------|----------------------------------|
| `vllm`   | `/v1/completions` with `prompt_logprobs: k`                                | {id: {logprob, decoded_token}}   |
| `sglang` | `/generate` with `return_logprob`, `logprob_start_len`, `top_logprobs_num` | [[logprob, id, text]]            |
| `echo`   | `/v1/completions` with `echo` and `logprobs: k`                            | {text or "token_id:7": logprob}  |

The prompt is a list of token ids in all of them, so no server tokenizes anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.teacher_cache.toplists import PositionError, TopList

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPARE = 8  # further tokens to request if a server names tokens by text, because some texts stand for several tokens
_TOKEN_ID = re.compile(r"token_id:(\d+)")
_UNKNOWN = "\ufffd"  # part of a character
_OTHER_TOKENIZER = "Choose the tokenizer of the model that the server runs: --tokenizer."
_SHIFTED = "The server must return one entry per token of the prompt; update the server, or choose another --api."


class Question(NamedTuple):
    """What a request asks for.

    Args:
        model: Name of the model on the server.
        tokens: (T,) the prompt.
        positions: The tokens whose predictions are wanted, ascending, each at least 1.
        top_k: Likely tokens per position.
        vocab_size: Columns of the softmax.
        text: Whether to request the text of the tokens from a server that sends it on demand only (SGLang).
    """

    model: str
    tokens: Sequence[int]
    positions: Sequence[int]
    top_k: int
    vocab_size: int
    text: bool = False


class Spelling:
    """How the tokens of a tokenizer read as text. Servers write single tokens in different ways.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, frozenset[str]] = {}

    def differs(self, token: int, text: Any) -> bool:
        """Returns whether a server's text cannot be that of a token. Parts of a character cannot be compared."""
        if not isinstance(text, str) or not text or _UNKNOWN in text:
            return False
        own = self._forms(token)
        return _plain(text) not in own and not any(_UNKNOWN in form for form in own)

    def shown(self, token: int) -> str:
        """Returns a token for a message."""
        known = 0 <= token <= max(self._tokenizer.get_vocab().values())
        return f"{token} ({self._tokenizer.decode([token], skip_special_tokens=False)!r})" if known else str(token)

    def id_of(self, text: str) -> int | None:
        """Returns the id of the only token that reads so; None if there are several or none."""
        found = self._exact.get(text)
        return found if found is not None and found >= 0 else None

    def _forms(self, token: int) -> frozenset[str]:
        if token not in self._known:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            decoded = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            self._known[token] = frozenset(_plain(x) for x in (piece, decoded) if isinstance(x, str))
        return self._known[token]

    @cached_property
    def _exact(self) -> dict[str, int]:
        """Text to id; -1 for a text of several tokens."""
        found: dict[str, int] = {}
        for token in sorted(self._tokenizer.get_vocab().values()):
            text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for form in {text, self._tokenizer.convert_ids_to_tokens(token)}:
                found[form] = -1 if form in found or _UNKNOWN in form else token
        return found


def _plain(text: str) -> str:
    """Returns a text without blanks and their marks, which decoders of single tokens treat differently."""
    return text.replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\n").strip()


def _sampling(question: Question) -> dict[str, Any]:
    # One token, because not every server accepts 0. The values of the prompt do not depend on the sampling; a server that
    # scales them nevertheless leaves them as they are at temperature 1.
    options = {"model": question.model, "prompt": list(question.tokens), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
    return options | {"stream": False}


def vllm_request(question: Question) -> tuple[str, dict[str, Any]]:
    """Returns path and body of the request."""
    return "completions", _sampling(question) | {"prompt_logprobs": question.top_k, "return_token_ids": True}


def sglang_request(question: Question) -> tuple[str, dict[str, Any]]:
    """Returns path and body of the request. The tokens before the first wanted one need no values."""
    body: dict[str, Any] = {"input_ids": list(question.tokens), "stream": False}
    body |= {"sampling_params": {"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0}}
    body |= {"return_logprob": True, "logprob_start_len": question.positions[0] - 1, "top_logprobs_num": question.top_k}
    return "/generate", body | {"return_text_in_logprobs": question.text}


def echo_request(question: Question) -> tuple[str, dict[str, Any]]:
    """Returns path and body of the request."""
    extra = {"echo": True, "logprobs": question.top_k, "return_tokens_as_token_ids": True}
    return "completions", _sampling(question) | extra


def read_vllm(answer: Any, question: Question, spelling: Spelling) -> list[TopList] | None:
    """Returns the lists of a response; None if it has none, so that the server does not know this form.

    Raises:
        ValueError: The response does not have the form.
        PositionError: It is about other tokens.
    """
    choice = _choice(answer)
    given = choice.get("prompt_logprobs")
    if given is None:
        return None
    _check_length(answer, given, question)
    echoed = choice.get("prompt_token_ids")
    if isinstance(echoed, list):
        _check_tokens(echoed, question, spelling)
    lists = []
    for position in question.positions:
        token, entries = question.tokens[position], given[position]
        if not isinstance(entries, Mapping):
            got = "null, as for tokens of a cached prefix" if entries is None else repr(entries)[:80]
            remedy = "Start vLLM with --no-enable-prefix-caching, or update it."
            raise PositionError(position, "log-probabilities", got, remedy)
        try:
            values = {int(key): float(entry["logprob"]) for key, entry in entries.items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"prompt_logprobs with {str(entries)[:200]}") from error
        if token not in values:
            got = f"{len(values)} other tokens, such as {spelling.shown(next(iter(values)))}" if values else "no tokens"
            raise PositionError(position, f"the value of token {spelling.shown(token)}", got, _SHIFTED)
        own = entries[str(token)] if str(token) in entries else entries[token]
        _check_text(position, token, own.get("decoded_token"), spelling)
        least = min(values.values())
        if len(values) > question.top_k and values[token] > least:  # a further entry is that of a less likely token
            got = f"{len(values)} entries, but token {token} is one of the likely ones"
            raise PositionError(position, f"{question.top_k} entries", got, _SHIFTED)
        lists.append(TopList(position, token, list(values), list(values.values()), values[token]))
    return lists


def read_sglang(answer: Any, question: Question, spelling: Spelling) -> list[TopList] | None:
    """Returns the lists of a response. Arguments and errors as in `read_vllm`."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if not isinstance(answer, Mapping) or not isinstance(answer.get("meta_info"), Mapping):
        raise ValueError(f"no meta_info in {str(answer)[:200]}")
    meta = answer["meta_info"]
    own, top = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
    if own is None or top is None:
        return None
    if not isinstance(own, list) or not isinstance(top, list) or len(own) != len(top):
        raise ValueError("input_token_logprobs and input_top_logprobs of different lengths")
    first = len(question.tokens) - len(own)  # some versions leave out the token without a prediction
    if not 0 <= first <= question.positions[0]:
        expected = f"values from token {question.positions[0]} to {len(question.tokens) - 1}"
        raise PositionError(question.positions[0], expected, f"{len(own)} values", _SHIFTED)
    lists = []
    for position in question.positions:
        token, (entry, entries) = question.tokens[position], (own[position - first], top[position - first])
        value, identity, text = _triple(entry)
        if identity != token and not (identity == 0 and token >= question.vocab_size - 1):  # SGLang's name of the last id
            raise _other_token(position, token, spelling, spelling.shown(identity))
        _check_text(position, token, text, spelling)
        if not entries or value is None:
            raise PositionError(position, "log-probabilities", "none", _SHIFTED)
        triples = [_triple(one) for one in entries]
        ids, logprobs = [x[1] for x in triples], [x[0] for x in triples]
        lists.append(TopList(position, token, ids, [float("nan") if x is None else x for x in logprobs], value))
    return lists


def read_echo(answer: Any, question: Question, spelling: Spelling) -> list[TopList] | None:
    """Returns the lists of a response. Arguments and errors as in `read_vllm`.

    Tokens that are named by a text of several tokens are left out. Their probability belongs to the rest.
    """
    given = _choice(answer).get("logprobs")
    if not isinstance(given, Mapping) or not given.get("top_logprobs"):
        return None
    names, top, own = (given.get(name) for name in ("tokens", "top_logprobs", "token_logprobs"))
    if not isinstance(names, list) or not isinstance(top, list) or not isinstance(own, list):
        raise ValueError("logprobs without lists of tokens, token_logprobs and top_logprobs")
    if len(names) < len(question.tokens):
        return None  # of the generated token only
    _check_length(answer, top, question)
    for position, name in enumerate(names[: len(question.tokens)]):
        token, found = question.tokens[position], _TOKEN_ID.fullmatch(str(name))
        if found and int(found[1]) != token:
            raise _other_token(position, token, spelling, spelling.shown(int(found[1])))
        if not found:
            _check_text(position, token, name, spelling)
    lists = []
    for position in question.positions:
        entries = top[position]
        if not isinstance(entries, Mapping) or not isinstance(own[position], (int, float)):
            raise PositionError(position, "log-probabilities", repr(entries)[:80], _SHIFTED)
        values: dict[int, float] = {}
        for name, value in entries.items():
            found = _TOKEN_ID.fullmatch(name)
            token = int(found[1]) if found else spelling.id_of(name)
            if token is not None:
                values[token] = float(value)
        if len(values) < question.top_k <= len(entries):
            got = f"{len(values)}; the texts of the others stand for several tokens or for none"
            remedy = "Set a smaller --top-k, or let the server name tokens by id (vLLM: --return-tokens-as-token-ids)."
            raise PositionError(position, f"{question.top_k} tokens that their text identifies", got, remedy)
        token = question.tokens[position]
        value = float(own[position]) if token in values or len(values) == len(entries) else None
        lists.append(TopList(position, token, list(values), list(values.values()), value))
    return lists


def names_by_text(answer: Any) -> bool:
    """Returns whether a response in the form `echo` names tokens by their text."""
    names = _choice(answer)["logprobs"]["tokens"]
    return not all(_TOKEN_ID.fullmatch(str(name)) for name in names[:1])


Form = tuple[Callable[[Question], tuple[str, dict[str, Any]]], Callable[[Any, Question, Spelling], "list[TopList] | None"]]
FORMS: dict[str, Form] = {
    "vllm": (vllm_request, read_vllm),
    "sglang": (sglang_request, read_sglang),
    "echo": (echo_request, read_echo),
}


def _choice(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ValueError(f"no choices in {str(answer)[:200]!r}")
    return choices[0]


def _triple(entry: Any) -> tuple[float | None, int, Any]:
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], int):
        raise ValueError(f"a value that is not [logprob, token id, text]: {str(entry)[:100]}")
    return (None if entry[0] is None else float(entry[0])), entry[1], entry[2] if len(entry) > 2 else None


def _check_length(answer: Mapping[str, Any], given: Any, question: Question) -> None:
    """Checks the number of values; a server may add the token that it generates."""
    length = len(question.tokens)
    if not isinstance(given, list):
        raise ValueError(f"log-probabilities that are not a list: {str(given)[:100]}")
    if len(given) not in (length, length + 1):
        at = min(length, len(given)) - 1
        raise PositionError(max(at, 0), f"values for {length} tokens of the prompt", f"{len(given)}", _SHIFTED)
    usage = answer.get("usage")
    seen = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if isinstance(seen, int) and seen not in (0, length):
        raise PositionError(None, f"{length} tokens in the prompt", f"{seen} that the server has counted", _SHIFTED)


def _check_tokens(echoed: Sequence[Any], question: Question, spelling: Spelling) -> None:
    for position, (token, found) in enumerate(zip(question.tokens, echoed)):
        if token != found:
            raise _other_token(position, token, spelling, spelling.shown(int(found)))


def _check_text(position: int, token: int, text: Any, spelling: Spelling) -> None:
    if spelling.differs(token, text):
        raise _other_token(position, token, spelling, repr(text))


def _other_token(position: int, token: int, spelling: Spelling, got: str) -> PositionError:
    return PositionError(position, f"token {spelling.shown(token)}", f"{got} from the server", _OTHER_TOKENIZER)
