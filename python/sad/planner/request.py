"""The options of `sad plan`. This module imports neither PyTorch nor transformers, so `sad --help` stays fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real

from sad.errors import InputError
from sad.options import option

DTYPES = ("bf16", "fp32")
OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")
TEACHER_BITS = (16, 8, 4)
# Target to the last part of the names of the layers that get an adapter; None: every linear layer.
LORA_TARGETS = {"qv": ("q_proj", "v_proj", "c_attn"), "all": None}
_UNITS = {"": 10**9, "g": 10**9, "gb": 10**9, "gib": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20}


def parse_memory_size(text: str) -> int:
    """Returns the bytes of a size such as "24GB" (10^9 each), "24GiB" (2^30 each), "24564MiB" or "24" (GB).

    Raises:
        InputError: The text is not a positive size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower()) if isinstance(text, str) else None
    unit = found and _UNITS.get(found[2])
    if not unit or not (size := int(float(found[1]) * unit)):
        raise InputError("gpu", "a size of memory", repr(text), "Write 24GB, 80GiB or 24564MiB.")
    return size


@dataclass(frozen=True)
class PlanRequest:
    """A training run to plan: the models, the GPU, and what the user has already decided.

    Each field has its description in its `help` metadata, which `sad plan --help` shows.

    Raises:
        InputError: A value is out of range.
    """

    teacher: str = option(help="Folder with a config.json, or a model name such as gpt2-xl.", group="Models and GPU")
    student: str = option(help="Folder with a config.json, or a model name such as gpt2.", group="Models and GPU")
    gpu: str = option(help="Memory of the GPU: 24GB, 80GiB, 24564MiB.", group="Models and GPU")
    gpus: int = option(1, help="Number of such GPUs, with one process each.", group="Models and GPU")
    batch: int = option(64, help="Sequences per optimizer step.", group="Training")
    seq: int = option(512, help="Tokens per sequence.", group="Training")
    dtype: str = option("bf16", help="bf16 (autocast over float32 weights) or fp32.", group="Training")
    optimizer: str | None = option(
        None,
        help="adamw, adamw_8bit or adafactor. Default: adamw, or adamw_8bit if the run does not fit otherwise.",
        group="Training",
    )
    gradient_checkpointing: bool | None = option(
        None, help="Recompute the layers in the backward. Default: only if the run does not fit otherwise.", group="Training"
    )
    lora: int = option(0, help="Rank of LoRA adapters on a frozen student. 0 trains all weights.", group="Training")
    lora_target: str = option(
        "qv", help="Layers with adapters: qv (queries and values) or all (every linear layer).", group="Training"
    )
    supervised_fraction: float = option(
        0.6,
        help="Fraction of the tokens that are reasoning or action (or observation, with lambda_observe above 0).",
        group="Training",
    )
    on_policy: bool = option(
        False,
        flag="--on-policy",
        help="Plan a training in which the student plays (sad train --on-policy).",
        group="Rollouts",
    )
    rollout_batch: int = option(
        64, help="Episodes that the student plays at once (--rollout-batch-size of sad train).", group="Rollouts"
    )
    teacher_bits: int = option(16, help="Bits per weight in the teacher's layers: 16, 8 or 4.", group="Teacher")
    top_k: int = option(64, help="Log-probabilities per token in a teacher cache.", group="Teacher")

    def __post_init__(self) -> None:
        parse_memory_size(self.gpu)
        for name, least in (("gpus", 1), ("batch", 1), ("seq", 2), ("lora", 0), ("top_k", 1), ("rollout_batch", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        if self.batch % self.gpus:
            got, remedy = f"{self.batch} on {self.gpus} GPUs", "Choose a multiple, so that every GPU has as many sequences."
            raise InputError("batch", "a multiple of gpus", got, remedy)
        if self.on_policy and self.gpus > 1:
            remedy = "Plan for one GPU: with DDP each process plays its part of the episodes."
            raise InputError("gpus", "1 with on_policy, because a sharded student cannot play", str(self.gpus), remedy)
        fraction = self.supervised_fraction
        if not isinstance(fraction, Real) or not 0 < fraction <= 1:
            raise InputError("supervised_fraction", "a share above 0, at most 1", repr(fraction), "Use 0.6 if unsure.")
        choices = {"dtype": DTYPES, "lora_target": LORA_TARGETS, "teacher_bits": TEACHER_BITS}
        if self.optimizer is not None:
            choices["optimizer"] = OPTIMIZERS
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                expected = "one of " + ", ".join(map(str, allowed))
                raise InputError(name, expected, repr(getattr(self, name)), "Choose one of these.")

    @property
    def gpu_bytes(self) -> int:
        """Memory of the GPU in bytes."""
        return parse_memory_size(self.gpu)
