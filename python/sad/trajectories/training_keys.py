"""Reads the keys with which data sets exclude a message from training."""

from __future__ import annotations

import math
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent
from sad.trajectories.messages import shown

TRAINED_KEYS = (
    "loss",
    "weight",
    "loss_weight",
    "train",
    "trainable",
    "training",
    "train_on_turn",
    "loss_mask",
    "step_loss_mask",
)
UNTRAINED_KEYS = ("is_demo", "demo")


def is_trained(record: dict[str, Any], where: str) -> bool:
    """Returns whether a message counts, by the keys with which data sets exclude one (`loss`, `weight`, `is_demo`, ...).

    Raises:
        InputError: A value is neither a boolean nor a number, or a list of token weights that are not all equal.
    """
    for key in TRAINED_KEYS + UNTRAINED_KEYS:
        value = record.get(key)
        if absent(value) or (isinstance(value, str) and not value):
            continue
        if isinstance(value, list):
            if any(not isinstance(item, (bool, int, float)) for item in value) or len({bool(item) for item in value}) > 1:
                remedy = "Write one value for the message, or give the spans."
                raise InputError(f"{where}.{key}", "one value for the message", shown(value), remedy)
            value = value[0]
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, str):
            value = words.get(value.lower(), value)
        if not isinstance(value, (bool, int, float)) or math.isnan(value):
            raise InputError(f"{where}.{key}", "true, false or a number", shown(value), "Fix the value or remove the key.")
        if bool(value) is (key in UNTRAINED_KEYS):
            return False
    return True
