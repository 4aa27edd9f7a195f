"""Plans a training run on one GPU: what fits, with which micro-batch, and what has to be given up for it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from sad.errors import InputError
from sad.planner.formulas import DTYPES, MODES, OPTIMIZERS, TEACHER_BITS, Phase, Setup, Weights, phases, standing
from sad.planner.model_shape import LORA_TARGETS, ModelShape, shape_of
from sad.planner.presets import config_of

# What a GPU's memory holds besides tensors: the CUDA context and libraries' workspaces, and the allocator's gaps.
RESERVED_BYTES = 500_000_000
GAPS = 0.05
_UNITS = {"": 10**9, "g": 10**9, "gb": 10**9, "gib": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20}


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        teacher: Folder with a config.json, or a name in `model_zoo.CONFIGS`.
        student: Likewise.
        gpu: Bytes of the GPU's memory.
        batch: Sequences per optimizer step.
        seq: Tokens per sequence.
        dtype: "bf16" (autocast over float32 weights; frozen weights are bfloat16) or "fp32".
        optimizer: A name in `OPTIMIZERS`; None: AdamW, in 8 bits where it does not fit otherwise.
        checkpointing: Gradient checkpointing; None: where it does not fit otherwise.
        lora: Rank of adapters; 0 trains all weights.
        lora_target: A name in `LORA_TARGETS`.
        teacher_bits: Of the weights of the teacher's layers: 16, 8 or 4.
        supervised: Share of the tokens that carry a loss, in (0, 1].
        top_k: Entries that a cache has per token.

    Raises:
        InputError: A value is out of range.
    """

    teacher: str
    student: str
    gpu: int
    batch: int = 64
    seq: int = 512
    dtype: str = "bf16"
    optimizer: str | None = None
    checkpointing: bool | None = None
    lora: int = 0
    lora_target: str = "qv"
    teacher_bits: int = 16
    supervised: float = 0.6
    top_k: int = 64

    def __post_init__(self) -> None:
        for name, least in (("gpu", 1), ("batch", 1), ("seq", 2), ("lora", 0), ("top_k", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        if not isinstance(self.supervised, Real) or not 0 < self.supervised <= 1:
            raise InputError("supervised", "a share above 0, at most 1", repr(self.supervised), "Some 0.6 is usual.")
        choices = {"dtype": DTYPES, "lora_target": LORA_TARGETS, "teacher_bits": TEACHER_BITS}
        if self.optimizer is not None:
            choices["optimizer"] = OPTIMIZERS
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                expected = "one of " + ", ".join(map(str, allowed))
                raise InputError(name, expected, repr(getattr(self, name)), "Choose one of these.")


@dataclass(frozen=True)
class Outcome:
    """What one mode needs.

    Args:
        setup: How to train; of what needs least, where nothing fits.
        accumulation: Micro-batches per optimizer step.
        standing: What stays from step to step.
        highest: The moment of the step that needs most.
        fits: On the GPU that was asked about.
        levers: What was chosen so that it fits, beyond the micro-batch, in words.
    """

    setup: Setup
    accumulation: int
    standing: Weights
    highest: Phase
    fits: bool
    levers: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the highest moment."""
        return self.standing.total + self.highest.total


@dataclass(frozen=True)
class Plan:
    """The answer: models, usable bytes, an outcome per mode, the mode to take (None: nothing fits), and its command."""

    question: Question
    teacher: ModelShape
    student: ModelShape
    usable: int
    outcomes: dict[str, Outcome]
    mode: str | None
    command: str | None
    notes: tuple[str, ...]


def gpu_bytes(text: str) -> int:
    """Bytes of "24GB" (10^9 each, as is printed on the box), "24GiB" (2^30), "24564MiB" or "24", which is GB.

    Raises:
        InputError: It is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    unit = found and _UNITS.get(found[2])
    if not unit or not (size := int(float(found[1]) * unit)):
        raise InputError("gpu", "a size of memory", repr(text), "Write 24GB, 80GiB or 24564MiB.")
    return size


def usable_bytes(gpu: int) -> int:
    """What tensors may take of a GPU's memory."""
    return max(0, int(gpu * (1 - GAPS)) - RESERVED_BYTES)


def plan(question: Question) -> Plan:
    """The memory of a run in every mode, from the models' configs alone.

    Raises:
        InputError: A model is unknown or takes fewer tokens than asked.
    """
    shapes = {name: shape_of(name, config_of(name, getattr(question, name))) for name in ("teacher", "student")}
    for name, shape in shapes.items():
        if shape.positions is not None and question.seq > shape.positions:
            remedy = "Choose a shorter sequence."
            raise InputError("seq", f"at most the {name}'s {shape.positions} positions", str(question.seq), remedy)
    teacher, student = shapes["teacher"], shapes["student"]
    if question.top_k > teacher.vocab:
        raise InputError("top_k", f"at most the teacher's {teacher.vocab} tokens", str(question.top_k), "64 is usual.")
    if question.lora and not student.adapted(question.lora_target):
        raise InputError("lora_target", "layers that the student has", question.lora_target, "Choose --lora-target all.")
    usable = usable_bytes(question.gpu)
    outcomes = {mode: _outcome(mode, teacher, student, question, usable) for mode in MODES}
    mode = next((mode for mode in ("linear", "cached") if outcomes[mode].fits), None)
    command = _command(question, student, mode, outcomes[mode]) if mode else None
    notes = tuple(_notes(question, teacher, student, outcomes, mode))
    return Plan(question, teacher, student, usable, outcomes, mode, command, notes)


def _ways(question: Question) -> Iterator[tuple[Setup, tuple[str, ...]]]:
    """How to train and what that gives up, from nothing to most; what was asked for stays."""
    optimizers = (question.optimizer,) if question.optimizer else ("adamw", "adamw_8bit")
    checkpointing = (False, True) if question.checkpointing is None else (question.checkpointing,)
    for optimizer in optimizers:
        for again in checkpointing:
            levers = ()
            if again and question.checkpointing is None:
                levers += ("gradient checkpointing",)
            if optimizer == "adamw_8bit" and question.optimizer is None:
                levers += ("8-bit AdamW",)
            setup = Setup(
                seq=question.seq,
                dtype=question.dtype,
                optimizer=optimizer,
                checkpointing=again,
                lora_rank=question.lora,
                lora_target=question.lora_target,
                teacher_bits=question.teacher_bits,
                supervised=question.supervised,
                top_k=question.top_k,
            )
            yield setup, levers


def _outcome(mode: str, teacher: ModelShape, student: ModelShape, question: Question, usable: int) -> Outcome:
    """The first way on which any micro-batch fits, with the largest that does; else the way that needs least."""
    small = [n for n in range(1, math.isqrt(question.batch) + 1) if question.batch % n == 0]
    divisors = sorted({*small, *(question.batch // n for n in small)}, reverse=True)
    smallest: Outcome | None = None
    for setup, levers in _ways(question):
        stands = standing(student, teacher, replace(setup, mode=mode))
        for micro_batch in divisors:
            chosen = replace(setup, mode=mode, micro_batch=micro_batch)
            highest = max(phases(student, teacher, chosen), key=lambda phase: phase.total)
            fits = stands.total + highest.total <= usable
            outcome = Outcome(chosen, question.batch // micro_batch, stands, highest, fits, levers)
            if fits:
                return outcome
            if smallest is None or outcome.peak < smallest.peak:
                smallest = outcome
    assert smallest is not None
    return replace(smallest, levers=())


def _command(question: Question, student: ModelShape, mode: str, outcome: Outcome) -> str:
    """`sad train`, from a cache after `sad cache`."""
    setup = outcome.setup
    settings: dict[str, Any] = {
        "max_length": setup.seq,
        "per_device_train_batch_size": setup.micro_batch,
        "gradient_accumulation_steps": outcome.accumulation,
    }
    if setup.dtype == "bf16":
        settings["bf16"] = True
    if setup.checkpointing:
        settings["gradient_checkpointing"] = True
    if setup.optimizer != "adamw":  # the default of `SADConfig`
        settings["optim"] = setup.optimizer
    teacher, data, before = ["--teacher", question.teacher], ["--data", "trajectories.jsonl"], ""
    loading = ["--teacher-dtype", "bfloat16"]
    if question.teacher_bits < 16:
        loading += ["--teacher-quantization", f"{question.teacher_bits}bit"]
    if mode == "cached":
        sizes = ["--top-k", str(question.top_k), "--max-length", str(setup.seq)]
        before = shlex.join(["sad", "cache", *teacher, *data, "--out", "teacher-cache", *loading, *sizes]) + "\n"
        teacher, loading = ["--teacher-cache", "teacher-cache"], []
    words = ["sad", "train", *teacher, "--student", question.student, *data, "--out", "runs/first", *loading]
    if question.lora:
        words += ["--lora-rank", str(question.lora)]
        if question.lora_target != "all":  # the default
            names = {matrix.name.rpartition(".")[2] for matrix in student.adapted(question.lora_target)}
            words += ["--lora-targets", ",".join(sorted(names))]
        if setup.dtype == "bf16":
            words += ["--student-dtype", "bfloat16"]
    for name, x in settings.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if x is True else [str(x)])
    return before + shlex.join(words)


def _notes(
    question: Question, teacher: ModelShape, student: ModelShape, outcomes: dict[str, Outcome], mode: str | None
) -> Iterator[str]:
    if teacher.vocab != student.vocab:
        sizes = f"{teacher.vocab:,} and {student.vocab:,}"
        yield f"Vocabularies of {sizes} rows: the models must share a tokenizer, with heads padded to other sizes at most."
    names = sorted({x for x in (question.teacher, question.student) if not Path(x).is_dir()})
    if mode is not None and names:
        yield f"Names stand for folders with the models, made by: hf download NAME --local-dir DIR ({', '.join(names)})."
    if mode is not None and outcomes[mode].setup.optimizer == "adamw_8bit":
        yield "8-bit AdamW is that of bitsandbytes: pip install bitsandbytes."
    if mode is not None and question.teacher_bits < 16:
        yield "The teacher is quantized by bitsandbytes: pip install 'structured-agent-distillation[quantized]'."
    if mode == "cached":
        yield (
            "The cache is made first, by the teacher alone: elsewhere or with fewer bits (--teacher-quantization) where it "
            "does not fit on this GPU."
        )
    if mode is None:
        least = min(("linear", "cached"), key=lambda name: outcomes[name].peak)
        short = (outcomes[least].peak - usable_bytes(question.gpu)) / 10**9
        more = math.ceil((outcomes[least].peak + RESERVED_BYTES) / (1 - GAPS) / 10**9)
        yield (
            f"Nothing fits: {least} lacks {short:.1f} GB and needs a GPU of {more} GB. Adapters (--lora), fewer bits for "
            "the teacher (--teacher-bits), a smaller student or shorter sequences need less."
        )
