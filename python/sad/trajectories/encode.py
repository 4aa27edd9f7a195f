"""Encodes trajectories for a trainer: token ids and the span id of every token."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.kept import KeptTokens, cut_prompt, decoded_text, kept_segmentation, unusable
from sad.trajectories.long import group_by_turn, windows
from sad.trajectories.options import check_kept_ids, check_long, check_unroll
from sad.trajectories.refused import Refused, check_on_error, refusal, stop_error
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.shared_start import SharedStart
from sad.trajectories.spans import Span, SpanKind, span_ids_from_offsets, supervised_kinds
from sad.trajectories.tokenizers import check_tokenizer
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CUT_LIMIT = 0.1  # share of the supervised tokens whose loss a user must be told
_NAMES = {SpanKind.REASON: "reasoning", SpanKind.ACT: "action", SpanKind.OBSERVE: "observation"}


class Encoded(NamedTuple):
    """A tokenized trajectory of T tokens.

    Attributes:
        input_ids: (T,) token ids.
        span_ids: (T,) labels: 0 none, 1 reason, 2 act, 3 observe.
        truncated: Number of tokens that were cut off at the end.
        offsets: (T,) half-open character ranges of the tokens in the text.
    """

    input_ids: list[int]
    span_ids: list[int]
    truncated: int
    offsets: list[tuple[int, int]]


def cut_warning(cut: int, supervised: int) -> str | None:
    """Returns the warning about supervised tokens that are cut off; None if they are at most a tenth."""
    if cut <= CUT_LIMIT * supervised:
        return None
    return (
        f"max_length cuts {cut} of {supervised} supervised tokens ({cut / supervised:.0%}). Train on them with "
        "long='window' or long='turns' of sad.encode_all (--long window), or raise max_length."
    )


@dataclass
class EncodedCorpus:
    """Encoded trajectories for training, and counts of what was cut, dropped, refused and unparsed.

    Args:
        examples: One dict (input_ids, span_ids) per example that has a supervised token. A trajectory is one example, or
            several if its chat template drops thoughts of earlier turns, or if it is long and `long` is not "truncate".
        ids: The trajectory id of each example.
        truncated: Number of examples that were cut to the maximum length, including the dropped ones.
        tokens_cut: Number of tokens cut off from these examples.
        empty: Number of examples that were dropped because they have no supervised token after truncation.
        unparsed: (trajectory id, `Unparsed`) for every place that does not fit its format.
        observe: Whether observation tokens are labelled and supervised.
        trajectories: Number of trajectories that were encoded.
        unrolled: Number of conversations with several examples, because the chat template drops earlier thoughts or `unroll`
            is "always".
        split: Number of long trajectories that were split into windows or turns.
        supervised: Number of supervised tokens before any was cut.
        supervised_cut: Number of supervised tokens cut off.
        cut_empty: Number of the dropped examples whose supervised tokens were all cut off.
        refused: Trajectories that could not be encoded.
        kept: Number of trajectories encoded from the token ids of their play.
        not_kept: Number of trajectories whose token ids were not used, by the reason.
    """

    examples: list[dict[str, list[int]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    truncated: int = 0
    tokens_cut: int = 0
    empty: int = 0
    unparsed: list[tuple[str, Unparsed]] = field(default_factory=list)
    observe: bool = False
    trajectories: int = 0
    unrolled: int = 0
    split: int = 0
    supervised: int = 0
    supervised_cut: int = 0
    cut_empty: int = 0
    refused: list[Refused] = field(default_factory=list)
    kept: int = 0
    not_kept: Counter[str] = field(default_factory=Counter)
    _start: SharedStart = field(default_factory=SharedStart, repr=False)

    def add(self, trajectory: Trajectory, found: EncodedTrajectory) -> None:
        """Adds the examples of a trajectory, and counts."""
        self.trajectories += 1
        self.unrolled += len(found.whole) > 1
        self._start.add(found.segmentation.text, found.segmentation.spans, trajectory.task)
        self.kept += found.kept
        if found.not_kept:
            self.not_kept[found.not_kept] += 1
        lengths = [[len(x.input_ids) + x.truncated for x in examples] for examples in (found.whole, found.examples)]
        self.split += lengths[0] != lengths[1]
        self.unparsed += [(trajectory.id, item) for item in found.segmentation.unparsed]
        before = [len(_supervised(whole.span_ids, self.observe)) for whole in found.whole]
        after = [len(_supervised(example.span_ids, self.observe)) for example in found.examples]
        self.supervised += sum(before)
        self.supervised_cut += sum(before) - sum(after)
        for number, encoded in enumerate(found.examples):
            self.truncated += encoded.truncated > 0
            self.tokens_cut += encoded.truncated
            if not after[number]:
                self.empty += 1
                self.cut_empty += len(found.whole) == len(found.examples) and before[number] > 0
                continue
            self.examples.append({"input_ids": encoded.input_ids, "span_ids": encoded.span_ids})
            self.ids.append(trajectory.id)

    def count(self, kind: SpanKind) -> int:
        """Returns the number of tokens with this label in the examples."""
        return sum(example["span_ids"].count(kind) for example in self.examples)

    def summary(self) -> str:
        """Returns one line for a log."""
        tokens = sum(len(example["input_ids"]) for example in self.examples)
        counts = {_NAMES[kind]: self.count(kind) for kind in supervised_kinds(self.observe)}
        counts["unsupervised"] = tokens - sum(counts.values())
        used = len(set(self.ids)) if self.unrolled or self.split else len(self.examples)
        several = [f"{self.unrolled} unrolled by turn, see --unroll"] if self.unrolled else []
        several += [f"{self.split} long ones split"] if self.split else []
        kept = f", {self.kept} from the token ids of their play" if self.kept else ""
        parts = f" in {len(self.examples)} examples ({', '.join(several)})" if several else ""
        cut_off = f", {self.cut_empty} of them cut before it" if self.cut_empty else ""
        refused = f", {len(self.refused)} refused" if self.refused else ""
        return (
            f"{used} trajectories{parts}{kept}, {tokens} tokens: "
            f"{', '.join(f'{count} {name}' for name, count in counts.items())}; "
            f"{self.truncated} truncated ({self.tokens_cut} tokens cut, {self.supervised_cut} of {self.supervised} "
            f"supervised), {self.empty} without a supervised token dropped{cut_off}{refused}, "
            f"{len(self.unparsed)} places not parsed"
        )

    def warnings(self) -> list[str]:
        """Returns what a user should know before the training: many supervised tokens cut, a kind without a token."""
        found = [message] if (message := cut_warning(self.supervised_cut, self.supervised)) else []
        if message := self._start.warning():
            found.append(message)
        for reason, count in self.not_kept.items():
            found.append(f"{count} trajectories with token ids of their play are tokenized anew: {reason}.")
        missing = [_NAMES[kind] for kind in supervised_kinds() if self.examples and not self.count(kind)]
        if missing:
            found.append(
                f"no token is {' or '.join(missing)} in {len(self.examples)} examples. If the trajectories hold any, "
                "name their format (--format) and check the labels with `sad inspect`."
            )
        return found


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


@dataclass(frozen=True)
class Encoding:
    """How trajectories become token ids and labels: the options of `encode_all`, which documents them.

    `show_observations` labels observations even if they are not supervised.

    Raises:
        InputError: A value is out of range.
    """

    format: str | Format | ChatFormat | None = None
    max_length: int | None = None
    add_eos: bool = True
    include_prefix: bool = True
    observe: bool = False
    long: str = "truncate"
    long_context: float = 0.25
    long_head: int = 0
    unroll: str = "auto"
    show_observations: bool = False
    kept_ids: str = "auto"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise InputError("max_length", "at least 1", str(self.max_length), "Pass the model's sequence length, or None.")
        check_unroll(self.unroll)
        check_kept_ids(self.kept_ids)
        check_long(self.long, self.max_length, self.long_context, self.long_head)


class EncodedTrajectory(NamedTuple):
    """The examples of a trajectory.

    Args:
        whole: The examples before they are cut: one, or several if the chat template drops thoughts of earlier turns.
        examples: The examples for training. None is longer than the maximum length.
        segmentation: What they are made from.
        kept: Whether the ids are those of the play.
        not_kept: Why the ids of the play are not used; "" if there are none or if they are used.
    """

    whole: list[Encoded]
    examples: list[Encoded]
    segmentation: Segmentation
    kept: bool = False
    not_kept: str = ""


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


def join_examples(examples: Sequence[Encoded], segmentation: Segmentation) -> Encoded:
    """Returns the examples of a segmentation one after the other, with offsets in its whole text."""
    joined = Encoded([], [], sum(example.truncated for example in examples), [])
    for start, example in zip(segmentation.starts, examples):
        joined.input_ids.extend(example.input_ids)
        joined.span_ids.extend(example.span_ids)
        joined.offsets.extend((begin + start, end + start) for begin, end in example.offsets)
    return joined


def _supervised(span_ids: Sequence[int], observe: bool) -> list[int]:
    """Returns the positions of the supervised tokens."""
    kinds = set(supervised_kinds(observe))
    return [position for position, kind in enumerate(span_ids) if kind in kinds]


def _check_kept(trajectory: Trajectory, found: EncodedTrajectory, encoding: Encoding) -> None:
    """Checks that the maximum length leaves a supervised token, if there is one."""
    before, after = (
        sum(len(_supervised(example.span_ids, encoding.observe)) for example in examples)
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
    kept, why = _kept_tokens(trajectory, tokenizer, encoding)
    if kept is not None:
        return _encode_kept(kept, tokenizer, encoding)
    segmentation = trajectory.segmented(encoding.format, encoding.include_prefix, tokenizer, encoding.unroll)
    chat = trajectory.spans is None and isinstance(trajectory.resolve_format(encoding.format), ChatFormat)
    from_text = chat and trajectory.messages is None
    observe = encoding.observe or encoding.show_observations or trajectory.spans is not None
    whole, examples = [], []
    for part in segmentation.examples():
        ids, labels, offsets = _tokenize(part, tokenizer, chat, encoding.add_eos, observe, from_text)
        whole.append(Encoded(ids, labels, 0, offsets))
        prefixes = encoding.include_prefix or trajectory.spans is not None
        examples += _cut(whole[-1], part, encoding, prefixes)
    return EncodedTrajectory(whole, examples, segmentation, not_kept=why)


def _kept_tokens(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> tuple[KeptTokens | None, str]:
    """Returns the ids of the play to train on; or None and why they are not used ("" if there are none, or on request)."""
    kept = trajectory.kept_tokens
    if kept is None or encoding.kept_ids == "never":
        return None, ""
    if encoding.format is not None or trajectory.spans is not None:
        return None, "a format or spans replace their kinds"
    why = unusable(kept, trajectory.text, decoded_text(kept, tokenizer), encoding.kept_ids)
    if why is not None:
        return None, why
    return kept if encoding.kept_ids == "always" else cut_prompt(kept), ""


def _encode_kept(kept: KeptTokens, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> EncodedTrajectory:
    """Returns the examples of the ids of a play. No token is added."""
    segmentation, offsets = kept_segmentation(kept, tokenizer)
    labels = [int(digit) for digit in kept.kinds]
    if not (encoding.observe or encoding.show_observations):
        labels = [0 if label == SpanKind.OBSERVE else label for label in labels]
    if not encoding.include_prefix:
        segmentation = segmentation._replace(spans=_without_prefixes(segmentation))
        inside = span_ids_from_offsets(offsets, segmentation.spans).tolist()
        labels = [label if own or label == SpanKind.OBSERVE else 0 for label, own in zip(labels, inside)]
    whole = Encoded(list(kept.ids), labels, 0, offsets)
    examples = _cut(whole, segmentation, encoding, encoding.include_prefix)
    return EncodedTrajectory([whole], examples, segmentation, kept=True)


def _without_prefixes(segmentation: Segmentation) -> list[Span]:
    """Returns the spans of a play from after their prefixes and the blanks that follow."""
    fmt = get_format("sad")
    assert isinstance(fmt, Format)
    text, cut = segmentation.text, []
    for start, end, kind in segmentation.spans:
        prefix = fmt.patterns["reason" if kind is SpanKind.REASON else "act"].match(text, start, end)
        begin = prefix.end() if prefix else start
        begin += len(text[begin:end]) - len(text[begin:end].lstrip(" \t"))
        if begin < end:
            cut.append(Span(begin, end, kind))
    return cut


def _cut(whole: Encoded, part: Segmentation, encoding: Encoding, prefixes: bool) -> list[Encoded]:
    """Returns the examples of one example that may be longer than the maximum length."""
    ids, labels, _, offsets = whole
    length = encoding.max_length
    if length is None or len(ids) <= length:
        return [whole]
    positions = _supervised(labels, encoding.observe) if encoding.long != "truncate" else []
    if not positions:
        return [Encoded(ids[:length], labels[:length], len(ids) - length, offsets[:length])]
    groups = [positions] if encoding.long == "window" else group_by_turn(positions, offsets, part, prefixes)
    cut = []
    for head, start, labelled, stop in windows(groups, length, encoding.long_context, encoding.long_head):
        context = [0] * (head + labelled - start)
        parts = ([*x[:head], *x[start:stop]] for x in (ids, offsets))
        cut.append(Encoded(next(parts), context + labels[labelled:stop], 0, next(parts)))
    return cut


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
