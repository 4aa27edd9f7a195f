"""LangChain and LangGraph: serialized messages, states with messages, runs, and steps of an AgentExecutor."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent, first_of, to_json
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, grouped_in_file, is_dict_list, need, text_or
from sad.trajectories.trajectory import Trajectory

_ROLES = {
    **dict.fromkeys(("human", "humanmessage", "humanmessagechunk"), "user"),
    **dict.fromkeys(("ai", "aimessage", "aimessagechunk"), "assistant"),
    **dict.fromkeys(("system", "systemmessage", "systemmessagechunk"), "system"),
    **dict.fromkeys(("tool", "toolmessage", "toolmessagechunk", "function", "functionmessage"), "tool"),
}


def _fields(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Returns type and fields of a serialized message, in any of the forms of LangChain; None for another value."""
    if not isinstance(value, dict):
        return None
    if "sessionId" in value:  # a record of Claude Code
        return None
    kind, inner = value.get("type"), value
    if kind == "constructor" and isinstance(value.get("kwargs"), dict):
        inner = value["kwargs"]
        path = value.get("id")
        kind = inner.get("type") or (path[-1] if isinstance(path, list) and path else None)
    elif isinstance(value.get("data"), dict):
        inner = value["data"]
    if not isinstance(kind, str) or kind.lower() not in {*_ROLES, "chat"} or "content" not in inner or "role" in value:
        return None
    return kind, inner


def _is_message(value: Any) -> bool:
    return _fields(value) is not None


def _message(value: Any, number: int) -> dict[str, Any]:
    found = _fields(value)
    if found is None:
        raise InputError(f"messages[{number}]", "a serialized LangChain message", shown(value), "Convert or remove it.")
    kind, inner = found
    role = inner.get("role") if kind.lower() == "chat" else _ROLES[kind.lower()]
    message = {"role": role, "content": inner["content"]}
    more = inner.get("additional_kwargs") if isinstance(inner.get("additional_kwargs"), dict) else {}
    for key in ("tool_calls", "function_call"):
        calls = inner.get(key) if not absent(inner.get(key)) else more.get(key)
        if not absent(calls) and role == "assistant":
            message[key] = calls
    if is_dict_list(inner.get("invalid_tool_calls")) and role == "assistant":  # the model wrote arguments that are no JSON
        message["tool_calls"] = [*message.get("tool_calls", ()), *inner["invalid_tool_calls"]]
    for key in ("reasoning_content", "reasoning"):
        if not absent(more.get(key)) and role == "assistant":
            message[key] = more[key]
    for key in ("name", "tool_call_id"):
        if isinstance(inner.get(key), str):
            message[key] = inner[key]
    return message


def _state(record: Any) -> list[Any] | None:
    """Returns the messages of a state or of a run; None for another value."""
    if not isinstance(record, dict):
        return None
    for value in (record, record.get("outputs"), record.get("output"), record.get("values"), record.get("kwargs")):
        messages = value.get("messages") if isinstance(value, dict) else None
        if is_dict_list(messages) and _is_message(messages[0]):
            return messages
        if isinstance(messages, list) and messages and is_dict_list(messages[0]) and _is_message(messages[0][0]):
            return messages[0]
    return None


def _read_state(record: dict[str, Any]) -> Trajectory:
    messages = _state(record)
    if messages is None:
        raise InputError("messages", "serialized LangChain messages", shown(record), "Name another source.")
    used = ("messages", "outputs", "output", "values", "inputs", "kwargs")
    return conversation([_message(value, number) for number, value in enumerate(messages)], record, *used)


def _read_messages(records: list[Any]) -> Trajectory:
    return conversation([_message(value, number) for number, value in enumerate(records)], {})


def _run(record: Any) -> list[Any] | None:
    """Returns the messages of a run of a model in LangSmith: its inputs, then its first generation; None for none."""
    if not isinstance(record, dict) or not all(isinstance(record.get(side), dict) for side in ("inputs", "outputs")):
        return None
    asked, written = record["inputs"].get("messages"), record["outputs"].get("generations")
    if isinstance(asked, list) and asked and isinstance(asked[0], list):
        asked = asked[0]
    while isinstance(written, list) and written:
        written = written[0]
    message = written.get("message") if isinstance(written, dict) else None
    return [*asked, message] if is_dict_list(asked) and _is_message(asked[0]) and _is_message(message) else None


def _read_run(record: dict[str, Any]) -> Trajectory:
    """Reads the run of a model: what stands in its inputs, the model read."""
    read = [_message(value, number) for number, value in enumerate(_run(record) or [])]
    asked = [{**message, "train": False} if message["role"] == "assistant" else message for message in read[:-1]]
    return conversation([*asked, *read[-1:]], record, "inputs", "outputs")


def _update(record: Any) -> list[Any] | None:
    """Returns the messages of a line of LangGraph's stream of updates: {node: {"messages": [...]}}."""
    if not isinstance(record, dict) or not record or not all(isinstance(value, dict) for value in record.values()):
        return None
    found: list[Any] = []
    for value in record.values():
        messages = value.get("messages", [])
        found += messages if isinstance(messages, list) else [messages]
    return found if found and all(map(_is_message, found)) else None


def _read_updates(records: list[Any]) -> Trajectory:
    messages = [message for record in records for message in _update(record) or ()]
    return _read_messages(messages)


def _is_executor(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("intermediate_steps"), list) and "input" in record


def _read_executor(record: dict[str, Any]) -> Trajectory:
    """Reads the result of an AgentExecutor: `log` is what the model wrote, the observation stands beside it."""
    asked = record["input"] if isinstance(record["input"], str) else to_json(record["input"], "input")
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    for number, step in enumerate(record["intermediate_steps"]):
        where = f"intermediate_steps[{number}]"
        if not isinstance(step, (list, tuple)) or len(step) != 2 or not isinstance(step[0], dict):
            raise InputError(where, "[action, observation]", shown(step), "Dump the steps as pairs.")
        action = step[0].get("kwargs") if isinstance(step[0].get("kwargs"), dict) else step[0]
        log = need(action.get("log"), str, f"{where}.log", "the text that the model wrote")
        seen = step[1] if isinstance(step[1], str) else to_json(step[1], where)
        messages += [{"role": "assistant", "content": log}, {"role": "user", "content": f"Observation: {seen}"}]
    output = first_of(record, "output")
    final = text_or(output.get("output") if isinstance(output, dict) else output)
    if final:
        messages.append({"role": "assistant", "content": f"Final Answer: {final}"})
    return conversation(messages, record, "input", "intermediate_steps", "output")


SOURCES = (
    Source("langchain-messages", "messages of one LangChain conversation", _is_message, _read_messages, grouped_in_file),
    Source(
        "langgraph-updates",
        "updates of one LangGraph run",
        lambda record: _update(record) is not None,
        _read_updates,
        grouped_in_file,
    ),
    Source("langchain-executor", "runs of LangChain's AgentExecutor", _is_executor, _read_executor),
    Source("langsmith", "runs of a model (LangSmith)", lambda record: _run(record) is not None, _read_run),
    Source("langchain", "LangChain or LangGraph states", lambda record: _state(record) is not None, _read_state),
)
