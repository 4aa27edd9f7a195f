"""Checkpoints of one strategy in a run of another: one message before anything is loaded."""

from __future__ import annotations

import pytest

from sad.errors import InputError
from sad.training.checkpoints import check_strategy

PLAIN, FSDP = ["model.safetensors", "optimizer.pt"], ["model.safetensors", "optimizer.bin", "pytorch_model_fsdp.bin"]
ZERO = [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
SHARDED = ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"]


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a function that makes a checkpoint with these files."""

    def make(names: list[str]):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "strategy"),
    [(PLAIN, "one model per process"), (FSDP, "FSDP"), (SHARDED, "FSDP"), ([*PLAIN, *ZERO], "DeepSpeed")],
)
def test_a_checkpoint_resumes_with_its_own_strategy(checkpoint, names, strategy):
    path = checkpoint(names)
    check_strategy(path, strategy, processes=2)
    for other in {"one model per process", "FSDP", "DeepSpeed"} - {strategy}:
        with pytest.raises(InputError, match=f"a checkpoint saved with {other}, got .*, saved with {strategy}"):
            check_strategy(path, other, processes=2)


def test_deepspeed_needs_the_same_number_of_processes(checkpoint):
    with pytest.raises(InputError, match=r"a DeepSpeed checkpoint of 4 processes, got .*, saved by 2"):
        check_strategy(checkpoint(ZERO), "DeepSpeed", processes=4)


def test_fsdp_does_not(checkpoint):
    check_strategy(checkpoint(FSDP), "FSDP", processes=4)


def test_the_trainer_checks(trainer, checkpoint):
    with pytest.raises(InputError, match="resume_from_checkpoint: expected a checkpoint saved with one model per process"):
        trainer().train(resume_from_checkpoint=str(checkpoint(FSDP)))
