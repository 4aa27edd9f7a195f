"""Distills a student with TRL's SFTTrainer and the span loss.

python examples/trl/train.py demo-run/teacher demo-run/student-before demo-run/teacher.jsonl runs/trl
"""

import sys

import torch
from transformers import AutoTokenizer
from trl import SFTConfig

import sad
from sad.integrations.trl import SpanSFTTrainer

teacher_path, student_path, data, out = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(student_path)
corpus = sad.encode_all(sad.read_trajectories(data), tokenizer, max_length=512)
gpu = torch.cuda.is_available()
trainer = SpanSFTTrainer(
    student_path,
    SFTConfig(
        output_dir=out,
        num_train_epochs=1,
        learning_rate=3e-3,
        per_device_train_batch_size=4,
        logging_steps=25,
        report_to="none",
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
    ),
    teacher_model=teacher_path,
    train_dataset=corpus.examples,
    processing_class=tokenizer,
    span_loss=sad.SpanLossConfig(lambda_act=2.0),  # actions count twice
)
trainer.train()
trainer.save_model(out)
