"""`Trajectory`, and reading and writing of trajectory files."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad import Span, Trajectory, read_jsonl, write_jsonl

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x), max_leaves=5
)
FIELDS = {"id", "text", "messages", "format", "spans", "env", "task", "success"}


@st.composite
def trajectories(draw) -> Trajectory:
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    spans = [Span(a, b, draw(st.sampled_from([Span.REASON, Span.ACT, Span.OBSERVE]))) for a, b in zip(cuts[::2], cuts[1::2])]
    return Trajectory(
        id=draw(TEXT),
        text=text,
        messages=draw(st.none() | st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3)),
        format=draw(st.none() | TEXT),
        spans=draw(st.none() | st.just(sorted(spans))),
        env=draw(st.none() | TEXT),
        task=draw(st.none() | TEXT),
        success=draw(st.none() | st.booleans()),
        extra=draw(st.dictionaries(TEXT.filter(lambda key: key not in FIELDS), JSON, max_size=3)),
    )


@settings(deadline=None)
@given(st.lists(trajectories(), max_size=4), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_read_returns_what_was_written(items, name):
    """Any Unicode, line separators in strings, every field, unknown keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new", name)
        assert write_jsonl(path, items) == len(items)
        assert read_jsonl(path) == items
        first = path.read_bytes()
        write_jsonl(path, items, overwrite=True)
        assert path.read_bytes() == first
        assert [item.name for item in path.parent.iterdir()] == [name]


def test_read_accepts_files_of_other_programs(tmp_path):
    """Byte order mark, CRLF, blank lines, missing ids, kinds as numbers, null fields, extra keys."""
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "abc", "spans": [[1, 2, 2], [0, 1, "reason"], [2, 3, "observe"]], "success": None, "model": "x"},
        {"id": 7, "text": "c", "env": "e"},
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(line).encode() for line in lines) + b"\r\n")
    first, second = read_jsonl(path)
    assert first == Trajectory(
        id="a.jsonl:1",
        text="abc",
        spans=[Span(0, 1, Span.REASON), Span(1, 2, Span.ACT), Span(2, 3, Span.OBSERVE)],
        extra={"model": "x"},
    )
    assert second == Trajectory(id="7", text="c", env="e")
    assert read_jsonl(path, limit=1) == [first]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "a"',
            r"line 3: expected one JSON object per line, got '\{\"text\": \"a\"' \(.*delimiter.*\)\. Fix or remove",
        ),
        ('["text"]', "line 3: expected a JSON object, got list"),
        ('{"prompt": "a"}', "line 3: expected a trajectory with 'text' or 'messages', got an object with 'prompt'"),
        ('{"text": 4}', "line 3, key 'text': expected a string, got 4"),
        ('{"text": "a", "success": "yes"}', "line 3, key 'success': expected true or false, got 'yes'"),
        ('{"text": "a\\ud800"}', "line 3, key 'text': expected valid Unicode"),
        ('{"messages": [{"content": "a"}]}', r"line 3, messages\[0\]: expected an object with a role"),
        ('{"text": "abc", "spans": [[0, 2, "reason"], [1, 3, "act"]]}', "line 3, spans: expected ranges .* do not overlap"),
        ('{"text": "abc", "spans": [[0, 9, 1]]}', "line 3, spans: expected ranges in the text"),
        ('{"text": "abc", "spans": [[0, 1, "think"]]}', r"line 3, spans: expected a list of \[start, end, kind\]"),
        ('{"text": "a"}\x80', "line 3: expected one JSON object per line"),
    ],
)
def test_the_error_names_the_bad_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(sad.InputError, match=message) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}, line 3")


def test_unreadable_files_raise(tmp_path):
    with pytest.raises(sad.InputError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(sad.InputError, match="readable"):
        read_jsonl(tmp_path)
    for content in (b'{"text": "a"}\n', gzip.compress(b'{"text": "a"}\n' * 100)[:-12]):  # not gzip, truncated gzip
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(sad.InputError, match="readable JSON Lines file"):
            read_jsonl(tmp_path / "bad.jsonl.gz")


def test_write_leaves_a_complete_file_or_none(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(sad.InputError, match="trajectory 'b': expected values that JSON can store"):
        write_jsonl(path, [Trajectory("a", "x"), Trajectory("b", "x", extra={"model": object()})])
    assert list(tmp_path.iterdir()) == []
    write_jsonl(path, [Trajectory("a", "x")])
    with pytest.raises(sad.InputError, match="expected a new file, got an existing one"):
        write_jsonl(path, [Trajectory("b", "y")])
    assert read_jsonl(path) == [Trajectory("a", "x")]


def test_precedence_of_formats():
    text = "Thought: a\nReasoning: b\nAction: c\n"
    named = Trajectory("t", text, format="react")
    assert [text[s:e] for s, e, _ in named.segmented().spans] == ["Thought: a\nReasoning: b\n", "Action: c\n"]
    assert [text[s:e] for s, e, _ in named.segmented("sad").spans] == ["Reasoning: b\n", "Action: c\n"]
    assert [text[s:e] for s, e, _ in Trajectory("t", text).segmented().spans] == ["Reasoning: b\n", "Action: c\n"]
    given = Trajectory("t", text, format="no such format", spans=[Span(0, 4, Span.ACT)])
    assert given.segmented().spans == [(0, 4, Span.ACT)]


def test_errors_name_the_trajectory():
    with pytest.raises(sad.InputError, match="format of trajectory 't': expected one of alfworld"):
        Trajectory("t", "x", format="alfworld-knowagent").segmented()
    with pytest.raises(sad.InputError, match="trajectory 't', text: expected a string"):
        Trajectory("t", messages=[{"role": "user", "content": "x"}]).segmented("sad")
    with pytest.raises(sad.InputError, match="trajectory 't', tokenizer: expected a tokenizer with a chat template"):
        Trajectory("t", messages=[{"role": "user", "content": "x"}]).segmented()
    with pytest.raises(sad.InputError, match="trajectory 't', spans: expected ranges"):
        Trajectory("t", "x", spans=[Span(0, 2, Span.ACT)]).segmented()


def test_prompts_are_not_labelled():
    """`prompt_chars`, and the prompt of LangChain's ReAct agent, whose lines look like the model's."""
    prompt = "Thought: write so\nAction: so\n"
    cut = Trajectory("t", prompt + "Thought: a\n", format="react", prompt_chars=len(prompt))
    assert cut.segmented().spans == [(len(prompt), len(prompt) + len("Thought: a\n"), Span.REASON)]
    text = "Use the following format:\n\nThought: think\nAction: act\n\nBegin!\n\nQuestion: q\nThought: a\nFinal Answer: b\n"
    found = Trajectory("t", text, format="react").segmented()
    assert [text[s:e] for s, e, _ in found.spans] == ["Thought: a\n", "Final Answer: b\n"]
    assert [(item.line, "taken for a prompt" in item.reason) for item in found.unparsed] == [(6, True)]
    whole = Trajectory("t", text, format="react", prompt_chars=0).segmented()
    assert len(whole.spans) == 4 and not whole.unparsed


def test_a_prompt_longer_than_the_text_raises(tmp_path):
    for chars in (9, -1, True, "3"):
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Action: a"[:5], "prompt_chars": chars}), encoding="utf-8")
        with pytest.raises(sad.InputError, match="key 'prompt_chars': expected a number of characters of the text"):
            read_jsonl(tmp_path / "a.jsonl")
