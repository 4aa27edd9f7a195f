"""Compares `sad plan` with a GPU: trains the planned runs with random models of the real sizes and compares peak memory.

    python benchmarks/check_plan.py                                                  # the paper's three pairs
    python benchmarks/check_plan.py --pair gpt2 --pair llama --append                # two of them; keeps rows that are there
    python benchmarks/check_plan.py --teacher gpt2-xl --student gpt2 --gpu 24GB      # another pair
    python benchmarks/check_plan.py --teacher DIR --student DIR --gpu 24GB --device cpu    # dry run, measures no memory

Each case runs in its own process, limited to the memory of the planned GPU, so a run that would not fit there fails here
too. The CSV file is complete after every case. The pair opt needs bitsandbytes (its plan uses 8-bit AdamW). A case takes two
optimizer steps of at most two micro-batches; more micro-batches do not raise the peak. A case in the mode "cached" trains
from a cache of a one-layer teacher.
"""

from __future__ import annotations

import argparse
import csv
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
from sad.planner.plan import RESERVED_BYTES, ModePlan, Plan, plan
from sad.planner.presets import config_of
from sad.planner.request import PlanRequest
from sad.teacher_cache.metadata import CacheMetadata
from sad.teacher_cache.writer import write_teacher_cache

GB = 10**9
PAIRS = {
    "gpt2": PlanRequest("gpt2-xl", "gpt2", gpu="24GB"),
    "opt": PlanRequest("opt-13b", "opt-1.3b", gpu="24GB"),
    "llama": PlanRequest("llama-13b", "llama-7b", gpu="48GB", lora=16),
}
CASE_SECONDS = 600
STEPS = 2
TOLERANCE = 0.1


def main() -> int:
    """Returns exit code 1 if a case fails or its peak deviates from the plan by more than `TOLERANCE`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append", help="one of the paper's pairs; repeatable")
    parser.add_argument("--teacher", help="as in `sad plan`, like the next six; default: the paper's pairs")
    parser.add_argument("--student")
    parser.add_argument("--gpu", default="24GB")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--mode", choices=("linear", "cached"), help="default: the recommended mode")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_gpu.csv")
    parser.add_argument("--append", action="store_true", help="keep the rows of the file, and run the cases that are not ok")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one case as JSON, for the child process
    args = parser.parse_args()
    if args.run:
        given = json.loads(args.run)
        print(json.dumps(run(PlanRequest(**given["request"]), given["mode"], torch.device(given["device"]))))
        return 0
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; use --device cpu for a dry run")
    if (args.teacher is None) != (args.student is None):
        parser.error("--teacher and --student need each other")
    requests = [PAIRS[name] for name in args.pair or PAIRS]
    rows = _ok_rows(args.out) if args.append and args.out.exists() else []
    done = {(row["teacher"], row["student"]) for row in rows}
    try:
        if args.teacher:
            sizes = {"batch": args.batch, "seq": args.seq, "dtype": args.dtype, "lora": args.lora}
            requests = [PlanRequest(args.teacher, args.student, args.gpu, **sizes)]
        for request in requests:
            if (request.teacher, request.student) not in done:
                rows.append(_run_in_process(request, args.mode, args.device))
                write_csv(args.out, rows)
    except InputError as error:
        parser.error(str(error))
    return 1 if any(row["status"] != "ok" or abs(float(row["deviation"] or 0)) > TOLERANCE for row in rows) else 0


def _ok_rows(path: Path) -> list[dict[str, object]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row.get("status") == "ok"]


def _run_in_process(request: PlanRequest, mode: str | None, device: torch.device) -> dict[str, object]:
    """Runs one case in a child process and returns its row of the CSV file."""
    found = plan(request)
    mode = mode or found.mode
    if mode is None or not found.modes[mode].fits:
        remedy = "`sad plan` shows how much memory is missing."
        raise InputError("gpu", "a GPU that the run fits on", f"{request.gpu_bytes / GB:.1f} GB", remedy)
    chosen, case = found.modes[mode], {"request": asdict(request), "mode": mode, "device": str(device)}
    command = [sys.executable, __file__, "--run", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, -1, "", f"stopped after {CASE_SECONDS} s")
    row = {
        "teacher": request.teacher,
        "student": request.student,
        "mode": mode,
        "gpu_gb": request.gpu_bytes / GB,
        "batch": f"{chosen.setup.micro_batch} x {chosen.accumulation}",
        "seq": request.seq,
        "dtype": request.dtype,
        "lora": request.lora,
        "savings": " and ".join(chosen.savings),
        "planned_gb": round(chosen.peak / GB, 2),
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
            row["deviation"] = round(peaks["allocated"] / chosen.peak - 1, 4)
    print("  ".join(f"{name}={value}" for name, value in row.items() if value != ""), flush=True)
    return row


def run(request: PlanRequest, mode: str, device: torch.device) -> dict[str, float]:
    """Trains as planned. Returns the loss and, on a GPU, the peak bytes that tensors and the allocator's blocks take."""
    found = plan(request)
    if device.type == "cuda":
        card_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (request.gpu_bytes - RESERVED_BYTES) / card_bytes), device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(found, found.modes[mode], device, Path(folder))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        trainer.train()
        loss = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
    if device.type != "cuda":
        return {"loss": loss}
    taken = {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
    return taken | {"loss": loss}


def _trainer(found: Plan, chosen: ModePlan, device: torch.device, folder: Path) -> sad.SADTrainer:
    setup = chosen.setup
    configs = {side: config_of(side, getattr(found.request, side)) for side in ("teacher", "student")}
    frozen = torch.bfloat16 if setup.dtype == "bf16" else torch.float32
    student = _random_model(configs["student"], frozen if setup.lora_rank else torch.float32, device)
    if setup.lora_rank:
        names = {matrix.name.rpartition(".")[2] for matrix in found.student.adapted(setup.lora_target)}
        student = add_adapters(student, folder, setup.lora_rank, None, ",".join(sorted(names)), seed=0)
    config = sad.SADConfig(
        output_dir=str(folder / "run"),
        use_cpu=device.type == "cpu",
        bf16=setup.dtype == "bf16",
        gradient_checkpointing=setup.checkpointing,
        per_device_train_batch_size=setup.micro_batch,
        gradient_accumulation_steps=min(2, chosen.accumulation),
        max_steps=STEPS,
        max_length=setup.seq,
        curriculum=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        **({} if setup.optimizer == "adamw" else {"optim": setup.optimizer}),
    )
    count = setup.micro_batch * config.gradient_accumulation_steps * STEPS
    examples = _examples(count, setup, min(found.teacher.vocab, found.student.vocab))
    if setup.mode == "cached":
        cache = _cache(configs["teacher"], examples, setup, device, folder / "cache")
        return sad.SADTrainer(student, None, config, examples, teacher_cache=cache)
    return sad.SADTrainer(student, _random_model(configs["teacher"], torch.bfloat16, device), config, examples)


def _random_model(config: PretrainedConfig, dtype: torch.dtype, device: torch.device):
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _examples(count: int, setup: Setup, vocab: int) -> list[dict[str, list[int]]]:
    """Returns random examples. Every other one is a token shorter, because transformers drops the mask without padding."""
    made, generator = [], torch.Generator().manual_seed(0)
    for number in range(count):
        length = setup.seq - number % 2
        spans = torch.zeros(length, dtype=torch.long)
        chosen = torch.randperm(length - 1, generator=generator)[: max(1, round(setup.supervised_fraction * length))] + 1
        spans[chosen] = torch.randint(1, 3, (len(chosen),), generator=generator)
        tokens = torch.randint(0, vocab, (length,), generator=generator)
        made.append({"input_ids": tokens.tolist(), "span_ids": spans.tolist()})
    return made


def _cache(config: PretrainedConfig, examples: list, setup: Setup, device: torch.device, folder: Path) -> sad.TeacherCache:
    """Writes the cache of a one-layer teacher: only the columns of its head matter for the memory of a student."""
    config.num_hidden_layers = 1
    teacher = _random_model(config, torch.bfloat16, device)
    metadata = CacheMetadata(
        top_k=setup.top_k,
        vocab_size=config.vocab_size,
        dtype="uint16",
        tokenizer="random tokens",
        teacher=model_digest(teacher),
        teacher_dtype="bfloat16",
    )
    write_teacher_cache(teacher, examples, folder, metadata, show_progress=False)
    return sad.TeacherCache(folder)


if __name__ == "__main__":
    sys.exit(main())
