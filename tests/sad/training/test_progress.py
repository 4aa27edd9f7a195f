"""The table of a training in the terminal, and the names that loggers get."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
from transformers import ProgressCallback, TrainerState
from transformers.integrations import integration_utils

from sad.training.progress import LogTable, step_line
from tests.sad.training import tiny


@pytest.fixture
def shown(trainer):
    """Returns a function that trains with a table and returns its lines."""

    def run(**fields) -> list[str]:
        lines: list[str] = []
        made = trainer(**fields)
        LogTable.install(made)
        made.remove_callback(LogTable)
        made.add_callback(LogTable(lines.append))
        made.train()
        return lines

    return run


def test_one_row_per_log_in_80_columns(shown, capsys):
    lines = shown(max_steps=3, eval={"seen": tiny.examples(4), "new": tiny.examples(4)}, eval_strategy="steps", eval_steps=3)
    assert lines[0].split() == ["step", "loss", "reason", "act", "agree", "lr", "tok/s", "GiB"]
    assert [line.split()[0] for line in lines[1:4]] == ["1/3", "2/3", "3/3"]
    assert [line.split()[:2] for line in lines[4:]] == [["eval", "seen"], ["eval", "new"]]
    assert all(len(line) <= 80 for line in lines)
    assert "{'loss'" not in capsys.readouterr().out
    values = lines[1].split()
    assert float(values[1]) > 0 and values[4].endswith("%")
    ends = [lines[0].index(name) + len(name) for name in ("loss", "reason", "act")]
    assert all(line[end - 1].isdigit() for line in lines[1:] for end in ends)  # numbers end below their headings


def test_observations_have_a_column(shown):
    lines = shown(train=tiny.examples(8, observe=True), lambda_observe=0.3, max_steps=1)
    assert "observe" in lines[0].split() and all(len(line) <= 80 for line in lines)


def test_own_trajectories_have_columns_before_their_first_batch():
    """The first log may be of a step without own batches, and a later one of a step with own batches alone."""
    lines: list[str] = []
    table, state = LogTable(lines.append), TrainerState(max_steps=20000, global_step=1)
    shared = {"learning_rate": 2e-5, "tokens_per_second": 1000.0, "peak_memory_gib": 1.0}
    first = {"loss": 1.5, "loss_reason": 1.25, "loss_act": 2.5, "on_policy_share": 0.0}
    later = {"loss": 0.5, "on_policy_loss_reason": 0.25, "on_policy_loss_act": 0.75, "on_policy_share": 1.0}
    table.on_log(None, state, None, logs=shared | first)
    state.global_step = 20000
    table.on_log(None, state, None, logs=shared | later | {"rollout_success": 0.4})
    assert lines[0].split() == ["step", "loss", "reason", "act", "own", "reason", "act", "solved", "lr"]
    assert lines[1].split() == ["1/20000", "1.5000", "1.2500", "2.5000", "0%", "2.0e-05"]
    assert lines[2].split() == ["20000/20000", "0.5000", "100%", "0.2500", "0.7500", "40%", "2.0e-05"]
    assert all(len(line) == len(lines[0]) <= 80 for line in lines)


def test_the_bar_stays(trainer):
    made = trainer(disable_tqdm=False)
    LogTable.install(made)
    kinds = [type(callback) for callback in made.callback_handler.callbacks]
    assert ProgressCallback not in kinds and any(issubclass(kind, ProgressCallback) for kind in kinds)


def test_a_step(trainer):
    made = trainer(per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert step_line(made) == "1 process x 4 x 3 accumulated = 12 trajectories per step"
    assert step_line(trainer(per_device_train_batch_size=2)) == "1 process x 2 = 2 trajectories per step"


class Writer:
    """Takes the place of TensorBoard's `SummaryWriter`."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append(value)

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None  # add_text, flush, close


def test_names_in_a_logger(trainer, monkeypatch):
    """The callback of transformers sends every log as a number below `train/` or `eval/`."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    sets, writer = {"seen": tiny.examples(4), "new": tiny.examples(4)}, Writer()
    made = trainer(max_steps=2, eval=sets, eval_strategy="steps", eval_steps=2)
    made.add_callback(integration_utils.TensorBoardCallback(writer))
    made.train()
    kinds = ("loss_reason", "loss_act", "agreement_reason", "agreement_act", "tokens_reason", "student_entropy_act")
    expected = {f"train/{name}" for name in ("loss", *kinds, "curriculum_share", "tokens_per_second", "peak_memory_gib")}
    expected |= {f"eval/{set_name}_{name}" for set_name in ("seen", "new") for name in ("loss", *kinds)}
    assert expected <= writer.scalars.keys()
    assert all(re.fullmatch(r"(train|eval)/[a-z_]+", name) for name in writer.scalars)
    logged = [log["loss_act"] for log in made.state.log_history if "loss_act" in log]
    assert writer.scalars["train/loss_act"] == logged and len(logged) == 2
