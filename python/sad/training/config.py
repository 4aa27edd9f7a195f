"""`SADConfig`: transformers' training arguments, the paper's defaults, and the few fields that SAD adds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from transformers import SchedulerType, TrainingArguments

from sad.errors import InputError
from sadkernels.backends import PACKAGES

CURRICULUM_UNITS = ("relative", "raw")
LOSS_FROM = ("auto", "hidden", "logits")
_INHERITED = {item.name: item for item in dataclasses.fields(TrainingArguments)}


def _redefault(name: str, default: Any) -> Any:
    """A field of `TrainingArguments` with another default and the same help."""
    return field(default=default, metadata=_INHERITED[name].metadata)


def _new(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class SADConfig(TrainingArguments):
    r"""Everything `SADTrainer` can be told; all of `transformers.TrainingArguments` is there too.

    Defaults are the paper's recipe (appendix B): AdamW, learning rate 2e-5 with a linear warm-up and a cosine decay,
    gradients clipped at 1.0, 512 tokens, 64 trajectories per step on one device (8 at a time). The paper does not
    give the length of the warm-up; it is 5 % of the steps here.

    Args:
        lambda_reason: Weight of the KL on reasoning tokens (eq. 6), >= 0.
        lambda_act: Weight of the KL on action tokens (eq. 6), >= 0; not both 0.
        temperature: T > 0, divides the logits of both models. The loss is not multiplied by T^2.
        max_length: Tokens a trajectory may have; longer ones are cut.
        backend: Of the loss: "auto", or one by name ("reference", "cpu", "triton").
        loss_from: "hidden": the loss projects supervised rows alone, a chunk at a time, and no logits of the batch exist;
            "logits": from those of both models; "auto": "hidden" where both models come apart into body and head.
        loss_chunk_bytes: Room for the logits of a chunk, of both models; None: as `sad.fused_linear_span_kl` chooses.
        contrastive_weight: Weight of the trajectory-level contrastive term (`sad.training.contrastive`), >= 0; the paper's
            is 0.3. Needs the loss from hidden states.
        contrastive_temperature: Of its softmax over trajectories, > 0.
        inplace_backward: From logits: write their gradient over them, one (batch, length, V) buffer less.
        pad_to_multiple_of: Pad batches to a multiple of this many tokens.
        curriculum: Feed trajectories from easy to hard (eq. 7). Off: a random order.
        curriculum_alpha: Weight of the number of reasoning tokens in the difficulty, >= 0.
        curriculum_beta: Weight of the number of action tokens, >= 0.
        curriculum_gamma: Weight of the teacher's mean entropy per supervised token, >= 0. At 0 the teacher is not run
            over the data before training.
        curriculum_units: "relative" divides each of the three by its mean over the data, so that the weights are
            comparable; "raw" leaves tokens and nats as they are.
        curriculum_start: Share of the trajectories, the easiest, admitted when training begins.
        curriculum_end: Share of the training after which all are admitted; the admitted share grows linearly until then.
        curriculum_window: Steps within which trajectories of like length are put together, so that little is padding;
            1 keeps the order of the draws.

    Raises:
        InputError: A value is out of range, or fields contradict each other.
    """

    # The paper's recipe, where transformers' defaults differ.
    learning_rate: float = _redefault("learning_rate", 2e-5)
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata=_INHERITED["lr_scheduler_type"].metadata)
    warmup_steps: float = _redefault("warmup_steps", 0.05)
    gradient_accumulation_steps: int = _redefault("gradient_accumulation_steps", 8)
    # A trainer that keeps its labels, shows a NaN where there is one (looking for it would wait for the device at every
    # step), does not search the graph for parameters that a causal language model never leaves out, and does not fill
    # the disk.
    remove_unused_columns: bool = _redefault("remove_unused_columns", False)
    label_names: list[str] | None = field(default_factory=lambda: ["span_ids"], metadata=_INHERITED["label_names"].metadata)
    logging_nan_inf_filter: bool = _redefault("logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _redefault("ddp_find_unused_parameters", False)
    logging_steps: float = _redefault("logging_steps", 10)
    save_total_limit: int | None = _redefault("save_total_limit", 2)

    lambda_reason: float = _new(1.0, "Weight of the KL on reasoning tokens (paper eq. 6).")
    lambda_act: float = _new(1.0, "Weight of the KL on action tokens (paper eq. 6).")
    temperature: float = _new(1.0, "Divides the logits of teacher and student; the loss is not multiplied by T^2.")
    max_length: int = _new(512, "Tokens a trajectory may have; longer ones are cut.")
    backend: str = _new("auto", "Backend of the loss: auto, reference, cpu or triton.")
    loss_from: str = _new("auto", "hidden: no logits of the batch exist; logits: of both models; auto: hidden if possible.")
    loss_chunk_bytes: int | None = _new(None, "Room for the logits of a chunk in the loss from hidden states.")
    contrastive_weight: float = _new(0.0, "Weight of the trajectory-level contrastive term (the paper's: 0.3); 0: none.")
    contrastive_temperature: float = _new(0.07, "Of the contrastive term's softmax over the trajectories of a batch.")
    inplace_backward: bool = _new(True, "Write the gradient of the logits over the logits, which saves one buffer.")
    pad_to_multiple_of: int | None = _new(None, "Pad batches to a multiple of this many tokens.")
    curriculum: bool = _new(True, "Feed trajectories from easy to hard (paper eq. 7); off: random order.")
    curriculum_alpha: float = _new(1.0, "Weight of the number of reasoning tokens in the difficulty.")
    curriculum_beta: float = _new(1.0, "Weight of the number of action tokens in the difficulty.")
    curriculum_gamma: float = _new(1.0, "Weight of the teacher's mean entropy in the difficulty; 0 saves its pass.")
    curriculum_units: str = _new("relative", "relative: each term in units of its mean over the data; raw: as it is.")
    curriculum_start: float = _new(0.2, "Share of the trajectories, the easiest, admitted at the beginning.")
    curriculum_end: float = _new(0.5, "Share of the training after which all trajectories are admitted.")

    curriculum_window: int = _new(8, "Steps within which trajectories of like length are put together; 1: as drawn.")

    def __post_init__(self) -> None:
        for name in ("lambda_reason", "lambda_act", "curriculum_alpha", "curriculum_beta", "curriculum_gamma"):
            self._check_number(name, "a number >= 0", lambda x: x >= 0)
        self._check_number("contrastive_weight", "a number >= 0", lambda x: x >= 0)
        for name in ("temperature", "contrastive_temperature"):
            self._check_number(name, "a number > 0", lambda x: x > 0)
        self._check_number("curriculum_start", "a share from 0 to 1", lambda x: 0 <= x <= 1)
        self._check_number("curriculum_end", "a share above 0, at most 1", lambda x: 0 < x <= 1)
        self._check_number("curriculum_window", "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        self._check_number("max_length", "a whole number >= 2", lambda x: x >= 2 and x == int(x))
        if self.pad_to_multiple_of is not None:
            self._check_number("pad_to_multiple_of", "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        if self.lambda_reason == self.lambda_act == 0:
            raise InputError("lambda_act", "> 0 where lambda_reason is 0", "0", "Give one kind of span a weight.")
        self._check_choice("curriculum_units", CURRICULUM_UNITS)
        self._check_choice("backend", ("auto", *PACKAGES))
        self._check_choice("loss_from", LOSS_FROM)
        if self.contrastive_weight and self.loss_from == "logits":
            remedy = "Use loss_from='auto' or 'hidden', or contrastive_weight=0."
            raise InputError("contrastive_weight", "0 where the loss is from logits", str(self.contrastive_weight), remedy)
        if self.loss_chunk_bytes is not None:
            self._check_number("loss_chunk_bytes", "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        if self.curriculum:
            self._check_curriculum()
        if self.label_smoothing_factor:
            got = str(self.label_smoothing_factor)
            raise InputError("label_smoothing_factor", "0", got, "The KL has a soft target; raise temperature to smooth it.")
        super().__post_init__()

    def _check_curriculum(self) -> None:
        if self.curriculum_alpha == self.curriculum_beta == self.curriculum_gamma == 0:
            remedy = "Weigh at least one term of eq. 7, or set curriculum to false."
            raise InputError("curriculum_gamma", "> 0 where alpha and beta are 0", "0", remedy)
        if self.train_sampling_strategy != "random":
            remedy = "Set curriculum to false to use it; the curriculum decides the order itself."
            raise InputError("train_sampling_strategy", "random with a curriculum", self.train_sampling_strategy, remedy)

    def _check_number(self, name: str, expected: str, holds: Any) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
            raise InputError(name, expected, repr(value), "Choose a value in that range.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise InputError(name, "one of " + ", ".join(choices), repr(value), "Choose one of these.")
