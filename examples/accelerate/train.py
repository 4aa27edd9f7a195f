"""Distills a student in a training loop of your own.

accelerate launch examples/accelerate/train.py demo-run/teacher demo-run/student-before demo-run/teacher.jsonl runs/loop
"""

import sys
from itertools import islice

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import sad
from sad.integrations.accelerate import Distillation

BATCHES_PER_STEP = 4

teacher_path, student_path, data, out = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(student_path)
student = AutoModelForCausalLM.from_pretrained(student_path, dtype="float32")
length = min(512, student.config.max_position_embeddings)
examples = sad.encode_all(sad.read_trajectories(data), tokenizer, max_length=length).examples
teacher = AutoModelForCausalLM.from_pretrained(teacher_path)
loader = DataLoader(examples, batch_size=2, shuffle=True, collate_fn=sad.SpanCollator())
optimizer = torch.optim.AdamW(student.parameters(), lr=2e-5)

accelerator = Accelerator()
distillation = Distillation(accelerator, student, teacher)
student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
student.train()
batches = iter(loader)
while step := list(islice(batches, BATCHES_PER_STEP)):
    result = distillation.backward(student, step)
    accelerator.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"loss {result.loss.item():.4f}")
accelerator.unwrap_model(student).save_pretrained(out, is_main_process=accelerator.is_main_process)
