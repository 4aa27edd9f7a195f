"""Runs the teacher over examples, and projects supervised positions alone onto the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from sad.errors import InputError
from sad.model_parts import split_model
from sad.teacher_cache.metadata import supervised_rows
from sad.teacher_cache.rows import TeacherRows, concatenate, rows_of_logits
from sad.trajectories.batching import pad_batch

logger = logging.get_logger(__name__)

_CHUNK_BYTES = 64 << 20  # of float32 logits; reading them makes three more such buffers


class RowReader:
    """A teacher in evaluation mode.

    Args:
        model: A causal language model, on its device. One that does not come apart into body and head gives the logits of
            all tokens of a batch, with a warning.
        top_k: Columns to list.
        vocab_size: The softmax runs over this many, the first.
    """

    def __init__(self, model: nn.Module, top_k: int, vocab_size: int) -> None:
        self._model, self._top_k, self._vocab_size = model.eval(), top_k, vocab_size
        try:
            self._parts = split_model(model)
        except ValueError as error:
            logger.warning("The teacher computes the logits of all tokens, since it does not come apart: %s.", error)
            self._parts = None

    @torch.no_grad()
    def read(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[TeacherRows]:
        """The rows of each example, from one forward.

        Args:
            examples: B mappings with `input_ids` and `span_ids`.

        Raises:
            InputError: The teacher's logits are NaN or infinite.
        """
        device = self._model.device
        tokens, labels = ([example[name] for example in examples] for name in ("input_ids", "span_ids"))
        batch = {name: x.to(device) for name, x in pad_batch(tokens, labels).items()}
        positions = batch.pop("loss_rows")
        del batch["span_ids"]
        if self._parts is None:
            options = {"use_cache": False} if hasattr(self._model, "config") else {}
            given, project = self._model(**batch, **options).logits, None
        else:
            given, project = self._parts.hidden(batch), self._parts.head()
        given = given.flatten(0, 1)[positions.to(given.device)]
        parts = []
        for chunk in given.split(max(1, _CHUNK_BYTES // (4 * self._vocab_size))):
            logits: Tensor = chunk if project is None else project.logits(chunk)
            parts.append(rows_of_logits(logits[:, : self._vocab_size], self._top_k))
        rows = concatenate(parts)
        if not np.isfinite(rows.entropy).all():
            remedy = "Run it in bfloat16 or float32: --teacher-dtype."
            raise InputError("teacher", "finite logits", "NaN or infinite ones", remedy)
        start = 0
        for example in examples:
            stop = start + len(supervised_rows(example["span_ids"]))
            yield rows.part(slice(start, stop))
            start = stop


def head_columns(model: nn.Module) -> int:
    """Columns of the logits of a model of `transformers`, or of a PEFT model of one."""
    return int(model.config.get_text_config().vocab_size)
