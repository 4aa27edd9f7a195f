"""Measures the terms of the difficulty (paper eq. 7) once, and stores them in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from sad import files
from sad.errors import InputError
from sad.losses import fused_span_kl
from sad.model_parts import model_digest
from sad.teacher_cache.reader import TeacherCache
from sad.training.collator import SpanCollator, model_inputs
from sad.training.config import SADConfig
from sad.training.teacher import teacher_logits, vocabulary_group
from sad.trajectories.batching import batches_by_length
from sad.trajectories.labels import span_ids_of
from sad.trajectories.spans import is_supervised, supervised_kinds

FILE_NAME = "curriculum.json"
Dataset = Sequence[Mapping[str, Any]]


class Measures(NamedTuple):
    """The terms of eq. 7, one entry per trajectory.

    Attributes:
        reason_tokens: (n,) reasoning tokens that are predicted.
        act_tokens: (n,) action tokens that are predicted.
        teacher_entropy: (n,) mean entropy of the teacher per supervised token, nats. None if it was not measured.
    """

    reason_tokens: NDArray[np.int64]
    act_tokens: NDArray[np.int64]
    teacher_entropy: NDArray[np.float64] | None


class Rows(NamedTuple):
    """The labels of a dataset's examples after truncation, a hash of all tokens and labels, and what truncation cuts.

    Attributes:
        span_ids: One array (T,) per example.
        digest: Hash of the tokens, labels, weights and turn ids that remain.
        supervised: Reasoning and action tokens before truncation.
        supervised_cut: Those that are cut off.
    """

    span_ids: list[NDArray[np.int8]]
    digest: str
    supervised: int = 0
    supervised_cut: int = 0


def read_rows(dataset: Dataset, max_length: int | None) -> Rows:
    """Reads the labels of a dataset.

    Args:
        dataset: Examples as `sad.SpanCollator` accepts them.
        max_length: Maximum number of tokens per example.

    Raises:
        InputError: An example does not have one label per token.
    """
    labels: list[NDArray[np.int8]] = []
    digest = hashlib.sha256()
    supervised = kept = 0
    for index in range(len(dataset)):
        example = dataset[index]
        [whole] = span_ids_of([example])
        tokens = np.asarray(example["input_ids"], dtype="<i8")[:max_length]
        row = whole[:max_length]
        supervised += np.count_nonzero(is_supervised(whole))
        kept += np.count_nonzero(is_supervised(row))
        if len(tokens) != len(row):
            where = f"span_ids of example {index}"
            raise InputError(where, f"{len(tokens)} ids, one per token", str(len(row)), "Encode it with `sad.encode`.")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes() + row.tobytes())
        for name, dtype in (("token_weights", "<f4"), ("turn_ids", "<i8")):
            if example.get(name) is not None:
                digest.update(name.encode() + np.asarray(example[name], dtype=dtype)[:max_length].tobytes())
        labels.append(row)
    return Rows(labels, digest.hexdigest(), int(supervised), int(supervised - kept))


def measure_dataset(
    dataset: Dataset,
    rows: Rows,
    args: SADConfig,
    accelerator: Accelerator,
    *,
    teacher: nn.Module | None = None,
    cache: TeacherCache | None = None,
) -> Measures:
    """Returns the stored measures of the run, or measures the dataset and stores the result in the run folder.

    With `curriculum_gamma` above 0 a live teacher runs over the data once. Each process handles a part of the batches.

    Args:
        dataset: Examples.
        rows: The result of `read_rows` for them.
        args: The configuration.
        accelerator: The accelerator of the run.
        teacher: The live teacher, on its device.
        cache: The teacher cache, if there is no live teacher.

    Raises:
        InputError: The stored measures belong to other data or to another teacher, or cannot be read.
    """
    path, digest, entropy = Path(args.output_dir, FILE_NAME), None, None
    if args.curriculum_gamma:
        digest = model_digest(teacher) if cache is None else cache.metadata.teacher
    stored = load(path, rows.digest, digest, args.observe)
    if stored is not None:
        return stored
    if digest is not None:
        if cache is None:
            entropy = teacher_entropy_sums(dataset, rows, args, accelerator, teacher)
        else:
            entropy = cache.entropy_sums(dataset, args.max_length)
    measures = measure(rows, entropy, args.observe)
    accelerator.wait_for_everyone()  # no process may find the file that a faster process has written
    if accelerator.is_main_process:
        save(path, measures, rows.digest, digest, args.observe)
    return measures


@torch.no_grad()
def teacher_entropy_sums(
    dataset: Dataset, rows: Rows, args: SADConfig, accelerator: Accelerator, teacher: nn.Module
) -> Tensor:
    """Sums the teacher's entropy over the supervised tokens of each trajectory, at temperature 1.

    Batches are no larger than a training batch. The entropies are statistics of the fused loss, so the logits of one batch
    are the only large buffer. Tensor-parallel processes handle the same batches.

    Returns:
        (n,) sums in nats, on the device, the same on every process.
    """
    collator = SpanCollator(pad_to_multiple_of=args.pad_to_multiple_of, max_length=args.max_length, observe=args.observe)
    batches = batches_by_length([len(row) for row in rows.span_ids], args.per_device_train_batch_size * args.max_length)
    parallelism = getattr(accelerator, "parallelism_config", None)
    replicas = 1 if parallelism is None else parallelism.tp_size  # processes with the same batches
    own = batches[accelerator.process_index // replicas :: accelerator.num_processes // replicas]
    device = args.device
    sums = torch.zeros(len(dataset), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    show = not args.disable_tqdm and accelerator.is_local_main_process
    for indices in tqdm(own, desc="teacher entropy for the curriculum", disable=not show, leave=False):
        batch = {name: x.to(device) for name, x in collator([dataset[i] for i in indices]).items()}
        logits = teacher_logits(teacher, model_inputs(batch), accelerator)
        options = {"shift": True, "reduction": "sum", "return_stats": True, "backend": args.backend}
        options["lambda_observe"] = float(args.observe)  # with 0, observations are not read
        options["process_group"] = vocabulary_group(teacher, logits, accelerator)
        for index, row, labels in zip(indices, logits, batch["span_ids"]):
            _, stats = fused_span_kl(row, row, labels, **options)
            sums[index] = sum(kind.teacher_entropy_sum for kind in stats).to(sums.dtype)
        del logits
    return accelerator.reduce(sums, reduction="sum") / replicas


def measure(rows: Rows, entropy_sums: Tensor | None, observe: bool = False) -> Measures:
    """Counts the tokens and divides the entropy sums (n,) by the supervised ones. The first token has no prediction."""
    reason, act = (
        np.asarray([np.count_nonzero(row[1:] == kind) for row in rows.span_ids], np.int64) for kind in supervised_kinds()
    )
    if entropy_sums is None:
        return Measures(reason, act, None)
    tokens = np.asarray([np.count_nonzero(is_supervised(row[1:], observe)) for row in rows.span_ids], np.int64)
    return Measures(reason, act, entropy_sums.double().cpu().numpy() / np.maximum(tokens, 1))


def save(path: Path, measures: Measures, data: str, teacher: str | None, observe: bool = False) -> None:
    """Writes the measures, the hashes of the data and the teacher, and whether observations were supervised.

    The file appears complete or not at all, and has a checksum.
    """
    entropy = measures.teacher_entropy
    record = {
        "data": data,
        "teacher": teacher,
        "reason_tokens": measures.reason_tokens.tolist(),
        "act_tokens": measures.act_tokens.tolist(),
        "teacher_entropy": None if entropy is None else entropy.tolist(),
    }
    if observe:
        record["observe"] = True
    files.write_record(path, record)


def load(path: Path, data: str, teacher: str | None, observe: bool = False) -> Measures | None:
    """Reads a file of `save`.

    Args:
        path: The file.
        data: Hash of the current data.
        teacher: Hash of the current teacher; None if its entropy is not needed.
        observe: Whether observations are supervised now, so that the entropy includes them.

    Returns:
        The measures, or None if there is no file, or the file lacks an entropy that is needed.

    Raises:
        InputError: The file belongs to other data or to another teacher, its entropy has other tokens, or it cannot be read.
    """
    try:
        record = files.read_record(path, "Delete the file to measure again.")
        entropy = record["teacher_entropy"]
        measures = Measures(
            np.asarray(record["reason_tokens"], np.int64),
            np.asarray(record["act_tokens"], np.int64),
            None if entropy is None else np.asarray(entropy, np.float64),
        )
        measured_on = {"data": record["data"], "teacher": record["teacher"]}
    except FileNotFoundError:
        return None
    except files.ChecksumError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(path), "difficulties of a run", str(error), "Delete the file to measure again.") from None
    if teacher is not None and entropy is None:
        return None
    for what, now in (("data", data), ("teacher", teacher)):
        if now is not None and measured_on[what] != now:
            remedy = f"Continue with the {what} of this run, or choose another output folder."
            raise InputError(str(path), f"difficulties measured with this {what}", f"those of another {what}", remedy)
    if teacher is not None and record.get("observe", False) != observe:
        weights = [f"lambda_observe {'above' if has else 'of'} 0" for has in (observe, not observe)]
        remedy = "Continue with the lambda_observe of this run, or choose another output folder."
        raise InputError(str(path), f"difficulties measured with {weights[0]}", f"those with {weights[1]}", remedy)
    return measures
