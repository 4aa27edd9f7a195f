"""The curriculum of one training run: difficulties measured by its teacher or read from its cache, kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sad.model_parts import model_digest
from sad.training import difficulty
from sad.training.collator import SpanCollator
from sad.training.curriculum import CurriculumSampler, difficulty_scores
from sad.trajectories.batching import batches_by_length

if TYPE_CHECKING:
    from sad.training.trainer import SADTrainer

Dataset = Sequence[Mapping[str, Any]]


def sampler_of(trainer: SADTrainer, dataset: Dataset) -> CurriculumSampler:
    """The order in which a trainer sees a dataset."""
    args, rows = trainer.args, difficulty.read_rows(dataset, trainer.args.max_length)
    measures = measures_of(trainer, dataset, rows)
    scores = difficulty_scores(
        measures.reason_tokens,
        measures.act_tokens,
        measures.reason_tokens * 0.0 if measures.teacher_entropy is None else measures.teacher_entropy,
        alpha=args.curriculum_alpha,
        beta=args.curriculum_beta,
        gamma=args.curriculum_gamma,
        units=args.curriculum_units,
    )
    batch_size, epochs = trainer.get_total_train_batch_size(args), float(args.num_train_epochs)
    if args.max_steps > 0:
        epochs = args.max_steps / -(-len(dataset) // batch_size)
    return CurriculumSampler(
        scores,
        epochs=epochs,
        start=args.curriculum_start,
        end=args.curriculum_end,
        seed=args.seed if args.data_seed is None else args.data_seed,
        lengths=[len(row) for row in rows.span_ids],
        batch_size=batch_size,
        window=args.curriculum_window,
    )


def measures_of(trainer: SADTrainer, dataset: Dataset, rows: difficulty.Rows) -> difficulty.Measures:
    """From the run folder, or measured now: each process takes every so many batches, and all get the sum."""
    path, teacher = Path(trainer.args.output_dir, difficulty.FILE_NAME), None
    if trainer.args.curriculum_gamma:
        cache = trainer.teacher_cache
        teacher = model_digest(trainer.teacher) if cache is None else cache.metadata.teacher
    found = difficulty.load(path, rows.digest, teacher)
    if found is not None:
        return found
    entropy = _entropy_sums(trainer, dataset, rows) if teacher else None
    measures = difficulty.measure(rows, entropy)
    trainer.accelerator.wait_for_everyone()  # nobody may find the file of a process that was faster
    if trainer.is_world_process_zero():
        difficulty.save(path, measures, rows.digest, teacher)
    return measures


def _entropy_sums(trainer: SADTrainer, dataset: Dataset, rows: difficulty.Rows) -> Tensor:
    """From the cache, or by one forward pass of the teacher over the data, in batches no larger than a training batch."""
    args, accelerator = trainer.args, trainer.accelerator
    if trainer.teacher_cache is not None:
        return trainer.teacher_cache.entropy_sums(dataset, args.max_length)
    max_tokens = args.per_device_train_batch_size * args.max_length
    batches = batches_by_length([len(row) for row in rows.span_ids], max_tokens)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    device = args.device
    sums = torch.zeros(len(dataset), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    collator = SpanCollator(pad_to_multiple_of=args.pad_to_multiple_of, max_length=args.max_length)
    measured = difficulty.entropy_sums(
        trainer.teacher_logits, dataset, mine, collator=collator, device=device, backend=args.backend
    )
    show = not args.disable_tqdm and trainer.is_local_process_zero()
    for indices, values in difficulty.with_progress(measured, len(mine), show):
        sums[torch.tensor(indices, device=device)] = values.to(sums.dtype)
    return accelerator.reduce(sums, reduction="sum")
