"""Encodes trajectories for a trainer: token ids and the span id of every token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sad.errors import InputError
from sad.trajectories.corpus import EncodedCorpus
from sad.trajectories.encoded import Encoded, EncodedTrajectory, Encoding, join_examples, supervised_positions
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.kept_examples import encode_kept, usable_tokens
from sad.trajectories.long import cut_to_length
from sad.trajectories.options import check_on_error
from sad.trajectories.refused import Refused, refusal, stop_error
from sad.trajectories.segment import Segmentation
from sad.trajectories.tokenized import tokenize_text, weights_of_tokens
from sad.trajectories.tokenizers import check_tokenizer
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Encoded",
    "EncodedCorpus",
    "EncodedTrajectory",
    "Encoding",
    "encode",
    "encode_all",
    "encode_trajectory",
    "encode_with_segmentation",
    "join_examples",
]


def encode(
    trajectory: Trajectory | str | Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
    observe: bool = False,
) -> Encoded:
    """Tokenizes a whole trajectory once and labels its tokens (sections D.2 and F.1 of the paper).

    A trajectory with the token ids of its play is not tokenized (`kept_ids` "auto" of `sad.encode_all`).

    Args:
        trajectory: A trajectory, its text, or its messages.
        tokenizer: The fast tokenizer of the student.
        format: Replaces the format of the trajectory.
        max_length: Maximum number of tokens, including the EOS; the rest is cut off. None keeps all tokens.
        add_eos: Whether to append the EOS token. Its label is that of the last span if this span ends the text without a
            line terminator, and 0 otherwise. Rendered messages get no EOS, because their template ends the turns.
        include_prefix: As in `sad.segment`.
        observe: Whether to label observations with 3, for a training with lambda_observe > 0. The labels 1 and 2 stay the
            same: a token that touches a span of the model has its label. Observations in the trajectory's own `spans` are
            always labelled.

    Returns:
        `Encoded`. A BOS that the tokenizer adds has label 0.

    Raises:
        InputError: The tokenizer is slow, `max_length` is below 1 or cuts all supervised tokens, or the trajectory cannot be
            segmented.
    """
    if isinstance(trajectory, str):
        trajectory = Trajectory(text=trajectory)
    elif not isinstance(trajectory, Trajectory):
        trajectory = Trajectory(messages=list(trajectory))
    encoding = Encoding(format, max_length, add_eos, include_prefix, observe)
    found = encode_trajectory(trajectory, tokenizer, encoding)
    if len(found.examples) > 1:
        got = f"{len(found.examples)} examples, because the chat template drops thoughts of earlier turns"
        remedy = "Use sad.encode_all, which returns all examples, or a tokenizer.chat_template that keeps the thoughts."
        raise InputError(f"trajectory {trajectory.id!r}", "messages that make one example", got, remedy)
    _check_kept(trajectory, found, encoding)
    return found.examples[0]


def encode_with_segmentation(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
    observe: bool = False,
) -> tuple[Encoded, Segmentation]:
    """Returns the encoded trajectory and the segmentation that it is made from. Arguments and errors as in `encode`.

    If the trajectory needs several examples, they stand one after the other in both; `max_length` cuts each of them.
    """
    encoding = Encoding(format, max_length, add_eos, include_prefix, observe)
    found = encode_trajectory(trajectory, tokenizer, encoding)
    _check_kept(trajectory, found, encoding)
    return join_examples(found.examples, found.segmentation), found.segmentation


def _check_kept(trajectory: Trajectory, found: EncodedTrajectory, encoding: Encoding) -> None:
    """Checks that the maximum length leaves a supervised token, if there is one."""
    before, after = (
        sum(len(supervised_positions(example.span_ids, encoding.observe)) for example in examples)
        for examples in (found.whole, found.examples)
    )
    if before and not after:
        length = max(len(example.input_ids) for example in found.whole)
        got = f"{encoding.max_length}, which cuts all {before} supervised tokens of {length}"
        remedy = "Raise max_length, or use sad.encode_all with long='window'."
        raise InputError(f"trajectory {trajectory.id!r}, max_length", "a length that keeps a supervised token", got, remedy)


def encode_trajectory(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> EncodedTrajectory:
    """Returns the training examples of a trajectory, before and after they are cut to the maximum length.

    Raises:
        InputError: As in `encode`.
    """
    check_tokenizer(tokenizer)
    kept, why = usable_tokens(trajectory, tokenizer, encoding)
    if kept is not None:
        return encode_kept(kept, tokenizer, encoding)
    segmentation = trajectory.segmented(encoding.format, encoding.include_prefix, tokenizer, encoding.unroll)
    chat = trajectory.spans is None and isinstance(trajectory.resolve_format(encoding.format), ChatFormat)
    from_text = chat and trajectory.messages is None
    observe = encoding.observe or encoding.show_observations or trajectory.spans is not None
    whole, examples = [], []
    for part in segmentation.examples():
        ids, labels, offsets = tokenize_text(part, tokenizer, chat, encoding.add_eos, observe, from_text)
        whole.append(Encoded(ids, labels, 0, offsets, weights_of_tokens(offsets, labels, part.weights)))
        prefixes = encoding.include_prefix or trajectory.spans is not None
        examples += cut_to_length(whole[-1], part, encoding, prefixes)
    return EncodedTrajectory(whole, examples, segmentation, not_kept=why)


def encode_all(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
    observe: bool = False,
    long: str = "truncate",
    long_context: float = 0.25,
    long_head: int = 0,
    unroll: str = "auto",
    kept_ids: str = "auto",
    on_error: str = "stop",
    refused: Iterable[Refused] = (),
    say: Callable[[str], None] | None = None,
) -> EncodedCorpus:
    """Encodes a training set with `encode`. Drops trajectories without a supervised token, and counts what it drops.

    Args:
        trajectories: Trajectories, for example from `sad.read_trajectories`.
        tokenizer: The fast tokenizer of the student.
        format: Replaces the format of every trajectory.
        max_length: Maximum number of tokens per example, including the EOS. None keeps all tokens.
        add_eos: Whether to append the EOS token, as in `encode`.
        include_prefix: As in `sad.segment`.
        observe: Whether to label observations, as in `encode`. If so, they are supervised.
        long: What becomes of a trajectory that is longer than `max_length`. "truncate": its end is cut off. "window":
            overlapping windows in which every supervised token has its label exactly once. "turns": one example per turn of
            the model, with as much history as fits.
        long_context: For windows and turns: the least share of an example that is context before its first labelled token.
        long_head: For windows and turns: number of tokens at the start of the trajectory, such as the system and the task
            message, that every example repeats. It ends before the first supervised token.
        unroll: For messages, as in `sad.segment`.
        kept_ids: Whether to train on the token ids that a trajectory keeps from its play (`Trajectory.kept_tokens`). "auto":
            yes, without a prompt that is not part of the transcript, but not for a play as a conversation. "always": yes, on
            all ids, with the prompt. "never": no, the text is tokenized. Ids of another tokenizer, or of a text that was
            changed since, are not used; one warning per reason counts them.
        on_error: "stop": trajectories that cannot be encoded raise one error that counts them and names the first three.
            "skip": they are left out and listed in `EncodedCorpus.refused`.
        refused: Records that could not be read (see `sad.read_trajectories`), to be counted too.
        say: Receives each warning: supervised tokens that are cut, kinds without a token. Default: `warnings.warn`.

    Raises:
        InputError: As in `encode`; the message names the trajectory.
    """
    check_on_error(on_error)
    check_tokenizer(tokenizer)
    encoding = Encoding(
        format, max_length, add_eos, include_prefix, observe, long, long_context, long_head, unroll, kept_ids=kept_ids
    )
    corpus = EncodedCorpus(observe=observe, refused=list(refused))
    unread = len(corpus.refused)
    for trajectory in trajectories:
        try:
            found = encode_trajectory(trajectory, tokenizer, encoding)
        except InputError as error:
            corpus.refused.append(refusal(trajectory, error))
            continue
        corpus.add(trajectory, found)
    if len(corpus.refused) > unread and on_error == "stop":
        raise stop_error(corpus.refused, len(corpus.refused) + corpus.trajectories)
    for message in corpus.warnings():
        if say is None:
            warnings.warn(message, stacklevel=2)
        else:
            say(f"warning: {message}")
    return corpus
