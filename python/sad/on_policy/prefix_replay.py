"""`PrefixReplay`: the student writes the next turn of given trajectories, without an environment."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from sad.errors import InputError
from sad.on_policy.engines import Engine
from sad.on_policy.examples import judge_all
from sad.on_policy.rollouts import Rollout, Rollouts
from sad.on_policy.turns import Turn
from sad.training.config import SADConfig
from sad.trajectories.content import split_content
from sad.trajectories.encode import Encoding, encode_trajectory
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.generated import decode_with_offsets, label_generated
from sad.trajectories.kept import KeptTokens, digest
from sad.trajectories.options import check_on_error
from sad.trajectories.pieces import spans_of
from sad.trajectories.rendered import find_dialect
from sad.trajectories.spans import SpanKind, span_ids_from_offsets
from sad.trajectories.trajectory import Trajectory

_TURN = 4  # stream of random numbers for the choice of the turn


class _Lesson(NamedTuple):
    """A trajectory with the positions at which the model's turns begin."""

    id: str
    input_ids: list[int]
    starts: list[int]
    format: Format | ChatFormat


class PrefixReplay(Rollouts):
    """The student continues the teacher's trajectories: everything before a turn is the prefix, the student writes the turn.

    No environment is needed, so it works for trajectories of any source. `rollout_prefix` and `rollout_turns` have no
    effect.

    Args:
        trajectories: Trajectories in any format that `sad.encode_all` accepts.
        tokenizer: Fast tokenizer of the student.
        format: Replaces the format of every trajectory.
        max_turn_tokens: Maximum number of tokens of a turn.
        temperature: Sampling temperature; 0 is greedy.
        batch_size: Number of parallel turns per process.
        engine: What runs the student; default: its model in this process.
        on_error: "stop", or "skip" to leave out trajectories that cannot be encoded.
        **encoding: Further options of `sad.encode_all`: `include_prefix`, `unroll`, `kept_ids`.

    Raises:
        InputError: A number is out of range, or a trajectory cannot be encoded.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        tokenizer: Any,
        *,
        format: str | Format | ChatFormat | None = None,
        max_turn_tokens: int = 128,
        temperature: float = 1.0,
        batch_size: int = 64,
        engine: Engine | None = None,
        on_error: str = "stop",
        **encoding: Any,
    ) -> None:
        super().__init__(engine)
        for name, number in (("max_turn_tokens", max_turn_tokens), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(name, "at least 1", str(number), "Use a larger number.")
        if not 0 <= temperature < float("inf"):
            raise InputError("temperature", "0 (greedy) or a positive number", str(temperature), "Use 1.0.")
        self._tokenizer, self._most = tokenizer, max_turn_tokens
        self._temperature, self._batch_size = temperature, batch_size
        check_on_error(on_error)
        options = Encoding(format, **encoding)
        self._lessons: list[_Lesson] = []
        for trajectory in trajectories:
            with contextlib.suppress(*([InputError] if on_error == "skip" else [])):
                self._lessons += _lessons(trajectory, tokenizer, options)

    def check(self, args: SADConfig) -> None:
        """Checks that there are turns to write.

        Raises:
            InputError: No prefix leaves room for a turn within `max_length`.
        """
        self._lessons = fitting(self._lessons, args.max_length - self._most)
        if not self._lessons:
            expected = f"a turn of a model within max_length {args.max_length} - max_turn_tokens {self._most}"
            remedy = "Raise max_length, lower --rollout-turn-tokens, or check the labels with `sad inspect`."
            raise InputError("trajectories", expected, "none", remedy)

    def play(self, student: nn.Module, rollout: Rollout) -> list[Trajectory]:
        """Writes the turns of this process. See `Rollouts.play`."""
        chosen = rollout.own(self._chosen(rollout))
        turns = [self._turn(lesson, start, rollout.seed(number)) for number, lesson, start in chosen]
        options = {"temperature": self._temperature, "batch_size": self._batch_size}
        found = self.engine.turns(student, turns, self._tokenizer, **options)
        return [
            self._trajectory(f"{lesson.id}@{rollout.step}#{number}", lesson, start, written)
            for (number, lesson, start), written in zip(chosen, found)
        ]

    def _chosen(self, rollout: Rollout) -> list[tuple[int, _Lesson, int]]:
        """Returns the turns of a rollout, of all processes: number, trajectory, and position of the first token."""
        schedule = rollout.schedule
        generator = np.random.default_rng((schedule.seed, _TURN, rollout.step))
        lessons = [self._lessons[i] for i in schedule.tasks(rollout.step, rollout.episodes, len(self._lessons))]
        return [(number, x, x.starts[int(generator.integers(len(x.starts)))]) for number, x in enumerate(lessons)]

    def _turn(self, lesson: _Lesson, start: int, seed: int) -> Turn:
        prefix = lesson.input_ids[:start]
        ended = turn_end(prefix, self._tokenizer, lesson.format)
        return Turn(prefix, zlib.crc32(f"{seed}/{lesson.id}/{start}".encode()), self._most, ended)

    def _trajectory(self, name: str, lesson: _Lesson, start: int, written: list[int]) -> Trajectory:
        """Returns the prefix, whose tokens have kind 0, and what the student wrote."""
        prefix = lesson.input_ids[:start]
        labels = label_turn(prefix, written, self._tokenizer, lesson.format)
        if len(labels) > 1 and not labels[-1] and written[-1] in self._tokenizer.all_special_ids:
            labels[-1] = labels[-2]  # the mark that ends the turn
        ids, kinds = [*prefix, *written], "0" * start + "".join(map(str, judge_all(labels)))
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        kept = KeptTokens(ids, kinds, (0, 0), True, digest(text), digest(text))
        return Trajectory(id=name, text=text, kept_tokens=kept, extra={"acted": SpanKind.ACT in labels})


def turn_end(prefix: Sequence[int], tokenizer: Any, format: Format | ChatFormat) -> Callable[[Sequence[int]], bool]:
    """Returns a function that says whether a turn is over: in a format of lines, its action line is complete.

    In a chat format only the model's stop token ends a turn.
    """
    if isinstance(format, ChatFormat):
        return lambda written: False

    def ended(written: Sequence[int]) -> bool:
        if "\n" not in tokenizer.decode([written[-1]], clean_up_tokenization_spaces=False):
            return False
        return SpanKind.ACT in label_generated(prefix, written, tokenizer, format)

    return ended


def label_turn(prefix: Sequence[int], written: Sequence[int], tokenizer: Any, format: Format | ChatFormat) -> list[int]:
    """Returns the span ids of a written turn. A turn after the marks of an unknown chat template is labelled by itself."""
    if isinstance(format, ChatFormat) and find_dialect(decode_with_offsets(prefix, tokenizer)[0]) is None:
        text, offsets = decode_with_offsets(written, tokenizer)
        pieces = split_content(text, format, calls_follow=False, thoughts_apart=False).pieces
        return span_ids_from_offsets(offsets, spans_of(pieces, include_prefix=True)).tolist()
    return label_generated(prefix, written, tokenizer, format)


def fitting(lessons: Iterable[_Lesson], longest: int) -> list[_Lesson]:
    """Returns the trajectories with only those turns whose prefix has at most `longest` tokens."""
    found = (lesson._replace(starts=[start for start in lesson.starts if start <= longest]) for lesson in lessons)
    return [lesson for lesson in found if lesson.starts]


def _lessons(trajectory: Trajectory, tokenizer: Any, encoding: Encoding) -> list[_Lesson]:
    format = trajectory.resolve_format(encoding.format)
    lessons = []
    for encoded in encode_trajectory(trajectory, tokenizer, encoding).whole:
        starts = _turn_starts(encoded.span_ids)
        if starts:
            lessons.append(_Lesson(trajectory.id, encoded.input_ids, starts, format))
    return lessons


def _turn_starts(span_ids: Sequence[int]) -> list[int]:
    """Returns the positions of the first tokens of the model's turns. The first token of all has no prefix."""
    own = [kind in (SpanKind.REASON, SpanKind.ACT) for kind in span_ids]
    return [at for at in range(1, len(own)) if own[at] and not own[at - 1]]
