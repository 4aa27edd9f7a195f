"""Encodes trajectories for a trainer: token ids and the span id of every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.spans import SpanKind, span_ids_from_offsets, supervised_kinds
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A tokenized trajectory of T tokens.

    Args:
        input_ids: (T,) token ids.
        span_ids: (T,) labels: 0 none, 1 reason, 2 act, 3 observe.
        truncated: Number of tokens that were cut off at the end.
        offsets: (T,) half-open character ranges of the tokens in the text.
    """

    input_ids: list[int]
    span_ids: list[int]
    truncated: int
    offsets: list[tuple[int, int]]


@dataclass
class EncodedCorpus:
    """Encoded trajectories for training, and counts of what was cut, dropped and unparsed.

    Args:
        examples: One dict (input_ids, span_ids) per example that has a supervised token. A trajectory is one example, or
            several if its chat template drops thoughts of earlier turns.
        ids: The trajectory id of each example.
        truncated: Number of examples that were cut to the maximum length, including the dropped ones.
        tokens_cut: Number of tokens cut off from these examples.
        empty: Number of examples that were dropped because they have no supervised token after truncation.
        observe: Whether observation tokens are labelled and supervised.
        unparsed: (trajectory id, `Unparsed`) for every place that does not fit its format.
    """

    examples: list[dict[str, list[int]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    truncated: int = 0
    tokens_cut: int = 0
    empty: int = 0
    unparsed: list[tuple[str, Unparsed]] = field(default_factory=list)
    observe: bool = False

    def summary(self) -> str:
        """Returns one line for a log."""
        tokens = sum(len(example["input_ids"]) for example in self.examples)
        names = {SpanKind.REASON: "reasoning", SpanKind.ACT: "action", SpanKind.OBSERVE: "observation"}
        counts = {
            names[kind]: sum(example["span_ids"].count(kind) for example in self.examples)
            for kind in supervised_kinds(self.observe)
        }
        counts["unsupervised"] = tokens - sum(counts.values())
        return (
            f"{len(self.examples)} trajectories, {tokens} tokens: "
            f"{', '.join(f'{count} {name}' for name, count in counts.items())}; "
            f"{self.truncated} truncated ({self.tokens_cut} tokens cut), {self.empty} without a supervised token dropped, "
            f"{len(self.unparsed)} places not parsed"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer can return the character offsets of its tokens.

    Raises:
        InputError: The tokenizer is slow, or it has no vocabulary.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "Load it with AutoTokenizer.from_pretrained(..., use_fast=True); the labels need its offsets."
        raise InputError("tokenizer", "a fast tokenizer", type(tokenizer).__name__, remedy)
    if len(tokenizer) < 2:  # GPT2TokenizerFast(vocab_file=..., merges_file=...) returns one without an error
        remedy = "Load the folder with AutoTokenizer.from_pretrained."
        raise InputError("tokenizer", "a tokenizer with a vocabulary", f"one of {len(tokenizer)} entries", remedy)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer from a folder, or by the name of a model on the Hugging Face Hub.

    Raises:
        InputError: There is no tokenizer, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # an OSError, or any exception of the parser of a tokenizer file
        got = f"{name!r} ({type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''})"
        remedy = "Pass a folder with tokenizer.json (or its vocabulary files and tokenizer_config.json)."
        raise InputError("tokenizer", "a folder or model name with a tokenizer", got, remedy) from error
    check_tokenizer(tokenizer)
    return tokenizer


def _eos_kind(segmentation: Segmentation) -> SpanKind:
    """Returns the kind of an EOS after the text: the kind of the last span if it ends the text without a line terminator."""
    text, spans = segmentation.text, segmentation.spans
    if spans and spans[-1].end == len(text) and not text.endswith(("\n", "\r")):
        return spans[-1].kind
    return SpanKind.NONE


def _tokenize(
    segmentation: Segmentation,
    tokenizer: PreTrainedTokenizerBase,
    rendered: bool,
    add_eos: bool,
    observe: bool,
    from_text: bool = False,
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Returns token ids, labels and offsets of the whole text.

    Args:
        segmentation: The text and its spans.
        tokenizer: A fast tokenizer.
        rendered: Whether a chat template rendered the text. Then the text contains all special tokens already.
        add_eos: Whether to append the EOS.
        observe: Whether to label observations.
        from_text: Whether another program rendered the text. It may lack the BOS.
    """
    text, bos = segmentation.text, tokenizer.bos_token
    add = (from_text or not rendered) and not (bos and text.startswith(bos))
    batch = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add, truncation=False, verbose=False)
    ids, offsets = list(batch["input_ids"]), [tuple(offset) for offset in batch["offset_mapping"]]
    labels = span_ids_from_offsets(offsets, segmentation.spans).tolist()
    if observe and segmentation.observations:  # a token that touches a span of the model keeps its label
        observed = span_ids_from_offsets(offsets, segmentation.observations).tolist()
        labels = [own or other for own, other in zip(labels, observed)]
    eos = tokenizer.eos_token_id
    if not rendered and eos is not None:
        appended = bool(ids) and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]  # by the tokenizer itself
        if ids and ids[-1] == eos and not appended:  # the text itself ends with the EOS
            return ids, labels, offsets
        if add_eos and not appended:
            end = len(segmentation.text)
            ids, labels, offsets = [*ids, eos], [*labels, 0], [*offsets, (end, end)]
        if add_eos or appended:
            labels[-1] = int(_eos_kind(segmentation))
    return ids, labels, offsets


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
        InputError: The tokenizer is slow, `max_length` is below 1, or the trajectory cannot be segmented.
    """
    if isinstance(trajectory, str):
        trajectory = Trajectory(text=trajectory)
    elif not isinstance(trajectory, Trajectory):
        trajectory = Trajectory(messages=list(trajectory))
    examples, _ = encode_examples(
        trajectory,
        tokenizer,
        format=format,
        max_length=max_length,
        add_eos=add_eos,
        include_prefix=include_prefix,
        observe=observe,
    )
    if len(examples) > 1:
        got = f"{len(examples)} examples, because the chat template drops thoughts of earlier turns"
        remedy = "Use sad.encode_all, which returns all examples, or a tokenizer.chat_template that keeps the thoughts."
        raise InputError(f"trajectory {trajectory.id!r}", "messages that make one example", got, remedy)
    return examples[0]


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
    """Returns the encoded trajectory and the segmentation that it is made from.

    If the trajectory needs several examples, they stand one after the other in both; `max_length` cuts each of them.
    """
    examples, segmentation = encode_examples(
        trajectory,
        tokenizer,
        format=format,
        max_length=max_length,
        add_eos=add_eos,
        include_prefix=include_prefix,
        observe=observe,
    )
    joined = Encoded([], [], sum(example.truncated for example in examples), [])
    for start, example in zip(segmentation.starts, examples):
        joined.input_ids.extend(example.input_ids)
        joined.span_ids.extend(example.span_ids)
        joined.offsets.extend((begin + start, end + start) for begin, end in example.offsets)
    return joined, segmentation


def encode_examples(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
    observe: bool = False,
) -> tuple[list[Encoded], Segmentation]:
    """Returns the training examples of a trajectory and the segmentation that they are made from.

    A trajectory is one example, or several if its chat template drops thoughts of earlier turns. Arguments as in `encode`.
    """
    check_tokenizer(tokenizer)
    if max_length is not None and max_length < 1:
        raise InputError("max_length", "at least 1", str(max_length), "Pass the model's sequence length, or None.")
    segmentation = trajectory.segmented(format, include_prefix, tokenizer)
    chat = trajectory.spans is None and isinstance(trajectory.resolve_format(format), ChatFormat)
    from_text = chat and trajectory.messages is None
    observe = observe or trajectory.spans is not None
    examples = []
    for part in segmentation.examples():
        ids, labels, offsets = _tokenize(part, tokenizer, chat, add_eos, observe, from_text)
        kept = len(ids) if max_length is None else min(max_length, len(ids))
        examples.append(Encoded(ids[:kept], labels[:kept], len(ids) - kept, offsets[:kept]))
    return examples, segmentation


def encode_all(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
    observe: bool = False,
) -> EncodedCorpus:
    """Encodes a training set with `encode`. Drops trajectories without a supervised token, and counts what it drops.

    Args:
        trajectories: Trajectories, for example from `sad.read_jsonl`.
        tokenizer: The fast tokenizer of the student.
        format: Replaces the format of every trajectory.
        max_length: Maximum number of tokens per trajectory, including the EOS.
        add_eos: Whether to append the EOS token, as in `encode`.
        include_prefix: As in `sad.segment`.
        observe: Whether to label observations, as in `encode`. If so, they are supervised.

    Raises:
        InputError: As in `encode`; the message names the trajectory.
    """
    corpus = EncodedCorpus(observe=observe)
    supervised = set(supervised_kinds(observe))
    for trajectory in trajectories:
        examples, segmentation = encode_examples(
            trajectory,
            tokenizer,
            format=format,
            max_length=max_length,
            add_eos=add_eos,
            include_prefix=include_prefix,
            observe=observe,
        )
        corpus.unparsed += [(trajectory.id, item) for item in segmentation.unparsed]
        for encoded in examples:
            corpus.truncated += encoded.truncated > 0
            corpus.tokens_cut += encoded.truncated
            if supervised.isdisjoint(encoded.span_ids):
                corpus.empty += 1
                continue
            corpus.examples.append({"input_ids": encoded.input_ids, "span_ids": encoded.span_ids})
            corpus.ids.append(trajectory.id)
    return corpus
