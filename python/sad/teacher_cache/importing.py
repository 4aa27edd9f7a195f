"""A teacher in a file: log-probabilities by token id that another program wrote, one record per example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sad.errors import InputError
from sad.teacher_cache.metadata import supervised_rows
from sad.teacher_cache.rows import TeacherRows
from sad.teacher_cache.toplists import PositionError, TopList, rows_from_lists
from sad.trajectories.record_files import read_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ALIGNED = (
    "Give one list per token (entry p predicts token p, and entry 0 is null), or one per supervised token. "
    "docs/cache.md shows a record."
)


class FileTeacher:
    """Log-probabilities in files, in place of a model in memory.

    A record has the columns `input_ids` (T,), `token_ids` and `logprobs`: lists of the likely tokens at each position and
    their log-probabilities. It serves the examples whose tokens are its `input_ids`, or begin them: the predictions of a
    causal model do not depend on later tokens. `token_logprobs`, the values of the tokens themselves, are optional.

    Args:
        files: JSON Lines or parquet.
        top_k: Likely tokens per row.
        vocab_size: Columns of the softmax.
        tokenizer: The teacher's tokenizer, for messages.
        observe: Whether observation tokens are supervised.
        say: Receives one line with the number of records.
    """

    def __init__(
        self,
        files: Sequence[str],
        top_k: int,
        vocab_size: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        observe: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._files, self._top_k, self._vocab_size, self._observe = files, top_k, vocab_size, observe
        self._tokenizer, self._say = tokenizer, say or (lambda message: None)

    def run(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[int, TeacherRows]]:
        """Yields the index of each example and its rows, in the order of the records.

        Args:
            examples: Mappings with `input_ids` and `span_ids`, each with a supervised token.

        Raises:
            InputError: A record cannot be used, or an example has none.
        """
        wanted: dict[bytes, list[int]] = {}
        for number, example in enumerate(examples):
            wanted.setdefault(_key(example["input_ids"]), []).append(number)
        lengths = sorted({len(example["input_ids"]) for example in examples})
        records, used = 0, 0
        stranger: tuple[np.ndarray, str] | None = None  # the first record of no example, for the message
        for record, where in self._records():
            records += 1
            tokens = _integers(record.get("input_ids"), where, "input_ids")
            served = [
                number for length in lengths if length <= len(tokens) for number in wanted.pop(_key(tokens[:length]), ())
            ]
            used += bool(served)
            for number in served:
                yield number, self._rows(record, tokens, examples[number], where)
            if not served and stranger is None:
                stranger = tokens, where
        if wanted:
            missing = [number for numbers in wanted.values() for number in numbers]
            length = len(examples[min(missing)]["input_ids"])
            got = f"{len(missing)} of {len(examples)} without one, the first of {length} tokens"
            if stranger is not None:
                got += f"; {self._nearest(*stranger, [examples[number] for number in missing])}"
            remedy = (
                "The input_ids of a record must be the tokens of an example. Use the teacher's tokenizer, and the options "
                "that change tokens (--format, --max-length, --long, --unroll) as when the file was written."
            )
            raise InputError("file", f"a record for every example in {', '.join(self._files)}", got, remedy)
        self._say(f"{', '.join(self._files)}: {records} records, {records - used} of them for no missing example")

    def _records(self) -> Iterator[tuple[Mapping[str, Any], str]]:
        for path in self._files:
            for record, where in read_values(path):
                if not isinstance(record, Mapping):
                    raise InputError(where, "an object with input_ids, token_ids and logprobs", repr(record)[:80], _ALIGNED)
                yield record, where

    def _nearest(self, tokens: np.ndarray, where: str, examples: Sequence[Mapping[str, Sequence[int]]]) -> str:
        """Returns where the tokens of a record leave the example that begins most like them."""
        best, text = -1, ""
        for example in examples:
            own = np.asarray(example["input_ids"])
            length = min(len(own), len(tokens))
            differ = np.flatnonzero(own[:length] != tokens[:length])
            at = int(differ[0]) if len(differ) else length
            if at > best:
                other = [self._shown(x[at]) if at < len(x) else "the end" for x in (own, tokens)]
                best, text = at, f"position {at}: expected {other[0]}, got {other[1]} in {where}"
        return text

    def _shown(self, token: int) -> str:
        return f"token {int(token)} ({self._tokenizer.decode([int(token)], skip_special_tokens=False)!r})"

    def _rows(
        self, record: Mapping[str, Any], tokens: np.ndarray, example: Mapping[str, Sequence[int]], where: str
    ) -> TeacherRows:
        """Returns the rows of an example."""
        positions = (supervised_rows(example["span_ids"], self._observe) + 1).tolist()
        columns = {name: record.get(name) for name in ("token_ids", "logprobs")}
        for name, column in columns.items():
            if not isinstance(column, (list, tuple)):
                raise InputError(f"{where}, {name}", "a list of lists", repr(column)[:80], _ALIGNED)
        ids, logprobs = columns.values()
        if len(ids) != len(logprobs):
            got = f"{len(ids)} and {len(logprobs)}"
            raise InputError(where, "as many token_ids as logprobs", got, _ALIGNED)
        entry_of = self._entries(len(ids), len(tokens), len(example["input_ids"]), positions, where)
        own = record.get("token_logprobs")
        if own is not None and (not isinstance(own, (list, tuple)) or len(own) != len(ids)):
            raise InputError(f"{where}, token_logprobs", f"a list of {len(ids)} numbers", repr(own)[:80], _ALIGNED)
        lists = []
        try:
            for position in positions:
                entry = entry_of[position]
                if not isinstance(ids[entry], (list, tuple)) or not isinstance(logprobs[entry], (list, tuple)):
                    got = f"{str(ids[entry])[:40]} and {str(logprobs[entry])[:40]}"
                    raise PositionError(position, "lists of token_ids and logprobs", got, _ALIGNED)
                value = None if own is None or own[entry] is None else float(own[entry])
                numbers = np.array([np.nan if x is None else x for x in logprobs[entry]], np.float64)
                lists.append(TopList(position, int(tokens[position]), ids[entry], numbers, value))
            return rows_from_lists(lists, self._top_k, self._vocab_size)
        except PositionError as error:
            raise InputError(f"{where}, position {error.position}", error.expected, error.got, error.remedy) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(where, "numbers in token_ids and logprobs", str(error)[:200], _ALIGNED) from None

    def _entries(self, count: int, record: int, example: int, positions: list[int], where: str) -> dict[int, int]:
        """Returns the entry of each position."""
        if count == record:
            return {position: position for position in positions}
        if count == record - 1:
            return {position: position - 1 for position in positions}
        if count == len(positions) and record == example:
            return dict(zip(positions, range(count)))
        expected = f"{record} lists, one per token, or {len(positions)}, one per supervised token"
        raise InputError(where, expected, str(count), _ALIGNED)


def _integers(value: Any, where: str, name: str) -> np.ndarray:
    try:
        found = np.asarray(value)
    except ValueError:
        found = np.zeros((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "iu":
        remedy = "Store the token ids of the example: records are matched by them."
        raise InputError(f"{where}, {name}", "a list of token ids", repr(value)[:80], remedy)
    return found.astype("<i8")


def _key(tokens: Any) -> bytes:
    return np.asarray(tokens, "<i8").tobytes()
