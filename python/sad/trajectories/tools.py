"""Brings the tool descriptions of every source to the form that chat templates expect."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent, parsed
from sad.trajectories.messages import shown


def normalize_tools(tools: Any, where: str = "tools") -> list[Any] | None:
    """Returns tool descriptions as templates expect them: {"type": "function", "function": {...}}.

    Args:
        tools: The descriptions as a list or as JSON text; Anthropic's `input_schema` and bare functions are wrapped.
        where: The location for error messages.

    Raises:
        InputError: The tools are no list of objects.
    """
    value = parsed(tools) if isinstance(tools, str) and tools.strip() else tools
    remedy = "Write a list of tool descriptions, or its JSON text."
    if absent(value) or value == "":
        if isinstance(tools, str) and tools.strip() and value is None and tools.strip() != "null":
            raise InputError(where, "a JSON list of tools", shown(tools), remedy)
        return None
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, (list, tuple)):
        raise InputError(where, "a list of tools", shown(tools), remedy)
    return [_tool(tool, f"{where}[{number}]") for number, tool in enumerate(value)]


def _tool(tool: Any, where: str) -> Any:
    if callable(tool):  # transformers makes a description of a Python function
        return tool
    tool = parsed(tool) if isinstance(tool, str) else tool
    if not isinstance(tool, dict):
        raise InputError(where, "an object that describes a tool", shown(tool), "Write its name, description, parameters.")
    if isinstance(tool.get("function"), dict) or not isinstance(tool.get("name"), str):
        return tool
    known = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    if "parameters" not in known and isinstance(tool.get("input_schema"), dict):
        known["parameters"] = tool["input_schema"]
    if "parameters" not in known:
        rest = {key: value for key, value in tool.items() if key not in (*known, "type", "input_schema", "cache_control")}
        known |= rest
    return {"type": "function", "function": known}
