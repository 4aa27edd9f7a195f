"""`SADConfig`: the arguments of `transformers.Trainer` with the paper's defaults, and the fields that SAD adds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import is_torch_xla_available

from sad.errors import InputError
from sad.training.fields import GROUPS, BatchFields, CurriculumFields, OnPolicyFields
from sad.training.loss_config import SpanLossConfig, check_choice, check_number
from sad.training.packing import PACKINGS
from sadkernels.divergence import DIVERGENCES

CURRICULUM_UNITS = ("relative", "raw")
OWN_FIELDS = tuple(item.name for group in GROUPS.values() for item in dataclasses.fields(group))
_INHERITED = {item.name: item for item in dataclasses.fields(TrainingArguments)}


def _redefault(name: str, default: Any) -> Any:
    """Returns a field of `TrainingArguments` with another default and the same help."""
    return field(default=default, metadata=_INHERITED[name].metadata)


@dataclass
class SADConfig(OnPolicyFields, CurriculumFields, SpanLossConfig, BatchFields, TrainingArguments):
    r"""The configuration of `sad.SADTrainer`. It has all fields of `transformers.TrainingArguments`.

    The defaults are the paper's recipe (appendix B): AdamW, learning rate 2e-5 with linear warm-up and cosine decay,
    gradients clipped at 1.0, 512 tokens, 64 trajectories per step on one device (8 at a time). The paper does not state the
    length of the warm-up; the default is 5 % of the steps.

    Raises:
        InputError: A value is out of range, or fields contradict each other.

    The fields of SAD:
    """

    # The paper's recipe, if it differs from the defaults of transformers.
    learning_rate: float = _redefault("learning_rate", 2e-5)
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata=_INHERITED["lr_scheduler_type"].metadata)
    warmup_steps: float = _redefault("warmup_steps", 0.05)
    gradient_accumulation_steps: int = _redefault("gradient_accumulation_steps", 8)
    # The collator needs the label columns. Filtering NaN losses would synchronize the device in every step. A causal
    # language model has no unused parameters.
    remove_unused_columns: bool = _redefault("remove_unused_columns", False)
    label_names: list[str] | None = field(default_factory=lambda: ["span_ids"], metadata=_INHERITED["label_names"].metadata)
    logging_nan_inf_filter: bool = _redefault("logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _redefault("ddp_find_unused_parameters", False)
    logging_steps: float = _redefault("logging_steps", 10)
    save_total_limit: int | None = _redefault("save_total_limit", 2)
    dataloader_num_workers: int = field(
        default=-1,
        metadata={
            "help": "Number of processes that load data. 0: the main process. -1: one if a training on a GPU reads a "
            "teacher cache, else 0."
        },
    )

    def __post_init__(self) -> None:
        self._check_finite()
        self.check_loss()
        check_number(self, "max_length", "a whole number >= 2", lambda x: x >= 2 and x == int(x))
        check_number(self, "pad_to_multiple_of", "a whole number >= 1", lambda x: x >= 1 and x == int(x), optional=True)
        check_choice(self, "packing", PACKINGS)
        self._check_curriculum()
        self._check_on_policy()
        if self.label_smoothing_factor:
            got = str(self.label_smoothing_factor)
            remedy = "The teacher's distribution is a soft target already; raise temperature to smooth it."
            raise InputError("label_smoothing_factor", "0", got, remedy)
        self._check_device()
        TrainingArguments.__post_init__(self)

    def _check_device(self) -> None:
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # PyTorch would warn that it does nothing
            if (self.bf16 or self.bf16_full_eval) and not self.use_cpu and not is_torch_xla_available():
                remedy = "Add use_cpu (--use-cpu) to train on the CPU. If there is a GPU, run `sad doctor`."
                raise InputError("bf16", "a GPU, or use_cpu beside it", "no GPU that PyTorch can use", remedy)

    def _check_finite(self) -> None:
        """Checks the numbers of the base class too, because NaN passes its comparisons."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name, None)
            unlimited = item.name == "max_grad_norm" and value == math.inf
            if isinstance(value, float) and not math.isfinite(value) and not unlimited:
                raise InputError(item.name, "a finite number", str(value), "Choose a finite number.")
        check_number(self, "learning_rate", "a number >= 0", lambda x: x >= 0)

    def _check_on_policy(self) -> None:
        for name in ("rollout_interval", "rollout_episodes", "rollout_window"):
            check_number(self, name, "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        check_number(self, "rollout_turns", "a whole number >= 1", lambda x: x >= 1 and x == int(x), optional=True)
        for name in ("on_policy_start", "on_policy_share", "rollout_prefix"):
            check_number(self, name, "a share from 0 to 1", lambda x: 0 <= x <= 1)
        for name in ("on_policy_end", "rollout_depth_end"):
            check_number(self, name, "a share above 0, at most 1", lambda x: 0 < x <= 1)
        check_choice(self, "on_policy_divergence", DIVERGENCES)

    def _check_curriculum(self) -> None:
        for name in ("curriculum_alpha", "curriculum_beta", "curriculum_gamma"):
            check_number(self, name, "a number >= 0", lambda x: x >= 0)
        check_number(self, "curriculum_start", "a share from 0 to 1", lambda x: 0 <= x <= 1)
        check_number(self, "curriculum_end", "a share above 0, at most 1", lambda x: 0 < x <= 1)
        check_number(self, "curriculum_window", "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        check_choice(self, "curriculum_units", CURRICULUM_UNITS)
        if not self.curriculum:
            return
        if self.curriculum_alpha == self.curriculum_beta == self.curriculum_gamma == 0:
            remedy = "Set one weight of eq. 7 above 0, or set curriculum to false."
            raise InputError("curriculum_gamma", "> 0 if alpha and beta are 0", "0", remedy)
        if self.train_sampling_strategy != "random":
            remedy = "Set curriculum to false to use it. The curriculum decides the order itself."
            raise InputError("train_sampling_strategy", "random with a curriculum", self.train_sampling_strategy, remedy)


# Fields that `config.yaml` of a run always records, so that the defaults of a later version cannot change the run.
RECIPE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "remove_unused_columns", "label_names",
    "logging_nan_inf_filter", "ddp_find_unused_parameters", "logging_steps", "save_total_limit", *OWN_FIELDS,
)  # fmt: skip

SADConfig.__doc__ = (SADConfig.__doc__ or "").rstrip() + "".join(
    f"\n        {item.name}: {item.metadata['help']}" for group in GROUPS.values() for item in dataclasses.fields(group)
)
