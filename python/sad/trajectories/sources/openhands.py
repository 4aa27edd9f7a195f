"""OpenHands: event streams of the application (version 0), of its SDK (version 1), and evaluation outputs."""

from __future__ import annotations

from typing import Any

from sad.trajectories.json_values import absent, first_of
from sad.trajectories.sources.base import Source, conversation, grouped_in_file, is_dict_list, text_or
from sad.trajectories.trajectory import Trajectory

_SILENT = (
    "agent_state_changed",
    "change_agent_state",
    "null",
    "recall",
    "condensation",
    "stream_llm_output",
    "task_tracking",
)
_SDK_EVENTS = ("MessageEvent", "ActionEvent", "ObservationEvent", "SystemPromptEvent", "AgentErrorEvent")
_NOT_ARGUMENTS = (
    "thought",
    "security_risk",
    "confirmation_state",
    "hidden",
    "blocking",
    "is_static",
    "cwd",
    "translated_ipython",
)


def _is_event(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        return False
    return any(isinstance(value.get(key), str) for key in ("action", "observation")) or _is_sdk_event(value)


def _is_sdk_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and "source" in value and "timestamp" in value


def _events(record: Any) -> list[Any] | None:
    """Returns the events of an output of the evaluation; older ones hold pairs of action and observation."""
    history = record.get("history") if isinstance(record, dict) else None
    if not isinstance(history, list) or not history:
        return None
    flat = [event for item in history for event in (item if isinstance(item, list) else [item])]
    return flat if is_dict_list(flat) and all(map(_is_event, flat[:2])) else None


def _action(event: dict[str, Any], answered: set[str]) -> list[dict[str, Any]]:
    """Returns the messages of an action event. `answered`: ids of model responses that are already messages."""
    kind = event["action"]
    args = event.get("args") if isinstance(event.get("args"), dict) else {}
    if kind in _SILENT:
        return []
    if kind == "system":
        return [{"role": "system", "content": args.get("content")}]
    if event["source"] == "user":
        return [{"role": "user", "content": first_of(args, "content") or event.get("message")}]
    metadata = event.get("tool_call_metadata") if isinstance(event.get("tool_call_metadata"), dict) else {}
    response = metadata.get("model_response") if isinstance(metadata.get("model_response"), dict) else {}
    choices = response.get("choices")
    if is_dict_list(choices) and isinstance(choices[0].get("message"), dict):
        if isinstance(response.get("id"), str) and response["id"] in answered:
            return []  # one response can hold several calls
        answered.add(text_or(response.get("id")))
        return [{"role": "assistant", **choices[0]["message"]}]
    if kind == "message":
        return [{"role": "assistant", "content": first_of(args, "content") or event.get("message")}]
    arguments = {key: value for key, value in args.items() if key not in _NOT_ARGUMENTS and not absent(value)}
    name = text_or(metadata.get("function_name"), kind)
    call = {"name": name, "arguments": arguments, "id": text_or(metadata.get("tool_call_id"))}
    return [{"role": "assistant", "content": text_or(args.get("thought")), "tool_calls": [call]}]


def _observation(event: dict[str, Any]) -> list[dict[str, Any]]:
    if event["observation"] in _SILENT:
        return []
    metadata = event.get("tool_call_metadata") if isinstance(event.get("tool_call_metadata"), dict) else {}
    of = metadata.get("tool_call_id")
    return [{"role": "tool", "content": event.get("content"), **({"tool_call_id": of} if isinstance(of, str) else {})}]


def _sdk(event: dict[str, Any], messages: list[dict[str, Any]], last_response: str) -> list[dict[str, Any]]:
    kind = event["kind"]
    if kind == "SystemPromptEvent":
        prompt = event.get("system_prompt")
        return [{"role": "system", "content": [prompt] if isinstance(prompt, dict) else prompt}]
    if kind == "MessageEvent" and isinstance(event.get("llm_message"), dict):
        return [event["llm_message"]]
    if kind == "ActionEvent":
        call = event.get("tool_call") if isinstance(event.get("tool_call"), dict) else {}
        call = call or {
            "name": event.get("tool_name"),
            "arguments": event.get("action") or {},
            "id": event.get("tool_call_id"),
        }
        if last_response and messages and messages[-1].get("tool_calls") and not event.get("thought"):
            messages[-1]["tool_calls"].append(call)  # parallel calls of one response
            return []
        message = {"role": "assistant", "content": event.get("thought"), "tool_calls": [call]}
        for key in ("reasoning_content", "thinking_blocks"):
            if not absent(event.get(key)):
                message["reasoning_details" if key == "thinking_blocks" else key] = event[key]
        return [message]
    if kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        seen = event.get("observation") if isinstance(event.get("observation"), dict) else event
        content = first_of(seen, "content", "output", "error", "rejection_reason")
        return [{"role": "tool", "content": content, "tool_call_id": event.get("tool_call_id")}]
    return []


def _read_events(events: list[Any], record: dict[str, Any] | None = None) -> Trajectory:
    messages: list[dict[str, Any]] = []
    tools = None
    answered: set[str] = set()
    last_response = ""
    for event in filter(_is_event, events):
        if _is_sdk_event(event):
            response = text_or(event.get("llm_response_id"))
            messages += _sdk(event, messages, response if response == last_response else "")
            last_response = response or last_response
            tools = event.get("tools") if event["kind"] == "SystemPromptEvent" else tools
        elif isinstance(event.get("action"), str):
            messages += _action(event, answered)
            args = event.get("args")
            tools = args.get("tools") if event["action"] == "system" and isinstance(args, dict) else tools
        else:
            messages += _observation(event)
    record = record or {}
    if messages and messages[0]["role"] == "assistant" and isinstance(record.get("instruction"), str):
        messages = [{"role": "user", "content": record["instruction"]}, *messages]
    fields = {"id": record["instance_id"]} if isinstance(record.get("instance_id"), str) else {}
    used = ("history", "metadata", "llm_completions", "instance", "metrics", "instance_id")
    return conversation(messages, record, *used, tools=tools or record.get("tools"), **fields)


def _read_output(record: dict[str, Any]) -> Trajectory:
    return _read_events(_events(record) or [], record)


SOURCES = (
    Source("openhands-events", "OpenHands events of one session", _is_event, _read_events, grouped_in_file),
    Source("openhands", "OpenHands evaluation outputs", lambda record: _events(record) is not None, _read_output),
)
