"""Declares the fields that `sad.SADConfig` adds to `transformers.TrainingArguments`, without importing transformers.

`sad train --help` shows them by group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _field(default: Any, *, help: str) -> Any:
    """Declares a field with its help. `HfArgumentParser` passes all metadata on to argparse, so there is no other key."""
    return field(default=default, metadata={"help": help})


@dataclass
class LossFields:
    """The loss of a step."""

    lambda_reason: float = _field(1.0, help="Weight of the loss on reasoning tokens (paper eq. 6), >= 0.")
    lambda_act: float = _field(1.0, help="Weight of the loss on action tokens (paper eq. 6), >= 0.")
    lambda_observe: float = _field(
        0.0, help="Weight of the loss on observation tokens, >= 0. 0: they have no loss. Not all three weights are 0."
    )
    turn_balance: str = _field(
        "none",
        help="none: tokens count alike; equal: turns count alike; decay: a turn counts less the later it is, see "
        "turn_half_life.",
    )
    turn_half_life: float = _field(4.0, help="Turns after which the weight of a turn is half, with turn_balance decay, > 0.")
    token_weighting: str = _field(
        "none",
        help="none; confidence: 1 - entropy / log V of the teacher; step_divergence: less for turns on which student and "
        "teacher diverge more than on the first.",
    )
    step_weight_limit: float = _field(1.5, help="Largest weight of a turn with token_weighting step_divergence, >= 1.")
    divergence: str = _field(
        "forward_kl", help="forward_kl: KL(teacher || student), the paper's; reverse_kl: KL(student || teacher); jsd."
    )
    beta: float = _field(
        0.5, help="Weight of the teacher in the mixture of jsd, between 0 and 1, as in TRL's GKDConfig. Unused otherwise."
    )
    temperature: float = _field(
        1.0, help="Divides the logits of teacher and student in the divergence, > 0. The loss is not multiplied by T^2."
    )
    ce_weight: float = _field(
        0.0, help="Share of the cross-entropy on the trajectory's tokens: (1 - ce_weight) * divergence + ce_weight * CE."
    )
    contrastive_weight: float = _field(
        0.0, help="Weight of the trajectory-level contrastive term; 0 turns it off, the paper uses 0.3."
    )
    contrastive_temperature: float = _field(0.07, help="Temperature of the softmax in the contrastive term, > 0.")
    loss_from: str = _field(
        "auto",
        help="hidden: project only supervised rows, in chunks; logits: use both models' logits; auto: hidden if possible.",
    )
    teacher_sharding: bool = _field(
        False, help="Shard the teacher's weights over all processes, with any strategy for the student. See distributed.md."
    )
    loss_chunk_bytes: int | None = _field(
        None,
        help="Bytes for the logits of one chunk in the loss from hidden states. Default: 128 MiB; on a GPU 2048 rows.",
    )
    logit_scale: float | None = _field(
        None, help="Scale of the logits in the loss from hidden states, > 0. Default: from the model's configuration."
    )
    logit_softcap: float | None = _field(
        None, help="Cap of the logits in the loss from hidden states, > 0. Default: from the model's configuration."
    )
    inplace_backward: bool = _field(
        True, help="Write the gradient over the student's logits in the loss from logits, which saves one such buffer."
    )
    nan_policy: str = _field(
        "stop",
        help="stop: end the training at the first loss or gradient that is NaN or infinite; skip: leave such steps out.",
    )
    backend: str = _field("auto", help="Backend of the loss: auto, reference, cpu, triton or cuda.")


@dataclass
class BatchFields:
    """The tensors of a batch."""

    max_length: int = _field(
        512,
        help="Maximum number of tokens per example. Longer trajectories are truncated, or split with --long of sad train.",
    )
    packing: str = _field(
        "auto",
        help="Several trajectories in one row. auto: in batches of which more than a tenth is padding, if both models can; "
        "always; never.",
    )
    pad_to_multiple_of: int | None = _field(None, help="Round the length of a batch up to a multiple of this number.")


@dataclass
class CurriculumFields:
    """The order of the trajectories."""

    curriculum: bool = _field(True, help="Train on easy trajectories first (paper eq. 7). Off: random order.")
    curriculum_alpha: float = _field(1.0, help="Weight of the number of reasoning tokens in the difficulty, >= 0.")
    curriculum_beta: float = _field(1.0, help="Weight of the number of action tokens in the difficulty, >= 0.")
    curriculum_gamma: float = _field(
        1.0, help="Weight of the teacher's mean entropy in the difficulty, >= 0. 0 skips the teacher's pass over the data."
    )
    curriculum_units: str = _field(
        "relative", help="relative: divide each term of the difficulty by its mean over the data; raw: tokens and nats."
    )
    curriculum_start: float = _field(0.2, help="Share of the trajectories, the easiest, available at the start, 0 to 1.")
    curriculum_end: float = _field(0.5, help="Share of the training after which all trajectories are available.")
    curriculum_window: int = _field(
        8, help="Optimizer steps within which trajectories of similar length are batched together. 1 keeps the order."
    )


@dataclass
class OnPolicyFields:
    """When the student plays, how much of a step its own trajectories are, and how far it is on its own."""

    rollout_interval: int = _field(8, help="Optimizer steps between two rollouts of the student, >= 1.")
    rollout_episodes: int = _field(64, help="Episodes of a rollout, over all processes, >= 1.")
    rollout_window: int = _field(1, help="Number of latest rollouts that a step draws its own trajectories from, >= 1.")
    on_policy_start: float = _field(0.0, help="Share of the batches that are the student's own at the start, 0 to 1.")
    on_policy_share: float = _field(
        1.0, help="Share of the batches that are the student's own from on_policy_end on, 0 to 1."
    )
    on_policy_end: float = _field(0.5, help="Share of the training after which on_policy_share holds, above 0, at most 1.")
    on_policy_divergence: str = _field(
        "reverse_kl", help="divergence of the student's own trajectories: reverse_kl, jsd or forward_kl."
    )
    rollout_prefix: float = _field(
        0.0,
        help="Share of the teacher's turns that are replayed before the student acts, at the start of the training, 0 to 1; "
        "it falls to 0 at rollout_depth_end.",
    )
    rollout_turns: int | None = _field(
        None,
        help="Turns that the student may play at the start of the training; they grow to all at rollout_depth_end. "
        "Default: all from the start.",
    )
    rollout_depth_end: float = _field(
        0.5, help="Share of the training after which episodes have their whole length, above 0, at most 1."
    )


# Heading in `sad train --help` -> fields.
GROUPS = {"Data": BatchFields, "Loss": LossFields, "Curriculum": CurriculumFields, "On-policy": OnPolicyFields}
