"""Distills a student in a loop of plain PyTorch: one call of the loss per batch.

python examples/loss/train.py demo-run/teacher demo-run/student-before demo-run/teacher.jsonl runs/loss
"""

import sys

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import sad

teacher_path, student_path, data, out = sys.argv[1:5]
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(student_path)
teacher = AutoModelForCausalLM.from_pretrained(teacher_path).to(device).eval()
student = AutoModelForCausalLM.from_pretrained(student_path).to(device).train()
corpus = sad.encode_all(sad.read_trajectories(data), tokenizer, max_length=512)
loader = DataLoader(corpus.examples, batch_size=4, shuffle=True, collate_fn=sad.SpanCollator())
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)

for step, batch in enumerate(loader, 1):
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits
    # span_ids: 0 none, 1 reasoning, 2 action. shift=True: the logits at t predict the token at t + 1.
    loss, stats = sad.fused_span_kl(
        student(**inputs).logits, teacher_logits, batch["span_ids"].to(device), shift=True, return_stats=True
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 25 == 0 or step == len(loader):
        reason, act = (float(kind.kl_sum / kind.tokens) for kind in (stats.reason, stats.act))
        print(f"step {step}: reasoning {reason:.3f}, actions {act:.3f} nats per token")

student.save_pretrained(out)
tokenizer.save_pretrained(out)
