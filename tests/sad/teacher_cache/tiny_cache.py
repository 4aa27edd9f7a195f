"""Makes a tiny teacher cache and trains a student from it, in one or several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sad import SADConfig, SADTrainer, TeacherCache
from sad.model_parts import model_digest
from sad.teacher_cache.head import head_of, hidden_metadata
from sad.teacher_cache.metadata import HIDDEN, CacheMetadata, example_digest
from sad.teacher_cache.writer import write_teacher_cache
from tests.sad.training import tiny


def write(path: str | Path, examples: list, model=None, shard_size: int = 1 << 20, **fields):
    """Writes a cache of the tiny teacher, with 16 of 300 columns by default."""
    model = tiny.model(seed=1, sharpness=30) if model is None else model
    defaults = {"top_k": 16, "vocab_size": 300, "dtype": "uint16", "tokenizer": "tokens", "teacher": model_digest(model)}
    metadata = CacheMetadata(**defaults | {"teacher_dtype": "float32"} | fields)
    return write_teacher_cache(model, examples, path, metadata, batch_tokens=200, shard_size=shard_size, show_progress=False)


def write_hidden(path: str | Path, examples: list, model=None, shard_size: int = 1 << 20, columns: int = 300, **fields):
    """Writes a cache of the tiny teacher's hidden states, in float32 by default."""
    model = tiny.model(seed=1, sharpness=30) if model is None else model
    defaults = {"dtype": "float32", "tokenizer": "tokens", "teacher": model_digest(model), "teacher_dtype": "float32"}
    about = hidden_metadata(head_of(model, columns))
    metadata = CacheMetadata(**{"kind": HIDDEN, "top_k": 0} | about | defaults | fields)
    return write_teacher_cache(model, examples, path, metadata, batch_tokens=200, shard_size=shard_size, show_progress=False)


def make_and_train(folder: Path, batch: int) -> dict[str, Any]:
    """Returns the cache's rows and the results of the training. 7 evaluation examples leave the last batch incomplete."""
    examples, other = tiny.examples(24), tiny.examples(7, seed=9)
    write(folder / "cache", examples + other)
    cache = TeacherCache(folder / "cache")
    sizes = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch}
    config = SADConfig(
        output_dir=str(folder / "run"), **tiny.CONFIG | sizes | {"optim": "sgd", "learning_rate": 0.5, "max_steps": 3}
    )
    trainer = SADTrainer(tiny.model(seed=2), None, config, examples, other, teacher_cache=cache)
    trainer.train()
    names = ("loss", "loss_reason", "loss_act", "teacher_entropy_act", "tokens_act")
    return {
        "files": len(list((folder / "cache").glob("*.safetensors"))),
        "rows": {example_digest(**x): [torch.from_numpy(part) for part in cache.read(**x)] for x in examples + other},
        "logs": [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log],
        "eval": {name: x for name, x in trainer.evaluate().items() if "loss" in name or "entropy" in name},
        "weights": torch.cat([x.detach().flatten() for x in trainer.accelerator.unwrap_model(trainer.model).parameters()]),
    }
