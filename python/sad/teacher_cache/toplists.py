"""Rows from lists of likely tokens that another program computed, with all checks that such lists allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sad.teacher_cache.rows import TeacherRows

MASS_ROUNDING = 1e-3  # of the sum of probabilities; values with four decimals pass
_VALUE_ROUNDING = 1e-2  # nats, between two values that a server gives for one token
_NO_PROBABILITY = -9000.0  # vLLM sends -9999 for -inf, and SGLang the lowest float32


class TopList(NamedTuple):
    """The likely tokens at one position.

    Args:
        position: Index of the predicted token in the example.
        token: Its id.
        ids: (n,) the likely tokens, n >= k, in any order.
        logprobs: (n,) their log-probabilities.
        own: The log-probability of `token`; None if it is not given.
    """

    position: int
    token: int
    ids: Sequence[int] | NDArray
    logprobs: Sequence[float] | NDArray
    own: float | None = None


class PositionError(Exception):
    """Values that do not fit the example, or that no softmax at temperature 1 has.

    Args:
        position: Index of the token in the example; None if it is not about one token.
        expected: The accepted values.
        got: The actual values.
        remedy: What the user can do.
    """

    def __init__(self, position: int | None, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{expected}, got {got}")
        self.position, self.expected, self.got, self.remedy = position, expected, got, remedy


_TEMPERATURE = (
    "The values must be log-probabilities of the whole softmax at temperature 1: no temperature, top_p, penalty or logits "
    "(vLLM: --logprobs-mode raw_logprobs, its default)."
)
_ALIGNED = "Entry p must be the prediction of token p from the tokens before it, by a teacher with this tokenizer."


def rows_from_lists(lists: Sequence[TopList], top_k: int, vocab_size: int) -> TeacherRows:
    """Returns the rows of an example. Each keeps the k most likely tokens of its list.

    The probability of the rest is what is missing to 1. The entropy is that of k tokens and one bucket for the rest, a lower
    bound of the teacher's: `rest * log(vocab_size - k)` nats at most are missing.

    Args:
        lists: One per supervised token, in order.
        top_k: k.
        vocab_size: V, columns of the softmax.

    Raises:
        PositionError: A list is too short, has other columns, or its values are impossible.
    """
    kept = [_checked(item, top_k, vocab_size) for item in lists]
    ids, logprobs = np.stack([pair[0] for pair in kept]), np.stack([pair[1] for pair in kept])
    p = np.exp(logprobs)
    mass = p.sum(1)
    over = mass > 1.0 if top_k < vocab_size else np.ones(len(mass), bool)
    logprobs = np.where(over[:, None], logprobs - np.log(mass)[:, None], logprobs)  # at most MASS_ROUNDING
    p = np.where(over[:, None], p / mass[:, None], p)
    rest = np.where(over, 0.0, 1.0 - mass)
    bucket = np.concatenate([p, rest[:, None]], 1)
    entropy = -(bucket * np.log(np.maximum(bucket, np.finfo(np.float64).tiny))).sum(1)
    best = ids[np.arange(len(ids)), logprobs.argmax(1)]  # ids ascend, so a tie takes the lowest
    floats = (logprobs.astype(np.float32), rest.astype(np.float32), np.maximum(entropy, 0.0).astype(np.float32))
    return TeacherRows(ids.astype(np.int32), *floats, best.astype(np.int32))


def _checked(item: TopList, top_k: int, vocab_size: int) -> tuple[NDArray, NDArray]:
    """Returns the k most likely tokens in ascending order and their log-probabilities."""
    ids, logprobs, at = np.asarray(item.ids), np.asarray(item.logprobs, np.float64), item.position
    if ids.ndim != 1 or ids.shape != logprobs.shape:
        raise PositionError(at, "as many ids as log-probabilities", f"{ids.shape} and {logprobs.shape}", _ALIGNED)
    if len(ids) < top_k:
        remedy = (
            f"Set --top-k {len(ids)}, or let the other side return {top_k} (vLLM: --max-logprobs {top_k})."
            if len(ids)
            else _ALIGNED
        )
        raise PositionError(at, f"{top_k} log-probabilities (top_k)", f"{len(ids)}", remedy)
    if ids.dtype.kind not in "iu":
        raise PositionError(at, "token ids as integers", f"{ids.dtype}", "Store ids, not the text of the tokens.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        outside = int(ids.min() if ids.min() < 0 else ids.max())
        remedy = (
            f"Check the model. If its head has more columns than the tokenizer, set --vocab-size (at least {outside + 1})."
        )
        raise PositionError(at, f"token ids below {vocab_size}, the columns of the softmax", str(outside), remedy)
    if len(np.unique(ids)) < len(ids):
        raise PositionError(at, "each token once", "a token twice", _ALIGNED)
    if np.isnan(logprobs).any() or logprobs.max() > MASS_ROUNDING:
        worst = logprobs[np.isnan(logprobs)][0] if np.isnan(logprobs).any() else logprobs.max()
        raise PositionError(at, "log-probabilities up to 0", f"{worst:.6g}", _TEMPERATURE)
    logprobs = np.where(logprobs <= _NO_PROBABILITY, -np.inf, logprobs)
    order = np.argsort(-logprobs, kind="stable")
    keep = np.sort(order[:top_k])
    _check_own(item, ids, logprobs, logprobs[keep].min())
    keep = keep[np.argsort(ids[keep])]
    ids, logprobs = ids[keep], logprobs[keep]
    mass = float(np.exp(logprobs).sum())
    if mass > 1.0 + MASS_ROUNDING:
        raise PositionError(at, "probabilities that sum to 1 at most", f"a sum of {mass:.6f}", _TEMPERATURE)
    if top_k == vocab_size and mass < 1.0 - MASS_ROUNDING:
        got = f"a sum of {mass:.6f} over all {vocab_size} columns"
        raise PositionError(at, "probabilities that sum to 1", got, _TEMPERATURE)
    if np.isinf(logprobs).any() and 2 * top_k <= vocab_size:
        got = f"{int(np.isinf(logprobs).sum())} of probability 0"
        raise PositionError(at, f"{top_k} likely tokens", f"{got}, as after top_p or top_k sampling", _TEMPERATURE)
    return ids, logprobs


def _check_own(item: TopList, ids: NDArray, logprobs: NDArray, smallest: float) -> None:
    """Checks the value of the example's own token against the list. Shifted values disagree with it."""
    if item.own is None:
        return
    found = np.flatnonzero(ids == item.token)
    if len(found):
        listed = logprobs[found[0]]
        agree = abs(listed - item.own) <= _VALUE_ROUNDING or max(listed, item.own) <= _NO_PROBABILITY
        expected = f"log-probability {listed:.4f} of token {item.token}, as in its list"
    else:
        agree = item.own <= smallest + _VALUE_ROUNDING
        expected = f"token {item.token} in the list, or a log-probability below the list's smallest, {smallest:.4f}"
    if not agree:
        raise PositionError(item.position, expected, f"{item.own:.4f}", _ALIGNED)
