"""Measures the candidates of `sadkernels/tuning.py` on a GPU, and chooses the fastest for each setting.

The unit of work is a stage: one setting for one dtype and one vocabulary. Each candidate is compared with float64 first. A
wrong one is left out. The others are timed in rounds, so that a slow moment of the machine affects all of them, and the
median of the rounds decides. A candidate replaces what the package ships only if it is faster by more than `MARGIN`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, Protocol, TypeVar

from sadkernels.tuning import CANDIDATES, Choice, Entry

T = TypeVar("T")

VOCAB_SIZES = (151936, 50257, 262144, 32000)  # Qwen (and, with `tuning.RANGE`, Llama 3), GPT-2, Gemma, Llama 2
DTYPES = ("bfloat16", "float32")  # of logits; the losses from hidden states compute float32 logits
TOKENS = 4096
SECONDS = 50.0  # the command takes less than a minute with its imports
ROUNDS, MIN_ROUNDS = 9, 3
MARGIN = 0.02  # the medians of two equal kernels differ by less
_STAGE_SHARE = 0.1  # of the time; after it a stage starts no further round
# The most valuable settings first, because the time may be over before the last one.
_ORDER = (
    *("triton.lean", "cuda.lean", "backend.span_kl", "triton.slices", "cuda.slices", "linear.chunk"),
    *("triton.roomy", "cuda.roomy", "triton.topk", "backend.topk_span_kl", "triton.one_pass"),
)


class Stage(NamedTuple):
    """One setting for one dtype and one vocabulary."""

    setting: str
    dtype: str
    vocab_size: int


class Card(Protocol):
    """What the search needs of a GPU. `choices`: what the plans follow meanwhile, by setting."""

    def fault(self, stage: Stage, choices: Mapping[str, Choice]) -> str | None:
        """Compares a small call with float64. Returns why it is wrong, or None."""

    def seconds(self, stage: Stage, choices: Mapping[str, Choice]) -> float:
        """Returns the time of one call of the stage's sizes.

        Raises:
            MemoryError: The call does not fit in the GPU's memory.
            Exception: The call failed.
        """


class LeftOut(NamedTuple):
    """A candidate that is not chosen because it was wrong or failed; None is what the package ships."""

    setting: str
    dtype: str
    choice: Choice | None
    reason: str


class Tuned(NamedTuple):
    """The result of a search.

    Args:
        entries: One per stage that was decided, those of "backend.*" over all vocabularies.
        left_out: The candidates that were wrong.
        not_measured: The stages that were not decided: no time, no memory, or no correct candidate.
        seconds: The time that the search took.
    """

    entries: list[Entry]
    left_out: list[LeftOut]
    not_measured: list[Stage]
    seconds: float

    @property
    def shipped_is_wrong(self) -> bool:
        """Whether a kernel was wrong with what the package ships."""
        return any(_is_shipped(candidate.setting, candidate.choice) for candidate in self.left_out)


def stages(backends: Sequence[str], vocab_sizes: Iterable[int], dtypes: Iterable[str]) -> list[Stage]:
    """Returns the stages in the order of their value.

    Args:
        backends: The backends that can run: "triton", "cuda" or both.
        vocab_sizes: Vocabulary columns.
        dtypes: Names of dtypes.
    """

    def possible(setting: str) -> bool:
        kind = setting.partition(".")[0]
        return kind in backends or (kind == "backend" and len(backends) > 1) or (kind == "linear" and bool(backends))

    settings = [setting for setting in _ORDER if possible(setting)]
    sizes = [(dtype, vocab_size) for dtype in dict.fromkeys(dtypes) for vocab_size in dict.fromkeys(vocab_sizes)]
    return [Stage(setting, *size) for setting in settings for size in sizes]


def tune(
    card: Card,
    stages: Sequence[Stage],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[Entry], object] = lambda entry: None,
) -> Tuned:
    """Measures the stages in their order, and stops in time with what it has measured.

    No step starts that would exceed the time if it took as long as the longest one so far. A step is one comparison with
    float64, which compiles the kernel, or one timed call.

    Args:
        card: The GPU.
        stages: The stages.
        seconds: The time for all stages.
        clock: The time in seconds.
        report: Receives each result at once.
    """
    search = _Search(card, seconds, clock, report)
    not_measured: list[Stage] = []
    for number, stage in enumerate(stages):
        try:
            if not search.decide(stage):
                not_measured.append(stage)
        except _TimeOver:
            not_measured += stages[number:]
            break
    search.decide_backends()
    return Tuned(search.entries, search.left_out, not_measured, clock() - search.begin)


class _TimeOver(Exception):
    """The next step would exceed the time."""


class _Search:
    """The state of a search. `entries` gets the settings "backend.*" in the end, from all vocabularies."""

    def __init__(self, card: Card, seconds: float, clock: Callable[[], float], report: Callable[[Entry], object]) -> None:
        self.entries: list[Entry] = []
        self.left_out: list[LeftOut] = []
        self.begin = clock()
        self._card, self._clock, self._seconds, self._report = card, clock, seconds, report
        self._longest = {"fault": 0.0, "seconds": 0.0}  # by method of the card
        self._correct: dict[tuple[str, str, int], bool] = {}  # the small call is the same for all vocabularies
        self._chosen: dict[tuple[str, int], dict[str, Choice]] = {}
        self._backend_times: dict[tuple[str, str], list[dict[str, float]]] = {}

    def decide(self, stage: Stage) -> bool:
        """Measures a stage. Returns whether it is decided.

        Raises:
            _TimeOver: The time is over before the stage is decided.
        """
        candidates: list[Choice | None] = list(CANDIDATES[stage.setting])
        if not _is_backend(stage.setting):
            candidates.insert(0, None)
        correct = [candidate for number, candidate in enumerate(candidates) if self._is_correct(stage, number, candidate)]
        try:
            times = self._times(stage, correct)
        except MemoryError:
            return False
        if not times:
            return False
        best, took, shipped = _best(stage.setting, times)
        if best is not None:
            self._chosen.setdefault((stage.dtype, stage.vocab_size), {})[stage.setting] = best
        if _is_backend(stage.setting):
            by_name = {candidate["backend"]: seconds for candidate, seconds in times}
            self._backend_times.setdefault((stage.setting, stage.dtype), []).append(by_name)
        else:
            self._add(Entry(*stage, best, _ms(took), _ms(shipped)))
        return True

    def decide_backends(self) -> None:
        """Adds the backend for each op and dtype: the one with the smaller geometric mean over the vocabularies.

        A backend that was left out for a vocabulary is not chosen.
        """
        for (setting, dtype), by_vocab in self._backend_times.items():
            means: list[tuple[Choice | None, float]] = []
            for candidate in CANDIDATES[setting]:
                seconds = [times[candidate["backend"]] for times in by_vocab if candidate["backend"] in times]
                if len(seconds) == len(by_vocab):
                    means.append((candidate, math.exp(math.fsum(map(math.log, seconds)) / len(seconds))))
            if means:
                best, took, shipped = _best(setting, means)
                self._add(Entry(setting, dtype, None, best, _ms(took), _ms(shipped)))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._report(entry)

    def _is_correct(self, stage: Stage, number: int, candidate: Choice | None) -> bool:
        key = (stage.setting, stage.dtype, number)
        if key not in self._correct:
            choices = self._choices(stage, candidate)
            reason = self._step("fault", lambda: self._card.fault(stage, choices))
            self._correct[key] = reason is None
            if reason is not None:
                self.left_out.append(LeftOut(stage.setting, stage.dtype, candidate, reason))
        return self._correct[key]

    def _times(self, stage: Stage, candidates: list[Choice | None]) -> list[tuple[Choice | None, float]]:
        """Returns the median seconds of each candidate over the complete rounds. The first round only warms up."""
        seconds: dict[int, list[float]] = {number: [] for number in range(len(candidates))}
        begin = self._clock()

        def run(number: int) -> float:
            choices = self._choices(stage, candidates[number])
            return self._step("seconds", lambda: self._card.seconds(stage, choices))

        try:
            for finished in range(-1, ROUNDS):  # rounds before this one; -1 is the warm-up
                if finished >= MIN_ROUNDS and self._clock() - begin > _STAGE_SHARE * self._seconds:
                    break
                for number in list(seconds):
                    try:
                        took = run(number)
                    except (_TimeOver, MemoryError):
                        raise
                    except Exception as failure:  # from a compiler or a driver, of any type
                        reason = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
                        self.left_out.append(LeftOut(stage.setting, stage.dtype, candidates[number], reason))
                        del seconds[number]
                        continue
                    if finished >= 0:
                        seconds[number].append(took)
        except _TimeOver:
            if min(map(len, seconds.values()), default=0) < MIN_ROUNDS:
                raise
        rounds = min(map(len, seconds.values()), default=0)
        return [(candidates[number], median(some[:rounds])) for number, some in seconds.items()]

    def _choices(self, stage: Stage, candidate: Choice | None) -> dict[str, Choice]:
        """Returns what the plans follow for a candidate: it, and what is chosen for these sizes already.

        The losses from hidden states have float32 logits.
        """
        logits_dtype = "float32" if stage.setting == "linear.chunk" else stage.dtype
        chosen = self._chosen.get((logits_dtype, stage.vocab_size), {})
        others = {setting: choice for setting, choice in chosen.items() if setting != stage.setting}
        return others if candidate is None else {**others, stage.setting: candidate}

    def _step(self, method: str, work: Callable[[], T]) -> T:
        """Runs the work, unless it would exceed the time if it took as long as the longest call of the method so far."""
        before = self._clock()
        if before + self._longest[method] - self.begin > self._seconds:
            raise _TimeOver
        try:
            return work()
        finally:
            self._longest[method] = max(self._longest[method], self._clock() - before)


def _best(setting: str, times: list[tuple[Choice | None, float]]) -> tuple[Choice | None, float, float | None]:
    """Returns the choice, its seconds, and those of what the package ships (None if that was left out)."""
    shipped = next((one for one in times if _is_shipped(setting, one[0])), None)
    choice, took = min(times, key=lambda one: one[1])  # the first of equal ones
    if shipped is None:
        return choice, took, None
    return (*shipped, shipped[1]) if shipped[1] <= (1 + MARGIN) * took else (choice, took, shipped[1])


def _is_backend(setting: str) -> bool:
    return setting.startswith("backend.")


def _is_shipped(setting: str, candidate: Choice | None) -> bool:
    """Whether a candidate is what the package does without a file: for "backend.*" the first one, else None."""
    return candidate is (CANDIDATES[setting][0] if _is_backend(setting) else None)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{1e3 * seconds:.4g}")
