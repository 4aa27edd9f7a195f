"""Trajectories to what a trainer takes: token ids, and the label of every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.spans import SpanKind, span_ids_from_offsets
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A tokenized trajectory of T tokens.

    `input_ids` (T) and `span_ids` (T; 0 none, 1 reason, 2 act) are lists of ints, `offsets` (T) the tokens' character
    ranges, `truncated` the number of tokens that were cut off.
    """

    input_ids: list[int]
    span_ids: list[int]
    truncated: int
    offsets: list[tuple[int, int]]


@dataclass
class EncodedCorpus:
    """Trajectories ready for training, and what became of the others.

    Args:
        examples: One dict (input_ids, span_ids) per trajectory with at least one supervised token.
        ids: The id of each example's trajectory.
        truncated: How many examples were cut to the maximal length.
        tokens_cut: How many tokens that cost.
        empty: How many trajectories had no supervised token (left) and were dropped.
        unparsed: (trajectory id, `Unparsed`) of every place that did not fit its format.
    """

    examples: list[dict[str, list[int]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    truncated: int = 0
    tokens_cut: int = 0
    empty: int = 0
    unparsed: list[tuple[str, Unparsed]] = field(default_factory=list)

    def summary(self) -> str:
        """One line for a log."""
        tokens = sum(len(example["input_ids"]) for example in self.examples)
        kinds = [sum(example["span_ids"].count(kind) for example in self.examples) for kind in SpanKind]
        return (
            f"{len(self.examples)} trajectories, {tokens} tokens: {kinds[1]} reasoning, {kinds[2]} action, {kinds[0]} "
            f"unsupervised; {self.truncated} truncated ({self.tokens_cut} tokens cut), {self.empty} without a supervised "
            f"token dropped, {len(self.unparsed)} places not parsed"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that tells where in the text its tokens are.

    Raises:
        InputError: It is a slow one, or has no vocabulary.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "Load it with AutoTokenizer.from_pretrained(..., use_fast=True); labels are placed by its offsets."
        raise InputError("tokenizer", "a fast tokenizer", type(tokenizer).__name__, remedy)
    if len(tokenizer) < 2:  # what a GPT2TokenizerFast(vocab_file=..., merges_file=...) gives, without complaint
        remedy = "Load the folder with AutoTokenizer.from_pretrained."
        raise InputError("tokenizer", "a tokenizer with a vocabulary", f"one of {len(tokenizer)} entries", remedy)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder, or of a model's name on the Hugging Face Hub.

    Raises:
        InputError: There is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # from OSError to whatever a tokenizer file's content makes its parser raise
        got = f"{name!r} ({type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''})"
        remedy = "Give a folder with tokenizer.json (or its vocabulary files and tokenizer_config.json)."
        raise InputError("tokenizer", "a folder or model name with a tokenizer", got, remedy) from error
    check_tokenizer(tokenizer)
    return tokenizer


def _ends_open(segmentation: Segmentation) -> SpanKind:
    """The kind of the last span if it ends the text without a line terminator: the appended EOS ends it instead."""
    text, spans, _ = segmentation
    if spans and spans[-1].end == len(text) and not text.endswith(("\n", "\r")):
        return spans[-1].kind
    return SpanKind.NONE


def _tokenize(
    segmentation: Segmentation, tokenizer: PreTrainedTokenizerBase, rendered: bool, add_eos: bool
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Token ids, labels and offsets of the whole text. `rendered`: a chat template wrote all special tokens itself."""
    batch = tokenizer(
        segmentation.text, return_offsets_mapping=True, add_special_tokens=not rendered, truncation=False, verbose=False
    )
    ids, offsets = list(batch["input_ids"]), [tuple(offset) for offset in batch["offset_mapping"]]
    labels = span_ids_from_offsets(offsets, segmentation.spans).tolist()
    eos = tokenizer.eos_token_id
    if not rendered and eos is not None:
        appended = bool(ids) and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]  # by the tokenizer itself
        if add_eos and not appended:
            end = len(segmentation.text)
            ids, labels, offsets = [*ids, eos], [*labels, 0], [*offsets, (end, end)]
        if add_eos or appended:
            labels[-1] = int(_ends_open(segmentation))
    return ids, labels, offsets


def encode(
    trajectory: Trajectory | str | Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
) -> Encoded:
    """Tokenizes a trajectory once, whole, and labels its tokens (sections D.2 and F.1 of the paper).

    Args:
        trajectory: A trajectory, its text, or its messages.
        tokenizer: The student's, a fast one.
        format: Replaces the trajectory's own format.
        max_length: Tokens beyond it are cut off, the EOS too.
        add_eos: Append the EOS token. It takes the last span's label where that span ends the text without a line
            terminator, else 0. Rendered messages get none: their template ends turns in its own way.
        include_prefix: As in `sad.segment`.

    Returns:
        `Encoded`. A BOS that the tokenizer adds has label 0.

    Raises:
        InputError: The tokenizer is slow, `max_length` is below 1, or the trajectory cannot be segmented.
    """
    if isinstance(trajectory, str):
        trajectory = Trajectory(text=trajectory)
    elif not isinstance(trajectory, Trajectory):
        trajectory = Trajectory(messages=list(trajectory))
    return encode_with_segmentation(
        trajectory, tokenizer, format=format, max_length=max_length, add_eos=add_eos, include_prefix=include_prefix
    )[0]


def encode_with_segmentation(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
) -> tuple[Encoded, Segmentation]:
    """`encode`, and the segmentation it is made from."""
    check_tokenizer(tokenizer)
    if max_length is not None and max_length < 1:
        raise InputError("max_length", "at least 1", str(max_length), "Pass the model's sequence length, or None.")
    segmentation = trajectory.segmented(format, include_prefix, tokenizer)
    rendered = trajectory.spans is None and isinstance(trajectory.text_format(format), ChatFormat)
    ids, labels, offsets = _tokenize(segmentation, tokenizer, rendered, add_eos)
    kept = len(ids) if max_length is None else min(max_length, len(ids))
    return Encoded(ids[:kept], labels[:kept], len(ids) - kept, offsets[:kept]), segmentation


def encode_all(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    add_eos: bool = True,
    include_prefix: bool = True,
) -> EncodedCorpus:
    """`encode` for a training set. Trajectories left without a supervised token are dropped; everything is counted.

    Args:
        trajectories: What `read_jsonl` gives.
        tokenizer: As in `encode`, likewise the others.
        format: Replaces every trajectory's own format.
        max_length: Tokens beyond it are cut off.
        add_eos: Append the EOS token.
        include_prefix: Whether spans hold their prefix.

    Raises:
        InputError: As `encode` does, naming the trajectory.
    """
    corpus = EncodedCorpus()
    for trajectory in trajectories:
        encoded, segmentation = encode_with_segmentation(
            trajectory, tokenizer, format=format, max_length=max_length, add_eos=add_eos, include_prefix=include_prefix
        )
        corpus.unparsed += [(trajectory.id, item) for item in segmentation.unparsed]
        if not any(encoded.span_ids):
            corpus.empty += 1
            continue
        corpus.examples.append({"input_ids": encoded.input_ids, "span_ids": encoded.span_ids})
        corpus.ids.append(trajectory.id)
        corpus.truncated += encoded.truncated > 0
        corpus.tokens_cut += encoded.truncated
    return corpus
