"""`SADConfig`: the arguments of `transformers.Trainer` with the paper's defaults, and the fields that SAD adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from transformers import SchedulerType, TrainingArguments

from sad.errors import InputError
from sad.training.fields import GROUPS, BatchFields, CurriculumFields, LossFields
from sad.training.token_weights import TOKEN_WEIGHTINGS, TURN_BALANCES
from sadkernels.backends import PACKAGES
from sadkernels.divergence import DIVERGENCES

CURRICULUM_UNITS = ("relative", "raw")
LOSS_FROM = ("auto", "hidden", "logits")
NAN_POLICIES = ("stop", "skip")
OWN_FIELDS = tuple(item.name for group in GROUPS.values() for item in dataclasses.fields(group))
_INHERITED = {item.name: item for item in dataclasses.fields(TrainingArguments)}


def _redefault(name: str, default: Any) -> Any:
    """Returns a field of `TrainingArguments` with another default and the same help."""
    return field(default=default, metadata=_INHERITED[name].metadata)


@dataclass
class SADConfig(CurriculumFields, LossFields, BatchFields, TrainingArguments):
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

    def __post_init__(self) -> None:
        self._check_finite()
        self._check_loss()
        self._check_number("max_length", "a whole number >= 2", lambda x: x >= 2 and x == int(x))
        self._check_number("pad_to_multiple_of", "a whole number >= 1", lambda x: x >= 1 and x == int(x), optional=True)
        self._check_curriculum()
        if self.label_smoothing_factor:
            got = str(self.label_smoothing_factor)
            remedy = "The teacher's distribution is a soft target already; raise temperature to smooth it."
            raise InputError("label_smoothing_factor", "0", got, remedy)
        super().__post_init__()

    def _check_finite(self) -> None:
        """Checks the numbers of the base class too, because NaN passes its comparisons."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name, None)
            unlimited = item.name == "max_grad_norm" and value == math.inf
            if isinstance(value, float) and not math.isfinite(value) and not unlimited:
                raise InputError(item.name, "a finite number", str(value), "Choose a finite number.")
        self._check_number("learning_rate", "a number >= 0", lambda x: x >= 0)

    @property
    def observe(self) -> bool:
        """Whether observation tokens are supervised."""
        return self.lambda_observe > 0

    def _check_loss(self) -> None:
        for name in ("lambda_reason", "lambda_act", "lambda_observe", "contrastive_weight"):
            self._check_number(name, "a number >= 0", lambda x: x >= 0)
        self._check_number("step_weight_limit", "a number >= 1", lambda x: x >= 1)
        for name in ("temperature", "contrastive_temperature", "turn_half_life"):
            self._check_number(name, "a number > 0", lambda x: x > 0)
        for name in ("logit_scale", "logit_softcap"):
            self._check_number(name, "a number > 0", lambda x: x > 0, optional=True)
        self._check_number("ce_weight", "a number from 0 to 1", lambda x: 0 <= x <= 1)
        remedy = "The limits have names: divergence='forward_kl' towards 0, 'reverse_kl' towards 1."
        self._check_number("beta", "a number with 0 < beta < 1", lambda x: 0 < x < 1, remedy=remedy)
        self._check_number("loss_chunk_bytes", "a whole number >= 1", lambda x: x >= 1 and x == int(x), optional=True)
        self._check_choice("divergence", DIVERGENCES)
        self._check_choice("backend", ("auto", *PACKAGES))
        self._check_choice("loss_from", LOSS_FROM)
        self._check_choice("nan_policy", NAN_POLICIES)
        self._check_choice("turn_balance", TURN_BALANCES)
        self._check_choice("token_weighting", TOKEN_WEIGHTINGS)
        if self.lambda_reason == self.lambda_act == self.lambda_observe == 0:
            remedy = "Set one of the three weights above 0."
            raise InputError("lambda_act", "> 0 if lambda_reason and lambda_observe are 0", "0", remedy)
        if self.loss_from == "logits":
            if self.contrastive_weight:
                remedy = "Use loss_from='auto' or 'hidden', or contrastive_weight=0."
                raise InputError("contrastive_weight", "0 with loss_from='logits'", str(self.contrastive_weight), remedy)
            for name in ("logit_scale", "logit_softcap"):
                if getattr(self, name) is not None:
                    remedy = "Remove it: the models return logits that are scaled and capped already."
                    raise InputError(name, "None with loss_from='logits'", str(getattr(self, name)), remedy)

    def _check_curriculum(self) -> None:
        for name in ("curriculum_alpha", "curriculum_beta", "curriculum_gamma"):
            self._check_number(name, "a number >= 0", lambda x: x >= 0)
        self._check_number("curriculum_start", "a share from 0 to 1", lambda x: 0 <= x <= 1)
        self._check_number("curriculum_end", "a share above 0, at most 1", lambda x: 0 < x <= 1)
        self._check_number("curriculum_window", "a whole number >= 1", lambda x: x >= 1 and x == int(x))
        self._check_choice("curriculum_units", CURRICULUM_UNITS)
        if not self.curriculum:
            return
        if self.curriculum_alpha == self.curriculum_beta == self.curriculum_gamma == 0:
            remedy = "Set one weight of eq. 7 above 0, or set curriculum to false."
            raise InputError("curriculum_gamma", "> 0 if alpha and beta are 0", "0", remedy)
        if self.train_sampling_strategy != "random":
            remedy = "Set curriculum to false to use it. The curriculum decides the order itself."
            raise InputError("train_sampling_strategy", "random with a curriculum", self.train_sampling_strategy, remedy)

    def _check_number(
        self,
        name: str,
        expected: str,
        holds: Callable[[Any], bool],
        *,
        optional: bool = False,
        remedy: str = "Choose a value in that range.",
    ) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
            raise InputError(name, expected, repr(value), remedy)

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise InputError(name, "one of " + ", ".join(choices), repr(value), "Choose one of these.")


# Fields that `config.yaml` of a run always records, so that the defaults of a later version cannot change the run.
RECIPE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "remove_unused_columns", "label_names",
    "logging_nan_inf_filter", "ddp_find_unused_parameters", "logging_steps", "save_total_limit", *OWN_FIELDS,
)  # fmt: skip

SADConfig.__doc__ = (SADConfig.__doc__ or "").rstrip() + "".join(
    f"\n        {item.name}: {item.metadata['help']}" for group in GROUPS.values() for item in dataclasses.fields(group)
)
