"""Structured Agent Distillation: compress a ReAct-style agent by matching its reasoning and its actions.

Names are imported on first use, so that `import sad; sad.fused_span_kl(...)` loads PyTorch and the
kernels and nothing of the trainer's libraries.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "sad.errors": ("InputError",),
    "sad.losses": (
        "KindStats",
        "SpanStats",
        "fused_linear_span_kl",
        "fused_linear_topk_span_kl",
        "fused_span_ce",
        "fused_span_kl",
        "fused_topk_span_kl",
        "span_ids_from_masks",
    ),
    "sad.trajectories.spans": ("Span", "SpanKind", "span_ids_from_offsets"),
    "sad.trajectories.segment": ("Segmentation", "Unparsed", "segment"),
    "sad.trajectories.formats": ("ChatFormat", "Format", "formats", "register_format"),
    "sad.trajectories.trajectory": ("Trajectory", "read_jsonl", "write_jsonl"),
    "sad.trajectories.encode": ("Encoded", "EncodedCorpus", "encode", "encode_all"),
    "sad.training.config": ("SADConfig",),
    "sad.training.collator": ("SpanCollator",),
    "sad.training.curriculum": ("CurriculumSampler", "difficulty_scores"),
    "sad.teacher_cache.reader": ("TeacherCache",),
    "sad.training.trainer": ("SADTrainer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {"envs": "sad.envs"}

__all__ = ["__version__", "envs", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'sad' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
