"""SWE-agent's `.traj` files and mini-swe-agent's trajectories."""

from __future__ import annotations

import re
from typing import Any

from sad.trajectories.json_values import first_of
from sad.trajectories.sources.base import Source, conversation, is_dict_list, need
from sad.trajectories.trajectory import Trajectory

_KEPT = ("role", "content", "tool_calls", "is_demo", "reasoning_content", "thinking", "name")
_OPENING_FENCE = re.compile(r"(?:\A|\n)[ \t]*(?:```[^\n`]*\n[ \t]*|<command>\s*)?\Z")


def _is_traj(record: Any) -> bool:
    return isinstance(record, dict) and is_dict_list(record.get("history")) and "role" in record["history"][0]


def _thought_and_action(message: dict[str, Any]) -> list[list[Any]] | None:
    """Returns the spans of the content: SWE-agent states thought and action apart; the action's code fence belongs to it."""
    content, action = message.get("content"), message.get("action")
    if not isinstance(content, str) or not isinstance(action, str) or not action.strip():
        return None
    at = content.rfind(action.strip())
    if at <= 0:
        return None
    fence = _OPENING_FENCE.search(content[max(0, at - 80) : at])
    start = max(0, at - 80) + fence.start() if fence else at
    start += len(content[start:at]) - len(content[start:at].lstrip())
    if not content[:start].strip():
        return None
    return [[0, start, "reason"], [start, len(content), "act"]]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {key: message[key] for key in _KEPT if key in message}
    blocks = message.get("thinking_blocks")
    if is_dict_list(blocks):
        kept["reasoning_details"] = blocks
    ids = message.get("tool_call_ids")
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], str):
        kept["tool_call_id"] = ids[0]
    if kept.get("role") == "assistant" and not message.get("tool_calls") and (spans := _thought_and_action(message)):
        kept["spans"] = spans
    return kept


def _read_traj(record: dict[str, Any]) -> Trajectory:
    # several agents share one file; the history of the main one is the trajectory
    history = [need(message, dict, f"history[{n}]", "an object with a role") for n, message in enumerate(record["history"])]
    used = ("history", "trajectory", "replay_config", "state")
    fields = {"env": record["environment"]} if isinstance(record.get("environment"), str) else {}
    return conversation([_message(message) for message in history], record, *used, "environment", **fields)


def _is_mini(record: Any) -> bool:
    if not isinstance(record, dict) or not is_dict_list(record.get("messages")):
        return False
    mini = str(record.get("trajectory_format", "")).startswith("mini-swe-agent")
    return mini or (isinstance(record.get("info"), dict) and "exit_status" in record["info"])


def _read_mini(record: dict[str, Any]) -> Trajectory:
    """Reads the messages but the last one of role "exit", which the program writes for itself."""
    from sad.trajectories.sources.responses import messages_of_items

    messages: list[dict[str, Any]] = []
    for message in record["messages"]:
        if message.get("role") == "exit" or message.get("type") == "exit":
            continue
        if message.get("object") == "response" and isinstance(message.get("output"), list):
            messages += messages_of_items(message["output"])
        elif "role" in message:
            messages.append({key: value for key, value in message.items() if key not in ("extra", "timestamp")})
        else:
            messages += messages_of_items([{key: value for key, value in message.items() if key != "extra"}])
    name = first_of(record, "instance_id", "id")
    fields = {"id": name} if isinstance(name, str) else {}
    return conversation(messages, record, "messages", **fields)


SOURCES = (
    Source("mini-swe-agent", "mini-swe-agent trajectories", _is_mini, _read_mini),
    Source("swe-agent", "SWE-agent trajectories", _is_traj, _read_traj),
)
