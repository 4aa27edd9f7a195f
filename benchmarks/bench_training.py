"""Training steps per second and memory: the loss from hidden states, from logits, and from logits in plain PyTorch.

    python benchmarks/bench_training.py [--steps N] [--out FILE]

The same `SADTrainer`, random GPT-2s of two sizes with GPT-2's vocabulary, and the same batches; only where the loss comes
from differs. Each way is a process of its own, so that peak memory is its own; all of them have to log the same losses.
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

WAYS = ("pytorch", "logits", "hidden")
VOCABULARY, TOKENS, BATCH = 50257, 128, 8
STUDENT, TEACHER = {"n_layer": 4, "n_embd": 256, "n_head": 4}, {"n_layer": 6, "n_embd": 512, "n_head": 8}
SUPERVISED = 0.4  # of the tokens; the rest is what the environment wrote


def run(way: str, steps: int) -> dict[str, object]:
    """Losses, tokens per second after a warm-up, and peak memory of this process."""
    import torch
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

    import sad

    class PyTorchTrainer(sad.SADTrainer):
        """The loss as one would write it: both softmaxes over all rows, then a mask."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            mask = F.pad(inputs["span_ids"][:, 1:] > 0, (0, 1))
            teacher = F.log_softmax(self.teacher_logits(batch), -1)
            student = F.log_softmax(model(**batch).logits, -1)
            kl = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
            return (kl * mask).sum() / num_items_in_batch

    class Clock(TrainerCallback):
        """Times the steps after the second."""

        began = ended = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.began = time.perf_counter()
            self.ended = time.perf_counter()

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
            loss_from="hidden" if way == "hidden" else "logits",
        )
        kind = PyTorchTrainer if way == "pytorch" else sad.SADTrainer
        trainer = kind(student, teacher, config, train_dataset=examples, callbacks=[clock])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": losses,
        "tokens_per_second": steps * BATCH * TOKENS / (clock.ended - clock.began),
        "peak_mib": peak / 1024,
        "added_mib": (peak - before) / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="that are timed")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_cpu.csv")
    parser.add_argument("--way", choices=WAYS, help="run this one and print what was found")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.steps)))
        return 0
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--steps", str(options.steps)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way}:\n{done.stderr[-3000:]}")
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way}: {found[way]['tokens_per_second']:.0f} tokens/s, peak {found[way]['peak_mib']:.0f} MiB", flush=True)
    for way in WAYS:
        differences = [abs(a / b - 1) for a, b in zip(found[way]["losses"], found["pytorch"]["losses"])]
        if max(differences) > 1e-4:
            raise SystemExit(f"{way} does not train as PyTorch does: losses differ by up to {max(differences):.1e}")
    base = found["pytorch"]
    rows = [
        {
            "loss_from": way,
            "tokens_per_second": round(x["tokens_per_second"], 1),
            "speedup": round(x["tokens_per_second"] / base["tokens_per_second"], 3),
            "peak_mib": round(x["peak_mib"]),
            "added_mib": round(x["added_mib"]),
            "batch": BATCH,
            "tokens": TOKENS,
            "supervised": SUPERVISED,
        }
        for way, x in found.items()
    ]
    write_csv(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
