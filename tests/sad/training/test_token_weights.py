"""Weights from the data, from turns, from the teacher's confidence and from the divergence of turns, as plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from sad import SADTrainer, SpanCollator
from sad.errors import InputError
from sad.training.difficulty import read_rows
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny
from tests.sad.training.test_losses import STEP, stepped
from tests.sad.training.test_trainer import logged, weights

DATA = tiny.examples(6)


def weighted(examples: list[dict], seed: int = 3) -> list[dict]:
    """Examples with weights, every fourth of them 0."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for example in examples:
        column = torch.rand(len(example["input_ids"]), generator=rng) * 2
        column[::4] = 0.0
        made.append({**example, "token_weights": column.tolist()})
    return made


def teacher():
    return tiny.model(seed=1, sharpness=30)


def turns_of(example: dict) -> list[list[int]]:
    """The positions of the tokens with a loss, turn by turn."""
    kinds, ids = example["span_ids"], example.get("turn_ids")
    turns, before = [], None
    for position, kind in enumerate(kinds):
        turn = (kind in (1, 2)) if ids is None else ids[position]
        if turn != before:
            turns.append([])
        before = turn
        if kind in (1, 2) and position:
            turns[-1].append(position)
    return [turn for turn in turns if turn]


def rows_of(student, example: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher || student) and 1 - entropy / log V of the teacher, for each token (T,); the first has none."""
    ids = torch.tensor([example["input_ids"]])
    p = F.log_softmax(teacher().eval()(ids).logits[0, :-1].detach(), -1)
    q = F.log_softmax(student(ids).logits[0, :-1], -1)
    pad = lambda x: F.pad(x, (1, 0))  # noqa: E731
    return pad((p.exp() * (p - q)).sum(-1)), pad(1 + (p.exp() * p).sum(-1) / math.log(300))


def plain_loss(student, examples: list[dict], fields: dict) -> torch.Tensor:
    """The loss of a step, one token at a time."""
    total, divisor = 0.0, 0.0
    lambdas = {1: fields.get("lambda_reason", 1.0), 2: fields.get("lambda_act", 1.0)}
    for example in examples:
        given = example.get("token_weights", [1.0] * len(example["input_ids"]))
        divergence, confidence = rows_of(student, example)
        turns = [[t for t in turn if given[t] > 0] for turn in turns_of(example)]
        turns = [turn for turn in turns if turn]
        means = [divergence[turn].mean().item() for turn in turns]
        for number, turn in enumerate(turns):
            for t in turn:
                static, step = given[t], 1.0
                if fields.get("turn_balance", "none") != "none":
                    static /= sum(given[u] for u in turn)
                if fields.get("turn_balance") == "decay":
                    static *= 0.5 ** (number / fields["turn_half_life"])
                if fields.get("token_weighting") == "confidence":
                    step = confidence[t].item()
                if fields.get("token_weighting") == "step_divergence":
                    step = min((means[0] + 1e-6) / (means[number] + 1e-6), fields.get("step_weight_limit", 1.5))
                total = total + lambdas[example["span_ids"][t]] * static * step * divergence[t]
                divisor += static
    return total / divisor


CASES = {
    "data": (weighted, {}),
    "equal": (list, {"turn_balance": "equal"}),
    "decay": (list, {"turn_balance": "decay", "turn_half_life": 1.5}),
    "equal and data": (weighted, {"turn_balance": "equal", "lambda_act": 2.0}),
    "confidence": (list, {"token_weighting": "confidence"}),
    "step divergence": (list, {"token_weighting": "step_divergence", "step_weight_limit": 1.1}),
    "all": (weighted, {"token_weighting": "step_divergence", "turn_balance": "decay", "turn_half_life": 2.0}),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    tiny_cache.write(folder, DATA, top_k=300, dtype="float32")
    return folder


@pytest.mark.parametrize("source", ["hidden", "logits", "cache"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_plain_formula(config, cache, case: str, source: str):
    """The loss, the weights after a step of two accumulated batches, and the evaluation, which has no step weights."""
    change, fields = CASES[case]
    data = change(DATA)
    fields = {**STEP, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, **fields}
    made = SADTrainer(
        tiny.model(seed=2),
        args=config(**fields, loss_from="auto" if source == "cache" else source),
        train_dataset=data,
        eval_dataset=data,
        **({"teacher_cache": cache} if source == "cache" else {"teacher_model": teacher()}),
    )
    plain = tiny.model(seed=2)
    static = {name: x for name, x in fields.items() if name != "token_weighting"}
    assert made.evaluate()["eval_loss"] == pytest.approx(plain_loss(plain, data, static).item(), rel=1e-5)
    expected = plain_loss(plain, data, fields)
    after = stepped(plain, expected)
    made.train()
    assert logged(made, "loss")[0] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(weights(made), after, rtol=0, atol=2e-6)
    if "token_weighting" in fields:
        assert 0 < logged(made, "mean_weight_reason")[0] <= 1.5
    else:
        assert not [name for entry in made.state.log_history for name in entry if name.startswith("mean_weight")]


def test_weights_of_one_are_no_weights(trainer):
    ones = [{**x, "token_weights": [1.0] * len(x["input_ids"])} for x in DATA]
    runs = [trainer(train=data, max_steps=2, curriculum=False) for data in (DATA, ones)]
    for run in runs:
        run.train()
    assert logged(runs[0], "loss") == pytest.approx(logged(runs[1], "loss"), rel=1e-6)
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=0, atol=1e-6)


def test_turn_ids_join_spans_with_gaps():
    """Reasoning, a gap, an action, and one action of another turn."""
    example = {"input_ids": [5] * 8, "span_ids": [0, 1, 1, 0, 2, 0, 2, 0], "turn_ids": [0, 1, 1, 1, 1, 0, 2, 0]}
    batch = SpanCollator(turn_balance="equal")([example])
    torch.testing.assert_close(batch["token_weights"], torch.tensor([[0, 1, 1, 0, 1, 0, 3, 0]]) / 3)
    assert batch["turn_ids"].tolist() == [example["turn_ids"]]
    without = SpanCollator(turn_balance="decay", turn_half_life=1.0)([{**example, "turn_ids": None}])
    torch.testing.assert_close(without["token_weights"], torch.tensor([[0, 0.5, 0.5, 0, 0.5, 0, 0.25, 0]]))


def test_an_example_without_a_token_of_weight(trainer):
    """All weights 0 in one example, and in a whole batch: the loss is 0, not NaN."""
    data = [{**x, "token_weights": [0.0] * len(x["input_ids"])} for x in DATA[:2]]
    for fields in ({}, {"turn_balance": "equal"}, {"token_weighting": "step_divergence"}):
        made = trainer(train=data, max_steps=1, per_device_train_batch_size=2, curriculum=False, **fields)
        made.train()
        assert logged(made, "loss") == [0.0]


def test_the_digest_of_the_data_has_the_weights():
    digests = {read_rows(data, 96).digest for data in (DATA, weighted(DATA), weighted(DATA, seed=4))}
    assert len(digests) == 3


def refused(where: str, run: Callable) -> None:
    with pytest.raises(InputError) as caught:
        run()
    assert caught.value.where.startswith(where)


def test_refused(config, trainer):
    for fields, name in (
        ({"turn_balance": "turn"}, "turn_balance"),
        ({"turn_half_life": 0.0}, "turn_half_life"),
        ({"token_weighting": "sod"}, "token_weighting"),
        ({"step_weight_limit": 0.5}, "step_weight_limit"),
    ):
        refused(name, lambda fields=fields: config(**fields))
    refused("turn_balance", lambda: SpanCollator(turn_balance="turn"))
    collate = SpanCollator()
    one, other = ({**x, "token_weights": [1.0] * len(x["input_ids"])} for x in DATA[:2])
    refused("token_weights of example 1", lambda: collate([one, DATA[1]]))
    refused("token_weights of example 1", lambda: collate([one, {**other, "token_weights": [1.0]}]))
    for wrong in (-1.0, math.nan, math.inf):
        refused("token_weights", lambda wrong=wrong: collate([{**one, "token_weights": [wrong, *one["token_weights"][1:]]}]))
    for collator in (SpanCollator(), list):
        args = config(turn_balance="equal")
        refused(
            "data_collator",
            lambda args=args, collator=collator: SADTrainer(tiny.model(), teacher(), args, DATA, data_collator=collator),
        )
