"""Segmentation of text: the lines of every format, and lines that are easy to mislabel."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sad
from sad.trajectories.formats import Format
from sad.trajectories.segment import segment

R, A = sad.Span.REASON, sad.Span.ACT


def parts(text: str, format: str | Format = "sad", **options) -> list[tuple[int, str]]:
    """Returns (kind, text) of every span."""
    return [(int(kind), text[start:end]) for start, end, kind in segment(text, format, **options).spans]


def observed(text: str, format: str | Format = "sad", **options) -> list[str]:
    """Returns the text of every observation."""
    found = segment(text, format, **options)
    assert all(span.kind is sad.Span.OBSERVE for span in found.observations)
    return [text[start:end] for start, end, _ in found.observations]


def reasons(text: str, format: str) -> list[tuple[int, str]]:
    """Returns (line, reason) of every unparsed place."""
    return [(item.line, item.reason) for item in segment(text, format).unparsed]


class TestSad:
    def test_spans_include_prefix_and_line_terminator(self):
        text = "You see a mug.\nReasoning: I need it.\nAction: take mug\nYou take the mug.\nAnswer: done\n"
        assert parts(text) == [(R, "Reasoning: I need it.\n"), (A, "Action: take mug\n"), (A, "Answer: done\n")]

    def test_without_prefix_a_span_starts_after_the_prefix_blanks(self):
        text = "Reasoning:  I need it.\nAction:take mug\n"
        assert parts(text, include_prefix=False) == [(R, "I need it.\n"), (A, "take mug\n")]

    def test_spans_exclude_leading_and_include_trailing_blanks(self):
        assert parts("  \tAction: take mug  \nOK\n") == [(A, "Action: take mug  \n")]

    def test_spans_include_crlf(self):
        text = "Reasoning: a\r\nAction: b\r\n\r\nsaw c\r\n"
        assert parts(text) == [(R, "Reasoning: a\r\n"), (A, "Action: b\r\n")]

    def test_text_may_end_without_a_line_terminator(self):
        assert parts("Reasoning: a\nAction: b") == [(R, "Reasoning: a\n"), (A, "Action: b")]

    def test_a_thought_of_several_lines_continues_to_its_action(self):
        text = "Reasoning: first\nsecond\n\nthird\n\nAction: go\nthe room\n"
        assert parts(text) == [(R, "Reasoning: first\nsecond\n\nthird\n"), (A, "Action: go\n")]
        assert reasons(text, "sad") == []

    def test_lines_after_a_thought_without_action_are_reported(self):
        text = "Reasoning: first\nNothing happens.\nReasoning: again\nAction: go\n"
        assert parts(text) == [(R, "Reasoning: first\n"), (R, "Reasoning: again\n"), (A, "Action: go\n")]
        ((line, reason),) = reasons(text, "sad")
        assert line == 2 and "thought without an action" in reason

    def test_an_observation_of_several_lines_is_not_labelled(self):
        text = "Action: look\nYou see [a mug].\ngo to desk 1\nsearch[mug]\n> take mug\nReasoning: x\n"
        assert parts(text) == [(A, "Action: look\n"), (R, "Reasoning: x\n")]

    def test_a_prefix_with_nothing_after_it_is_reported(self):
        assert parts("Reasoning:  \nAction: go\n") == [(A, "Action: go\n")]
        assert reasons("Reasoning:  \nAction: go\n", "sad") == [(1, "a prefix with nothing after it: not labelled")]

    def test_text_of_another_format_is_reported(self):
        unparsed = segment("Question: who\nThought: find out\n", "sad").unparsed
        assert [item.line for item in unparsed] == [1, 2] and unparsed[1].text == "Thought: find out"
        assert "no reasoning and no action found" in unparsed[0].reason

    def test_only_newlines_end_lines(self):
        line = "Action: a\x0bb\x0cc\u2028d\x85e\rf\n"
        assert parts(line + "obs\n") == [(A, line)]

    def test_empty_text(self):
        assert segment("", "sad").spans == []


class TestReact:
    def test_numbered_and_plain(self):
        text = "Question: q\nThought 1: t\nAction 1: Search[x]\nObservation 1: o\nThought: u\nAction: finish[y]\n"
        assert parts(text, "react") == [
            (R, "Thought 1: t\n"),
            (A, "Action 1: Search[x]\n"),
            # "Thought:" has no number, so it is text of observation 1
        ]
        plain = "Question: q\nThought: u\nAction: finish[y]\nObservation: Episode finished\n"
        assert parts(plain, "react") == [(R, "Thought: u\n"), (A, "Action: finish[y]\n")]

    def test_lines_in_a_numbered_observation_that_look_like_actions(self):
        text = "Action 2: Lookup[film]\nObservation 2: A list [of films].\nAction: The Movie\nSearch[x]\nQuestion: who\n"
        text += "Action: B\nThought 3: t\n"
        assert parts(text, "react") == [(A, "Action 2: Lookup[film]\n"), (R, "Thought 3: t\n")]

    def test_multiline_observation_thought_and_action(self):
        text = "Thought: a\nb\nAction: python\nprint(1)\nObservation: 1\n2\nThought: c\n\nd"
        assert parts(text, "react") == [
            (R, "Thought: a\nb\n"),
            (A, "Action: python\nprint(1)\n"),
            (R, "Thought: c\n\nd"),
        ]

    def test_unprefixed_lines_after_an_action_are_not_labelled(self):
        text = "Thought: a\nAction: go\nYou see a desk.\nThought: b\nAction: look\nA room.\n"
        assert parts(text, "react") == [(R, "Thought: a\n"), (A, "Action: go\n"), (R, "Thought: b\n"), (A, "Action: look\n")]
        assert [line for line, _ in reasons(text, "react")] == [3, 6]

    def test_action_paths_are_neither(self):
        text = "ActionPath 1: Start\nThought 1: t\nAction 1: Search[x]\nObservation 1: o\nActionPath 2: Start->Search[x]\n"
        assert parts(text, "react") == [(R, "Thought 1: t\n"), (A, "Action 1: Search[x]\n")]

    def test_tool_inputs_and_final_answers_are_actions(self):
        text = "Thought: a\nAction: search\nAction Input: cats\nObservation: o\nThought: b\nFinal Answer: 42"
        assert [kind for kind, _ in parts(text, "react")] == [R, A, A, R, A]


class TestAlfworld:
    def test_thoughts_actions_and_the_rest(self):
        text = (
            "You are in a room.\n> think: To solve it\nOK.\n> Think: again\n> ActionPath: Start->Goto(desk 1)\n"
            ">go to desk 1\nOn the desk 1, you see [a mug].\ngo to bed 1\n> \n>\n> think\nNothing happens.\n"
        )
        assert parts(text, "alfworld") == [
            (R, "> think: To solve it\n"),
            (R, "> Think: again\n"),
            (A, ">go to desk 1\n"),
            (A, "> think\n"),  # without the colon it is an action for the environment, and here
        ]
        assert reasons(text, "alfworld") == [(line, "a prefix with nothing after it: not labelled") for line in (9, 10)]

    def test_without_prefix(self):
        text = "> think: a\n>go to desk 1\n> use lamp 1\n"
        assert parts(text, "alfworld", include_prefix=False) == [(R, "a\n"), (A, "go to desk 1\n"), (A, "use lamp 1\n")]

    def test_lines_after_a_thought_are_not_labelled(self):
        assert parts("> think: a\nOK.\nNothing happens.\n> look\n", "alfworld") == [(R, "> think: a\n"), (A, "> look\n")]


class TestWebshop:
    def test_prefixes_by_action_name(self):
        text = (
            "Action: reset\nObservation: \nWebshop \n[Search] \n\nAction: search[red shoes]\nObservation: \n"
            "[Back to Search] \nsize [small][large]\nclick[Buy Now]\nAction: Hero Camera \n\nAction: think[B09 fits.]\n"
            "Observation: OK.\n\nAction: click[B09]\nObservation: done\n\nAction: think[cut off,\nObservation: OK.\n"
        )
        assert parts(text, "webshop") == [
            (A, "Action: search[red shoes]\n"),  # the harness, not the model, writes reset
            (R, "Action: think[B09 fits.]\n"),
            (A, "Action: click[B09]\n"),
            (R, "Action: think[cut off,\n"),
        ]
        assert [line for line, _ in reasons(text, "webshop")] == [11]

    def test_bare_actions_outside_labelled_observations(self):
        text = "think[a]\nsearch[b]\nresults [c]\nclick[d]\n"
        assert parts(text, "webshop") == [(R, "think[a]\n"), (A, "search[b]\n"), (A, "click[d]\n")]


class TestMarkers:
    def test_one_line(self):
        text = "Find it. [REASON] look on the table [ACT] search[tray]"
        assert parts(text, "markers") == [(R, "[REASON] look on the table"), (A, "[ACT] search[tray]")]
        assert parts(text, "markers", include_prefix=False) == [(R, "look on the table"), (A, "search[tray]")]

    def test_many_lines_with_observations(self):
        text = "[REASON] a\nb\n[ACT] go\nthe room\n[REASON] c [ACT] take [OBS] taken [ACT] put\n"
        assert parts(text, "markers") == [
            (R, "[REASON] a\nb\n"),
            (A, "[ACT] go\n"),
            (R, "[REASON] c"),
            (A, "[ACT] take"),
            (A, "[ACT] put\n"),
        ]


class TestObservations:
    def test_answers_of_the_environment_but_not_the_prompt(self):
        text = "You are in a room.\nYour task: a mug.\nReasoning: a\nAction: look\n  A desk.\n\nA mug. \n\n"
        text += "Action: go\r\nOK.\r\nBye"
        assert observed(text) == ["A desk.\n\nA mug. \n", "OK.\r\nBye"]
        assert observed("Only a prompt.\nObservation: and a room\n") == []

    def test_prefixes(self):
        text = "Action: look\nObservation: a\nb\nObservation:\nReasoning: c\nAction: d\nObservation: \n e\n"
        assert observed(text) == ["Observation: a\nb\n", "Observation: \n e\n"]
        assert observed(text, include_prefix=False) == ["a\nb\n", "e\n"]

    def test_lines_of_an_unclear_author_are_not_observations(self):
        assert observed("Reasoning: a\nwho?\nReasoning: b\nAction: c\nseen\nThought: d\nseen again\n") == [
            "seen\n",
            "seen again\n",
        ]
        assert observed("Thought: a\nAction: b\nwho?\nThought: c\nAction: d\n", "react") == []

    def test_the_task_of_a_second_episode_is_not_an_observation(self):
        text = "Action: look\nA room.\nYour task is to: find a mug.\nA desk.\n"
        assert observed(text) == ["A room.\n", "A desk.\n"]
        assert observed(text.replace("Action:", ">"), "alfworld") == ["A room.\n", "A desk.\n"]

    def test_react(self):
        text = "Question: q\nThought 1: t\nAction 1: Search[x]\nObservation 1: o\nAction: The Movie\nActionPath 2: p\nmore\n"
        text += "Thought 2: u\nAction 2: Finish[y]\nObservation 2: done\nQuestion: r\nwho\nThought 1: v\n"
        assert observed(text, "react") == ["Observation 1: o\nAction: The Movie\n", "Observation 2: done\n"]

    def test_alfworld(self):
        text = "You are here.\nYour task is to: go.\n> think: a\nOK.\n> ActionPath: Start\n> go to bed 1\nYou see.\n>\n"
        text += "Nothing.\n"
        assert observed(text, "alfworld") == ["OK.\n", "You see.\n", "Nothing.\n"]

    def test_webshop(self):
        text = "Action: reset\nObservation: \nInstruction: buy\n\nAction: search[a]\n"
        text += "Observation: \n[Buy] \nAction: Camera\n$5\n\n"
        assert observed(text, "webshop") == ["Observation: \n[Buy] \n", "$5\n"]

    def test_markers(self):
        text = "Find it. [REASON] a [ACT] go [OBS] a room [REASON] b\n[ACT] take\ntaken\n"
        assert observed(text, "markers") == ["[OBS] a room", "taken\n"]

    def test_a_custom_format(self):
        mine = Format(
            "mine", reason=r"Plan:", act=r"Do:", environment=r"(?:Got|Note):", unprefixed="model", context=r"Note:"
        )
        assert observed("Do: a\nGot: b\nc\nNote: d\ne\nDo: f\n", mine) == ["Got: b\nc\n"]
        with pytest.raises(sad.InputError, match="context"):
            Format("bad", reason="R:", act="A:", context="(")


class TestFormats:
    def test_an_unknown_format_lists_the_known_ones(self):
        with pytest.raises(sad.InputError, match="alfworld, chat, markers, react, sad, webshop, got 'alfred'"):
            segment("x", "alfred")

    def test_a_custom_format(self):
        mine = Format("plan-do", reason=r"Plan:", act=r"Do:", environment=r"Got:", unprefixed="model", ignore_case=False)
        text = "Plan: a\nb\nDo: c\nGot: d\nplan: e\n"
        assert parts(text, mine) == [(R, "Plan: a\nb\n"), (A, "Do: c\n")]
        sad.register_format(mine)
        try:
            assert parts(text, "plan-do") == parts(text, mine)
            with pytest.raises(sad.InputError, match="not yet taken"):
                sad.register_format(mine)
        finally:
            from sad.trajectories import formats

            formats._FORMATS.pop("plan-do")

    @pytest.mark.parametrize("bad", [{"reason": "("}, {"act": ".*"}, {"unprefixed": "nobody"}])
    def test_an_unusable_format_raises(self, bad):
        with pytest.raises(sad.InputError, match="Format"):
            Format(**{"name": "bad", "reason": "R:", "act": "A:", **bad})

    def test_messages_need_a_chat_format_and_text_a_line_format(self):
        with pytest.raises(sad.InputError, match="format='chat'"):
            segment([{"role": "user", "content": "x"}], "sad")
        with pytest.raises(sad.InputError, match="messages"):
            segment("Reasoning: a", "chat")


LINE = st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp", "Cc"]), min_size=1, max_size=30)
WORDS = LINE.map(str.strip).filter(lambda s: s and s[0].isalnum() and ":" not in s and "[" not in s and ">" not in s)
STEP = st.tuples(st.none() | WORDS, WORDS, st.lists(WORDS, max_size=3))  # thought, action, lines of the observation
WRITERS = {
    "sad": ("Reasoning: {}", "Action: {}", "{}"),
    "react": ("Thought: {}", "Action: {}", "Observation: {}"),
    "alfworld": ("> think: {}", "> use {}", "{}"),
    "webshop": ("Action: think[{}]", "Action: click[{}]", "Observation: {}"),
    "markers": ("[REASON] {}", "[ACT] {}", "{}"),
}


@given(
    st.sampled_from(sorted(WRITERS)), WORDS, st.lists(STEP), st.sampled_from(["\n", "\r\n", "\n\n", " \n"]), st.booleans()
)
def test_spans_of_generated_text_are_its_thoughts_and_actions(format, prompt, steps, newline, ends_open):
    """For any transcript in the format, the spans are its thoughts and actions, in order."""
    thought, action, answer = WRITERS[format]
    text, written = prompt + newline, []
    for reason, act, observation in steps:
        for kind, line in ([(int(R), thought.format(reason))] if reason else []) + [(int(A), action.format(act))]:
            text += line + newline
            written.append((kind, line + newline.removesuffix("\n\n") + ("\n" if newline == "\n\n" else "")))
        if observation:
            text += answer.format(newline.join(observation)) + newline
    if ends_open and steps and not steps[-1][2]:
        text = text[: -len(newline)]
        written[-1] = (int(A), action.format(steps[-1][1]))
    assert parts(text, format) == written
    found = segment(text, format)
    between = [written.strip() for _, written in parts(text, format)]
    seen = " ".join(observed(text, format))
    assert [word for _, _, lines in steps for line in lines for word in line.split()] == [
        word for word in seen.split() if word != "Observation:"
    ]
    assert not {line.strip() for line in seen.splitlines()} & set(between)
    everything = sorted(found.spans + found.observations)
    assert all(a.end <= b.start for a, b in pairwise(everything))


def test_segmentation_takes_linear_time():
    """Lines of 10,000 blanks or characters; a quadratic pattern takes minutes."""
    hostile = ["Thought " + " " * 10_000, "Action " + "1" * 10_000, "> " + "think " * 2_000, " " * 10_000, "x" * 10_000]
    begin = time.perf_counter()
    for format in WRITERS:
        segment("\n".join(hostile * 10), format)
    assert time.perf_counter() - begin < 5
