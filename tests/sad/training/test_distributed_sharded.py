"""Two processes that share the weights of student and teacher train the same weights as one process that holds all."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from sad.errors import InputError
from tests.processes import run_two
from tests.sad.training import sharded_worker as worker

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    """Returns the results of one process."""
    return worker.one_process(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("fsdp2", "FSDP"),
        pytest.param("zero2", "DEEPSPEED", marks=needs_deepspeed),
        pytest.param("zero3", "DEEPSPEED", marks=needs_deepspeed),
    ],
)
def test_sharded_processes_are_one(one, tmp_path, monkeypatch, strategy, kind):
    """Compares losses, gradient norm, evaluation and weights for each loss. The teacher is sharded too.

    Adapters in bfloat16 are trained and resumed in the same processes, to the same bits.
    """
    pytest.importorskip("peft")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run_two("tests.sad.training.sharded_worker", tmp_path, strategy)
    two = torch.load(tmp_path / "result.pt")
    start = worker.weights(worker.trainer(tmp_path / "new", "logits", batch=4))
    for loss, alone in one.items():
        shared = two[loss]
        assert shared["type"].endswith(kind) and len(shared["logs"]) == 3
        for ours, theirs in zip(alone["logs"], shared["logs"]):
            assert theirs == pytest.approx(ours, rel=1e-5)
        assert shared["eval"] == pytest.approx(alone["eval"], rel=1e-5)
        torch.testing.assert_close(shared["weights"], alone["weights"], rtol=0, atol=1e-5)
        assert (alone["weights"] - start).abs().max() > 1e-2
    whole, resumed = (two["adapters"][name] for name in ("whole", "resumed"))
    assert len(whole["losses"]) == 4 and resumed["losses"] == whole["losses"]
    assert torch.equal(resumed["weights"], whole["weights"])
    assert (whole["weights"] - whole["start"]).abs().max() > 1e-2
    alone = worker.adapters(tmp_path / "alone", batch=4)
    alone.train()
    expected = [log["loss"] for log in alone.state.log_history if "loss" in log]
    assert whole["losses"] == pytest.approx(expected, rel=5e-3)  # AdamW amplifies the rounding of bfloat16
    assert (tmp_path / "adapters" / "model" / "adapter_model.safetensors").is_file()
    if strategy == "fsdp2":
        with pytest.raises(InputError, match=r"a checkpoint saved with one model per process, got .*saved with FSDP"):
            alone.train(resume_from_checkpoint=str(tmp_path / "adapters" / "checkpoint-2"))
