"""A prompt beside what the model wrote: rows of TRL, rollouts of verl and slime, rankings. The prompt has no labels."""

from __future__ import annotations

from typing import Any

from sad.errors import InputError
from sad.trajectories.content import split_content
from sad.trajectories.dialects import find_dialect
from sad.trajectories.formats import ChatFormat, get_format
from sad.trajectories.json_values import absent, first_of
from sad.trajectories.messages import shown
from sad.trajectories.normalize import ROLES
from sad.trajectories.pieces import spans_of
from sad.trajectories.sources.base import Source, conversation, is_dict_list, refuse_undesired
from sad.trajectories.trajectory import Trajectory, from_record

_PAIRS = (("prompt", "completion"), ("prompt", "chosen"), ("prompt", "response"), ("input", "output"), ("prompt", "output"))


def _completed(record: Any) -> dict[str, Any] | None:
    """Returns the prompt and the completion in a log of the completions API or of vLLM; None for another value."""
    if not isinstance(record, dict):
        return None
    request, response = (record[key] if isinstance(record.get(key), dict) else record for key in ("request", "response"))
    choices = first_of(response, "choices", "outputs")
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not is_dict_list(choices) or not isinstance(choices[0].get("text"), str):
        return None
    kept = {key: value for key, value in record.items() if key not in ("request", "response", "choices", "outputs")}
    return {**kept, "prompt": prompt, "completion": choices[0]["text"]}


def _pair(record: Any) -> tuple[str, str] | None:
    if not isinstance(record, dict) or isinstance(record.get("text"), str) or "messages" in record:
        return None
    for prompt, completion in _PAIRS:
        sides = (record.get(prompt), record.get(completion))
        if all(isinstance(side, str) or (is_dict_list(side) and "role" in side[0]) for side in sides):
            return prompt, completion
    return None


def _check_mask(record: dict[str, Any], completion: Any) -> None:
    """Refuses a mask of tokens that excludes some: the text alone does not tell which characters they are."""
    for key in ("loss_mask", "response_mask", "completion_mask"):
        mask = record.get(key)
        if isinstance(mask, list) and any(not value for value in mask):
            remedy = (
                "Mark the observations in the text with tags such as <tool_response>, or give `spans`, and drop the key."
            )
            raise InputError(key, "a mask without zeros, which text cannot express", shown(mask), remedy)


def _read(record: dict[str, Any]) -> Trajectory:
    pair = _pair(record)
    if pair is None:
        known = ", ".join(" + ".join(names) for names in _PAIRS)
        raise InputError("prompt", f"text or messages under {known}", shown(record), "Rename the keys.")
    prompt, completion = (record[key] for key in pair)
    _check_mask(record, completion)
    refuse_undesired(record, "label", "kto_tag")
    used = (*pair, "rejected", "loss_mask", "response_mask", "completion_mask")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _read_text(record, prompt, completion, used)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    written = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if len(written) > len(asked) and written[: len(asked)] == asked:  # preferences repeat the prompt
        written = written[len(asked) :]
    elif isinstance(prompt, str) and any(message.get("content") == prompt for message in written):  # all of it
        asked, written = _parted(written, record.get("rejected"))
    return conversation([*_untrained(asked), *written], record, *used)


def _untrained(messages: list[Any]) -> list[Any]:
    return [{**message, "train": False} if isinstance(message, dict) else message for message in messages]


def _parted(chosen: list[Any], rejected: Any) -> tuple[list[Any], list[Any]]:
    """Parts a conversation into a prompt and an answer: the prompt is what both conversations begin with.

    Without another conversation the prompt ends before the first message of the assistant.
    """
    if is_dict_list(rejected):
        same = next((number for number, pair in enumerate(zip(chosen, rejected)) if pair[0] != pair[1]), len(chosen))
    else:
        roles = [ROLES.get(str(message.get("role")).lower()) for message in chosen]
        same = roles.index("assistant") if "assistant" in roles else 0
    same = min(same, len(chosen) - 1)
    return chosen[:same], chosen[same:]


def _is_preference(record: Any) -> bool:
    """Returns whether a row holds two answers: two whole conversations, or OpenAI's `preferred_output`."""
    if not isinstance(record, dict) or any(record.get(key) is not None for key in ("prompt", "messages", "text")):
        return False
    asked = record.get("input")
    if is_dict_list(record.get("preferred_output")):
        return isinstance(asked, dict) and is_dict_list(asked.get("messages"))
    return all(is_dict_list(record.get(key)) and "role" in record[key][0] for key in ("chosen", "rejected"))


def _read_preference(record: dict[str, Any]) -> Trajectory:
    used = ("chosen", "rejected", "input", "preferred_output", "non_preferred_output", "tools")
    if "preferred_output" in record:
        asked, written = record["input"]["messages"], record["preferred_output"]
        tools = record["input"].get("tools")
    else:
        asked, written = _parted(record["chosen"], record["rejected"])
        tools = record.get("tools")
    return conversation([*_untrained(asked), *written], record, *used, tools=tools)


def _read_text(record: dict[str, Any], prompt: str, completion: str, used: tuple[str, ...]) -> Trajectory:
    rest = {key: value for key, value in record.items() if key not in used}
    text = prompt + completion
    if absent(record.get("format")) and absent(record.get("spans")) and find_dialect(text) is None and completion.strip():
        chat = get_format("chat")
        assert isinstance(chat, ChatFormat)
        split = split_content(completion, chat, calls_follow=False, thoughts_apart=False)
        spans = spans_of(split.pieces, include_prefix=True)
        rest["spans"] = [[s + len(prompt), e + len(prompt), int(kind)] for s, e, kind in spans]
    return from_record({**rest, "text": text, "prompt_chars": len(prompt)})


SOURCES = (
    Source("trl", "prompts with completions", lambda record: _pair(record) is not None, _read),
    Source(
        "completions",
        "prompts with completions (completions API, vLLM)",
        lambda record: _completed(record) is not None,
        lambda record: _read(_completed(record) or {}),
    ),
    Source("preferences", "rankings of two answers", _is_preference, _read_preference),
)
