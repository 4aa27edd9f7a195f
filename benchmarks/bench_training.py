"""Measures training throughput (tokens/s) and peak memory with three implementations of the loss.

    python benchmarks/bench_training.py [--steps N] [--out FILE]

The implementations are plain PyTorch on logits, the fused loss on logits, and the fused loss on hidden states. The trainer,
the models (random GPT-2s with GPT-2's vocabulary) and the batches are the same. Each implementation runs in its own process,
so that its peak memory can be measured. All three must log the same losses.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import RESULTS, write_csv

LOSSES = ("pytorch", "logits", "hidden")
VOCABULARY, TOKENS, BATCH = 50257, 128, 8
STUDENT, TEACHER = {"n_layer": 4, "n_embd": 256, "n_head": 4}, {"n_layer": 6, "n_embd": 512, "n_head": 8}
RUN_SECONDS = 3600
SUPERVISED = 0.4  # fraction of the tokens; the others stand for prompts and observations


def run(loss_from: str, steps: int) -> dict[str, object]:
    """Trains in this process and returns the losses, the tokens per second after two warm-up steps, and the peak memory.

    Args:
        loss_from: One of `LOSSES`.
        steps: Timed steps.
    """
    import torch
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

    import sad

    class PyTorchTrainer(sad.SADTrainer):
        """Computes the loss in plain PyTorch: both log-softmaxes over all rows, then a mask."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            mask = F.pad(inputs["span_ids"][:, 1:] > 0, (0, 1))
            teacher = F.log_softmax(self.teacher_logits(batch), -1)
            student = F.log_softmax(model(**batch).logits, -1)
            kl = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
            return (kl * mask).sum() / num_items_in_batch

    class Clock(TrainerCallback):
        """Times the steps after the second one."""

        begin = end = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.begin = time.perf_counter()
            self.end = time.perf_counter()

    torch.manual_seed(0)
    student, teacher = (
        GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_positions=TOKENS, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, **size)
        )
        for size in (STUDENT, TEACHER)
    )
    examples = [
        {
            "input_ids": torch.randint(0, VOCABULARY, (TOKENS,)).tolist(),
            "span_ids": (torch.randint(1, 3, (TOKENS,)) * (torch.rand(TOKENS) < SUPERVISED)).tolist(),
        }
        for _ in range(BATCH * (steps + 2))
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = sad.SADConfig(
            output_dir=folder,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            curriculum=False,
            max_steps=steps + 2,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            logging_steps=1,
            loss_from="hidden" if loss_from == "hidden" else "logits",
        )
        trainer_class = PyTorchTrainer if loss_from == "pytorch" else sad.SADTrainer
        trainer = trainer_class(student, teacher, config, train_dataset=examples, callbacks=[clock])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": losses,
        "tokens_per_second": steps * BATCH * TOKENS / (clock.end - clock.begin),
        "peak_mib": peak / 1024,
        "added_mib": (peak - before) / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="timed steps; default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "training_cpu.csv", help="CSV file, overwritten; default: %(default)s"
    )
    parser.add_argument("--loss-from", choices=LOSSES, help="run only this implementation and print its results as JSON")
    args = parser.parse_args()
    if args.loss_from:
        print(json.dumps(run(args.loss_from, args.steps)))
        return 0
    found = {}
    for name in LOSSES:
        command = [sys.executable, __file__, "--loss-from", name, "--steps", str(args.steps)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
        if done.returncode:
            raise SystemExit(f"{name}:\n{done.stderr[-3000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found[name]['tokens_per_second']:.0f} tokens/s, peak {found[name]['peak_mib']:.0f} MiB", flush=True)
    for name in LOSSES:
        differences = [abs(a / b - 1) for a, b in zip(found[name]["losses"], found["pytorch"]["losses"])]
        if max(differences) > 1e-4:
            raise SystemExit(f"{name}: its losses differ from PyTorch's by up to {max(differences):.1e} (relative)")
    base = found["pytorch"]
    rows = [
        {
            "loss_from": name,
            "tokens_per_second": round(x["tokens_per_second"], 1),
            "speedup": round(x["tokens_per_second"] / base["tokens_per_second"], 3),
            "peak_mib": round(x["peak_mib"]),
            "added_mib": round(x["added_mib"]),
            "batch": BATCH,
            "tokens": TOKENS,
            "supervised": SUPERVISED,
        }
        for name, x in found.items()
    ]
    write_csv(args.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
