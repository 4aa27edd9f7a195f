"""The marks of chat templates in rendered text: ChatML, Llama 3, harmony and others."""

from __future__ import annotations

import re
from typing import NamedTuple


class Dialect(NamedTuple):
    """The marks of a family of chat templates.

    Args:
        name: The name in messages.
        turn: Matches the header of any turn.
        assistant: Matches the header of an assistant turn; a group `thought` matches if the turn is a thought.
        end: Matches the end mark of a turn.
        tokens: Special tokens that a tokenizer of this family has.
        head_end: Matches the end of the header of a turn.
        calls: Marks in a turn after which it consists of tool calls.
    """

    name: str
    turn: re.Pattern[str]
    assistant: re.Pattern[str]
    end: re.Pattern[str]
    tokens: tuple[str, ...]
    head_end: re.Pattern[str]
    calls: tuple[str, ...] = ()


def _dialect(
    name: str, turn: str, assistant: str, end: str, tokens: tuple[str, ...], head_end: str, calls: tuple[str, ...] = ()
) -> Dialect:
    return Dialect(name, *map(re.compile, (turn, assistant, end)), tokens, re.compile(head_end), calls)


DIALECTS = (
    _dialect(
        "harmony",
        r"<\|start\|>",
        r"<\|start\|>assistant(?P<head>[^<]{0,200}(?:<\|(?:channel|constrain)\|>[^<]{0,200}){0,3})<\|message\|>",
        r"<\|(?:end|call|return)\|>",
        ("<|start|>", "<|message|>"),
        r"<\|message\|>",
    ),
    _dialect(
        "ChatML",
        r"<\|im_start\|>",
        r"<\|im_start\|>assistant[^\n<]{0,80}\n",
        r"<\|im_end\|>",
        ("<|im_start|>", "<|im_end|>"),
        r"\n",
    ),
    _dialect(
        "Llama 3",
        r"<\|start_header_id\|>",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n{0,2}",
        r"<\|(?:eot_id|eom_id|end_of_text)\|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
        r"<\|end_header_id\|>\n{0,2}",
        ("<|python_tag|>",),
    ),
    _dialect(
        "Llama 4",
        r"<\|header_start\|>",
        r"<\|header_start\|>assistant<\|header_end\|>\n{0,2}",
        r"<\|(?:eot|eom|end_of_text)\|>",
        ("<|header_start|>", "<|header_end|>"),
        r"<\|header_end\|>\n{0,2}",
        ("<|python_start|>",),
    ),
    _dialect(
        "Granite",
        r"<\|start_of_role\|>",
        r"<\|start_of_role\|>assistant[^<\n]{0,200}<\|end_of_role\|>",
        r"<\|end_of_text\|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        r"<\|end_of_role\|>",
        ("<|tool_call|>",),
    ),
    _dialect(
        "DeepSeek",
        r"<｜(?:User|Assistant)｜>|<｜tool▁outputs▁(?:begin|end)｜>|<｜tool▁output▁begin｜>",
        r"<｜Assistant｜>|<｜tool▁outputs▁end｜>(?!<｜Assistant｜>)|<｜tool▁output▁end｜>(?!\s*<｜)",
        r"<｜end▁of▁sentence｜>|<｜tool▁output▁end｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        r"",
        ("<｜tool▁calls▁begin｜>",),
    ),
    _dialect(
        "Gemma",
        r"<start_of_turn>",
        r"<start_of_turn>model\n",
        r"<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        r"\n",
    ),
    _dialect(
        "Gemma 4",
        r"<\|turn>",
        r"<\|turn>model\n",
        r"<turn\|>|<\|tool_response>",
        ("<|turn>", "<turn|>"),
        r"\n",
        ("<|tool_call>",),
    ),
    _dialect(
        "Kimi",
        r"<\|im_(?:user|assistant|system)\|>",
        r"<\|im_assistant\|>[^<\n]{0,80}<\|im_middle\|>",
        r"<\|im_end\|>",
        ("<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
        r"<\|im_middle\|>",
        ("<|tool_calls_section_begin|>",),
    ),
    _dialect(
        "Cohere",
        r"<\|START_OF_TURN_TOKEN\|>",
        r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
        ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        r"<\|(?:USER|SYSTEM)_TOKEN\|>",
    ),
    _dialect(
        "Phi and GLM",
        r"<\|(?:user|assistant|system|observation|tool)\|>",
        r"<\|assistant\|>\n?",
        r"<\|end\|>|<\|endoftext\|>|</s>",
        ("<|user|>", "<|assistant|>"),
        r"\n?",
    ),
    _dialect(
        "Mistral and Llama 2",
        r"\[INST\]|\[TOOL_RESULTS\]",
        r"\[/INST\]|\[/TOOL_RESULTS\]",
        r"</s>",
        ("</s>",),
        r"",
        ("[TOOL_CALLS]",),
    ),
)


def find_dialect(text: str) -> Dialect | None:
    """Returns the dialect whose header of an assistant turn is in the text; None without one."""
    marks = ("<|", "<｜", "<start_of_turn>", "[/INST]", "[/TOOL_RESULTS]")
    if not any(mark in text for mark in marks):
        return None
    return next((dialect for dialect in DIALECTS if dialect.assistant.search(text)), None)
