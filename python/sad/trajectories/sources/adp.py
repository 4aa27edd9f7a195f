"""The Agent Data Protocol: one object whose `content` lists actions and observations by their class."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import first_of
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, is_dict_list, text_or
from sad.trajectories.trajectory import Trajectory

_CLASSES = ("text_observation", "web_observation", "image_observation", "api_action", "code_action", "message_action")


def _is_adp(record: Any) -> bool:
    content = record.get("content") if isinstance(record, dict) else None
    return is_dict_list(content) and all(item.get("class_") in _CLASSES for item in content[:2])


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the message of an action or an observation; the description of an action is its thought."""
    kind, thought = item.get("class_"), text_or(item.get("description"))
    if kind == "text_observation":
        role = "user" if item.get("source") in (None, "user") else "tool"
        return {"role": role, "content": item.get("content")}
    if kind == "web_observation":
        return {"role": "tool", "content": first_of(item, "axtree", "html")}
    if kind == "api_action":
        call = {"name": item.get("function"), "arguments": item.get("kwargs") or {}}
        return {"role": "assistant", "content": thought, "tool_calls": [call]}
    if kind == "code_action":
        code = f"```{text_or(item.get('language'))}\n{text_or(item.get('content'))}\n```"
        return {"role": "assistant", "content": "\n\n".join(filter(None, [thought, code]))}
    if kind == "message_action":
        said = {"role": "assistant", "content": item.get("content")}
        return said | ({"reasoning_content": thought} if thought else {})
    expected = f"an item of class {', '.join(_CLASSES)}, but no image"
    raise InputError(f"{where}.class_", expected, shown(kind), "Remove the item.")


def _read(record: dict[str, Any]) -> Trajectory:
    messages = [_message(item, f"content[{number}]") for number, item in enumerate(record["content"])]
    for before, message in pairwise(messages):  # what answers code is no result of a tool call
        if message["role"] == "tool" and not before.get("tool_calls"):
            message["role"] = "user"
    details = record.get("details") if isinstance(record.get("details"), dict) else {}
    return conversation(messages, record, "content", tools=details.get("tools"))


SOURCES = (Source("adp", "Agent Data Protocol trajectories", _is_adp, _read),)
