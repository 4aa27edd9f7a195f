"""ShareGPT and its relatives (LLaMA-Factory, AgentTraj, AgentInstruct, ToolACE), Alpaca rows, and ms-swift's older rows."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import first_of
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import (
    Source,
    conversation,
    grouped_in_file,
    is_dict_list,
    need,
    refuse_undesired,
    text_or,
    with_chosen,
    with_system,
)
from sad.trajectories.trajectory import Trajectory

_TURNS = ("conversations", "conversation", "messages", "dialog", "dialogue", "trajectory")
_PAIRS = (("human", "assistant"), ("input", "output"), ("user", "assistant"))  # a question with its answer in one object


def _turns(record: Any) -> str | None:
    """Returns the key of a list whose entries have `from`, or of `conversations` with roles."""
    if not isinstance(record, dict) or isinstance(record.get("text"), str):
        return None
    for key in _TURNS:
        value = record.get(key)
        if is_dict_list(value) and ("from" in value[0] or (key != "messages" and "role" in value[0])):
            return key
        if key != "messages" and is_dict_list(value) and all(_pair(turn) for turn in value):
            return key
    return None


def _pair(turn: Any) -> tuple[str, str] | None:
    """Returns the keys of a question and its answer in one object."""
    return next((pair for pair in _PAIRS if all(isinstance(turn.get(key), str) for key in pair)), None)


def _messages(turns: list[Any]) -> list[dict[str, Any]]:
    """Returns the messages of turns, or of pairs of a question and an answer."""
    if not is_dict_list(turns) or "from" in turns[0] or "role" in turns[0]:
        return [_message(turn, number) for number, turn in enumerate(turns)]
    pairs = [(turn, _pair(turn)) for turn in turns]
    found = []
    for number, (turn, keys) in enumerate(pairs):
        if keys is None:
            raise InputError(f"turn {number}", "a question and an answer", shown(turn), "Fix or remove the turn.")
        found += [{"role": role, "content": turn[key]} for role, key in zip(("user", "assistant"), keys)]
    return found


def _message(turn: Any, number: int) -> dict[str, Any]:
    need(turn, dict, f"turn {number}", "an object with from and value")
    role = first_of(turn, "from", "role")
    if not isinstance(role, str):
        raise InputError(f"turn {number}", "an object with from and value", shown(turn), "Name the author in `from`.")
    content = first_of(turn, "value", "content")
    if content is None and "text" in turn:  # SWE-agent trajectories of Nebius: `mask` excludes a message
        content = first_of(turn, "text") or turn.get("system_prompt")
        turn = {**turn, "train": not turn.get("mask")}
    known = ("from", "role", "value", "content", "text", "system_prompt", "mask", "cutoff_date")
    return {"role": role, "content": content, **{key: value for key, value in turn.items() if key not in known}}


def _read(record: dict[str, Any]) -> Trajectory:
    key = _turns(record)
    if key is None:
        expected = f"a list of objects with from and value under {', '.join(_TURNS)}"
        raise InputError("conversations", expected, f"keys {', '.join(map(repr, record))}"[:200], "Rename the key.")
    refuse_undesired(record, "kto_tag")
    turns = with_chosen(record[key], record, "from", "role")
    messages = _messages(turns)
    used = (key, "system", "chosen", "rejected", "item_id")
    fields = {"id": str(record["item_id"])} if isinstance(record.get("item_id"), (str, int)) and "id" not in record else {}
    return conversation(with_system(messages, record.get("system")), record, *used, **fields)


def _is_turn(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("from"), str) and "value" in record


def _read_turns(records: list[Any]) -> Trajectory:
    return conversation([_message(turn, number) for number, turn in enumerate(records)], {})


def _is_alpaca(record: Any) -> bool:
    answers = (record.get("output"), record.get("chosen")) if isinstance(record, dict) else ()
    return any(isinstance(answer, str) for answer in answers) and isinstance(record.get("instruction"), str)


def _is_swift(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("query"), str) and isinstance(record.get("response"), str)


def _history(history: Any) -> list[dict[str, Any]]:
    """Returns earlier pairs of question and answer."""
    messages = []
    for number, pair in enumerate(history or []):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise InputError(f"history[{number}]", "[question, answer]", shown(pair), "Write pairs of strings.")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _read_alpaca(record: dict[str, Any]) -> Trajectory:
    question, answer = ("query", "response") if _is_swift(record) else ("instruction", "output")
    answer = answer if isinstance(record.get(answer), str) else "chosen"
    refuse_undesired(record, "kto_tag")
    asked = "\n".join(filter(None, [record[question], text_or(record.get("input"))]))
    history = _history(need(record.get("history") or [], list, "history", "a list of pairs"))
    messages = [*history, {"role": "user", "content": asked}, {"role": "assistant", "content": record[answer]}]
    used = (question, answer, "input", "history", "system", "rejected", "rejected_response")
    return conversation(with_system(messages, record.get("system")), record, *used)


SOURCES = (
    Source("alpaca", "instructions with answers (Alpaca)", _is_alpaca, _read_alpaca),
    Source("swift", "questions with answers (ms-swift)", _is_swift, _read_alpaca),
    Source("sharegpt-turns", "turns of one ShareGPT conversation", _is_turn, _read_turns, grouped_in_file),
    Source("sharegpt", "ShareGPT conversations", lambda record: _turns(record) is not None, _read),
)
