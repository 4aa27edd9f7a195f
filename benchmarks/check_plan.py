"""Holds `sad plan` against a GPU: trains what it planned, with random models of the real sizes, and compares the peaks.

    python benchmarks/check_plan.py                                                  # the paper's three pairs
    python benchmarks/check_plan.py --teacher gpt2-xl --student gpt2 --gpu 24GB      # one of your own
    python benchmarks/check_plan.py --teacher DIR --student DIR --gpu 24GB --device cpu    # rehearse; measures nothing

Every case is a process of its own, which gets no more of the card than the GPU that was planned for has: what does not fit
there ends out of memory here too. It makes two optimizer steps of at most two micro-batches, which have the highest moment
of any number. A cached case trains from a cache that a teacher of one layer made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from harness import RESULTS, write_csv
from transformers import AutoModelForCausalLM, PretrainedConfig

import sad
from sad.errors import InputError
from sad.model_parts import model_digest
from sad.models import add_adapters
from sad.planner.formulas import Setup
from sad.planner.plan import RESERVED_BYTES, Outcome, Plan, Question, gpu_bytes, plan
from sad.planner.presets import config_of
from sad.teacher_cache.metadata import CacheMetadata
from sad.teacher_cache.writer import write_teacher_cache

GB = 10**9
CASES = (
    Question("gpt2-xl", "gpt2", gpu=24 * GB),
    Question("opt-13b", "opt-1.3b", gpu=24 * GB),
    Question("llama-13b", "llama-7b", gpu=48 * GB, lora=16),
)
STEPS = 2
TOLERANCE = 0.1


def main() -> int:
    """The exit code is 1 if a case did not run to its end, or its peak is more than a tenth from what was planned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="as for `sad plan`, like those that follow; none: the paper's pairs")
    parser.add_argument("--student")
    parser.add_argument("--gpu", default="24GB")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--mode", choices=("linear", "cached"), help="none: the one that the plan takes")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_gpu.csv")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one case as JSON: what the processes are told
    args = parser.parse_args()
    if args.run:
        given = json.loads(args.run)
        print(json.dumps(run(Question(**given["question"]), given["mode"], torch.device(given["device"]))))
        return 0
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu rehearses the script")
    if (args.teacher is None) != (args.student is None):
        parser.error("--teacher and --student go together")
    questions = CASES
    try:
        if args.teacher:
            sizes = {"batch": args.batch, "seq": args.seq, "dtype": args.dtype, "lora": args.lora}
            questions = [Question(args.teacher, args.student, gpu_bytes(args.gpu), **sizes)]
        rows = [_in_a_process(question, args.mode, args.device) for question in questions]
    except InputError as error:
        parser.error(str(error))
    write_csv(args.out, rows)
    return 1 if any(row["status"] != "ok" or abs(row["deviation"] or 0) > TOLERANCE for row in rows) else 0


def _in_a_process(question: Question, mode: str | None, device: torch.device) -> dict[str, object]:
    """The row of a case."""
    found = plan(question)
    mode = mode or found.mode
    if mode is None or not found.outcomes[mode].fits:
        raise InputError("gpu", "one that fits the run", f"{question.gpu / GB:.1f} GB", "`sad plan` says what is lacking.")
    outcome, told = found.outcomes[mode], {"question": asdict(question), "mode": mode, "device": str(device)}
    done = subprocess.run([sys.executable, __file__, "--run", json.dumps(told)], capture_output=True, text=True)
    row = {
        "teacher": question.teacher,
        "student": question.student,
        "mode": mode,
        "gpu_gb": question.gpu / GB,
        "batch": f"{outcome.setup.micro_batch} x {outcome.accumulation}",
        "seq": question.seq,
        "dtype": question.dtype,
        "lora": question.lora,
        "levers": " and ".join(outcome.levers),
        "planned_gb": round(outcome.peak / GB, 2),
        "allocated_gb": "",
        "reserved_gb": "",
        "deviation": "",
        "loss": "",
        "status": "ok",
    }
    if done.returncode:
        row["status"] = "out of memory" if "OutOfMemoryError" in done.stderr else "failed"
        print(done.stderr[-3000:], file=sys.stderr)
    else:
        peaks = json.loads(done.stdout.splitlines()[-1])
        row["loss"] = peaks["loss"]
        if "allocated" in peaks:
            row["allocated_gb"], row["reserved_gb"] = (round(peaks[name] / GB, 2) for name in ("allocated", "reserved"))
            row["deviation"] = round(peaks["allocated"] / outcome.peak - 1, 4)
    print("  ".join(f"{name}={value}" for name, value in row.items() if value != ""), flush=True)
    return row


def run(question: Question, mode: str, device: torch.device) -> dict[str, float]:
    """Trains as planned; the bytes of tensors, and of what the allocator took for them, at the highest moment."""
    found = plan(question)
    outcome = found.outcomes[mode]
    if device.type == "cuda":
        of_the_card = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (question.gpu - RESERVED_BYTES) / of_the_card), device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(found, outcome, device, Path(folder))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        trainer.train()
        loss = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
    if device.type != "cuda":
        return {"loss": loss}
    taken = {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
    return taken | {"loss": loss}


def _trainer(found: Plan, outcome: Outcome, device: torch.device, folder: Path) -> sad.SADTrainer:
    question, how = found.question, outcome.setup
    configs = {side: config_of(side, getattr(question, side)) for side in ("teacher", "student")}
    frozen = torch.bfloat16 if how.dtype == "bf16" else torch.float32
    student = _random_model(configs["student"], frozen if how.lora_rank else torch.float32, device)
    if how.lora_rank:
        names = {matrix.name.rpartition(".")[2] for matrix in found.student.adapted(how.lora_target)}
        student = add_adapters(student, folder, how.lora_rank, None, ",".join(sorted(names)), seed=0)
    settings = sad.SADConfig(
        output_dir=str(folder / "run"),
        use_cpu=device.type == "cpu",
        bf16=how.dtype == "bf16",
        gradient_checkpointing=how.checkpointing,
        per_device_train_batch_size=how.micro_batch,
        gradient_accumulation_steps=min(2, outcome.accumulation),
        max_steps=STEPS,
        max_length=how.seq,
        curriculum=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        **({} if how.optimizer == "adamw" else {"optim": how.optimizer}),
    )
    count = how.micro_batch * settings.gradient_accumulation_steps * STEPS
    examples = _examples(count, how, min(found.teacher.vocab, found.student.vocab))
    if how.mode == "cached":
        cache = _cache(configs["teacher"], examples, how, device, folder / "cache")
        return sad.SADTrainer(student, None, settings, examples, teacher_cache=cache)
    return sad.SADTrainer(student, _random_model(configs["teacher"], torch.bfloat16, device), settings, examples)


def _random_model(config: PretrainedConfig, dtype: torch.dtype, device: torch.device):
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _examples(count: int, how: Setup, vocab: int) -> list[dict[str, list[int]]]:
    """Random tokens. Every other example is a token short: without padding, transformers leaves the mask out."""
    made, generator = [], torch.Generator().manual_seed(0)
    for number in range(count):
        length = how.seq - number % 2
        spans = torch.zeros(length, dtype=torch.long)
        chosen = torch.randperm(length - 1, generator=generator)[: max(1, round(how.supervised * length))] + 1
        spans[chosen] = torch.randint(1, 3, (len(chosen),), generator=generator)
        tokens = torch.randint(0, vocab, (length,), generator=generator)
        made.append({"input_ids": tokens.tolist(), "span_ids": spans.tolist()})
    return made


def _cache(config: PretrainedConfig, examples: list, how: Setup, device: torch.device, folder: Path) -> sad.TeacherCache:
    """Of a teacher of one layer, which is gone afterwards: only its head's columns matter for the memory of a student."""
    config.num_hidden_layers = 1
    teacher = _random_model(config, torch.bfloat16, device)
    settings = CacheMetadata(
        top_k=how.top_k,
        vocab_size=config.vocab_size,
        dtype="uint16",
        tokenizer="random tokens",
        teacher=model_digest(teacher),
        teacher_dtype="bfloat16",
    )
    write_teacher_cache(teacher, examples, folder, settings, show_progress=False)
    return sad.TeacherCache(folder)


if __name__ == "__main__":
    sys.exit(main())
