"""Data sets of function calls: xLAM (APIGen) rows, and the text of Glaive's conversations."""

from __future__ import annotations

import ast
import re
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import parsed
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, is_dict_list, text_or
from sad.trajectories.trajectory import Trajectory


def _answers(record: Any) -> list[dict[str, Any]] | None:
    """Returns the calls that answer the query of a row; None for another value."""
    if not isinstance(record, dict) or not isinstance(record.get("query"), str) or "tools" not in record:
        return None
    calls = parsed(record.get("answers"))
    return calls if isinstance(calls, list) and all(isinstance(call, dict) and "name" in call for call in calls) else None


def _read_xlam(record: dict[str, Any]) -> Trajectory:
    calls = _answers(record)
    if not calls:
        raise InputError("answers", "a list of calls", shown(record.get("answers")), "Remove the row.")
    messages = [{"role": "user", "content": record["query"]}, {"role": "assistant", "content": "", "tool_calls": calls}]
    tools = parsed(record["tools"])
    if is_dict_list(tools):
        tools = [_schema(tool) for tool in tools]
    return conversation(messages, record, "query", "answers", "tools", tools=tools)


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool whose parameters are a JSON schema: xLAM states them by name only."""
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict) or "properties" in parameters:
        return tool
    return {**tool, "parameters": {"type": "object", "properties": parameters}}


_SPEAKER = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE|A):[ ]?", re.MULTILINE)
_CALL = re.compile(r"<functioncall>\s*(.*)", re.DOTALL)
_QUOTED = re.compile(r"(\"arguments\"\s*:\s*)'(.*)'(\s*\})\s*\Z", re.DOTALL)
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "A": "assistant", "FUNCTION RESPONSE": "tool"}


def _is_glaive(record: Any) -> bool:
    chat = record.get("chat") if isinstance(record, dict) else None
    return isinstance(chat, str) and chat.lstrip().startswith("USER:") and "ASSISTANT:" in chat


def _read_glaive(record: dict[str, Any]) -> Trajectory:
    chat = record["chat"]
    heads = list(_SPEAKER.finditer(chat))
    ends = [head.start() for head in heads[1:]] + [len(chat)]
    messages = [_message(head[1], chat[head.end() : end]) for head, end in zip(heads, ends)]
    system = text_or(record.get("system")).strip().removeprefix("SYSTEM:").strip()
    first = [{"role": "system", "content": system}] if system else []
    return conversation([*first, *messages], record, "chat", "system")


def _message(speaker: str, text: str) -> dict[str, Any]:
    text = text.strip().removesuffix("<|endoftext|>").strip()
    found = _CALL.search(text) if speaker == "ASSISTANT" else None
    call = _call(found[1]) if found else None
    if call is None:
        return {"role": _ROLES[speaker], "content": text}
    return {"role": "assistant", "content": text[: found.start()].strip(), "tool_calls": [call]}


def _call(text: str) -> dict[str, Any] | None:
    """Returns the call of a text in which single quotes enclose the arguments; None if it is no such text."""
    quoted = _QUOTED.search(text)
    value = parsed(text)
    if value is None and quoted:
        arguments = quoted[2]
        value = parsed(text[: quoted.start()] + quoted[1] + "null" + quoted[3])
        value = {**value, "arguments": arguments} if isinstance(value, dict) else None
    if value is None:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) and isinstance(value.get("name"), str) else None


SOURCES = (
    Source("xlam", "queries with calls (xLAM)", lambda record: _answers(record) is not None, _read_xlam),
    Source("glaive", "conversations as text (Glaive)", _is_glaive, _read_glaive),
)
