"""`SpanLossConfig`: what the loss of a step is, for `sad.SADTrainer` and for the trainers of other libraries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from sad.errors import InputError
from sad.training.fields import LossFields
from sad.training.token_weights import TOKEN_WEIGHTINGS, TURN_BALANCES
from sadkernels.backends import PACKAGES
from sadkernels.divergence import DIVERGENCES

LOSS_FROM = ("auto", "hidden", "logits")
NAN_POLICIES = ("stop", "skip")


@dataclass
class SpanLossConfig(LossFields):
    """The loss of a step: weights, divergence, and the tensors from which it is computed.

    `sad.SADConfig` has the same fields. The defaults are the paper's: KL(teacher || student) on reasoning and on actions.

    Raises:
        InputError: A value is out of range, or fields contradict each other.

    The fields:
    """

    def __post_init__(self) -> None:
        self.check_loss()

    @property
    def observe(self) -> bool:
        """Whether observation tokens are supervised."""
        return self.lambda_observe > 0

    def check_loss(self) -> None:
        """Checks the fields of the loss.

        Raises:
            InputError: A value is out of range, or fields contradict each other.
        """
        for name in ("lambda_reason", "lambda_act", "lambda_observe", "contrastive_weight"):
            check_number(self, name, "a number >= 0", lambda x: x >= 0)
        check_number(self, "step_weight_limit", "a number >= 1", lambda x: x >= 1)
        for name in ("temperature", "contrastive_temperature", "turn_half_life"):
            check_number(self, name, "a number > 0", lambda x: x > 0)
        for name in ("logit_scale", "logit_softcap"):
            check_number(self, name, "a number > 0", lambda x: x > 0, optional=True)
        check_number(self, "ce_weight", "a number from 0 to 1", lambda x: 0 <= x <= 1)
        remedy = "The limits have names: divergence='forward_kl' towards 0, 'reverse_kl' towards 1."
        check_number(self, "beta", "a number with 0 < beta < 1", lambda x: 0 < x < 1, remedy=remedy)
        check_number(self, "loss_chunk_bytes", "a whole number >= 1", lambda x: x >= 1 and x == int(x), optional=True)
        check_choice(self, "divergence", DIVERGENCES)
        check_choice(self, "backend", ("auto", *PACKAGES))
        check_choice(self, "loss_from", LOSS_FROM)
        check_choice(self, "nan_policy", NAN_POLICIES)
        check_choice(self, "turn_balance", TURN_BALANCES)
        check_choice(self, "token_weighting", TOKEN_WEIGHTINGS)
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


def check_number(
    config: object,
    name: str,
    expected: str,
    holds: Callable[[Any], bool],
    *,
    optional: bool = False,
    remedy: str = "Choose a value in that range.",
) -> None:
    """Checks that a field is a finite number in its range; with `optional` it may be None.

    Raises:
        InputError: It is not.
    """
    value = getattr(config, name)
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
        raise InputError(name, expected, repr(value), remedy)


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Checks that a field is one of its choices.

    Raises:
        InputError: It is not.
    """
    value = getattr(config, name)
    if value not in choices:
        raise InputError(name, "one of " + ", ".join(choices), repr(value), "Choose one of these.")


SpanLossConfig.__doc__ = (SpanLossConfig.__doc__ or "").rstrip() + "".join(
    f"\n        {item.name}: {item.metadata['help']}" for item in dataclasses.fields(LossFields)
)
