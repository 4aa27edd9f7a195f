"""Gemini: `contents` with parts, as requests, tuning files and logs hold them."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import first_of, to_json
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, is_dict_list
from sad.trajectories.trajectory import Trajectory


def _is_gemini(record: Any) -> bool:
    contents = record.get("contents") if isinstance(record, dict) else None
    return is_dict_list(contents) and all("parts" in content for content in contents)


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not is_dict_list(parts):
        raise InputError(where, "an object with a list of parts", shown(content), "Fix or remove it.")
    return parts


def _messages(content: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns the messages of one content: results of functions are messages of their own."""
    role = "assistant" if content.get("role") == "model" else "user"
    texts, thoughts, calls, found = [], [], [], []
    for number, part in enumerate(_parts(content, where)):
        call = first_of(part, "functionCall", "function_call")
        result = first_of(part, "functionResponse", "function_response")
        if isinstance(call, dict):
            calls.append(call)
        elif isinstance(result, dict):
            response = result.get("response")
            text = response if isinstance(response, str) else to_json(response, where)
            found.append({"role": "tool", "name": result.get("name"), "content": text})
        elif isinstance(part.get("text"), str):
            (thoughts if part.get("thought") is True else texts).append(part["text"])
        elif set(part) - {"thoughtSignature", "thought_signature", "thought"}:
            remedy = "Convert it to text, a functionCall or a functionResponse, or remove it."
            raise InputError(f"{where}.parts[{number}]", "a part with text or a function", shown(part), remedy)
    if texts or thoughts or calls or not found:
        message: dict[str, Any] = {"role": role, "content": "".join(texts)}
        found.append(message | ({"reasoning_content": "".join(thoughts)} if thoughts else {}))
        if calls:
            message = found[-1]
            message["tool_calls"] = calls
    return found


def _tools(tools: Any) -> Any:
    """Returns the declared functions of all tools."""
    if not is_dict_list(tools):
        return tools
    lists = [first_of(tool, "functionDeclarations", "function_declarations") for tool in tools]
    return [declared for found in lists if is_dict_list(found) for declared in found] or None


def _read(record: dict[str, Any]) -> Trajectory:
    messages = [
        message for number, content in enumerate(record["contents"]) for message in _messages(content, f"contents[{number}]")
    ]
    system = first_of(record, "systemInstruction", "system_instruction")
    if isinstance(system, dict):
        texts = [part.get("text") for part in _parts(system, "systemInstruction")]
        messages = [{"role": "system", "content": "".join(text for text in texts if isinstance(text, str))}, *messages]
    used = ("contents", "systemInstruction", "system_instruction", "tools")
    return conversation(messages, record, *used, tools=_tools(record.get("tools")))


SOURCES = (Source("gemini", "Gemini contents", _is_gemini, _read),)
