"""What a model wrote in one message, split into thoughts and actions."""

from __future__ import annotations

import time

import pytest

from sad.trajectories.content import split_content
from sad.trajectories.formats import get_format
from sad.trajectories.rendered import find_dialect, segment_rendered
from sad.trajectories.spans import SpanKind

N, R, A = SpanKind.NONE, SpanKind.REASON, SpanKind.ACT


def pieces(text: str, calls_follow: bool = False, thoughts_apart: bool = False) -> list[tuple[SpanKind, str]]:
    found = split_content(text, get_format("chat"), calls_follow=calls_follow, thoughts_apart=thoughts_apart)
    assert "".join(text[p.start : p.end] for p in found.pieces) == (text if text.strip() else "")
    return [(p.kind, text[p.start : p.end].strip()) for p in found.pieces]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 4.", [(A, "It is 4.")]),
        ("<think>\na\n</think>\n\nb", [(R, "<think>\na\n</think>"), (A, "b")]),
        ("a\n</think>\nb", [(R, "a\n</think>"), (A, "b")]),
        ("Use `re.sub('<think>.*?</think>', '')`.", [(A, "Use `re.sub('<think>.*?</think>', '')`.")]),
        ("<thinking>a</thinking><answer>b</answer>", [(R, "<thinking>a</thinking>"), (A, "<answer>b</answer>")]),
        (
            "I look.\n<search>x</search>\n<information>Action: y</information>\nDone.\n<answer>z</answer>",
            [
                (R, "I look."),
                (A, "<search>x</search>"),
                (N, "<information>Action: y</information>"),
                (R, "Done."),
                (A, "<answer>z</answer>"),
            ],
        ),
        (
            "I run it.\n<function=bash>\n<parameter=command>ls</parameter>\n</function>",
            [(R, "I run it."), (A, "<function=bash>\n<parameter=command>ls</parameter>\n</function>")],
        ),
        ("Let me see.\n<tool_call>\n{}\n</tool_call>", [(R, "Let me see."), (A, "<tool_call>\n{}\n</tool_call>")]),
        ("I list.\n```bash\nls\n```", [(R, "I list."), (A, "```bash\nls\n```")]),
        ("```\nx\n```\nis bad.\n```\nls\n```\n", [(R, "```\nx\n```\nis bad."), (A, "```\nls\n```")]),
        ("THOUGHT: I list.\n\n```bash\nls\n```", [(R, "THOUGHT: I list."), (A, "```bash\nls\n```")]),
        ("Thought: a\nCode:\n```py\nf()\n```<end_code>", [(R, "Thought: a"), (A, "Code:\n```py\nf()\n```<end_code>")]),
        ("Thought: a\n<code>\nf()\n</code>", [(R, "Thought: a"), (A, "<code>\nf()\n</code>")]),
        ("**Thought:** a\n\n**Action:** go", [(R, "**Thought:** a"), (A, "**Action:** go")]),
        ("**Thought**: a\n**Action**: go", [(R, "**Thought**: a"), (A, "**Action**: go")]),
        ("### Thought\na\n### Action\ngo", [(R, "### Thought\na"), (A, "### Action\ngo")]),
        ("Thought:\na\nb\n\nAction:\nf(\n1,\n2)", [(R, "Thought:\na\nb"), (A, "Action:\nf(\n1,\n2)")]),
        ("I look.\nAction: go", [(R, "I look."), (A, "Action: go")]),
        ("Thought: a\nAction: b\nObservation: c", [(R, "Thought: a"), (A, "Action: b"), (N, "Observation: c")]),
        ('{"thought": "a", "action": {"name": "b"}}', [(R, '{"thought": "a",'), (A, '"action": {"name": "b"}}')]),
        ('```json\n{"plan": "a", "command": "b"}\n```', [(R, '```json\n{"plan": "a",'), (A, '"command": "b"}\n```')]),
        ('{"city": "Oslo"}', [(A, '{"city": "Oslo"}')]),
        ("  \n ", []),
    ],
)
def test_pieces(text, expected):
    assert pieces(text) == expected


def test_calls_and_thoughts_apart():
    assert pieces("I look.\n```\nx\n```", calls_follow=True) == [(R, "I look.\n```\nx\n```")]
    assert pieces("<think>a</think>b", thoughts_apart=True) == [(A, "<think>a</think>b")]


def test_what_is_not_split_is_reported():
    def reasons(text):
        return [
            item.reason
            for item in split_content(text, get_format("chat"), calls_follow=False, thoughts_apart=False).unparsed
        ]

    assert ["<stdout> is not a known tag" in r for r in reasons("I ran it.\n<stdout>\n4\n</stdout>")] == [True]
    assert reasons("Text.\n<ul>\n<li>a</li>\n</ul>") == reasons("a < b > c") == []
    assert ["does not end the message" in r for r in reasons("So:\n```\nx\n```\nThat is it.")] == [True]
    assert ["no action follows" in r for r in reasons("So I think:\nThought: a")] == [True]


@pytest.mark.parametrize(
    "unit",
    [
        "<a>",
        "<x></x>\n",
        "```\n",
        "````a`",
        "x<think>",
        "<think>\n",
        "Thought: a\nAction: b\n",
        "**",
        "{",
        "<a b ",
        "\n",
        " <code>",
    ],
)
def test_the_time_is_linear(unit):
    """200 kB take under a second. In quadratic time they took from 3 to 20 seconds."""
    text = "<think></think>" + unit * (200_000 // len(unit))
    for _ in range(3):  # a busy machine disturbs a measurement
        start = time.process_time()
        split_content(text, get_format("chat"), calls_follow=False, thoughts_apart=False)
        if time.process_time() - start < 1:
            return
    pytest.fail("more than 1 s, three times")


@pytest.mark.parametrize(
    "unit",
    [
        "<|im_start|>assistant\n",
        "<|im_start|>user\n",
        "<｜Assistant｜>",
        "[/INST]",
        "<|start|>assistant",
        "<start_of_turn>model\n",
    ],
)
def test_the_time_of_rendered_text_is_linear(unit):
    text = "<|im_start|>assistant\nx<|im_end|>" + unit * (200_000 // len(unit))
    start = time.process_time()
    assert find_dialect(text) is not None
    segment_rendered(text, get_format("chat"), None, include_prefix=True)
    assert time.process_time() - start < 1
