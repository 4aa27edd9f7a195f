"""smolagents: the steps of an agent's memory, as `agent.memory.get_full_steps()` returns them."""

from __future__ import annotations

from typing import Any

from sad.trajectories.json_values import absent, first_of
from sad.trajectories.sources.base import Source, conversation, grouped_in_file, is_dict_list, text_or, with_system
from sad.trajectories.trajectory import Trajectory

_STEP_KEYS = ("model_output", "tool_calls", "observations", "code_action", "model_output_message")


def _is_step(value: Any) -> bool:
    if not isinstance(value, dict) or "role" in value or "messages" in value:
        return False
    action = "step_number" in value and any(key in value for key in _STEP_KEYS)
    return action or set(value) in ({"task", "task_images"}, {"system_prompt"}) or ("plan" in value and "timing" in value)


def _is_run(record: Any) -> bool:
    steps = record.get("steps") if isinstance(record, dict) else None
    return is_dict_list(steps) and all(map(_is_step, steps[:3])) and any("step_number" in step for step in steps)


def _output(step: dict[str, Any]) -> Any:
    message = step.get("model_output_message")
    return first_of(step, "model_output") or (message.get("content") if isinstance(message, dict) else None)


def _system_prompt(steps: list[dict[str, Any]]) -> Any:
    """Returns the system prompt that the model read in its first step."""
    for step in steps:
        for message in step.get("model_input_messages") or ():
            if isinstance(message, dict) and message.get("role") == "system":
                return message.get("content")
    return None


def _messages(steps: list[Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for step in steps:
        if "system_prompt" in step:
            messages.append({"role": "system", "content": step["system_prompt"]})
        elif "task" in step:
            messages.append({"role": "user", "content": f"New task:\n{text_or(step['task'])}"})
        elif "plan" in step:
            messages.append({"role": "assistant", "content": step["plan"], "spans": _whole(step["plan"])})
            messages.append({"role": "user", "content": "Now proceed and carry out this plan."})
        elif "step_number" in step:
            written = _output(step)
            called = absent(step.get("code_action")) and not absent(step.get("tool_calls"))
            message: dict[str, Any] = {"role": "assistant", "content": written}
            if called:
                message["tool_calls"] = step["tool_calls"]
            if called or not absent(written):
                messages.append(message)
            seen = [f"Observation:\n{step['observations']}"] if not absent(step.get("observations")) else []
            error = step.get("error")
            seen += [f"Error:\n{first_of(error, 'message') or error}" if isinstance(error, dict) else ""] if error else []
            messages += [{"role": "tool" if called else "user", "content": text} for text in seen if text]
    return messages


def _whole(text: Any) -> list[list[Any]] | None:
    return [[0, len(text), "reason"]] if isinstance(text, str) and text else None


def _read_steps(steps: list[Any]) -> Trajectory:
    return conversation(with_system(_messages(steps), _system_prompt(steps)), {})


def _read_run(record: dict[str, Any]) -> Trajectory:
    steps = record["steps"]
    system = first_of(record, "system_prompt") or _system_prompt(steps)
    messages = _messages(steps)
    if isinstance(record.get("task"), str) and not any(message["role"] == "user" for message in messages[:2]):
        messages = [{"role": "user", "content": record["task"]}, *messages]
    return conversation(with_system(messages, system), record, "steps", "system_prompt", "messages", "timing", "token_usage")


SOURCES = (
    Source("smolagents-steps", "steps of one smolagents run", _is_step, _read_steps, grouped_in_file),
    Source("smolagents", "smolagents runs", _is_run, _read_run),
)
