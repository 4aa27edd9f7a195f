"""Batched rollouts with a KV cache equal rollouts of single episodes without a cache."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from sad.agents.episode import EndReason, format_observation
from sad.agents.kv_cache import CachedBatch
from sad.agents.rollout import rollout
from sad.envs.protocol import Step
from sad.errors import InputError

from .toy import Doors, ScriptedModel, tiny_model, toy_tokenizer

KINDS = ("gpt2", "opt", "llama", "mistral")  # mistral: a sliding window of 8 tokens


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def rollout_alone(model, tokenizer, env, task, *, max_steps: int, max_turn_tokens: int, max_length: int) -> list[int]:
    """A plain reference of `rollout`: one episode, and a forward pass over the whole text for every token."""
    env = copy.copy(env)
    ids = tokenizer(format_observation(env.reset(task)))["input_ids"]
    acted = 0
    while acted < max_steps and len(ids) < max_length:
        turn: list[int] = []
        while True:
            with torch.inference_mode():
                token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            text = tokenizer.decode(turn)
            if token == tokenizer.eos_token_id:
                if not text or text.endswith("\n"):
                    return ids
                token = tokenizer.convert_tokens_to_ids("Ċ")
                stop = True
            else:
                stop = False
            turn.append(token)
            ids = [*ids, token]
            lines = tokenizer.decode(turn).split("\n")
            if len(lines) > 1 and lines[-2].startswith(("Action:", "Answer:")):
                break
            if stop or len(turn) >= max_turn_tokens or len(ids) >= max_length:
                return ids
        step = env.step(lines[-2].removeprefix("Action:").strip())
        acted += 1
        ids = ids + tokenizer(format_observation(step.observation))["input_ids"]
        if step.done or lines[-2].startswith("Answer:"):
            return ids
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_batched_rollout_equals_the_plain_reference(kind: str, tokenizer) -> None:
    model = tiny_model(kind, len(tokenizer), acts=True, tokenizer=tokenizer)
    env = Doors()
    limits = {"max_steps": 9, "max_turn_tokens": 24, "max_length": 180}
    together = rollout(model, tokenizer, env, env.tasks, batch_size=5, max_repeats=100, clean=False, **limits)
    for episode, task in zip(together, env.tasks, strict=True):
        assert episode.token_ids == rollout_alone(model, tokenizer, env, task, **limits)
    assert max(len(e.actions) for e in together) >= 3, "the model has too few turns for this test"
    assert len({len(e.token_ids) for e in together}) > 4


@pytest.mark.parametrize("kind", [*KINDS, "gemma3"])
def test_logits_of_a_row_do_not_depend_on_the_batch(kind: str) -> None:
    model = tiny_model(kind, 50)
    rows = [list(range(5)), list(range(20, 41)), [7]]
    tolerance = 1e-3 if kind == "gemma3" else 1e-9  # its norms compute in float32

    def check(batch: CachedBatch, texts: list[list[int]]) -> None:
        alone = torch.stack([model(torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts])
        torch.testing.assert_close(batch.logits, alone, rtol=tolerance, atol=tolerance)

    with torch.inference_mode():
        batch = CachedBatch(model, rows)
        check(batch, rows)
        for chunk in ([[9, 8], [1, 2], [3, 4]], [[5]] * 3):
            batch.feed(chunk)
            rows = [row + new for row, new in zip(rows, chunk, strict=True)]
            check(batch, rows)
        batch.keep([2, 0])
        rows = [rows[2] + [3] * 9, rows[0] + [6] * 9]
        batch.feed([[3] * 9, [6] * 9])
        check(batch, rows)
        assert batch._attention_mask.shape[1] == 17  # the padding of the longest prompt is gone


def scripted(tokenizer, lines: str, **options):
    """Runs the second task with a model that writes `lines` and then ends the sequence."""
    env = Doors()
    model = ScriptedModel(tokenizer, lines)
    return rollout(model, tokenizer, env, env.tasks[1:2], **options)[0]


def test_transcript_has_observations_and_turns_without_blank_lines(tokenizer) -> None:
    script = "Reasoning: I look.\nAction: look\nReasoning: Door 2 it is.\nAction: open door 2\n"
    episode = scripted(tokenizer, script)
    assert episode.end is EndReason.WON and episode.won
    assert episode.actions == ["look", "open door 2"]
    assert episode.text == (
        "You see door 1, door 2.\nYour task is to: open door 2.\nReasoning: I look.\nAction: look\n"
        "You see door 2, door 1.\nReasoning: Door 2 it is.\nAction: open door 2\nThe door 2 is open.\nYou win.\n"
    )
    assert tokenizer.decode(episode.token_ids) == episode.text
    # training tokenizes the whole transcript and must get the same tokens
    assert tokenizer(episode.text)["input_ids"] == episode.token_ids
    wrote = tokenizer.decode([t for t, w in zip(episode.token_ids, episode.generated_mask, strict=True) if w])
    assert wrote == script
    trajectory = episode.to_trajectory("doors", model="script")
    assert trajectory.success and trajectory.format == "sad" and trajectory.id == "open-2"
    assert trajectory.extra["end"] == "won" and trajectory.extra["model"] == "script"


@pytest.mark.parametrize(
    ("script", "options", "end"),
    [
        ("Reasoning: I only think.\n", {}, EndReason.NO_ACTION),
        ("", {}, EndReason.NO_ACTION),
        ("Reasoning: on\n" * 90, {"max_turn_tokens": 60}, EndReason.ENDLESS),
        ("Reasoning: on and on" + " and on" * 90, {"max_turn_tokens": 60}, EndReason.ENDLESS),
        ("Action: open door 1\n" * 9, {"max_repeats": 4}, EndReason.REPEATS),
        ("Action: look\nAction: open door 1\n" * 9, {"max_steps": 7}, EndReason.MAX_STEPS),
        ("Action: open door 1\n" * 90, {"max_length": 100, "max_repeats": 99}, EndReason.CONTEXT),
        ("Action: look\n", {"max_length": 10}, EndReason.CONTEXT),
        ("Reasoning: hm\nAction: give up\n", {}, EndReason.LOST),
        ("Answer: 42\nAction: look\n", {}, EndReason.ANSWERED),
        ("so on " * 5_000, {"max_length": 500}, EndReason.ENDLESS),
        ("Action: " + "open door 1 and " * 700, {"max_length": 500}, EndReason.ENDLESS),
        ("Action: open door 2", {}, EndReason.WON),  # an end-of-sequence token also ends the line
        ("Action: look\nAction: open door 2\n", {"max_length": 62}, EndReason.WON),  # the last step fills the context
    ],
)
def test_every_end_reason(tokenizer, script: str, options: dict, end: EndReason) -> None:
    episode = scripted(tokenizer, script, **options)
    assert episode.end is end, episode.text
    if "max_steps" in options:
        assert len(episode.actions) == options["max_steps"]
    if end is EndReason.REPEATS:
        assert len(episode.actions) == options["max_repeats"]
    if end in (EndReason.ENDLESS, EndReason.NO_ACTION):
        assert episode.actions == [] and script[:10] in episode.text


def test_admissible_decoding_allows_admissible_commands_only(tokenizer) -> None:
    env = Doors()
    model = tiny_model("llama", len(tokenizer), acts=True, tokenizer=tokenizer)
    free = rollout(model, tokenizer, env, env.tasks, max_steps=4, max_repeats=99)
    admissible = rollout(model, tokenizer, env, env.tasks, max_steps=4, max_repeats=99, decoding="admissible")
    assert any(action not in Doors.commands(12) for episode in free for action in episode.actions)
    assert sum(len(episode.actions) for episode in admissible) > 10
    for episode, task in zip(admissible, env.tasks, strict=True):
        assert set(episode.actions) <= set(Doors.commands(int(task.id.split("-")[1])))
        assert episode.to_trajectory().extra["decoding"] == "admissible"


def test_admissible_decoding_takes_the_command_with_the_best_tokens(tokenizer) -> None:
    # the command of the script does not exist; it shares most tokens with door 1
    episode = scripted(tokenizer, "Action: open door 17\n", decoding="admissible", max_steps=1)
    assert episode.actions == ["open door 1"]


def test_samples_depend_on_seed_and_task_not_on_the_batch(tokenizer) -> None:
    env = Doors()
    model = tiny_model("gpt2", len(tokenizer), acts=True, tokenizer=tokenizer)
    options = {"max_steps": 3, "temperature": 1.5, "max_turn_tokens": 30}
    together = rollout(model, tokenizer, env, env.tasks, seed=3, **options)
    alone = rollout(model, tokenizer, env, env.tasks[::-1], seed=3, batch_size=1, **options)[::-1]
    other = rollout(model, tokenizer, env, env.tasks, seed=4, **options)
    assert [e.token_ids for e in together] == [e.token_ids for e in alone]
    assert [e.token_ids for e in together] != [e.token_ids for e in other]


def test_sampling_frequencies_follow_the_tempered_softmax(tokenizer) -> None:
    """The frequency of a first token matches its probability within 4 standard deviations of a binomial."""
    env = Doors()
    model = tiny_model("gpt2", len(tokenizer))
    task = env.tasks[0]
    with torch.inference_mode():
        ids = tokenizer(format_observation(env.reset(task)), return_tensors="pt")["input_ids"]
        probability = (model(ids).logits[0, -1] / 2.0).softmax(-1)
    likely = int(probability.argmax())
    draws = 600
    options = {"temperature": 2.0, "max_turn_tokens": 1}
    tasks = [task._replace(id=f"open-1-{k}") for k in range(draws)]
    episodes = rollout(model, tokenizer, env, tasks, batch_size=200, **options)
    count = sum(e.token_ids[ids.shape[1]] == likely for e in episodes if len(e.token_ids) > ids.shape[1])
    p = float(probability[likely])
    assert abs(count - draws * p) < 4 * (draws * p * (1 - p)) ** 0.5


def test_special_tokens_of_the_tokenizer() -> None:
    tokenizer = toy_tokenizer(bos=True)
    episode = scripted(tokenizer, "Action: open door 2\n")
    assert episode.end is EndReason.WON
    assert episode.token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in episode.token_ids  # an EOS from the tokenizer's template would end the prompt


def test_stop_tokens_of_the_generation_config_end_the_turn(tokenizer) -> None:
    env = Doors()
    model = ScriptedModel(tokenizer, "Action: open door 1<bos>Action: look\n")  # <bos> as end of turn
    model.generation_config = SimpleNamespace(eos_token_id=[tokenizer.eos_token_id, tokenizer.bos_token_id])
    (episode,) = rollout(model, tokenizer, env, env.tasks[:1])
    assert episode.end is EndReason.WON and episode.actions == ["open door 1"]


def test_the_prompt_is_not_part_of_the_transcript(tokenizer) -> None:
    prompt = "Your task is to: open door 9.\nAction: open door 9\n"
    script = "Reasoning: Door 2 it is.\nAction: open door 2\n"
    plain, prompted = scripted(tokenizer, script), scripted(tokenizer, script, prompt=prompt)
    assert prompted.text == plain.text and prompted.end is EndReason.WON
    assert tokenizer.decode(prompted.token_ids) == f"{prompt}\n{plain.text}"
    assert sum(prompted.generated_mask) == sum(plain.generated_mask)
    assert scripted(tokenizer, script, prompt=prompt, max_length=len(plain.token_ids)).end is EndReason.CONTEXT


def test_chat_tokens_equal_the_rendered_chat_template() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>\n{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
    )
    turns = ["Reasoning: I look.\nAction: look", "Action: open door 2"]
    episode = scripted(tokenizer, "<eos>".join(turns), prompt="Open it.", chat=True)
    assert episode.end is EndReason.WON and episode.actions == ["look", "open door 2"]
    first = "You see door 1, door 2.\nYour task is to: open door 2."
    observations = ["You see door 2, door 1.", "The door 2 is open.\nYou win."]
    assert episode.text == f"{first}\n{turns[0]}\n{observations[0]}\n{turns[1]}\n{observations[1]}\n"
    contents = [f"Open it.\n\n{first}", turns[0], observations[0], turns[1], observations[1]]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(episode.token_ids) == rendered
    with pytest.raises(InputError, match="chat template"):
        scripted(toy_tokenizer(), "", chat=True)


def test_lines_are_cleaned_unless_clean_is_false(tokenizer) -> None:
    script = "**Thought:** Door 2. **Action:** `open door 2.`\n"
    episode = scripted(tokenizer, script)
    assert (episode.end, episode.actions, episode.invalid_actions) == (EndReason.WON, ["open door 2"], 0)
    assert "\nReasoning: Door 2.\nAction: open door 2\nThe door 2 is open.\n" in episode.text
    raw = scripted(tokenizer, script, clean=False)
    assert raw.end is EndReason.NO_ACTION and raw.text.endswith(script)
    raw = scripted(tokenizer, "Action: open door 2.\n", clean=False, max_steps=1)
    assert (raw.end, raw.actions, raw.invalid_actions) == (EndReason.MAX_STEPS, ["open door 2."], 1)


def test_admissible_decoding_recognizes_an_inline_action_prefix(tokenizer) -> None:
    script = "Reasoning: So Action: jump\n"
    episode = scripted(tokenizer, script, decoding="admissible", max_steps=1)
    assert episode.actions[0] in Doors.commands(2)
    assert "\nReasoning: So\nAction: " in episode.text


class Shop(Doors):
    """An environment with free-text actions, its own metric, and observations that look like lines of an agent."""

    def step(self, action: str) -> Step:
        valid = action.startswith("search[")
        info = {"won": False, "admissible_commands": ["buy"], "valid": valid, "metrics": {"reward": len(action) / 10}}
        return Step(" Action: a film\nAnswer:42\nan action: yes", 0.0, False, info)


def test_env_reports_validity_and_metrics(tokenizer) -> None:
    env = Shop()
    model = ScriptedModel(tokenizer, "Action: search[x]\nAction: look\nAction: buy\n")
    (episode,) = rollout(model, tokenizer, env, env.tasks[:1], max_steps=3)
    extra = episode.to_trajectory().extra
    assert (extra["steps"], extra["invalid_actions"], extra["metrics"]) == (3, 2, {"reward": 0.3})
    # these lines belong to the environment and get no span label
    assert "search[x]\nObservation:  Action: a film\nObservation: Answer:42\nan action: yes\n" in episode.text
    spans = [episode.text[start:end] for start, end, _ in episode.to_trajectory().segmented().spans]
    assert spans == ["Action: search[x]\n", "Action: look\n", "Action: buy\n"]


def test_training_mode_is_restored(tokenizer) -> None:
    env = Doors()
    model = tiny_model("gpt2", len(tokenizer)).train()
    seen: list[str] = []
    rollout(model, tokenizer, env, env.tasks[:3], max_turn_tokens=4, on_episode=lambda e: seen.append(e.task.id))
    assert model.training and sorted(seen) == sorted(task.id for task in env.tasks[:3])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decoding": "beam"}, "decoding"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_invalid_arguments(tokenizer, options: dict, word: str) -> None:
    env = Doors()
    with pytest.raises(InputError, match=word):
        rollout(tiny_model("gpt2", len(tokenizer)), tokenizer, env, env.tasks, **options)


def test_tokenizer_larger_than_the_model_or_without_offsets(tokenizer) -> None:
    env = Doors()
    with pytest.raises(InputError, match="vocabulary"):
        rollout(tiny_model("gpt2", 20), tokenizer, env, env.tasks)
    with pytest.raises(InputError, match="fast tokenizer"):
        rollout(tiny_model("gpt2", 400), SimpleNamespace(is_fast=False), env, env.tasks)


def test_a_sliding_window_hides_earlier_tokens() -> None:
    """A token 8 places back matters to the tests above only if the window is in force."""
    model, ids = tiny_model("mistral", 50), torch.arange(30)[None]
    other = ids.clone()
    other[0, :10] += 1
    assert torch.equal(model(ids).logits[0, -1], model(other).logits[0, -1])  # two layers see at most 15 tokens


def test_other_layers_play_one_after_the_other(tokenizer) -> None:
    """A hybrid of recurrent and attention layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = {f"linear_{name}": 2 for name in ("num_value_heads", "num_key_heads")}
    heads |= {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    experts = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_next", vocab_size=len(tokenizer), **sizes, **heads, **experts)
    model, env = AutoModelForCausalLM.from_config(config).eval(), Doors()
    limits = {"max_steps": 2, "max_turn_tokens": 4, "max_length": 64}
    with pytest.warns(UserWarning, match="batch_size is 1 instead of 64: Qwen3NextForCausalLM has layers that are not full"):
        together = rollout(model, tokenizer, env, env.tasks[:2], **limits)
    alone = [rollout(model, tokenizer, env, [task], batch_size=1, **limits)[0] for task in env.tasks[:2]]
    assert [episode.token_ids for episode in together] == [episode.token_ids for episode in alone]
    with pytest.raises(InputError, match="batch_size: expected 1 for a model with layers that are not"):
        CachedBatch(model, [[1, 2], [3]])
