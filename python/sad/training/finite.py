"""Watches for losses, gradients and parameters that are NaN or infinite.

A decision on the host needs the value of a tensor, and reading it waits for the device. So on a CUDA device each step copies
its flag to pinned memory without waiting, and the guard reads it one step later. By then the copy of the next batch to the
device, which the data loader makes, has waited for the step already. The bad step itself does not change the parameters if
the optimizer is fused, which is the default: such an optimizer reads the flag on the device. On other devices, and with
`nan_policy="skip"` and an optimizer that is not fused, the flag is read before the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from sad.errors import InputError
from sad.training.checkpoints import list_checkpoints

MAX_SKIPPED_IN_A_ROW = 20
_NAMED_ROWS = 5

logger = logging.get_logger(__name__)


class NonFiniteError(InputError):
    """The training has reached a loss, gradient or parameter that is NaN or infinite."""


class _Step(NamedTuple):
    """An optimizer step: its number, its flag on the host (above 0: bad), the copy's event, its batches and their flags."""

    number: int
    bad: Tensor
    copied: Any
    batches: list[tuple[Mapping[str, Tensor], Tensor]]


class FiniteGuard(TrainerCallback):
    """Stops the training at the first step with a loss or gradient that is not finite, or skips such steps.

    Args:
        trainer: The `sad.SADTrainer` that it watches. Its type is not imported, because the trainer imports this module.

    Attributes:
        skipped: Number of skipped steps.
        example_names: Names of the training examples for messages; None: their indices.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._policy = trainer.args.nan_policy
        self._reads_late = trainer.args.device.type == "cuda"
        self.example_names: Sequence[str] | None = None
        self._reset()

    def _reset(self) -> None:
        self.skipped = self._in_a_row = self._steps = 0
        self._batches: list[tuple[Mapping[str, Tensor], Tensor]] = []
        self._pending: deque[_Step] = deque()
        self._withheld: torch.optim.Optimizer | None = None

    # --- the step ---

    def add(self, inputs: Mapping[str, Tensor], loss: Tensor) -> None:
        """Records the loss of one batch of the step."""
        names = ("input_ids", "attention_mask", "token_mask", "position_ids")
        kept = {name: inputs[name] for name in names if name in inputs}
        self._batches.append((kept, torch.isfinite(loss.detach()).all()))

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._reset()

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        self.read_flags()
        bad = self._flag(model)
        batches, self._batches = self._batches, []
        self._steps += 1
        inner = getattr(optimizer, "optimizer", optimizer)
        fused = all(group.get("fused") for group in inner.param_groups)
        withholds = fused and self._trainer.accelerator.scaler is None  # a scaler sets the optimizer's flag itself
        if self._reads_late and (withholds or self._policy == "stop"):
            if withholds:
                inner.found_inf, self._withheld = bad, inner
            self._pending.append(_Step(state.global_step + 1, *_copy_to_host(bad), batches))
            return
        self._judge(_Step(state.global_step + 1, bad, None, batches), model)

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self._withheld is not None:
            del self._withheld.found_inf
            self._withheld = None

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.check_all()
        if self._steps and self.skipped == self._steps:
            raise self._error(state.global_step, "every step was skipped")

    def check_all(self) -> None:
        """Reads the flags of all steps and checks the parameters, before a save and at the end. It waits for the device.

        Raises:
            NonFiniteError: A step was bad, or a parameter is not finite.
        """
        self.read_flags()
        if not self._parameters_are_finite():
            raise self._error(self._trainer.state.global_step, "a parameter of the student is NaN or infinite")

    def read_flags(self) -> None:
        """Reads the flags of all steps so far, so that `skipped` is right. It waits for these steps on the device.

        Raises:
            NonFiniteError: A step was bad.
        """
        while self._pending:
            step = self._pending.popleft()
            step.copied.synchronize()
            self._judge(step, None)

    def _flag(self, model: nn.Module) -> Tensor:
        """Returns 1.0 on the device if a loss or the gradient is not finite, over all processes, else 0.0."""
        accelerator = self._trainer.accelerator
        flags = [~finite for _, finite in self._batches]
        if accelerator.scaler is None:  # a gradient scaler expects infinite gradients, and skips them itself
            gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
            if gradients:
                flags.append(~torch.isfinite(torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)))
        device = self._trainer.args.device
        bad = torch.stack([flag.to(device) for flag in flags]).any().float()
        if accelerator.num_processes > 1:
            bad = accelerator.reduce(bad, reduction="sum").clamp(max=1.0)
        return bad

    def _judge(self, step: _Step, model: nn.Module | None) -> None:
        """Stops or skips a bad step. With a model, the optimizer has not run yet."""
        if not step.bad.item():
            self._in_a_row = 0
            return
        finite = self._parameters_are_finite()
        if self._policy == "stop" or not finite:
            also = "" if finite else "; parameters of the student are NaN or infinite too"
            raise self._error(step.number, self._reason(step) + also)
        self.skipped += 1
        self._in_a_row += 1
        logger.warning("Skipped step %d: %s.", step.number, self._reason(step))
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise self._error(step.number, f"{self._in_a_row} skipped steps in a row")
        if model is not None:
            for parameter in model.parameters():
                parameter.grad = None  # optimizers leave parameters without a gradient as they are

    # --- the message ---

    def _parameters_are_finite(self) -> bool:
        device = self._trainer.args.device
        parameters = (_local(x) for x in self._trainer.model.parameters() if x.is_floating_point())
        flags = [torch.isfinite(x).all().to(device) for x in parameters]
        bad = (~torch.stack(flags)).any().float()
        if self._trainer.accelerator.num_processes > 1:
            bad = self._trainer.accelerator.reduce(bad, reduction="sum")
        return not bad.item()

    def _error(self, step: int, got: str) -> NonFiniteError:
        saved = list_checkpoints(self._trainer.args.output_dir)
        kept = f"The last checkpoint is {saved[0]}." if saved else "There is no checkpoint yet."
        remedy = "Lower the learning rate, inspect these trajectories and both models, or set nan_policy to skip."
        return NonFiniteError(f"training step {step}", "a finite loss, gradient and parameters", got, f"{kept} {remedy}")

    def _reason(self, step: _Step) -> str:
        """Describes a bad step and names its rows."""
        named = [(inputs, bool(finite)) for inputs, finite in step.batches]
        losses_are_finite = all(finite for _, finite in named)
        what = "a gradient that is NaN or infinite" if losses_are_finite else "a loss that is NaN or infinite"
        if not losses_are_finite:
            named = [(inputs, finite) for inputs, finite in named if not finite]
        rows = [row for inputs, _ in named for row in _row_tokens(inputs)]
        examples = self._find_examples(rows)
        total = len(rows)
        if self._trainer.accelerator.num_processes == 1 and not losses_are_finite and None not in examples:
            examples = [index for index in examples if not self._loss_is_finite(index)] or examples
        shown = ", ".join(self._name(index) for index in examples[:_NAMED_ROWS])
        more = ", ..." if len(examples) > _NAMED_ROWS else ""
        where = "this process's batch" if self._trainer.accelerator.num_processes > 1 else "its batch"
        return f"{what}; {len(examples)} of the {total} rows of {where}: {shown}{more}"

    def _name(self, index: int | None) -> str:
        if index is None:
            return "a row that is not in train_dataset"
        return f"example {index}" if self.example_names is None else f"trajectory {self.example_names[index]!r}"

    def _find_examples(self, rows: list[np.ndarray]) -> list[int | None]:
        """Returns the index in the training dataset of each row of tokens."""
        dataset, found = self._trainer.train_dataset, {}
        missing = {row.tobytes() for row in rows}
        for index in range(len(dataset) if hasattr(dataset, "__len__") else 0):
            tokens = np.asarray(dataset[index]["input_ids"], np.int64)[: self._trainer.args.max_length].tobytes()
            if tokens in missing:
                found[tokens] = index
                missing.remove(tokens)
            if not missing:
                break
        return [found.get(row.tobytes()) for row in rows]

    @torch.no_grad()
    def _loss_is_finite(self, index: int) -> bool:
        """Whether the loss of one training example is finite with the current parameters."""
        trainer = self._trainer
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[index]]))
        count = torch.ones((), device=trainer.args.device)
        with trainer.compute_loss_context_manager():
            output = trainer._span_loss(trainer.model_wrapped, batch, count, trainer.accelerator, needs_logits=False)
        return bool(torch.isfinite(output.loss))


def _copy_to_host(flag: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Starts the copy of a flag from a CUDA device to pinned memory. Returns the copy and the event of its end."""
    host = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def _row_tokens(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Returns the tokens of each example of a batch without padding."""
    tokens = inputs["input_ids"].cpu().numpy().astype(np.int64)
    if "token_mask" in inputs:  # packed: an example begins where the positions do
        kept, positions = (inputs[name].cpu().numpy() for name in ("token_mask", "position_ids"))
        rows = zip(tokens, kept.astype(bool), positions)
        return [part for row, real, at in rows for part in np.split(row[real], np.flatnonzero(at[real] == 0)[1:])]
    mask = inputs.get("attention_mask")
    if mask is None:
        return list(tokens)
    return [row[kept] for row, kept in zip(tokens, mask.cpu().numpy().astype(bool))]


def _local(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
