"""Files that rank two answers: the chosen one is trained, the rejected one is not, and the summary says so."""

from __future__ import annotations

import json

import pytest

import sad

from .test_sources import END, TEMPLATE, USER, labelled

GOOD, BAD = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}
OLD = {"role": "assistant", "content": "Old."}

RANKINGS = {
    "TRL": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit prompt": {"chosen": [USER, OLD, USER, GOOD], "rejected": [USER, OLD, USER, BAD]},
    "a prompt beside whole conversations": {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "with a system message": {
        "prompt": USER["content"],
        "chosen": [{"role": "system", "content": "Be brief."}, USER, GOOD],
        "rejected": [{"role": "system", "content": "Be brief."}, USER, BAD],
    },
    "messages, chosen, rejected": {"messages": [USER], "chosen": GOOD, "rejected": BAD},
    "the chosen conversation twice": {
        "prompt": "p",
        "messages": [USER, GOOD],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": USER["content"]}],
        "chosen": {"from": "gpt", "value": "Good."},
        "rejected": {"from": "gpt", "value": "Bad."},
    },
    "Alpaca": {"instruction": USER["content"], "input": "", "chosen": "Good.", "rejected": "Bad."},
    "ms-swift": {"messages": [USER, GOOD], "rejected_response": "Bad."},
    "OpenAI": {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    },
}


@pytest.mark.parametrize("name", RANKINGS)
def test_the_chosen_answer_is_trained(name, make_tokenizer, tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(RANKINGS[name]) + "\n" + json.dumps(RANKINGS[name]) + "\n")
    found = sad.read_trajectories(path)
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    for trajectory in found:
        text, reason, act = labelled(trajectory, tokenizer)
        assert (reason, act) == ([], ["Good." + END]) and "Bad." not in text
        assert text.count("Find the mug.") == (2 if "implicit" in name else 1)
    summary = sad.encode_all(found, tokenizer, say=print).summary()
    assert summary.startswith("2 trajectories, 2 rankings (the chosen answer is trained, the rejected one is not), ")
    sad.write_jsonl(tmp_path / "again.jsonl", found)  # written as this package's own records, they mean the same
    assert labelled(sad.read_trajectories(tmp_path / "again.jsonl")[0], tokenizer)[2] == ["Good." + END]


def test_a_file_without_rankings_does_not_speak_of_them(make_tokenizer):
    [trajectory] = sad.read_trajectories([{"messages": [USER, GOOD], "rejected": None}])
    assert "ranking" not in sad.encode_all([trajectory], make_tokenizer(chat_template=TEMPLATE), say=print).summary()
