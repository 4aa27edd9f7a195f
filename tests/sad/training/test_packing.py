"""Packed batches train as padded ones."""

from __future__ import annotations

import pytest
import torch

from sad import SADTrainer, SpanCollator
from sad.errors import InputError
from sad.training.finite import NonFiniteError
from sad.training.packing import pack_batch, padding_share, place_examples, why_not_packed
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

DATA = sorted(tiny.examples(16), key=lambda x: len(x["input_ids"]) * (-1) ** len(x["input_ids"]))  # short beside long
SHORT = {"max_steps": 3, "curriculum": False, "optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 6}


def teacher(family: str = "gpt2"):
    return tiny.model(family, seed=1, sharpness=30)


def with_columns(examples: list[dict]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [{**x, "token_weights": torch.rand(len(x["input_ids"]), generator=generator).tolist()} for x in examples]


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("hidden", {}),
        ("logits", {}),
        ("cache", {}),
        ("llama", {"ce_weight": 0.5}),
        ("hidden", {"turn_balance": "decay"}),
        ("cache", {"token_weighting": "confidence"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_training_is_the_same(config, tmp_path, source, fields):
    family = "llama" if source == "llama" else "gpt2"
    data = with_columns(DATA) if "turn_balance" in fields else DATA
    models = {"teacher_model": teacher(family)}
    if source == "cache":
        tiny_cache.write(tmp_path / "cache", DATA, top_k=300, dtype="float32")
        models = {"teacher_cache": tmp_path / "cache"}
    loss_from = source if source in ("hidden", "logits") else "auto"
    runs = []
    for packing in ("never", "always"):
        args = config(**SHORT, **fields, packing=packing, loss_from=loss_from)
        runs.append(SADTrainer(tiny.model(family, seed=2), args=args, train_dataset=data, eval_dataset=data, **models))
        runs[-1].train()
    padded, packed = runs
    for name in ("loss", "loss_reason", "loss_act", "agreement_act", "tokens_reason", "teacher_entropy_act"):
        assert logged(packed, name) == pytest.approx(logged(padded, name), rel=1e-5), name
    torch.testing.assert_close(weights(packed), weights(padded), rtol=0, atol=1e-5)
    assert packed.evaluate()["eval_loss"] == pytest.approx(padded.evaluate()["eval_loss"], rel=1e-5)


def test_a_batch_has_fewer_rows():
    examples = [{"input_ids": [10 * i + t for t in range(n)], "span_ids": [1] * n} for i, n in enumerate((5, 2, 3, 1), 1)]
    batch = SpanCollator(packing="always")(examples)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14], [30, 31, 32, 20, 21], [40, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch["token_mask"].sum().item() == 11 and "attention_mask" not in batch
    assert batch["span_ids"].tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]
    predicts = batch["input_ids"].flatten()[batch["loss_rows"]].tolist()
    assert predicts == [10, 11, 12, 13, 20, 30, 31]  # in the order of the examples


def test_auto_packs_only_with_padding():
    alike = [{"input_ids": [5] * n, "span_ids": [2] * n} for n in (20, 19, 20)]
    for lengths, packed in ((alike, False), ([*alike, {"input_ids": [5], "span_ids": [0]}], True)):
        assert ("token_mask" in SpanCollator(packing="auto")(lengths)) is packed
    assert padding_share([20, 10], 20) == 0.25


def test_examples_are_placed_where_they_fit():
    lengths = [3, 9, 4, 6, 1, 10, 7]
    rows = place_examples(lengths, 10)
    assert sorted(index for row in rows for index in row) == list(range(7))
    assert all(sum(lengths[index] for index in row) <= 10 for row in rows) and len(rows) == 4  # 40 tokens


def test_turns_of_neighbors_are_apart():
    examples = [{"input_ids": [5, 6], "span_ids": [1, 1], "turn_ids": [7, 7]} for _ in range(2)]
    batch = SpanCollator()([*examples, {"input_ids": [5] * 4, "span_ids": [0] * 4, "turn_ids": [0] * 4}])
    turns = pack_batch(batch, [2, 2, 4])["turn_ids"][1]
    assert turns[0] == turns[1] != turns[2] == turns[3]


def test_a_model_that_cannot(config, trainer):
    """OPT computes its positions from the mask."""
    assert why_not_packed(tiny.model("opt")) is not None and why_not_packed(tiny.model("llama")) is None
    with pytest.raises(InputError, match="packing"):
        trainer(tiny.model("opt"), packing="always")
    assert trainer(tiny.model("opt")).data_collator.packing == "never"
    for fields in ({"contrastive_weight": 0.3}, {"token_weighting": "step_divergence"}):
        assert trainer(**fields).data_collator.packing == "never"
        with pytest.raises(InputError, match="packing"):
            trainer(**fields, packing="always")


def test_a_bad_trajectory_is_named(config):
    """Its token has an embedding that is NaN."""
    data = [dict(x) for x in DATA[:6]]
    unused = min(set(range(10, 300)).difference(*(x["input_ids"] for x in data)))
    data[3]["input_ids"] = [*data[3]["input_ids"][:-1], unused]
    data[3]["span_ids"] = [*data[3]["span_ids"][:-1], 2]
    student = tiny.model(seed=2)
    with torch.no_grad():
        student.transformer.wte.weight[unused] = float("nan")
    made = SADTrainer(student, teacher(), config(**SHORT, packing="always"), train_dataset=data)
    with pytest.raises(NonFiniteError) as caught:
        made.train()
    assert "of the 6 rows of its batch: example 3" in str(caught.value)
