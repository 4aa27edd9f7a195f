"""Plans a training run on one GPU: which mode fits, with which micro-batch, and what it costs to make it fit."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sad.errors import InputError
from sad.hub import is_local
from sad.planner.formulas import (
    CACHES,
    MODES,
    CacheSize,
    PersistentBytes,
    Phase,
    Setup,
    cache_size,
    persistent_bytes,
    phases,
)
from sad.planner.model_shape import ModelShape, shape_of
from sad.planner.presets import config_of
from sad.planner.request import PlanRequest

# Memory of a GPU that tensors cannot use: CUDA context and library workspaces, and a share for allocator fragmentation.
RESERVED_BYTES = 500_000_000
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class ModePlan:
    """The plan for one mode.

    Args:
        setup: Configuration of the training step. If nothing fits, the one with the smallest peak.
        accumulation: Micro-batches per optimizer step.
        persistent: Memory that stays allocated from step to step.
        peak_phase: The phase of the step with the highest memory.
        fits: Whether the peak fits on the requested GPU.
        savings: What the plan added so that the run fits, beyond a smaller micro-batch, in words.
    """

    setup: Setup
    accumulation: int
    persistent: PersistentBytes
    peak_phase: Phase
    fits: bool
    savings: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the peak of the step."""
        return self.persistent.total + self.peak_phase.total


@dataclass(frozen=True)
class Plan:
    """The answer to a `PlanRequest`.

    Args:
        request: The request.
        teacher: Sizes of the teacher.
        student: Sizes of the student.
        usable: Bytes of the GPU that tensors can use.
        modes: Mode to its plan.
        caches: Mode without a teacher in memory to the size of its cache.
        mode: The recommended mode; None: nothing fits.
        command: The command line of the recommended mode; None: nothing fits.
        notes: Remarks for the user, as sentences.
    """

    request: PlanRequest
    teacher: ModelShape
    student: ModelShape
    usable: int
    modes: dict[str, ModePlan]
    caches: dict[str, CacheSize]
    mode: str | None
    command: str | None
    notes: tuple[str, ...]


def usable_bytes(gpu_bytes: int) -> int:
    """Returns the part of a GPU's memory that tensors can use, in bytes."""
    return max(0, int(gpu_bytes * (1 - FRAGMENTATION)) - RESERVED_BYTES)


def plan(request: PlanRequest) -> Plan:
    """Computes the memory of a training run in every mode, from the models' configs alone.

    Args:
        request: The models, the GPU, and what is already decided.

    Returns:
        The plan. Its `mode` is None if neither "linear" nor "cached" fits.

    Raises:
        InputError: A model is unknown, or it has fewer positions, tokens or layers than the request needs.
    """
    shapes = {name: shape_of(name, config_of(name, getattr(request, name))) for name in ("teacher", "student")}
    for name, shape in shapes.items():
        if shape.positions is not None and request.seq > shape.positions:
            remedy = "Choose a shorter sequence."
            raise InputError("seq", f"at most the {name}'s {shape.positions} positions", str(request.seq), remedy)
    teacher, student = shapes["teacher"], shapes["student"]
    if request.top_k > teacher.vocab:
        raise InputError("top_k", f"at most the teacher's {teacher.vocab} tokens", str(request.top_k), "64 is usual.")
    if request.lora and not student.adapted(request.lora_target):
        raise InputError("lora_target", "layers that the student has", request.lora_target, "Choose --lora-target all.")
    usable = usable_bytes(request.gpu_bytes)
    possible = [mode for mode in MODES if mode not in CACHES] if request.on_policy else MODES  # no cache has new text
    modes = {mode: _plan_mode(mode, teacher, student, request, usable) for mode in possible}
    mode = next((mode for mode in ("linear", "cached") if mode in modes and modes[mode].fits), None)
    command = _command(request, student, modes[mode]) if mode else None
    notes = tuple(_notes(request, teacher, student, modes, mode))
    caches = {name: cache_size(name, teacher, request.top_k) for name in CACHES if name in modes}
    return Plan(request, teacher, student, usable, modes, caches, mode, command, notes)


def _setups(request: PlanRequest, mode: str) -> Iterator[tuple[Setup, tuple[str, ...]]]:
    """Yields the setups to try and what they save memory with, fewest savings first. Decided options stay as they are."""
    # bitsandbytes cannot read sharded weights, so several GPUs shard before anything else.
    optimizers = (request.optimizer,) if request.optimizer else ("adamw", "adamw_8bit")[: 2 if request.gpus == 1 else 1]
    choices = (False, True) if request.gradient_checkpointing is None else (request.gradient_checkpointing,)
    sharded = (1, request.gpus) if request.gpus > 1 and request.optimizer != "adamw_8bit" else (1,)
    for optimizer, shards in itertools.product(optimizers, sharded):
        for checkpointing in choices:
            savings = ("sharded weights",) if shards > 1 else ()
            if checkpointing and request.gradient_checkpointing is None:
                savings += ("gradient checkpointing",)
            if optimizer == "adamw_8bit" and request.optimizer is None:
                savings += ("8-bit AdamW",)
            setup = Setup(
                mode=mode,
                seq=request.seq,
                dtype=request.dtype,
                optimizer=optimizer,
                checkpointing=checkpointing,
                lora_rank=request.lora,
                lora_target=request.lora_target,
                teacher_bits=request.teacher_bits,
                supervised_fraction=request.supervised_fraction,
                top_k=request.top_k,
                gpu_memory=request.gpu_bytes,
                shards=shards,
                rollout_batch=request.rollout_batch if request.on_policy else 0,
            )
            yield setup, savings


def _plan_mode(mode: str, teacher: ModelShape, student: ModelShape, request: PlanRequest, usable: int) -> ModePlan:
    """Returns the first setup that fits, with its largest micro-batch; if none fits, the one with the smallest peak."""
    batch = request.batch // request.gpus  # per GPU
    small = [n for n in range(1, math.isqrt(batch) + 1) if batch % n == 0]
    divisors = sorted({*small, *(batch // n for n in small)}, reverse=True)
    smallest: ModePlan | None = None
    for setup, savings in _setups(request, mode):
        persistent = persistent_bytes(student, teacher, setup)
        for micro_batch in divisors:
            chosen = replace(setup, micro_batch=micro_batch, accumulation=request.batch // micro_batch)
            peak_phase = max(phases(student, teacher, chosen), key=lambda phase: phase.total)
            fits = persistent.total + peak_phase.total <= usable
            found = ModePlan(chosen, batch // micro_batch, persistent, peak_phase, fits, savings)
            if fits:
                return found
            if smallest is None or found.peak < smallest.peak:
                smallest = found
    assert smallest is not None
    return replace(smallest, savings=())


def _checkpointing_field() -> str:
    """Returns the name of gradient checkpointing in the installed transformers, without a warning about the older one."""
    from transformers import TrainingArguments

    newer = "activation_checkpointing"
    return newer if newer in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"


def _command(request: PlanRequest, student: ModelShape, chosen: ModePlan) -> str:
    """Returns the `sad train` command; for the mode "cached", with the `sad cache` command on a line before it."""
    setup = chosen.setup
    config: dict[str, Any] = {
        "max_length": setup.seq,
        "per_device_train_batch_size": setup.micro_batch,
        "gradient_accumulation_steps": chosen.accumulation,
    }
    if setup.rollout_batch:
        config |= {"on_policy": "household", "rollout_batch_size": setup.rollout_batch}
    if setup.dtype == "bf16":
        config["bf16"] = True
    if setup.shards_teacher and setup.mode != "cached":
        config["teacher_sharding"] = True
    if setup.checkpointing:
        config[_checkpointing_field()] = True
    if setup.optimizer != "adamw":  # the default of `SADConfig`
        config["optim"] = setup.optimizer
    teacher, data, cache_command = ["--teacher", request.teacher], ["--data", "trajectories.jsonl"], ""
    loading = ["--teacher-dtype", "bfloat16"]
    if request.teacher_bits < 16:
        loading += ["--teacher-quantization", f"{request.teacher_bits}bit"]
    if setup.mode == "cached":
        sizes = ["--top-k", str(request.top_k), "--max-length", str(setup.seq)]
        cache_command = shlex.join(["sad", "cache", *teacher, *data, "--out", "teacher-cache", *loading, *sizes]) + "\n"
        teacher, loading = ["--teacher-cache", "teacher-cache"], []
    program = ["sad"]
    if request.gpus > 1:
        strategy = "fsdp2" if setup.shards > 1 else "ddp"
        file = f"examples/distributed/{strategy}.yaml"
        program = ["accelerate", "launch", "--config_file", file, "--num_processes", str(request.gpus), "-m", "sad.cli.main"]
    words = [*program, "train", *teacher, "--student", request.student, *data, "--out", "runs/first", *loading]
    if request.lora:
        words += ["--lora-rank", str(request.lora)]
        if request.lora_target != "all":  # the default of `sad train`
            names = {matrix.name.rpartition(".")[2] for matrix in student.adapted(request.lora_target)}
            words += ["--lora-targets", ",".join(sorted(names))]
        if setup.dtype == "bf16":
            words += ["--student-dtype", "bfloat16"]
    for name, value in config.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return cache_command + shlex.join(words)


def _notes(
    request: PlanRequest, teacher: ModelShape, student: ModelShape, modes: dict[str, ModePlan], mode: str | None
) -> Iterator[str]:
    if teacher.vocab != student.vocab:
        sizes = f"{teacher.vocab:,} and {student.vocab:,} rows"
        yield f"The vocabularies have {sizes}: the models must share a tokenizer, only the padding of heads may differ."
    names = sorted({x for x in (request.teacher, request.student) if not is_local(x)})
    if mode is not None and names:
        yield (
            f"Replace each model name by a folder with the model ({', '.join(names)}). "
            "Download it with: hf download NAME --local-dir DIR."
        )
    if mode is not None and modes[mode].setup.shards > 1:
        yield f"{request.gpus} GPUs share the weights (FSDP2, docs/distributed.md). These sizes were not measured on GPUs."
    if mode is not None and modes[mode].setup.optimizer == "adamw_8bit":
        yield "8-bit AdamW needs bitsandbytes: pip install bitsandbytes."
    if mode is not None and request.teacher_bits < 16:
        yield "The quantized teacher needs bitsandbytes: pip install '.[quantized]'."
    if mode == "cached":
        yield (
            "`sad cache` runs the teacher alone before the training. If the teacher does not fit on this GPU, run "
            "`sad cache` on another one or with --teacher-quantization."
        )
    if mode == "cached" and modes["hidden"].fits:
        chosen = modes["hidden"]
        yield (
            f"The mode hidden fits too. For the exact loss, replace --top-k {request.top_k} by --hidden, and train with "
            f"--per-device-train-batch-size {chosen.setup.micro_batch} --gradient-accumulation-steps {chosen.accumulation}."
        )
    if request.on_policy and mode is not None:
        yield "Replace household by your environment, or --on-policy household by --prefix-replay."
    if mode is None:
        least = min((name for name in ("linear", "cached") if name in modes), key=lambda name: modes[name].peak)
        missing = (modes[least].peak - usable_bytes(request.gpu_bytes)) / 10**9
        needed = math.ceil((modes[least].peak + RESERVED_BYTES) / (1 - FRAGMENTATION) / 10**9)
        yield (
            f"Nothing fits: {least} lacks {missing:.1f} GB and needs a GPU of {needed} GB. To use less memory, add adapters "
            "(--lora), use fewer bits for the teacher (--teacher-bits), a smaller student, or shorter sequences."
            + (" Play fewer episodes at once (--rollout-batch)." if modes[least].peak_phase.name == "play" else "")
        )
