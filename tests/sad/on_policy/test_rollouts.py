"""A training on the student's own trajectories: what is played, what is trained, what is logged, and how it resumes."""

from __future__ import annotations

import copy
import logging
import shutil

import pytest
import torch

from sad.errors import InputError
from sad.on_policy.env_rollouts import EnvRollouts
from sad.on_policy.examples import example_of
from sad.trajectories.read import read_jsonl
from tests.processes import run_python, run_two
from tests.sad.agents.toy import Doors
from tests.sad.on_policy import doors, worker
from tests.sad.on_policy.doors import TOKENIZER


def source(**options) -> EnvRollouts:
    return EnvRollouts(Doors(), TOKENIZER, **{"max_steps": 3, "max_turn_tokens": 10, **options})


def rows(batch) -> list[list[int]]:
    """Returns the token ids of a batch without padding."""
    return [ids[mask > 0].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


@pytest.fixture
def record(monkeypatch):
    """Records the batches of every step that `trainer` takes: their ids, and whether they are the student's own."""

    def attach(trainer) -> list[list[tuple[bool, list[list[int]], list[list[int]]]]]:
        steps, original = [], trainer.get_batch_samples

        def recorded(*args):
            batches, count = original(*args)
            steps.append([(b.get("on_policy", False), rows(b), b["span_ids"].tolist()) for b in batches])
            return batches, count

        monkeypatch.setattr(trainer, "get_batch_samples", recorded)
        return steps

    return attach


def test_steps_train_exactly_what_the_student_wrote(tmp_path, record):
    made = doors.trainer(tmp_path, source(), packing="never", rollout_episodes=4, max_steps=4)
    steps = record(made)
    made.train()
    for start in (0, 2):
        played = read_jsonl(tmp_path / "rollouts" / f"step-{start:08d}.jsonl.gz")
        assert len(played) == 4 and all(f"@{start}" in one.id for one in played)
        ours = [example_of(one.kept_tokens) for one in played]
        trained = [(own, row) for step in steps[start : start + 2] for own, batch, _ in step for row in batch]
        assert all(own for own, _ in trained)
        assert sorted(row for _, row in trained) == sorted(one["input_ids"] for one in ours), "each once in two steps"
    assert made.state.global_step == 4


def test_the_share_mixes_own_batches_with_the_teachers(tmp_path, record):
    fields = {"gradient_accumulation_steps": 4, "on_policy_start": 0.5, "on_policy_share": 0.5, "packing": "never"}
    train = doors.examples() * 8
    made = doors.trainer(tmp_path, source(), train=train, **fields)
    steps = record(made)
    made.train()
    given = [example["input_ids"] for example in train]
    assert [sum(own for own, _, _ in step) for step in steps] == [2] * 6
    for step in steps:
        for own, batch, _ in step:
            assert own != all(row in given for row in batch)
    last = made.state.log_history[-2]
    assert last["on_policy_share"] == 0.5 and {"loss_reason", "on_policy_loss_reason"} <= last.keys()


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_the_loss_of_a_step_is_the_divergence_on_its_tokens(tmp_path, record, divergence):
    """Compares the logged loss with PyTorch's on the logits of both models, on own and on given batches."""
    fields = {"gradient_accumulation_steps": 2, "on_policy_start": 0.5, "on_policy_share": 0.5, "packing": "never"}
    pair = doors.models()
    made = doors.trainer(
        tmp_path, source(), pair, doors.examples() * 4, on_policy_divergence=divergence, max_steps=1, **fields
    )
    [step] = [record(made)]
    made.train()
    sums, tokens = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for own, batch, labels in step[0]:
        for ids, span_ids in zip(batch, labels):
            student, teacher = (
                torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1].double(), -1) for model in pair
            )
            chosen = torch.tensor(span_ids[: len(ids)])[1:] > 0
            kind = divergence if own else "forward_kl"
            mixture = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
            terms = {
                "reverse_kl": student.exp() * (student - teacher),
                "forward_kl": teacher.exp() * (teacher - student),
                "jsd": 0.5 * (student.exp() * (student - mixture) + teacher.exp() * (teacher - mixture)),
            }
            sums[own] += terms[kind].sum(-1)[chosen].sum().item()
            tokens[own] += int(chosen.sum())
    log = made.state.log_history[0]
    assert log["loss"] == pytest.approx(sum(sums.values()) / sum(tokens.values()), rel=1e-4)
    for own, prefix in ((True, "on_policy_"), (False, "")):
        kinds = [kind for kind in ("reason", "act") if f"{prefix}tokens_{kind}" in log]
        total = sum(log[f"{prefix}loss_{kind}"] * log[f"{prefix}tokens_{kind}"] for kind in kinds)
        assert total == pytest.approx(sums[own], rel=1e-4)
        assert sum(log[f"{prefix}tokens_{kind}"] for kind in kinds) == tokens[own]


def test_the_log_shows_the_rollouts(tmp_path):
    pair = doors.models(trained_steps=90)
    made = doors.trainer(tmp_path, source(max_turn_tokens=30, max_steps=4), pair, rollout_episodes=8, learning_rate=1e-4)
    made.train()
    logs = [log for log in made.state.log_history if "rollout_episodes" in log]
    assert [log["step"] for log in logs] == [1, 3, 5]
    files = [read_jsonl(tmp_path / "rollouts" / f"step-{step:08d}.jsonl.gz") for step in (0, 2, 4)]
    for log, played in zip(logs, files):
        assert log["rollout_success"] == sum(one.success for one in played) / 8
        actions = sum(one.extra["steps"] for one in played)
        assert log["rollout_invalid_actions"] == sum(one.extra["invalid_actions"] for one in played) / actions
        assert log["rollout_actions"] == actions / 8 and log["rollout_tokens_per_second"] > 0
        assert log["rollout_tokens"] == sum(
            one.kept_tokens.kinds.count("1") + one.kept_tokens.kinds.count("2") for one in played
        )
    assert sum(log["rollout_success"] for log in logs) > 0, "the student solves none: the test shows little"


def test_an_episode_starts_after_the_teachers_turns(tmp_path):
    """The prefix carries no loss, its actions were taken in the environment, and it shrinks to nothing."""
    demonstrations = doors.demonstrations()
    made = doors.trainer(
        tmp_path,
        source(demonstrations=demonstrations, max_steps=4),
        rollout_prefix=0.5,
        rollout_turns=1,
        rollout_depth_end=0.5,
    )
    made.train()
    texts = {one.id: one.text for one in demonstrations}
    for step, replayed in ((0, 1), (2, 0), (4, 0)):
        played = read_jsonl(tmp_path / "rollouts" / f"step-{step:08d}.jsonl.gz")
        assert {one.extra.get("replayed", 0) for one in played} == {replayed}
        if replayed:
            for one in played:
                task = one.id.partition("@")[0]
                before = texts[task][: texts[task].index("Reasoning: I open it.")]
                assert one.text.startswith(before)
                kept = one.kept_tokens
                own = [token for token, kind in zip(kept.ids, kept.kinds) if kind in "12"]
                first = kept.kinds.index("1")
                assert TOKENIZER.decode(kept.ids[:first]) == before and kept.ids[first : first + len(own)] == own
                assert one.extra["steps"] <= 2, "one action of the teacher, and a budget of one"
    logs = [log for log in made.state.log_history if "rollout_episodes" in log]
    assert [log["rollout_replayed_actions"] for log in logs] == [1, 0, 0]


def test_prompts_that_fill_the_context_are_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sad"), "propagate", True)
    made = doors.trainer(tmp_path, source(), max_length=10, max_steps=1)
    with caplog.at_level(logging.WARNING):
        made.train()
    assert "the student wrote no token: all prompts fill max_length 10" in caplog.text
    assert "on_policy_loss_reason" not in made.state.log_history[0]


def test_demonstrations_are_needed_for_a_prefix(tmp_path):
    with pytest.raises(InputError, match="rollout_prefix: expected trajectories of the teacher on the tasks, got none"):
        doors.trainer(tmp_path, source(), rollout_prefix=0.5)


def run(folder, **fields):
    made = doors.trainer(folder, source(), save_strategy="steps", save_steps=2, rollout_window=2, **fields)
    made.train(resume_from_checkpoint=True)
    return made


def test_a_killed_run_goes_on_with_the_same_rollouts(tmp_path):
    """A process kills itself with SIGKILL in the middle of step 6. Weights and files equal those of a whole run."""
    whole = run(tmp_path / "whole")
    killed = run_python("-m", "tests.sad.on_policy.worker", "kill", tmp_path / "killed", folder=tmp_path)
    assert killed.returncode == -9, killed.stderr
    folder = tmp_path / "killed" / "rollouts"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-00000000.jsonl.gz", "step-00000002.jsonl.gz", "step-00000004.jsonl.gz"]
    (folder / ".step-00000006.jsonl.gz.0123.partial").write_bytes(b"half")
    shutil.copy(folder / "step-00000000.jsonl.gz", folder / "step-00000006.jsonl.gz")  # from a step that is taken again
    resumed = run(tmp_path / "killed")
    torch.testing.assert_close(doors.weights(resumed), doors.weights(whole), rtol=0, atol=0)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "rollouts").iterdir()} for name in ("killed", "whole")
    )
    assert ours == theirs and len(ours) == 3
    assert resumed.state.log_history[0]["on_policy_loss_reason"] == whole.state.log_history[0]["on_policy_loss_reason"]


def test_a_resumed_run_reads_rollouts_instead_of_playing_again(tmp_path, monkeypatch):
    """It resumes at step 4 of 6 with an interval of 3: the rollout of step 3 belongs to a student that is gone."""
    made = doors.trainer(tmp_path, source(), save_strategy="steps", save_steps=4, rollout_interval=3, max_steps=4)
    made.train()
    again = doors.trainer(tmp_path, source(), save_strategy="steps", save_steps=4, rollout_interval=3)
    played = []
    monkeypatch.setattr(again.rollouts, "play", lambda student, rollout: played.append(rollout.step) or [])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and played == []


def test_a_new_run_forgets_the_rollouts_of_another(tmp_path):
    doors.trainer(tmp_path, source(max_turn_tokens=4)).train()
    before = read_jsonl(tmp_path / "rollouts" / "step-00000000.jsonl.gz")
    doors.trainer(tmp_path, source(max_turn_tokens=7)).train()
    after = read_jsonl(tmp_path / "rollouts" / "step-00000000.jsonl.gz")
    assert before != after


def test_two_processes_share_a_rollout_and_train_like_one(tmp_path):
    (tmp_path / "two").mkdir()
    run_two("tests.sad.on_policy.worker", tmp_path / "two")
    one = worker.trained(tmp_path / "one", accumulated=4)
    two = torch.load(tmp_path / "two" / "result.pt")
    assert two["played"] == [3, 3], "each process plays its half of six episodes"
    for step in (0, 2):
        name = f"step-{step:08d}.jsonl.gz"
        ours, theirs = (read_jsonl(tmp_path / folder / "rollouts" / name) for folder in ("one", "two"))
        assert ours == theirs and len(ours) == 6
    torch.testing.assert_close(two["weights"], doors.weights(one), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"tasks": []}, "tasks: expected at least one task"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"max_steps": 0}, "max_steps: expected at least 1"),
    ],
)
def test_bad_options_of_a_source(options, message):
    with pytest.raises(InputError, match=message):
        source(**options)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rollout_interval", 0, "a whole number >= 1"),
        ("on_policy_share", 1.5, "a share from 0 to 1"),
        ("on_policy_end", 0.0, "a share above 0"),
        ("rollout_turns", 0, "a whole number >= 1"),
        ("on_policy_divergence", "kl", "one of forward_kl, reverse_kl, jsd"),
    ],
)
def test_bad_fields(tmp_path, field, value, expected):
    with pytest.raises(InputError, match=f"{field}: expected {expected}"):
        doors.trainer(tmp_path, source(), **{field: value})


def test_fields_of_rollouts_need_rollouts(tmp_path):
    with pytest.raises(InputError, match="rollout_interval: expected its default without rollouts, got 2"):
        doors.trainer(tmp_path, None)


@pytest.mark.parametrize("fields", [{"bf16": True}, {"gradient_checkpointing": True}, {"lora": True}])
def test_the_student_plays_as_it_is_trained(tmp_path, fields):
    """With autocast, checkpointing or adapters: the play changes nothing in the model, and the training goes on."""
    student, teacher = copy.deepcopy(doors.models())
    if fields == {"lora": True}:
        peft = pytest.importorskip("peft")
        student, fields = peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["q_proj"])), {}
    made = doors.trainer(tmp_path, source(), (student, teacher), max_steps=3, **fields)
    before = doors.weights(made).clone()
    made.train()
    assert [log["rollout_tokens"] > 0 for log in made.state.log_history if "rollout_tokens" in log] == [True, True]
    assert not torch.equal(doors.weights(made), before) and made.model.training


def test_a_trainer_needs_a_live_teacher_and_data(tmp_path):
    with pytest.raises(InputError, match="rollouts: expected a live teacher, got none"):
        doors.trainer(tmp_path, source(), (doors.models()[0], None), ce_weight=1.0, curriculum_gamma=0.0)
    with pytest.raises(InputError, match="train_dataset: expected a data set with a length beside rollouts"):
        doors.trainer(tmp_path, source(), train=iter(doors.examples()))
