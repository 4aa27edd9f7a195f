"""Segmentation of messages: the assistant's parts in the text that a chat template renders."""

from __future__ import annotations

from itertools import pairwise

import pytest

import sad
from sad.trajectories.encode import encode
from sad.trajectories.segment import segment
from sad.trajectories.tokenizers import read_chat_template

R, A, O = (int(kind) for kind in (sad.Span.REASON, sad.Span.ACT, sad.Span.OBSERVE))

CALLS = (
    "{% for call in m.tool_calls or [] %}{{ '\\n' if not loop.first or m.content }}<tool_call>\n"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}"
)
THINK = "{% if m.reasoning_content is defined and KEEP %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + THINK
    + "{{ m.content or '' }}"
    + CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
KEEPS = CHATML.replace("KEEP", "true")
DROPS = CHATML.replace("KEEP", "loop.last")  # some templates drop the reasoning of earlier turns
INST = (  # no header before the assistant, no end mark after the last turn
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }}"
    "{{ '' if loop.last else ' </s>' }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
EMPTY_THINK = (  # the template writes an empty think block before the last reply
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None = None, thought: str | None = None, calls: tuple[str, ...] = ()) -> dict:
    message: dict = {"role": "assistant", "content": text}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": {"q": "mug"}}} for n in calls]
    return message


@pytest.fixture
def spans_of(make_tokenizer):
    def spans_of(messages, template: str, **options) -> list[tuple[int, str]]:
        found = segment(messages, "chat", tokenizer=make_tokenizer(chat_template=template), **options)
        return [(int(kind), found.text[start:end]) for start, end, kind in found.spans]

    return spans_of


@pytest.fixture
def observed(make_tokenizer):
    def observed(messages, template: str) -> list[str]:
        found = segment(messages, "chat", tokenizer=make_tokenizer(chat_template=template))
        everything = sorted(found.spans + found.observations)
        assert all(a.end <= b.start for a, b in pairwise(everything))
        assert {span.kind for span in found.observations} <= {O}
        return [found.text[start:end] for start, end, _ in found.observations]

    return observed


CALL = '<tool_call>\n{"name": "look", "arguments": {"q": "mug"}}\n</tool_call>'


def test_reasoning_calls_and_answer(spans_of):
    messages = [
        user("find the mug"),
        assistant(thought="I should look.", calls=("look",)),
        {"role": "tool", "content": "look: a mug. I should look."},
        assistant("Now I take it.", calls=("take",)),
        {"role": "tool", "content": "taken"},
        assistant("It is on the desk.", thought="Done."),
    ]
    assert spans_of(messages, KEEPS) == [
        (R, "<think>\nI should look.\n</think>\n\n"),
        (A, CALL + "<|im_end|>"),
        (R, "Now I take it.\n"),  # visible text before calls is reasoning
        (A, CALL.replace("look", "take") + "<|im_end|>"),
        (R, "<think>\nDone.\n</think>\n\n"),
        (A, "It is on the desk.<|im_end|>"),  # visible text without calls is the answer
    ]
    assert spans_of(messages[:2], KEEPS, include_prefix=False) == [
        (R, "I should look.\n</think>\n\n"),
        (A, CALL.removeprefix("<tool_call>\n") + "<|im_end|>"),
    ]


def test_repeated_words_are_found_in_their_own_turn(spans_of):
    messages = [m for _ in range(20) for m in (user("look"), assistant(thought="look", calls=("look", "look")))]
    text = "".join(part for _, part in spans_of(messages, KEEPS))
    assert text.count("<think>\nlook\n</think>") == 20 and text.count("<tool_call>") == 40
    assert len(spans_of(messages, KEEPS)) == 40


def test_think_tags_in_the_content(spans_of):
    messages = [user("q"), assistant("<think>a</think>b"), user("r"), assistant("c</think>\n\nd")]
    assert spans_of(messages, KEEPS) == [
        (R, "<think>a</think>"),
        (A, "b<|im_end|>"),
        (R, "c</think>\n\n"),
        (A, "d<|im_end|>"),
    ]


def test_visible_text_with_prefixes_is_segmented_by_line(spans_of):
    messages = [
        user("room"),
        assistant("Thought: a mug\nAction: take mug"),
        user("ok"),
        assistant("Reasoning: x\nAnswer: y"),
    ]
    assert spans_of(messages, KEEPS) == [
        (R, "Thought: a mug\n"),
        (A, "Action: take mug<|im_end|>"),
        (R, "Reasoning: x\n"),
        (A, "Answer: y<|im_end|>"),
    ]
    # the first line has no prefix, so the whole text is one action
    assert spans_of([user("q"), assistant("The result:\nAnswer: 4")], KEEPS) == [(A, "The result:\nAnswer: 4<|im_end|>")]


def test_templates_without_headers_or_end_marks(spans_of):
    messages = [user("q"), assistant("<think>a</think>b"), user("r"), assistant("c")]
    assert spans_of(messages, INST) == [(R, "<think>a</think>"), (A, "b </s>"), (A, "c")]
    assert spans_of(messages, PLAIN) == [(R, "<think>a</think>"), (A, "b\n"), (A, "c\n")]


def test_other_end_marks(spans_of):
    """Calls with their own end mark, so that the tool's result is not labelled; a turn that has only reasoning."""
    own_end = KEEPS.replace("<|im_end|>", "{{ '<|eom|>' if m.tool_calls is defined else '<|im_end|>' }}")
    messages = [user("q"), assistant(calls=("look",)), {"role": "tool", "content": "a mug"}, assistant("ok")]
    assert spans_of(messages, own_end) == [(A, CALL + "<|eom|>"), (A, "ok<|im_end|>")]
    closed = KEEPS.replace("</tool_call>", "</tool_call><|eom|>\n")
    assert spans_of(messages, closed)[0] == (A, CALL + "<|eom|>\n<|im_end|>")
    assert spans_of([user("q"), assistant(thought="why")], KEEPS) == [(R, "<think>\nwhy\n</think>\n\n<|im_end|>")]


def test_empty_think_block_of_the_template_is_not_labelled(spans_of):
    messages = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert spans_of(messages, EMPTY_THINK) == [(A, "a<|im_end|>"), (A, "b<|im_end|>")]


def test_template_that_drops_earlier_thoughts_gives_one_example_per_turn(make_tokenizer):
    """Each turn is labelled where the template shows it as at inference: with its thought, and earlier turns without."""
    messages = [user("q"), assistant("a", thought="why"), user("why"), assistant("b", thought="so")]
    tokenizer = make_tokenizer(chat_template=DROPS)
    found = segment(messages, "chat", tokenizer=tokenizer)
    first, second = found.examples()
    assert [(int(kind), first.text[s:e]) for s, e, kind in first.spans] == [
        (R, "<think>\nwhy\n</think>\n\n"),
        (A, "a<|im_end|>"),
    ]
    assert [(int(kind), second.text[s:e]) for s, e, kind in second.spans] == [
        (R, "<think>\nso\n</think>\n\n"),
        (A, "b<|im_end|>"),
    ]
    assert "a<|im_end|>" in second.text and first.text + second.text == found.text
    corpus = sad.encode_all([sad.Trajectory("t", messages=messages)], tokenizer)
    assert corpus.ids == ["t", "t"] and len(corpus.examples) == 2
    with pytest.raises(sad.InputError, match="expected messages that make one example, got 2 examples"):
        encode(messages, tokenizer)


def labelled(text, tokenizer_output):
    return [(int(kind), text[s:e]) for s, e, kind in tokenizer_output]


def test_unroll_decides_how_many_examples_a_conversation_makes(make_tokenizer):
    messages = [user("q"), assistant("a", thought="why"), user("r"), assistant("b"), user("s"), assistant("c", thought="so")]
    whole = [(R, "<think>\nwhy\n</think>\n\n"), (A, "a<|im_end|>"), (A, "b<|im_end|>")]
    whole += [(R, "<think>\nso\n</think>\n\n"), (A, "c<|im_end|>")]
    parts = {}
    for template, name in ((KEEPS, "keeps"), (DROPS, "drops")):
        tokenizer = make_tokenizer(chat_template=template)
        for unroll in ("auto", "never", "always"):
            found = segment(messages, "chat", tokenizer=tokenizer, unroll=unroll)
            parts[name, unroll] = [labelled(part.text, part.spans) for part in found.examples()]
            if unroll == "always":
                assert [part.text[s:e] for part in found.examples() for s, e, _ in part.observations] == (
                    ["r", "s"] if name == "keeps" else ["s"]
                )
                assert found.unparsed == []
    assert parts["keeps", "auto"] == parts["keeps", "never"] == [whole]
    assert parts["keeps", "always"] == parts["drops", "always"] == [whole[:2], whole[2:3], whole[3:]]
    assert parts["drops", "auto"] == [whole[:2], whole[2:]]
    assert parts["drops", "never"] == [whole[2:]]
    [report] = segment(messages, "chat", tokenizer=tokenizer, unroll="never").unparsed
    assert "messages[1]: the chat template drops or rewrites it" in report.reason
    corpora = [
        sad.encode_all([sad.Trajectory("t", messages=messages)], tokenizer, unroll=unroll).summary()
        for unroll in ("auto", "always", "never")
    ]
    assert "1 trajectories in 2 examples (1 unrolled by turn, see --unroll)" in corpora[0]
    assert "in 3 examples" in corpora[1] and corpora[2].startswith("1 trajectories, ")
    with pytest.raises(sad.InputError, match="unroll: expected one of auto, never, always, got 'yes'"):
        segment(messages, "chat", tokenizer=tokenizer, unroll="yes")


def test_a_chat_template_from_a_file(tmp_path):
    path = tmp_path / "keeps.jinja"
    for template in (
        KEEPS,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    ):
        path.write_text(template)
        assert read_chat_template(path) == template
    for content, message in (("{% for %}", "a Jinja template"), (None, "a file with a chat template")):
        path.write_text(content) if content else path.unlink()
        with pytest.raises(sad.InputError, match=f"chat_template: expected {message}, got .*keeps.jinja"):
            read_chat_template(path)


def test_template_that_drops_or_rewrites_a_message_raises(spans_of):
    messages = [user("q"), assistant("a", thought="why"), user("why"), assistant("b", thought="so")]
    with pytest.raises(
        sad.InputError, match=r"messages\[1\]: expected its reasoning .* without 'why'\. .*drops or rewrites"
    ):
        spans_of(messages, DROPS.replace("loop.last", "false").replace("<think>\n{% endif %}", "{% endif %}"))
    with pytest.raises(sad.InputError, match=r"messages\[1\]: expected its text"):
        spans_of([user("q"), assistant("Loud")], KEEPS.replace("m.content or ''", "(m.content or '') | upper"))
    with pytest.raises(sad.InputError, match=r"messages\[1\]: expected its calls"):
        spans_of([user("q"), assistant("a", calls=("look",))], PLAIN)


def test_observations_are_the_messages_that_answer_the_model(observed):
    """Not the system prompt, the task, or an instruction in the middle. Repeated words are found in their own message."""
    messages = [
        {"role": "system", "content": "You are an agent."},
        user("find the mug"),
        user("in the room"),
        assistant("look", calls=("look",)),
        {"role": "tool", "content": "look"},
        assistant(calls=("take",)),
        {"role": "tool", "content": [{"type": "text", "text": "taken: "}, {"type": "text", "text": "mug"}]},
        {"role": "system", "content": "Hurry."},
        assistant("done"),
        user("  and the lamp?\n"),
        user(""),
    ]
    joined = [{**m, "content": "taken: mug"} if isinstance(m["content"], list) else m for m in messages]
    assert observed(joined, KEEPS) == ["look", "taken: mug", "and the lamp?"]
    assert observed(messages[:4], KEEPS) == []
    chat = [user("q"), assistant("a b"), user("b"), assistant("c")]
    assert observed(chat, INST) == observed(chat, PLAIN) == ["b"]


def test_observations_that_a_template_writes_as_json_or_drops(observed):
    result = 'a "mug"\n日'
    messages = [user("q"), assistant(calls=("look",)), {"role": "tool", "content": result}, assistant(result)]
    quoted = KEEPS.replace("{{ m.content or '' }}", "{{ m.content | tojson if m.role == 'tool' else m.content or '' }}")
    assert observed(messages, quoted) == ['a \\"mug\\"\\n日']
    no_tool = KEEPS.replace("{{ m.content or '' }}", "{{ '' if m.role == 'tool' else m.content or '' }}")
    assert observed(messages, no_tool) == []  # and not the same words in the next turn
    dropped = PLAIN.replace("{{ m.content }}", "{{ '-' if m.role == 'tool' else m.content }}")
    assert observed([user("q"), assistant("a"), {"role": "tool", "content": "ok"}, assistant("ok")], dropped) == []


def test_a_prompt_with_the_header_of_a_turn(spans_of, observed):
    messages = [user("Write after <|im_start|>assistant\n."), assistant("a"), user("b"), assistant("c")]
    assert spans_of(messages, KEEPS) == [(A, "a<|im_end|>"), (A, "c<|im_end|>")]
    assert observed(messages, KEEPS) == ["b"]


def test_an_observation_inside_a_turn(observed):
    messages = [user("q"), assistant("Thought: a\nAction: look\nObservation: a mug\nThought: b\nAction: go"), user("ok")]
    assert observed(messages, KEEPS) == ["Observation: a mug\n", "ok"]


def test_encoded_observations_leave_the_other_labels_alone(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=KEEPS)
    messages = [user("q"), assistant("a", thought="why"), user("a mug"), assistant("b")]
    plain, found = (encode(messages, tokenizer, observe=observe) for observe in (False, True))
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    marked = "".join(text[a:b] for (a, b), kind in zip(found.offsets, found.span_ids) if kind == O)
    assert marked == "a mug"
    assert [0 if kind == O else kind for kind in found.span_ids] == plain.span_ids


def test_bad_input(spans_of, tokenizer):
    for messages in ([], [{"content": "no role"}], ["text"]):
        with pytest.raises(sad.InputError, match="messages"):
            spans_of(messages, KEEPS)
    with pytest.raises(sad.InputError, match="chat template, got one without"):
        segment([user("q")], "chat", tokenizer=tokenizer)
    with pytest.raises(sad.InputError, match="Pass the student's tokenizer"):
        segment([user("q")], "chat")
    with pytest.raises(sad.InputError, match="TemplateError: roles must alternate"):
        spans_of([user("q")], "{{ raise_exception('roles must alternate') }}")


def test_encode_labels_the_end_of_turn_and_adds_no_tokens(make_tokenizer):
    tokenizer = make_tokenizer(bos=True, chat_template=KEEPS)
    messages = [user("q"), assistant("a", thought="why")]
    encoded = encode(messages, tokenizer)
    assert tokenizer.decode(encoded.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    ends = [i for i, token in enumerate(encoded.input_ids) if token == tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert [encoded.span_ids[i] for i in ends] == [0, A]
    assert encoded.span_ids[ends[1] - 1] == A and R in encoded.span_ids
