"""Reads the keys with which data sets exclude a message from training, or give it a weight."""

from __future__ import annotations

import math
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent
from sad.trajectories.messages import shown

WEIGHT_KEYS = ("weight", "loss_weight")  # numbers above 1 are weights; under the other keys they mean true
TRAINED_KEYS = (*WEIGHT_KEYS, "loss", "train", "trainable", "training", "train_on_turn", "loss_mask", "step_loss_mask")
UNTRAINED_KEYS = ("is_demo", "demo")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def message_weight(record: dict[str, Any], where: str) -> float:
    """Returns the weight of the tokens of a message, by the keys of data sets (`loss`, `weight`, `is_demo`, ...).

    Returns:
        0 if the message is excluded, 1 without such a key; otherwise the number. Several numbers are multiplied.

    Raises:
        InputError: A value is neither a boolean nor a number >= 0, or a list of values that are not all equal.
    """
    weight = 1.0
    for key in TRAINED_KEYS + UNTRAINED_KEYS:
        value = record.get(key)
        if absent(value) or (isinstance(value, str) and not value):
            continue
        if isinstance(value, list):
            if any(not isinstance(item, (bool, int, float)) for item in value) or len(set(value)) > 1:
                remedy = "Write one value for the message, or give the spans."
                raise InputError(f"{where}.{key}", "one value for the message", shown(value), remedy)
            value = value[0]
        if isinstance(value, str):
            value = _WORDS.get(value.lower(), value)
        if not isinstance(value, (bool, int, float)) or not 0 <= value < math.inf:
            expected = "true, false or a number >= 0"
            raise InputError(f"{where}.{key}", expected, shown(value), "Fix the value or remove the key.")
        if key in UNTRAINED_KEYS:
            weight *= not value
        else:
            weight *= value if key in WEIGHT_KEYS else min(value, 1)
    return float(weight)
