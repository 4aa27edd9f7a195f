"""What eq. 7 is computed from: lengths of the spans and the teacher's entropy, measured once and kept in the run folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from sad.errors import InputError
from sad.losses import fused_span_kl
from sad.training.collator import SpanCollator
from sad.trajectories.labels import span_ids_of
from sadkernels.kinds import SpanKind

FILE_NAME = "curriculum.json"


class Measures(NamedTuple):
    """Three (n,) arrays, one entry per trajectory: supervised tokens of both kinds, and the teacher's mean entropy in nats
    per supervised token (None where it was not asked for)."""

    reason_tokens: NDArray[np.int64]
    act_tokens: NDArray[np.int64]
    teacher_entropy: NDArray[np.float64] | None


class Rows(NamedTuple):
    """Labels and lengths of a dataset's examples after cutting, and a hash of all their tokens and labels."""

    span_ids: list[NDArray[np.int8]]
    digest: str


def read_rows(dataset: Sequence[Mapping[str, Any]], max_length: int | None) -> Rows:
    """Reads a dataset of examples as `sad.SpanCollator` takes them once."""
    labels: list[NDArray[np.int8]] = []
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        example = dataset[index]
        tokens = np.asarray(example["input_ids"], dtype="<i8")[:max_length]
        [row] = span_ids_of([example], max_length)
        if len(tokens) != len(row):
            where = f"span_ids of example {index}"
            raise InputError(where, f"{len(tokens)} ids, one per token", str(len(row)), "Encode it with `sad.encode`.")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes() + row.tobytes())
        labels.append(row)
    return Rows(labels, digest.hexdigest())


@torch.no_grad()
def entropy_sums(
    logits_of: Callable[[dict[str, Tensor]], Tensor],
    dataset: Sequence[Mapping[str, Any]],
    batches: Iterable[list[int]],
    *,
    collator: SpanCollator,
    device: torch.device,
    backend: str = "auto",
) -> Iterator[tuple[list[int], Tensor]]:
    """The teacher's entropy, summed over the supervised tokens of each trajectory, at temperature 1.

    Args:
        logits_of: The teacher: a batch of `collator`, without span ids, to logits (B, T, V).
        dataset: Examples.
        batches: Indices to run together; one batch of logits exists at a time.
        collator: Pads.
        device: Where the teacher is.
        backend: Of the fused op, whose statistics these are.

    Yields:
        (indices, sums), sums (B,) in nats, on the device.
    """
    for indices in batches:
        batch = {name: x.to(device) for name, x in collator([dataset[i] for i in indices]).items()}
        span_ids = batch.pop("span_ids")
        batch.pop("loss_rows", None)
        logits = logits_of(batch)
        sums = []
        for row, labels in zip(logits, span_ids):
            _, stats = fused_span_kl(row, row, labels, shift=True, reduction="sum", return_stats=True, backend=backend)
            sums.append(stats.reason.teacher_entropy_sum + stats.act.teacher_entropy_sum)
        del logits
        yield indices, torch.stack(sums)


def with_progress(batches: Iterator, total: int, show: bool) -> Iterator:
    """`batches`, with a bar that says what the wait is for."""
    return iter(tqdm(batches, total=total, desc="teacher entropy for the curriculum", disable=not show, leave=False))


def measure(rows: Rows, entropy_sum: Tensor | None) -> Measures:
    """Lengths, and mean entropies from their sums (n,). The first token counts nowhere: nothing predicts it."""
    reason, act = (
        np.asarray([np.count_nonzero(row[1:] == kind) for row in rows.span_ids], np.int64)
        for kind in (SpanKind.REASON, SpanKind.ACT)
    )
    if entropy_sum is None:
        return Measures(reason, act, None)
    return Measures(reason, act, entropy_sum.double().cpu().numpy() / np.maximum(reason + act, 1))


def save(path: Path, measures: Measures, data: str, teacher: str | None) -> None:
    """Writes what was measured, with the hashes of what it was measured on. Whole or not at all."""
    entropy = measures.teacher_entropy
    record = {
        "data": data,
        "teacher": teacher,
        "reason_tokens": measures.reason_tokens.tolist(),
        "act_tokens": measures.act_tokens.tolist(),
        "teacher_entropy": None if entropy is None else entropy.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record))
    os.replace(partial, path)


def load(path: Path, data: str, teacher: str | None) -> Measures | None:
    """What `save` wrote, or None where there is no file, or one without the entropy that is needed now.

    Args:
        path: The file.
        data: The hash that the data have now.
        teacher: The hash that the teacher has now; None if its entropy is not needed.

    Raises:
        InputError: It was measured on other data or another teacher, or cannot be read.
    """
    try:
        record = json.loads(path.read_text())
        entropy = record["teacher_entropy"]
        measures = Measures(
            np.asarray(record["reason_tokens"], np.int64),
            np.asarray(record["act_tokens"], np.int64),
            None if entropy is None else np.asarray(entropy, np.float64),
        )
        measured_on = {"data": record["data"], "teacher": record["teacher"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(path), "difficulties as a run keeps them", str(error), "Delete it to measure anew.") from None
    if teacher is not None and entropy is None:
        return None
    for what, now in (("data", data), ("teacher", teacher)):
        if now is not None and measured_on[what] != now:
            remedy = f"Train on with the {what} this run began with, or choose another output folder."
            raise InputError(str(path), f"difficulties measured with this {what}", f"those of another {what}", remedy)
    return measures
