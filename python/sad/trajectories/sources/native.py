"""Trajectories of this package, and chat messages in the form of OpenAI's API: requests, logs, fine-tuning files."""

from __future__ import annotations

from typing import Any

from sad.trajectories.json_values import first_of, parsed
from sad.trajectories.sources.base import (
    Source,
    conversation,
    grouped_in_file,
    is_dict_list,
    need,
    refuse_undesired,
    with_chosen,
    with_system,
)
from sad.trajectories.trajectory import Trajectory, from_record


def _is_native(record: Any) -> bool:
    return isinstance(record, dict) and (isinstance(record.get("text"), str) or "messages" in record)


def _with_token_mask(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with a list of one mask value per message written into the messages."""
    messages = record.get("messages")
    for key in ("loss_mask", "step_loss_mask", "loss"):
        mask = record.get(key)
        if is_dict_list(messages) and isinstance(mask, list) and len(mask) == len(messages):
            messages = [{key: value, **message} for message, value in zip(messages, mask)]
            record = {**{k: v for k, v in record.items() if k != key}, "messages": messages}
    return record


def _read_native(record: Any) -> Trajectory:
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        refuse_undesired(record, "label", "kto_tag")
        record = _with_token_mask(record)
        messages = record["messages"]
        if is_dict_list(messages):
            messages = with_chosen(messages, record)
            if messages is not record["messages"]:
                record = {key: value for key, value in record.items() if key != "chosen"}
            system = record.get("system")
            messages = with_system(messages, system) if isinstance(system, (str, list)) else messages
            record = {**record, "messages": messages}
    return from_record(record)


def _is_chat(record: Any) -> bool:
    """Returns whether the messages have roles and no key of this package stands beside them."""
    own = ("text", "spans", "format", "env", "success")
    if not isinstance(record, dict) or any(record.get(key) is not None for key in own):
        return False
    return is_dict_list(record.get("messages")) and all(isinstance(m.get("role"), str) for m in record["messages"])


def _reply(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of the response beside a request, if any."""
    response = first_of(record, "response", "completion", "choices", "output")
    if isinstance(response, dict):
        response = first_of(response, "choices", "message") or [response]
    if isinstance(response, dict):
        response = [response]
    if not is_dict_list(response):
        return []
    chosen = response[0]
    message = first_of(chosen, "message", "delta") or chosen
    return [message] if isinstance(message, dict) and isinstance(message.get("role"), str) else []


_SIDES = (("request", "response"), ("body", "response"), ("input", "output"), ("inputs", "outputs"))


def _sides(record: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns a request with messages and what was answered, of logs that keep them under two keys.

    A side may be JSON text. The request may be the list of its messages; the answer may be a message, or under `body`.
    """
    for keys in _SIDES if isinstance(record, dict) else ():
        asked, answered = (parsed(record.get(key)) for key in keys)
        asked = {"messages": asked} if isinstance(asked, list) else asked
        if not isinstance(asked, dict) or not is_dict_list(asked.get("messages")):
            continue
        if any("role" not in message for message in asked["messages"]):
            continue
        if isinstance(answered, dict) and isinstance(answered.get("body"), dict):
            answered = answered["body"]
        if is_dict_list(answered) and "role" in answered[0]:
            answered = {"message": answered[-1]}
        if isinstance(answered, dict) and "role" in answered:
            answered = {"message": answered}
        return asked, {"response": answered}
    return None


def _is_exchange(record: Any) -> bool:
    sides = _sides(record)
    if sides is not None:
        return bool(_reply(sides[1])) or isinstance(record.get("request"), dict)
    return _is_chat(record) and bool(_reply(record))


def _read_exchange(record: dict[str, Any]) -> Trajectory:
    request, answered = _sides(record) or (record, record)
    messages = need(request.get("messages"), list, "messages", "a list of messages")
    messages = with_system(messages, request.get("system"))
    tools = first_of(request, "tools", "functions")
    # the messages of a request are what the model read: only the response is its own
    read = [{**m, "train": False} if isinstance(m, dict) and m.get("role") == "assistant" else m for m in messages]
    reply = _reply(answered)
    used = (*sum(_SIDES, ()), "completion", "choices", "messages", "system", "tools", "functions")
    return conversation([*(read if reply else messages), *reply], record, *used, tools=tools)


def _is_message(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("role"), str)
        and any(key in record for key in ("content", "tool_calls", "function_call"))
        and "messages" not in record
    )


def _read_messages(records: list[Any]) -> Trajectory:
    return conversation(records, {})


SOURCES = (
    Source("sad", "sad trajectories", _is_native, _read_native),
    Source("message-lines", "chat messages of one conversation", _is_message, _read_messages, grouped_in_file),
    Source("openai", "chat conversations (OpenAI messages)", _is_chat, _read_native),
    Source("openai-exchange", "requests with their responses (OpenAI or Anthropic)", _is_exchange, _read_exchange),
)
