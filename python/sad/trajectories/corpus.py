"""An encoded training set, with counts and warnings of what a user should know before the training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sad.trajectories.encoded import Encoded, EncodedTrajectory, supervised_positions
from sad.trajectories.refused import Refused
from sad.trajectories.segment import Unparsed
from sad.trajectories.shared_start import SharedStart
from sad.trajectories.spans import SpanKind, supervised_kinds
from sad.trajectories.trajectory import Trajectory

CUT_LIMIT = 0.1  # share of the supervised tokens whose loss a user must be told
_NAMES = {SpanKind.REASON: "reasoning", SpanKind.ACT: "action", SpanKind.OBSERVE: "observation"}


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
            several if its chat template drops thoughts of earlier turns, or if it is long and `long` is not "truncate". If
            a message has a weight other than 1, all examples also have token_weights.
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
        ranked: Number of trajectories of a pair of answers, of which only the chosen one is trained.
        weights: Number of supervised tokens by their weight; empty if all weights are 1.
    """

    examples: list[dict[str, list[Any]]] = field(default_factory=list)
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
    ranked: int = 0
    weights: Counter[float] = field(default_factory=Counter)
    _start: SharedStart = field(default_factory=SharedStart, repr=False)

    def add(self, trajectory: Trajectory, found: EncodedTrajectory) -> None:
        """Adds the examples of a trajectory, and counts."""
        self.trajectories += 1
        self.unrolled += len(found.whole) > 1
        self._start.add(found.segmentation.text, found.segmentation.spans, trajectory.task)
        self.kept += found.kept
        self.ranked += trajectory.ranked
        if found.not_kept:
            self.not_kept[found.not_kept] += 1
        lengths = [[len(x.input_ids) + x.truncated for x in examples] for examples in (found.whole, found.examples)]
        self.split += lengths[0] != lengths[1]
        self.unparsed += [(trajectory.id, item) for item in found.segmentation.unparsed]
        before = [len(supervised_positions(whole.span_ids, self.observe)) for whole in found.whole]
        after = [len(supervised_positions(example.span_ids, self.observe)) for example in found.examples]
        self.supervised += sum(before)
        self.supervised_cut += sum(before) - sum(after)
        for number, encoded in enumerate(found.examples):
            self.truncated += encoded.truncated > 0
            self.tokens_cut += encoded.truncated
            if not after[number]:
                self.empty += 1
                self.cut_empty += len(found.whole) == len(found.examples) and before[number] > 0
                continue
            self._append(encoded)
            self.ids.append(trajectory.id)

    def _append(self, encoded: Encoded) -> None:
        """Appends an example. All examples have a column of weights, or none has one."""
        example = {"input_ids": encoded.input_ids, "span_ids": encoded.span_ids}
        if encoded.token_weights is not None or self.weights:
            for other in [] if self.weights else self.examples:
                self._add_weights(other, None)
            self._add_weights(example, encoded.token_weights)
        self.examples.append(example)

    def _add_weights(self, example: dict[str, list[Any]], weights: list[float] | None) -> None:
        example["token_weights"] = weights or [1.0] * len(example["input_ids"])
        supervised = supervised_positions(example["span_ids"], self.observe)
        self.weights.update(example["token_weights"][position] for position in supervised)

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
        ranked = f", {self.ranked} rankings (the chosen answer is trained, the rejected one is not)" if self.ranked else ""
        return (
            f"{used} trajectories{parts}{kept}{ranked}, {tokens} tokens: "
            f"{', '.join(f'{count} {name}' for name, count in counts.items())}{self._weighted()}; "
            f"{self.truncated} truncated ({self.tokens_cut} tokens cut, {self.supervised_cut} of {self.supervised} "
            f"supervised), {self.empty} without a supervised token dropped{cut_off}{refused}, "
            f"{len(self.unparsed)} places not parsed"
        )

    def _weighted(self) -> str:
        """Returns the part of the summary about weights: how many tokens have one other than 1, and their range."""
        other = {weight: count for weight, count in self.weights.items() if weight != 1}
        if not other:
            return ""
        low, high = min(other), max(other)
        values = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f" ({sum(other.values())} with a token weight of {values})"

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
