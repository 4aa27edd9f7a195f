"""Declares the fields that `sad.SADConfig` adds to `transformers.TrainingArguments`, without importing transformers.

`sad train --help` shows them by group. The metadata of a field holds only its help, because `HfArgumentParser` passes every
other key on to argparse.
"""

from __future__ import annotations

from dataclasses import dataclass

from sad.options import option


@dataclass
class LossFields:
    """The loss of a step."""

    lambda_reason: float = option(1.0, help="Weight of the loss on reasoning tokens (paper eq. 6), >= 0.")
    lambda_act: float = option(1.0, help="Weight of the loss on action tokens (paper eq. 6), >= 0; not both 0.")
    divergence: str = option(
        "forward_kl", help="forward_kl: KL(teacher || student), the paper's; reverse_kl: KL(student || teacher); jsd."
    )
    beta: float = option(
        0.5, help="Weight of the teacher in the mixture of jsd, between 0 and 1, as in TRL's GKDConfig. Unused otherwise."
    )
    temperature: float = option(
        1.0, help="Divides the logits of teacher and student in the divergence, > 0. The loss is not multiplied by T^2."
    )
    ce_weight: float = option(
        0.0, help="Share of the cross-entropy on the trajectory's tokens: (1 - ce_weight) * divergence + ce_weight * CE."
    )
    contrastive_weight: float = option(
        0.0, help="Weight of the trajectory-level contrastive term; 0 turns it off, the paper uses 0.3."
    )
    contrastive_temperature: float = option(0.07, help="Temperature of the softmax in the contrastive term, > 0.")
    loss_from: str = option(
        "auto",
        help="hidden: project only supervised rows, in chunks; logits: use both models' logits; auto: hidden if possible.",
    )
    loss_chunk_bytes: int | None = option(
        None, help="Bytes for the logits of one chunk in the loss from hidden states. Default: 128 MiB on CPU, 256 on GPU."
    )
    logit_scale: float | None = option(
        None, help="Scale of the logits in the loss from hidden states, > 0. Default: from the model's configuration."
    )
    logit_softcap: float | None = option(
        None, help="Cap of the logits in the loss from hidden states, > 0. Default: from the model's configuration."
    )
    inplace_backward: bool = option(
        True, help="Write the gradient over the student's logits in the loss from logits, which saves one such buffer."
    )
    backend: str = option("auto", help="Backend of the loss: auto, reference, cpu, triton or cuda.")


@dataclass
class BatchFields:
    """The tensors of a batch."""

    max_length: int = option(512, help="Maximum number of tokens per trajectory. Longer ones are truncated.")
    pad_to_multiple_of: int | None = option(None, help="Round the length of a batch up to a multiple of this number.")


@dataclass
class CurriculumFields:
    """The order of the trajectories."""

    curriculum: bool = option(True, help="Train on easy trajectories first (paper eq. 7). Off: random order.")
    curriculum_alpha: float = option(1.0, help="Weight of the number of reasoning tokens in the difficulty, >= 0.")
    curriculum_beta: float = option(1.0, help="Weight of the number of action tokens in the difficulty, >= 0.")
    curriculum_gamma: float = option(
        1.0, help="Weight of the teacher's mean entropy in the difficulty, >= 0. 0 skips the teacher's pass over the data."
    )
    curriculum_units: str = option(
        "relative", help="relative: divide each term of the difficulty by its mean over the data; raw: tokens and nats."
    )
    curriculum_start: float = option(0.2, help="Share of the trajectories, the easiest, available at the start, 0 to 1.")
    curriculum_end: float = option(0.5, help="Share of the training after which all trajectories are available.")
    curriculum_window: int = option(
        8, help="Optimizer steps within which trajectories of similar length are batched together. 1 keeps the order."
    )


# Heading in `sad train --help` -> fields.
GROUPS = {"Data": BatchFields, "Loss": LossFields, "Curriculum": CurriculumFields}
