"""Attacks by numbers that are not finite: in a student, a teacher, the learning rate, a loss or a gradient."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.soak.cases import Case, attack, carry_on
from tests.soak.commands import Result, sad
from tests.soak.inputs import STEPS

_BAD = (math.nan, math.inf, -math.inf)


@attack("a number that is not finite: student")
def student(case: Case) -> None:
    """One weight of the student is bad from the start, so nothing may be saved."""
    model = _poisoned(case, "student")
    _stopped(case, _run(case, student=model), checkpoints=False)


@attack("a number that is not finite: teacher")
def teacher(case: Case) -> None:
    """One weight of the teacher is bad. Without the curriculum's entropy the loss is the first to see it."""
    model = _poisoned(case, "teacher")
    gamma = ["--curriculum-gamma", "0"] if case.rng.random() < 0.5 else []
    _stopped(case, _run(case, *gamma, teacher=model), checkpoints=False)


@attack("a number that is not finite: teacher of a cache")
def teacher_of_cache(case: Case) -> None:
    model, task = _poisoned(case, "teacher"), case.inputs.tasks["cache"]
    out = case.folder / task.out
    sad(*_replaced(case, task.start(out), teacher=model), log=case.log).check(2)
    carry_on(case, task, out)


@attack("a number that is not finite: learning rate")
def learning_rate(case: Case) -> None:
    """The steps are so large that the weights overflow. Whatever was saved before is finite."""
    optim = case.rng.choice(("sgd", "adamw_torch", "adamw_torch_fused"))
    rate = "1e38" if optim == "sgd" else "1e30"
    _stopped(case, _run(case, "--learning-rate", rate, "--optim", optim, "--warmup-steps", "0"), checkpoints=True)


@attack("a number that is not finite: one step")
def one_step(case: Case) -> None:
    """The loss or only the gradient of one step is bad. The training stops, and continues when the cause is gone."""
    step = case.rng.randrange(1, STEPS + 1)
    task, out = case.inputs.tasks["train"], case.folder / "run"
    result = _run(case, before=_bad_step(case, step))
    _stopped(case, result, checkpoints=True)
    assert f"training step {step}:" in result.said, result.said
    carry_on(case, task, out)


@attack("a number that is not finite: one step, skipped")
def skipped_step(case: Case) -> None:
    step = case.rng.randrange(1, STEPS + 1)
    result = _run(case, "--nan-policy", "skip", "--logging-steps", "1", before=_bad_step(case, step))
    result.check(0)
    _all_finite(case.folder / "run")
    logs = [json.loads(line) for line in (case.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [log["skipped_steps"] for log in logs if "skipped_steps" in log]
    assert skipped == [int(number >= step) for number in range(1, STEPS + 1)], skipped


def _run(case: Case, *words: str, before: Callable[[], None] | None = None, **models: Path) -> Result:
    """Runs the training with other words and models."""
    start = case.inputs.tasks["train"].start(case.folder / "run")
    return sad(*_replaced(case, start, **models), *words, log=case.log, before=before)


def _replaced(case: Case, words: list[str], **models: Path) -> list[str]:
    paths = {str(case.inputs.folder / name): str(path) for name, path in models.items()}
    return [paths.get(word, word) for word in words]


def _poisoned(case: Case, name: str) -> Path:
    """Returns a copy of a model with one bad weight. In a teacher it is one that every logit depends on."""
    from safetensors.torch import load_file, save_file

    path = case.folder / name
    shutil.copytree(case.inputs.folder / name, path)
    weights = load_file(path / "model.safetensors")
    names = sorted(key for key in weights if name == "student" or ".h." in key or ".ln_f." in key)
    tensor = weights[case.rng.choice(names)].view(-1)
    tensor[case.rng.randrange(len(tensor))] = case.rng.choice(_BAD)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _bad_step(case: Case, step: int) -> Callable[[], None]:
    """Returns a function that makes the loss of a step bad, or its gradient alone."""
    value, gradient = case.rng.choice(_BAD), case.rng.random() < 0.5

    def before() -> None:
        from sad.training.trainer import SADTrainer

        inner, seen = SADTrainer.compute_loss, 0

        def compute_loss(self, *args, **kwargs):
            nonlocal seen
            seen += 1
            loss = inner(self, *args, **kwargs)
            if seen == step and gradient:
                loss.register_hook(lambda upstream: upstream * value)
            return loss * value if seen == step and not gradient else loss

        SADTrainer.compute_loss = compute_loss

    return before


def _stopped(case: Case, result: Result, *, checkpoints: bool) -> None:
    """Checks that a training ended with one message, and that only finite weights were saved."""
    run = case.folder / "run"
    result.check(2)
    assert not (run / "model").exists()
    saved = sorted(path.name for path in run.glob("checkpoint-*"))
    assert checkpoints or not saved, saved
    _all_finite(run)


def _all_finite(run: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for path in run.rglob("*.safetensors"):
        bad = [name for name, tensor in load_file(path).items() if not torch.isfinite(tensor).all()]
        assert not bad, f"{path.relative_to(run)}: {bad}"
    for path in run.rglob("optimizer.pt"):
        state = torch.load(path, weights_only=True)["state"]
        bad = [key for entry in state.values() for key, x in entry.items() if not torch.isfinite(torch.as_tensor(x)).all()]
        assert not bad, f"{path.relative_to(run)}: {bad}"
