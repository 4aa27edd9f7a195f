"""Faults during training: kills and full disks at a checkpoint save, damaged checkpoints, NaN, and a second writer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from sad import files
from sad.errors import InputError
from sad.training import checkpoints, finite
from sad.training.finite import NonFiniteError
from tests.sad.training import tiny

SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 3}


class Killed(BaseException):
    """Like SIGKILL: no handler catches it."""


def weights(trainer) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in trainer.model.parameters()])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def fail_save(monkeypatch, moment: int, error: BaseException) -> None:
    """Raises at the nth file operation of the second save, and at all later ones."""
    seen = saves = 0
    save = checkpoints.clear_staging

    def counted(folder):
        nonlocal saves
        saves += 1
        return save(folder)

    monkeypatch.setattr(checkpoints, "clear_staging", counted)

    def failing(inner):
        def operation(*args, **kwargs):
            nonlocal seen
            seen += saves == 2
            if saves == 2 and seen > moment:
                raise error
            return inner(*args, **kwargs)

        return operation

    for owner, name in ((torch, "save"), (os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"), (os, "rmdir")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))


def test_a_save_that_fails_at_any_operation_leaves_a_checkpoint_to_resume_from(trainer, tmp_path, monkeypatch):
    """Every fifth operation of a save that replaces the only checkpoint. With `save_total_limit=1` there is no other."""
    whole = trainer(**SAVING)
    whole.train()
    expected, run, seen = weights(whole), tmp_path / "run", set()
    assert names(run) == ["checkpoint-3"]
    for moment in range(0, 200, 5):
        shutil.rmtree(run)
        error = Killed() if moment % 2 else OSError(28, "No space left on device")
        with monkeypatch.context() as patch:
            fail_save(patch, moment, error)
            try:
                trainer(**SAVING).train()
                failed = False
            except (Killed, OSError):
                failed = True
        if not failed:
            break
        resumed = trainer(**SAVING)
        found = resumed.newest_checkpoint(lambda line: None)
        assert found is not None and found.name in ("checkpoint-1", "checkpoint-2")
        if found.name not in seen:
            seen.add(found.name)
            resumed.train(resume_from_checkpoint=True)
            assert torch.equal(weights(resumed), expected)
            assert names(run) == ["checkpoint-3"]
    assert not failed and seen == {"checkpoint-1", "checkpoint-2"}


def test_a_damaged_checkpoint_is_skipped_or_refused(trainer, tmp_path):
    trainer(**SAVING | {"save_total_limit": None}).train()
    run, said = tmp_path / "run", []
    assert names(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    victim = run / "checkpoint-2" / "model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    made = trainer(**SAVING)
    assert made.newest_checkpoint(said.append) == run / "checkpoint-1"
    assert "optimizer.pt is missing" in said[0] and "model.safetensors was changed" in said[1]
    with pytest.raises(InputError, match=r"checkpoint-2.*model.safetensors was changed"):
        made.train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_the_best_checkpoint_is_kept_and_loaded(trainer, tmp_path):
    """The base class sees the hidden folder during a save; its state must name the final one."""
    fields = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    made = trainer(eval=tiny.examples(3), **SAVING, **fields)
    made.train()
    best = made.state.best_model_checkpoint
    assert Path(best) == tmp_path / "run" / f"checkpoint-{made.state.best_global_step}" and Path(best).is_dir()
    state = json.loads((Path(best) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best
    assert files.find_damage(Path(best)) is None


# --- NaN ---


def poison(model, value: float = torch.nan):
    with torch.no_grad():
        model.lm_head.weight[5, 0] = value
    return model


def poison_step(trainer, *numbers: int) -> None:
    """Makes the gradient of these batches NaN, counted from 1."""
    seen, inner = 0, trainer.compute_loss

    def compute_loss(*args, **kwargs):
        nonlocal seen
        seen += 1
        return inner(*args, **kwargs) * (torch.nan if seen in numbers else 1.0)

    trainer.compute_loss = compute_loss


def test_training_stops_before_the_first_nan_reaches_the_weights(trainer, tmp_path):
    made = trainer(**SAVING)
    poison_step(made, 3)
    with pytest.raises(NonFiniteError, match=r"training step 3: .*loss that is NaN") as caught:
        made.train()
    assert names(tmp_path / "run") == ["checkpoint-2"] and "checkpoint-2" in str(caught.value)
    assert "4 of the 4 rows of its batch: example " in str(caught.value)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(weights(made), torch.cat([x.detach().flatten() for x in saved.parameters()]))


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_model_with_nan_never_trains_to_the_end(trainer, tmp_path, side, policy):
    student, teacher = tiny.model(seed=2), tiny.model(seed=1, sharpness=30)
    poison(student if side == "student" else teacher)
    made = trainer(student, teacher, curriculum_gamma=0.0, loss_from="logits", nan_policy=policy, **SAVING)
    with pytest.raises(NonFiniteError, match="every step was skipped" if (side, policy) == ("teacher", "skip") else "NaN"):
        made.train()
    if policy == "stop" or side == "student":
        assert not names(tmp_path / "run")


def test_a_huge_learning_rate_does_not_rotate_the_good_checkpoint_away(trainer, tmp_path):
    trainer(**SAVING | {"max_steps": 1}).train()
    made = trainer(**SAVING | {"max_steps": 9, "learning_rate": 1e38, "optim": "sgd", "warmup_steps": 0})
    with pytest.raises(NonFiniteError):
        made.train()
    [name] = names(tmp_path / "run")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / name)
    assert all(torch.isfinite(x).all() for x in saved.parameters())


def test_parameters_that_are_not_finite_are_not_saved(trainer, tmp_path):
    """The loss before the update was finite, so only the save can see it."""

    class Overflow(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
            if state.global_step == 2:
                poison(model, torch.inf)

    made = trainer(**SAVING)
    made.add_callback(Overflow())
    with pytest.raises(NonFiniteError, match="a parameter of the student"):
        made.train()
    assert names(tmp_path / "run") == ["checkpoint-1"]


def test_only_the_bad_row_is_named(trainer):
    """The fault is in one example: a token whose embedding in the teacher is NaN."""
    data = tiny.examples(4)
    data[2]["input_ids"][1] = 300
    student, teacher = (tiny.model(seed=seed, vocabulary=301) for seed in (2, 1))
    with torch.no_grad():
        teacher.transformer.wte.weight[300] = torch.nan
    made = trainer(student, teacher, train=data, curriculum=False, loss_from="logits")
    made.finite_guard.example_names = ["a", "b", "c", "d"]
    with pytest.raises(NonFiniteError, match=r"1 of the 4 rows of its batch: trajectory 'c'\. "):
        made.train()


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_skip_leaves_the_step_out_and_counts_it(trainer, optim):
    made, seen = trainer(nan_policy="skip", optim=optim, max_steps=4), []
    poison_step(made, 2)
    made.add_callback(_Record(seen))
    made.train()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    logs = [log for log in made.state.log_history if "loss" in log]
    assert [log["skipped_steps"] for log in logs] == [0, 1, 1, 1]
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in logs) and logs[1]["loss"] == 0


def test_a_fused_optimizer_withholds_the_step_by_the_flag_on_the_device():
    """What a GPU relies on: the optimizer reads `found_inf` without the host."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    for found, changes in ((1.0, False), (0.0, True)):
        before = parameter.detach().clone()
        parameter.grad = torch.full((3,), torch.nan if found else 1.0)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert torch.equal(before, parameter) is not changes


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_the_flag_is_read_one_step_late_on_a_gpu(trainer, monkeypatch, policy):
    """The path of a CUDA device, on the CPU: the optimizer withholds the step, and the host reads its flag in the next."""
    read = []

    class Copied:
        def synchronize(self) -> None:
            read.append(made.state.global_step + 1)

    monkeypatch.setattr(finite, "_copy_to_host", lambda flag: (flag.clone(), Copied()))
    made, seen = trainer(nan_policy=policy, max_steps=4, logging_steps=100), []
    made.finite_guard._reads_late = True
    poison_step(made, 2)
    made.add_callback(_Record(seen))
    if policy == "stop":
        with pytest.raises(NonFiniteError, match="training step 2"):
            made.train()
        assert made.state.global_step == 2
    else:
        made.train()
        assert made.finite_guard.skipped == 1 and not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[0], seen[1]) and read[:2] == [2, 3]


def test_a_bad_policy_is_refused(config):
    with pytest.raises(InputError, match="nan_policy"):
        config(nan_policy="ignore")


class _Record(TrainerCallback):
    """Stores the parameters after every step."""

    def __init__(self, seen: list) -> None:
        self._seen = seen

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self._seen.append(torch.cat([x.detach().flatten().clone() for x in model.parameters()]))
