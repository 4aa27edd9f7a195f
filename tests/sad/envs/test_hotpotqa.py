"""`hotpotqa` on a handful of questions: ReAct's answers word for word, the official scores, every layout, broken files."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import random

import pytest

import sad
from sad.envs.hotpotqa import data
from sad.envs.hotpotqa.score import exact_match, f1
from sad.envs.hotpotqa.wording import asked
from sad.errors import InputError

HOME = {
    "_id": "q1",
    "question": "Who produced the  movie that is an adaption of The True Meaning of Smekday?",
    "answer": "DreamWorks Animation",
    "type": "bridge",
    "level": "easy",
    "supporting_facts": [["Home (2015 film)", 6], ["The True Meaning of Smekday", 1], ["Home (2015 film)", 99]],
    "context": [
        ["Tip &amp; Top", ["Tip & Top is a farce.", " It ran in Łódź."]],
        [
            "Home (2015 film)",
            [
                "Home is a film.",
                "",
                " It is loud.",
                " It is long.",
                " It is bright.",
                " It ends.",
                " DreamWorks Animation produced it.",
            ],
        ],
        ["The True Meaning of Smekday", ["The True Meaning of Smekday is a book.", " It was adapted into the film Home."]],
    ],
}
AGE = {
    "_id": "q2",
    "question": "Who was born first, Ann Lee or Bo Ray?",
    "answer": "Bo Ray",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["Ann Lee", 0], ["Bo Ray", 0]],
    "context": [["Bo Ray", ["Bo Ray (born 1901) is a poet."]], ["Ann Lee", ["Ann Lee (born 1950) is a singer."]]],
}
UNSAID = AGE | {"_id": "q3", "question": "Which is older, Ann Lee or Bo Ray?", "answer": "Cy Poe"}
RECORDS = [HOME, AGE, UNSAID]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "hotpot_train_v1.1.json", json.dumps(RECORDS))
    return tmp_path


def test_the_answers_are_worded_as_in_react(root):
    env = sad.envs.make("hotpotqa", root=root)
    assert env.admissible_commands == []
    first = env.reset(env.tasks[0])
    assert first == "Question: Who produced the movie that is an adaption of The True Meaning of Smekday?"
    assert env.tasks[0] == ("q1", "bridge", first.removeprefix("Question: "))
    shown = "Home is a film. It is loud. It is long. It is bright."
    for action, observation in [
        ("Lookup[film]", "No more results."),  # nothing found yet
        ("Search[Home (2015 film)]", shown),
        ("search[ home ]", shown),
        ("Lookup[is]", "(Result 1 / 4) Home is a film."),
        ("Lookup[is]", "(Result 2 / 4) It is loud."),
        ("Search[Smekday farce]", "Could not find Smekday farce. Similar: ['The True Meaning of Smekday', 'Tip & Top']."),
        ("Lookup[is]", "(Result 3 / 4) It is long."),  # a miss leaves the page open
        ("LOOKUP[DREAMWORKS]", "(Result 1 / 1) DreamWorks Animation produced it."),
        ("Lookup[DREAMWORKS]", "No more results."),
        ("Lookup[is]", "(Result 1 / 4) Home is a film."),
        ("Search[]", "Could not find . Similar: []."),
        ("Search[tip and top]", "Could not find tip and top. Similar: ['Tip & Top']."),
        ("Search[tip top]", "Tip & Top is a farce. It ran in Łódź."),
        ("go to fridge 1", "Invalid action: go to fridge 1"),
        ("Search[Home", "Invalid action: Search[Home"),
        ("x" * 10_000, "Invalid action: " + "x" * 200 + "..."),
    ]:
        step = env.step(action)
        assert (step.observation, step.reward, step.done) == (observation, 0.0, False)
        assert step.info["valid"] is not observation.startswith("Invalid")
        assert step.info["metrics"] == {"em": 0.0, "f1": 0.0} and not step.info["won"]
    assert env.admissible_commands == [
        f"Search[{name}]" for name in ("Tip & Top", "Home (2015 film)", HOME["context"][2][0])
    ]
    step = env.step("Finish[the dreamworks Animation.]")
    assert step[:3] == ("Episode finished, reward = 1", 1.0, True)
    assert step.info == {
        "won": True,
        "admissible_commands": [],
        "valid": True,
        "metrics": {"em": 1.0, "f1": 1.0},
        "em": 1.0,
        "f1": 1.0,
    }
    with pytest.raises(InputError, match="running episode"):
        env.step("Search[Home]")


def test_an_answer_line_ends_the_episode_as_finish_does(root):
    env = sad.envs.make("hotpotqa", root=root)
    env.reset(env.tasks[0])
    step = env.step("Answer: DreamWorks")
    assert step[:3] == ("Episode finished, reward = 0", 0.0, True)
    assert step.info["metrics"] == {"em": 0.0, "f1": pytest.approx(2 / 3)}  # P = 1, R = 1/2


@pytest.mark.parametrize(
    ("answer", "gold", "em", "score"),
    [
        ("The  Eiffel-Tower!", "eiffeltower", True, 1.0),
        ("Paris, France", "Paris", False, 2 / 3),
        ("a cat and a cat", "cat cat dog", False, 2 * 2 / (3 + 3)),  # "cat and cat": two words in common
        ("yes", "Yes.", True, 1.0),
        ("yes it is", "yes", False, 0.0),
        ("no", "no idea", False, 0.0),
        ("noanswer", "answer", False, 0.0),
        ("Łódź", "łódź", True, 1.0),
        ("it’s", "its", False, 0.0),  # only ASCII punctuation is left out
        ("The", "a", True, 0.0),  # equal, but without a word to count
        ("", "Paris", False, 0.0),
    ],
)
def test_scores_by_hand(answer, gold, em, score):
    assert exact_match(answer, gold) is em
    assert f1(answer, gold) == pytest.approx(score) and f1(gold, answer) == pytest.approx(score)


def test_a_copy_is_an_independent_seat(root):
    env = sad.envs.make("hotpotqa", root=root)
    env.reset(env.tasks[0])
    env.step("Search[Home]")
    other = copy.copy(env)
    assert env.step("Lookup[it]").observation.startswith("(Result 1 / 5)")
    assert other.step("Lookup[it]").observation.startswith("(Result 1 / 5)")
    other.reset(env.tasks[1])
    assert other.step("Finish[Bo Ray]").done and not env.step("Search[Bo Ray]").done
    assert pickle.loads(pickle.dumps(env)).step("Lookup[it]").observation.startswith("(Result 2 / 5)")


def hub_layout(record: dict) -> dict:
    """The same record as the `datasets` library writes it."""
    titles, sentences = zip(*record["context"])
    facts = zip(*record["supporting_facts"])
    rest = {key: value for key, value in record.items() if key != "_id"}
    context = {"title": titles, "sentences": sentences}
    return rest | {"id": record["_id"], "context": context, "supporting_facts": dict(zip(("title", "sent_id"), facts))}


@pytest.mark.parametrize("chunk", [16, 1 << 22])
def test_every_layout_holds_the_same_questions(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(data, "_CHUNK", chunk)
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    texts = [
        json.dumps(RECORDS),
        "\ufeff " + json.dumps(RECORDS, indent=1, ensure_ascii=False),
        lines,
        "\n" + "\n".join(json.dumps(hub_layout(record)) for record in RECORDS) + "\n",
    ]
    told = []
    for text in texts:
        path = write(tmp_path / "questions", text)
        packed = tmp_path / "packed"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for file in (path, packed):
            env = sad.envs.make("hotpotqa", root=file)
            told.append((env.tasks, [env.question(task) for task in env.tasks], env.skipped))
    assert all(one == told[0] for one in told[1:])
    question = told[0][1][0]
    assert question.facts == (
        ("Home (2015 film)", 6),
        ("The True Meaning of Smekday", 1),
    )  # the one that points nowhere is out
    assert question.paragraphs["Tip & Top"] == ("Tip & Top is a farce.", "It ran in Łódź.")
    assert told[0][2] == ()


def broken_files() -> dict[str, tuple[bytes, int, str]]:
    """Name to the bytes of a file, how many questions it still holds, and a word of the first reason."""
    whole = json.dumps(RECORDS).encode()
    home, age, unsaid = (json.dumps(record).encode() for record in RECORDS)
    bad = {
        "answer": {key: value for key, value in AGE.items() if key != "answer"},
        "context": AGE | {"context": []},
        "titles and their sentences": AGE | {"context": [["Ann Lee", "no list"]]},
        "already": HOME | {"_id": "q2"},
        "no object": 7,
    }
    files = {why: (json.dumps([AGE, record, HOME]).encode(), 2, why) for why, record in bad.items()}
    files["cut off"] = (whole[:-100], 2, f"byte {len(json.dumps(RECORDS[:2])) - 1 + len(', ')}:")
    files["half a line"] = (b"\n".join([age, b'{"_id": "q', home]), 2, "line 1 column 11")
    files["gzip cut off"] = (gzip.compress(b"\n".join([home, age, unsaid]))[:-4], 2, "end-of-stream")
    return files


@pytest.mark.parametrize("name", broken_files())
def test_what_is_broken_is_counted_and_the_rest_played(tmp_path, name):
    content, left, why = broken_files()[name]
    (tmp_path / "questions.json").write_bytes(content)
    with pytest.warns(UserWarning, match="records skipped: 1"):
        env = sad.envs.make("hotpotqa", root=tmp_path / "questions.json")
    assert len(env.tasks) == left and len(env.skipped) == 1 and why in env.skipped[0]
    assert env.reset(env.tasks[-1]).startswith("Question: Wh")


def test_bad_arguments_say_what_to_do(root, tmp_path):
    no_answer = '[{"_id": "t", "question": "Who?"}]'
    cases = [
        ({"root": None}, "curl .*hotpotqa/hotpot_train_v1.1.json http.*/hotpot_train_v1.1.json"),
        ({"root": tmp_path / "nowhere"}, "no such file or folder.*curl"),
        ({"root": root, "split": "valid"}, "folder without it.*curl .*hotpot_dev_distractor_v1.json"),
        ({"root": root, "split": "test"}, "one of train, dev"),
        ({"root": root, "corpus": "wikipedia"}, "one of own, all"),
        ({"root": root, "tasks": 0}, "at least one"),
        ({"root": root, "tasks": 4}, "at most the 3"),
        ({"root": write(tmp_path / "empty.json", "")}, "questions with answers"),
        ({"root": write(tmp_path / "test.json", no_answer)}, "answer.*train or dev file"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            sad.envs.make("hotpotqa", **arguments)
    env = sad.envs.make("hotpotqa", root=root)
    for task in ("q1", env.tasks[0]._replace(id="q9")):
        with pytest.raises(InputError, match="one of the 3 tasks"):
            env.reset(task)
    env.reset(env.tasks[0])
    with pytest.raises(InputError, match="expected text"):
        env.step(None)


def test_choosing_questions(tmp_path):
    records = [AGE | {"_id": f"q{number}"} for number in range(50)]
    file = write(tmp_path / "many.json", json.dumps(records) + "x")  # what is not needed is not read
    assert [task.id for task in sad.envs.make("hotpotqa", root=file, tasks=3).tasks] == ["q0", "q1", "q2"]
    expected = list(range(50))
    random.Random(233).shuffle(expected)  # as ReAct draws its 500
    drawn = sad.envs.make("hotpotqa", root=file, seed=233, shuffle=True, tasks=20).tasks
    assert [task.id for task in drawn] == [f"q{number}" for number in expected[:20]]


def test_all_paragraphs_of_the_file_can_be_searched(root):
    env = sad.envs.make("hotpotqa", root=root, corpus="all", tasks=2)
    assert len(env.tasks) == 2
    env.reset(env.tasks[1])
    assert env.step("Search[Home]").observation.startswith("Home is a film.")
    assert env.step("Lookup[DreamWorks]").observation == "(Result 1 / 1) DreamWorks Animation produced it."
    assert env.step("Search[Smekday]").observation == "Could not find Smekday. Similar: ['The True Meaning of Smekday']."
    assert len(env.admissible_commands) == 2


def test_the_expert_goes_from_what_is_named_to_what_it_leads_to(root):
    env = sad.envs.make("hotpotqa", root=root)
    played = env.expert(env, env.tasks[0], max_steps=8)
    assert played.text.splitlines()[1::3] == [
        "Reasoning: I need the person who produced the movie. The question names The True Meaning of Smekday. "
        "I search The True Meaning of Smekday.",
        'Reasoning: The True Meaning of Smekday: "It was adapted into the film Home." I still need the person who produced '
        "the movie. The text leads to Home. I search Home.",
        "Reasoning: The beginning of Home does not settle it: I still need the person who produced the movie. "
        'I look up "produced".',
        'Reasoning: Home: "DreamWorks Animation produced it." So the person who produced the movie is DreamWorks Animation.',
    ]
    assert played.text.splitlines()[-2:] == ["Answer: DreamWorks Animation", "Episode finished, reward = 1"]
    assert played.success and played.extra["steps"] == 4 and played.extra["metrics"] == {"em": 1.0, "f1": 1.0}
    kinds = [span.kind.name for span in sad.segment(played.text, format="sad").spans]
    assert kinds == ["REASON", "ACT"] * 4
    assert not env.expert(env, env.tasks[0], max_steps=2).success


def test_the_expert_compares_and_never_answers_what_it_has_not_read(root):
    env = sad.envs.make("hotpotqa", root=root)
    played = env.expert(env, env.tasks[1])
    assert played.success and "1901 is before 1950, so the answer is Bo Ray." in played.text
    unsaid = env.expert(env, env.tasks[2])
    assert not unsaid.success and "Answer:" not in unsaid.text and "Cy Poe" not in unsaid.text


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("What is the nationality of the player?", "the nationality"),
        ("How many Grammy awards has the singer won?", "the number of Grammy awards"),
        ("Who directed the 1940 film in which John Arledge appeared?", "the person who directed the 1940 film"),
        ("Who was the vocalist for the band?", "the vocalist"),
        ("The museum served in what war?", "the war"),
        ("When did it begin?", "the date"),
        ("Are both bands?", "the answer"),
    ],
)
def test_what_is_asked(question, phrase):
    assert asked(question) == phrase
