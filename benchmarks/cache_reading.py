"""Measures how long a training step waits for the teacher cache, with and without a worker that reads ahead.

    python benchmarks/cache_reading.py [--steps N] [--device cuda] [--idle-ms MS] [--out FILE]

Trains a small random GPT-2 from a cache of top-k log-probabilities and from one of hidden states. `wait_ms` is the time per
step in which the main process waits for its batch, and `share` its part of the step. `busy_ms` is the processor time of the
main process in it. On a machine with an idle core that is the whole wait, if the worker reads a batch (`read_ms` of
processor time) in less than a step. `load` is the load average of the machine.

With `--idle-ms` the step computes nothing and waits for this time, like a process whose GPU computes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_csv
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

import sad
from sad.teacher_cache.head import head_of, hidden_metadata
from sad.teacher_cache.metadata import HIDDEN, CacheMetadata
from sad.teacher_cache.writer import write_teacher_cache

VOCABULARY, TOKENS, BATCH, TOP_K = 2048, 512, 8, 64
STUDENT, TEACHER = {"n_layer": 2, "n_embd": 256, "n_head": 4}, {"n_layer": 0, "n_embd": 2048, "n_head": 8}
SUPERVISED = 0.6  # fraction of the tokens
WARM_UP = 2  # steps, in which the worker starts
UNREAD = 4  # batches after the last step, so that the worker does not end within the timed steps


class Waiting(sad.SADTrainer):
    """Measures the time in which the main process waits for the batches of a step."""

    waits: list[float]
    busy: list[float]
    idle_seconds: float | None = None

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.idle_seconds is None:
            return super().training_step(model, inputs, *args, **kwargs)
        time.sleep(self.idle_seconds)
        loss = 0.0 * next(model.parameters()).sum()  # the trainer expects a gradient
        loss.backward()
        return loss.detach()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        begin, busy = time.perf_counter(), time.thread_time()
        found = super().get_batch_samples(*args, **kwargs)
        self.waits.append(time.perf_counter() - begin)
        self.busy.append(time.thread_time() - busy)
        return found


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def gpt2(sizes: dict[str, int]) -> GPT2LMHeadModel:
    """Returns a random model without dropout."""
    off = {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=TOKENS, **off, **sizes))


def make_cache(path: Path, kind: str, examples: list[dict[str, list[int]]]) -> None:
    """Writes a cache of the teacher, "top-k" or "hidden"."""
    torch.manual_seed(1)
    teacher = gpt2(TEACHER)
    common = {"tokenizer": "none", "teacher": "random", "teacher_dtype": "float32"}
    if kind == HIDDEN:
        about = hidden_metadata(head_of(teacher, VOCABULARY))
        metadata = CacheMetadata(top_k=0, dtype="bfloat16", kind=HIDDEN, **about, **common)
    else:
        metadata = CacheMetadata(top_k=TOP_K, vocab_size=VOCABULARY, dtype="uint16", **common)
    write_teacher_cache(teacher, examples, path, metadata, show_progress=False)


def measure(
    path: Path, kind: str, workers: int, steps: int, device: str, idle_ms: float | None, examples: list
) -> dict[str, Any]:
    """Trains from a cache and returns one row of the result."""
    torch.manual_seed(0)
    clock, batch = Clock(), examples[:BATCH]
    collator = sad.SpanCollator(teacher_cache=path)
    collator(batch)  # opens the files
    begin = time.thread_time()
    collator(batch)
    read = time.thread_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        config = sad.SADConfig(
            output_dir=folder,
            use_cpu=device == "cpu",
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            curriculum=False,
            max_steps=steps + WARM_UP,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            logging_steps=1000,
            dataloader_num_workers=workers,
        )
        trainer = Waiting(gpt2(STUDENT), args=config, train_dataset=examples, teacher_cache=path, callbacks=[clock])
        trainer.waits, trainer.busy, trainer.idle_seconds = [], [], None if idle_ms is None else idle_ms / 1e3
        trainer.train()
    # The batch of a step is fetched after the end of the step before it.
    total, waits = clock.ends[-1] - clock.ends[WARM_UP - 1], trainer.waits[WARM_UP : WARM_UP + steps]
    return {
        "cache": kind,
        "workers": workers,
        "idle_ms": "" if idle_ms is None else idle_ms,
        "step_ms": round(1e3 * total / steps, 1),
        "wait_ms": round(1e3 * sum(waits) / steps, 2),
        "share": round(sum(waits) / total, 4),
        "busy_ms": round(1e3 * sum(trainer.busy[WARM_UP : WARM_UP + steps]) / steps, 2),
        "read_ms": round(1e3 * read, 2),
        "batch_mb": round(sum(x.nbytes for x in collator(batch).values()) / 1e6, 2),
        "batch": BATCH,
        "tokens": TOKENS,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="timed steps; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--idle-ms", type=float, help="wait for this time instead of computing a step")
    parser.add_argument("--out", type=Path, help="CSV file; default: benchmarks/results/cache_reading_DEVICE.csv")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(BATCH * (args.steps + WARM_UP + UNREAD)):
        kinds = torch.randint(1, 3, (TOKENS,), generator=generator)
        kinds *= torch.rand(TOKENS, generator=generator) < SUPERVISED
        tokens = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
        examples.append({"input_ids": tokens.tolist(), "span_ids": kinds.tolist()})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("top-k", HIDDEN):
            path = Path(folder, kind)
            make_cache(path, kind, examples)
            for workers in (0, 1):
                rows.append(measure(path, kind, workers, args.steps, args.device, args.idle_ms, examples))
                print(rows[-1], flush=True)
    write_csv(args.out or RESULTS / f"cache_reading_{args.device}.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
