"""The time to segment adversarial text is linear in its length, for text formats and rendered chat text."""

from __future__ import annotations

import time

import pytest

import sad
from sad.trajectories.segment import segment

SMALL = 50_000  # characters


def repeated(piece: str):
    return lambda length: piece * (length // len(piece))


def in_a_turn(piece: str):
    return lambda length: f"<|im_start|>assistant\n{piece * (length // len(piece))}<|im_end|>\n"


CASES = {
    "line ends": ("markers", repeated("\n")),
    "prefixes without content": ("react", repeated("Thought:\n")),
    "unknown tags in every turn": ("chat", repeated("<|assistant|>\n<zz>\na\n</zz>\n<|end|>\n")),
    "code blocks in every turn": ("chat", repeated("[/INST]```py\n```\na</s>")),
    "observations before the model": ("chat", in_a_turn("Observation: a\n")),
    "open tags": ("chat", in_a_turn("<think>\n<tool_call>\n")),
    "headers": ("chat", repeated("<|start_header_id|>assistant<|end_header_id|>\n\n")),
    "harmony headers": ("chat", repeated("<|start|>assistant<|channel|>")),
}


def seconds(text: str, format: str) -> float:
    start = time.process_time()
    try:
        segment(text, format)
    except sad.InputError:  # text without a turn
        pass
    return time.process_time() - start


@pytest.mark.parametrize("case", CASES)
def test_four_times_the_text_takes_about_four_times_as_long(case):
    format, make = CASES[case]
    for _ in range(3):  # a busy machine disturbs a measurement
        short, long = (min(seconds(make(length), format) for _ in range(2)) for length in (SMALL, 4 * SMALL))
        if long < 8 * short + 0.02:
            return
    pytest.fail(f"{short:.3f} s for {SMALL} characters, {long:.3f} s for {4 * SMALL}")
