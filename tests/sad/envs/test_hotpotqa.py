"""HotPotQA with a few questions: ReAct's answers, the official scores, all file layouts, and broken files."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import random

import pytest

import sad
from sad.envs.hotpotqa import data
from sad.envs.hotpotqa.matching import exact_match, f1
from sad.envs.hotpotqa.phrases import question_subject
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


def test_observations_are_those_of_react(root):
    env = sad.envs.make("hotpotqa", root=root)
    assert env.admissible_commands == []
    first = env.reset(env.tasks[0])
    assert first == "Question: Who produced the movie that is an adaption of The True Meaning of Smekday?"
    assert env.tasks[0] == ("q1", "bridge", first.removeprefix("Question: "))
    shown = "Home is a film. It is loud. It is long. It is bright."
    for action, observation in [
        ("Lookup[film]", "No more results."),  # no paragraph found yet
        ("Search[Home (2015 film)]", shown),
        ("search[ home ]", shown),
        ("Lookup[is]", "(Result 1 / 4) Home is a film."),
        ("Lookup[is]", "(Result 2 / 4) It is loud."),
        ("Search[Smekday farce]", "Could not find Smekday farce. Similar: ['The True Meaning of Smekday', 'Tip & Top']."),
        ("Lookup[is]", "(Result 3 / 4) It is long."),  # a failed search keeps the paragraph
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


def test_an_answer_line_ends_the_episode_like_finish(root):
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
        ("a cat and a cat", "cat cat dog", False, 2 * 2 / (3 + 3)),  # "cat and cat": two common words
        ("yes", "Yes.", True, 1.0),
        ("yes it is", "yes", False, 0.0),
        ("no", "no idea", False, 0.0),
        ("noanswer", "answer", False, 0.0),
        ("Łódź", "łódź", True, 1.0),
        ("it’s", "its", False, 0.0),  # only ASCII punctuation is removed
        ("The", "a", True, 0.0),  # equal, but without a word
        ("", "Paris", False, 0.0),
    ],
)
def test_scores_by_hand(answer, gold, em, score):
    assert exact_match(answer, gold) is em
    assert f1(answer, gold) == pytest.approx(score) and f1(gold, answer) == pytest.approx(score)


def test_copies_run_independent_episodes(root):
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
    """Returns the record in the layout of the `datasets` library."""
    titles, sentences = zip(*record["context"])
    facts = zip(*record["supporting_facts"])
    rest = {key: value for key, value in record.items() if key != "_id"}
    context = {"title": titles, "sentences": sentences}
    return rest | {"id": record["_id"], "context": context, "supporting_facts": dict(zip(("title", "sent_id"), facts))}


@pytest.mark.parametrize("chunk", [16, 1 << 22])
def test_all_layouts_have_the_same_questions(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(data, "_CHUNK", chunk)
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    texts = [
        json.dumps(RECORDS),
        "\ufeff " + json.dumps(RECORDS, indent=1, ensure_ascii=False),
        lines,
        "\n" + "\n".join(json.dumps(hub_layout(record)) for record in RECORDS) + "\n",
    ]
    results = []
    for text in texts:
        path = write(tmp_path / "questions", text)
        packed = tmp_path / "packed"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for file in (path, packed):
            env = sad.envs.make("hotpotqa", root=file)
            results.append((env.tasks, [env.question(task) for task in env.tasks], env.skipped))
    assert all(one == results[0] for one in results[1:])
    question = results[0][1][0]
    assert question.facts == (
        ("Home (2015 film)", 6),
        ("The True Meaning of Smekday", 1),
    )  # without the fact that has no sentence
    assert question.paragraphs["Tip & Top"] == ("Tip & Top is a farce.", "It ran in Łódź.")
    assert results[0][2] == ()


def broken_files() -> dict[str, tuple[bytes, int, str]]:
    """Returns name -> (bytes of the file, number of usable questions, part of the first message)."""
    whole = json.dumps(RECORDS).encode()
    home, age, unsaid = (json.dumps(record).encode() for record in RECORDS)
    bad = {
        "answer": {key: value for key, value in AGE.items() if key != "answer"},
        "context": AGE | {"context": []},
        "titles and their sentences": AGE | {"context": [["Ann Lee", "no list"]]},
        "already": HOME | {"_id": "q2"},
        "not an object": 7,
    }
    files = {why: (json.dumps([AGE, record, HOME]).encode(), 2, why) for why, record in bad.items()}
    files["cut off"] = (whole[:-100], 2, f"byte {len(json.dumps(RECORDS[:2])) - 1 + len(', ')}:")
    files["half a line"] = (b"\n".join([age, b'{"_id": "q', home]), 2, "line 1 column 11")
    files["gzip cut off"] = (gzip.compress(b"\n".join([home, age, unsaid]))[:-4], 2, "end-of-stream")
    return files


@pytest.mark.parametrize("name", broken_files())
def test_broken_records_are_counted_and_skipped(tmp_path, name):
    content, left, why = broken_files()[name]
    (tmp_path / "questions.json").write_bytes(content)
    with pytest.warns(UserWarning, match="records skipped: 1"):
        env = sad.envs.make("hotpotqa", root=tmp_path / "questions.json")
    assert len(env.tasks) == left and len(env.skipped) == 1 and why in env.skipped[0]
    assert env.reset(env.tasks[-1]).startswith("Question: Wh")


def test_errors_for_bad_arguments(root, tmp_path):
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


def test_tasks_and_shuffle(tmp_path):
    records = [AGE | {"_id": f"q{number}"} for number in range(50)]
    file = write(tmp_path / "many.json", json.dumps(records) + "x")  # the end of the file is not read
    assert [task.id for task in sad.envs.make("hotpotqa", root=file, tasks=3).tasks] == ["q0", "q1", "q2"]
    expected = list(range(50))
    random.Random(233).shuffle(expected)  # as in ReAct
    drawn = sad.envs.make("hotpotqa", root=file, seed=233, shuffle=True, tasks=20).tasks
    assert [task.id for task in drawn] == [f"q{number}" for number in expected[:20]]


def test_corpus_all_searches_the_whole_file(root):
    env = sad.envs.make("hotpotqa", root=root, corpus="all", tasks=2)
    assert len(env.tasks) == 2
    env.reset(env.tasks[1])
    assert env.step("Search[Home]").observation.startswith("Home is a film.")
    assert env.step("Lookup[DreamWorks]").observation == "(Result 1 / 1) DreamWorks Animation produced it."
    assert env.step("Search[Smekday]").observation == "Could not find Smekday. Similar: ['The True Meaning of Smekday']."
    assert len(env.admissible_commands) == 2


def test_the_expert_follows_names_from_the_question_to_the_answer(root):
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


def test_the_expert_compares_and_answers_only_what_it_has_read(root):
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
def test_question_subject(question, phrase):
    assert question_subject(question) == phrase
