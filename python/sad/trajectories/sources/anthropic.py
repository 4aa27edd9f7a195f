"""Anthropic: Messages API logs with typed blocks, and Claude Code transcripts."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, is_dict_list, with_system
from sad.trajectories.trajectory import Trajectory

_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")


def _has_blocks(record: Any) -> bool:
    if not isinstance(record, dict) or not is_dict_list(record.get("messages")) or isinstance(record.get("text"), str):
        return False
    contents = [message.get("content") for message in record["messages"]]
    return any(
        isinstance(block, dict) and block.get("type") in _BLOCKS
        for content in contents
        if isinstance(content, list)
        for block in content
    )


def _read(record: dict[str, Any]) -> Trajectory:
    messages = with_system(record["messages"], record.get("system"))
    if isinstance(record.get("content"), list) and record.get("role") == "assistant":
        messages = [*messages, {"role": "assistant", "content": record["content"]}]
    return conversation(messages, record, "messages", "system", "content", "role")


_CLAUDE_CODE = (
    "user",
    "assistant",
    "system",
    "summary",
    "file-history-snapshot",
    "progress",
    "queue-operation",
    "attachment",
)


def _is_claude_code(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("type") not in _CLAUDE_CODE:
        return False
    return "sessionId" in record or ("uuid" in record and "message" in record) or record["type"] in _CLAUDE_CODE[3:]


def _session(record: dict[str, Any]) -> Any:
    """A session is one trajectory, and so is each of its subagents. Records without a session have no message."""
    if record.get("type") not in ("user", "assistant"):
        return None
    side = record.get("agentId") if record.get("isSidechain") else None
    return str(record.get("sessionId")), str(side), bool(record.get("isSidechain"))


def _read_claude_code(records: list[dict[str, Any]]) -> list[Trajectory]:
    """Returns the trajectories of a session: a new one begins where a summary replaces the messages before it."""
    session, side, is_side = _session(records[0])
    name = session if side == "None" else f"{session}/{side}"
    name += "/sidechain" if is_side and side == "None" else ""
    parts: list[list[dict[str, Any]]] = [[]]
    for record in records:
        if record.get("isCompactSummary") and parts[-1]:
            parts.append([])
        parts[-1].append(record)
    found = []
    for part, own in enumerate(parts):
        fields = {"id": f"{name}#{part + 1}" if part else name} if session != "None" else {}
        if messages := _claude_code_messages(own):
            found.append(conversation(messages, {}, **fields))
    return found


def _claude_code_messages(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    last_id = None
    for number, record in enumerate(records):
        message = record.get("message")
        synthetic = isinstance(message, dict) and message.get("model") == "<synthetic>"
        if record.get("isApiErrorMessage") or synthetic:  # written by the program, not read by the model
            continue
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            remedy = "Remove the record, or write its message with role and content."
            raise InputError(f"record {number}, message", "an object with a role", shown(message), remedy)
        own_id = message.get("id") if message["role"] == "assistant" else None
        content = message.get("content")
        if own_id is not None and own_id == last_id and isinstance(content, list):  # one line per block of a reply
            messages[-1] = {**messages[-1], "content": [*messages[-1]["content"], *content]}
        else:
            messages.append({"role": message["role"], "content": content})
        last_id = own_id if isinstance(messages[-1]["content"], list) else None
    return messages


SOURCES = (
    Source("anthropic", "conversations with Anthropic blocks", _has_blocks, _read),
    Source("claude-code", "Claude Code sessions", _is_claude_code, _read_claude_code, _session),
)
