"""ATIF, the Agent Trajectory Interchange Format of Harbor: one object with `schema_version` and `steps`."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, is_dict_list
from sad.trajectories.trajectory import Trajectory

_ROLES = {"system": "system", "user": "user", "agent": "assistant"}


def _is_atif(record: Any) -> bool:
    if not isinstance(record, dict) or not is_dict_list(record.get("steps")):
        return False
    named = str(record.get("schema_version", "")).upper().startswith("ATIF")
    return named or ("source" in record["steps"][0] and "step_id" in record["steps"][0])


def _step(step: dict[str, Any], number: int) -> list[dict[str, Any]]:
    where = f"steps[{number}]"
    if step.get("source") not in _ROLES:
        raise InputError(
            f"{where}.source", "system, user or agent", shown(step.get("source")), "Fix the source of the step."
        )
    message: dict[str, Any] = {"role": _ROLES[step["source"]], "content": step.get("message")}
    if step["source"] == "agent":
        for key in ("reasoning_content", "tool_calls"):
            if not absent(step.get(key)):
                message[key] = step[key]
    if step.get("is_copied_context"):  # another agent's step, or an earlier one of a continued session
        message["train"] = False
    messages = [message]
    observation = step.get("observation") if isinstance(step.get("observation"), dict) else {}
    for result in observation.get("results") or ():
        if isinstance(result, dict) and not absent(result.get("content")):
            called = message.get("tool_calls")
            of = result.get("source_call_id")
            answer = {"role": "tool" if called else "user", "content": result["content"]}
            messages.append({**answer, "tool_call_id": of} if called and isinstance(of, str) else answer)
    return messages


def _read(record: dict[str, Any]) -> Trajectory:
    messages = [message for number, step in enumerate(record["steps"]) for message in _step(step, number)]
    agent = record.get("agent") if isinstance(record.get("agent"), dict) else {}
    fields = {"id": record["session_id"]} if isinstance(record.get("session_id"), str) else {}
    return conversation(messages, record, "steps", tools=agent.get("tool_definitions"), **fields)


SOURCES = (Source("atif", "ATIF trajectories", _is_atif, _read),)
