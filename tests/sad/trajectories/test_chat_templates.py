"""Five conversations with every chat template of shared/data/chat/templates: labelled right, or refused truly."""

from __future__ import annotations

from pathlib import Path

import pytest

import sad
from tests.sad.trajectories.chat_templates import CONVERSATIONS, END, START, Cell, judge, page, table, thinks, tokenizer_of

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT.parent / "shared/data/chat/templates"

ONE_CALL = (  # a template that knows one call per message, as those of gpt-oss and Llama 3.1
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call only') }}{% endif %}<tool_call>{{ m.tool_calls[0].function | tojson }}</tool_call>"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THOUGHT = (  # a template that drops thoughts, but asks for one, as that of DeepSeek R1
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ONE_PLACE = (  # a template with one place for a thought and a text before a call, as that of gpt-oss
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% if m.content and m.thinking %}"
    "{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}<think>{{ m.thinking or m.content }}</think>"
    "<tool_call>{{ m.tool_calls[0].function | tojson }}</tool_call>{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_TEXT = ONE_PLACE.replace("{{ raise_exception('Cannot pass both content and thinking') }}", "")
CALLS_FIRST = (  # a template that writes the calls before the text, as that of Gemma 4
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Cell]]:
    if not TEMPLATES.is_dir():
        pytest.skip("needs the folder shared/data/chat/templates")
    return table(TEMPLATES)


def test_no_cell_is_wrong(cells):
    wrong = [(name, cell.reason) for name, row in cells.items() for cell in row if cell.verdict == "wrong"]
    assert not wrong


def test_templates_that_think_label_all_conversations(cells):
    refused = [name for name, row in cells.items() if thinks(name) and any(cell.verdict != "labelled" for cell in row)]
    assert sum(map(thinks, cells)) >= 20
    assert not refused


def test_table_of_the_docs(cells):
    written = (ROOT / "docs/chat_templates.md").read_text(encoding="utf-8")
    assert written.partition(START)[2].partition(END)[0].strip() == page(cells)


@pytest.mark.parametrize("fault", ["late", "early", "kind"])
def test_the_judge_sees_faults(fault, monkeypatch):
    """Wrong labels are found: a start one word late, a header that is labelled, thoughts as actions."""
    tokenizer = tokenizer_of("qwen", CALLS_FIRST)
    encode_all = sad.encode_all
    assert judge(tokenizer, CONVERSATIONS[1]).verdict == "labelled"

    def spoiled(*args, **options):
        corpus = encode_all(*args, **options)
        for example in corpus.examples:
            labels = example["span_ids"]
            first = next(i for i, label in enumerate(labels) if label)
            if fault == "late":
                labels[first : first + 12] = [0] * 12
            elif fault == "early":
                labels[first - 3 : first] = [1] * 3
            else:
                labels[:] = [2 if label else 0 for label in labels]
        return corpus

    monkeypatch.setattr(sad, "encode_all", spoiled)
    assert judge(tokenizer, CONVERSATIONS[1]).verdict == "wrong"


def spans(template, messages, tools=None):
    tokenizer = tokenizer_of("qwen", template)
    found = sad.Trajectory(messages=messages, extra={"tools": tools}).segmented(tokenizer=tokenizer)
    return [(found.text[span.start : span.end], span.kind) for span in found.spans], found


def call(name, of):
    return {"id": of, "function": {"name": name, "arguments": {}}}


def test_parallel_calls_of_a_template_with_one_call_per_message():
    """Each result follows the call with its id, whatever the order of the results."""
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call("look", "a"), call("open", "b")]},
        {"role": "tool", "content": "an open door", "tool_call_id": "b"},
        {"role": "tool", "content": "a view", "tool_call_id": "a"},
        {"role": "assistant", "content": "Done."},
    ]
    found, segmentation = spans(ONE_CALL, messages)
    assert ["look" in found[0][0], "open" in found[1][0], "Done." in found[2][0]] == [True] * 3
    assert {kind for _, kind in found} == {sad.Span.ACT}
    order = [segmentation.text.index(part) for part in ("look", "a view", "open", "an open door", "Done.")]
    assert order == sorted(order)
    assert "one call per message" in segmentation.unparsed[0].reason


def test_thought_after_a_generation_prompt_that_opens_it():
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "First.", "reasoning_content": "I think."},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>\nAgain.\n</think>\n\nSecond."},
    ]
    found, segmentation = spans(OPENS_THOUGHT, messages)
    assert found == [
        ("<think>\nI think.\n</think>\n\n", sad.Span.REASON),
        ("First.<|im_end|>", sad.Span.ACT),
        ("<think>\nAgain.\n</think>\n\n", sad.Span.REASON),
        ("Second.<|im_end|>", sad.Span.ACT),
    ]
    assert "I think" not in segmentation.text[segmentation.starts[1] :]


@pytest.mark.parametrize("thought", [None, "I think."])
def test_calls_that_the_template_writes_before_the_text(thought):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Looking.", "reasoning_content": thought, "tool_calls": [call("look", "a")]},
    ]
    found, _ = spans(CALLS_FIRST, messages)
    assert found[-2:] == [
        ('<tool_call>{"name": "look", "arguments": {}}</tool_call>', sad.Span.ACT),
        ("Looking.<|im_end|>", sad.Span.REASON),
    ]
    assert [text for text, _ in found[:-2]] == (["<think>I think.</think>"] if thought else [])


def test_a_template_with_one_place_for_thought_and_text():
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Looking.", "reasoning_content": "I think.", "tool_calls": [call("look", "a")]},
    ]
    found, segmentation = spans(ONE_PLACE, messages)
    assert found == [
        ("<think>I think.\n\nLooking.</think>", sad.Span.REASON),
        ('<tool_call>{"name": "look", "arguments": {}}</tool_call><|im_end|>', sad.Span.ACT),
    ]
    assert "one place for a thought and a text before a call" in segmentation.unparsed[0].reason
    with pytest.raises(
        sad.InputError, match="it has no place for the text"
    ):  # one that drops the text does not ask for this
        spans(DROPS_TEXT, messages)


def test_a_think_block_goes_to_the_key_of_a_template_without_such_tags():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}[{{ m.thinking }}]{% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thought = "<think>\nI think.\n</think>\n\nDone."
    found, segmentation = spans(template, [{"role": "user", "content": "one"}, {"role": "assistant", "content": thought}])
    assert "<think>" not in segmentation.text and [kind for _, kind in found] == [sad.Span.REASON, sad.Span.ACT]
